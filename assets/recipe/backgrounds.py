"""The seventeen backgrounds: twelve flat colours and five sceneries."""

from random import Random

from .canvas import Canvas, Colour, mixed
from .words import COLOURS

_WHITE: Colour = (255, 255, 255)
# Sky above, sky below, ground.
_SCENERIES: dict[str, tuple[Colour, Colour, Colour]] = {
    "on grass": ((130, 195, 245), (205, 232, 252), (110, 190, 80)),
    "at night": ((14, 18, 60), (50, 45, 110), (24, 28, 58)),
    "in the snow": ((165, 190, 222), (215, 228, 245), (248, 250, 255)),
    "by the sea": ((150, 210, 250), (230, 242, 250), (40, 120, 190)),
    "in the desert": ((250, 190, 120), (253, 228, 170), (228, 185, 110)),
}


def varied(colour: Colour, random: Random, amount: int) -> Colour:
    red, green, blue = (
        max(0, min(255, value + random.randint(-amount, amount))) for value in colour
    )
    return (red, green, blue)


def paint_background(canvas: Canvas, background: str, random: Random) -> None:
    if background in COLOURS:
        softness = 0.0 if background == "black" else 0.14
        canvas.fill(mixed(varied(COLOURS[background], random, 3), _WHITE, softness))
        return
    sky_top, sky_bottom, ground = _SCENERIES[background]
    canvas.gradient(sky_top, sky_bottom)
    horizon = random.uniform(0.62, 0.69)
    if background in ("at night", "in the snow"):
        _scatter(canvas, background, horizon, random)
    if background in ("at night", "by the sea"):
        canvas.polygon([(0, horizon), (1, horizon), (1, 1), (0, 1)], ground)
    else:
        slope = random.uniform(-0.07, 0.07)
        hill = [(0, horizon + slope), (0.5, horizon - 0.05), (1, horizon - slope)]
        canvas.polygon([*hill, (1, 1), (0, 1)], ground)
    if background == "by the sea":
        _waves(canvas, horizon, random)


def _scatter(canvas: Canvas, background: str, horizon: float, random: Random) -> None:
    """Stars or snow flakes, one to a cell of a grid, so that they never pile up."""
    colour = (255, 248, 200) if background == "at night" else _WHITE
    for row in range(3):
        for column in range(5):
            x = (column + random.uniform(0.2, 0.8)) / 5
            y = (row + random.uniform(0.2, 0.8)) / 3 * (horizon - 0.06)
            canvas.disc(x, y, random.choice((0.011, 0.015)), colour)


def _waves(canvas: Canvas, horizon: float, random: Random) -> None:
    for row in range(3):
        y = horizon + (row + 0.7) * (1 - horizon) / 3.2
        for column in range(2):
            x = (column + random.uniform(0.1, 0.6)) / 2
            canvas.line([(x, y), (x + 0.15, y)], 0.022, (120, 185, 230))
