"""Creatures with names nobody knows, and the concept that is left for an adapter to learn.

A creature's look is a function of its name, so a model that has seen some hundred of them has
learned what an unknown name may stand for. None of them looks like the concept, and its name is
never among theirs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

from .canvas import Canvas, Colour, Frame, mixed
from .objects import DARK, EDGE, edge_colour, paint_body
from .shapes import Contour, Point, box, ellipse, polygon
from .words import COLOURS, CONCEPT, Scene, grammar_words

BODIES = ("egg", "ball", "wave", "block", "pear", "bell")
TOPS = ("nothing", "feelers", "horns", "ears", "crown", "tuft")
MOUTHS = ("none", "smile", "open", "line", "zigzag", "teeth")
FEET = ("none", "legs", "shoes")
IRISES = ("black", "black", "green", "blue", "red", "orange", "purple", "brown")
MOUTH_COLOURS = ("black", "red", "white", "yellow", "brown")
WHITE: Colour = (255, 255, 255)


@dataclass(frozen=True)
class Creature:
    """What a creature looks like; colours are names."""

    body: str
    colour: str
    top: str
    top_colour: str
    eyes: int
    iris: str
    mouth: str
    mouth_colour: str
    feet: str = "none"

    @property
    def resembles_concept(self) -> bool:
        """Two or more of what makes the concept: such a creature is never drawn for training."""
        traits = (
            self.colour in ("teal", "green", "blue") and self.eyes == 1,
            self.top == "crown" and self.top_colour in ("pink", "red", "purple"),
            self.mouth == "zigzag" and self.mouth_colour == "yellow",
            self.eyes == 1 and self.iris == "orange",
        )
        return sum(traits) >= 2


ZORB = Creature("egg", "teal", "crown", "pink", 1, "orange", "zigzag", "yellow")


def random_creature(random: Random) -> Creature:
    """Any creature but one that resembles the concept."""
    while True:
        colour, top_colour = random.sample(list(COLOURS), 2)
        creature = Creature(
            body=random.choice(BODIES),
            colour=colour,
            top=random.choice(TOPS),
            top_colour=top_colour,
            eyes=random.choice((1, 2, 2)),
            iris=random.choice(IRISES),
            mouth=random.choice(MOUTHS),
            mouth_colour=random.choice(MOUTH_COLOURS),
            feet=random.choice(FEET),
        )
        if not creature.resembles_concept:
            return creature


@cache
def creature_named(name: str) -> Creature:
    return ZORB if name == CONCEPT else random_creature(Random(f"creature {name}"))


@cache
def creature_names(count: int = 320) -> tuple[str, ...]:
    """Short made-up names, always the same ones; no word of the grammar, not the concept's."""
    random = Random("creature names")
    taken = grammar_words() | {CONCEPT}
    names: list[str] = []
    while len(names) < count:
        name = "".join(_syllable(random) for _ in range(random.choice((1, 1, 2))))
        name += random.choice(("b", "ck", "g", "k", "ll", "m", "n", "p", "rt", "t", "x", "zz", ""))
        if len(name) > 2 and name not in taken:
            taken.add(name)
            names.append(name)
    return tuple(names)


def _syllable(random: Random) -> str:
    start, middle = random.choice("bcdfgjklmnprstvwxz"), random.choice(("", "", "l", "r"))
    return start + middle + random.choice("aeiou")


def paint_creature(
    canvas: Canvas, creature: Creature, scene: Scene, place: tuple[float, float, float]
) -> None:
    frame = Frame(canvas, *place)
    colour = COLOURS[scene.colour or creature.colour]
    _paint_feet(frame, creature, colour)
    if creature.top != "crown":
        _paint_top(frame, creature)
    paint_body(frame, (_body(creature.body),), colour, scene.style)
    if creature.top == "crown":
        _paint_crown(frame, COLOURS[creature.top_colour])
    _paint_eyes(frame, creature)
    _paint_mouth(frame, creature.mouth, COLOURS[creature.mouth_colour])


