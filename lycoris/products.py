"""Small products and sums that the algorithms share, made so that nothing is copied needlessly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def rank_mask(tensor: Tensor, axis: int, share: float) -> Tensor:
    """Zeros for a random share of the places on an axis and 1 / (1 - share) for the others."""
    sides = [1] * tensor.ndim
    sides[axis] = tensor.shape[axis]
    return F.dropout(torch.ones(sides, device=tensor.device, dtype=tensor.dtype), share)


def added(y: Tensor | None, change: Tensor, factor: float) -> Tensor:
    """y + factor * change, into y where there is one."""
    if y is None:
        return change if factor == 1.0 else change * factor
    return y.add_(change.to(y.dtype), alpha=factor)


class _Added(torch.autograd.Function):
    """y += factor * hidden @ weight^T, the rows being parts of y's where y is wider (LoKr): one
    operation, where autograd would copy a changed view's base."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, hidden: Tensor, weight: Tensor, factor: float) -> Tensor:
        y.view(-1, weight.shape[0]).addmm_(hidden, weight.t(), alpha=factor)
        ctx.factor = factor
        ctx.save_for_backward(hidden, weight)
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight = ctx.saved_tensors
        rows = grad.reshape(-1, weight.shape[0])
        return (grad, (rows @ weight).mul_(ctx.factor), (rows.t() @ hidden).mul_(ctx.factor), None)


def pointwise(hidden: Tensor, weight: Tensor, factor: float, y: Tensor | None) -> Tensor:
    """y + factor * (weight @ hidden) over the channels: of the last axis for a weight (o, r), of
    axis 1 for a convolution's (o, r, 1, ..)."""
    if weight.ndim == 2:
        if y is None:
            return added(None, F.linear(hidden, weight), factor)
        hidden = hidden.reshape(-1, hidden.shape[-1])
        if y.dtype == hidden.dtype and not torch.compiler.is_compiling():
            return _Added.apply(y, hidden, weight.to(hidden.dtype), factor)
        return added(y, F.linear(hidden, weight).view(y.shape), factor)
    change = channelwise(weight.flatten(1), hidden.flatten(2))
    return added(y, change.unflatten(2, hidden.shape[2:]), factor)


def channelwise(weight: Tensor, x: Tensor) -> Tensor:
    """(o, i) @ (b, i, n) -> (b, o, n). As a batch of products: `@` would transpose a copy of x and
    keep it for the backward pass, at two to four times the time on a CPU."""
    return torch.bmm(weight.expand(x.shape[0], -1, -1), x)


class Thin(torch.autograd.Function):
    """x W^T + b + factor x down^T up^T over rows. The thin products are added where the large ones
    have been written, forward and backward; with `fold` they are added to W, in each pass again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, factor: float, fold: bool,
                *factors: Tensor) -> Tensor:
        up, down = factors
        ctx.factor = factor
        if fold:
            ctx.save_for_backward(x, weight, up, down, None)
            return F.linear(x, torch.addmm(weight, up, down, alpha=factor), bias)
        hidden = x @ down.t()
        ctx.save_for_backward(x, weight, up, down, hidden)
        return F.linear(x, weight, bias).addmm_(hidden, up.t(), alpha=factor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, up, down, hidden = ctx.saved_tensors
        slope, fold = (grad @ up).mul_(ctx.factor), hidden is None
        if fold:
            hidden = x @ down.t()
            weight = torch.addmm(weight, up, down, alpha=ctx.factor)
        gx, gw, gb = linear_slopes(ctx.needs_input_grad, grad, x, weight)
        if gx is not None and not fold:
            gx.addmm_(slope, down)
        return gx, gw, gb, None, None, (grad.t() @ hidden).mul_(ctx.factor), slope.t() @ x


def linear_slopes(wanted: Sequence[bool], grad: Tensor, x: Tensor,
                  weight: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, W and b of x W^T + b over rows, each where it is wanted."""
    return (grad @ weight if wanted[0] else None, grad.t() @ x if wanted[1] else None,
            grad.sum(0) if wanted[2] else None)


class Change:
    """How W + factor * dW is made of an algorithm's tensors, and its gradient brought to them,
    without autograd: what stands between the two is made again instead of kept."""

    @staticmethod
    def build(weight: Tensor, factor: float, parts: Sequence[Tensor],
              keep: bool) -> tuple[Tensor, Sequence[Tensor]]:
        """(the sum, what `slopes` can use again); nothing of the latter without `keep`."""
        raise NotImplementedError

    @staticmethod
    def slopes(grad: Tensor, factor: float, parts: Sequence[Tensor],
               kept: Sequence[Tensor]) -> Sequence[Tensor]:
        """The gradients of the parts from that of the sum."""
        raise NotImplementedError


class Sum(torch.autograd.Function):
    """W + factor * dW."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, factor: float, kind: type[Change],
                *parts: Tensor) -> Tensor:
        made, kept = kind.build(weight, factor, parts, keep=True)
        ctx.factor, ctx.kind, ctx.parts = factor, kind, len(parts)
        ctx.save_for_backward(*parts, *kept)
        return made

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        parts, kept = ctx.saved_tensors[:ctx.parts], ctx.saved_tensors[ctx.parts:]
        return (grad if ctx.needs_input_grad[0] else None, None, None,
                *ctx.kind.slopes(grad, ctx.factor, parts, kept))


class Folded(torch.autograd.Function):
    """x (W + factor * dW)^T + b over rows; the sum is made again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, factor: float,
                kind: type[Change], *parts: Tensor) -> Tensor:
        ctx.factor, ctx.kind = factor, kind
        ctx.save_for_backward(x, weight, *parts)
        made, _ = kind.build(weight.to(parts[0].dtype), factor, parts, keep=False)
        return F.linear(x, made.to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *parts = ctx.saved_tensors
        made, kept = ctx.kind.build(weight.to(parts[0].dtype), ctx.factor, parts, keep=True)
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        gx, gw, gb = linear_slopes((wants_x, True, wants_bias), grad, x, made.to(x.dtype))
        del made
        return (gx, gw.to(weight.dtype) if wants_weight else None, gb, None, None,
                *ctx.kind.slopes(gw.to(parts[0].dtype), ctx.factor, parts, kept))
