"""Which layer gets which algorithm at which size: decided once, from facts, for plan and
network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from . import algorithms
from .algorithms import Algorithm, Layer, Shape
from .config import NetworkConfig
from .families import Family, need_layers
from .registry import pick


@dataclass(frozen=True)
class Extras:
    """What the shell adds to any algorithm; see network.Adapter."""

    dora: bool = False
    dora_on_output: bool = True
    use_scalar: bool = False
    dropout: float = 0.0
    rank_dropout: float = 0.0
    module_dropout: float = 0.0


@dataclass(frozen=True)
class Assignment:
    """One layer and the adapter it gets; `key` is how its tensors begin in a file."""

    layer: Layer
    key: str
    algorithm: Algorithm
    extras: Extras = Extras()

    def shapes(self) -> dict[str, Shape]:
        """{tensor: shape} of the algorithm's own tensors."""
        return self.algorithm.shapes(self.layer)

    def dora_shape(self) -> Shape | None:
        """(o, 1, ..) on the output, (1, i, 1, ..) on the input; None without DoRA."""
        if not self.extras.dora or self.layer.kind == "norm":
            return None
        ones = (1,) * len(self.layer.kernel)
        return ((self.layer.out, 1, *ones) if self.extras.dora_on_output
                else (1, self.layer.inp, *ones))

    @property
    def has_scalar(self) -> bool:
        return self.extras.use_scalar and bool(self.algorithm.fold) and self.algorithm.scaled

    def parameters(self) -> int:
        """Trained numbers."""
        shapes = [*self.shapes().values()]
        if (dora := self.dora_shape()) is not None:
            shapes.append(dora)
        return sum(map(_elements, shapes)) + self.has_scalar

    def file_shapes(self) -> dict[str, Shape]:
        """{key: shape} of every tensor in the file."""
        named = {self.algorithm.keys[name]: shape for name, shape in self.shapes().items()}
        if self.algorithm.scaled:
            named["alpha"] = ()
        if (dora := self.dora_shape()) is not None:
            named["dora_scale"] = dora
        return {f"{self.key}.{suffix}": shape for suffix, shape in named.items()}


def extras_of(network: NetworkConfig) -> Extras:
    return Extras(dora=network.dora_wd, dora_on_output=network.wd_on_output,
                  use_scalar=network.use_scalar, dropout=network.dropout,
                  rank_dropout=network.rank_dropout, module_dropout=network.module_dropout)


def assign(layers: Iterable[Layer], network: NetworkConfig,
           key: Callable[[Layer], str]) -> list[Assignment]:
    """Each of the given layers with its adapter; norms only with train_norm.

    Convolutions larger than 1x1 follow conv_dim and conv_alpha; conv_dim 0 leaves them out.
    """
    kind = pick(algorithms.catalogue(), network.algo, "network.algo")
    options = algorithms.read_options(network.algo, network.options)
    extras = extras_of(network)

    def make(dim: int, alpha: float) -> Algorithm:
        return kind(dim, alpha, options, network.rs_lora)

    plain = make(network.dim, network.alpha)
    conv_dim = network.dim if network.conv_dim is None else network.conv_dim
    conv_alpha = network.alpha if network.conv_alpha is None else network.conv_alpha
    spatial = make(conv_dim, conv_alpha) if conv_dim else None
    norm: Any = algorithms.all_entries()["norm"]() if network.train_norm else None
    found = []
    for layer in layers:
        if layer.kind == "norm":
            algorithm = norm
        elif layer.kind not in kind.kinds:
            algorithm = None
        else:
            algorithm = spatial if layer.is_spatial else plain
        if algorithm is not None:
            found.append(Assignment(layer, key(layer), algorithm, extras))
    return found


def assign_family(family: Family, network: NetworkConfig) -> list[Assignment]:
    """The assignments a run on this base model trains; ConfigError where nothing would be."""
    chosen: Sequence[Layer] = family.select(family.layers, network.preset)
    if not network.text_encoder:
        chosen = [layer for layer in chosen if layer.part != "text_encoder"]
    need_layers(chosen, network.preset)
    found = assign(chosen, network, family.key)
    need_layers([a.layer for a in found], network.preset)
    return found


def _elements(shape: Shape) -> int:
    count = 1
    for side in shape:
        count *= side
    return count
