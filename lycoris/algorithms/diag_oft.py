"""Diag-OFT: each block of outputs is turned by its own rotation.

    W' = blockdiag(R_1 .. R_n)^T W,     R = (I + Q)(I - Q)^-1,  Q = B - B^T

(Qiu et al. 2023, arXiv 2306.07280, eq. 4-6, the Cayley form). Lengths and angles between the
neurons of a block stay what they were. With `constraint` c the norm of Q is kept under c o (COFT);
with `rescaled` each output also learns its length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..effort import TOUCH, Cost
from ..knobs import Knob
from ..products import channelwise
from . import Algorithm, Inner, Layer, Shape, Tensors, factorization

SYSTEM = 5.0  # matrices of the rotations' size that solving for them leaves behind


@dataclass(frozen=True)
class OftOptions:
    constraint: Annotated[float, Knob("Longest allowed rotation, as a share of the outputs; 0 is "
                                      "off.", 0, 100)] = 0.0
    rescaled: Annotated[bool, Knob("Learn a length for each output too.")] = False


class DiagOft(Algorithm):
    name = "diag-oft"
    label = "Diag-OFT"
    about = "Rotates groups of outputs. Keeps what the base knows; dim is the size of a group."
    advice = ("When the base should be kept as it is while it learns something new. Dim is the "
              "block's size, fitted to each layer: a higher one can make a smaller file.")
    size = "n b^2, with n b = o"
    order = 4
    keys = {"blocks": "oft_blocks", "rescale": "rescale"}
    scaled = False
    needs_weight = True
    around = True
    Options = OftOptions

    @classmethod
    def dims(cls, dim: int, options: Mapping[str, Any]) -> Sequence[int] | None:
        return range(2, 257)

    def surprises(self, layers: Mapping[Layer, int]) -> Sequence[tuple[str, str]]:
        """The dim is only the most a block may have."""
        sizes = {layer: self._block(layer) for layer in layers}
        small = {size for size in sizes.values() if 2 * size <= self.dim}
        if not small:
            return ()
        number = sum(count for layer, count in layers.items() if sizes[layer] in small)
        return ((f"Dim {self.dim} is the most a block may have: on {number} of "
                 f"{sum(layers.values())} layers {self.label} takes blocks of {min(small)}"
                 + (f" to {max(small)}" if max(small) > min(small) else "") + ".",
                 "The size that is shown counts them so; a lower dim may give larger blocks."),)

    def shapes(self, layer: Layer) -> dict[str, Shape]:
        block, count = factorization(layer.out, self.dim)
        return {"blocks": (count, block, block)} | self._lengths(layer)

    def _lengths(self, layer: Layer) -> dict[str, Shape]:
        ones = (1,) * (1 + len(layer.kernel))
        return {"rescale": (layer.out, *ones)} if self.options.rescaled else {}

    def file_alpha(self, layer: Layer) -> float | None:
        """The constraint; readers multiply it by o themselves."""
        return self.options.constraint

    def with_facts(self, found: Mapping[str, Tensor]) -> Algorithm:
        constraint = found["alpha"].item() if "alpha" in found else 0.0
        return self.copied(options=OftOptions(constraint, self.options.rescaled))

    def fits(self, shapes: Mapping[str, Shape], layer: Layer) -> bool:
        count, block, _ = shapes["blocks"][-3:]
        return count * block == layer.out

    def init(self, p: Tensors, layer: Layer, weight: Tensor, from_zero: bool = True) -> None:
        for name, tensor in p.items():
            tensor.fill_(1.0 if name == "rescale" else 0.0)

    def delta(self, p: Tensors, layer: Layer, weight: Tensor | None = None,
              multiplier: float = 1.0) -> Tensor:
        assert weight is not None
        turned = self._turned(p, weight.flatten(1)[None], layer, multiplier)
        return turned.reshape(layer.shape) - weight

    def cost(self, layer: Layer) -> Cost:
        """With W' made anew there is one product for each position, that of the gradients."""
        block = self._block(layer)
        turn = layer.out * block
        anew = None if layer.is_spatial or self.options.rescaled else (
            float(turn), 2.0 * layer.fan_in * (turn + TOUCH * layer.out))
        return Cost(3.0 * turn + TOUCH * layer.out / 2, 3.0 * layer.fan_in * turn, anew=anew,
                    **self._held(layer, 1, block))

    def _held(self, layer: Layer, stages: int, block: int) -> dict[str, Any]:
        """What is kept: the turned output, or with lengths what each stage got and the last one
        gave. The rotations are made once, with lengths their system of equations too."""
        rescaled = self.options.rescaled
        return {"kept": float(layer.out * (1 + stages)) if rescaled else 0.0,
                "made": (SYSTEM if rescaled else 1.0) * stages * layer.out * block,
                "keeps_input": False, "keeps_output": not rescaled}

    def _block(self, layer: Layer) -> int:
        shapes = self.shapes(layer) if self.fixed is None else self.fixed
        return shapes["blocks"][-1]

    def through(self, p: Tensors, x: Tensor, layer: Layer, inner: Inner, factor: float) -> Tensor:
        pure = factor == 1.0 and "rescale" not in p and not torch.compiler.is_compiling()
        if pure and inner.weight is not None:
            return _Anew.apply(x, inner.weight, self.free(p, layer), inner.bias)
        y = inner.base(x)
        if pure:  # a rotation can be undone: its output is all that is kept
            return _Turns.apply(y, self.free(p, layer), inner.bias, type(self),
                                layer.kind == "linear")
        first = outputs_first(y, layer.kind == "linear")
        turned = self._turned(p, first, layer, factor)
        if self.linear and factor != 1.0:
            turned = torch.lerp(first, turned, factor)
        turned = turned if inner.bias is None else turned + inner.bias[:, None].to(turned.dtype)
        return outputs_back(turned, y.shape, layer.kind == "linear")

    def free(self, p: Tensors, layer: Layer) -> Tensor:
        """(stages, n, b, b) any matrices B: the Cayley forms of B - B^T turn a block's outputs, as
        columns. The norm of all B - B^T is kept under the constraint."""
        return limited(p["blocks"], self.options.constraint * layer.out).mT[None]

    def _turned(self, p: Tensors, y: Tensor, layer: Layer, multiplier: float) -> Tensor:
        """y (s, o, N) turned, then the lengths. A multiplier is for those that are not linear."""
        rotations = cayley(self.free(p, layer)).to(y.dtype)
        if not self.linear and multiplier != 1.0:
            one = torch.eye(rotations.shape[-1], dtype=y.dtype, device=y.device)
            rotations = torch.lerp(one.expand_as(rotations), rotations, multiplier)
        for stage, rotation in enumerate(rotations):
            y = self.unwired(rotation @ self.wired(y, stage, rotation), stage)
        if "rescale" not in p:
            return y
        lengths = p["rescale"].view(-1, 1).to(y.dtype)
        return y * (lengths if self.linear else 1 + multiplier * (lengths - 1))

    @staticmethod
    def wired(y: Tensor, stage: int, rotation: Tensor) -> Tensor:
        """(s, o, N) -> (s, n, b, N): which outputs a stage turns together."""
        return y.unflatten(1, rotation.shape[:2])

    @staticmethod
    def unwired(blocks: Tensor, stage: int) -> Tensor:
        """(s, n, b, N) -> (s, o, N), each output back at its place."""
        return blocks.flatten(1, 2)

    def drop_ranks(self, p: dict[str, Tensor], share: float) -> dict[str, Tensor]:
        """A share of the blocks stays unturned; the others stay rotations, so nothing is made up
        for it."""
        blocks = p["blocks"]
        keep = torch.rand(blocks.shape[-3], 1, 1, device=blocks.device) >= share
        p["blocks"] = blocks * keep
        return p

    def shrink(self, p: Tensors, ratio: float) -> None:
        blocks = p["blocks"]
        outputs = blocks.shape[-3] * blocks.shape[-2]
        longest = self.options.constraint * outputs
        length = (blocks - blocks.mT).norm().item()
        blocks.mul_(ratio * (min(1.0, longest / length) if longest and length else 1.0))
        if "rescale" in p:
            p["rescale"].sub_(1.0).mul_(ratio).add_(1.0)

    @classmethod
    def read(cls, found: Mapping[str, Shape]) -> tuple[int, Any] | None:
        return read_blocks(cls, found, 3)


