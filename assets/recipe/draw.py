"""Scenes by chance, and pictures of them: the whole world that the base model knows."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from PIL import Image

from .backgrounds import paint_background
from .canvas import Canvas
from .creatures import Creature, creature_named, creature_names, paint_creature
from .objects import paint_object
from .words import (
    COLOURS,
    OBJECTS,
    OPENINGS,
    PLACES,
    SCENERIES,
    SIZES,
    STYLES,
    Scene,
    is_held_out,
    visible_colours,
)

PIXELS = 64
CREATURE_SHARE = 0.14
_SHIFTS = {
    "": (0.0, 0.0),
    "on the left": (-0.2, 0.0),
    "on the right": (0.2, 0.0),
    "at the top": (0.0, -0.18),
    "at the bottom": (0.0, 0.18),
}


def sample_object(random: Random) -> Scene:
    """An object in any colour, style, size and place; held-out pairs are among them."""
    background = random.choice(list(COLOURS) if random.random() < 0.68 else SCENERIES)
    size = random.choice(("", "", "", "", *SIZES))
    place = random.choice(("",) * 4 + PLACES) if size != "big" else ""
    return Scene(
        thing=random.choice(OBJECTS),
        colour=random.choice(visible_colours(background)),
        background=background,
        style=random.choice(("", "", "", "", *STYLES)),
        size=size,
        place=place,
        seed=random.randrange(1 << 30),
    )


def sample_creature(random: Random) -> Scene:
    """A creature out of the fixed names, mostly in its own colour."""
    name = random.choice(creature_names())
    scene = sample_object(random)
    style = "" if scene.style == "outlined" else scene.style
    scene = replace(scene, thing=name, colour="", style=style)
    visible = visible_colours(scene.background)
    if creature_named(name).colour not in visible or random.random() < 0.1:
        scene = replace(scene, colour=random.choice(visible))
    return scene


def sample_training(random: Random) -> tuple[Scene, str]:
    """A scene of the base's training set and its caption."""
    sample = sample_creature if random.random() < CREATURE_SHARE else sample_object
    scene = sample(random)
    while scene.colour and is_held_out(scene.colour, scene.thing):
        scene = sample(random)
    opening = random.choice(OPENINGS) if random.random() < 0.3 else ""
    return scene, scene.caption(opening, with_background=random.random() < 0.92)


def paint(scene: Scene, pixels: int = PIXELS, creature: Creature | None = None) -> Image.Image:
    """The picture of a scene: the same for the same scene, at any size.

    A thing that is no object is painted as the creature of that name, or as the one given.
    """
    random = Random(scene.seed)
    canvas = Canvas(pixels)
    paint_background(canvas, scene.background, random)
    place = _layout(scene, random)
    if scene.thing in OBJECTS:
        paint_object(canvas, scene, place)
    else:
        paint_creature(canvas, creature or creature_named(scene.thing), scene, place)
    return canvas.finished()


def _layout(scene: Scene, random: Random) -> tuple[float, float, float]:
    shift_x, shift_y = _SHIFTS[scene.place]
    if scene.size == "small":
        radius = random.uniform(0.19, 0.2)
    elif scene.size == "big":
        radius = random.uniform(0.385, 0.41)
    else:
        radius = random.uniform(0.255, 0.27) if scene.place else random.uniform(0.285, 0.31)
    drop = 0.0
    if scene.thing not in OBJECTS:  # a creature has something on its head
        radius, drop = radius * 0.9, radius * 0.14
    x = 0.5 + shift_x + random.uniform(-0.02, 0.02)
    y = 0.5 + shift_y + random.uniform(-0.02, 0.02) + drop
    return x, y, radius


def grid(pictures: Sequence[Image.Image], columns: int, scale: int = 2) -> Image.Image:
    """Pictures side by side on white."""
    gap = 2
    side = pictures[0].width * scale
    rows = -(-len(pictures) // columns)
    size = (columns * (side + gap) - gap, rows * (side + gap) - gap)
    sheet = Image.new("RGB", size, (255, 255, 255))
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        large = picture.resize((side, side), Image.Resampling.BICUBIC)
        sheet.paste(large, (column * (side + gap), row * (side + gap)))
    return sheet
