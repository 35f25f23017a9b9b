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
from torch import Tensor

from ..knobs import Knob
from . import Algorithm, Cost, Inner, Layer, Shape, Tensors, factorization

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
        turned = self._turned(p, weight.flatten(1).t(), layer, multiplier).t()
        return turned.reshape(layer.shape) - weight

    def cost(self, layer: Layer) -> Cost:
        block = self._block(layer)
        return Cost(3.0 * layer.out * block, 3.0 * layer.out * layer.fan_in * block,
                    **self._held(layer, 1, block))

    def _held(self, layer: Layer, stages: int, block: int) -> dict[str, Any]:
        """What is kept: the turned output, or with lengths what each stage got and the last one
        gave. The rotations, their system of equations and its solution are made once."""
        rescaled = self.options.rescaled
        return {"kept": float(layer.out * (1 + stages)) if rescaled else 0.0,
                "made": SYSTEM * stages * layer.out * block, "keeps_input": False,
                "keeps_output": not rescaled}

    def _block(self, layer: Layer) -> int:
        shapes = self.shapes(layer) if self.fixed is None else self.fixed
        return shapes["blocks"][-1]

    def through(self, p: Tensors, x: Tensor, layer: Layer, inner: Inner, factor: float) -> Tensor:
        y = inner.base(x)
        rows = y if layer.kind == "linear" else y.movedim(1, -1)
        pure = factor == 1.0 and "rescale" not in p and not torch.compiler.is_compiling()
        if pure:  # a rotation can be undone: its output is all that is kept
            rotations = self.rotations(p, layer).to(y.dtype)
            turned = _Turns.apply(rows, rotations, inner.bias, type(self))
        else:
            turned = self._turned(p, rows, layer, factor)
            if self.linear and factor != 1.0:
                turned = torch.lerp(rows, turned, factor)
            turned = turned if inner.bias is None else turned + inner.bias.to(turned.dtype)
        return turned if layer.kind == "linear" else turned.movedim(-1, 1)

    def rotations(self, p: Tensors, layer: Layer) -> Tensor:
        """(stages, n, b, b): each turns a block's outputs, as columns."""
        return cayley(p["blocks"], self.options.constraint * layer.out).mT[None]

    def _turned(self, p: Tensors, y: Tensor, layer: Layer, multiplier: float) -> Tensor:
        """y (.., o) turned, then the lengths. A multiplier is for those that are not linear."""
        rotations = self.rotations(p, layer).to(y.dtype)
        if not self.linear and multiplier != 1.0:
            one = torch.eye(rotations.shape[-1], dtype=y.dtype, device=y.device)
            rotations = torch.lerp(one.expand_as(rotations), rotations, multiplier)
        flat = y.reshape(-1, layer.out)
        for stage, rotation in enumerate(rotations):
            blocks = self.wired(flat, stage, rotation)
            flat = self.unwired(torch.einsum("ncb,cab->nca", blocks, rotation), stage)
        turned = flat.view(y.shape)
        if "rescale" not in p:
            return turned
        lengths = p["rescale"].flatten().to(y.dtype)
        return turned * (lengths if self.linear else 1 + multiplier * (lengths - 1))

    @staticmethod
    def wired(rows: Tensor, stage: int, rotation: Tensor) -> Tensor:
        """(N, o) -> (N, n, b): which outputs a stage turns together."""
        return rows.view(-1, *rotation.shape[:2])

    @staticmethod
    def unwired(blocks: Tensor, stage: int) -> Tensor:
        """(N, n, b) -> (N, o), each output back at its place."""
        return blocks.reshape(blocks.shape[0], -1)

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


class _Turns(torch.autograd.Function):
    """Rotations in stages, then the bias. Only the result is kept for the backward pass, which
    turns it back stage by stage."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, rotations: Tensor, bias: Tensor | None,
                kind: type[DiagOft]) -> Tensor:
        rows = y.reshape(-1, y.shape[-1])
        for stage, rotation in enumerate(rotations):
            rows = kind.unwired(_times(kind.wired(rows, stage, rotation), rotation.mT), stage)
        turned = torch.ops.aten._unsafe_view(rows, y.shape)  # no view of something of ours
        if bias is not None:
            turned = turned.add_(bias.to(y.dtype))
        ctx.kind = kind
        ctx.save_for_backward(rotations, bias, turned)
        return turned

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rotations, bias, turned = ctx.saved_tensors
        kind: type[DiagOft] = ctx.kind
        turned = turned if bias is None else turned - bias.to(turned.dtype)
        rows, g = (t.reshape(-1, t.shape[-1]) for t in (turned, grad))
        found = torch.empty_like(rotations)
        for stage in range(len(rotations) - 1, -1, -1):
            rotation = rotations[stage]
            after, slope = (kind.wired(t, stage, rotation) for t in (rows, g))
            product = torch.bmm(slope.permute(1, 2, 0), after.transpose(0, 1))
            torch.bmm(product, rotation, out=found[stage])
            g = kind.unwired(_times(slope, rotation), stage)
            if stage:
                rows = kind.unwired(_times(after, rotation), stage)
        gb = grad.reshape(-1, grad.shape[-1]).sum(0) if ctx.needs_input_grad[2] else None
        return g.view(grad.shape), found, gb, None


def _times(blocks: Tensor, matrices: Tensor) -> Tensor:
    """(N, n, b) @ (n, b, b) block by block, each written where it belongs."""
    out = torch.empty_like(blocks, memory_format=torch.contiguous_format)
    torch.bmm(blocks.transpose(0, 1), matrices, out=out.transpose(0, 1))
    return out


def read_blocks(cls: type[DiagOft], found: Mapping[str, Shape],
                axes: int) -> tuple[int, Any] | None:
    """(dim, options) if the blocks have so many axes: 3 for Diag-OFT, 4 for BOFT's stages."""
    if not cls.has(found, "oft_blocks") or len(found["oft_blocks"]) != axes:
        return None
    return found["oft_blocks"][-1], OftOptions(rescaled="rescale" in found)
