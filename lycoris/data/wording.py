"""A caption as it is shown at one step: shuffled, thinned, with its wildcards drawn.

Every draw is a function of (seed, step, place in the step), so all runs of a seed read the same.
"""

from __future__ import annotations

import re

from .. import streams
from ..settings import DatasetConfig
from .captions import as_prompt

WILDCARD = re.compile(r"\{([^{}]*)\}")


def varies(settings: DatasetConfig) -> bool:
    """May a caption read otherwise from step to step (apart from being left out)?"""
    return settings.shuffle_tags or settings.tag_dropout > 0 or settings.wildcards


def plain(caption: str, settings: DatasetConfig) -> str:
    """The caption with nothing left to chance: the first of several lines and of {a|b}, all tags in
    their order."""
    text = caption
    if settings.wildcards:
        text = next(iter(_lines(caption)), "")
        while (found := WILDCARD.search(text)) is not None:
            text = text[:found.start()] + found[1].split("|")[0] + text[found.end():]
    return _framed(_without_marks(as_prompt(text), settings), settings)


def drawn(caption: str, settings: DatasetConfig, seed: int, step: int, place: int) -> str:
    """The caption as it reads at this place of this step."""
    if streams.uniform(seed, "caption", step, place) < settings.caption_dropout:
        return ""
    if not varies(settings):
        return plain(caption, settings)
    text = caption
    if settings.wildcards:
        lines = _lines(caption) or [""]
        text = lines[streams.number(seed, "line", step, place) % len(lines)]
        number = 0
        while (found := WILDCARD.search(text)) is not None:  # the innermost first
            choices = found[1].split("|")
            chosen = choices[streams.number(seed, "wildcard", step, place, number) % len(choices)]
            text, number = text[:found.start()] + chosen + text[found.end():], number + 1
    return _framed(_tags(as_prompt(text), settings, seed, step, place), settings)


def _tags(text: str, settings: DatasetConfig, seed: int, step: int, place: int) -> str:
    """The text with the tags that may move in another order, and without those that are dropped."""
    if not (settings.shuffle_tags or settings.tag_dropout):
        return _without_marks(text, settings)
    head, middle, tail = _split(text, settings.keep_separator)
    first, free = _pieces(head), _pieces(middle)
    kept = max(0, settings.keep_tags - len(first))
    first, free = first + free[:kept], free[kept:]
    if settings.shuffle_tags:
        order = streams.permutation(len(free), seed, "tags", step, place)
        free = [free[i] for i in order]
    if settings.tag_dropout:
        free = [tag for number, tag in enumerate(free) if streams.uniform(
            seed, "tag", step, place, number) >= settings.tag_dropout]
    return ", ".join([*first, *free, *_pieces(tail)])


def _split(text: str, separator: str) -> tuple[str, str, str]:
    """(what stays in front, what may move, what stays behind)"""
    if not separator or separator not in text:
        return "", text, ""
    head, _, rest = text.partition(separator)
    middle, _, tail = rest.partition(separator)
    return head, middle, tail


def _without_marks(text: str, settings: DatasetConfig) -> str:
    if not settings.keep_separator or settings.keep_separator not in text:
        return text
    parts = _split(text, settings.keep_separator)
    return ", ".join(piece for part in parts for piece in _pieces(part))


def _framed(text: str, settings: DatasetConfig) -> str:
    """Between prefix and suffix."""
    parts = (settings.caption_prefix.strip(), text, settings.caption_suffix.strip())
    return " ".join(part for part in parts if part)


def _pieces(text: str) -> list[str]:
    return [tag.strip() for tag in text.split(",") if tag.strip()]


def _lines(caption: str) -> list[str]:
    return [line.strip() for line in caption.splitlines() if line.strip()]
