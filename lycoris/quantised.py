"""Base layers whose weight is not a plain tensor: bitsandbytes' int8 and 4-bit linear layers.

Linear layers are packed, but for those in `KEPT`: small ones at a model's ends, through which all
passes. Convolutions, norms and tables of embeddings have no packed form.
"""

from __future__ import annotations

import functools
import importlib.util
import re

import torch
from torch import Tensor, nn

from .errors import MissingPackage

# {how model.dtype calls it: bytes of a weight}. nf4's blocks of 64 have a scale of a byte each, and
# 256 of these one of four more; int8's scales are one of four bytes a row, counted apart.
KINDS = {"int8": 1.0, "nf4": 0.5 + 1 / 64 + 4 / (64 * 256)}
ROW_SCALE = {"int8": 4, "nf4": 0}
KEPT = re.compile(r"(^|\.)(time_embedding|add_embedding|class_embedding|time_emb_proj"
                  r"|text_projection)(\.|$)")
# Activations of int8 layers beyond this are multiplied in half precision, as the method's paper
# (Dettmers et al. 2022, LLM.int8()) has it.
OUTLIER = 6.0
EIGHT_BIT, FOUR_BIT = ("Linear8bitLt",), ("Linear4bit", "LinearNF4", "LinearFP4")


def require(kind: str) -> None:
    """MissingPackage where model.dtype is packed and bitsandbytes, which packs, is not there."""
    if kind in KINDS and importlib.util.find_spec("bitsandbytes") is None:
        raise MissingPackage("bitsandbytes", "Run: pip install bitsandbytes, or choose another "
                             "precision of the base.", "model.dtype")


def is_quantised(module: nn.Module) -> bool:
    return type(module).__name__ in (*EIGHT_BIT, *FOUR_BIT)


def quantise(root: nn.Module, kind: str, device: torch.device) -> None:
    """Pack the linear layers under `root` in place, each on `device`; the rest stays where it is.

    MissingPackage without bitsandbytes.
    """
    require(kind)
    for name, child in list(root.named_modules()):
        if type(child) is nn.Linear and not KEPT.search(name):
            root.set_submodule(name, _packed(child, kind).to(device).requires_grad_(False))


def _packed(layer: nn.Linear, kind: str) -> nn.Module:
    """It packs its weight when it is moved, also from the CPU to the CPU."""
    import bitsandbytes

    new, sizes = bitsandbytes.nn, (layer.in_features, layer.out_features)
    weight, has_bias = layer.weight.data, layer.bias is not None
    if kind == "int8":
        made = _frozen()(*sizes, bias=has_bias, has_fp16_weights=False, threshold=OUTLIER,
                                device="meta")
        made.weight = new.Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False)
    else:
        made = new.LinearNF4(*sizes, bias=has_bias, compute_dtype=weight.dtype, device="meta")
        made.support_avx512bf16_for_cpu = False  # packs again for a pass without gradients alone
        made.weight = new.Params4bit(weight, requires_grad=False, quant_type="nf4", module=made)
    made.bias = layer.bias
    return made.train(layer.training)


@functools.cache
def _frozen() -> type:
    import bitsandbytes

    class Linear8bitLt(bitsandbytes.nn.Linear8bitLt):
        """As its parent, without what that holds for a gradient of the weight: its whole input,
        also where checkpointing would drop it."""

        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            for name, nothing in (("tensors", (None, None, None)), ("A", None)):
                if hasattr(y.grad_fn, name):  # on a GPU; on a CPU
                    setattr(y.grad_fn, name, nothing)
            return y

    return Linear8bitLt


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
