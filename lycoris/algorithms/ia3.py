"""(IA)^3: one learned factor for each output, or each input, of a layer.

    dW = w[:, None] * W     on the output, w (o)
    dW = W * w[None, :]     on the input, w (i)

(Liu et al. 2022, arXiv 2205.05638, sec. 3.3). The bias is left as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from ..guideline import Guide
from ..knobs import Knob
from . import Algorithm, Cost, Inner, Layer, Shape, Tensors


@dataclass(frozen=True)
class Ia3Options:
    train_on_input: Annotated[bool, Knob("Scale the layer's inputs instead of its "
                                         "outputs.", label="On the input")] = False


class Ia3(Algorithm):
    name = "ia3"
    label = "(IA)³"
    about = "One factor a channel: among the smallest files. Learns a style more than a subject."
    advice = ("When the model learns too well, or for styles in a few hundred KiB; with the preset "
              "ia3 and a learning rate of 5e-3 to 1e-2. Transfers well to other bases.")
    size = "o, or i on the input"
    order = 8
    keys = {"weight": "weight", "on_input": "on_input"}
    facts = frozenset({"on_input"})
    fold = ("weight",)
    has_dim = False
    scaled = False
    needs_weight = True
    around = True
    guide = Guide(rates=(5e-3, 1e-2), preset="ia3")
    Options = Ia3Options

    def shapes(self, layer: Layer) -> dict[str, Shape]:
        side = layer.inp if self.options.train_on_input else layer.out
        return {"weight": (1, side, *(1 for _ in layer.kernel)) if layer.kernel else (side,)}

    def file_shapes(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        return {"weight": shapes["weight"], "on_input": ()}

    def to_file(self, p: Tensors) -> dict[str, Tensor]:
        return {"weight": p["weight"], "on_input": torch.tensor(int(self.options.train_on_input))}

    def init(self, p: Tensors, layer: Layer, weight: Tensor, from_zero: bool = True) -> None:
        p["weight"].zero_()

    def delta(self, p: Tensors, layer: Layer, weight: Tensor | None = None,
              multiplier: float = 1.0) -> Tensor:
        assert weight is not None
        sides = [1] * weight.ndim
        sides[1 if self.options.train_on_input else 0] = -1
        return weight * p["weight"].reshape(sides)

    def cost(self, layer: Layer) -> Cost:
        on_input = self.options.train_on_input
        return Cost(3.0, 3.0 * layer.out * layer.fan_in, kept=0.0 if on_input else layer.out,
                    keeps_input=on_input)

    def through(self, p: Tensors, x: Tensor, layer: Layer, inner: Inner, factor: float) -> Tensor:
        if self.options.train_on_input:
            return inner.finished(inner.base(_scaled(p["weight"], x, layer, factor)), layer)
        y = inner.base(x)
        if inner.bias is None or torch.compiler.is_compiling():
            return inner.finished(_scaled(p["weight"], y, layer, factor), layer)
        sides = (-1, *(1 for _ in layer.kernel))
        lengths = (1 + factor * p["weight"].reshape(sides)).to(y.dtype)
        return _Stretched.apply(y, lengths, inner.bias.view(sides))

    @classmethod
    def read(cls, found: Mapping[str, Shape]) -> tuple[int, Any] | None:
        return (1, Ia3Options()) if cls.has(found, "weight", "on_input") else None

    def with_facts(self, found: Mapping[str, Tensor]) -> Algorithm:
        options = Ia3Options(bool(found["on_input"].item())) if "on_input" in found else None
        return self.copied(options=options or self.options)

    def take(self, p: Tensors, found: Mapping[str, Tensor]) -> None:
        p["weight"].copy_(found["weight"].reshape(p["weight"].shape))


def _scaled(w: Tensor, x: Tensor, layer: Layer, factor: float) -> Tensor:
    """x * (1 + factor w) over the channels: the last axis, or a convolution's axis 1."""
    sides = (-1, *(1 for _ in layer.kernel))
    return x * (1 + factor * w.reshape(sides))


class _Stretched(torch.autograd.Function):
    """y * lengths + bias, with nothing of y's size but the result."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, lengths: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(y, lengths, bias)
        return torch.addcmul(bias.to(y.dtype), y, lengths)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, lengths, bias = ctx.saved_tensors
        return (grad * lengths if ctx.needs_input_grad[0] else None,
                (grad * y).sum_to_size(lengths.shape),
                grad.sum_to_size(bias.shape) if ctx.needs_input_grad[2] else None)
