"""What an adapter costs, exactly, before it exists: parameters, tensors, bytes. Integers only."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import tensorfile
from .algorithms import Layer, Shape, elements
from .assignments import Assignment
from .settings import NetworkConfig

DTYPE_NAMES = {short: tensorfile.NAMES[dtype] for short, dtype in tensorfile.DTYPES.items()}


@dataclass(frozen=True)
class Group:
    """Some of the layers: the UNet's, say, or all convolutions."""

    modules: int = 0
    parameters: int = 0
    tensors: int = 0
    elements: int = 0  # saved numbers, alphas and the like included

    def __add__(self, other: Group) -> Group:
        return Group(self.modules + other.modules, self.parameters + other.parameters,
                     self.tensors + other.tensors, self.elements + other.elements)

    def __mul__(self, times: int) -> Group:
        return Group(self.modules * times, self.parameters * times, self.tensors * times,
                     self.elements * times)


@dataclass(frozen=True)
class Sizes:
    """`file_bytes` is the file without metadata; `file_bytes_with_metadata` the one written; both
    in `dtype`. `every` has the three byte counts in each dtype a file may have."""

    modules: int
    parameters: int
    tensors: int
    dtype: str
    every: Mapping[str, Mapping[str, int]]
    parts: Mapping[str, Group] = field(default_factory=dict)
    kinds: Mapping[str, Group] = field(default_factory=dict)

    @property
    def tensor_bytes(self) -> int:
        return self.every[self.dtype]["tensor_bytes"]

    @property
    def file_bytes(self) -> int:
        return self.every[self.dtype]["file_bytes"]

    @property
    def file_bytes_with_metadata(self) -> int:
        return self.every[self.dtype]["file_bytes_with_metadata"]

    def summary(self) -> dict[str, Any]:
        """In plain numbers; `parts` and `kinds` in every dtype too."""
        return {
            "modules": self.modules, "parameters": self.parameters, "tensors": self.tensors,
            "dtype": self.dtype, **self.every[self.dtype], "dtypes": dict(self.every),
            "parts": {name: _plain(group) for name, group in self.parts.items()},
            "kinds": {name: _plain(group) for name, group in self.kinds.items()}}


@dataclass(frozen=True)
class Piece:
    """What every layer of one shape with one adapter adds to a file."""

    group: Group
    suffixes: int  # characters of the suffixes and of the shapes
    counts: tuple[int, ...]  # elements of the tensors, in the order of their suffixes


def measure(assignments: Sequence[Assignment], dtype: str,
            metadata: Mapping[str, str]) -> Sizes:
    """The sizes of the adapter these assignments make, saved in `dtype` (fp16, bf16, fp32).

    `metadata` is as long in every dtype. Layers of one shape that share an adapter are looked at
    once.
    """
    pieces: dict[tuple[int, int, int], tuple[Piece, Layer]] = {}
    counted: list[tuple[int, int, int]] = []
    lengths: int = 0
    counts: list[int] = []
    for each in sorted(assignments, key=_place):
        key = (id(each[2]), id(each[3]), each[0].form)  # algorithm, extras, layer
        counted.append(key)
        if (found := pieces.get(key)) is None:
            found = pieces[key] = piece(each), each.layer
        own = found[0]
        lengths += own.suffixes + len(each[1]) * len(own.counts)
        counts += own.counts
    times = Counter(counted)
    return total([(own, layer, times[key]) for key, (own, layer) in pieces.items()], lengths,
                 counts, dtype, metadata)


def total(pieces: Iterable[tuple[Piece, Layer, int]], lengths: int, counts: Sequence[int],
          dtype: str, metadata: Mapping[str, str]) -> Sizes:
    """The sizes of pieces, each with a layer that has it and with how many do. `lengths` and
    `counts` are what `tensorfile.header_sizes` asks for."""
    by_part: dict[str, Group] = {}
    by_kind: dict[str, Group] = {}
    for own, layer, times in pieces:
        group, kind = own.group * times, _kind(layer.kind, layer.shape)
        by_part[layer.part] = by_part.get(layer.part, Group()) + group
        by_kind[kind] = by_kind.get(kind, Group()) + group
    whole = sum(by_part.values(), Group())
    every, told = {}, tensorfile.metadata_length(metadata)
    for name, written in DTYPE_NAMES.items():
        data = tensorfile.WIDTHS[written] * whole.elements
        bare, full = tensorfile.header_sizes(lengths, counts, written, told)
        every[name] = {"tensor_bytes": data, "file_bytes": data + bare,
                       "file_bytes_with_metadata": data + full}
    return Sizes(whole.modules, whole.parameters, whole.tensors, dtype, every, by_part, by_kind)


def _place(assignment: Assignment) -> str:
    """Sorts layers as their tensors are sorted: a dot follows every key."""
    return f"{assignment.key}."


def piece(assignment: Assignment) -> Piece:
    """What one layer adds."""
    shapes = assignment.suffix_shapes()
    order = sorted(shapes)
    counts = tuple(elements(shapes[suffix]) for suffix in order)
    text = sum(1 + len(suffix) + len(tensorfile.shape_text(shapes[suffix])) for suffix in order)
    return Piece(Group(1, assignment.parameters(), len(counts), sum(counts)), text, counts)


def entries_of(assignments: Iterable[Assignment], dtype: str) -> dict[str, tuple[str, tuple]]:
    """{key: (dtype, shape)} of the whole file."""
    name = DTYPE_NAMES[dtype]
    return {key: (name, shape) for a in assignments for key, shape in a.file_shapes().items()}


def with_dim(network: NetworkConfig, dim: int) -> NetworkConfig:
    """The same network at another dim: alpha, conv_dim and conv_alpha scaled along."""
    ratio = dim / network.dim
    conv_dim = network.conv_dim and max(1, round(network.conv_dim * ratio))
    conv_alpha = network.conv_alpha
    if conv_alpha is not None:
        conv_alpha = conv_alpha * (conv_dim / network.conv_dim if conv_dim and network.conv_dim
                                   else ratio)
    return dataclasses.replace(network, dim=dim, alpha=network.alpha * ratio, conv_dim=conv_dim,
                               conv_alpha=conv_alpha)


def _kind(kind: str, shape: Shape) -> str:
    if kind != "conv":
        return kind
    return "conv" if any(side != 1 for side in shape[2:]) else "conv 1x1"


def _plain(group: Group) -> dict[str, Any]:
    return {"modules": group.modules, "parameters": group.parameters, "tensors": group.tensors,
            "tensor_bytes": {name: tensorfile.WIDTHS[written] * group.elements
                             for name, written in DTYPE_NAMES.items()}}
