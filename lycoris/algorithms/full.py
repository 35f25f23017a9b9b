"""Full, called native training: the difference of the whole weight, and of the bias.

    dW = diff (o, i, *k)            db = diff_b (o)

The file of a dreambooth or fine-tuning run on the chosen layers, as an adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..guideline import Guide, column
from . import Algorithm, Cost, Layer, NoOptions, Shape, Tensors


class Full(Algorithm):
    name = "full"
    label = "Full"
    about = "Native training: every weight of the layers itself. Learns most, in a huge file."
    advice = ("When the model does not learn well enough and size does not matter. Wants a much "
              "lower learning rate, about 1e-6 to 5e-6.")
    size = "o i K + o"
    order = 9
    keys = {"weight": "diff", "bias": "diff_b"}
    fold = ("weight",)
    whole = "weight"
    has_dim = False
    scaled = False
    guide = Guide((column("Full", "★★▲▲★●"),), rates=(1e-6, 5e-6))

    def shapes(self, layer: Layer) -> dict[str, Shape]:
        return {"weight": layer.shape} | ({"bias": (layer.out,)} if layer.bias else {})

    def init(self, p: Tensors, layer: Layer, weight: Tensor, from_zero: bool = True) -> None:
        for tensor in p.values():
            tensor.zero_()

    def delta(self, p: Tensors, layer: Layer, weight: Tensor | None = None,
              multiplier: float = 1.0) -> Tensor:
        return p["weight"].view(layer.shape)

    def bias(self, p: Tensors) -> Tensor | None:
        return p.get("bias")

    def cost(self, layer: Layer) -> Cost:
        return Cost(None, 0.0)

    def fits(self, shapes: Mapping[str, Shape], layer: Layer) -> bool:
        """A file may hold the weight without a bias: extractors and other trainers leave it out."""
        return "weight" in shapes and super().fits({**self.shapes(layer), **shapes}, layer)

    @classmethod
    def layer_shape(cls, found: Mapping[str, Shape]) -> tuple[Shape, bool] | None:
        return found["diff"], True

    @classmethod
    def read(cls, found: Mapping[str, Shape]) -> tuple[int, Any] | None:
        return (1, NoOptions()) if cls.has(found, "diff") else None
