"""What goes wrong beside the steps ends no run, and loses nothing of it."""

from __future__ import annotations

import errno
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training import of, same, train, train_asking

from lycoris import checkpoint, durable, events, plan, sampling, tensorfile, trainer
from lycoris.data import cache
from lycoris.errors import DatasetError, DiskError, Diverged, LycorisError, RunError
from lycoris.learner import Learner
from lycoris.lesson import Lesson
from lycoris.settings import Config
from lycoris.trainer import Session

Settings = Callable[..., Config]
MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def failing(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, error: Exception,
            calls: range = range(10**6)) -> list[int]:
    """The function fails at these calls of it; how often it was called."""
    real, count = getattr(owner, name), []

    def fail(*given: Any, **named: Any) -> Any:
        count.append(len(count))
        if count[-1] in calls:
            raise error
        return real(*given, **named)

    monkeypatch.setattr(owner, name, fail)
    return count


@pytest.mark.parametrize(("error", "words", "fix"), [
    (MEMORY, "ran out of memory while painting samples",
     "resume with a lower sample.width and sample.height; resume with sample.every=0"),
    (RuntimeError("no such kernel"), "RuntimeError: no such kernel", "The log"),
    (OSError(errno.EIO, "broken"), "broken", "The log")])
def test_samples_that_cannot_be_painted_cost_no_step(
        settings: Settings, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str,
        fix: str) -> None:
    plain = train(settings("output.name=plain"))[1]
    failing(monkeypatch, sampling, "_denoise", error)
    seen, folder, ended = train(settings("output.name=other", "sample.every=2"))
    assert ended == events.Finished("done", 6, "other.safetensors")
    told = of(seen, events.Warned)
    assert len(told) == 4 and all(words in each.text and fix in each.fix for each in told)
    assert not of(seen, events.Sampled)
    assert same(plain / "plain.safetensors", folder / "other.safetensors")


