"""LoKr: a Kronecker product.

    dW = kron(w1, w2)       w1 (o_l, i_m), w2 (o_k, i_n), o = o_l o_k, i = i_m i_n

w2, the large one, is full or w2_a @ w2_b of rank r; `decompose_both` splits w1 as well (Edalati et
al. 2022, KronA, arXiv 2212.10650; Yeh et al. 2023, arXiv 2309.14859, sec. 4.3). dW x is never
formed: with x as an (i_m, i_n) matrix X, kron(w1, w2) x = w1 X w2^T.
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
from ..products import Change, added, channelwise, linear_slopes, pointwise
from . import Algorithm, Layer, Operator, Shape, Tensors, elements, factorization


@dataclass(frozen=True)
class LokrOptions:
    factor: Annotated[int, Knob("Size of the small block: lower means a larger file and more "
                                "exact learning; -1 takes the most even split.", -1, 4096)] = -1
    full_matrix: Annotated[bool, Knob("Do not split the large block into ranks: full dimension.",
                                      label="Full dimension")] = False
    decompose_both: Annotated[bool, Knob("Split the small block into ranks too.")] = False
    unbalanced_factorization: Annotated[bool, Knob(
        "Give the small block the larger share of the outputs.", label="Unbalanced")] = False
    use_tucker: Annotated[bool, Knob("On convolutions, split the kernel off into a small tensor of "
                                     "its own.", label="Tucker decomposition")] = False

# Factors worth trying for a file of a given size; first those that the guideline speaks of.
FACTORS = (8, 4, -1, 16, 6, 12, 3, 2, 24, 32, 48, 64)


def _side(options: Mapping[str, Any], widths: Sequence[int]) -> str:
    """Is the factor "low" or "high" by the guideline's rule on most layers; "" for neither.

    Low is a small block of at most half the root of the layer's outputs, high one of at least the
    root, or, where they have no such divisors, the most even split.
    """
    sides = []
    for width in widths:
        small = factorization(width, int(options.get("factor", -1)))[0]
        even = small >= min(width**0.5, factorization(width)[0])
        sides.append("high" if even else "low" if small <= 0.5 * width**0.5 else "")
    return next((side for side in ("low", "high") if 2 * sides.count(side) > len(sides)), "")


# Three products of w1 with the blocks of one position take as long as so many multiply-adds of a
# large product, however small they are (benchmarks/step_cost.py).
SMALL = 75e3


class Lokr(Algorithm):
    name = "lokr"
    label = "LoKr"
    about = ("A Kronecker product of a small and a large block: from tiny files (factor -1) to "
             "almost full training (factor 4, full dimension).")
    advice = ("When the model does not learn well enough: low factor and full dimension. When it "
              "learns too well, or for the smallest file: high factor or -1. Wants a higher "
              "learning rate than LoRA at small sizes.")
    size = "o_l i_m + r (o_k + i_n K), full: o_l i_m + o_k i_n K"
    order = 3
    keys = {"w1": "lokr_w1", "w1_a": "lokr_w1_a", "w1_b": "lokr_w1_b", "w2": "lokr_w2",
            "w2_a": "lokr_w2_a", "w2_b": "lokr_w2_b", "t2": "lokr_t2"}
    fold = ("w1", "w1_a")
    ranked = {"w2_b": 0, "w1_b": 0}
    plus = frozenset({"w2", "w2_b"})
    starts = ("default", "orthogonal")
    guide = Guide((
        column("LoKr low factor", "◉▲●●★●", options={"full_matrix": True}, side="low"),
        column("LoKr high factor", "▲●★★★●", side="high",
               note="its flexibility may not survive a switch of the base model")),
        side=_side)
    Options = LokrOptions

    @classmethod
    def dims(cls, dim: int, options: Mapping[str, Any]) -> Sequence[int] | None:
        return (dim,) if options.get("full_matrix") else None

    @classmethod
    def sizings(cls, options: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        return (options, *({**options, "factor": factor, "full_matrix": whole}
                           for whole in (True, False) for factor in FACTORS))

    def surprises(self, layers: Mapping[Layer, int]) -> Sequence[tuple[str, str]]:
        """A large block that ranks would not make smaller is kept whole."""
        shapes = [(self.shapes(layer), count) for layer, count in layers.items()]
        whole = sum(count for found, count in shapes if "w2" in found)
        if self.options.full_matrix or not whole:
            return ()
        fixed = sum(count for found, count in shapes if {"w1", "w2"} <= found.keys())
        return ((f"At dim {self.dim} LoKr keeps the large block whole on {whole} of "
                 f"{sum(layers.values())} layers, as with full dimension; alpha does nothing on "
                 f"{fixed}.",
                 "Lower the dim or the factor for ranks, or turn full dimension on for all."),)

    def shapes(self, layer: Layer) -> dict[str, Shape]:
        r, options = self.dim, self.options
        (out_l, out_k), (in_m, in_n) = self._split(layer)
        found: dict[str, Shape] = {}
        if options.decompose_both and r < max(out_l, in_m) / 2 and not options.full_matrix:
            found |= {"w1_a": (out_l, r), "w1_b": (r, in_m)}
        else:
            found["w1"] = (out_l, in_m)
        if r >= max(out_k, in_n) / 2 or options.full_matrix:
            found["w2"] = (out_k, in_n, *layer.kernel)
        elif options.use_tucker and layer.is_spatial:
            found |= {"w2_a": (r, out_k), "w2_b": (r, in_n), "t2": (r, r, *layer.kernel)}
        else:
            found |= {"w2_a": (out_k, r), "w2_b": (r, in_n * elements(layer.kernel))}
        return found

    def _split(self, layer: Layer) -> tuple[tuple[int, int], tuple[int, int]]:
        outs = factorization(layer.out, self.options.factor)
        if self.options.unbalanced_factorization:
            outs = outs[::-1]
        return outs, factorization(layer.inp, self.options.factor)

    def scale(self, layer: Layer) -> float:
        """1 where both blocks are full: there is no rank to divide by."""
        shapes = self.shapes(layer) if self.fixed is None else self.fixed
        return 1.0 if "w1" in shapes and "w2" in shapes else super().scale(layer)

    def file_alpha(self, layer: Layer) -> float | None:
        """1 for two full blocks, where nothing reads it: a huge dim would not fit fp16."""
        shapes = self.shapes(layer) if self.fixed is None else self.fixed
        return 1.0 if "w1" in shapes and "w2" in shapes else super().file_alpha(layer)

    def fits(self, shapes: Mapping[str, Shape], layer: Layer) -> bool:
        out_l, in_m = shapes.get("w1") or (shapes["w1_a"][0], shapes["w1_b"][1])
        if "t2" in shapes:
            out_k, in_n = shapes["w2_a"][1], shapes["w2_b"][1] * elements(shapes["t2"][2:])
        elif "w2" in shapes:
            out_k, in_n = shapes["w2"][0], elements(shapes["w2"][1:])
        else:
            out_k, in_n = shapes["w2_a"][0], elements(shapes["w2_b"][1:])
        return out_l * out_k == layer.out and in_m * in_n == layer.fan_in

    def init(self, p: Tensors, layer: Layer, weight: Tensor, from_zero: bool = True) -> None:
        for name, tensor in p.items():
            if name in self.plus and from_zero:
                tensor.zero_()
            else:
                self.fill(tensor)

    def delta(self, p: Tensors, layer: Layer, weight: Tensor | None = None,
              multiplier: float = 1.0) -> Tensor:
        w1, w2 = _small(p), _large(p)
        product = w1[:, None, :, None] * w2.flatten(1).view(w2.shape[0], -1)[None, :, None, :]
        return product.reshape(layer.shape)

    def kronecker(self, p: Tensors) -> tuple[Tensor, Tensor] | None:
        w1, w2 = _small(p), _large(p)
        return w1, w2.reshape(w2.shape[0], -1)

    def cost(self, layer: Layer) -> Cost:
        shapes = self.shapes(layer) if self.fixed is None else self.fixed
        (out_l, in_m) = shapes.get("w1") or (shapes["w1_a"][0], shapes["w1_b"][1])
        out_k, in_n = layer.out // out_l, layer.fan_in // in_m
        if "w2_a" in shapes and "t2" not in shapes:  # w1 meets x between the two thin factors
            r = shapes["w2_b"][0]
            token = 3.0 * r * (layer.fan_in + layer.out + in_m * out_l) + SMALL
            kept = r * (in_m + out_l)
        elif layer.kind == "linear":
            token = 3.0 * out_l * in_n * (out_k + in_m) + 1.5 * TOUCH * out_l * in_n + SMALL
            kept = out_l * in_n
        else:
            token = 3.0 * in_m * out_k * (in_n + out_l)
            kept = in_m * out_k
        return Cost(token, 4.0 * layer.out * layer.fan_in, kept=kept)

    def joined(self, p: Tensors, layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None,
               factor: float) -> Tensor:
        last = p["w2"] if "w2" in p else p["w2_a"]
        return _Blocks.apply(x, weight, bias, factor, _small(p), p.get("w2_b"), last)

    def change(self, p: Tensors) -> tuple[type[Change], Sequence[Tensor]]:
        w2 = _large(p)
        return _Kronecker, (_small(p), w2.reshape(w2.shape[0], -1))

    def aside(self, p: Tensors, x: Tensor, layer: Layer, op: Operator, factor: float,
              y: Tensor | None) -> Tensor:
        w1 = _small(p)
        in_m = w1.shape[1]
        if layer.kind == "linear":
            hidden, last = x.reshape(-1, in_m, x.shape[-1] // in_m), p.get("w2")
            if last is None:  # the blocks of x meet w1 where they are smallest
                hidden, last = hidden @ p["w2_b"].t(), p["w2_a"]
            hidden = _mixed(w1.to(hidden.dtype), hidden)
            if y is None:
                y = (hidden @ last.t().to(hidden.dtype)).view(*x.shape[:-1], layer.out)
                return y if factor == 1.0 else y * factor
            return pointwise(hidden, last, factor, y)
        w2 = _large(p)
        w2 = w2.reshape(w2.shape[0], -1, *layer.kernel)
        hidden = op(x.reshape(-1, x.shape[1] // in_m, *x.shape[2:]), w2)
        places = hidden.shape[2:]
        hidden = hidden.reshape(x.shape[0], in_m, -1)
        return added(y, channelwise(w1, hidden).view(x.shape[0], layer.out, *places), factor)

    @classmethod
    def layer_shape(cls, found: Mapping[str, Shape]) -> tuple[Shape, bool] | None:
        out_l, in_m = found["lokr_w1"][:2] if "lokr_w1" in found else (
            found["lokr_w1_a"][0], found["lokr_w1_b"][1])
        if "lokr_w2" in found:
            out_k, in_n, *kernel = found["lokr_w2"]
            return (out_l * out_k, in_m * in_n, *kernel), True
        a, b = found["lokr_w2_a"], found["lokr_w2_b"]
        if "lokr_t2" in found:
            return (out_l * a[1], in_m * b[1], *found["lokr_t2"][2:]), True
        return (out_l * a[0], in_m * b[1]), bool(b[1] % 9)

    @classmethod
    def read(cls, found: Mapping[str, Shape]) -> tuple[int, Any] | None:
        small = "lokr_w1" if "lokr_w1" in found else "lokr_w1_b"
        large = "lokr_w2" if "lokr_w2" in found else "lokr_w2_b"
        needed = {small, large, small.replace("_b", "_a"), large.replace("_b", "_a")}
        if not cls.has(found, *needed) or set(found) - needed - {"lokr_t2"}:
            return None
        ranks = [found[key][0] for key in (large, small) if key.endswith("_b")]
        both_full = not ranks
        dim = ranks[0] if ranks else max(found["lokr_w2"][:2])
        return dim, LokrOptions(
            factor=_factor(found), full_matrix=both_full, decompose_both=small.endswith("_b"),
            use_tucker="lokr_t2" in found)


def _small(p: Tensors) -> Tensor:
    return p["w1"] if "w1" in p else p["w1_a"] @ p["w1_b"]


def _large(p: Tensors) -> Tensor:
    """w2 as (o_k, i_n, ...) or (o_k, i_n K)."""
    if "w2" in p:
        return p["w2"]
    if "t2" in p:
        return torch.einsum("ij...,ip,jq->pq...", p["t2"], p["w2_a"], p["w2_b"])
    return p["w2_a"] @ p["w2_b"]


def _mixed(w1: Tensor, hidden: Tensor) -> Tensor:
    """w1 (l, m) times each of many small (m, n): faster so than as a broadcast product."""
    return torch.bmm(w1.expand(hidden.shape[0], *w1.shape), hidden)


class _Kronecker(Change):
    """W + factor kron(w1, w2)."""

    @staticmethod
    def build(weight: Tensor, factor: float, parts: Sequence[Tensor],
              keep: bool) -> tuple[Tensor, Sequence[Tensor]]:
        w1, w2 = parts
        blocks = weight.view(w1.shape[0], w2.shape[0], w1.shape[1], w2.shape[1])
        return torch.addcmul(blocks, w1[:, None, :, None], w2[None, :, None, :],
                             value=factor).view(weight.shape), ()

    @staticmethod
    def slopes(grad: Tensor, factor: float, parts: Sequence[Tensor],
               kept: Sequence[Tensor]) -> Sequence[Tensor]:
        w1, w2 = parts
        blocks = grad.reshape(w1.shape[0], w2.shape[0], w1.shape[1], w2.shape[1])
        pairs = blocks.transpose(1, 2).reshape(w1.numel(), w2.numel())
        return ((pairs @ w2.reshape(-1)).view(w1.shape).mul_(factor),
                (w1.reshape(-1) @ pairs).view(w2.shape).mul_(factor))


class _Blocks(torch.autograd.Function):
    """x W^T + b + factor kron(w1, last first) x over rows: the blocks of x meet `first` where there
    is one (w2_b), then w1, then `last`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, factor: float,
                *parts: Tensor | None) -> Tensor:
        w1, first, last = parts
        blocks = x.reshape(x.shape[0], w1.shape[1], -1)
        mixed = _mixed(w1, blocks if first is None else blocks @ first.t())
        ctx.factor = factor
        ctx.save_for_backward(x, weight, w1, first, last, mixed)
        y = F.linear(x, weight, bias)
        y.view(-1, last.shape[0]).addmm_(mixed.flatten(0, 1), last.t(), alpha=factor)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, w1, first, last, mixed = ctx.saved_tensors
        gx, gw, gb = linear_slopes(ctx.needs_input_grad, grad, x, weight)
        rows, blocks = grad.reshape(-1, last.shape[0]), x.reshape(x.shape[0], w1.shape[1], -1)
        slope = (rows @ last).mul_(ctx.factor).view(mixed.shape)
        back = _mixed(w1.t(), slope)  # the gradient of what w1 has met
        met, gfirst = blocks, None
        if first is None:
            if gx is not None:
                gx.view(back.shape).add_(back)
        else:
            met, rest = blocks @ first.t(), back.flatten(0, 1)
            gfirst = rest.t() @ blocks.flatten(0, 1)
            if gx is not None:
                gx.view(-1, first.shape[1]).addmm_(rest, first)
        gw1 = torch.bmm(slope, met.mT).sum(0)
        glast = (rows.t() @ mixed.flatten(0, 1)).mul_(ctx.factor)
        return gx, gw, gb, None, gw1, gfirst, glast


def _factor(found: Mapping[str, Shape]) -> int:
    """The factor that a file's small block speaks of; -1 for none above 1."""
    small = found.get("lokr_w1") or (found["lokr_w1_a"][0], found["lokr_w1_b"][1])
    return max(small)
