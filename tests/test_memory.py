"""Predicted memory against what a real step saves; savings, the disk, what a machine has shown."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lycoris import (
    activations,
    algorithms,
    disk,
    families,
    footprint,
    holding,
    machine,
    memory,
    plan,
    relief,
    trainer,
)
from lycoris.data import store
from lycoris.errors import DiskError
from lycoris.footprint import Table
from lycoris.settings import Config

Settings = Callable[..., Config]
ALGORITHMS = [name for name, entry in algorithms.catalogue().items() if not entry.timed]


@pytest.fixture(scope="module")
def table(small_base: Path) -> Table:
    return activations.trace(families.open_base(small_base))


def traced(run: Config, table: Table) -> plan.Plan:
    """The plan of a run whose base has been traced."""
    footprint.keep(table, run.output.folder)
    return plan.make(run)


def saved_by(made: plan.Plan, where: Path) -> int:
    """Bytes that autograd saves in a real step on the CPU, weights and adapters' own left out."""
    session = trainer.Session(made, where, lambda event: None)
    session.prepare(set)
    model, kept, found = session.model, [], {}
    for module in (model.unet, model.text_encoder, session.network):
        for tensor in (*module.parameters(), *module.buffers()):
            kept.append(tensor.untyped_storage())
    own = {id(storage) for storage in kept}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept.append(storage)
        if id(storage) not in own:
            found[id(storage)] = storage.nbytes()
        return tensor

    session.network.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        session.loss(0, 0)
    return sum(found.values())


def predicted_by(made: plan.Plan, table: Table) -> float:
    end = holding.moments(table, made.assignments, memory.step_of(made, "cpu"))[0]
    return end.base + end.adapters


@pytest.mark.parametrize("preset", ["attn-only", "attn-mlp", "full", "unet-convblock-only"])
def test_a_step_saves_what_the_trace_says(preset: str, settings: Settings, table: Table,
                                          tmp_path: Path) -> None:
    """Within 1 %: a timestep's embedding and a loss of a few numbers are in no table."""
    made = traced(settings(f"network.preset={preset}", "dataset.resolution=64",
                           "dataset.bucket=false"), table)
    assert predicted_by(made, table) == pytest.approx(saved_by(made, tmp_path / "at"), rel=0.01)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_algorithm_keeps_what_it_says(algo: str, settings: Settings, table: Table,
                                            tmp_path: Path) -> None:
    """Within 5 %, on layers so thin that an adapter weighs as much as the layer."""
    dim = 4 if algo in ("boft", "dylora") else 2
    made = traced(settings(f"network.algo={algo}", f"network.dim={dim}", "dataset.resolution=64",
                           "dataset.bucket=false"), table)
    assert predicted_by(made, table) == pytest.approx(saved_by(made, tmp_path / "at"), rel=0.05)


@pytest.mark.parametrize("text", ["true", "false"])
@pytest.mark.parametrize("chunks", [2, 3])
def test_longer_captions_are_counted(chunks: int, text: str, settings: Settings, table: Table,
                                     tmp_path: Path) -> None:
    """In the cross-attention, in its adapters, and in a text encoder that learns."""
    made = traced(settings(f"dataset.caption_chunks={chunks}", "dataset.resolution=64",
                           "dataset.bucket=false", f"network.text_encoder={text}"), table)
    assert predicted_by(made, table) == pytest.approx(saved_by(made, tmp_path / "at"), rel=0.01)


def test_the_shipped_table_is_what_a_trace_gives() -> None:
    family = families.open_base(Path("assets/tiny-sd"))
    shipped = footprint.find(family, "nowhere")
    assert shipped is not None
    assert activations.trace(family) == shipped


def test_known_models_have_tables_of_all_their_layers() -> None:
    for name in families.known.names():
        family = families.open_base(Path("assets/tiny-sd"), name)
        table = footprint.find(family, "nowhere")
        assert table is not None, name
        for mode in footprint.MODES:
            spots = {part: table.run(part, mode).spots for part in table.learning}
            for layer in family.layers:
                assert layer.name.removeprefix(footprint.TEXT_LEVEL) in spots[layer.part], layer


