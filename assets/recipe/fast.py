"""Quicker training on processors with bfloat16 matrix units (AMX); weights stay in float32.

Plain autocast loses on a CPU what the matrix units win: attention's backward pass and group norms
are slow in bfloat16. Attention by batched products and norms in float32 keep the gain.
"""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def default_precision() -> str:
    """bf16 where the processor has matrix units for it, else fp32."""
    information = Path("/proc/cpuinfo")
    has_units = information.exists() and "amx_bf16" in information.read_text()
    return "bf16" if has_units else "fp32"


def autocast(precision: str) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


class FloatGroupNorm(nn.GroupNorm):
    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return functional.group_norm(
                input.float(), self.num_groups, self.weight, self.bias, self.eps
            )


class ProductAttention:
    """An attention processor: softmax of products, head by head, in the precision it is given."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(context))
        value = attn.head_to_batch_dim(attn.to_v(context))
        with torch.autocast("cpu", enabled=False):
            weights = torch.bmm(query * attn.scale, key.transpose(1, 2)).softmax(-1)
            mixed = torch.bmm(weights, value)
        return attn.to_out[1](attn.to_out[0](attn.batch_to_head_dim(mixed)))


def prepare(model: nn.Module, precision: str) -> nn.Module:
    """Makes a diffusers model quick to train; its state dict keeps its names."""
    if precision == "bf16":
        for module in model.modules():
            if type(module) is nn.GroupNorm:
                module.__class__ = FloatGroupNorm
        if hasattr(model, "set_attn_processor"):
            model.set_attn_processor(ProductAttention())
    return model.to(memory_format=torch.channels_last)
