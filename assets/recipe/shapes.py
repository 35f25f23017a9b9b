"""The sixteen objects as outlines, in a local frame: centre (0, 0), radius about 1, y downwards."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Point = tuple[float, float]


@dataclass(frozen=True)
class Contour:
    """One closed outline; a hole cuts away what was drawn before it."""

    points: tuple[Point, ...]
    hole: bool = False


def rotated(points: Sequence[Point], angle: float) -> tuple[Point, ...]:
    cosine, sine = math.cos(angle), math.sin(angle)
    return tuple((x * cosine - y * sine, x * sine + y * cosine) for x, y in points)


def ellipse(
    x: float, y: float, width: float, height: float | None = None, hole: bool = False
) -> Contour:
    """An ellipse around (x, y); `width` and `height` are half axes."""
    height = width if height is None else height
    angles = [2 * math.pi * step / 60 for step in range(60)]
    points = tuple((x + width * math.cos(a), y + height * math.sin(a)) for a in angles)
    return Contour(points, hole)


def polygon(*points: Point) -> Contour:
    return Contour(tuple(points))


def box(left: float, top: float, right: float, bottom: float) -> Contour:
    return polygon((left, top), (right, top), (right, bottom), (left, bottom))


def arc(x: float, y: float, radius: float, start: float, end: float) -> list[Point]:
    """Points on a circle from angle `start` to `end`, in radians."""
    angles = [start + (end - start) * step / 30 for step in range(31)]
    return [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]


def star(tips: int, outer: float, inner: float) -> Contour:
    points = []
    for corner in range(2 * tips):
        radius = outer if corner % 2 == 0 else inner
        angle = math.pi * corner / tips
        points.append((radius * math.sin(angle), -radius * math.cos(angle)))
    return Contour(tuple(points))


def heart() -> Contour:
    points = []
    for step in range(72):
        t = 2 * math.pi * step / 72
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x / 16.5, -y / 16.5 - 0.08))
    return Contour(tuple(points))


def cross(arm: float = 0.34, reach: float = 0.95) -> Contour:
    corner = [(-arm, -reach), (arm, -reach), (arm, -arm)]
    points = [point for turn in range(4) for point in rotated(corner, turn * math.pi / 2)]
    return Contour(tuple(points))


def moon() -> Contour:
    """A crescent, open to the right: a circle with a bite of another circle."""
    bite_x, bite_radius = 0.5, 0.78
    meet_x = (0.95**2 - bite_radius**2 + bite_x**2) / (2 * bite_x)
    meet_y = math.sqrt(0.95**2 - meet_x**2)
    outer = math.atan2(meet_y, meet_x)
    inner = math.atan2(meet_y, meet_x - bite_x)
    points = arc(0, 0, 0.95, outer, 2 * math.pi - outer)
    points += arc(bite_x, 0, bite_radius, 2 * math.pi - inner, inner)
    return Contour(tuple((x + 0.12, y) for x, y in points))


def flower() -> tuple[Contour, ...]:
    petals = [(0.56 * math.sin(t), -0.56 * math.cos(t)) for t in _turns(5)]
    return (*(ellipse(x, y, 0.42) for x, y in petals), ellipse(0, 0, 0.4))


def _turns(count: int) -> list[float]:
    return [2 * math.pi * step / count for step in range(count)]


def cat() -> tuple[Contour, ...]:
    left = polygon((-0.86, 0.0), (-0.8, -0.98), (-0.1, -0.5))
    right = polygon((0.86, 0.0), (0.8, -0.98), (0.1, -0.5))
    return (ellipse(0, 0.14, 0.9, 0.78), left, right)


def mushroom() -> Contour:
    return Contour(tuple(arc(0, 0.05, 0.98, math.pi, 2 * math.pi)))


SHAPES: dict[str, Callable[[], tuple[Contour, ...]]] = {
    "circle": lambda: (ellipse(0, 0, 0.92),),
    "square": lambda: (box(-0.8, -0.8, 0.8, 0.8),),
    "triangle": lambda: (polygon((0, -0.95), (0.95, 0.72), (-0.95, 0.72)),),
    "star": lambda: (star(5, 1.05, 0.47),),
    "heart": lambda: (heart(),),
    "diamond": lambda: (polygon((0, -1.05), (0.74, 0), (0, 1.05), (-0.74, 0)),),
    "ring": lambda: (ellipse(0, 0, 0.95), ellipse(0, 0, 0.46, hole=True)),
    "cross": lambda: (cross(),),
    "moon": lambda: (moon(),),
    "flower": flower,
    "tree": lambda: (
        ellipse(0, -0.45, 0.62),
        ellipse(-0.42, -0.05, 0.46),
        ellipse(0.42, -0.05, 0.46),
    ),
    "house": lambda: (box(-0.72, -0.12, 0.72, 0.92),),
    "fish": lambda: (
        ellipse(-0.16, 0, 0.82, 0.56),
        polygon((0.4, 0), (1.05, -0.56), (1.05, 0.56)),
    ),
    "mushroom": lambda: (mushroom(),),
    "cat": cat,
    "boat": lambda: (polygon((-1.0, 0.3), (1.0, 0.3), (0.62, 0.88), (-0.62, 0.88)),),
}
# What stands a little askew; the others have an upright part of their own.
TILTED = set(SHAPES) - {"tree", "house", "fish", "mushroom", "cat", "boat"}
