"""What the network is asked to predict.

All are affine in the clean latents x0 and the noise n: x_t = a x0 + s n with a^2 + s^2 = 1. The
samplers are diffusers', told the same prediction type and schedule by the model's own config.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from .errors import ModelFileError
from .knobs import nearest

LEAST_SNR = 1e-12  # what stands for 0 in a division


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
        return squared / (1 - squared).clamp_min(LEAST_SNR)

    def target(self, x0: Tensor, n: Tensor, t: Tensor) -> Tensor:
        raise NotImplementedError

    def gain(self, snr: Tensor) -> Tensor:
        """The target's squared error per squared error of x0, at these ratios, (b,)."""
        raise NotImplementedError


class Epsilon(Objective):
    """Predict the noise (Ho et al. 2020, arXiv 2006.11239, eq. 14)."""

    name = "epsilon"

    def target(self, x0: Tensor, n: Tensor, t: Tensor) -> Tensor:
        return n

    def gain(self, snr: Tensor) -> Tensor:
        return snr


class Velocity(Objective):
    """Predict v = a n - s x0 (Salimans & Ho 2022, arXiv 2202.00512, app. D)."""

    name = "v_prediction"

    def target(self, x0: Tensor, n: Tensor, t: Tensor) -> Tensor:
        a, s = self.coefficients(t, x0)
        return a * n - s * x0

    def gain(self, snr: Tensor) -> Tensor:
        return snr + 1


OBJECTIVES = {kind.name: kind for kind in (Epsilon, Velocity)}


def make(prediction_type: str, alphas_cumprod: Tensor) -> Objective:
    """The objective a scheduler's config names; ModelFileError for one we do not train."""
    if prediction_type not in OBJECTIVES:
        raise ModelFileError(
            f"The model predicts {prediction_type!r}; trained are {', '.join(OBJECTIVES)}."
            + nearest(prediction_type, OBJECTIVES),
            "Check prediction_type in its scheduler/scheduler_config.json.")
    return OBJECTIVES[prediction_type](alphas_cumprod)


def zero_terminal(alphas_cumprod: Tensor) -> Tensor:
    """The schedule moved and stretched so that its last timestep is noise alone and its first stays
    (Lin et al. 2023, arXiv 2305.08891, alg. 1), (timesteps,)."""
    root = alphas_cumprod.double().sqrt()
    first, last = root[0].clone(), root[-1].clone()
    return ((root - last) * first / (first - last)).square().to(alphas_cumprod.dtype)


def alphas_cumprod(scheduler: Mapping[str, Any]) -> Tensor:
    """The schedule that a scheduler's config describes, (timesteps,) in fp32, by diffusers' names
    and defaults; ModelFileError for a course of betas that is not known."""
    count = int(scheduler.get("num_train_timesteps", 1000))
    start, end = scheduler.get("beta_start", 0.0001), scheduler.get("beta_end", 0.02)
    course = scheduler.get("beta_schedule", "linear")
    if (trained := scheduler.get("trained_betas")) is not None:
        betas = torch.tensor(trained, dtype=torch.float32)
    elif course == "linear":
        betas = torch.linspace(start, end, count)
    elif course == "scaled_linear":
        betas = torch.linspace(start ** 0.5, end ** 0.5, count).square()
    elif course == "squaredcos_cap_v2":
        at = torch.arange(count + 1, dtype=torch.float64) / count
        level = ((at + 0.008) / 1.008 * torch.pi / 2).cos().square()
        betas = (1 - level[1:] / level[:-1]).clamp_max(0.999).float()
    else:
        raise ModelFileError(f"The model's schedule is {course!r}, which is not known here.",
                             "Check beta_schedule in its scheduler/scheduler_config.json.")
    found = (1 - betas).cumprod(0)
    return zero_terminal(found) if scheduler.get("rescale_betas_zero_snr") else found
