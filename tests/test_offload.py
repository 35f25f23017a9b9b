"""What no step needs leaves the GPU and comes back when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lycoris import config, families, memory, plan, trainer
from lycoris.families import Model

CPU = torch.device("cpu")
TEXT_LEARNS = ("network.text_encoder=true", "train.offload=true")
UNET_ALONE = ("network.text_encoder=false", "train.offload=true")


@pytest.mark.parametrize(("overrides", "device", "expected"), [
    ((), "cuda", ()), (UNET_ALONE, "cpu", ()),
    (UNET_ALONE, "cuda", ("vae", "text_encoder")), (TEXT_LEARNS, "cuda", ("vae",)),
    ((*UNET_ALONE, "model.dtype=nf4"), "cuda", ("vae",))])
def test_what_rests(settings: Callable[..., config.Config], overrides: tuple[str, ...],
                    device: str, expected: tuple[str, ...]) -> None:
    made = plan.make(settings(*overrides))
    assert memory.resting(made, device) == expected
    plain = plan.make(replace(made.config, train=replace(made.config.train, offload=False)))
    away = {f"{part.replace('_', ' ')} weights" for part in expected}
    for phase, before in zip(memory.predict(made, device).phases,
                             memory.predict(plain, device).phases, strict=True):
        gone = set(before.items) - set(phase.items)
        trains = phase.name in (memory.TRAINING, memory.UPDATING)
        assert {item.name for item in gone} == (
            {item.name for item in before.items} & away if trains else set())
        assert set(phase.items) <= set(before.items)


@contextmanager
def _noted(model: Model) -> Iterator[list[tuple[str, str]]]:
    """(part, device) of each move."""
    moves: list[tuple[str, str]] = []
    kept = {name: part.to for name, part in model.parts.items()}
    for name, part in model.parts.items():
        part.to = lambda device, name=name: moves.append((name, str(device)))
    yield moves
    for name, part in model.parts.items():
        part.to = kept[name]


def test_parts_come_back_when_they_are_asked_for(small_base: Path) -> None:
    model = families.open_base(small_base).load(CPU, torch.float32)
    with _noted(model) as moves:
        model.rest(["vae", "text_encoder"])
        assert moves == [("vae", "cpu"), ("text_encoder", "cpu")]
        moves.clear()
        model.encode_prompts(["a zorb"])
        model.decode(torch.zeros(1, 4, 4, 4))
        assert moves == [], "they are where the model is"
        for ask, part in ((lambda: model.encode_text(["a"]), "text_encoder"),
                          (lambda: model.encode_prompts(["a"]), "text_encoder"),
                          (lambda: model.encode_image(torch.zeros(1, 3, 8, 8)), "vae"),
                          (lambda: model.decode(torch.zeros(1, 4, 4, 4)), "vae")):
            model.device = torch.device("meta")
            moves.clear()
            with torch.no_grad():
                try:
                    ask()
                except (NotImplementedError, RuntimeError):
                    pass  # the part has only been told to move
            assert moves == [(part, "meta")]
            model.device = CPU


def test_a_run_sends_them_away_before_its_steps_and_after_its_samples(
        settings: Callable[..., config.Config], tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU nothing moves, so what it would do on a GPU is told; the file is the same."""
    sent: list[tuple[str, ...]] = []
    monkeypatch.setattr(Model, "rest", lambda self, names: sent.append(tuple(names)))
    real = memory.resting
    monkeypatch.setattr(trainer, "resting", lambda made, device: real(made, "cuda"))
    made = plan.make(settings(*UNET_ALONE, "train.steps=2", "sample.every=1"))
    trainer.run(made, tmp_path, lambda event: None, set)
    assert sent == [("vae", "text_encoder")] * 4
