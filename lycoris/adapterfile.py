"""Adapter files: safetensors in any of the ecosystem's dialects, read by names and shapes alone.

    <prefix>_<module path with underscores>.<tensor>     e.g. (kohya, as we write)
    lora_unet_mid_block_..._to_q.lora_up.weight
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import algorithms, dialects, sources, tensorfile
from .algorithms import Algorithm, Layer, Shape, elements
from .assignments import Assignment, Extras
from .errors import AdapterError

PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
FOLDER_FILES = (PEFT_FILE, "pytorch_lora_weights.safetensors")  # of PEFT and of diffusers
SHOWN = 3  # layers that are written out in a message


class AdapterFile:
    """One adapter file, or a PEFT folder. Opening reads the header; tensors are read when first
    asked for.

    Groups (one a layer) go by the names that the file gives them; their tensors have the suffixes
    of the kohya/LyCORIS convention, whatever the file calls them. With `ranks` its LoRAs are cut to
    their first ranks, for files of DyLoRA.
    """

    def __init__(self, path: Path | str, ranks: int | None = None):
        self.path = inside(Path(path))
        self.entries, self.metadata = tensorfile.peek(self.path, AdapterError)
        try:
            self.reading = dialects.translate(self.entries, self.metadata, _peft_config(self.path))
        except AdapterError as problem:
            raise AdapterError(f"{self.path.name}: {problem.message}", problem.fix,
                               problem.keys) from problem
        if ranks is not None:
            self.reading = replace(self.reading, groups={
                name: sources.first_ranks(group, ranks)
                for name, group in self.reading.groups.items()})
        self.shapes: dict[str, dict[str, Shape]] = {
            name: {suffix: source.shape for suffix, source in group.items()}
            for name, group in self.reading.groups.items()}
        if not self.shapes:
            raise AdapterError(f"{self.path} holds no adapter: none of its {len(self.entries)} "
                               "tensors is named like one.",
                               "Choose the .safetensors file of a LoRA or LyCORIS adapter.")

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The file's tensors under its own keys."""
        found, _ = tensorfile.read(self.path, AdapterError)
        broken = [key for key, t in found.items() if not _finite(t)]
        if broken:
            raise AdapterError(f"{self.path} holds numbers that are not finite, in "
                               f"{len(broken)} tensors, the first is {broken[0]}.",
                               "Use an earlier checkpoint of that run.", keys=broken)
        return found

    @property
    def dialect(self) -> str:
        """Who writes keys like this file's, e.g. "kohya"; several where they are mixed."""
        return " and ".join(self.reading.dialects)

    def group(self, name: str) -> dict[str, Tensor]:
        """{canonical suffix: tensor} of one layer; empty where the file has none of it."""
        return {suffix: source.tensor(self.tensors)
                for suffix, source in self.reading.groups.get(name, {}).items()}

    def kind(self, name: str) -> tuple[type[Algorithm], int, Any]:
        """(algorithm, dim, options) of one layer's tensors, from their names and shapes."""
        read = dialects.identify(self.shapes[name])
        if read is None:
            raise AdapterError(*self._unknown(name), keys=[name])
        return read

    def assignment(self, name: str, layer: Layer, key: str = "") -> Assignment | None:
        """The layer's adapter as the file describes it, under our key for the layer (without one:
        the file's own); None where the shapes do not fit."""
        kind, dim, options = self.kind(name)
        if layer.bias and name in self.reading.biased:
            raise AdapterError(
                f"{self.path.name} scales the bias of {layer.name} too, as only PEFT's (IA)^3 "
                "does.", "Merge it into its base with PEFT, and extract it again.", keys=[name])
        group = self.reading.groups[name]
        values = {suffix: group[suffix].tensor(self.tensors)
                  for suffix in ("alpha", *kind.facts) if suffix in group}
        found = {tensor: group[suffix].shape for tensor, suffix in kind.keys.items()
                 if suffix in group and suffix not in kind.facts}
        dora = group.get("dora_scale")
        on_output = True if dora is None else dialects.dora_on_output(dora.shape, layer)
        if on_output is None or layer.kind not in kind.kinds:
            return None
        try:
            algorithm = _fixed(kind(dim, None, options).with_facts(values), found, layer)
        except (*dialects.MISSHAPEN, RuntimeError):
            return None
        extras = Extras(dora=dora is not None, dora_on_output=on_output)
        return algorithm and Assignment(layer, key or name, algorithm, extras, source=name)

    def fits(self, name: str, assignment: Assignment) -> bool:
        """Has one layer's group every tensor of the assignment, with as many elements?

        Trailing sides of 1 differ between programs, so shapes are compared by their count.
        """
        own = self.shapes.get(name, {})
        needed = {key.removeprefix(f"{assignment.key}."): shape
                  for key, shape in assignment.file_shapes().items()}
        return all(elements(own.get(suffix, (0,))) == elements(shape)
                   for suffix, shape in needed.items() if suffix != "alpha")

    def _unknown(self, name: str) -> tuple[str, str]:
        """(message, fix) for a group that is no algorithm's."""
        own = sorted(set(self.shapes[name]) - {"alpha", "dora_scale"})
        if missing := dialects.lacking(self.shapes[name]):
            peft = {"lora_down.weight": " (lora_A.weight)", "lora_up.weight": " (lora_B.weight)"}
            named = " and ".join(suffix + peft.get(suffix, "") for suffix in missing)
            return (f"{self.path.name} lacks {named} of {name}: there is only "
                    f"{', '.join(own)}.", "The file is not whole; take another copy of it.")
        return (f"{self.path.name} holds tensors of no known algorithm at {name}: "
                f"{', '.join(own) or 'nothing but its alpha'}.",
                f"Known are {', '.join(algorithms.catalogue())}.")


