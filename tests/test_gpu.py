"""What only a CUDA device can show: a run of the embedded model on it, in the memory foreseen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import draw_pictures
from nursery import same

from lycoris import config, devices, events, memory, plan, trainer
from lycoris.plan import Plan

DEVICE = "cuda"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(),
                                                  reason="needs a CUDA device")]
Train = Callable[..., tuple[Plan, list[events.Event], Path]]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """train(name, settings...): a few steps of the embedded model; plan, events, adapter file."""
    pictures = draw_pictures(tmp_path / "pictures", 8, (512, 512))

    def run(name: str, *words: str) -> tuple[Plan, list[events.Event], Path]:
        made = plan.make(config.load(None, [
            f"dataset.folder={pictures}", f"output.folder={tmp_path / 'runs'}",
            f"output.name={name}", f"train.device={DEVICE}", "train.steps=4",
            "train.checkpoint_every=0", "sample.every=0", "dataset.bucket=false",
            "optimizer.name=AdamW", "network.preset=full", "output.dtype=fp32", *words]))
        told: list[events.Event] = []
        where = tmp_path / "runs" / name
        trainer.run(made, where, told.append, set)
        return made, told, where / f"{name}.safetensors"

    return run


@pytest.fixture
def deterministic() -> Iterator[None]:
    """The fastest kernels of some operators add up in another order each time."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_a_run_takes_the_memory_that_was_predicted(train: Train, checkpointing: str) -> None:
    """Within 10 %, of a step large enough that the libraries' own scratch is little of it."""
    devices.release()  # what other tests have left
    meter = devices.Meter(torch.device(DEVICE))
    made, told, adapter = train(
        "one", "dataset.resolution=512", "train.batch_size=8",
        f"train.gradient_checkpointing={checkpointing}")
    losses = [event.loss for event in told if isinstance(event, events.Step)]
    assert len(losses) == 4 and all(map(math.isfinite, losses)) and adapter.is_file()
    assert meter.peak() == pytest.approx(memory.predict(made, DEVICE).counted, rel=0.1)


@pytest.mark.usefixtures("deterministic")
def test_swapped_blocks_learn_the_same(train: Train) -> None:
    own = ("dataset.resolution=128", "train.gradient_checkpointing=true")
    assert same(train("plain", *own)[2], train("swapped", *own, "train.block_swap=1")[2])
