"""Diag-OFT: each block of outputs is turned by its own rotation.

    W' = blockdiag(R_1 .. R_n)^T W,     R = (I + Q)(I - Q)^-1,  Q = B - B^T

(Qiu et al. 2023, arXiv 2306.07280, eq. 4-6, the Cayley form). Lengths and angles between the
neurons of a block stay what they were. With `constraint` c the norm of Q is kept under c o (COFT);
with `rescaled` each output also learns its length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from ..knobs import Knob
from . import Algorithm, Cost, Layer, Operator, Shape, Tensors, factorization


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
    def dims(cls, dim: int) -> Sequence[int] | None:
        return range(2, 257)

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
        turned = self._turned(p, weight.flatten(1).t(), layer, multiplier).t()
        return turned.reshape(layer.shape) - weight

    def cost(self, layer: Layer) -> Cost:
        block = self._block(layer)
        return Cost(3.0 * layer.out * block, 3.0 * layer.out * layer.fan_in * block)

    def _block(self, layer: Layer) -> int:
        shapes = self.shapes(layer) if self.fixed is None else self.fixed
        return shapes["blocks"][-1]

    def through(self, p: Tensors, x: Tensor, layer: Layer, op: Operator, base: Callable[
            [Tensor], Tensor], factor: float) -> Tensor:
        y = base(x)
        if layer.kind == "linear":
            turned = self._turned(p, y, layer, factor)
        else:
            turned = self._turned(p, y.movedim(1, -1), layer, factor).movedim(-1, 1)
        return turned if factor == 1.0 or not self.linear else torch.lerp(y, turned, factor)

    def _turned(self, p: Tensors, y: Tensor, layer: Layer, multiplier: float) -> Tensor:
        """y (.., o) -> R^T y, then the lengths."""
        rotation = cayley(p["blocks"], self.options.constraint * layer.out)
        count, block, _ = rotation.shape
        rows = y.reshape(-1, count, block).transpose(0, 1)
        turned = torch.bmm(rows, rotation.to(y.dtype)).transpose(0, 1).reshape(y.shape)
        return turned * p["rescale"].flatten().to(y.dtype) if "rescale" in p else turned

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


def cayley(blocks: Tensor, limit: float) -> Tensor:
    """(.., b, b) rotations of (.., b, b) free matrices: (I + Q)(I - Q)^-1 with Q = B - B^T, whose
    norm over all blocks is kept under `limit` where that is above 0."""
    with torch.autocast(blocks.device.type, enabled=False):
        q = blocks - blocks.mT
        if limit > 0:
            norm = q.norm() + 1e-8
            q = q * torch.clamp(limit / norm, max=1.0)
        one = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
        return torch.linalg.solve(one - q, one + q)  # both factors commute


def read_blocks(cls: type[DiagOft], found: Mapping[str, Shape],
                axes: int) -> tuple[int, Any] | None:
    """(dim, options) if the blocks have so many axes: 3 for Diag-OFT, 4 for BOFT's stages."""
    if not cls.has(found, "oft_blocks") or len(found["oft_blocks"]) != axes:
        return None
    return found["oft_blocks"][-1], OftOptions(rescaled="rescale" in found)
