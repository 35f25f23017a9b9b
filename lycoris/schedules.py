"""Courses of the learning rate: name -> f(progress in 0..1, settings) -> multiplier in 0..1."""

from __future__ import annotations

import math
from collections.abc import Callable

from .registry import pick
from .settings import OptimizerConfig

Course = Callable[[float, OptimizerConfig], float]


def constant(progress: float, how: OptimizerConfig) -> float:
    return 1.0


def linear(progress: float, how: OptimizerConfig) -> float:
    return 1.0 - progress


def cosine(progress: float, how: OptimizerConfig) -> float:
    """Half a cosine from 1 to 0 (Loshchilov & Hutter 2017, arXiv 1608.03983, eq. 5)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def restarts(progress: float, how: OptimizerConfig) -> float:
    """`cycles` such cosines of equal length, one after the other (the same paper, T_mult = 1)."""
    return cosine(how.cycles * progress % 1.0, how)


def polynomial(progress: float, how: OptimizerConfig) -> float:
    return (1.0 - progress) ** how.power


def rex(progress: float, how: OptimizerConfig) -> float:
    """Reflected exponential: high for long, then down (Chen et al. 2021, arXiv 2107.04197)."""
    return (1.0 - progress) / (1.0 - progress / 2)


def stable(progress: float, how: OptimizerConfig) -> float:
    """Level, and down in a line over the last share `decay` (Hu et al. 2024, arXiv 2404.06395)."""
    return min(1.0, (1.0 - progress) / how.decay)


SCHEDULES: dict[str, Course] = {
    "constant": constant, "cosine": cosine, "linear": linear, "cosine_with_restarts": restarts,
    "polynomial": polynomial, "rex": rex, "wsd": stable}


# Which courses ask for a setting that not all do.
USED = {"floor": tuple(SCHEDULES)[1:], "cycles": ("cosine_with_restarts",),
        "power": ("polynomial",), "decay": ("wsd",)}


def multiplier(how: OptimizerConfig, step: int, steps: int) -> float:
    """What the learning rate is multiplied with at `step` (counted from 0) of `steps`.

    The first `warmup` share of the steps rises linearly; it ends at 1 and never starts at 0, so
    no step is wasted. After it the course falls towards `floor`. ConfigError for a course there is
    not.
    """
    course = pick(SCHEDULES, how.schedule, "optimizer.schedule")
    rising = round(how.warmup * steps)
    if step < rising:
        return (step + 1) / rising
    falls = course((step - rising) / max(1, steps - rising), how)
    return how.floor + (1.0 - how.floor) * falls


def curve(how: OptimizerConfig, steps: int, points: int = 300) -> list[tuple[int, float]]:
    """[(step counted from 1, multiplier)] of at most about `points` steps, first and last too."""
    every = max(1, steps // points)
    chosen = sorted({*range(0, steps, every), round(how.warmup * steps), steps - 1})
    return [(step + 1, multiplier(how, step, steps)) for step in chosen if step < steps]
