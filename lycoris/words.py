"""Command lines and lists of name=value as texts: taken apart, nothing understood yet."""

from __future__ import annotations

import ast
import math
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from .errors import ConfigError

LINE_ENDS = tuple(f"{mark}{end}" for mark in "\\^`" for end in ("\r\n", "\n"))  # that go on


def split(text: str) -> list[str]:
    """A text's words as a shell takes them, whatever shell's line ends; ConfigError where a quote
    is left open."""
    for end in LINE_ENDS:
        text = text.replace(end, " ")
    try:
        return shlex.split(text, posix=True)
    except ValueError as error:
        raise ConfigError({"": f"the text cannot be taken apart: {error}"},
                          "Close every quotation mark.") from None


def flags(words: Iterable[str]) -> dict[str, Any]:
    """{argument: value} of --argument words, without what starts the script; a list where several
    follow, True where none does."""
    words = list(words)
    script = next((i for i, word in enumerate(words) if word.endswith(".py")), -1)
    found: dict[str, Any] = {}
    name = ""
    for word in words[script + 1:]:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            found[name] = value if equals else True
            if equals and name.endswith("_args"):  # more may follow: --network_args="a=1" "b=2"
                found[name] = [value]
        elif name:
            before = found[name]
            found[name] = word if before is True else [
                *(before if isinstance(before, list) else [before]), word]
    return found


def pairs(given: Any) -> tuple[dict[str, Any], list[str]]:
    """({name: value}, words without a value) of `name=value` words, of one text that holds several,
    or of a mapping."""
    if isinstance(given, Mapping):
        return dict(given), []
    found, others = {}, []
    for word in given if isinstance(given, (list, tuple)) else split(str(given)):
        name, equals, value = str(word).partition("=")
        if equals:
            found[name.strip()] = value.strip().strip("\"'")
        else:
            others.append(str(word))
    return found, others


def literal(text: Any) -> Any:
    """A text as the Python value it spells, else itself."""
    try:
        return ast.literal_eval(text) if isinstance(text, str) else text
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def number(text: Any) -> float | None:
    try:
        found = float(text)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None
