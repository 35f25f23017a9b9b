"""BOFT: rotations of small blocks in several stages, wired like a butterfly.

    W' = R_M .. R_2 R_1 W

with M stages of o / b blocks each, between which the outputs change places, so that after all of
them every output can reach every other (Liu et al. 2023, arXiv 2311.06243, sec. 4).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..effort import TOUCH, Cost
from . import Layer, Problem, Shape, Tensors
from .diag_oft import DiagOft, limited, read_blocks


class Boft(DiagOft):
    name = "boft"
    label = "BOFT"
    about = "Rotations in stages that reach every output. Between Diag-OFT and full rotation."
    advice = ("As Diag-OFT, with more freedom at more parameters and time. Dim must leave a power "
              "of two of blocks on every layer.")
    size = "M n b^2, with n b = o and M = log2 n + 1"
    order = 5
    linear = False

    @classmethod
    def dims(cls, dim: int, options: Mapping[str, Any]) -> Sequence[int] | None:
        return range(2, 257, 2)

    def problem(self, layers: Sequence[Layer]) -> Problem | None:
        small = [layer for layer in layers if not _factorization(layer.out, self.dim)[0]]
        if not small:
            return None
        most = max(small, key=lambda layer: _smallest(layer.out))
        return Problem(f"BOFT splits outputs into a power of two of even blocks; {most.name} has "
                       f"{most.out}, so blocks of at least {_smallest(most.out)}: set it to "
                       f"{_smallest(most.out)} or more")

    def shapes(self, layer: Layer) -> dict[str, Shape]:
        block, count = _factorization(layer.out, self.dim)
        stages = count.bit_length() if block else 1
        return {"blocks": (stages, count, block, block)} | self._lengths(layer)

    def cost(self, layer: Layer) -> Cost:
        """Besides its products every stage changes places, which takes longer than they do: of the
        outputs and of two gradients in one way, of as many matrices like W in the other."""
        shapes = self.shapes(layer) if self.fixed is None else self.fixed
        stages, _, block, _ = shapes["blocks"]
        turn = stages * layer.out
        return Cost(turn * (3 * block + 8 * TOUCH),
                    turn * layer.fan_in * (4 * block + 10 * TOUCH),
                    **self._held(layer, stages, block))

    def free(self, p: Tensors, layer: Layer) -> Tensor:
        return limited(p["blocks"], self.options.constraint * layer.out)

    @staticmethod
    def wired(y: Tensor, stage: int, rotation: Tensor) -> Tensor:
        """The butterfly: outputs that are 2^stage half blocks apart meet in one block."""
        half = 2**stage * rotation.shape[-1] // 2
        pairs = y.unflatten(1, (-1, 2, half)).transpose(2, 3)
        return pairs.reshape(y.shape[0], *rotation.shape[:2], y.shape[2])

    @staticmethod
    def unwired(blocks: Tensor, stage: int) -> Tensor:
        half = 2**stage * blocks.shape[-2] // 2
        pairs = blocks.flatten(1, 2).unflatten(1, (-1, half, 2)).transpose(2, 3)
        return pairs.reshape(blocks.shape[0], -1, blocks.shape[-1])

    @classmethod
    def read(cls, found: Mapping[str, Shape]) -> tuple[int, Any] | None:
        return read_blocks(cls, found, 4)


@functools.lru_cache(maxsize=4096)
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
