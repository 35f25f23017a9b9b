"""What a run's steps wait for and look at: one wait a step, the validation of what is saved, and
what is said before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import small_models
import torch

from lycoris import events, optimizers, plan, quantised
from lycoris.errors import MissingPackage
from lycoris.settings import Config
from lycoris.trainer import Session

Settings = Callable[..., Config]


def prepared(run: Config, seen: list[events.Event] | None = None) -> Session:
    session = Session(plan.make(run), Path(run.output.folder) / run.output.name,
                      ([] if seen is None else seen).append)
    session.prepare(lambda: set())
    return session


def test_a_step_reads_its_numbers_at_once(settings: Settings,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reading would wait for the device: of four pieces and the norm, one."""
    session = prepared(settings("train.batch_size=2", "train.accumulate=2", "train.split=2"))
    read: list[int] = []
    real = torch.Tensor.tolist

    def tolist(tensor: torch.Tensor) -> object:
        if tensor.is_floating_point():
            read.append(tensor.numel())
        return real(tensor)

    def item(tensor: torch.Tensor) -> float:
        read.append(-1)
        return real(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", tolist)
    monkeypatch.setattr(torch.Tensor, "item", item)
    session.advance()
    assert read == [5]
    session.network.restore()


def test_the_next_pictures_are_there_before_the_step_is_waited_for(settings: Settings) -> None:
    session = prepared(settings("train.accumulate=2", "train.steps=3"))
    told: list[object] = []
    made, settle = session._made, session._settle
    session._made = lambda *which: told.append(which) or made(*which)  # type: ignore
    session._settle = lambda parts: told.append("waits") or settle(parts)  # type: ignore
    for _ in range(3):
        session.advance()
    assert told == [(0, 0), (0, 1), (1, 0), (1, 1), "waits", (2, 0), (2, 1), "waits", "waits"]
    session.network.restore()


@pytest.mark.parametrize("how", ["train.ema=0.9", "optimizer.name=ScheduleFreeAdamW"])
def test_the_validation_is_of_what_would_be_saved(settings: Settings, how: str) -> None:
    seen: list[events.Event] = []
    session = prepared(settings("dataset.validation=0.3", "optimizer.schedule=constant",
                                "optimizer.lr=0.05", how), seen)
    for _ in range(3):
        session.advance()
    before = [p.detach().clone() for p in session.network.parameters()]
    session.validate()
    assert all(map(torch.equal, before, session.network.parameters()))
    session.validator.look(3)
    with session.learner.shown():
        session.validator.look(3)
    found, raw, shown = (each.loss for each in seen if isinstance(each, events.Validated))
    assert found == shown != raw
    session.network.restore()


def test_what_is_not_installed_is_said_with_the_plan(settings: Settings,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the base is loaded, and on the page before the start; a size can be asked for."""
    row = optimizers.Row("Gone", "not_installed_anywhere:Gone", 8, needs="gone")
    monkeypatch.setitem(optimizers.ROWS, "Gone", row)
    run = settings("optimizer.name=Gone")
    with pytest.raises(MissingPackage, match="pip install gone") as caught:
        plan.make(run)
    assert "optimizer.name" in caught.value.problems
    assert plan.make(run, need_dataset=False).sizes.parameters
    monkeypatch.setattr(quantised.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match="bitsandbytes"):
        quantised.require("nf4")
    quantised.require("bf16")


@pytest.mark.parametrize(("kind", "skip", "blocks"), [
    ("sd15", 1, []), ("sd15", 2, ["text_encoder.encoder.layers.2.*"]),
    ("sdxl", 1, ["text_encoder.encoder.layers.2.*"])])
def test_layers_that_nobody_reads_are_told_and_learn_nothing(
        settings: Settings, tmp_path: Path, kind: str, skip: int, blocks: list[str]) -> None:
    base = small_models.make(tmp_path / kind, kind)
    session = prepared(settings(f"model.base={base}", f"model.clip_skip={skip}",
                                "network.dim=1", "network.preset=attn-only"))
    told = [w for w in session.plan.warnings if "come after the layer" in w.text]
    session.loss(0, 0).backward()
    idle = {f"{a.layer.part}.{a.layer.name}" for a in session.network
            if all(p.grad is None for p in a.parameters())}
    assert {name[:name.index("layers.2") + 8] + ".*" for name in idle} == set(blocks)
    assert [w.text.split()[0] for w in told] == [str(len(idle))] * bool(blocks)
    assert all(block in told[0].fix for block in blocks)
    session.network.restore()
