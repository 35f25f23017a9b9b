"""BOFT: rotations of small blocks in several stages, wired like a butterfly.

    W' = R_M .. R_2 R_1 W

with M stages of o / b blocks each, between which the outputs change places, so that after all of
them every output can reach every other (Liu et al. 2023, arXiv 2311.06243, sec. 4).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from . import Cost, Layer, Shape, Tensors
from .diag_oft import DiagOft, cayley, read_blocks


class Boft(DiagOft):
    name = "boft"
    label = "BOFT"
    about = "Rotations in stages that reach every output. Between Diag-OFT and full rotation."
    advice = ("As Diag-OFT, with more freedom at more parameters and time. Dim must leave a power "
              "of two of blocks on every layer.")
    size = "M n b^2, with n b = o and M = log2 n + 1"
    order = 5
    linear = False

    def problem(self, layer: Layer) -> str:
        if not _factorization(layer.out, self.dim)[0]:
            return (f"BOFT splits the {layer.out} outputs of {layer.name} into a power of two of "
                    f"even blocks, and there is no such block of at most {self.dim}; set dim to "
                    f"{_smallest(layer.out)} or more")
        return ""

    def shapes(self, layer: Layer) -> dict[str, Shape]:
        block, count = _factorization(layer.out, self.dim)
        stages = count.bit_length() if block else 1
        return {"blocks": (stages, count, block, block)} | self._lengths(layer)

    def cost(self, layer: Layer) -> Cost:
        shapes = self.shapes(layer) if self.fixed is None else self.fixed
        stages, _, block, _ = shapes["blocks"]
        return Cost(3.0 * stages * layer.out * block,
                    3.0 * stages * layer.out * layer.fan_in * block)

    def _turned(self, p: Tensors, y: Tensor, layer: Layer, multiplier: float) -> Tensor:
        """y (.., o) through the stages; the multiplier goes from no rotation to the learned one in
        each of them."""
        rotations = cayley(p["blocks"], self.options.constraint * layer.out).to(y.dtype)
        stages, count, block, _ = rotations.shape
        if multiplier != 1.0:
            one = torch.eye(block, dtype=y.dtype, device=y.device)
            rotations = torch.lerp(one.expand_as(rotations), rotations, multiplier)
        flat = y.reshape(-1, layer.out)
        for stage in range(stages):
            half = 2**stage * block // 2
            wired = flat.view(-1, layer.out // (2 * half), 2, half).transpose(2, 3)
            rows = wired.reshape(-1, count, block).transpose(0, 1)
            turned = torch.bmm(rows, rotations[stage].mT).transpose(0, 1)
            turned = turned.reshape(-1, layer.out // (2 * half), half, 2)
            flat = turned.transpose(2, 3).reshape(-1, layer.out)
        turned = flat.view(y.shape)
        if "rescale" in p:
            lengths = p["rescale"].flatten().to(y.dtype)
            turned = turned * (1 + multiplier * (lengths - 1))
        return turned

    @classmethod
    def read(cls, found: Mapping[str, Shape]) -> tuple[int, Any] | None:
        return read_blocks(cls, found, 4)


def _factorization(dimension: int, block: int) -> tuple[int, int]:
    """(b, n) with b the largest even number up to `block` for which n = dimension / b is a power of
    two; (0, 0) where there is none."""
    for size in range(min(block, dimension) // 2 * 2, 0, -2):
        count, rest = divmod(dimension, size)
        if not rest and count & (count - 1) == 0:
            return size, count
    return 0, 0


def _smallest(dimension: int) -> int:
    """The smallest dim at which BOFT can split so many outputs."""
    odd = dimension
    while odd % 2 == 0:
        odd //= 2
    return 2 * odd
