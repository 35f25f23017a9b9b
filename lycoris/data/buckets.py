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
def choose(size: tuple[int, int], resolution: int, step: int, keep_shape: bool,
           enlarge: bool = True) -> tuple[int, int]:
    """The bucket (width, height) for a picture: nearest aspect ratio, then the larger area.

    Without `enlarge`, one that no bucket fits into gets its own sides, rounded down to `step`.
    """
    square = max(step, resolution // step * step)
    if not keep_shape:
        return (square, square) if enlarge else (_down(min(*size, square), step),) * 2
    aspect = math.log(size[0] / size[1])
    found = min(shapes(resolution, step),
                key=lambda s: (round(abs(math.log(s[0] / s[1]) - aspect), 6), -s[0] * s[1]))
    if enlarge or (size[0] >= found[0] and size[1] >= found[1]):
        return found
    longest = _down(round(min(size) * MAX_ASPECT), step)
    width, height = (min(_down(side, step), longest) for side in size)
    while width * height > resolution * resolution and max(width, height) > step:
        width, height = (width - step, height) if width >= height else (width, height - step)
    return width, height


def cover(size: tuple[int, int], bucket: tuple[int, int], multiple: int) -> tuple[int, int]:
    """The least (width, height) of a picture that is no smaller than its bucket, its shape kept up
    to a `multiple` of pixels: what random crops are cut out of."""
    scale = max(bucket[0] / size[0], bucket[1] / size[1])
    width, height = (max(own, int(side * scale + 1e-6) // multiple * multiple)
                     for side, own in zip(size, bucket, strict=True))
    return width, height


def _down(side: int, step: int) -> int:
    return max(step, side // step * step)
