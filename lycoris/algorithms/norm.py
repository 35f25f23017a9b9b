"""Normalisation layers, trained by `network.train_norm`: weight + w_norm, bias + b_norm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from . import Algorithm, Layer, NoOptions, Shape, Tensors


class Norm(Algorithm):
    name = "norm"
    kinds = ("norm",)
    keys = {"weight": "w_norm", "bias": "b_norm"}
    fold = ("weight",)
    has_dim = False
    scaled = False

    def shapes(self, layer: Layer) -> dict[str, Shape]:
        return {"weight": layer.shape} | ({"bias": layer.shape} if layer.bias else {})

    def init(self, p: Tensors, layer: Layer, weight: Tensor, from_zero: bool = True) -> None:
        for tensor in p.values():
            tensor.zero_()

    def delta(self, p: Tensors, layer: Layer, weight: Tensor | None = None,
              multiplier: float = 1.0) -> Tensor:
        return p["weight"]

    def bias(self, p: Tensors) -> Tensor | None:
        return p.get("bias")

    @classmethod
    def layer_shape(cls, found: Mapping[str, Shape]) -> tuple[Shape, bool] | None:
        return found["w_norm"], True

    @classmethod
    def read(cls, found: Mapping[str, Shape]) -> tuple[int, Any] | None:
        return (1, NoOptions()) if cls.has(found, "w_norm") else None