def test_without_a_table_it_says_what_is_missing(settings: Settings) -> None:
    made = plan.make(settings())
    found = memory.predict(made, "cuda")
    assert found.missing
    assert {item.kind for item in found.items} >= {"weights", "adapter", "optimizer", "gradients"}
    assert not any(item.kind == "activations" for item in found.items)


def test_memory_moves_with_what_it_is_made_of(settings: Settings, table: Table) -> None:
    def peak(*words: str) -> int:
        made = traced(settings("dataset.resolution=512", "dataset.bucket=false", *words), table)
        phases = {phase.name: phase.bytes for phase in memory.predict(made, "cuda").phases}
        return phases[memory.TRAINING]

    own = peak()
    assert peak("train.batch_size=4") > own > peak("train.batch_size=1")
    assert peak("train.gradient_checkpointing=true") < own < peak("train.precision=fp32")
    assert peak("dataset.resolution=256") < own
    assert peak("network.preset=attn-only", "network.text_encoder=false") < own


def test_larger_crops_and_held_out_pictures_are_counted(
        settings: Settings, table: Table, pictures: Path, tmp_path: Path,
        make_pictures: Callable[..., Path]) -> None:
    wide = make_pictures(tmp_path / "wide", 2, (96, 48))

    def phases(*words: str) -> dict[str, int]:
        made = traced(settings("dataset.resolution=256", f"dataset.folder={wide}", *words), table)
        return {phase.name: phase.bytes for phase in memory.predict(made, "cuda").phases}

    own = phases()
    assert phases("dataset.random_crop=true", "dataset.bucket=false")[memory.ENCODING] > phases(
        "dataset.bucket=false")[memory.ENCODING]
    assert memory.VALIDATING not in own
    words = (f"dataset.validation_folder={pictures}", "train.batch_size=4")
    whole = phases(*words)[memory.VALIDATING]
    assert whole > phases(*words, "train.split=4")[memory.VALIDATING]


def test_what_would_have_helped_is_told_in_bytes(settings: Settings, table: Table) -> None:
    made = traced(settings("dataset.resolution=512", "dataset.bucket=false",
                           "train.batch_size=4", "train.precision=fp32"), table)
    said = relief.after_failure(made, memory.TRAINING, "cuda")
    numbers = [int(found[1].replace(",", "")) for text in said
               if (found := re.search(r"\(about ([\d,]+) MiB less\)$", text))]
    assert len(numbers) >= 4 and min(numbers) > 0
    lean = relief.changed_plan(made, {"train.gradient_checkpointing": True})
    phases = [memory.predict(each, "cuda", frugal=True).data()["phases"][memory.TRAINING]
              for each in (made, lean)]
    assert f"resume with train.gradient_checkpointing=true (about " \
           f"{(phases[0] - phases[1]) / 2**20:,.0f} MiB less)" in said
    assert any(text.startswith("resume with train.split=4 (") for text in said)


def test_savings_go_on_until_it_fits(settings: Settings, table: Table) -> None:
    made = traced(settings("dataset.resolution=512", "dataset.bucket=false",
                           "train.batch_size=4"), table)
    found, enough = relief.savings(made, "cuda", free=1)
    assert enough is None
    paths = [next(iter(each.values)) for each in found]
    assert paths[0] == "train.gradient_checkpointing"
    assert paths[-1] == "dataset.resolution"
    peaks = [each.peak for each in found]
    assert peaks == sorted(peaks, reverse=True)
    assert relief.savings(made, "cuda", free=peaks[0])[1] == 1
    assert relief.savings(made, "cuda", free=10**15)[1] == 0


