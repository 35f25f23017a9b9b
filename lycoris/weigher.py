"""Exact sizes of many networks on one base, in a millisecond or two: for tables, searches, plots.

`sizes.measure` looks at every layer's adapter. Where only the network's numbers change, the layers
stay the same and so does their order in the file: they are sorted into sorts of equal form once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from . import presets, sizes, tensorfile
from .algorithms import Layer
from .assignments import Assigner, assign, select
from .families import Family, need_layers
from .settings import NetworkConfig
from .sizes import Piece, Sizes

MOST_KEPT = 16  # for each base; a person looks at a few presets
# {an opened base model: {(are text encoders to learn?, preset, rules): its layers' sorts}}
_KEPT: WeakKeyDictionary[Family, dict[tuple, Weigher]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Weight:
    """`file_bytes` are those of the file without metadata."""

    file_bytes: int
    parameters: int


class Weigher:
    """For networks like `network`, whose preset, rules and parts they share."""

    def __init__(self, family: Family, network: NetworkConfig):
        chosen = select(family, network)
        assigner = Assigner(network, chosen.overrides)
        self.overrides = chosen.overrides
        self.samples: dict[Layer, int] = {}  # one layer of each sort
        numbers: dict[tuple[int, int], int] = {}
        keyed = []
        for layer in chosen.layers:
            # Rules are compared by identity: each is kept by the assigner.
            like = id(assigner.rule(layer)), layer.form
            if like not in numbers:
                numbers[like] = self.samples[layer] = len(numbers)
            keyed.append((f"{family.key(layer)}.", numbers[like]))
        self.order = [number for _, number in sorted(keyed)]
        self.key_lengths = [0] * len(numbers)
        self.times = [0] * len(numbers)
        for key, number in keyed:
            self.key_lengths[number] += len(key) - 1
            self.times[number] += 1

    def measure(self, network: NetworkConfig, dtype: str, metadata: Mapping[str, str]) -> Sizes:
        """What `sizes.measure` says; ConfigError where the network is impossible on these layers.
        """
        found = self._pieces(network)
        pieces = [(found[number], layer, self.times[number])
                  for layer, number in self.samples.items() if number in found]
        lengths, counts = self._laid_out(found)
        return sizes.total(pieces, lengths, counts, dtype, metadata)

    def weigh(self, network: NetworkConfig, dtype: str) -> Weight:
        """As little as a search needs; ConfigError where the network is impossible here."""
        found, written = self._pieces(network), sizes.DTYPE_NAMES[dtype]
        lengths, counts = self._laid_out(found)
        data = tensorfile.WIDTHS[written] * sum(counts)
        header, _ = tensorfile.header_sizes(lengths, counts, written, 0)
        return Weight(data + header, sum(self.times[number] * piece.group.parameters
                                         for number, piece in found.items()))

    def _pieces(self, network: NetworkConfig) -> dict[int, Piece]:
        """{sort: what each of its layers adds}"""
        found = assign(self.samples, network, lambda layer: layer.name, self.overrides)
        need_layers([each.layer for each in found], network.preset)
        return {self.samples[each.layer]: sizes.piece(each) for each in found}

    def _laid_out(self, pieces: Mapping[int, Piece]) -> tuple[int, Sequence[int]]:
        """What `tensorfile.header_sizes` asks for."""
        lengths = sum(self.times[number] * piece.suffixes
                      + self.key_lengths[number] * len(piece.counts)
                      for number, piece in pieces.items())
        own = {number: piece.counts for number, piece in pieces.items()}
        return lengths, [count for number in self.order if number in own for count in own[number]]


def of(family: Family, network: NetworkConfig) -> Weigher:
    """The weigher for this network, made when it is first asked for."""
    kept = _KEPT.setdefault(family, {})
    rules = json.dumps([dict(rule) for rule in network.rules], default=repr)
    key = network.text_encoder, presets.find(network.preset, type(family)), rules
    if (found := kept.get(key)) is None:
        if len(kept) >= MOST_KEPT:
            kept.clear()
        found = kept[key] = Weigher(family, network)
    return found
