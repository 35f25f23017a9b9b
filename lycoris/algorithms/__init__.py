"""The algorithms: each a file in this folder, each a pure description of how dW is made.

An algorithm knows shapes, an initialisation and a formula. Everything that is the same for all of
them (scale, multiplier, dropouts, DoRA, attaching, merging, files) lives once, in lycoris.network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import knobs
from ..errors import ConfigError
from ..registry import discover, pick

Shape = tuple[int, ...]
Tensors = Mapping[str, Tensor]
Operator = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Layer:
    """A fact about one layer of a base model; no tensor.

    `shape` is the weight's in torch's order: (out, in) for linear, (out, in / groups, *kernel) for
    conv, (channels,) for norm. `part` says which module of the model it belongs to.
    """

    name: str
    kind: str
    shape: Shape
    bias: bool = True
    part: str = ""

    @property
    def out(self) -> int:
        return self.shape[0]

    @property
    def inp(self) -> int:
        return self.shape[1]

    @property
    def kernel(self) -> Shape:
        return self.shape[2:]

    @property
    def is_spatial(self) -> bool:
        """A convolution larger than 1x1: it has its own dim and alpha."""
        return any(side != 1 for side in self.kernel)


@dataclass(frozen=True)
class NoOptions:
    """An algorithm without settings of its own."""


class Algorithm:
    """How dW of a layer is parametrised. Subclasses give a name, shapes, init and delta.

    `about` is one sentence for a person who chooses. `keys` maps each tensor to its suffix in the
    file. `fold` names the tensor that delta is linear
    in and that takes a trained scalar or a norm cap on saving. `ranked` maps tensors to the axis
    that counts ranks, for rank dropout.
    """

    name: ClassVar[str] = ""
    label: ClassVar[str] = ""
    about: ClassVar[str] = ""
    order: ClassVar[int] = 99
    kinds: ClassVar[tuple[str, ...]] = ("linear", "conv")
    keys: ClassVar[Mapping[str, str]] = {}
    fold: ClassVar[str] = ""
    ranked: ClassVar[Mapping[str, int]] = {}
    scaled: ClassVar[bool] = True  # has alpha and dim
    Options: ClassVar[type] = NoOptions

    def __init__(self, dim: int = 4, alpha: float | None = None, options: Any = None,
                 rank_stabilised: bool = False):
        self.dim = dim
        self.alpha = float(alpha or dim)
        self.options = options if options is not None else self.Options()
        self.rank_stabilised = rank_stabilised

    def scale(self) -> float:
        """What dW is multiplied with: alpha / dim, or alpha / sqrt(dim) when rank-stabilised
        (Kalajdzievski 2023, arXiv 2312.03732)."""
        if not self.scaled:
            return 1.0
        return self.alpha / (self.dim**0.5 if self.rank_stabilised else self.dim)

    @property
    def saved_alpha(self) -> float:
        """The alpha for which a reader that computes alpha / dim gets our scale."""
        return self.scale() * self.dim

    def shapes(self, layer: Layer) -> dict[str, Shape]:
        """{tensor: shape}; integers only, read by the estimate and by the constructor."""
        raise NotImplementedError

    def init(self, p: Tensors, from_zero: bool = True) -> None:
        """Fill the tensors in place; `from_zero` makes delta zero, else a trained scalar does."""
        raise NotImplementedError

    def delta(self, p: Tensors, layer: Layer, weight: Tensor | None = None) -> Tensor:
        """dW before the scale, in the layer's shape."""
        raise NotImplementedError

    def bias(self, p: Tensors) -> Tensor | None:
        """The change of the bias, for algorithms that have one."""
        return None

    def bypass(self, p: Tensors, x: Tensor, layer: Layer, op: Operator) -> Tensor | None:
        """dW applied to x without forming dW; `op(x, weight)` is the layer's own operator.

        None where there is no such way.
        """
        return None

    def bypass_is_cheaper(self, layer: Layer) -> bool:
        return False

    @classmethod
    def read(cls, found: Mapping[str, Shape]) -> tuple[int, Any] | None:
        """(dim, options) if a file's tensors {suffix: shape} of one layer are this algorithm's.

        Decided from names and shapes alone; None if they are somebody else's.
        """
        raise NotImplementedError

    @classmethod
    def has(cls, found: Mapping[str, Shape], *needed: str) -> bool:
        """All of `needed` are there and nothing but this algorithm's tensors."""
        return set(needed) <= set(found) <= set(cls.keys.values())


def catalogue() -> Mapping[str, type[Algorithm]]:
    """{name: class} of every algorithm a person can choose."""
    return {name: entry for name, entry in discover(__name__).items() if entry.label}


def all_entries() -> Mapping[str, type[Algorithm]]:
    """As catalogue, with those that only a flag brings in (norm layers)."""
    return discover(__name__)


def read_options(algo: str, values: Mapping[str, Any]) -> Any:
    """The algorithm's own Options from {name: value}; ConfigError lists every bad one."""
    kind = pick(catalogue(), algo, "network.algo").Options
    known = knobs.leaves(kind)
    problems: dict[str, str] = {}
    ready: dict[str, Any] = {}
    for name, value in values.items():
        path = f"network.options.{name}"
        if name not in known:
            problems[path] = f"{algo} has no option {name}." + (
                knobs.nearest(name, known) or f" It has: {', '.join(known) or 'none'}.")
            continue
        try:
            ready[name] = knobs.coerce(known[name], value)
        except ValueError as error:
            problems[path] = f"{path} {error}"
    if problems:
        raise ConfigError(problems)
    return kind(**ready)


def kaiming(tensor: Tensor, generator: torch.Generator | None = None) -> None:
    """Kaiming-uniform with a = sqrt(5), the field's start for the factor that is not zero."""
    torch.nn.init.kaiming_uniform_(tensor, a=5**0.5, generator=generator)
