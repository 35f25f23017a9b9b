"""Courses of the learning rate: name -> f(progress in 0..1) -> multiplier in 0..1."""

from __future__ import annotations

import math
from collections.abc import Callable


def constant(progress: float) -> float:
    return 1.0


def linear(progress: float) -> float:
    return 1.0 - progress


def cosine(progress: float) -> float:
    """Half a cosine from 1 to 0 (Loshchilov & Hutter 2017, arXiv 1608.03983, eq. 5)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": constant, "cosine": cosine, "linear": linear}


def multiplier(schedule: Callable[[float], float], step: int, steps: int, warmup: float) -> float:
    """What the learning rate is multiplied with at `step` (counted from 0) of `steps`.

    The first `warmup` share of the steps rises linearly; it ends at 1 and never starts at 0, so
    no step is wasted.
    """
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    return schedule((step - rising) / max(1, steps - rising))