def test_what_cannot_be_validated_costs_no_step(settings: Settings,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    held = ("dataset.validation=0.2", "train.validate_every=2")
    plain = train(settings("output.name=plain", *held))[1]
    calls = failing(monkeypatch, Lesson, "validation", RuntimeError("odd"), range(1, 3))
    seen, folder, ended = train(settings("output.name=other", *held))
    assert ended.reason == "done" and len(calls) == 4
    assert [e.step for e in of(seen, events.Validated)] == [0, 6]
    assert [each.text.partition(" failed")[0] for each in of(seen, events.Warned)] == [
        "Validating", "Validating"]
    assert same(plain / "plain.safetensors", folder / "other.safetensors")


def test_a_mistake_of_the_first_samples_is_told_at_once(settings: Settings,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """Before there is a step to lose."""
    failing(monkeypatch, sampling, "_denoise", LycorisError("no such word", "spell it"))
    with pytest.raises(LycorisError, match="no such word"):
        train(settings("sample.every=2"))


def test_the_last_step_is_on_the_disk_before_it_is_painted(
        settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    run = settings("sample.every=6", "train.checkpoint_every=0")
    calls = failing(monkeypatch, sampling, "_denoise", Killed(), range(1, 9))  # type: ignore
    with pytest.raises(Killed):
        train(run)
    assert len(calls) == 2
    monkeypatch.undo()
    seen, folder, ended = train(run)
    assert (of(seen, events.Resumed)[0].step, ended.reason) == (6, "done")
    assert not of(seen, events.Step) and [s.step for s in of(seen, events.Sampled)] == [6]
    plain = train(settings("output.name=plain"))[1]
    assert same(plain / "plain.safetensors", folder / "one.safetensors")


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The disk has no room for files of these names."""
    real, names = durable.write_bytes, []

    def write(path: Path, chunks: Any, **how: Any) -> Path:
        if Path(path).name in names:
            raise durable.disk_error(OSError(errno.ENOSPC, "full"), Path(path))
        return real(path, chunks, **how)

    monkeypatch.setattr(durable, "write_bytes", write)
    return names


def test_a_full_disk_holds_a_run_that_is_stopped_then(settings: Settings, full: list[str]) -> None:
    full.append("step-00000004.safetensors")
    run = settings()
    with pytest.raises(DiskError, match="disk is full: .*step-00000004"):
        train_asking(run, 4, [set(), {"stop"}])
    folder = Path(run.output.folder) / "one"
    assert [f.name for f in checkpoint.found(folder / "state")] == ["step-00000002.safetensors"]
    full.clear()
    _, whole, _ = train(settings("output.name=whole"))
    train(run)
    assert same(whole / "whole.safetensors", folder / "one.safetensors")


@pytest.mark.parametrize("name", ["step-00000004.safetensors", "one-000004.safetensors",
                                  "step-00000006.safetensors", "one.safetensors"])
def test_a_run_goes_on_when_there_is_room_again(settings: Settings, full: list[str],
                                                name: str) -> None:
    _, whole, _ = train(settings("output.name=whole"))
    full.append(name)
    seen: list[events.Event] = []
    waited = []

    def asked() -> set[str]:
        if not of(seen, events.Paused) or waited:
            return set()
        assert "disk is full: " in of(seen, events.Warned)[-1].text
        waited.append(True)
        full.clear()
        return {"resume"}

    run = settings()
    folder = Path(run.output.folder) / "one"
    ended = trainer.run(plan.make(run), folder, seen.append, asked)
    assert waited and len(of(seen, events.Continued)) == 1 and ended.reason == "done"
    assert same(whole / "whole.safetensors", folder / "one.safetensors")


def test_a_step_that_ends_in_no_number_is_not_saved(settings: Settings,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """Finite gradients, and a parameter that is not finite after the optimiser's step."""
    real = Learner.learned

    def spoil(learner: Learner, step: int) -> None:
        real(learner, step)
        if step == 4:
            with torch.no_grad():
                next(iter(learner.named.values())).view(-1)[0] = float("nan")

    monkeypatch.setattr(Learner, "learned", spoil)
    run = settings()
    with pytest.raises(Diverged, match=r"became nan at step 4\. The first .*: unet conv_in"):
        train(run)
    monkeypatch.undo()
    folder = Path(run.output.folder) / "one"
    assert [f.name for f in checkpoint.found(folder / "state")] == ["step-00000002.safetensors"]
    train(run)
    _, whole, _ = train(settings("output.name=whole"))
    assert same(whole / "whole.safetensors", folder / "one.safetensors")


def test_any_damage_to_what_a_state_says_is_seen(settings: Settings) -> None:
    """Bits of the header: progress, the optimiser's numbers, names, the checksum itself."""
    _, folder, _ = train(settings("network.preset=attn-only", "network.text_encoder=false",
                                  "train.checkpoint_every=3"))
    newest = checkpoint.found(folder / "state")[-1]
    data = newest.read_bytes()
    length = int.from_bytes(data[:8], "little")
    draw, seen = random.Random(5), 0
    said = data[8:8 + length].index(b"__metadata__")
    span = range(8 + said, 8 + said + len(json.dumps(json.loads(data[8:8 + length])[
        "__metadata__"])))
    for place in draw.sample(span, 150):
        changed = bytearray(data)
        changed[place] ^= 1 << draw.randrange(8)
        newest.write_bytes(changed)
        state, problems = checkpoint.load(folder / "state")
        assert state is not None and state.progress.step in (3, 6)
        seen += bool(problems)
        if not problems:  # what says the same as before is no damage
            assert state.progress.step == 6 and state == _whole(newest, data)
    assert seen > 100
    newest.write_bytes(data)
    assert checkpoint.load(folder / "state")[1] == []


def _whole(path: Path, data: bytes) -> checkpoint.State | None:
    path.write_bytes(data)
    return checkpoint.load(path.parent)[0]


def test_a_state_of_an_earlier_version_is_still_read(settings: Settings,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checksum is of the tensors alone."""
    _, folder, _ = train(settings())
    newest = checkpoint.found(folder / "state")[-1]
    tensors, said = tensorfile.read(newest, RunError)
    progress = json.loads(said["progress"])
    del said["checksum"], progress["pictures"]
    said |= {"sha256": tensorfile.digest(tensors), "progress": json.dumps(progress)}
    tensorfile.write(newest, tensors, said)
    state, problems = checkpoint.load(folder / "state")
    assert state is not None and state.progress.step == 6 and not problems
    seen, _, _ = train(settings("train.steps=8"))
    assert of(seen, events.Resumed)[0].step == 6 and not of(seen, events.Warned)


@pytest.mark.parametrize("change", ["caption", "gone", "nothing"])
def test_other_pictures_on_resuming_are_told(settings: Settings, pictures: Path,
                                             change: str) -> None:
    train(settings(), after=3)
    if change == "caption":
        (pictures / "2.txt").write_text("another ball\n", "utf-8")
    elif change == "gone":
        (pictures / "2.png").unlink()
    seen, _, ended = train(settings())
    told = [each.text for each in of(seen, events.Warned)]
    assert ended.reason == "done" and len(told) == (change != "nothing")
    assert all("not those this run began with" in text for text in told)


def test_pictures_without_finite_latents_are_named_before_the_first_step(
        settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    real = cache._together

    def spoilt(model: Any, pixels: list[torch.Tensor]) -> torch.Tensor:
        found = real(model, pixels)
        found[1:3] = float("inf")
        return found

    monkeypatch.setattr(cache, "_together", spoilt)
    run = settings("dataset.cache_limit=1")
    with pytest.raises(DatasetError, match=r"not finite of 2 of 5 pictures: 2\.png, 3\.png\."):
        train(run)
    monkeypatch.undo()
    seen = train(run)[0]
    assert of(seen, events.Stage)  # what was not finite is not in the cache
    session = Session(plan.make(run), Path(run.output.folder) / "two", lambda event: None)
    session.prepare(lambda: set())
    assert all(one.latents.isfinite().all() for one in session.feed.latents)
    session.network.restore()
