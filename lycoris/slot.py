"""What stands in for a layer's forward while adapters are attached to it.

Each adapter either changes the weight (dense), or applies its factors to x and adds the result
(aside), or works on the layer's input or output (around); lycoris.paths says what is cheaper. Every
adapter's change is that of the base's own weight, so that several on one layer add up in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import quantised
from .adapter import LENGTHS, Adapter
from .algorithms import Algorithm, Inner, Tensors
from .products import Folded, channelwise, linear_slopes

SLOT = "lycoris_slot"
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Slot:
    """The adapters of one layer, and the layer's forward with them."""

    def __init__(self, module: nn.Module):
        self.module = module
        self.adapters: list[Adapter] = []
        self.is_norm = not isinstance(module, (nn.Linear, *CONVS))
        self.plain = not quantised.is_quantised(module)
        self.whole = getattr(module, "groups", 1) == 1
        self.is_pointwise = isinstance(module, CONVS) and self.whole and all(
            side == 1 for side in (*module.kernel_size, *module.stride)) and not any(
            module._reversed_padding_repeated_twice)

    @classmethod
    def of(cls, module: nn.Module) -> Slot:
        """The module's slot, made and put in place if there is none yet."""
        slot = module.__dict__.get(SLOT)
        if slot is None:
            slot = cls(module)
            module.__dict__[SLOT] = slot
            module.forward = slot.forward
        return slot

    def remove(self, adapter: Adapter) -> None:
        self.adapters.remove(adapter)
        if not self.adapters:  # the class's own forward shows again
            del self.module.__dict__[SLOT]
            del self.module.__dict__["forward"]

    def forward(self, x: Tensor) -> Tensor:
        active = [adapter for adapter in self.adapters if not adapter.sits_out()]
        if not active:
            return self._base(x)
        if self.is_norm:
            return self._norm(x, active)
        dense, direct, apart = self._sorted(active, x)
        around = next((a for a in direct if a.around), None)
        changes = [self._apart(adapter, x) for adapter in apart]
        if dense:
            y = self._joined(x, dense[0], dense=True) if len(dense) == 1 else None
            y = self._dense(x, dense) if y is None else y
        elif around is None:
            if len(direct) == 1 and (y := self._joined(x, direct[0], dense=False)) is not None:
                direct = []
            else:
                y = self._fresh(x)
        else:
            y = self._around(x, around)
        ours = self.plain and not dense and around is None  # nobody else's result: written to
        for adapter in direct:
            if adapter is not around:
                change = adapter.aside(adapter.seen(), self._cast(adapter, x), self._op,
                                       y if ours else None)
                y = change if ours else y + change.to(y.dtype)
        for change in changes:
            y = y + change.to(y.dtype)
        return y

    def _sorted(self, active: Sequence[Adapter],
                x: Tensor) -> tuple[list[Adapter], list[Adapter], list[Adapter]]:
        """(dense, direct, apart): those that change the weight, those that apply their factors, and
        those whose own output must be had alone, to be dropped in part."""
        learning = torch.is_grad_enabled()
        tokens = self._positions(x)
        dense, direct, apart = [], [], []
        for adapter in active:
            if adapter.training and adapter.extras.dropout:
                apart.append(adapter)
            elif self.whole and adapter.goes_aside(tokens, learning):
                direct.append(adapter)
            else:
                dense.append(adapter)
        around = [adapter for adapter in direct if adapter.around]
        if len(around) + bool(dense) > 1:  # they would see each other's work
            direct = [adapter for adapter in direct if not adapter.around]
            dense += around
        return dense, direct, apart

    def _positions(self, x: Tensor) -> int:
        """How many times the weight is applied: rows of a linear layer's input, or pixels."""
        if isinstance(self.module, nn.Linear):
            return x.numel() // x.shape[-1]
        positions = x.numel() // x.shape[1]
        for stride in self.module.stride:
            positions //= stride
        return positions

    def _base(self, x: Tensor) -> Tensor:
        return type(self.module).forward(self.module, x)

    def _fresh(self, x: Tensor) -> Tensor:
        """The layer's own output, to be written to."""
        if self.is_pointwise and self.plain and x.device.type == "cpu":
            return self.applied(x, self.module.weight, self.module.bias)
        return self._base(x)

    def applied(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's own operation with another weight and bias. A 1x1 convolution is one product,
        which a CPU computes faster."""
        if not self.is_pointwise:
            return apply(self.module, x, weight, bias)
        weight, columns = weight.flatten(1).expand(x.shape[0], -1, -1), x.flatten(2)
        y = torch.bmm(weight, columns) if bias is None else torch.baddbmm(
            bias[:, None], weight, columns)
        return torch.ops.aten._unsafe_view(y, (*y.shape[:2], *x.shape[2:]))  # no view of ours

    def _op(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer's own operation with another weight, without bias."""
        if self.is_pointwise:  # one product: as a convolution of few channels it is slow on a CPU
            return channelwise(weight.flatten(1), x.flatten(2)).unflatten(2, x.shape[2:])
        return apply(self.module, x, weight, None)

    def _joined(self, x: Tensor, adapter: Adapter, dense: bool) -> Tensor | None:
        """A linear layer with one adapter, as one operation with a backward pass of its own; None
        for anything else."""
        module, algorithm = self.module, adapter.algorithm
        if not (self.plain and isinstance(module, nn.Linear) and torch.is_grad_enabled()):
            return None
        dtype = self._dtype(adapter, x)
        if (dtype is None or algorithm.timed or adapter.scalar is not None
                or torch.compiler.is_compiling()):
            return None
        if dense and type(algorithm).change is Algorithm.change:
            return None
        p, y = adapter.seen(), None
        bias = None if module.bias is None else module.bias.to(dtype)
        rows = x.reshape(-1, x.shape[-1]).to(dtype)
        if not dense:
            p = {name: tensor.to(dtype) for name, tensor in p.items()}
            y = algorithm.joined(p, adapter.layer, rows, module.weight.to(dtype), bias,
                                 adapter.factor())
        elif LENGTHS not in p:
            with torch.autocast(x.device.type, enabled=False):  # dW is made in full precision
                if (found := algorithm.change(p)) is not None:
                    kind, parts = found
                    y = Folded.apply(rows, module.weight, bias, adapter.factor(), kind, *parts)
        return None if y is None else y.view(*x.shape[:-1], y.shape[-1])

    def _dtype(self, adapter: Adapter, x: Tensor) -> torch.dtype | None:
        """What base and adapter are both computed in; None where they differ."""
        if torch.is_autocast_enabled(x.device.type):
            return torch.get_autocast_dtype(x.device.type)
        dtype = self.module.weight.dtype
        return dtype if dtype == adapter.dtype else None

    @staticmethod
    def _cast(adapter: Adapter, x: Tensor) -> Tensor:
        """Without autocast a half-precision base meets adapters in fp32."""
        return x if torch.is_autocast_enabled(x.device.type) else x.to(adapter.dtype)

    def _norm(self, x: Tensor, active: Sequence[Adapter]) -> Tensor:
        weight, bias = self.module.weight, self.module.bias
        for adapter in active:
            weight, bias = adapter.changed(self.module.weight, bias, adapter.multiplier,
                                           weight.to(adapter.dtype))
        return apply(self.module, x, weight.to(self.module.weight.dtype),
                     None if bias is None else bias.to(self.module.weight.dtype))

    def _around(self, x: Tensor, adapter: Adapter) -> Tensor:
        """The one adapter that works on the layer's input or on its output before the bias."""
        own = type(adapter.algorithm).joined is not Algorithm.joined
        if own and adapter.dora_scale is None:
            y = self._joined(x, adapter, dense=False)
            if y is not None:
                return y
        bias, p = self.module.bias, adapter.seen()

        def base(fed: Tensor) -> Tensor:
            fed = fed.to(x.dtype)
            if self.plain:
                return self._cast(adapter, apply(self.module, fed, self.module.weight, None))
            y = self._base(fed)
            return self._cast(adapter, y.clone() if bias is None else y - bias.to(y.dtype))

        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(
            x.device.type) else x.dtype
        weight = self._anew(adapter, x)
        inner = Inner(base, self._op, bias, weight)
        if LENGTHS in p:
            y = inner.finished(self._stretched(x, adapter, p, base), adapter.layer)
        else:
            fed = self._cast(adapter, x) if weight is None else x.to(dtype)
            y = adapter.algorithm.through(p, fed, adapter.layer, inner, adapter.factor())
        return y.to(dtype)

    def _anew(self, adapter: Adapter, x: Tensor) -> Tensor | None:
        """W where W' is to be made from it in each pass."""
        weight = self.module.weight
        if not self.plain or weight.requires_grad or self._dtype(adapter, x) is None or not (
                self.is_pointwise or isinstance(self.module, nn.Linear)):
            return None
        choice = adapter.choice(self._positions(x), torch.is_grad_enabled())
        return weight if choice.goes_anew else None

    def _stretched(self, x: Tensor, adapter: Adapter, p: Tensors,
                   base: Callable[[Tensor], Tensor]) -> Tensor:
        """DoRA on the output: each row of (W + dW) x times its learned length over its own."""
        y = adapter.aside(p, self._cast(adapter, x), self._op, base(x))
        lengths = adapter.row_lengths(p, quantised.weight_of(self.module))
        stretch = p[LENGTHS].flatten() / lengths
        return y * stretch.view(-1, *(1 for _ in adapter.layer.kernel)).to(y.dtype)

    def _dense(self, x: Tensor, adapters: Sequence[Adapter]) -> Tensor:
        """One operation with W + dW. What it holds for the backward pass is x alone; W + dW is made
        again from the factors there."""
        seen = [adapter.seen() for adapter in adapters]
        if not self.plain:
            return self._beside(x, adapters, seen)
        base, base_bias = self.module.weight, self.module.bias
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else (
            base.dtype)

        def build(base: Tensor, bias: Tensor | None,
                  seen: Sequence[Tensors]) -> tuple[Tensor, Tensor | None]:
            weight = None
            for adapter, p in zip(adapters, seen, strict=True):
                weight, bias = adapter.changed(base, bias, adapter.multiplier, weight, p)
            assert weight is not None
            return weight.to(dtype), None if bias is None else bias.to(dtype)

        own = len(adapters) == 1 and adapters[0].holds_all and dtype == adapters[0].dtype
        if own or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.applied(x.to(dtype), *build(base, base_bias, seen))  # nothing made or kept
        named = [list(p) for p in seen]
        flat = [tensor for p in seen for tensor in p.values()]

        def rebuild(base: Tensor, bias: Tensor | None,
                    flat: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
            each = iter(flat)
            return build(base, bias, [{name: next(each) for name in names} for names in named])

        return _Rebuilt.apply(self, rebuild, x.to(dtype), base, base_bias, *flat)

    def _beside(self, x: Tensor, adapters: Sequence[Adapter], seen: Sequence[dict]) -> Tensor:
        """For a quantised base: its own output, and dW x beside it."""
        needs = any(a.algorithm.needs_weight or a.dora_scale is not None for a in adapters)
        base = quantised.weight_of(self.module) if needs else self._blank(adapters[0])
        y, bias = self._base(x), self.module.bias
        for adapter, p in zip(adapters, seen, strict=True):
            own = self._cast(adapter, x)
            change = self._op(own, adapter.change(base, adapter.multiplier, p))
            y = y + change.to(y.dtype)
            shift = adapter.algorithm.bias(p)
            if shift is not None and bias is not None:
                y = y + (adapter.multiplier * shift).to(y.dtype)
        return y

    def _blank(self, adapter: Adapter) -> Tensor:
        """A weight that nobody reads, for its shape, dtype and device."""
        return torch.empty((), dtype=adapter.dtype, device=self.module.weight.device).expand(
            adapter.layer.shape)

    def _apart(self, adapter: Adapter, x: Tensor) -> Tensor:
        """The adapter's own output with a random share dropped and the rest made up for it."""
        p, own = adapter.seen(), self._cast(adapter, x)
        direct = not adapter.around and self.whole and adapter.goes_aside(
            self._positions(x), torch.is_grad_enabled())
        if direct:
            change = adapter.aside(p, own, self._op, None)
        else:
            weight = quantised.weight_of(self.module)
            change = self._op(own, adapter.change(weight, adapter.multiplier, p))
            shift = adapter.algorithm.bias(p)
            if shift is not None and self.module.bias is not None:
                sides = (-1, *(1 for _ in adapter.layer.kernel))
                change = change + adapter.multiplier * shift.view(sides)
        return F.dropout(change, adapter.extras.dropout)


def apply(module: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The layer's own operation (stride, padding mode, groups, eps) with another weight and
    bias."""
    if isinstance(module, nn.Linear):
        return F.linear(x, weight, bias)
    if isinstance(module, CONVS):
        return module._conv_forward(x, weight, bias)
    if isinstance(module, nn.GroupNorm):
        return F.group_norm(x, module.num_groups, weight, bias, module.eps)
    assert isinstance(module, nn.LayerNorm), type(module)
    return F.layer_norm(x, module.normalized_shape, weight, bias, module.eps)


class _Rebuilt(torch.autograd.Function):
    """The layer's operation with a weight that is not kept for the backward pass: `build` makes it
    and its bias again from the base's and what is smaller, this time with the way back to them."""

    @staticmethod
    def forward(ctx: Any, slot: Slot, build: Callable[..., tuple[Tensor, Tensor | None]],
                x: Tensor, base: Tensor, bias: Tensor | None, *tensors: Tensor) -> Tensor:
        ctx.slot, ctx.build = slot, build
        ctx.save_for_backward(x, base, bias, *tensors)  # the base's may be a copy for this pass
        return slot.applied(x, *build(base, bias, tensors))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, base, base_bias, *tensors = ctx.saved_tensors
        wants_x, _, _, *wants = ctx.needs_input_grad[2:]
        with torch.enable_grad():
            copies = [tensor.detach().requires_grad_(want)
                      for tensor, want in zip(tensors, wants, strict=True)]
            weight, bias = ctx.build(base, base_bias, copies)
        made = weight.detach()
        needs_weight, needs_bias = weight.requires_grad, bias is not None and bias.requires_grad
        module = ctx.slot.module
        if isinstance(module, nn.Linear):
            rows = grad.reshape(-1, grad.shape[-1])
            gx, gw, gb = linear_slopes((wants_x, needs_weight, needs_bias), rows,
                                       x.reshape(-1, x.shape[-1]), made)
            gx = None if gx is None else gx.view(x.shape)
        elif ctx.slot.is_pointwise:
            gx, gw, gb = _pointwise_backward(grad, x, made if wants_x else None, needs_weight,
                                             needs_bias)
        else:
            gx, gw, gb = _conv_backward(module, grad, x, made if wants_x else None,
                                        needs_weight, needs_bias)
        outputs = [(t, g) for t, g in ((weight, gw), (bias, gb)) if g is not None]
        learned = [copy for copy, want in zip(copies, wants, strict=True) if want]
        found = iter(torch.autograd.grad([t for t, _ in outputs], learned, [g for _, g in outputs],
                                         allow_unused=True) if learned else ())
        return None, None, gx, None, None, *(next(found) if want else None for want in wants)


def _pointwise_backward(grad: Tensor, x: Tensor, weight: Tensor | None, wants_weight: bool,
                        wants_bias: bool) -> tuple[Tensor | None, ...]:
    """As `_conv_backward`, of one product for each picture."""
    slopes, columns, gx, gw = grad.flatten(2), x.flatten(2), None, None
    if weight is not None:
        gx = channelwise(weight.flatten(1).t(), slopes).view(x.shape)
    if wants_weight:
        gw = torch.bmm(slopes, columns.mT).sum(0).view(
            *grad.shape[1:2], x.shape[1], *(1 for _ in x.shape[2:]))
    return gx, gw, slopes.sum((0, 2)) if wants_bias else None


def _conv_backward(module: nn.Module, grad: Tensor, x: Tensor, weight: Tensor | None,
                   wants_weight: bool, wants_bias: bool) -> tuple[Tensor | None, ...]:
    """(input, weight, bias) gradients; a padding that is not zeros is undone by autograd itself."""
    wants_x = weight is not None
    shape = module.weight.shape
    if weight is None:
        weight = grad.new_empty(()).expand(shape)
    padding, padded = module.padding, x
    if module.padding_mode != "zeros" or isinstance(padding, str):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        with torch.enable_grad():
            x = x.detach().requires_grad_(wants_x)
            padded = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
        padding = (0,) * len(module.stride)
    gx, gw, gb = torch.ops.aten.convolution_backward(
        grad, padded.detach(), weight.to(grad.dtype), [shape[0]] if wants_bias else None,
        module.stride, padding, module.dilation, False, [0] * len(module.stride), module.groups,
        [wants_x, wants_weight, wants_bias])
    if wants_x and padded is not x:
        (gx,) = torch.autograd.grad(padded, x, gx)
    return (gx if wants_x else None, gw if wants_weight else None, gb if wants_bias else None)
