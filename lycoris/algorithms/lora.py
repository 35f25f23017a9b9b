"""LoRA and, on convolutions, LoCon.

dW = up @ down (Hu et al. 2021, arXiv 2106.09685, eq. 3); on a k x k convolution `down` carries the
kernel, or with Tucker a third small tensor `mid` does (Yeh et al. 2023, arXiv 2309.14859, B.4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from ..knobs import Knob
from . import Algorithm, Layer, Operator, Shape, Tensors, kaiming


@dataclass(frozen=True)
class LoraOptions:
    use_tucker: Annotated[bool, Knob("On convolutions, split the kernel off into a small tensor of "
                                     "its own.", label="Tucker decomposition")] = False


class Lora(Algorithm):
    name = "lora"
    label = "LoRA"
    about = "Two thin matrices a layer. Small and dependable: the place to start."
    order = 1
    keys = {"up": "lora_up.weight", "down": "lora_down.weight", "mid": "lora_mid.weight"}
    fold = "up"
    ranked = {"down": 0}
    Options = LoraOptions

    def shapes(self, layer: Layer) -> dict[str, Shape]:
        ones = (1,) * len(layer.kernel)
        up, r = (layer.out, self.dim, *ones), self.dim
        if self.options.use_tucker and layer.is_spatial:
            return {"up": up, "down": (r, layer.inp, *ones), "mid": (r, r, *layer.kernel)}
        return {"up": up, "down": (r, layer.inp, *layer.kernel)}

    def init(self, p: Tensors, from_zero: bool = True) -> None:
        for name, tensor in p.items():
            if name == "up" and from_zero:
                tensor.zero_()
            else:
                kaiming(tensor)

    def delta(self, p: Tensors, layer: Layer, weight: Tensor | None = None) -> Tensor:
        up, down = p["up"].flatten(1), p["down"]
        if "mid" in p:
            return torch.einsum("mn...,pm,nq->pq...", p["mid"], up, down.flatten(1))
        return (up @ down.flatten(1)).view(layer.shape)

    def bypass(self, p: Tensors, x: Tensor, layer: Layer, op: Operator) -> Tensor | None:
        if "mid" in p:
            return None
        hidden = op(x, p["down"])
        if layer.kind == "linear":
            return torch.nn.functional.linear(hidden, p["up"])
        return _pointwise(hidden, p["up"])

    def bypass_is_cheaper(self, layer: Layer) -> bool:
        """Per position and step (forward, input and factor gradients) the two thin products cost
        6 r (o + i K); the full-size gradient of W + dW that they save costs 2 o i K."""
        fan_in = layer.inp * _product(layer.kernel)
        return 3 * self.dim * (layer.out + fan_in) < layer.out * fan_in

    @classmethod
    def read(cls, found: Mapping[str, Shape]) -> tuple[int, Any] | None:
        if not cls.has(found, "lora_up.weight", "lora_down.weight"):
            return None
        return found["lora_down.weight"][0], LoraOptions("lora_mid.weight" in found)


def _pointwise(hidden: Tensor, weight: Tensor) -> Tensor:
    """A 1x1(x1) convolution over however many axes the layer has."""
    flat = hidden.flatten(2)
    return (weight.flatten(1) @ flat).unflatten(2, hidden.shape[2:])


def _product(sides: Shape) -> int:
    total = 1
    for side in sides:
        total *= side
    return total
