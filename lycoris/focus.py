"""What the loss of a run dwells on, before it runs: how often each timestep comes, how much it
counts, and which settings have a say in it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from . import distances, objectives, timesteps, weightings
from .families import Family
from .settings import LossConfig

BINS = 100  # into which the timesteps are put


@dataclass(frozen=True)
class Focus:
    """Of `count` timesteps in BINS equal parts: how often each part is drawn, where 1 is evenly,
    and the weight of an error in its middle. `zero_terminal`: is the last one noise alone?"""

    count: int
    often: tuple[float, ...]
    weight: tuple[float, ...]
    zero_terminal: bool


def of(loss: LossConfig, family: Family) -> Focus:
    """ConfigError where no timestep is left; ModelFileError for a schedule that is not known."""
    scheduler = family.scheduler_config
    objective = objectives.make(scheduler.get("prediction_type", "epsilon"),
                                objectives.alphas_cumprod(scheduler))
    count = objective.timesteps
    middles = ((torch.arange(BINS) + 0.5) * count / BINS).long()
    weight = weightings.weigh(objective, middles, loss)
    return Focus(
        count, tuple(timesteps.density(loss, count, BINS).tolist()),
        tuple((torch.ones(BINS) if weight is None else weight).tolist()),
        bool(objective.snr(torch.tensor([count - 1]))[0] < objectives.LEAST_SNR))


def used(loss: LossConfig) -> dict[str, bool]:
    """{path: does it mean anything} of the settings that belong to some choices alone."""
    limited = distances.ROWS[loss.distance].limited
    found = {"loss.huber_c": limited, "loss.huber_schedule": limited,
             "loss.noise_offset_random": bool(loss.noise_offset),
             "loss.pyramid_discount": bool(loss.pyramid_iterations)}
    for rows, chosen in ((weightings.ROWS, loss.weighting), (timesteps.ROWS, loss.timesteps)):
        for row in rows.values():
            for name in row.uses:
                found[f"loss.{name}"] = name in rows[chosen].uses
    return found
