"""Latents of all pictures, encoded once before the first step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import DatasetError
from ..families import Model
from . import folder

GROUP = 8  # the most pictures that are encoded together,
GROUP_PIXELS = 2**20  # and the most pixels: four of 512 x 512, one of 1024 x 1024


def encode(model: Model, pictures: Sequence[Path], buckets: Sequence[tuple[int, int]],
           progress: Callable[[int, int], None]) -> list[Tensor]:
    """The latents of each picture, (c, h, w) fp32 on the CPU, in the order given.

    Raises DatasetError naming every damaged picture. Groups are the same on every run, so the
    latents are too.
    """
    found: list[Tensor | None] = [None] * len(pictures)
    damaged: list[DatasetError] = []
    done = 0
    for bucket in sorted(set(buckets)):
        members = [i for i, own in enumerate(buckets) if own == bucket]
        size = max(1, min(GROUP, GROUP_PIXELS // (bucket[0] * bucket[1])))
        for start in range(0, len(members), size):
            group = members[start:start + size]
            pixels = []
            for index in group:
                try:
                    pixels.append(folder.fit(folder.decode(pictures[index]), bucket))
                except DatasetError as error:
                    damaged.append(error)
            if not damaged:
                for index, latents in zip(group, _together(model, pixels), strict=True):
                    found[index] = latents
            done += len(group)
            progress(done, len(pictures))
    if damaged:
        raise DatasetError(f"{len(damaged)} pictures cannot be used: "
                           + " ".join(error.message for error in damaged[:10]),
                           damaged[0].fix, [path for error in damaged for path in error.paths])
    return [latents for latents in found if latents is not None]


def _together(model: Model, pixels: list[Tensor]) -> Tensor:
    """The latents of pictures of one size, one by one where memory is short."""
    try:
        return model.encode_image(torch.stack(pixels)).cpu()
    except torch.OutOfMemoryError:
        if len(pixels) == 1:
            raise
    return torch.cat([_together(model, [each]) for each in pixels])
