"""How a prompt's brackets are read."""

from __future__ import annotations

import math
import random
import re

import pytest

from lycoris import emphasis
from lycoris.emphasis import Piece


def _read(prompt: str) -> list[tuple[str, float] | None]:
    """The pieces, weights rounded; None between chunks."""
    found: list[tuple[str, float] | None] = []
    for place, part in enumerate(emphasis.parse(prompt)):
        found += [None] * bool(place)
        found += [(piece.text, round(piece.weight, 6)) for piece in part]
    return found


@pytest.mark.parametrize(("prompt", "pieces"), [
    ("", []),
    ("a dog", [("a dog", 1)]),
    ("(a dog)", [("a dog", 1.1)]),
    ("a (dog:1.3) runs", [("a ", 1), ("dog", 1.3), (" runs", 1)]),
    ("a (dog: 1.3 )", [("a ", 1), ("dog", 1.3)]),
    ("(dog:.5)", [("dog", 0.5)]),
    ("(dog:-1)", [("dog", -1)]),
    ("(dog:0)", [("dog", 0)]),
    ("[dog]", [("dog", round(1 / 1.1, 6))]),
    ("[dog:1.3]", [("dog:1.3", round(1 / 1.1, 6))]),
    ("((dog))", [("dog", 1.21)]),
    ("(a [dog:x] (cat:2):1.5)", [("a ", 1.5), ("dog:x", round(1.5 / 1.1, 6)), (" ", 1.5),
                                 ("cat", 3)]),
    ("([dog])", [("dog", 1)]),
    (r"name_\(series\)", [("name_(series)", 1)]),
    (r"(name_\(series\):1.2)", [("name_(series)", 1.2)]),
    (r"\[dog\] \\ end", [("[dog] \\ end", 1)]),
    ("a (dog", [("a ", 1), ("dog", 1.1)]),
    ("a [dog", [("a ", 1), ("dog", round(1 / 1.1, 6))]),
    ("a dog) and ] more", [("a dog) and ] more", 1)]),
    ("score: 1.5) of", [("score: 1.5) of", 1)]),
    ("time 10:30 (at noon)", [("time 10:30 ", 1), ("at noon", 1.1)]),
    ("(dog:1.2.3)", [("dog:1.2.3", 1.1)]),
    ("(dog:1e3)", [("dog:1e3", 1.1)]),
    ("()", []),
    ("a BREAK b", [("a", 1), None, ("b", 1)]),
    ("(a BREAK b:1.4) c", [("a", 1.4), None, ("b", 1.4), (" c", 1)]),
    ("a BREAK BREAK b BREAK", [("a", 1), None, ("b", 1)]),
    ("BREAKFAST break", [("BREAKFAST break", 1)]),
    ("a\nBREAK\nb", [("a", 1), None, ("b", 1)]),
])
def test_the_table(prompt: str, pieces: list) -> None:
    assert _read(prompt) == pieces


def test_escaped_text_is_itself() -> None:
    """Any text, its signs escaped, is one piece of weight 1."""
    draw = random.Random(1)
    for _ in range(500):
        text = "".join(draw.choice("ab ,:.1()[]\\é") for _ in range(draw.randint(1, 30)))
        escaped = re.sub(r"([()\[\]\\])", r"\\\1", text)
        assert emphasis.parse(escaped) == [[Piece(text)]]


def test_whatever_is_written_can_be_read() -> None:
    """No text is lost: of plain words every letter comes out, in order, with a finite weight."""
    draw = random.Random(2)
    for _ in range(500):
        prompt = "".join(draw.choice(("a", "b", " ", "(", ")", "[", "]", ":2)", ":", "1", "."))
                         for _ in range(draw.randint(0, 40)))
        found = [piece for part in emphasis.parse(prompt) for piece in part]
        assert re.sub(r"[^ab]", "", "".join(p.text for p in found)) == re.sub(r"[^ab]", "", prompt)
        assert all(math.isfinite(p.weight) and p.text for p in found)
        assert all(a.weight != b.weight for a, b in zip(found, found[1:], strict=False))


def test_nested_weights_are_those_of_a_tree() -> None:
    """Trees of weighed words, written out and read, weigh the product along their branch."""
    draw = random.Random(3)
    for _ in range(200):
        expected: list[tuple[str, float]] = []
        prompt = " ".join(_branch(draw, 1.0, expected, 3) for _ in range(3))
        words = [(word, piece.weight) for part in emphasis.parse(prompt) for piece in part
                 for word in piece.text.split()]
        assert [word for word, _ in words] == [word for word, _ in expected]
        assert [weight for _, weight in words] == pytest.approx([w for _, w in expected])


def _branch(draw: random.Random, weight: float, expected: list, depth: int) -> str:
    kind = draw.choice(("word", "round", "square", "number")) if depth else "word"
    if kind == "word":
        expected.append((f"w{len(expected)}", weight))
        return expected[-1][0]
    number = round(draw.uniform(0.2, 2), 2)
    by = {"round": 1.1, "square": 1 / 1.1, "number": number}[kind]
    inner = " ".join(_branch(draw, weight * by, expected, depth - 1)
                     for _ in range(draw.randint(1, 3)))
    return {"round": f"({inner})", "square": f"[{inner}]", "number": f"({inner}:{number})"}[kind]
