"""Aspect-ratio buckets: pictures of similar shape are trained together at about the same area."""

from __future__ import annotations

import math
from functools import cache, lru_cache

MAX_ASPECT = 4.0  # beyond 4:1 a picture is cropped


@cache
def shapes(resolution: int, step: int) -> tuple[tuple[int, int], ...]:
    """All (width, height): multiples of `step`, area at most resolution squared, not over 4:1."""
    area = resolution * resolution
    found = set()
    for width in range(step, 2 * resolution + 1, step):
        height = area // width // step * step
        if height >= step and max(width / height, height / width) <= MAX_ASPECT:
            found |= {(width, height), (height, width)}
    square = max(step, resolution // step * step)
    return tuple(sorted(found | {(square, square)}))


@lru_cache(maxsize=1 << 16)
def choose(size: tuple[int, int], resolution: int, step: int, keep_shape: bool) -> tuple[int, int]:
    """The bucket (width, height) for a picture: nearest aspect ratio, then the larger area."""
    square = max(step, resolution // step * step)
    if not keep_shape:
        return square, square
    aspect = math.log(size[0] / size[1])
    return min(shapes(resolution, step),
               key=lambda s: (round(abs(math.log(s[0] / s[1]) - aspect), 6), -s[0] * s[1]))
