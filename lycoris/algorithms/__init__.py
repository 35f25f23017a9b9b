"""The algorithms: each a file in this folder, each a pure description of how dW is made.

An algorithm knows shapes, an initialisation and a formula. Everything that is the same for all of
them (scale, multiplier, dropouts, DoRA, attaching, merging, files) lives once, in lycoris.network.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import knobs
from ..effort import Cost, folds
from ..errors import ConfigError
from ..guideline import Guide
from ..layers import Layer, Shape, elements
from ..products import Change, Thin, rank_mask
from ..registry import discover, pick

Tensors = Mapping[str, Tensor]
Operator = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Problem:
    """Why settings are impossible; `setting` is the network's that is to blame. Of the dim, and of
    it alone, it says only what is wanted: what the dim is, and where it comes from, others know."""

    text: str
    setting: str = "dim"


@dataclass(frozen=True)
class NoOptions:
    """An algorithm without settings of its own."""


@dataclass(frozen=True)
class Inner:
    """The wrapped layer: `base(x)` is W x without the bias, `op(x, weight)` its own operator.

    `weight` is W itself where making W' anew is the way to go; x is then in the dtype of W' x.
    """

    base: Callable[[Tensor], Tensor]
    op: Operator
    bias: Tensor | None
    weight: Tensor | None = None

    def finished(self, y: Tensor, layer: Layer) -> Tensor:
        """With the bias."""
        if self.bias is None:
            return y
        sides = (-1, *(1 for _ in layer.kernel))
        return y + self.bias.view(sides).to(y.dtype)


class Algorithm:
    """How dW of a layer is parametrised. Subclasses give a name, shapes, init and delta.

    `about` is one sentence for a person who chooses, `advice` what the guideline says of when,
    `size` the count of parameters of a layer in the paper's letters. `keys` maps each tensor to its
    suffix in the file. `fold` names the tensors in which, taken together, delta is linear: they
    take a trained scalar or a norm cap. `ranked` maps tensors to the axis that counts ranks, for
    rank dropout. `frozen` tensors are saved but not trained. `plus` are the tensors with LoRA+'s
    higher rate. `around` says that the way without dW changes the layer's input or its output
    (`through`) instead of adding to it (`aside`), so that another of that sort on the same layer
    would be in its way. `guide` is what the guideline says of it.
    """

    name: ClassVar[str] = ""
    label: ClassVar[str] = ""
    about: ClassVar[str] = ""
    advice: ClassVar[str] = ""
    size: ClassVar[str] = ""
    order: ClassVar[int] = 99
    kinds: ClassVar[tuple[str, ...]] = ("linear", "conv")
    keys: ClassVar[Mapping[str, str]] = {}
    fold: ClassVar[tuple[str, ...]] = ()
    ranked: ClassVar[Mapping[str, int]] = {}
    facts: ClassVar[frozenset[str]] = frozenset()  # suffixes read by their value, not as tensors
    frozen: ClassVar[frozenset[str]] = frozenset()
    plus: ClassVar[frozenset[str]] = frozenset()
    starts: ClassVar[tuple[str, ...]] = ("default",)
    has_dim: ClassVar[bool] = True
    scaled: ClassVar[bool] = True  # has alpha, and dW is multiplied with alpha / dim
    needs_weight: ClassVar[bool] = False  # delta reads W
    linear: ClassVar[bool] = True  # the multiplier multiplies delta; else delta takes it
    around: ClassVar[bool] = False
    whole: ClassVar[str] = ""  # the tensor that is dW itself
    timed: ClassVar[bool] = False  # what it adds depends on the denoising timestep
    guide: ClassVar[Guide] = Guide()
    Options: ClassVar[type] = NoOptions

    def __init__(self, dim: int = 4, alpha: float | None = None, options: Any = None,
                 rank_stabilised: bool = False, start: str = "default"):
        self.dim = dim
        self.alpha = float(alpha or dim)
        self.options = options if options is not None else self.Options()
        self.rank_stabilised = rank_stabilised
        self.start = start
        self.fixed: Mapping[str, Shape] | None = None  # shapes as a file has them

    @classmethod
    def dims(cls, dim: int, options: Mapping[str, Any]) -> Sequence[int] | None:
        """The dims worth trying for a file of a given size, now being `dim`; None where every dim
        is possible and a larger one makes a larger file."""
        return None if cls.has_dim else (dim,)

    @classmethod
    def sizings(cls, options: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        """Its own settings for smaller and larger files, the present ones first."""
        return (options,)

    def surprises(self, layers: Mapping[Layer, int]) -> Sequence[tuple[str, str]]:
        """(what few expect of these settings, what to do about it), on {layer: how many like it}"""
        return ()

    def problem(self, layers: Sequence[Layer]) -> Problem | None:
        """Why these settings are impossible on some of these layers; None where they are not."""
        return None

    def scale(self, layer: Layer) -> float:
        """What dW is multiplied with: alpha / dim, or alpha / sqrt(dim) when rank-stabilised
        (Kalajdzievski 2023, arXiv 2312.03732)."""
        if not self.scaled:
            return 1.0
        return self.alpha / (self.dim**0.5 if self.rank_stabilised else self.dim)

    def file_alpha(self, layer: Layer) -> float | None:
        """The alpha in the file, for which a reader that computes alpha / dim gets our scale; None
        where the algorithm stores none."""
        return self.scale(layer) * self.dim if self.scaled else None

    def with_facts(self, found: Mapping[str, Tensor]) -> Algorithm:
        """The same algorithm with what a file's tensors say by their value: its alpha."""
        if not (self.scaled and "alpha" in found):
            return self
        return self.copied(alpha=found["alpha"].item() or float(self.dim), rank_stabilised=False)

    def copied(self, **changes: Any) -> Algorithm:
        found = copy.copy(self)
        vars(found).update(changes)
        return found

    def shapes(self, layer: Layer) -> dict[str, Shape]:
        """{tensor: shape}; integers only, read by the estimate and by the constructor."""
        raise NotImplementedError

    def file_shapes(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """{suffix: shape} of what `to_file` gives for tensors of these shapes."""
        return {self.keys[name]: shape for name, shape in shapes.items()}

    def to_file(self, p: Tensors) -> dict[str, Tensor]:
        """{suffix: tensor} for the file."""
        return {self.keys[name]: p[name] for name in self.keys if name in p}

    def fits(self, shapes: Mapping[str, Shape], layer: Layer) -> bool:
        """Do tensors of these shapes, read from a file, make a dW of this layer?

        Sides of 1 differ between programs, so shapes are compared by their elements.
        """
        own = self.shapes(layer)
        return own.keys() == shapes.keys() and all(
            elements(own[name]) == elements(shapes[name]) for name in own)

    def init(self, p: Tensors, layer: Layer, weight: Tensor, from_zero: bool = True) -> None:
        """Fill the tensors in place; `from_zero` makes delta zero, else a trained scalar does.

        `weight` is the base's, in fp32 on the CPU.
        """
        raise NotImplementedError

    def constants(self, layer: Layer, weight: Tensor) -> dict[str, Tensor]:
        """Tensors made from the base's weight once, neither trained nor saved; delta finds them
        beside its own."""
        return {}

    def delta(self, p: Tensors, layer: Layer, weight: Tensor | None = None,
              multiplier: float = 1.0) -> Tensor:
        """dW before the scale, in the layer's shape. The multiplier is for those that are not
        `linear` in it."""
        raise NotImplementedError

    def bias(self, p: Tensors) -> Tensor | None:
        """The change of the bias, for algorithms that have one."""
        return None

    def constant_numbers(self, layer: Layer) -> int:
        """How many numbers `constants` makes."""
        return 0

    def factors(self, p: Tensors, layer: Layer,
                weight: Tensor) -> tuple[Tensor, Tensor] | None:
        """(up (o, r), down (r, i K)) with up @ down = dW before the scale, for what works on ranks;
        None where dW is not made so."""
        return None

    def kronecker(self, p: Tensors) -> tuple[Tensor, Tensor] | None:
        """(w1, w2) with kron(w1, w2) = dW before the scale, as the matrix (o, i K); None where dW
        is not made so."""
        return None

    def cost(self, layer: Layer) -> Cost:
        return Cost(None, 0.0)

    def aside(self, p: Tensors, x: Tensor, layer: Layer, op: Operator, factor: float,
              y: Tensor | None) -> Tensor:
        """y + factor * dW x without forming dW; `op(x, weight)` is the layer's own operator.

        y is the layer's output, fresh, and may be overwritten; None stands for zero.
        """
        raise NotImplementedError

    def joined(self, p: Tensors, layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None,
               factor: float) -> Tensor | None:
        """x (N, i) W^T + b + factor * x dW^T of a linear layer as one operation, for training; None
        where there is none."""
        found = self.factors(p, layer, weight)
        if found is None:
            return None
        fold = x.dtype == torch.float32 and folds(*weight.shape, len(found[1]), len(x))
        return Thin.apply(x, weight, bias, factor, fold, *found)

    def change(self, p: Tensors) -> tuple[type[Change], Sequence[Tensor]] | None:
        """How W + dW is made of which matrices without autograd; None where there is no such."""
        return None

    def squared_rows(self, p: Tensors, layer: Layer, weight: Tensor,
                     factor: float) -> Tensor | None:
        """(o) squared lengths of the rows of W + factor * dW where they can be had without dW."""
        return None

    def through(self, p: Tensors, x: Tensor, layer: Layer, inner: Inner, factor: float) -> Tensor:
        """(W + factor * dW) x + b for those that work `around` the layer."""
        raise NotImplementedError

    def drop_ranks(self, p: dict[str, Tensor], share: float) -> dict[str, Tensor]:
        """The tensors with a random share of their ranks silenced and the rest made up for it."""
        for name, axis in self.ranked.items():
            if name in p:
                p[name] = p[name] * rank_mask(p[name], axis, share)
        return p

    def thin(self, p: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors as this training step sees them (DyLoRA's random prefix of the ranks)."""
        return p

    def shrink(self, p: Tensors, ratio: float) -> None:
        """Make dW smaller by about `ratio`, in place; exact where delta is linear in `fold`."""
        for name in self.fold:
            if name in p:
                p[name].mul_(ratio)

    @classmethod
    def read(cls, found: Mapping[str, Shape]) -> tuple[int, Any] | None:
        """(dim, options) if a file's tensors {suffix: shape} of one layer are this algorithm's.

        Decided from names and shapes alone; None if they are somebody else's.
        """
        raise NotImplementedError

    @classmethod
    def layer_shape(cls, found: Mapping[str, Shape]) -> tuple[Shape, bool] | None:
        """(the layer's shape, is that certain?) as far as a file's tensors {suffix: shape} alone
        tell: a 3x3 kernel may hide in a side that 9 divides. None where dW is made from W."""
        return None

    def take(self, p: Tensors, found: Mapping[str, Tensor]) -> None:
        """Fill the tensors from a file's {suffix: tensor}."""
        for name, tensor in p.items():
            tensor.copy_(found[self.keys[name]].reshape(tensor.shape))

    @classmethod
    def drops_ranks(cls) -> bool:
        """Has it something that rank dropout can silence?"""
        return bool(cls.ranked) or cls.drop_ranks is not Algorithm.drop_ranks

    @classmethod
    def has(cls, found: Mapping[str, Shape], *needed: str) -> bool:
        """All of `needed` are there and nothing but this algorithm's tensors."""
        return set(needed) <= set(found) <= set(cls.keys.values())

    def fill(self, tensor: Tensor) -> None:
        """Start values of a factor that is not zero: Kaiming-uniform with a = sqrt(5), the field's
        default, or orthogonal rows of the same mean square (Saxe et al. 2014, arXiv 1312.6120)."""
        if self.start == "orthogonal":
            rows = tensor.shape[0]
            torch.nn.init.orthogonal_(tensor.view(rows, -1))
            wide = elements(tensor.shape[1:])
            tensor.mul_((max(rows, wide) / (3 * wide)) ** 0.5)
        else:
            torch.nn.init.kaiming_uniform_(tensor, a=5**0.5)


def catalogue() -> Mapping[str, type[Algorithm]]:
    """{name: class} of every algorithm a person can choose."""
    return {name: entry for name, entry in discover(__name__).items() if entry.label}


def all_entries() -> Mapping[str, type[Algorithm]]:
    """As catalogue, with those that only a flag brings in (norm layers)."""
    return discover(__name__)


def read_options(algo: str, values: Mapping[str, Any], field: str = "network.options") -> Any:
    """The algorithm's own Options from {name: value}; ConfigError lists every bad one."""
    entry = pick(catalogue(), algo, "network.algo")
    kind, known = entry.Options, knobs.leaves(entry.Options)
    problems: dict[str, str] = {}
    ready: dict[str, Any] = {}
    for name, value in values.items():
        path = f"{field}.{name}"
        if name not in known:
            problems[path] = f"{entry.label} has no option {name}." + (
                knobs.nearest(name, known) or f" It has: {', '.join(known) or 'none'}.")
            continue
        try:
            ready[name] = knobs.coerce(known[name], value)
        except ValueError as error:
            problems[path] = f"{path} {error}"
    if problems:
        raise ConfigError(problems)
    return kind(**ready)


def factorization(dimension: int, factor: int = -1) -> tuple[int, int]:
    """(small, large) with small * large = dimension: (factor, rest) where the factor divides it,
    else the largest divisor up to the factor; -1: the most even pair."""
    if factor > 0 and dimension % factor == 0:
        pair = (factor, dimension // factor)
        return min(pair), max(pair)
    bound = dimension if factor < 0 else factor
    small, large = 1, dimension
    while small < large:
        larger = small + 1
        while dimension % larger:
            larger += 1
        other = dimension // larger
        if larger + other > dimension + 1 or larger > bound:
            break
        small, large = larger, other
    return min(small, large), max(small, large)