def limited(blocks: Tensor, limit: float) -> Tensor:
    """The matrices B, made smaller where B - B^T is longer than a limit above 0."""
    if not limit:
        return blocks
    norm = (blocks - blocks.mT).norm() + 1e-8
    return blocks * torch.clamp(limit / norm, max=1.0)


def cayley(free: Tensor) -> Tensor:
    """(.., b, b) rotations (I + Q)(I - Q)^-1 with Q = B - B^T, in full precision."""
    with torch.autocast(free.device.type, enabled=False):
        q = free - free.mT
        one = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
        return torch.linalg.solve(one - q, one + q)  # both factors commute


def _slopes(products: Tensor, rotations: Tensor) -> Tensor:
    """The gradient of B from the sums `products` of g (R y)^T over all positions.

    That of R is products @ R, that of Q is 2 M^T (products R) M^T with M = (I - Q)^-1, of which
    R = 2 M - I. As R M^T = M, there is no system of equations to solve again.
    """
    twice = rotations + torch.eye(rotations.shape[-1], dtype=rotations.dtype,
                                  device=rotations.device)
    slope = (twice.mT @ products.to(twice.dtype) @ twice).mul_(0.5)
    return slope - slope.mT


def outputs_first(y: Tensor, linear: bool) -> Tensor:
    """(s, o, N): a linear layer's (.., o) as one sample of rows, a convolution's (B, o, ..)."""
    return y.reshape(-1, y.shape[-1]).t()[None] if linear else y.flatten(2)


