"""LoHa: a Hadamard product of two low-rank matrices.

    dW = (w1_a @ w1_b) * (w2_a @ w2_b)          w*_a (o, r), w*_b (r, i K)

element by element, which reaches rank r^2 (Hyeon-Woo et al. 2022, FedPara, arXiv 2108.06098,
prop. 1; Yeh et al. 2023, arXiv 2309.14859, eq. 4). With Tucker each of the two is a small core
(r, r, k, k) between two thin matrices (FedPara, prop. 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..effort import TOUCH, Cost
from ..guideline import Guide, column
from ..knobs import Knob
from ..products import Change, linear_slopes, pointwise
from . import Algorithm, Layer, Operator, Shape, Tensors


@dataclass(frozen=True)
class LohaOptions:
    use_tucker: Annotated[bool, Knob("On convolutions, split the kernel off into small tensors of "
                                     "their own.", label="Tucker decomposition")] = False


MATRICES = ("w1_a", "w1_b", "w2_a", "w2_b")


class Loha(Algorithm):
    name = "loha"
    label = "LoHa"
    about = ("A product of two LoRAs. Learns more gently: more varied pictures and less leaking of "
             "style, but fine details come out less exact.")
    advice = ("When the model learns too well: style leaks, poses freeze. Good for general "
              "concepts and several at once; keep dim at 32 or below.")
    size = "2 r (o + i K)"
    order = 2
    keys = {"w1_a": "hada_w1_a", "w1_b": "hada_w1_b", "w2_a": "hada_w2_a", "w2_b": "hada_w2_b",
            "t1": "hada_t1", "t2": "hada_t2"}
    fold = ("w1_a",)
    ranked = {"w1_b": 0}
    plus = frozenset({"w2_a"})
    starts = ("default", "orthogonal")
    guide = Guide((column("LoHa", "▲◉★●●▲"),))
    Options = LohaOptions

    def shapes(self, layer: Layer) -> dict[str, Shape]:
        r = self.dim
        if self.options.use_tucker and layer.is_spatial:
            core = (r, r, *layer.kernel)
            return {"w1_a": (r, layer.out), "w1_b": (r, layer.inp), "w2_a": (r, layer.out),
                    "w2_b": (r, layer.inp), "t1": core, "t2": core}
        return {"w1_a": (layer.out, r), "w1_b": (r, layer.fan_in),
                "w2_a": (layer.out, r), "w2_b": (r, layer.fan_in)}

    def init(self, p: Tensors, layer: Layer, weight: Tensor, from_zero: bool = True) -> None:
        deviation = {"w1_a": 0.1, "w1_b": 1.0, "w2_a": 0.0 if from_zero else 0.1, "w2_b": 1.0,
                     "t1": 0.1, "t2": 0.1}
        for name, tensor in p.items():
            if not deviation[name]:
                tensor.zero_()
            elif self.start == "orthogonal" and name.endswith("_b"):
                self.fill(tensor)
                tensor.mul_(deviation[name] / tensor.square().mean().sqrt())
            else:
                tensor.normal_(std=deviation[name])

    def delta(self, p: Tensors, layer: Layer, weight: Tensor | None = None,
              multiplier: float = 1.0) -> Tensor:
        if "t1" in p:
            return (_tucker(p["t1"], p["w1_a"], p["w1_b"])
                    * _tucker(p["t2"], p["w2_a"], p["w2_b"]))
        product = p["w1_a"] @ p["w1_b"]
        other = p["w2_a"] @ p["w2_b"]
        product = product * other if torch.is_grad_enabled() else product.mul_(other)
        return product.view(layer.shape)

    def cost(self, layer: Layer) -> Cost:
        """Without dW: its two factors of rank r^2 (rows of the Khatri-Rao product), as LoRA's. They
        are made first, and their gradients brought to what they are made from."""
        r = self.dim
        if self.options.use_tucker and layer.is_spatial:
            return Cost(None, 0.0)
        rows = r * r * (layer.out + layer.fan_in)
        return Cost(3.0 * rows, 8.0 * r * layer.out * layer.fan_in, once=3 * TOUCH * rows,
                    kept=r * r, made=rows)

    def joined(self, p: Tensors, layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None,
               factor: float) -> Tensor:
        return _KhatriRao.apply(x, weight, bias, factor, *(p[name] for name in MATRICES))

    def change(self, p: Tensors) -> tuple[type[Change], Sequence[Tensor]] | None:
        return None if "t1" in p else (_Hadamard, [p[name] for name in MATRICES])

    def aside(self, p: Tensors, x: Tensor, layer: Layer, op: Operator, factor: float,
              y: Tensor | None) -> Tensor:
        up, down = _rows(p)
        if layer.kernel:
            up = up.view(*up.shape, *(1 for _ in layer.kernel))
        return pointwise(op(x, down.view(-1, *layer.shape[1:])), up, factor, y)

    def factors(self, p: Tensors, layer: Layer,
                weight: Tensor) -> tuple[Tensor, Tensor] | None:
        if p["w1_b"].shape[0] ** 2 >= min(layer.out, layer.fan_in):
            return None
        if "t1" in p:  # the core goes with the second factor: (r, in) becomes (r, in K)
            p = {**p, **{f"w{n}_a": p[f"w{n}_a"].t() for n in (1, 2)},
                 **{f"w{n}_b": torch.einsum("ij...,jq->iq...", p[f"t{n}"], p[f"w{n}_b"]).flatten(1)
                    for n in (1, 2)}}
        return _rows(p)

    @classmethod
    def layer_shape(cls, found: Mapping[str, Shape]) -> tuple[Shape, bool] | None:
        a, b = found["hada_w1_a"], found["hada_w1_b"]
        if "hada_t1" in found:
            return (a[1], b[1], *found["hada_t1"][2:]), True
        return (a[0], b[1]), bool(b[1] % 9)

    @classmethod
    def read(cls, found: Mapping[str, Shape]) -> tuple[int, Any] | None:
        if not cls.has(found, "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"):
            return None
        return found["hada_w1_b"][0], LohaOptions("hada_t1" in found)


def _rows(p: Tensors) -> tuple[Tensor, Tensor]:
    """up (o, r^2) and down (r^2, i K) with up @ down = dW: every product of a row of each pair."""
    return _pairs(p["w1_a"].t(), p["w2_a"].t()).t(), _pairs(p["w1_b"], p["w2_b"])


class _Hadamard(Change):
    """W + factor (a1 b1) * (a2 b2)."""

    @staticmethod
    def build(weight: Tensor, factor: float, parts: Sequence[Tensor],
              keep: bool) -> tuple[Tensor, Sequence[Tensor]]:
        a1, b1, a2, b2 = parts
        one, two = a1 @ b1, a2 @ b2
        if keep:
            return torch.addcmul(weight, one, two, value=factor), (one, two)
        return torch.addcmul(weight, one, two, value=factor, out=one), ()

    @staticmethod
    def slopes(grad: Tensor, factor: float, parts: Sequence[Tensor],
               kept: Sequence[Tensor]) -> Sequence[Tensor]:
        (a1, b1, a2, b2), (one, two) = parts, kept
        slope = grad * two
        first = ((slope @ b1.t()).mul_(factor), (a1.t() @ slope).mul_(factor))
        torch.mul(grad, one, out=slope)
        return (*first, (slope @ b2.t()).mul_(factor), (a2.t() @ slope).mul_(factor))


class _KhatriRao(torch.autograd.Function):
    """x W^T + b + factor x down^T up^T over rows, of up and down as `_rows` makes them; up lies
    on its side, so that sums over it run along the outputs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, factor: float,
                *matrices: Tensor) -> Tensor:
        a1, b1, a2, b2 = matrices
        up, down = _pairs(a1.t(), a2.t()), _pairs(b1, b2)
        hidden = x @ down.t()
        ctx.factor = factor
        ctx.save_for_backward(x, weight, hidden, up, down, *matrices)
        return F.linear(x, weight, bias).addmm_(hidden, up, alpha=factor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, hidden, up, down, a1, b1, a2, b2 = ctx.saved_tensors
        slope = (grad @ up.t()).mul_(ctx.factor)
        gx, gw, gb = linear_slopes(ctx.needs_input_grad, grad, x, weight)
        if gx is not None:
            gx.addmm_(slope, down)
        r, (a1, a2) = b1.shape[0], (a.t().mul(ctx.factor).contiguous() for a in (a1, a2))
        ups = (hidden.t() @ grad).view(r, r, -1)
        downs = (slope.t() @ x).view(r, r, -1)
        return (gx, gw, gb, None, (ups * a2).sum(1).t(), (downs * b2).sum(1),
                (ups * a1[:, None]).sum(0).t(), (downs * b1[:, None]).sum(0))


def _pairs(one: Tensor, two: Tensor) -> Tensor:
    """(r^2, n): every row of one (r, n) times every row of the other."""
    one, two = one.contiguous(), two.contiguous()
    return (one[:, None] * two[None]).flatten(0, 1)


def _tucker(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """core (r, r, *k), a (r, out), b (r, in) -> (out, in, *k)."""
    return torch.einsum("ij...,ip,jq->pq...", core, a, b)
