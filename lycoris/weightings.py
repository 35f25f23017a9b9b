"""Weightings of the loss over the timesteps: one row each.

Each is given as the weight of the squared error of the clean picture x0, and so means the same
whatever the model predicts: a prediction's own squared error is larger than that of x0 by
`objective.gain(snr)`. All are finite at a signal-to-noise ratio of 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .objectives import LEAST_SNR, Objective
from .settings import LossConfig

DEBIASED_SNR = 1e-4  # below it debiased estimation rises no further


@dataclass(frozen=True)
class Weighting:
    """`of_x0` is f(snr (b,), settings) -> (b,), None for one that leaves the loss as it is; `uses`
    are the settings it reads."""

    of_x0: Callable[[Tensor, LossConfig], Tensor] | None
    uses: tuple[str, ...] = ()


def min_snr(snr: Tensor, settings: LossConfig) -> Tensor:
    """Hang et al. 2023, arXiv 2303.09556, eq. 5."""
    return snr.clamp_max(settings.snr_gamma)


def soft_min_snr(snr: Tensor, settings: LossConfig) -> Tensor:
    """min(snr, gamma) without its corner (Crowson et al. 2024, arXiv 2401.11605, sec. 4.4)."""
    return snr * settings.snr_gamma / (snr + settings.snr_gamma)


def debiased(snr: Tensor, settings: LossConfig) -> Tensor:
    """1 / sqrt(snr) for the noise (Yu et al. 2023, arXiv 2310.08442)."""
    return snr / snr.clamp_min(DEBIASED_SNR).sqrt()


def p2(snr: Tensor, settings: LossConfig) -> Tensor:
    """1 / (k + snr)^gamma for the noise (Choi et al. 2022, arXiv 2204.00227, eq. 8)."""
    return snr / (settings.p2_k + snr) ** settings.p2_gamma


ROWS: dict[str, Weighting] = {
    "none": Weighting(None),
    "min-snr": Weighting(min_snr, ("snr_gamma",)),
    "soft-min-snr": Weighting(soft_min_snr, ("snr_gamma",)),
    "debiased": Weighting(debiased),
    "p2": Weighting(p2, ("p2_gamma", "p2_k")),
}


def weigh(objective: Objective, t: Tensor, settings: LossConfig) -> Tensor | None:
    """The weight of each sample's loss, (b,); None where all count alike."""
    row = ROWS[settings.weighting]
    if row.of_x0 is None:
        return None
    snr = objective.snr(t).clamp_min(LEAST_SNR)
    return row.of_x0(snr, settings) / objective.gain(snr)
