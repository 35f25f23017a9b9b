"""A stop at the worst moment: nothing that is begun is torn, nothing that was asked is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from test_training import of, same, train

from lycoris import durable, events, plan, sparing, tensorfile, trainer, writing
from lycoris.runs import RunFolder
from lycoris.settings import Config

Settings = Callable[..., Config]


class Asking:
    """A run that is asked for things when a stage of that name is told, once each."""

    def __init__(self, **wanted: set[str]):
        self.seen: list[events.Event] = []
        self.left = {name.replace("_", " "): what for name, what in wanted.items()}
        self.asked: set[str] = set()

    def emit(self, event: events.Event) -> None:
        self.seen.append(event)
        if isinstance(event, events.Stage) and event.name in self.left:
            self.asked |= self.left.pop(event.name)

    def __call__(self) -> set[str]:
        asked, self.asked = self.asked, set()
        return asked

    def run(self, run: Config) -> events.Finished:
        where = Path(run.output.folder) / run.output.name
        return trainer.run(plan.make(run), where, self.emit, self)


@pytest.fixture(autouse=True)
def always_telling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor that is written is a moment to look and to tell."""
    monkeypatch.setattr(writing, "EVERY", 0.0)
    monkeypatch.setattr(writing, "SILENT", 0.0)


def test_a_stop_in_the_middle_of_a_file_lets_it_come_whole(settings: Settings) -> None:
    asking = Asking(saving_the_state={"stop", "sample"})
    run = settings("sample.every=0", "output.dtype=fp32")
    ended = asking.run(run)
    assert ended == events.Finished("stopped", 2, "one.safetensors")
    told = of(asking.seen, events.Stopping)
    assert told[0] == events.Stopping(2) and asking.seen.index(told[0]) < asking.seen.index(
        of(asking.seen, events.Saved)[0]), "while the checkpoint is written"
    assert {s.path for s in of(asking.seen, events.Saved)} == {
        "checkpoints/one-000002.safetensors", "one.safetensors"}
    assert of(asking.seen, events.Sampled), "what else was asked is done before the end"
    stages = [s for s in of(asking.seen, events.Stage) if s.name == "saving the state"]
    assert [s.done for s in stages] == list(range(1, stages[0].total + 1)), "one state, not two"
    where = Path(run.output.folder) / "one"
    assert not list(where.rglob(".*"))
    train(run)
    _, whole, _ = train(settings("output.name=whole", "sample.every=0", "output.dtype=fp32"))
    assert same(whole / "whole.safetensors", where / "one.safetensors")


def test_a_stop_while_the_last_files_are_written_is_told(settings: Settings) -> None:
    asking = Asking(saving_the_adapter={"stop"})
    ended = asking.run(settings("train.checkpoint_every=0"))
    assert ended == events.Finished("done", 6, "one.safetensors")
    assert of(asking.seen, events.Stopping) == [events.Stopping(6)]


@pytest.mark.parametrize("wanted", ["folder", "file"])
def test_a_cancel_leaves_out_the_whole_model_and_keeps_the_last(settings: Settings,
                                                                wanted: str) -> None:
    run = settings(f"output.model={wanted}", "train.checkpoint_every=0", "train.steps=2")
    _, where, _ = train(run)

    def model() -> dict[str, bytes]:
        return {str(file.relative_to(where)): file.read_bytes() for file in where.rglob("*")
                if "-model" in str(file) and file.is_file()}

    first = model()
    more = settings(f"output.model={wanted}", "train.checkpoint_every=0", "train.steps=4")
    stage = "writing_unet" if wanted == "folder" else "writing_the_model"
    asking = Asking(**{"saving_the_adapter": {"stop"}, stage: {"cancel"}})
    assert asking.run(more).reason == "done"
    assert of(asking.seen, events.Stopping) == [events.Stopping(4, "the whole model")]
    assert "left out" in of(asking.seen, events.Warned)[-1].text
    assert model() == first and first and not list(where.glob(".*"))
    stopped = Asking(**{stage: {"stop"}})
    assert stopped.run(more).reason == "done"
    assert model().keys() == first.keys() and model() != first, "a stop alone lets it come whole"


def test_a_pause_that_is_heard_while_it_paints_is_not_lost(
        settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparing, "HOLD", 0.0)
    asking = Asking(loading_the_model={"sample"}, painting_samples={"pause", "save"},
                    saving={"resume"})
    ended = asking.run(settings("train.checkpoint_every=0"))
    assert ended.reason == "done"
    assert len(of(asking.seen, events.Paused)) == 1


def test_a_stop_ends_the_look_at_what_is_held_out(settings: Settings) -> None:
    run = settings("dataset.validation=0.4", "train.validate_every=2")
    asking = Asking(validating={"stop"})
    assert asking.run(run) == events.Finished("stopped", 0, "")
    assert not of(asking.seen, events.Validated)
    later, _, ended = train(run)
    assert ended.reason == "done" and [v.step for v in of(later, events.Validated)] == [0, 2, 4, 6]


def test_progress_counts_every_tensor(tmp_path: Path) -> None:
    import torch

    seen: list[events.Event] = []
    one = writing.Writing(3, seen.append, set, set())
    tensors = {name: torch.ones(2) for name in "abc"}
    tensorfile.write(tmp_path / "a.safetensors", tensors, {}, tick=one.over("saving", 3))
    assert seen == [events.Stage("saving", done, 3) for done in (1, 2, 3)]


def test_the_followers_know_that_it_is_stopping(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "one").create({})
    run.append(events.Started(1, 1.0, "CPU", 9))
    run.append(events.Stopping(3, "the whole model"))
    assert run.history().stopping == events.Stopping(3, "the whole model")
    run.append(events.Started(1, 2.0, "CPU", 9))
    assert run.history().stopping is None


def test_a_replaced_folder_is_there_until_the_new_one_is_whole(tmp_path: Path) -> None:
    model = tmp_path / "model"
    for text in ("first", "second"):
        with durable.whole_folder(model, replace=True) as fresh:
            (fresh / "a").write_text(text)
    assert (model / "a").read_text() == "second" and [p.name for p in tmp_path.iterdir()] == [
        "model"]
    with pytest.raises(ZeroDivisionError), durable.whole_folder(model, replace=True) as fresh:
        (fresh / "a").write_text(str(1 / 0))
    assert (model / "a").read_text() == "second"
    model.rename(tmp_path / ".model.old")  # as a power cut between the two renames leaves it
    (tmp_path / ".model.abc.part").mkdir()
    durable.sweep(tmp_path)
    assert (model / "a").read_text() == "second" and [p.name for p in tmp_path.iterdir()] == [
        "model"]