def outputs_back(y: Tensor, shape: Sequence[int], linear: bool) -> Tensor:
    """`outputs_first` undone."""
    return y[0].t().reshape(shape) if linear else y.reshape(shape)


class _Turns(torch.autograd.Function):
    """Rotations in stages, then the bias. Only the result is kept for the backward pass, which
    turns it back stage by stage, a bias with it."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, free: Tensor, bias: Tensor | None, kind: type[DiagOft],
                linear: bool) -> Tensor:
        blocks, rotations = outputs_first(y, linear), cayley(free)
        for stage, rotation in enumerate(rotations.to(y.dtype)):
            blocks = kind.unwired(_times(rotation, kind.wired(blocks, stage, rotation)), stage)
        rows = blocks[0].t() if linear else blocks
        turned = torch.ops.aten._unsafe_view(rows.contiguous(), y.shape)  # no view of ours
        if bias is not None:
            turned.add_(_column(bias.to(y.dtype), turned, linear))
        ctx.kind, ctx.linear = kind, linear
        ctx.save_for_backward(rotations, bias, turned)
        return turned

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rotations, bias, turned = ctx.saved_tensors
        kind: type[DiagOft] = ctx.kind
        after, slope = (outputs_first(t, ctx.linear) for t in (turned, grad))
        pair = _sums(slope, bias)
        found, gb = torch.empty_like(rotations), pair[0].flatten() if pair else None
        for stage in range(len(rotations) - 1, -1, -1):
            rotation = rotations[stage].to(turned.dtype)
            after, slope, *pair = (kind.wired(t, stage, rotation) for t in (after, slope, *pair))
            found[stage] = _products(slope, after, pair)
            slope = kind.unwired(_times(rotation.mT, slope), stage)
            if stage:
                after, *pair = (kind.unwired(_times(rotation.mT, t), stage) for t in (after, *pair))
        return (outputs_back(slope, grad.shape, ctx.linear), _slopes(found, rotations),
                gb if ctx.needs_input_grad[2] else None, None, None)


class _Anew(torch.autograd.Function):
    """x W'^T + b with W' = R W, made again in the backward pass. As W' x is a rotation's result,
    the gradient of R comes from it, block by block: neither x nor the gradient of W' is needed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, free: Tensor,
                bias: Tensor | None) -> Tensor:
        rotations = cayley(free)
        made, linear = _turned_weight(weight, rotations, x.dtype), weight.ndim == 2
        bias = None if bias is None else bias.to(x.dtype)
        if linear:
            y = F.linear(x, made, bias)
        else:
            y = torch.ops.aten._unsafe_view(channelwise(made, x.flatten(2)),
                                            (x.shape[0], -1, *x.shape[2:]))
            if bias is not None:
                y.add_(_column(bias, y, linear))
        ctx.save_for_backward(weight, rotations, bias, y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, rotations, bias, y = ctx.saved_tensors
        linear, gx, shape = weight.ndim == 2, None, rotations.shape[1:3]
        if ctx.needs_input_grad[0]:
            made = _turned_weight(weight, rotations, grad.dtype)
            gx = grad @ made if linear else channelwise(
                made.t(), grad.flatten(2)).unflatten(2, grad.shape[2:])
        after, slope = (outputs_first(t, linear) for t in (y, grad))
        pair = _sums(slope, bias)
        gb = pair[0].flatten() if ctx.needs_input_grad[3] else None
        after, slope, *pair = (t.unflatten(1, shape) for t in (after, slope, *pair))
        return gx, None, _slopes(_products(slope, after, pair)[None], rotations), gb


def _turned_weight(weight: Tensor, rotations: Tensor, dtype: torch.dtype) -> Tensor:
    """(o, i) R W of one stage, made in the precision of R."""
    blocks = weight.flatten(1).unflatten(0, rotations.shape[1:3]).to(rotations.dtype)
    with torch.autocast(weight.device.type, enabled=False):
        return torch.bmm(rotations[0], blocks).flatten(0, 1).to(dtype)


def _times(rotation: Tensor, blocks: Tensor) -> Tensor:
    """(n, b, b) @ (s, n, b, N) block by block, in the layout of the blocks."""
    out = torch.empty_like(blocks)
    for sample, into in zip(blocks, out, strict=True):
        torch.bmm(rotation, sample, out=into)
    return out


def _sums(slope: Tensor, bias: Tensor | None) -> Sequence[Tensor]:
    """The sum of a gradient (s, o, N) over all positions and the bias, as (1, o, 1) each; nothing
    for no bias."""
    if bias is None:
        return ()
    return slope.sum((0, 2), keepdim=True), bias.to(slope.dtype).view(1, -1, 1)


def _products(slope: Tensor, after: Tensor, pair: Sequence[Tensor]) -> Tensor:
    """(n, b, b): the gradient's blocks times the outputs' before the bias, over all positions."""
    found, *others = (torch.bmm(g, y.mT) for g, y in zip(slope, after, strict=True))
    for other in others:
        found.add_(other)
    if pair:
        total, shift = pair
        found.baddbmm_(total[0], shift[0].mT, alpha=-1)
    return found


def _column(bias: Tensor, y: Tensor, linear: bool) -> Tensor:
    """The bias in a shape that is added to y."""
    return bias if linear else bias.view(-1, *(1 for _ in y.shape[2:]))


def read_blocks(cls: type[DiagOft], found: Mapping[str, Shape],
                axes: int) -> tuple[int, Any] | None:
    """(dim, options) if the blocks have so many axes: 3 for Diag-OFT, 4 for BOFT's stages."""
    if not cls.has(found, "oft_blocks") or len(found["oft_blocks"]) != axes:
        return None
    return found["oft_blocks"][-1], OftOptions(rescaled="rescale" in found)
