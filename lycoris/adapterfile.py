"""Adapter files: safetensors with kohya-style keys, read by names and shapes alone.

    <prefix>_<module path with underscores>.<tensor>     e.g.
    lora_unet_mid_block_..._to_q.lora_up.weight
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from . import algorithms, tensorfile
from .algorithms import Layer, Shape
from .assignments import Assignment, Extras
from .errors import AdapterError


class AdapterFile:
    """One adapter file. Opening reads the header; tensors are read when first asked for."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.entries, self.metadata = tensorfile.peek(self.path, AdapterError)
        self.shapes: dict[str, dict[str, Shape]] = {}
        for key, (_, shape) in self.entries.items():
            name, dot, suffix = key.partition(".")
            if dot:
                self.shapes.setdefault(name, {})[suffix] = shape
        if not self.shapes:
            raise AdapterError(f"{self.path} holds no adapter: none of its {len(self.entries)} "
                               "tensors is named like one.",
                               "Choose the .safetensors file of a LoRA or LyCORIS adapter.")
        self._tensors: dict[str, Tensor] | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        if self._tensors is None:
            self._tensors, _ = tensorfile.read(self.path, AdapterError)
            broken = [key for key, t in self._tensors.items()
                      if t.is_floating_point() and not torch.isfinite(t).all()]
            if broken:
                raise AdapterError(f"{self.path} holds numbers that are not finite, in "
                                   f"{len(broken)} tensors, the first is {broken[0]}.",
                                   "Use an earlier checkpoint of that run.", keys=broken)
        return self._tensors

    def group(self, name: str) -> dict[str, Tensor]:
        """{suffix: tensor} of one layer; empty where the file has none of it."""
        return {suffix: self.tensors[f"{name}.{suffix}"] for suffix in self.shapes.get(name, {})}

    def kind(self, name: str) -> tuple[type[algorithms.Algorithm], int, object]:
        """(algorithm, dim, options) of one layer's tensors, from their names and shapes."""
        own = {suffix: shape for suffix, shape in self.shapes[name].items()
               if suffix not in ("alpha", "dora_scale")}
        for entry in algorithms.all_entries().values():
            read = entry.read(own)
            if read is not None:
                return entry, *read
        raise AdapterError(
            f"{self.path.name} holds tensors of no known algorithm at {name}: "
            f"{', '.join(sorted(own))}.",
            f"Known are {', '.join(algorithms.catalogue())}.", keys=[name])

    def assignment(self, name: str, layer: Layer) -> Assignment | None:
        """The layer's adapter as the file describes it; None where the shapes do not fit."""
        kind, dim, options = self.kind(name)
        shapes = self.shapes[name]
        alpha = self.tensors[f"{name}.alpha"].item() if "alpha" in shapes else None
        dora = shapes.get("dora_scale")
        found = Assignment(layer, name, kind(dim, alpha, options), Extras(
            dora=dora is not None, dora_on_output=dora is None or dora[0] == layer.out))
        return found if self.fits(name, found) else None

    def fits(self, name: str, assignment: Assignment) -> bool:
        """Has one layer's group every tensor of the assignment, with as many elements?

        Trailing sides of 1 differ between programs, so shapes are compared by their count.
        """
        own = self.shapes.get(name, {})
        needed = {key.removeprefix(f"{assignment.key}."): shape
                  for key, shape in assignment.file_shapes().items()}
        return all(tensorfile.elements(own.get(suffix, (0,))) == tensorfile.elements(shape)
                   for suffix, shape in needed.items() if suffix != "alpha")


@dataclass(frozen=True)
class Match:
    """How a file meets a base: what fits, and what finds no place."""

    assignments: tuple[Assignment, ...]
    unmatched: tuple[str, ...]  # layers in the file that the base lacks
    unfit: tuple[str, ...]  # layers of both, of different shape

    @property
    def total(self) -> int:
        return len(self.assignments) + len(self.unmatched) + len(self.unfit)

    @property
    def whole(self) -> bool:
        """Every layer of the file found its place."""
        return not (self.unmatched or self.unfit)

    @property
    def text(self) -> str:
        """ "matched 82 of 82 layers", with what did not."""
        text = f"matched {len(self.assignments)} of {self.total} layers"
        if self.unfit:
            text += f", {len(self.unfit)} of another shape"
        if self.unmatched:
            text += f", {len(self.unmatched)} unknown to this base"
        return text


def match(file: AdapterFile, layers: Sequence[Layer], key: Callable[[Layer], str],
          base: str) -> Match:
    """Hold a file against a base's layers; AdapterError where nothing fits."""
    by_key = {key(layer): layer for layer in layers}
    assignments, unmatched, unfit = [], [], []
    for name in file.shapes:
        layer = by_key.get(name)
        if layer is None:
            unmatched.append(name)
        elif (found := file.assignment(name, layer)) is None:
            unfit.append(name)
        else:
            assignments.append(found)
    result = Match(tuple(assignments), tuple(unmatched), tuple(unfit))
    if not assignments:
        raise AdapterError(
            f"{file.path.name} was made for another base than {base}: {result.text}.",
            "Choose the base model it was trained on, or another adapter.",
            keys=(*unmatched, *unfit))
    return result


def write(path: Path | str, tensors: Mapping[str, Tensor], dtype: torch.dtype | None,
          metadata: Mapping[str, str]) -> Path:
    """Write an adapter's tensors durably, cast to `dtype`; AdapterError for what that cannot
    hold."""
    ready = {key: t if dtype is None else t.to(dtype) for key, t in tensors.items()}
    broken = [key for key, t in ready.items() if not torch.isfinite(t).all()]
    if broken:
        raise AdapterError(
            f"The adapter holds numbers that {str(ready[broken[0]].dtype).removeprefix('torch.')} "
            f"cannot, in {len(broken)} tensors, the first is {broken[0]}.",
            "Save it in bf16 or fp32; a run can be resumed with output.dtype=bf16.", keys=broken)
    return tensorfile.write(path, ready, metadata)
