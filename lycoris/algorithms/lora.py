"""LoRA and, on convolutions, LoCon.

    dW = up @ down          up (o, r), down (r, i)

(Hu et al. 2021, arXiv 2106.09685, eq. 3). On a k x k convolution `down` carries the kernel, or with
Tucker a third small tensor `mid` (r, r, k, k) does (Yeh et al. 2023, arXiv 2309.14859, B.4). With
the start PiSSA (Meng et al. 2024, arXiv 2404.02948) the factors begin as W's leading singular
directions and dW is what they have moved since: dW = up @ down - up0 @ down0. A file holds that as
one LoRA of twice the dim, so that any program can read it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from ..guideline import Guide, column
from ..knobs import Knob
from ..products import pointwise, rank_mask
from . import Algorithm, Cost, Layer, Operator, Problem, Shape, Tensors


@dataclass(frozen=True)
class LoraOptions:
    use_tucker: Annotated[bool, Knob("On convolutions, split the kernel off into a small tensor of "
                                     "its own.", label="Tucker decomposition")] = False


class Lora(Algorithm):
    name = "lora"
    label = "LoRA"
    about = "Two thin matrices a layer. Small and dependable: the place to start."
    advice = ("The reference everything is compared with. Learns a subject faithfully at dim 8 to "
              "32; style leaks and poses freeze sooner than with LoHa of the same size.")
    size = "r (o + i K)"
    order = 1
    keys = {"up": "lora_up.weight", "down": "lora_down.weight", "mid": "lora_mid.weight"}
    fold = ("up",)
    ranked = {"down": 0}
    plus = frozenset({"up"})
    starts = ("default", "orthogonal", "pissa")
    guide = Guide((column("LoRA", "●●◉●●★"),))
    Options = LoraOptions

    def __init__(self, dim: int = 4, alpha: float | None = None, options: Any = None,
                 rank_stabilised: bool = False, start: str = "default"):
        super().__init__(dim, alpha, options, rank_stabilised, start)
        if start == "pissa":
            self.fold = ()  # a difference of two products

    def problem(self, layers: Sequence[Layer]) -> Problem | None:
        if self.start != "pissa":
            return None
        if self.options.use_tucker and any(layer.is_spatial for layer in layers):
            return Problem("PiSSA has no Tucker form; turn one of them off", "init")
        least = min(layers, key=lambda layer: min(layer.out, layer.fan_in))
        most = min(least.out, least.fan_in)
        return None if self.dim <= most else Problem(
            f"PiSSA takes at most {most} directions from {least.name}; set it to {most} or less")

    def shapes(self, layer: Layer) -> dict[str, Shape]:
        ones = (1,) * len(layer.kernel)
        up, r = (layer.out, self.dim, *ones), self.dim
        if self.options.use_tucker and layer.is_spatial:
            return {"up": up, "down": (r, layer.inp, *ones), "mid": (r, r, *layer.kernel)}
        return {"up": up, "down": (r, layer.inp, *layer.kernel)}

    def constants(self, layer: Layer, weight: Tensor) -> dict[str, Tensor]:
        if self.start != "pissa":
            return {}
        u, s, v = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        root = (s[:self.dim] / self.scale(layer)).sqrt()
        shapes = self.shapes(layer)
        return {"up0": (u[:, :self.dim] * root).reshape(shapes["up"]),
                "down0": (root[:, None] * v[:self.dim]).reshape(shapes["down"])}

    def constant_numbers(self, layer: Layer) -> int:
        return self.dim * (layer.out + layer.fan_in) if self.start == "pissa" else 0

    def init(self, p: Tensors, layer: Layer, weight: Tensor, from_zero: bool = True) -> None:
        if "up0" in p:
            p["up"].copy_(p["up0"])
            p["down"].copy_(p["down0"])
            return
        for name in self.keys.keys() & p.keys():
            if name == "up" and from_zero:
                p[name].zero_()
            else:
                self.fill(p[name])

    def delta(self, p: Tensors, layer: Layer, weight: Tensor | None = None,
              multiplier: float = 1.0) -> Tensor:
        up, down = _moved(p)
        if "mid" in p:
            return torch.einsum("mn...,pm,nq->pq...", p["mid"], up.flatten(1), down.flatten(1))
        return (up.flatten(1) @ down.flatten(1)).view(layer.shape)

    def factors(self, p: Tensors, layer: Layer,
                weight: Tensor) -> tuple[Tensor, Tensor] | None:
        up, down = _moved(p)
        if "mid" in p:
            down = torch.einsum("mn...,nq->mq...", p["mid"], down.flatten(1))
        return up.flatten(1), down.flatten(1)

    def cost(self, layer: Layer) -> Cost:
        r = self.dim * (2 if self.start == "pissa" else 1)
        token = 3.0 * r * (layer.out + layer.fan_in)
        joined = r * (layer.out + layer.fan_in) if self.start == "pissa" else 0.0
        return Cost(token, 4.0 * r * layer.out * layer.fan_in, kept=r, made=joined)

    def aside(self, p: Tensors, x: Tensor, layer: Layer, op: Operator, factor: float,
              y: Tensor | None) -> Tensor:
        up, down = _moved(p)
        if "mid" in p:
            hidden = op(pointwise(x, down, 1.0, None), p["mid"])
        else:
            hidden = op(x, down)
        ones = (1,) * len(layer.kernel)
        return pointwise(hidden, up.reshape(layer.out, -1, *ones), factor, y)

    def squared_rows(self, p: Tensors, layer: Layer, weight: Tensor,
                     factor: float) -> Tensor | None:
        """|w|^2 + 2 f up (down w) + f^2 up (down down^T) up^T, row by row."""
        if "mid" in p:
            return None
        up, down = (t.flatten(1) for t in _moved(p))
        matrix = weight.flatten(1)
        up = up * factor
        squares = torch.linalg.vector_norm(matrix, dim=1).square()
        return squares + ((2 * (matrix @ down.t()) + up @ (down @ down.t())) * up).sum(1)

    def drop_ranks(self, p: dict[str, Tensor], share: float) -> dict[str, Tensor]:
        """With PiSSA a rank goes with its start: what is left is still a difference."""
        mask = rank_mask(p["down"], 0, share)
        return {**p, **{name: p[name] * mask for name in ("down", "down0") if name in p}}

    def shrink(self, p: Tensors, ratio: float) -> None:
        if "up0" not in p:
            return super().shrink(p, ratio)
        for name in ("up", "down"):
            p[name].copy_(torch.lerp(p[f"{name}0"], p[name], ratio))

    def file_alpha(self, layer: Layer) -> float | None:
        return self.scale(layer) * self.dim * (2 if self.start == "pissa" else 1)

    def file_shapes(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        if self.start != "pissa":
            return super().file_shapes(shapes)
        (o, r, *ones), (_, *fan) = shapes["up"], shapes["down"]
        return {self.keys["up"]: (o, 2 * r, *ones), self.keys["down"]: (2 * r, *fan)}

    def to_file(self, p: Tensors) -> dict[str, Tensor]:
        up, down = _moved(p)
        return super().to_file({**p, "up": up, "down": down})

    @classmethod
    def layer_shape(cls, found: Mapping[str, Shape]) -> tuple[Shape, bool] | None:
        up, down = found["lora_up.weight"], found["lora_down.weight"]
        return (up[0], down[1], *found.get("lora_mid.weight", down)[2:]), True

    @classmethod
    def read(cls, found: Mapping[str, Shape]) -> tuple[int, Any] | None:
        if not cls.has(found, "lora_up.weight", "lora_down.weight"):
            return None
        return found["lora_down.weight"][0], LoraOptions("lora_mid.weight" in found)


def _moved(p: Tensors) -> tuple[Tensor, Tensor]:
    """(up, down); with PiSSA those of the difference to the start."""
    if "up0" not in p:
        return p["up"], p["down"]
    return torch.cat([p["up"], -p["up0"]], 1), torch.cat([p["down"], p["down0"]], 0)
