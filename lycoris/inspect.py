"""The verb inspect: what a file, a run folder or a catalogue is, as plain data."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import (
    adapterfile,
    algorithms,
    contestants,
    families,
    knobs,
    metadata,
    plan,
    presets,
    tensorfile,
)
from .runs import RunFolder


def adapter(path: Path) -> dict[str, Any]:
    """An adapter file from its header: algorithm, dims, sizes, metadata, and its settings."""
    file = adapterfile.AdapterFile(path)
    kinds: dict[str, int] = {}
    for name in file.shapes:
        kind, dim, _ = file.kind(name)
        label = f"{kind.name} dim {dim}" if kind.scaled else kind.name
        kinds[label] = kinds.get(label, 0) + 1
    trained = metadata.config_of(file.metadata)
    counted = [shape for key, (_, shape) in file.entries.items() if not key.endswith(".alpha")]
    return {
        "file": str(path), "bytes": file.path.stat().st_size, "dialect": file.dialect,
        "left_out": {**file.reading.ignored, **dict.fromkeys(file.reading.unread, "no adapter's")},
        "summary": contestants.summary(file),
        "layers": len(file.shapes), "kinds": kinds, "tensors": len(file.entries),
        "parameters": sum(map(tensorfile.elements, counted)),
        "dtypes": sorted({dtype for dtype, _ in file.entries.values()}),
        "metadata": {key: value for key, value in file.metadata.items()
                     if key != metadata.CONFIG_KEY},
        "settings": asdict(trained) if trained else None,
    }


def run(path: Path) -> dict[str, Any]:
    """A run folder: its state and how far it is."""
    folder = RunFolder(path)
    history = folder.history()
    last = history.steps[-1] if history.steps else None
    return {
        "run": folder.name, "state": folder.state(), "step": history.step,
        "total_steps": history.started.total_steps if history.started else 0,
        "loss": last.loss if last else None, "loss_avg": last.loss_avg if last else None,
        "adapter": str(folder.adapter_file) if folder.adapter_file.is_file() else None,
        "samples": [event.path for event in history.samples],
        "error": asdict(history.failed) if history.failed else None,
    }


def catalogues() -> dict[str, Any]:
    """Every name that a setting can take, the algorithms with their own options, the presets with
    their targets."""
    found: dict[str, Any] = {key: list(value) for key, value in plan.names().items()}
    found["algorithms"] = {
        name: {"label": entry.label,
               "options": {leaf.name: {"default": leaf.default, "help": leaf.knob.help}
                           for leaf in knobs.leaves(entry.Options).values()}}
        for name, entry in algorithms.catalogue().items()}
    found["presets"] = {
        **{name: entry.presets for name, entry in families.catalogue().items()},
        "own": list(presets.own_names())}
    return found
