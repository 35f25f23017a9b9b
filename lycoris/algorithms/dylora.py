"""DyLoRA: a LoRA whose ranks are ordered, so that it can be cut to any smaller dim afterwards.

    dW = up[:, :k] @ down[:k]       k a random multiple of the block size at every step

The newest block of the prefix learns, those before it stand still (Valipour et al. 2023,
arXiv 2210.07558, alg. 1, its frozen variant). The scale is alpha / dim for every prefix, so that a
file cut to its first k ranks paints what that prefix was trained to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from torch import Tensor

from ..guideline import Guide
from ..knobs import Knob
from . import Cost, Layer, Problem, Shape
from .lora import Lora


@dataclass(frozen=True)
class DyloraOptions:
    block_size: Annotated[int, Knob("Ranks that are trained together; dim must be a multiple.",
                                    1, 1024)] = 4


class Dylora(Lora):
    name = "dylora"
    label = "DyLoRA"
    about = "A LoRA that can be cut to a smaller dim after training, without training again."
    advice = ("When you do not know the dim yet: train once at a large one, then resize to its "
              "first ranks and compare. Each step trains one block only, so give it more steps.")
    order = 6
    starts = ("default", "orthogonal")
    guide = Guide()  # it does not study DyLoRA
    Options = DyloraOptions

    @classmethod
    def dims(cls, dim: int, options: Mapping[str, Any]) -> Sequence[int] | None:
        size = int(options.get("block_size", cls.Options().block_size))
        return range(size, max(513, size + 1), size)

    def problem(self, layers: Sequence[Layer]) -> Problem | None:
        size = self.options.block_size
        if self.dim % size == 0:
            return None
        near = sorted({max(1, self.dim // size) * size, -(-self.dim // size) * size})
        return Problem(f"DyLoRA's must be a multiple of its block size, {size}; set it to "
                       f"{' or '.join(map(str, near))}, or change the block size")

    def shapes(self, layer: Layer) -> dict[str, Shape]:
        """LoRA's, sides of 1 included: as a matrix, as the reference package writes it, diffusers
        and that package's own loader refuse a convolution's up."""
        ones = (1,) * len(layer.kernel)
        return {"up": (layer.out, self.dim, *ones), "down": (self.dim, layer.inp, *layer.kernel)}

    def thin(self, p: dict[str, Tensor]) -> dict[str, Tensor]:
        """Masks instead of slices: the number of ranks is drawn without leaving the device."""
        size, up, down = self.options.block_size, p["up"], p["down"]
        rank = torch.arange(self.dim, device=up.device) // size
        last = torch.randint(self.dim // size, (), device=up.device)
        before, now = (rank < last).to(up.dtype), (rank == last).to(up.dtype)
        columns = (-1,) + (1,) * (up.ndim - 2)
        rows = (-1,) + (1,) * (down.ndim - 1)
        p["up"] = up.detach() * before.view(columns) + up * now.view(columns)
        p["down"] = down.detach() * before.view(rows) + down * now.view(rows)
        return p

    def cost(self, layer: Layer) -> Cost:
        """The masked factors are new tensors."""
        found = super().cost(layer)
        return replace(found, made=self.dim * (layer.out + layer.fan_in))

    @classmethod
    def read(cls, found: Mapping[str, Shape]) -> tuple[int, Any] | None:
        """Its files are LoRA's and are read as such."""
        return None