@dataclass(frozen=True)
class Match:
    """How a file meets a base: what fits, and what finds no place."""

    assignments: tuple[Assignment, ...]
    unmatched: tuple[str, ...]  # layers in the file that the base lacks
    unfit: tuple[str, ...]  # layers of both, of different shape
    unread: tuple[str, ...] = ()  # keys in the file that are no adapter's
    ignored: Mapping[str, str] = field(default_factory=dict)  # {key: why}

    @property
    def total(self) -> int:
        return len(self.assignments) + len(self.unmatched) + len(self.unfit)

    @property
    def whole(self) -> bool:
        """Every layer of the file found its place."""
        return not (self.unmatched or self.unfit or self.unread)

    @property
    def text(self) -> str:
        """ "matched 82 of 82 layers", with what did not."""
        text = f"matched {len(self.assignments)} of {self.total} layers"
        if self.unfit:
            text += f", {len(self.unfit)} of another shape"
        if self.unmatched:
            text += f", {len(self.unmatched)} unknown to this base"
        if self.unread:
            text += f"; {len(self.unread)} tensors are no adapter's"
        if self.ignored:
            text += f"; {len(self.ignored)} left out, the first is {next(iter(self.ignored))}"
        return text


def match(file: AdapterFile, layers: Sequence[Layer], aliases: Callable[[Layer], Sequence[str]],
          base: str) -> Match:
    """Hold a file against a base's layers; AdapterError where nothing fits, where a group is not
    whole, and where a name could be two layers.

    `aliases` gives every name that a layer may have in a file, as `dialects.canonical` spells
    names; the first becomes the assignment's key.
    """
    places: dict[str, list[Layer]] = {}
    for layer in layers:
        for alias in dict.fromkeys(aliases(layer)):
            places.setdefault(alias, []).append(layer)
    homes = {name: places.get(dialects.canonical(name), []) for name in file.shapes}
    _refuse_ambiguous(file, homes)
    _refuse_unknown(file, [name for name, home in homes.items() if home])
    assignments, unmatched, unfit = [], [], []
    for name, home in homes.items():
        if not home:
            unmatched.append(name)
        elif (found := file.assignment(name, home[0], aliases(home[0])[0])) is None:
            unfit.append(name)
        else:
            assignments.append(found)
    result = Match(tuple(assignments), tuple(unmatched), tuple(unfit), file.reading.unread,
                   file.reading.ignored)
    if not assignments:
        kind = dialects.made_for(file.shapes)
        raise AdapterError(
            f"{file.path.name} was made for another base than {base}: {result.text}."
            + (f" Its names are those of an adapter for {kind}." if kind else ""),
            "Choose the base model it was trained on, or another adapter.",
            keys=(*unmatched, *unfit))
    return result


def _refuse_ambiguous(file: AdapterFile, homes: Mapping[str, list[Layer]]) -> None:
    problems = {name: f"{name} could be {' or '.join(layer.name for layer in home)}"
                for name, home in homes.items() if len(home) > 1}
    taken: dict[Layer, str] = {}
    for name, home in homes.items():
        for layer in home:
            if taken.setdefault(layer, name) != name:
                problems[name] = f"{taken[layer]} and {name} are both {layer.name}"
    if problems:
        raise AdapterError(f"{file.path.name} cannot be placed: {_listed(problems.values())}.",
                           "Rename the layers so that each has one name, or load the file with "
                           "the program that wrote it.", keys=problems)


