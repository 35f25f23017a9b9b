"""The verb inspect: what a file, a run folder or a catalogue is, as plain data."""

from __future__ import annotations

import math
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
    provenance,
    tensorfile,
)
from .deltas import Deltas, reads_base
from .errors import AdapterError
from .progress import Progress
from .runs import RunFolder


def adapter(path: Path, base: Path | None = None,
            progress: Progress | None = None) -> dict[str, Any]:
    """An adapter file: algorithm, dims, sizes, norms, metadata, and how it was made.

    Norms that are made from a base's weights, and how the file meets it, need `base`.
    """
    file = adapterfile.AdapterFile(path)
    kinds: dict[str, int] = {}
    for name in file.shapes:
        kind, dim, _ = file.kind(name)
        label = f"{kind.name} dim {dim}" if kind.scaled else kind.name
        kinds[label] = kinds.get(label, 0) + 1
    trained, source = metadata.config_of(file.metadata), provenance.source_config(file.metadata)
    found = _layers(path, base, progress or Progress())
    norms = [row["norm"] for row in found["rows"] if row["norm"] is not None]
    return {
        "file": str(path), "bytes": file.path.stat().st_size, "dialect": file.dialect,
        "left_out": {**file.reading.ignored, **dict.fromkeys(file.reading.unread, "no adapter's")},
        "summary": contestants.summary(file),
        "layers": len(file.shapes), "kinds": kinds, "tensors": len(file.entries),
        "parameters": sum(row["parameters"] for row in found["rows"]),
        "dtypes": sorted({dtype for dtype, _ in file.entries.values()}),
        "metadata": {key: value for key, value in file.metadata.items()
                     if key not in (metadata.CONFIG_KEY, metadata.PRESET_KEY,
                                    provenance.SOURCE_CONFIG)},
        "settings": asdict(trained) if trained else None,
        "source_settings": asdict(source) if source else None,
        "preset": file.metadata.get(metadata.PRESET_KEY, ""),
        "made": provenance.made_by(file.metadata),
        "trigger": provenance.trigger_words(file.metadata),
        "tags": provenance.frequent_tags(file.metadata),
        "total_norm": math.hypot(*norms) if norms else None, **found,
    }


def _layers(path: Path, base: Path | None, progress: Progress) -> dict[str, Any]:
    """{rows, needs_base, match, problem}: each layer's figures, in the file's order; `problem` says
    why there are no norms."""
    try:
        deltas, match = _opened(path, base)
        assert deltas.file.tensors is not None  # read and found whole
    except AdapterError as error:
        file = adapterfile.AdapterFile(path)
        rows = [_row(file, name) for name in file.shapes]
        return {"rows": rows, "needs_base": [], "match": None, "problem": error.message}
    rows, needing, places = [], list(deltas.unplaced), {a.source: a for a in deltas.assignments}
    for name in progress.over(list(deltas.file.shapes), "measuring"):
        row, assignment = _row(deltas.file, name), places.get(name)
        if assignment is not None:
            layer = assignment.layer
            row["name"] = f"{layer.part}.{layer.name}" if layer.part else ""
            if deltas.family is None and reads_base(assignment):
                needing.append(name)
            else:
                row["norm"] = deltas.change(assignment).norm()
            row["alpha"] = assignment.algorithm.alpha if assignment.algorithm.scaled else None
        rows.append(row)
    return {"rows": rows, "needs_base": needing, "match": match, "problem": ""}


def _opened(path: Path, base: Path | None) -> tuple[Deltas, dict[str, Any] | None]:
    """The file over the base, and how it fits; on its own where it was made for another."""
    if base is None:
        return Deltas(path), None
    family = families.open_base(base)
    try:
        deltas = Deltas(path, family)
    except AdapterError as error:
        return Deltas(path), {"base": base.name, "text": error.message, "matched": 0,
                              "unmatched": [], "unfit": [], "whole": False}
    match = deltas.match
    assert match is not None
    return deltas, {"base": base.name, "text": match.text, "matched": len(match.assignments),
                    "unmatched": list(match.unmatched), "unfit": list(match.unfit),
                    "whole": match.whole}


def _row(file: adapterfile.AdapterFile, name: str) -> dict[str, Any]:
    """One layer's figures from the header; its parameters are the numbers that were trained."""
    kind, dim, _ = file.kind(name)
    shapes = file.shapes[name]
    untrained = {"alpha", *kind.facts, *(kind.keys[part] for part in kind.frozen)}
    return {"layer": name, "name": "", "algorithm": kind.name, "dim": dim, "alpha": None,
            "norm": None, "dora": "dora_scale" in shapes,
            "parameters": sum(tensorfile.elements(shape) for suffix, shape in shapes.items()
                              if suffix not in untrained)}


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
