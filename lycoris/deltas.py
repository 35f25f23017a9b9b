"""What an adapter file does to a base, layer by layer: dW and db at a weight, DoRA and scale
included, from headers and one layer's weight at a time, without loading the model.

Without a base model, as far as the file alone tells.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from . import adapterfile, lowrank
from .adapter import Adapter
from .adapterfile import AdapterFile
from .algorithms import Layer, Tensors
from .assignments import Assignment
from .errors import AdapterError
from .families import Family
from .lowrank import Rule, Spectrum
from .progress import Progress

NEED_BASE = "Give the base model it was trained on: --base, a folder in the diffusers layout."


class Change:
    """One layer under one adapter, in fp32 on the CPU. `weight` is the base's, or anything of the
    layer's shape where the adapter does not read it."""

    def __init__(self, adapter: Adapter, weight: Tensor):
        self.adapter = adapter.requires_grad_(False).eval()
        self.layer, self.algorithm = adapter.layer, adapter.algorithm
        self.weight = weight

    def delta(self, multiplier: float = 1.0) -> Tensor:
        """W' - W in the layer's shape."""
        return self.adapter.change(self.weight, multiplier)

    def onto(self, weight: Tensor, multiplier: float = 1.0) -> Tensor:
        """What `weight`, which other adapters may have changed, becomes: the very numbers that the
        attached layer computes with."""
        return self.adapter.changed(self.weight, None, multiplier, weight)[0]

    def bias(self, multiplier: float = 1.0) -> Tensor | None:
        """b' - b; None where the adapter leaves it alone."""
        shift = self.algorithm.bias(self._p)
        return None if shift is None else multiplier * shift

    def factors(self, multiplier: float = 1.0) -> tuple[Tensor, Tensor] | None:
        """(up (o, r), down (r, i K)) with up @ down = dW; None where there are none at hand."""
        if self.adapter.dora_scale is not None:
            return None
        found = self.algorithm.factors(self._p, self.layer, self.weight)
        return found and (found[0] * (multiplier * self._scale), found[1])

    def norm(self) -> float:
        """The Frobenius norm of dW."""
        if (pair := self._kronecker()) is not None:
            return (pair[0].double().norm() * pair[1].double().norm()).item()
        found = self.factors()
        if found is None or not lowrank.is_thin(*found):
            return self.delta().double().norm().item()
        up, down = (each.double() for each in found)
        return ((up.T @ up) * (down @ down.T)).sum().clamp_min(0).sqrt().item()

    def spectrum(self, rule: Rule) -> Spectrum:
        """The singular values of dW as the matrix (o, i K), those that the rule may keep at
        least."""
        if (pair := self._kronecker()) is not None:
            return lowrank.of_kronecker(*pair)
        return lowrank.spectrum(rule, self.delta, self.factors())

    def _kronecker(self) -> tuple[Tensor, Tensor] | None:
        if self.adapter.dora_scale is not None:
            return None
        pair = self.algorithm.kronecker(self._p)
        return pair and (pair[0] * self._scale, pair[1])

    @property
    def _scale(self) -> float:
        return self.algorithm.scale(self.layer)

    @property
    def _p(self) -> Tensors:
        return self.adapter.tensors()