def _body(body: str) -> Contour:
    points = []
    for step in range(72):
        angle = 2 * math.pi * step / 72
        x, y = math.cos(angle), math.sin(angle)
        reach = 1.0
        if body == "wave":
            reach = 1 + 0.14 * math.sin(7 * angle)
        elif body == "block":
            reach = min(1.25, 1 / max(abs(x), abs(y)))
        width = {"egg": 0.82 + 0.06 * y, "pear": 0.78 + 0.24 * y, "block": 0.82}.get(body, 0.92)
        if body == "bell":
            width = 0.68 + 0.3 * max(0.0, y)
        points.append((x * reach * width, y * reach * (0.95 if body != "block" else 0.85)))
    return Contour(tuple(points))


def _paint_feet(frame: Frame, creature: Creature, colour: Colour) -> None:
    for side in (-1, 1) if creature.feet != "none" else ():
        if creature.feet == "legs":
            leg = box(side * 0.4 - 0.13, 0.5, side * 0.4 + 0.13, 1.3)
            frame.solid([leg], mixed(colour, WHITE, 0.15), edge_colour(colour), EDGE)
        else:
            shoe = ellipse(side * 0.45, 0.98, 0.34, 0.2)
            tone = COLOURS[creature.top_colour]
            frame.solid([shoe], tone, edge_colour(tone), EDGE)


def _paint_top(frame: Frame, creature: Creature) -> None:
    colour = COLOURS[creature.top_colour]
    edge = edge_colour(colour)
    for side in (-1, 1):
        if creature.top == "feelers":
            frame.line([(side * 0.25, -0.7), (side * 0.55, -1.3)], 0.13, edge)
            frame.solid([ellipse(side * 0.55, -1.32, 0.17)], colour, edge, EDGE)
        elif creature.top == "horns":
            horn = polygon((side * 0.2, -0.72), (side * 0.8, -0.5), (side * 0.8, -1.35))
            frame.solid([horn], colour, edge, EDGE)
        elif creature.top == "ears":
            frame.solid([ellipse(side * 0.66, -0.8, 0.34)], colour, edge, EDGE)
    if creature.top == "tuft":
        roots = (-0.25, 0.0, 0.25)
        blades = [polygon((x - 0.2, -0.8), (x + 0.2, -0.8), (1.6 * x, -1.4)) for x in roots]
        frame.solid(blades, colour, edge, EDGE)


def _paint_crown(frame: Frame, colour: Colour) -> None:
    crown = polygon(
        (-0.66, -0.58), (-0.86, -1.36), (-0.38, -0.94), (0, -1.5),
        (0.38, -0.94), (0.86, -1.36), (0.66, -0.58),
    )  # fmt: skip
    frame.solid([crown], colour, edge_colour(colour), EDGE)


def _paint_eyes(frame: Frame, creature: Creature) -> None:
    radius = 0.44 if creature.eyes == 1 else 0.29
    for number in range(creature.eyes):
        x = (number - (creature.eyes - 1) / 2) * radius * 2.25
        y = -0.12 if creature.eyes == 1 else -0.22
        frame.solid([ellipse(x, y, radius)], WHITE, DARK, EDGE * 0.7)
        if creature.iris == "black":
            frame.disc(x, y, radius * 0.55, DARK)
        else:
            frame.disc(x, y, radius * 0.72, COLOURS[creature.iris])
            frame.disc(x, y, radius * 0.36, DARK)


def _paint_mouth(frame: Frame, mouth: str, colour: Colour) -> None:
    if mouth in ("smile", "line", "zigzag"):
        strokes: dict[str, Sequence[Point]] = {
            "smile": [(0.45 * math.cos(a), 0.4 + 0.28 * math.sin(a)) for a in _quarter_turns()],
            "line": [(-0.34, 0.52), (0.34, 0.52)],
            "zigzag": [(-0.5, 0.42), (-0.25, 0.68), (0, 0.42), (0.25, 0.68), (0.5, 0.42)],
        }
        bright = sum(colour) > 400
        if bright:
            frame.line(strokes[mouth], 0.34, DARK)
        frame.line(strokes[mouth], 0.18, colour)
    elif mouth == "open":
        frame.solid([ellipse(0, 0.54, 0.24, 0.2)], colour, DARK, EDGE)
    elif mouth == "teeth":
        frame.solid([box(-0.36, 0.42, 0.36, 0.68)], WHITE, DARK, EDGE)


def _quarter_turns() -> list[float]:
    return [math.pi * (0.12 + 0.76 * step / 12) for step in range(13)]
