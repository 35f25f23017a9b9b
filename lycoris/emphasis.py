r"""The words of a prompt and how much each counts, in the syntax that AUTOMATIC1111's web UI made
common:

    (word) 1.1 times as much, (word:1.3) 1.3 times, [word] 1.1 times less; nested, they multiply
    \( \) \[ \] \\ are these signs themselves
    BREAK begins a new chunk

Brackets that are never closed reach to the end; closing ones without an opening one are text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

STEP = 1.1
_SIGNS = re.compile(r"""
    \\(?P<escaped>[()\[\]\\]?)
  | :\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)
  | (?P<bracket>[()\[\]])
  | (?P<text>[^\\()\[\]:]+|:)
""", re.VERBOSE)
_BREAK = re.compile(r"\s*\bBREAK\b\s*")


@dataclass(frozen=True)
class Piece:
    """Words in a row that count as much."""

    text: str
    weight: float = 1.0


@dataclass
class _Open:
    """What has been read: texts with their weights, None for a BREAK; and which brackets are open,
    each by the place of the first text within."""

    found: list[tuple[str | None, float]]
    round: list[int]
    square: list[int]

    def multiply(self, start: int, by: float) -> None:
        self.found[start:] = [(text, weight * by) for text, weight in self.found[start:]]

    def add(self, text: str) -> None:
        first, *others = _BREAK.split(text)
        self.found.append((first, 1.0))
        for each in others:
            self.found += [(None, 1.0), (each, 1.0)]


def parse(prompt: str) -> list[list[Piece]]:
    """The pieces of each part; BREAK stands between parts, and empty ones are left out."""
    read = _Open([], [], [])
    for sign in _SIGNS.finditer(prompt):
        _take(read, sign)
    for start in read.round:
        read.multiply(start, STEP)
    for start in read.square:
        read.multiply(start, 1 / STEP)
    return _parts(read.found)


def _take(read: _Open, sign: re.Match[str]) -> None:
    bracket, weight = sign["bracket"], sign["weight"]
    if bracket == "(":
        read.round.append(len(read.found))
    elif bracket == "[":
        read.square.append(len(read.found))
    elif weight is not None and read.round:
        read.multiply(read.round.pop(), float(weight))
    elif bracket == ")" and read.round:
        read.multiply(read.round.pop(), STEP)
    elif bracket == "]" and read.square:
        read.multiply(read.square.pop(), 1 / STEP)
    elif sign["escaped"] is not None:
        read.found.append((sign["escaped"], 1.0))
    else:
        read.add(sign[0])


def _parts(found: list[tuple[str | None, float]]) -> list[list[Piece]]:
    """Neighbours of one weight are one piece, so that they are tokenised together."""
    parts: list[list[Piece]] = [[]]
    for text, weight in found:
        last = parts[-1]
        if text is None:
            parts.append([])
        elif last and last[-1].weight == weight:
            last[-1] = Piece(last[-1].text + text, weight)
        elif text:
            last.append(Piece(text, weight))
    return [part for part in parts if part]