class Deltas:
    """An adapter file, or a PEFT folder, over a base or on its own.

    `assignments` are its layers, in the base's order; on their own they have the names of the file
    and no part. `unplaced` are those whose place only a base tells: {name in the file: why}.
    """

    def __init__(self, path: Path, family: Family | None = None, ranks: int | None = None):
        """Raises AdapterError where the file is none, or was made for another base."""
        self.file = AdapterFile(path, ranks)
        self.family = family
        self.match: adapterfile.Match | None = None
        self.unplaced: dict[str, str] = {}
        self._unsure: dict[str, str] = {}
        if family is None:
            self.assignments = tuple(self._alone())
        else:
            self.match = adapterfile.match(self.file, family.layers, family.aliases,
                                           family.called)
            order = {layer: place for place, layer in enumerate(family.layers)}
            self.assignments = tuple(sorted(self.match.assignments,
                                            key=lambda a: order[a.layer]))

    def __len__(self) -> int:
        return len(self.assignments)

    @property
    def name(self) -> str:
        """What a person calls it: the file's name, or the folder's where the name is PEFT's."""
        path = self.file.path
        return path.parent.name if path.name in adapterfile.FOLDER_FILES else path.stem

    def group(self, assignment: Assignment) -> dict[str, Tensor]:
        """The layer's tensors as they stand in the file, {suffix: tensor}."""
        return self.file.group(assignment.source or assignment.key)

    def describe(self, assignment: Assignment) -> str:
        """ "loha, dim 8" """
        algorithm = assignment.algorithm
        dora = " with DoRA" if assignment.extras.dora else ""
        return f"{algorithm.name}{f', dim {algorithm.dim}' if algorithm.scaled else ''}{dora}"

    @torch.no_grad()
    def change(self, assignment: Assignment) -> Change:
        """The layer's change, its tensors read; AdapterError where it needs a base."""
        layer = assignment.layer
        if not reads_base(assignment):
            weight = torch.zeros(()).expand(layer.shape)
        elif self.family is None:
            raise AdapterError(self._needs(assignment), NEED_BASE, keys=[assignment.source])
        else:
            weight = self.family.weight(layer).float()
        adapter = Adapter(assignment)
        adapter.derive(weight)
        adapter.load_tensors(self.group(assignment))
        return Change(adapter, weight)

    def require_whole(self) -> None:
        """AdapterError unless every layer's dW and its shape are known."""
        wanting = dict(self.unplaced)
        if self.family is None:
            wanting |= {a.source: self._needs(a) for a in self.assignments if reads_base(a)}
            wanting |= self._unsure
        if wanting:
            more = f" So it is with {len(wanting)} layers." if len(wanting) > 1 else ""
            raise AdapterError(f"{self.file.path.name}: {next(iter(wanting.values()))}{more}",
                               NEED_BASE, keys=wanting)

    def warn(self, progress: Progress) -> None:
        """Say what of the file does not take part."""
        if self.match is not None and not self.match.whole:
            progress.warn(f"{self.name} fits this base only in part: {self.match.text}.",
                          "What does not fit is left out.")
        elif foreign := (*self.file.reading.unread, *self.file.reading.ignored):
            progress.warn(f"{len(foreign)} tensors of {self.name} are no adapter's and are left "
                          f"out; the first is {foreign[0]}.")
        if any(a.algorithm.timed for a in self.assignments):
            progress.warn(f"{self.name} changes with the timestep, which is lost: all its ranks "
                          "count at all times.")

    def _needs(self, assignment: Assignment) -> str:
        what = "DoRA" if assignment.extras.dora else assignment.algorithm.label
        return f"{assignment.source} is {what}, whose change is made from the base's own weight."

    def _alone(self) -> list[Assignment]:
        found = []
        for name, shapes in self.file.shapes.items():
            kind, _, _ = self.file.kind(name)
            placed = kind.layer_shape(shapes)
            if placed is None:
                self.unplaced[name] = (f"{name} is {kind.label}, whose change is made from the "
                                       "base's own weight.")
                continue
            shape, certain = placed
            sort = {1: "norm", 2: "linear"}.get(len(shape), "conv")
            bias = bool({"diff_b", "b_norm"} & set(shapes))
            assignment = self.file.assignment(name, Layer(name, sort, shape, bias))
            if assignment is None and certain:
                raise AdapterError(f"{self.file.path.name}: the tensors of {name} do not fit each "
                                   "other.", "Take another copy of the file.", keys=[name])
            if assignment is not None:
                found.append(assignment)
            if not certain:
                home = self.unplaced if assignment is None else self._unsure
                home[name] = (f"{name} is a convolution or a linear layer; the file does not tell "
                              "which.")
        return found


def reads_base(assignment: Assignment) -> bool:
    """Is dW made from the base's own weight?"""
    algorithm, layer = assignment.algorithm, assignment.layer
    if assignment.dora_shape() is not None or algorithm.needs_weight:
        return True
    return bool(algorithm.constants(layer, torch.empty(layer.shape, device="meta")))
