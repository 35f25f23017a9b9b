"""Which timesteps are drawn how often: one row each, the inverse of a distribution function.

A timestep is a function of one uniform number u in [0, 1), so that each sample takes one draw from
its stream whatever the density, and a larger u is a noisier timestep under every one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from . import streams
from .errors import ConfigError
from .settings import LossConfig

GRID = 1 << 14  # points from which a density is read off


@dataclass(frozen=True)
class Density:
    """`inverse` is f(u, settings) -> the share of the range, both in 0..1 and rising; `uses` are
    the settings it reads."""

    inverse: Callable[[Tensor, LossConfig], Tensor]
    uses: tuple[str, ...] = ()


def uniform(u: Tensor, settings: LossConfig) -> Tensor:
    return u


def logit_normal(u: Tensor, settings: LossConfig) -> Tensor:
    """The logistic function of a normal number (Esser et al. 2024, arXiv 2403.03206, eq. 19)."""
    return torch.sigmoid(settings.logit_mean + settings.logit_std * torch.special.ndtri(u))


def cosmap(u: Tensor, settings: LossConfig) -> Tensor:
    """The cosine schedule's density over a linear one (arXiv 2403.03206, eq. 21)."""
    return 1 - 1 / ((torch.pi / 2 * u).tan() + 1)


def detail(u: Tensor, settings: LossConfig) -> Tensor:
    return u ** 3


def composition(u: Tensor, settings: LossConfig) -> Tensor:
    return 1 - (1 - u) ** 3


ROWS: dict[str, Density] = {
    "uniform": Density(uniform),
    "logit-normal": Density(logit_normal, ("logit_mean", "logit_std")),
    "cosmap": Density(cosmap),
    "detail": Density(detail),
    "composition": Density(composition),
}


def bounds(settings: LossConfig, count: int) -> tuple[int, int]:
    """(first, end) of the timesteps drawn of a model that has `count`; ConfigError where there are
    none."""
    end = count if settings.timestep_max is None else min(settings.timestep_max, count)
    if settings.timestep_min >= end:
        raise ConfigError({"loss.timestep_min": (
            f"loss.timestep_min is {settings.timestep_min}, and the timesteps end before {end}; "
            f"choose at most {end - 1}")})
    return settings.timestep_min, end


def share(u: Tensor, settings: LossConfig) -> Tensor:
    """Where in the range of the timesteps u falls, 0..1, after the shift
    s x / (1 + (s - 1) x) (arXiv 2403.03206, eq. 23)."""
    x, shift = ROWS[settings.timesteps].inverse(u, settings), settings.timestep_shift
    return x if shift == 1 else shift * x / (1 + (shift - 1) * x)


def draw(settings: LossConfig, count: int, seed: int, step: int,
         places: tuple[int, ...]) -> list[int]:
    """A timestep for each place of a step."""
    first, end = bounds(settings, count)
    numbers = [streams.number(seed, "timestep", step, place) for place in places]
    if settings.timesteps == "uniform" and settings.timestep_shift == 1:
        return [first + number % (end - first) for number in numbers]  # exact: no rounding of u
    u = torch.tensor(numbers, dtype=torch.float64) / 2**63
    found = first + (share(u, settings) * (end - first)).long()
    return found.clamp(first, end - 1).tolist()


def density(settings: LossConfig, count: int, bins: int) -> Tensor:
    """How often each of `bins` equal parts of all timesteps is drawn, where evenly is 1, (bins,)"""
    first, end = bounds(settings, count)
    u = torch.linspace(0, 1, GRID + 1, dtype=torch.float64)
    x = first + share(u, settings).clamp(0, 1) * (end - first)
    edges = torch.linspace(0, count, bins + 1, dtype=torch.float64)
    right = torch.searchsorted(x, edges).clamp(1, GRID)
    low, high = x[right - 1], x[right]
    inside = ((edges - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    return (u[right - 1] + inside * (u[right] - u[right - 1])).diff() * bins
