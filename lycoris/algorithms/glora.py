"""GLoRA: a low-rank change of the layer's input beside a low-rank change of its weight.

    dW = W @ a1 @ a2 + b1 @ b2      a1 (i, r), a2 (r, i), b1 (o, r), b2 (r, i K)

so that W' x = W (x + a1 a2 x) + b1 b2 x (Chavan et al. 2023, arXiv 2306.07967, with A and B of low
rank and the rest left out). On a convolution a1 and a2 act on the channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..products import linear_slopes, pointwise
from . import Algorithm, Cost, Inner, Layer, NoOptions, Shape, Tensors


class Glora(Algorithm):
    name = "glora"
    label = "GLoRA"
    about = "LoRA with a second pair that reshapes what the layer sees. Twice LoRA's size."
    advice = ("An alternative to a LoRA of twice the dim; few programs read it, so convert to LoRA "
              "for those that do not.")
    size = "2 r i + r (o + i K)"
    order = 7
    keys = {"a1": "a1.weight", "a2": "a2.weight", "b1": "b1.weight", "b2": "b2.weight"}
    fold = ("a2", "b2")
    ranked = {"a2": 0, "b2": 0}
    plus = frozenset({"a2", "b2"})
    starts = ("default", "orthogonal")
    needs_weight = True
    around = True

    def shapes(self, layer: Layer) -> dict[str, Shape]:
        ones, r = (1,) * len(layer.kernel), self.dim
        return {"a1": (layer.inp, r, *ones), "a2": (r, layer.inp, *ones),
                "b1": (layer.out, r, *ones), "b2": (r, layer.inp, *layer.kernel)}

    def init(self, p: Tensors, layer: Layer, weight: Tensor, from_zero: bool = True) -> None:
        for name, tensor in p.items():
            if name in self.fold and from_zero:
                tensor.zero_()
            else:
                self.fill(tensor)

    def delta(self, p: Tensors, layer: Layer, weight: Tensor | None = None,
              multiplier: float = 1.0) -> Tensor:
        assert weight is not None
        a1, a2 = p["a1"].flatten(1), p["a2"].flatten(1)
        inner = torch.einsum("oi...,ir,rj->oj...", weight, a1, a2)
        return inner + (p["b1"].flatten(1) @ p["b2"].flatten(1)).view(layer.shape)

    def factors(self, p: Tensors, layer: Layer,
                weight: Tensor) -> tuple[Tensor, Tensor] | None:
        if layer.is_spatial:  # W a1 has a kernel between the two factors
            return None
        a1, a2, b1, b2 = (p[name].flatten(1) for name in ("a1", "a2", "b1", "b2"))
        return torch.cat([weight.flatten(1) @ a1, b1], 1), torch.cat([a2, b2], 0)

    def cost(self, layer: Layer) -> Cost:
        r = self.dim
        return Cost(3.0 * r * (2 * layer.inp + layer.out + layer.fan_in),
                    8.0 * r * layer.out * layer.fan_in,
                    kept=2.0 * r + (layer.inp if layer.kernel else 0))

    def through(self, p: Tensors, x: Tensor, layer: Layer, inner: Inner, factor: float) -> Tensor:
        seen = x + pointwise(pointwise(x, p["a2"], 1.0, None), p["a1"], factor, None)
        y = inner.finished(inner.base(seen), layer)
        return y + pointwise(inner.op(x, p["b2"]), p["b1"], factor, None)

    def joined(self, p: Tensors, layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None,
               factor: float) -> Tensor:
        return _Reshaped.apply(x, weight, bias, factor, *(p[name] for name in self.keys))

    def fits(self, shapes: Mapping[str, Shape], layer: Layer) -> bool:
        return (super().fits(shapes, layer) and shapes["a1"][0] == layer.inp
                and shapes["b1"][0] == layer.out)

    @classmethod
    def read(cls, found: Mapping[str, Shape]) -> tuple[int, Any] | None:
        if not cls.has(found, *cls.keys.values()):
            return None
        return found["b2.weight"][0], NoOptions()


class _Reshaped(torch.autograd.Function):
    """(x + factor x a2^T a1^T) W^T + b + factor x b2^T b1^T over rows. What W sees is not kept, and
    both thin products with x are one, as are both of its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, factor: float,
                *matrices: Tensor) -> Tensor:
        a1, a2, b1, b2 = matrices
        hidden = x @ torch.cat([a2, b2]).t()
        ctx.factor = factor
        ctx.save_for_backward(x, weight, hidden, *matrices)
        ours, beside = hidden.tensor_split(2, dim=1)
        seen = torch.addmm(x, ours, a1.t(), alpha=factor)
        return F.linear(seen, weight, bias).addmm_(beside, b1.t(), alpha=factor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, hidden, a1, a2, b1, b2 = ctx.saved_tensors
        ours, beside = hidden.tensor_split(2, dim=1)
        seen = (torch.addmm(x, ours, a1.t(), alpha=ctx.factor) if ctx.needs_input_grad[1] else x)
        gx, gw, gb = linear_slopes((True, *ctx.needs_input_grad[1:3]), grad, seen, weight)
        slope = torch.cat([gx @ a1, grad @ b1], 1).mul_(ctx.factor)
        ga1, gb1 = (gx.t() @ ours).mul_(ctx.factor), (grad.t() @ beside).mul_(ctx.factor)
        ga2, gb2 = (slope.t() @ x).tensor_split(2)
        wanted = gx.addmm_(slope, torch.cat([a2, b2])) if ctx.needs_input_grad[0] else None
        return wanted, gw, gb, None, ga1, ga2, gb1, gb2