def test_a_run_that_cannot_fit_the_disk_is_refused_before_it_starts(
        settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan.make(settings())
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 2**20))
    with pytest.raises(DiskError, match="too little") as caught:
        trainer.run(made, tmp_path / "at", lambda event: None, set)
    assert "train.keep_checkpoints" in caught.value.fix
    assert disk.predict(made).lacking > 0


def test_what_a_run_leaves_is_what_was_predicted(settings: Settings, tmp_path: Path) -> None:
    made = plan.make(settings("train.keep_checkpoints=0"))
    where = tmp_path / "at"
    trainer.run(made, where, lambda event: None, set)
    foreseen = {item.name: item.bytes for item in disk.predict(made).items}
    written = sum(file.stat().st_size for file in (where / "checkpoints").iterdir())
    assert foreseen["2 checkpoints"] == pytest.approx(written, rel=0.05)
    states = [file.stat().st_size for file in (where / "state").glob("*.safetensors")]
    assert foreseen["3 states to resume from"] / 3 == pytest.approx(states[0], rel=0.3)


@pytest.mark.parametrize("words", [
    ("network.text_encoder=false",), ("dataset.validation=0.4", "dataset.flip=true"),
    ("network.text_encoder=false", "dataset.shuffle_tags=true")])
def test_the_cache_is_what_was_predicted(words: tuple[str, ...], settings: Settings,
                                         tmp_path: Path) -> None:
    made = plan.make(settings(*words, "train.steps=1", "train.validate_every=0"))
    trainer.run(made, tmp_path / "at", lambda event: None, set)
    written = store.of(made.config).size().bytes
    assert disk.cache_bytes(made) == pytest.approx(written, rel=0.25)


def test_a_cache_on_another_drive_is_not_in_this_ones_way(
        settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan.make(settings())
    assert disk.cache_bytes(made) > 0
    numbers = iter((1, 2))
    monkeypatch.setattr(disk, "_device", lambda folder: next(numbers))
    assert disk.cache_bytes(made) == 0


def test_a_run_says_and_keeps_what_it_measured(settings: Settings, table: Table,
                                               tmp_path: Path) -> None:
    made = traced(settings("train.steps=8"), table)
    told: list[Any] = []
    name = machine.device_name(made)
    assert machine.time_left(made, name) is None
    trainer.run(made, tmp_path / "at", told.append, set)
    measured = next(event for event in told if type(event).__name__ == "Measured")
    assert measured.predicted > 0
    assert measured.memory > 0
    left = machine.time_left(made, name)
    assert left is not None
    assert left.low <= left.seconds <= left.high
    assert machine.time_left(made, name, step=4).seconds < left.seconds
    assert 0.5 <= machine.correction(made, name) <= 2
    other = plan.make(dataclasses.replace(made.config, network=dataclasses.replace(
        made.config.network, dim=3)))
    assert machine.time_left(other, name) is None, "another dim may be slower"
    for words, known in (("network.alpha=1", True), ("optimizer.lr=0.1", True),
                         ("train.batch_size=1", False), ("dataset.caption_chunks=2", False),
                         ("dataset.shuffle_tags=true", False), ("train.ema=0.9", False)):
        changed = plan.make(settings("train.steps=8", words))
        assert (machine.time_left(changed, name) is not None) is known, words


def test_a_broken_file_of_the_machine_is_begun_anew(settings: Settings) -> None:
    made = plan.make(settings())
    machine.path_of(made).parent.mkdir(parents=True, exist_ok=True)
    machine.path_of(made).write_text("{torn", "utf-8")
    assert machine.correction(made, "x") == 1.0
    machine.learn_memory(made, "x", 100, 120)
    assert machine.correction(made, "x") == pytest.approx(1.2)
    machine.learn_memory(made, "x", 100, 900)
    assert machine.correction(made, "x") == pytest.approx(1.6), "half old, half the limit"
    assert machine.measured_runs(made, "x") == 2 and machine.measured_runs(made, "y") == 0
