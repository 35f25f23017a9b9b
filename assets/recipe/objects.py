"""Painting one of the sixteen objects, or any other body, in a colour and a style."""

import math
from random import Random

from PIL import Image

from .backgrounds import varied
from .canvas import Canvas, Colour, Frame, mixed
from .shapes import SHAPES, TILTED, Contour, arc, box, ellipse, polygon, rotated
from .words import COLOURS, Scene

EDGE = 0.022  # width of every edge, as a fraction of the picture
OUTLINE = 0.055  # width of an `outlined` thing
DARK: Colour = (38, 34, 42)
WOOD: Colour = (115, 74, 42)
CREAM: Colour = (246, 233, 208)


def edge_colour(colour: Colour) -> Colour:
    """Darker than the filling; for a very dark filling, lighter."""
    return mixed(colour, (0, 0, 0), 0.5) if sum(colour) > 150 else (112, 112, 124)


def paint_body(frame: Frame, contours: tuple[Contour, ...], colour: Colour, style: str) -> None:
    """The coloured part of a thing: plain, striped, dotted, or its outline alone."""
    if style == "outlined":
        placed = frame.contours(contours)
        band = frame.canvas.mask(placed, OUTLINE)
        band.paste(0, (0, 0), frame.canvas.mask(placed))
        frame.canvas.paste(colour, band)
        return
    filling = _pattern(frame, colour, style) if style else colour
    frame.solid(contours, filling, edge_colour(colour), EDGE)


def _pattern(frame: Frame, colour: Colour, style: str) -> Image.Image:
    """White stripes or dots (gray ones on something light), in step with the thing's centre."""
    contrast = (255, 255, 255) if sum(colour) < 640 else (92, 92, 104)
    sheet = frame.canvas.sheet(colour)
    if style == "striped":
        for step in range(-9, 10):
            x = frame.x + step * 0.125
            sheet.line([(x - 0.5, frame.y - 1), (x + 0.5, frame.y + 1)], 0.052, contrast)
    else:
        for row in range(-6, 7):
            for column in range(-6, 7):
                x = frame.x + (column + 0.5 * (row % 2)) * 0.135
                sheet.disc(x, frame.y + row * 0.115, 0.032, contrast)
    return sheet.image


def paint_object(canvas: Canvas, scene: Scene, place: tuple[float, float, float]) -> None:
    """`place` is the centre and the radius."""
    random = Random(scene.seed + 1)
    frame = Frame(canvas, *place)
    colour = varied(COLOURS[scene.colour], random, 5)
    contours = SHAPES[scene.thing]()
    if scene.thing in TILTED:
        tilt = random.uniform(-0.12, 0.12)
        contours = tuple(Contour(rotated(c.points, tilt), c.hole) for c in contours)
    behind = _BEHIND.get(scene.thing)
    if behind:
        behind(frame)
    paint_body(frame, contours, colour, scene.style)
    details = _DETAILS.get(scene.thing)
    if details:
        details(frame, scene, colour)


def _trunk(frame: Frame) -> None:
    frame.solid([box(-0.17, 0.34, 0.17, 1.0)], WOOD, edge_colour(WOOD), EDGE)


def _stem(frame: Frame) -> None:
    stem = polygon((-0.3, 0.08), (0.3, 0.08), *_round_end(0.3, 0.7))
    frame.solid([stem], CREAM, (142, 122, 92), EDGE)


def _round_end(half_width: float, y: float) -> list[tuple[float, float]]:
    """The lower end of a stem, from right to left."""
    return arc(0, y, half_width, 0, math.pi)


def _mast_and_sail(frame: Frame) -> None:
    frame.solid([box(-0.16, -0.95, 0.0, 0.35)], WOOD, WOOD, 0)
    sail = polygon((0.12, -0.95), (0.12, 0.14), (0.88, 0.14))
    frame.solid([sail], (252, 250, 244), (112, 112, 120), EDGE)


def _flower_centre(frame: Frame, scene: Scene, _: Colour) -> None:
    frame.disc(0, 0, 0.33, (252, 214, 60) if scene.colour != "yellow" else (150, 86, 40))


def _house_details(frame: Frame, scene: Scene, colour: Colour) -> None:
    roof = mixed(colour, (0, 0, 0), 0.5) if scene.colour != "black" else (150, 60, 50)
    eaves = polygon((-0.95, -0.12), (0.95, -0.12), (0, -0.98))
    frame.solid([eaves], roof, mixed(roof, (0, 0, 0), 0.4), EDGE)
    frame.polygon(box(-0.5, 0.28, -0.04, 0.92).points, (92, 56, 34))
    frame.polygon(box(0.18, 0.22, 0.58, 0.6).points, (255, 240, 150))


def _fish_eye(frame: Frame, _: Scene, __: Colour) -> None:
    frame.disc(-0.56, -0.1, 0.2, (255, 255, 255))
    frame.disc(-0.58, -0.1, 0.11, DARK)


def _cat_face(frame: Frame, scene: Scene, colour: Colour) -> None:
    eyes = DARK if scene.colour != "black" else (250, 240, 130)
    if scene.style == "outlined":
        eyes = colour
    for side in (-1, 1):
        frame.solid([ellipse(side * 0.38, -0.04, 0.15, 0.21)], eyes, eyes, 0)
    frame.solid([ellipse(0, 0.5, 0.4, 0.26)], CREAM, CREAM, 0)
    frame.solid([ellipse(0, 0.36, 0.16, 0.12)], (232, 84, 112), (0, 0, 0), 0)


_BEHIND = {"tree": _trunk, "mushroom": _stem, "boat": _mast_and_sail}
_DETAILS = {
    "flower": _flower_centre,
    "house": _house_details,
    "fish": _fish_eye,
    "cat": _cat_face,
}
