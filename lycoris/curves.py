"""Loss curves as SVG: drawn from numbers, with the page's own colours (classes a and b)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, STRIP = 1100, 300, 44
LEFT, RIGHT, TOP = 56, 1088, 10
DASHED = 'stroke-dasharray="6 4"'
MARKS = 40  # for losses above what is drawn
MOST = 1500  # points of a line; a longer one is thinned


@dataclass(frozen=True)
class Curve:
    """`points` are (step, loss, moving mean, learning rate), `looks` (step, loss on what is held
    out); nan where a value is none."""

    name: str
    colour: str
    points: Sequence[tuple[int, float, float, float]]
    looks: Sequence[tuple[int, float]] = ()


def plot(curves: Sequence[Curve]) -> str:
    """Loss over steps, each step faint, the mean bold and what is held out dashed, and the learning
    rate below."""
    last = max(10, *(curve.points[-1][0] for curve in curves))
    losses = [value for curve in curves for _, loss, mean, _ in curve.points
              for value in (loss, mean) if math.isfinite(value)]
    means = [mean for curve in curves for mean in (*(point[2] for point in curve.points), *(
        loss for _, loss in curve.looks)) if math.isfinite(mean)]
    losses += means
    low, high = (min(losses), _upper(losses, means)) if losses else (0.0, 1.0)
    parts = [_grid(last, low, high, TOP, HEIGHT)]
    for curve in curves:
        drawn = (([p[:2] for p in curve.points], 1, 'opacity="0.3"'),
                 ([(p[0], p[2]) for p in curve.points], 2, ""), (curve.looks, 1.5, DASHED))
        for points, width, style in drawn:
            line = [(step, min(loss, high)) for step, loss in points if math.isfinite(loss)]
            parts.append(_line(line, last, (low, high), (TOP, HEIGHT), curve.colour,
                               f'stroke-width="{width}" {style}'))
    parts += [_beyond(curve, last, high) for curve in curves]
    most = max((p[3] for curve in curves for p in curve.points if math.isfinite(p[3])), default=0)
    top = HEIGHT + 40
    for curve in curves:
        line = [(p[0], p[3]) for p in curve.points if math.isfinite(p[3])]
        parts.append(_line(line, last, (0, most or 1), (top, top + STRIP), curve.colour,
                           'stroke-width="1.5" opacity="0.8"'))
    parts.append(f'<text x="{LEFT}" y="{top - 6}">learning rate, at most {most:.3g}</text>'
                 f'<text x="{LEFT - 8}" y="{HEIGHT + 16}" text-anchor="end">step</text>')
    return _svg("".join(parts), top + STRIP + 6, "Loss over steps: "
                + ", ".join(curve.name for curve in curves))


def difference(a: Curve, b: Curve) -> str:
    """The mean of A minus that of B at the steps both have, over a line at zero."""
    other = {point[0]: point[2] for point in b.points}
    line = [(step, mean - other[step]) for step, _, mean, _ in a.points
            if step in other and math.isfinite(mean - other[step])]
    if not line:
        return '<p class="faint">They have no step in common.</p>'
    last, height = max(10, line[-1][0]), 120
    reach = max(abs(value) for _, value in line[len(line) // 50:]) or 1e-6
    zero = (TOP + height) / 2
    parts = [_grid(last, -reach, reach, TOP, height, 2),
             f'<line x1="{LEFT}" x2="{RIGHT}" y1="{zero}" y2="{zero}" stroke="var(--faint)"/>']
    line = [(step, max(-reach, min(reach, value))) for step, value in line]
    parts.append(_line(line, last, (-reach, reach), (TOP, height), "", 'stroke-width="1.5"'))
    return _svg("".join(parts), height + 24, f"{a.name} minus {b.name}")


def _upper(losses: Sequence[float], means: Sequence[float]) -> float:
    """The highest value that is shown: a few steps far above all others would press those flat."""
    ranked = sorted(losses)
    usual = ranked[min(len(ranked) - 1, int(len(ranked) * 0.995))]
    shown = max(usual, max(means, default=usual)) or 1.0
    return next(value for value in reversed(ranked) if value <= 2 * shown)


def _beyond(curve: Curve, last: int, high: float) -> str:
    """A mark at the upper edge for each step whose loss lies above it, the highest ones; its value
    is in the title."""
    above = sorted((point for point in curve.points if high < point[1] < math.inf),
                   key=lambda point: -point[1])[:MARKS]
    return "".join(
        f'<path d="M{_x(step, last) - 4:.1f} {TOP + 1} h8 l-4 -7 z" fill="var(--{curve.colour})">'
        f"<title>{escape(curve.name)}, step {step:,}: {loss:.4g}</title></path>"
        for step, loss, _, _ in above)


def _svg(inner: str, height: float, label: str) -> str:
    return (f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(label)}">'
            f"{inner}</svg>")


def _grid(last: int, low: float, high: float, top: float, bottom: float, lines: int = 4) -> str:
    parts = []
    for value in _ticks(low, high, lines):
        y = bottom - (value - low) / ((high - low) or 1) * (bottom - top)
        parts.append(f'<line x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
                     f'stroke="var(--line)"/><text x="{LEFT - 8}" y="{y + 4:.1f}" '
                     f'text-anchor="end">{value:.3g}</text>')
    for step in _ticks(0, last, 6):
        at_end = step > 0.97 * last  # its number would be cut off
        parts.append(f'<text x="{_x(step, last):.1f}" y="{bottom + 16:.1f}" '
                     f'text-anchor="{"end" if at_end else "middle"}">{step:,g}</text>')
    return "".join(parts)


def _ticks(low: float, high: float, count: int) -> list[float]:
    """About so many round numbers: 1, 2 or 5 times a power of ten apart."""
    raw = ((high - low) or 1) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _x(step: float, last: int) -> float:
    return LEFT + (RIGHT - LEFT) * step / last


def _line(points: Sequence[tuple[int, float]], last: int, span: tuple[float, float],
          box: tuple[float, float], colour: str, style: str) -> str:
    if not points:
        return ""
    (low, high), (top, bottom) = span, box
    scale = (bottom - top) / ((high - low) or 1)
    places = [(_x(step, last), bottom - (value - low) * scale) for step, value in _thinned(points)]
    stroke = f"var(--{colour})" if colour else "var(--ink)"
    if len(places) == 1:  # no line yet
        return f'<circle cx="{places[0][0]:.1f}" cy="{places[0][1]:.1f}" r="3" fill="{stroke}"/>'
    drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return (f'<polyline points="{drawn}" fill="none" stroke="{stroke}" {style} '
            'stroke-linejoin="round"/>')


def _thinned(points: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    """Of each stretch the lowest and the highest, and the very last."""
    if len(points) <= MOST:
        return points
    stretch = -(-len(points) * 2 // MOST)
    found = []
    for start in range(0, len(points), stretch):
        part = points[start:start + stretch]
        ends = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
        found += sorted(ends)
    return [*found, points[-1]]
