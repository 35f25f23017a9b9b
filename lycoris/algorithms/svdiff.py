"""SVDiff: the singular values of each weight are shifted, its singular directions stay.

    W' = U diag(relu(s + shift)) V^T        from W = U diag(s) V^T

(Han et al. 2023, arXiv 2303.11305, eq. 2). A convolution is taken as the matrix (o, i K). The file
holds the shifts alone: U and V are made from the base again, so it belongs to that base; converted
to Full it is what other programs read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..products import pointwise
from . import Algorithm, Cost, Layer, NoOptions, Operator, Shape, Tensors


class Svdiff(Algorithm):
    name = "svdiff"
    label = "SVDiff"
    about = "Shifts the singular values of each weight. Tiny files that hardly overfit."
    advice = ("When the model learns too well and the file must be tiny. Bound to the base it was "
              "trained on; other programs read it after converting to Full or LoRA.")
    size = "min(o, i K)"
    order = 11
    keys = {"shift": "sv_shift"}
    ranked = {"shift": 0}
    has_dim = False
    scaled = False
    needs_weight = True

    def shapes(self, layer: Layer) -> dict[str, Shape]:
        return {"shift": (min(layer.out, layer.fan_in),)}

    def constants(self, layer: Layer, weight: Tensor) -> dict[str, Tensor]:
        u, s, v = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        return {"u": u, "s": s, "v": v}

    def constant_numbers(self, layer: Layer) -> int:
        return min(layer.out, layer.fan_in) * (layer.out + layer.fan_in + 1)

    def init(self, p: Tensors, layer: Layer, weight: Tensor, from_zero: bool = True) -> None:
        p["shift"].zero_()

    def delta(self, p: Tensors, layer: Layer, weight: Tensor | None = None,
              multiplier: float = 1.0) -> Tensor:
        return ((p["u"] * _moved(p)) @ p["v"]).view(layer.shape)

    def cost(self, layer: Layer) -> Cost:
        k = min(layer.out, layer.fan_in)
        return Cost(2.0 * k * (layer.out + layer.fan_in), 3.0 * k * layer.out * layer.fan_in,
                    kept=k, made=k * layer.out, keeps_input=False)

    def aside(self, p: Tensors, x: Tensor, layer: Layer, op: Operator, factor: float,
              y: Tensor | None) -> Tensor:
        ones = (1,) * len(layer.kernel)
        u = (p["u"] * _moved(p)).view(layer.out, -1, *ones)
        return pointwise(op(x, p["v"].view(-1, *layer.shape[1:])), u, factor, y)

    def shrink(self, p: Tensors, ratio: float) -> None:
        p["shift"].copy_(_moved(p) * ratio)

    @classmethod
    def read(cls, found: Mapping[str, Shape]) -> tuple[int, Any] | None:
        return (1, NoOptions()) if cls.has(found, "sv_shift") else None


def _moved(p: Tensors) -> Tensor:
    """How far each singular value really moves: none goes below 0."""
    return torch.relu(p["s"] + p["shift"]) - p["s"]
