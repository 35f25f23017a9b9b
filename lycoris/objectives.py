"""What the network is asked to predict.

All are affine in the clean latents x0 and the noise n: x_t = a x0 + s n with a^2 + s^2 = 1. The
samplers are diffusers', told the same prediction type and schedule by the model's own config.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .errors import ModelFileError
from .knobs import nearest


class Objective:
    """A prediction type over a discrete schedule; `alphas_cumprod` is (timesteps,), a^2 per t."""

    name: ClassVar[str] = ""

    def __init__(self, alphas_cumprod: Tensor):
        self.alphas_cumprod = alphas_cumprod.float()

    @property
    def timesteps(self) -> int:
        return len(self.alphas_cumprod)

    def coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(a, s) for the timesteps t (b,), shaped to multiply `like` (b, ...)."""
        squared = self.alphas_cumprod.to(like.device)[t].view(-1, *[1] * (like.ndim - 1))
        return squared.sqrt(), (1 - squared).sqrt()

    def noised(self, x0: Tensor, n: Tensor, t: Tensor) -> Tensor:
        a, s = self.coefficients(t, x0)
        return a * x0 + s * n

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio a^2 / s^2, (b,)."""
        squared = self.alphas_cumprod.to(t.device)[t]
        return squared / (1 - squared).clamp_min(1e-12)

    def target(self, x0: Tensor, n: Tensor, t: Tensor) -> Tensor:
        raise NotImplementedError

    def min_snr(self, t: Tensor, gamma: float) -> Tensor:
        """Weight of each sample's loss (Hang et al. 2023, arXiv 2303.09556, eq. 5 and 9), (b,)."""
        raise NotImplementedError


class Epsilon(Objective):
    """Predict the noise (Ho et al. 2020, arXiv 2006.11239, eq. 14)."""

    name = "epsilon"

    def target(self, x0: Tensor, n: Tensor, t: Tensor) -> Tensor:
        return n

    def min_snr(self, t: Tensor, gamma: float) -> Tensor:
        snr = self.snr(t)
        return snr.clamp_max(gamma) / snr.clamp_min(1e-12)


class Velocity(Objective):
    """Predict v = a n - s x0 (Salimans & Ho 2022, arXiv 2202.00512, app. D)."""

    name = "v_prediction"

    def target(self, x0: Tensor, n: Tensor, t: Tensor) -> Tensor:
        a, s = self.coefficients(t, x0)
        return a * n - s * x0

    def min_snr(self, t: Tensor, gamma: float) -> Tensor:
        snr = self.snr(t)
        return snr.clamp_max(gamma) / (snr + 1)


OBJECTIVES = {kind.name: kind for kind in (Epsilon, Velocity)}


def make(prediction_type: str, alphas_cumprod: Tensor) -> Objective:
    """The objective a scheduler's config names; ModelFileError for one we do not train."""
    if prediction_type not in OBJECTIVES:
        raise ModelFileError(
            f"The model predicts {prediction_type!r}; trained are {', '.join(OBJECTIVES)}."
            + nearest(prediction_type, OBJECTIVES),
            "Check prediction_type in its scheduler/scheduler_config.json.")
    return OBJECTIVES[prediction_type](alphas_cumprod)


def noise_like(x0: Tensor, generators: list[torch.Generator], offset: float = 0.0) -> Tensor:
    """One noise per sample, each from its own stream, (b, ...) on x0's device.

    `offset` adds one random shift per channel (the offset-noise note by N. Guttenberg, 2023).
    """
    drawn = []
    for sample, stream in zip(x0, generators, strict=True):
        n = torch.randn(sample.shape, generator=stream)
        if offset:
            n += offset * torch.randn(sample.shape[0], *[1] * (sample.ndim - 1), generator=stream)
        drawn.append(n)
    return torch.stack(drawn).to(x0.device, x0.dtype)