def _refuse_unknown(file: AdapterFile, names: Sequence[str]) -> None:
    unknown = [name for name in names if dialects.identify(file.shapes[name]) is None]
    if unknown:
        message, fix = file._unknown(unknown[0])
        more = f" So it is with {len(unknown)} layers." if len(unknown) > 1 else ""
        raise AdapterError(message + more, fix, keys=unknown)


def inside(path: Path) -> Path:
    """The adapter's file: the path itself, or what PEFT or diffusers saved in that folder."""
    if not path.is_dir():
        return path
    for name in FOLDER_FILES:
        if (path / name).is_file():
            return path / name
    pickled = [file.name for file in path.iterdir() if file.suffix in (".bin", ".pt", ".ckpt")]
    raise AdapterError(
        f"The folder {path} holds no adapter: there is no {' and no '.join(FOLDER_FILES)}"
        + (f", only {pickled[0]}, which may run code when read." if pickled else "."),
        "Save it again with safe_serialization=True." if pickled else
        "Choose a .safetensors file, or a folder that PEFT or diffusers saved.")


def _peft_config(path: Path) -> Mapping[str, Any] | None:
    """What stands beside a PEFT adapter; None for any other file."""
    config = path.parent / PEFT_CONFIG
    if path.name != PEFT_FILE or not config.is_file():
        return None
    try:
        found = json.loads(config.read_text("utf-8"))
    except (OSError, ValueError) as problem:
        raise AdapterError(f"{config} cannot be read: {problem}.",
                           "Copy it again from where the adapter came from.") from None
    if not isinstance(found, dict):
        raise AdapterError(f"{config} holds no settings.",
                           "Copy it again from where the adapter came from.")
    return found


def write(path: Path | str, tensors: Mapping[str, Tensor], dtype: torch.dtype | None,
          metadata: Mapping[str, str], tick: tensorfile.Tick = tensorfile.silent) -> Path:
    """Write an adapter's tensors durably, cast to `dtype`, with a `tick` after each; AdapterError
    for what that cannot hold."""
    ready = {key: t if dtype is None else t.to(dtype) for key, t in tensors.items()}
    broken = [key for key, t in ready.items() if not torch.isfinite(t).all()]
    if broken:
        raise AdapterError(
            f"The adapter holds numbers that {str(ready[broken[0]].dtype).removeprefix('torch.')} "
            f"cannot, in {len(broken)} tensors, the first is {broken[0]}.",
            "Save it in bf16 or fp32; a run can be resumed with output.dtype=bf16.", keys=broken)
    return tensorfile.write(path, ready, metadata, tick=tick)


def _fixed(algorithm: Algorithm, found: Mapping[str, Shape], layer: Layer) -> Algorithm | None:
    """The algorithm with its tensors' shapes as the file has them, but for sides of 1 or joined
    sides, e.g. (o, r) for (o, r, 1, 1); None where they do not make a dW of this layer.

    Where anything else differs from what we would make, dW is made once to see whether it can be;
    RuntimeError comes from what does not multiply.
    """
    if not algorithm.fits(found, layer):
        return None
    own = algorithm.shapes(layer)
    algorithm.fixed = {tensor: own[tensor] if _alike(own.get(tensor), shape) else shape
                       for tensor, shape in found.items()}
    if any(algorithm.fixed[tensor] != own.get(tensor) for tensor in found):
        p = {tensor: torch.zeros(shape) for tensor, shape in algorithm.fixed.items()}
        if algorithm.delta(p, layer, torch.zeros(layer.shape)).shape != layer.shape:
            return None
    return algorithm


def _alike(ours: Shape | None, theirs: Shape) -> bool:
    """The same tensor but for sides of 1 or joined sides, e.g. (o, r, 1, 1) and (o, r)."""
    return (ours is not None and elements(ours) == elements(theirs)
            and (len(ours) < 2 or ours[0] == theirs[0]))


def _finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    wide = tensor.float() if tensor.itemsize == 1 else tensor  # fp8 has no isfinite
    return bool(torch.isfinite(wide).all())


def _listed(texts: Iterable[str]) -> str:
    """The first few, and how many more."""
    found = list(texts)
    more = len(found) - SHOWN
    return "; ".join(found[:SHOWN]) + (f"; and {more} more" if more > 0 else "")
