"""What is between a prediction and its target: one row each, element by element."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .objectives import Objective
from .settings import LossConfig


@dataclass(frozen=True)
class Distance:
    """`of` is f(difference (b, ...), c (b, 1, ...)) -> (b, ...); `limited` where it reads c."""

    of: Callable[[Tensor, Tensor], Tensor]
    limited: bool = False


def l2(difference: Tensor, c: Tensor) -> Tensor:
    return difference.square()


def l1(difference: Tensor, c: Tensor) -> Tensor:
    return difference.abs()


def huber(difference: Tensor, c: Tensor) -> Tensor:
    """2c (sqrt(d^2 + c^2) - c): d^2 for small d, 2c |d| for large ones (pseudo-Huber; Khrapov et
    al. 2024, arXiv 2403.16728, eq. 4, twice)."""
    return 2 * c * ((difference.square() + c.square()).sqrt() - c)


def smooth_l1(difference: Tensor, c: Tensor) -> Tensor:
    """2 (sqrt(d^2 + c^2) - c): d^2 / c for small d, 2 |d| for large ones."""
    return 2 * ((difference.square() + c.square()).sqrt() - c)


ROWS: dict[str, Distance] = {
    "l2": Distance(l2),
    "l1": Distance(l1),
    "huber": Distance(huber, limited=True),
    "smooth-l1": Distance(smooth_l1, limited=True),
}


def limit(objective: Objective, t: Tensor, settings: LossConfig) -> Tensor:
    """Huber's c at the timesteps t, (b,): constant, c^(t / T), or by the signal-to-noise ratio,
    (1 - c) / (1 + 1 / sqrt(snr))^2 + c; the latter two fall from 1 to c (arXiv 2403.16728)."""
    c = torch.full(t.shape, settings.huber_c, device=t.device)
    if settings.huber_schedule == "exponential":
        return c ** (t / objective.timesteps)
    if settings.huber_schedule == "snr":
        root = objective.snr(t).sqrt()
        return (1 - c) * (root / (root + 1)).square() + c
    return c


def between(predicted: Tensor, target: Tensor, objective: Objective, t: Tensor,
            settings: LossConfig) -> Tensor:
    """The distance of each element, (b, ...)."""
    c = limit(objective, t, settings).view(-1, *[1] * (target.ndim - 1))
    return ROWS[settings.distance].of(predicted - target, c)
