"""What takes part in painting: the base alone, or the base with an adapter at a weight."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import adapterfile, algorithms, config, metadata
from .errors import AdapterError, ConfigError, LycorisError
from .families import Family, Model
from .settings import Config

if TYPE_CHECKING:  # the page reads contestants' names and facts; it has no business with networks
    from .network import LycorisNetwork

BASE = "base"


@dataclass(frozen=True)
class Contestant:
    """`path` is an adapter file; None stands for the base model alone."""

    name: str
    path: Path | None = None
    weight: float = 1.0


def parse(text: str, runs: Path) -> Contestant:
    """ "base", a run's name in `runs`, a run folder, a PEFT folder or a file, each with
    ``:weight`` if not 1.

    Raises AdapterError where nothing of that name exists.
    """
    head, colon, tail = text.rpartition(":")
    weight = 1.0
    if colon and head and not tail.strip().startswith(("\\", "/")):
        try:
            weight = float(tail)
        except ValueError:
            weight = math.nan
        if not math.isfinite(weight):
            raise ConfigError({"": f"{text!r}: {tail!r} is no weight; write e.g. {head}:0.8"})
    else:
        head = text
    if head == BASE:
        return Contestant(BASE)
    for path in (runs / head, config.find(head)):  # a run called docs is no folder of ours
        if path.is_dir():
            own = (f"{path.name}.safetensors", *adapterfile.FOLDER_FILES)
            file = next((path / name for name in own if (path / name).is_file()), path / own[0])
            if not file.is_file():
                raise AdapterError(f"The run {path.name} has no adapter yet: there is no {file}.",
                                   "Train it to the end, or stop and save it.")
            return Contestant(path.name, file, weight)
        if path.is_file():
            return Contestant(path.stem, path, weight)
    raise AdapterError(f"There is no adapter {head!r}.",
                       f"Give a .safetensors file, or the name of a run in {runs}.")


def unique(contestants: list[Contestant]) -> list[Contestant]:
    """The same with names made different, by weight and then by number; an adapter is never called
    like the base."""
    found: list[Contestant] = []
    for each in contestants:
        name, taken = each.name, [c.name for c in found] + [BASE] * (each.path is not None)
        if name in taken:
            name = f"{each.name} at {each.weight:g}"
        number = 2
        while name in taken:
            name, number = f"{each.name} ({number})", number + 1
        found.append(Contestant(name, each.path, each.weight))
    return found


def load(contestant: Contestant, family: Family,
         model: Model) -> tuple[LycorisNetwork, adapterfile.Match] | tuple[None, None]:
    """The contestant's network over the model, not attached, and how it fits; None for the base."""
    from .network import LycorisNetwork

    if contestant.path is None:
        return None, None
    file = adapterfile.AdapterFile(contestant.path)
    match = adapterfile.match(file, family.layers, family.aliases, family.called)
    network = LycorisNetwork.from_file(file, match.assignments, model.modules)
    network.set_multiplier(contestant.weight)
    return network, match


def describe(contestant: Contestant, family: Family) -> dict[str, Any]:
    """What a recipe says of it: file, checksum, algorithm, size, and how it was trained."""
    found: dict[str, Any] = {"name": contestant.name, "weight": contestant.weight}
    if contestant.path is None:
        return {**found, "base": family.called}
    file = adapterfile.AdapterFile(contestant.path)
    trained = metadata.config_of(file.metadata)
    return {**found, "file": contestant.path.name, "bytes": contestant.path.stat().st_size,
            "sha256": hashlib.sha256(contestant.path.read_bytes()).hexdigest(),
            "algorithms": summary(file), "settings": asdict(trained) if trained else None}


def recipe(path: Path) -> tuple[Config | None, str]:
    """(the settings an adapter was trained with, None where its file does not say; the text of the
    preset they name, where it is one of somebody's own)."""
    found = adapterfile.AdapterFile(path).metadata
    run = metadata.config_of(found)
    return run and at_home(path, run), found.get(metadata.PRESET_KEY, "")


def at_home(path: Path, recorded: Config) -> Config:
    """What an adapter's file recorded, with its folders and files as the run has them that it lies
    in: others are told their names alone."""
    for folder in path.resolve().parents[:2]:  # the run, or its folder of checkpoints
        file = folder / "config.toml"
        if file.is_file() and folder.name == recorded.output.name:
            with contextlib.suppress(LycorisError):  # of another version: not needed
                return metadata.at_home(recorded, config.load(file))
    return recorded


def facts(path: Path, family: Family | None) -> dict[str, Any]:
    """What an adapter's header tells at once: algorithms, largest dim, layers, bytes, and how it
    fits a base; `fits` is None where it does not, with the reason in `match`, or without one."""
    file = adapterfile.AdapterFile(path)
    kinds = [file.kind(name) for name in file.shapes]
    fits, text = None, ""
    if family is not None:
        try:
            match = adapterfile.match(file, family.layers, family.aliases, family.called)
            fits, text = match.whole, match.text
        except AdapterError as error:
            text = error.message
    return {"summary": summary(file), "algorithms": sorted({kind.name for kind, _, _ in kinds}),
            "dim": max((dim for kind, dim, _ in kinds if kind.has_dim), default=0),
            "layers": len(kinds), "bytes": file.path.stat().st_size, "dialect": file.dialect,
            "fits": fits, "match": text}


def summary(file: adapterfile.AdapterFile) -> str:
    """ "LoHa, dim 4" as the tensors say."""
    found: dict[str, set[int]] = {}
    labels: Mapping[str, type[algorithms.Algorithm]] = algorithms.all_entries()
    for name in file.shapes:
        kind, dim, _ = file.kind(name)
        found.setdefault(kind.name, set()).add(dim)
    parts = []
    for name, dims in found.items():
        label = labels[name].label
        if label and not labels[name].has_dim:
            parts.append(label)
        elif label:
            span = f"{min(dims)}" if len(dims) == 1 else f"{min(dims)} to {max(dims)}"
            parts.append(f"{label}, dim {span}")
        else:
            parts.append("norm layers")
    return " and ".join(parts)
