"""The comparison as one picture: prompts down, contestants across, seeds inside, all of it
named."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

INK, FAINT, PAPER = (24, 24, 27), (113, 113, 122), (255, 255, 255)
BLUE, ORANGE, GREY = (37, 99, 235), (217, 72, 15), (212, 212, 216)
LEAST_SIDE = 144  # smaller pictures are enlarged, so that names and pictures are readable
GAP, MARGIN, PROMPT_WIDTH = 6, 20, 190


@dataclass(frozen=True)
class Column:
    """One contestant: its name and a line about it; the base is grey, then blue, then orange."""

    name: str
    detail: str = ""
    is_base: bool = False


def draw(pictures: Mapping[tuple[str, int, str], Image.Image], prompts: Sequence[str],
         seeds: Sequence[int], columns: Sequence[Column]) -> Image.Image:
    """The grid of {(prompt, seed, contestant): picture}; a missing picture leaves its place empty.
    """
    side = _cell(pictures)
    group = len(seeds) * (side[0] + GAP) - GAP
    head = 64
    width = 2 * MARGIN + PROMPT_WIDTH + len(columns) * (group + 3 * GAP)
    height = 2 * MARGIN + head + len(prompts) * (side[1] + 2 * GAP)
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    for place, column in enumerate(columns):
        left = MARGIN + PROMPT_WIDTH + place * (group + 3 * GAP)
        _heading(pen, column, _colour(columns, place), (left, MARGIN), group)
        for number, seed in enumerate(seeds):
            pen.text((left + number * (side[0] + GAP), MARGIN + head - 18), f"seed {seed}",
                     FAINT, font=_font(11))
    for row, prompt in enumerate(prompts):
        top = MARGIN + head + row * (side[1] + 2 * GAP)
        pen.multiline_text((MARGIN, top), textwrap.fill(prompt, 26, max_lines=6), INK,
                           font=_font(14), spacing=4)
        for place, column in enumerate(columns):
            left = MARGIN + PROMPT_WIDTH + place * (group + 3 * GAP)
            for number, seed in enumerate(seeds):
                picture = pictures.get((prompt, seed, column.name))
                at = (left + number * (side[0] + GAP), top)
                if picture is None:
                    pen.rectangle((*at, at[0] + side[0], at[1] + side[1]), outline=GREY)
                else:
                    sheet.paste(picture.resize(side, Image.Resampling.LANCZOS), at)
    return sheet


def _heading(pen: ImageDraw.ImageDraw, column: Column, colour: tuple[int, int, int],
             at: tuple[int, int], width: int) -> None:
    left, top = at
    pen.rectangle((left, top, left + 4, top + 38), fill=colour)
    pen.text((left + 12, top), _cut(column.name, 16, width - 12), INK, font=_font(16))
    pen.text((left + 12, top + 22), _cut(column.detail, 12, width - 12), FAINT, font=_font(12))


def _cut(text: str, size: int, width: int) -> str:
    """The text with an ellipsis where it is longer than the place for it."""
    font = _font(size)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def _colour(columns: Sequence[Column], place: int) -> tuple[int, int, int]:
    if columns[place].is_base:
        return GREY
    adapters = [i for i, column in enumerate(columns) if not column.is_base]
    return {0: BLUE, 1: ORANGE}.get(adapters.index(place), FAINT)


def _cell(pictures: Mapping[tuple[str, int, str], Image.Image]) -> tuple[int, int]:
    size = next(iter(pictures.values())).size if pictures else (LEAST_SIDE, LEAST_SIDE)
    factor = max(1, -(-LEAST_SIDE // max(size)))
    return size[0] * factor, size[1] * factor


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
