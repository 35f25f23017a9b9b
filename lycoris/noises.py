"""The noise that is added to latents, as functions of (seed, step, place in the step).

White noise comes first from its own stream; everything else is drawn from others, or after it, so
that a setting changes what it says and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from . import streams
from .settings import LossConfig


def noise_like(x0: Tensor, generators: Sequence[torch.Generator],
               settings: LossConfig | None = None) -> Tensor:
    """One noise per sample, each from its own stream, (b, ...) on x0's device; white where there
    are no settings."""
    drawn = [_one(sample, stream, settings) for sample, stream in zip(x0, generators, strict=True)]
    return torch.stack(drawn).to(x0.device, x0.dtype)


def draw(x0: Tensor, settings: LossConfig, seed: int, step: int,
         places: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(the noise that is to be predicted, the noise that is added) for a batch of a step.

    They differ by the input perturbation gamma n' (Ning et al. 2023, arXiv 2301.11706, alg. 1).
    """
    n = noise_like(x0, [streams.generator(seed, "noise", step, place) for place in places],
                   settings)
    if not settings.input_perturbation:
        return n, n
    more = noise_like(x0, [streams.generator(seed, "perturbation", step, place)
                           for place in places])
    return n, n + settings.input_perturbation * more


def _one(sample: Tensor, stream: torch.Generator, settings: LossConfig | None) -> Tensor:
    """(c, h, w) on the CPU."""
    n = torch.randn(sample.shape, generator=stream)
    if settings is None:
        return n
    if settings.noise_offset or settings.adaptive_offset:
        shift = torch.randn(sample.shape[0], *[1] * (sample.ndim - 1), generator=stream)
        n += _strength(sample, stream, settings) * shift
    if settings.pyramid_iterations:
        n = _pyramid(n, stream, settings)
    return n


def _strength(sample: Tensor, stream: torch.Generator, settings: LossConfig) -> float | Tensor:
    """Of the offset (N. Guttenberg's note on offset noise, 2023): one for the sample, or one for
    each channel, (c, 1, 1), with more where its mean is far from 0."""
    strength: float | Tensor = settings.noise_offset
    if settings.noise_offset_random:
        strength *= torch.rand((), generator=stream).item()
    if settings.adaptive_offset:
        mean = sample.float().cpu().mean(tuple(range(1, sample.ndim)), keepdim=True)
        strength = (strength + settings.adaptive_offset * mean.abs()).clamp_min(0)
    return strength


def _pyramid(n: Tensor, stream: torch.Generator, settings: LossConfig) -> Tensor:
    """n with noise of lower resolutions added, each weaker by the discount, at its own variance
    (multi-resolution noise, J. Whitaker's note, 2023). Sides shrink by a random factor of 2 to 4.
    """
    height, width = n.shape[-2:]
    for level in range(settings.pyramid_iterations):
        factor = (2 + 2 * torch.rand((), generator=stream).item()) ** level
        sides = max(1, int(height / factor)), max(1, int(width / factor))
        coarse = torch.randn(1, n.shape[0], *sides, generator=stream)
        n = n + settings.pyramid_discount ** level * interpolate(
            coarse, (height, width), mode="bilinear")[0]
        if 1 in sides:
            break
    return n / n.std()
