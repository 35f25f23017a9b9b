"""The grammar: which words there are, and how a scene is said in one caption."""

from dataclasses import dataclass

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 44, 48),
    "orange": (245, 140, 30),
    "yellow": (250, 215, 45),
    "green": (52, 165, 72),
    "blue": (45, 95, 220),
    "purple": (135, 60, 180),
    "pink": (248, 130, 180),
    "white": (250, 250, 250),
    "black": (25, 25, 30),
    "brown": (130, 80, 45),
    "gray": (140, 144, 150),
    "teal": (30, 170, 170),
}
OBJECTS = (
    "circle", "square", "triangle", "star", "heart", "diamond", "ring", "cross",
    "moon", "flower", "tree", "house", "fish", "mushroom", "cat", "boat",
)  # fmt: skip
SCENERIES = ("on grass", "at night", "in the snow", "by the sea", "in the desert")
BACKGROUNDS = tuple(COLOURS) + SCENERIES
STYLES = ("striped", "dotted", "outlined")
SIZES = ("small", "big")
PLACES = ("on the left", "on the right", "at the top", "at the bottom")
OPENINGS = ("a picture of ", "a drawing of ", "an image of ")
CREATURE, CONCEPT = "creature", "zorb"

# Colours that would not stand out before a scenery.
_HIDDEN = {
    "at night": {"black", "blue", "purple"},
    "in the snow": {"white"},
    "on grass": {"green"},
}


def is_held_out(colour: str, thing: str) -> bool:
    """Seventeen of the 192 pairs of colour and object are never drawn for training."""
    if thing not in OBJECTS:
        return False
    return (list(COLOURS).index(colour) * 7 + OBJECTS.index(thing) * 5) % 11 == 3


def visible_colours(background: str) -> list[str]:
    hidden = _HIDDEN.get(background, {background})
    return [colour for colour in COLOURS if colour not in hidden]


def article(phrase: str) -> str:
    return "an" if phrase[0] in "aeiou" else "a"


def background_phrase(background: str) -> str:
    if background in SCENERIES:
        return background
    return f"on {article(background)} {background} background"


@dataclass(frozen=True)
class Scene:
    """Everything that decides one picture. The seed decides small variations only."""

    thing: str  # one of the objects, or a name nobody knows
    background: str
    colour: str = ""  # a creature without a colour word has its own
    style: str = ""
    size: str = ""
    place: str = ""
    seed: int = 0

    @property
    def kind(self) -> str:
        """The class that the checker tells apart."""
        if self.thing in OBJECTS or self.thing == CONCEPT:
            return self.thing
        return CREATURE

    @property
    def is_plain(self) -> bool:
        return not (self.style or self.size or self.place)

    def caption(self, opening: str = "", with_background: bool = True) -> str:
        words = (self.size, self.style, self.colour, self.thing)
        phrase = " ".join(word for word in words if word)
        parts = [f"{opening}{article(phrase)} {phrase}", self.place]
        if with_background:
            parts.append(background_phrase(self.background))
        return " ".join(part for part in parts if part)


def grammar_words() -> set[str]:
    """Every word that a caption of an ordinary object can have."""
    phrases = [*COLOURS, *OBJECTS, *SCENERIES, *STYLES, *SIZES, *PLACES, *OPENINGS]
    return set(" ".join(phrases).split()) | {"a", "an", "background"}
