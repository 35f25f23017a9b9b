"""Base layers whose weight is not a plain tensor: bitsandbytes' int8 and 4-bit linear layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EIGHT_BIT, FOUR_BIT = ("Linear8bitLt",), ("Linear4bit", "LinearNF4", "LinearFP4")


def is_quantised(module: nn.Module) -> bool:
    return type(module).__name__ in (*EIGHT_BIT, *FOUR_BIT)


def shape_of(module: nn.Module) -> tuple[int, ...]:
    """The weight's shape (out, in, ..): a packed one does not show it."""
    if is_quantised(module):
        return module.out_features, module.in_features
    return tuple(module.weight.shape)


@torch.no_grad()
def weight_of(module: nn.Module) -> Tensor:
    """The base's weight as numbers: itself, or dequantised into a new tensor of the layer's
    compute dtype (fp32 for int8)."""
    if not is_quantised(module):
        return module.weight
    import bitsandbytes.functional as quantised

    if type(module).__name__ in FOUR_BIT:
        return quantised.dequantize_4bit(module.weight.data, module.weight.quant_state)
    packed, row_scale = _eight_bit(module)
    return packed.float() * (row_scale.float() / 127.0).view(-1, 1)


def _eight_bit(module: nn.Module) -> tuple[Tensor, Tensor]:
    """int8 rows and their largest magnitudes; they move to the layer's state at its first pass."""
    if module.state.CB is not None:
        return module.state.CB, module.state.SCB
    return module.weight.data, module.weight.SCB
