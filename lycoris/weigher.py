"""Exact bytes of many networks on one base, each in less than a millisecond: for searches, plots.

`sizes.measure` looks at every layer's adapter. Where only the network's numbers change, the layers
stay the same and so does their order in the file: they are sorted into sorts of equal shape once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from . import sizes, tensorfile
from .algorithms import Layer
from .assignments import Assigner, assign, select
from .families import Family, need_layers
from .settings import NetworkConfig


@dataclass(frozen=True)
class Weight:
    """`file_bytes` are those of the file without metadata."""

    file_bytes: int
    parameters: int


class Weigher:
    """For networks like `network`, whose preset, rules and parts they share; `dtype` of the file.
    """

    def __init__(self, family: Family, network: NetworkConfig, dtype: str):
        chosen = select(family, network)
        assigner = Assigner(network, chosen.overrides)
        self.network, self.overrides = network, chosen.overrides
        self.written = sizes.DTYPE_NAMES[dtype]
        self.samples: dict[Layer, int] = {}  # one layer of each sort
        numbers: dict[tuple, int] = {}
        keyed = []
        for layer in chosen.layers:
            # Rules are compared by identity: each is kept by the assigner.
            like = (id(assigner.rule(layer)), layer.kind, layer.shape, layer.bias)
            if like not in numbers:
                numbers[like] = self.samples[layer] = len(numbers)
            keyed.append((f"{family.key(layer)}.", numbers[like]))
        self.order = [number for _, number in sorted(keyed)]
        self.key_lengths = [0] * len(numbers)
        self.times = [0] * len(numbers)
        for key, number in keyed:
            self.key_lengths[number] += len(key) - 1
            self.times[number] += 1

    def weigh(self, network: NetworkConfig) -> Weight:
        """ConfigError where the network is impossible on these layers."""
        found = assign(self.samples, network, lambda layer: layer.name, self.overrides)
        need_layers([each.layer for each in found], network.preset)
        pieces: Mapping[int, sizes.Piece] = {
            self.samples[each.layer]: sizes.piece(each) for each in found}
        counts = [count for number in self.order if number in pieces
                  for count in pieces[number].counts]
        lengths = sum(self.times[number] * piece.suffixes
                      + self.key_lengths[number] * len(piece.counts)
                      for number, piece in pieces.items())
        parameters = sum(self.times[number] * piece.group.parameters
                         for number, piece in pieces.items())
        data = tensorfile.WIDTHS[self.written] * sum(counts)
        header, _ = tensorfile.header_sizes(lengths, counts, self.written, 0)
        return Weight(data + header, parameters)
