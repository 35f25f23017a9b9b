"""T-LoRA: the noisier the picture, the fewer ranks take part.

    dW(t) = p diag(l m_t) q - p0 diag(l0 m_t) q0        p (o, r), l (r), q (r, i K)

The factors start as singular triplets p0, l0, q0 of W or of a random matrix, and m_t leaves the
first ((T - t) / T)^power (r - r_min) + r_min ranks at timestep t (Soboleva et al. 2025,
arXiv 2507.05964). The start is in the file, so that the file alone gives dW back; merged
into a base, where there is no timestep, all ranks count. DoRA is refused: it holds one W' to its
lengths, and here is another W' at every timestep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from ..knobs import Knob
from ..products import pointwise, rank_mask
from . import Algorithm, Cost, Layer, Operator, Problem, Shape, Tensors


@dataclass(frozen=True)
class TloraOptions:
    directions: Annotated[str, Knob("Which singular directions it starts from: the base's leading, "
                                    "middle or last ones, or a random matrix's.",
                                    choices=("last", "middle", "principal", "random"))] = "last"
    min_rank: Annotated[int, Knob("Ranks that take part even in the noisiest pictures.",
                                  1, 1024)] = 1
    power: Annotated[float, Knob("Above 1: ranks are given back later.", 0.1, 10, 0.1)] = 1.0
    timesteps: Annotated[int, Knob("Noise levels of the base.", 1, 100_000)] = 1000
    store_start: Annotated[bool, Knob("Keep the start in the file: twice the size, but the file "
                                      "alone is enough. Off: only with principal directions.",
                                      label="Start in the file")] = True


class Tlora(Algorithm):
    name = "tlora"
    label = "T-LoRA"
    about = ("A LoRA that uses few ranks on noisy pictures and all on clear ones: learns details "
             "from very few pictures without copying their composition.")
    advice = ("For one to five pictures, where LoRA repeats poses and backgrounds. The effect is "
              "lycogui's own while painting; other programs get the merged or converted form.")
    size = "r (o + i K + 1)"
    order = 10
    keys = {"q": "q_layer.weight", "p": "p_layer.weight", "scales": "lambda_layer",
            "q0": "q_base.weight", "p0": "p_base.weight", "scales0": "lambda_base",
            "schedule": "rank_schedule"}
    frozen = frozenset({"q0", "p0", "scales0", "schedule"})
    ranked = {"scales": 1}
    timed = True
    Options = TloraOptions

    def problem(self, layers: Sequence[Layer]) -> Problem | None:
        if self.options.store_start or self.options.directions == "principal":
            return None
        return Problem("T-LoRA without its start in the file can only begin with the principal "
                       "directions; set directions to principal, or keep the start in the file",
                       "options")

    def _rank(self, layer: Layer) -> int:
        return min(self.dim, layer.out, layer.fan_in)

    def shapes(self, layer: Layer) -> dict[str, Shape]:
        r, ones = self._rank(layer), (1,) * len(layer.kernel)
        found: dict[str, Shape] = {"q": (r, *layer.shape[1:]), "p": (layer.out, r, *ones),
                                   "scales": (1, r)}
        if self.options.store_start:
            found |= {f"{name}0": shape for name, shape in found.items()}
        return found | {"schedule": (3,)}

    def file_alpha(self, layer: Layer) -> float | None:
        rank = self.fixed["q"][0] if self.fixed else self._rank(layer)
        return self.scale(layer) * rank

    def constants(self, layer: Layer, weight: Tensor) -> dict[str, Tensor]:
        return {} if self.options.store_start else self._triplets(layer, weight)

    def _triplets(self, layer: Layer, weight: Tensor) -> dict[str, Tensor]:
        r = self._rank(layer)
        matrix = weight.flatten(1)
        if self.options.directions == "random":
            matrix = torch.randn_like(matrix) / r
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        spare = len(s) - r
        first = {"last": spare, "middle": spare // 2}.get(self.options.directions, 0)
        chosen, shapes = slice(first, first + r), self.shapes(layer)
        return {"q0": v[chosen].reshape(shapes["q"]), "p0": u[:, chosen].reshape(shapes["p"]),
                "scales0": s[None, chosen]}

    def constant_numbers(self, layer: Layer) -> int:
        r = self._rank(layer)
        return 0 if self.options.store_start else r * (layer.out + layer.fan_in + 1)

    def init(self, p: Tensors, layer: Layer, weight: Tensor, from_zero: bool = True) -> None:
        start = self._triplets(layer, weight) if self.options.store_start else p
        for name in ("q", "p", "scales"):
            p[name].copy_(start[f"{name}0"])
            if self.options.store_start:
                p[f"{name}0"].copy_(start[f"{name}0"])
        options = self.options
        p["schedule"].copy_(torch.tensor(
            [options.min_rank, options.power, options.timesteps], dtype=p["schedule"].dtype))

    def delta(self, p: Tensors, layer: Layer, weight: Tensor | None = None,
              multiplier: float = 1.0) -> Tensor:
        up, down, scales = _both(p)
        return ((up.flatten(1) * scales) @ down.flatten(1)).view(layer.shape)

    def factors(self, p: Tensors, layer: Layer,
                weight: Tensor) -> tuple[Tensor, Tensor] | None:
        up, down, scales = _both(p)
        return up.flatten(1) * scales, down.flatten(1)

    def cost(self, layer: Layer) -> Cost:
        r = self._rank(layer)
        return Cost(6.0 * r * (layer.out + layer.fan_in), 8.0 * r * layer.out * layer.fan_in,
                    kept=4.0 * r, made=2.0 * r * (layer.out + layer.fan_in))

    def aside(self, p: Tensors, x: Tensor, layer: Layer, op: Operator, factor: float,
              y: Tensor | None) -> Tensor:
        up, down, scales = _both(p)
        if "t" in p:
            scales = scales * self._mask(p["t"], up.shape[1] // 2).repeat(1, 2)
        hidden = op(x, down)
        if layer.kind == "linear":
            scales = scales.view(-1, *(1 for _ in hidden.shape[2:]), scales.shape[-1])
        else:
            scales = scales.view(-1, scales.shape[-1], *(1 for _ in layer.kernel))
        if scales.shape[0] not in (1, hidden.shape[0]):  # guidance paints two for each timestep
            scales = scales.repeat(hidden.shape[0] // scales.shape[0], *(1,) * (scales.ndim - 1))
        return pointwise(hidden * scales.to(hidden.dtype), up, factor, y)

    def _mask(self, t: Tensor, rank: int) -> Tensor:
        """(b, r): which ranks take part at each of the timesteps t (b,)."""
        options = self.options
        share = ((options.timesteps - t.float()) / options.timesteps).clamp(0, 1) ** options.power
        lowest = min(options.min_rank, rank)
        active = (share * (rank - lowest)).floor() + lowest
        return (torch.arange(rank, device=t.device) < active[:, None]).float()

    def to_file(self, p: Tensors) -> dict[str, Tensor]:
        kept = set() if self.options.store_start else {"q0", "p0", "scales0"}
        return super().to_file({name: t for name, t in p.items() if name not in kept})

    def drop_ranks(self, p: dict[str, Tensor], share: float) -> dict[str, Tensor]:
        """A rank goes with its start: what is left is still a difference."""
        mask = rank_mask(p["scales"], 1, share)
        return {**p, "scales": p["scales"] * mask, "scales0": p["scales0"] * mask}

    def shrink(self, p: Tensors, ratio: float) -> None:
        for name in ("q", "p", "scales"):
            p[name].copy_(torch.lerp(p[f"{name}0"], p[name], ratio))

    def fits(self, shapes: Mapping[str, Shape], layer: Layer) -> bool:
        """Files of the reference package have no schedule."""
        return super().fits({"schedule": (3,), **shapes}, layer)

    @classmethod
    def layer_shape(cls, found: Mapping[str, Shape]) -> tuple[Shape, bool] | None:
        p, q = found["p_layer.weight"], found["q_layer.weight"]
        return ((p[0], *q[1:]), True) if "q_base.weight" in found else None

    @classmethod
    def read(cls, found: Mapping[str, Shape]) -> tuple[int, Any] | None:
        if not cls.has(found, "q_layer.weight", "p_layer.weight", "lambda_layer"):
            return None
        stored = "q_base.weight" in found
        return found["q_layer.weight"][0], TloraOptions(
            directions="last" if stored else "principal", store_start=stored)

    def with_facts(self, found: Mapping[str, Tensor]) -> Algorithm:
        made = super().with_facts(found)
        if "rank_schedule" not in found:
            return made
        least, power, timesteps = found["rank_schedule"].flatten().tolist()
        old = self.options
        return made.copied(options=TloraOptions(old.directions, round(least), power,
                                                round(timesteps), old.store_start))


def _both(p: Tensors) -> tuple[Tensor, Tensor, Tensor]:
    """(up, down, scales) of what was learned and, with a minus, of the start, side by side."""
    return (torch.cat([p["p"], p["p0"]], 1), torch.cat([p["q"], p["q0"]], 0),
            torch.cat([p["scales"], -p["scales0"]], 1))
