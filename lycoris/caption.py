"""The verb caption: write captions for a folder, with a captioner or by rules over what is
there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from . import captioners, devices, events, knobs
from .data import captions, folder
from .data.captions import Edit
from .data.folder import Dataset
from .errors import ConfigError, LycorisError
from .registry import pick

WRITE = ("missing", "append", "replace")


def make(name: str, options: Mapping[str, Any]) -> captioners.Captioner:
    """The captioner with its options; raises ConfigError or, from its own check, what it lacks."""
    kind = pick(captioners.catalogue(), name, "captioner")
    known = knobs.leaves(kind.Options)
    ready, problems = {}, {}
    for key, value in options.items():
        try:
            ready[key] = knobs.coerce(known[key], value)
        except KeyError:
            problems[key] = f"{name} has no option {key}.{knobs.nearest(key, known)}"
        except ValueError as error:
            problems[key] = f"{key} {error}"
    if problems:
        raise ConfigError(problems)
    made = kind(kind.Options(**ready))
    if problem := made.check():
        raise LycorisError(problem, field="captioner")
    return made


def run(dataset: Dataset, captioner: captioners.Captioner, write: str, *, dry: bool = False,
        emit: Callable[[events.Event], None] = lambda event: None,
        asked: Callable[[], set[str]] = lambda: set()) -> list[Edit]:
    """Caption the readable pictures: only those without, added to what is there, or all anew.

    Each caption is saved as it comes (unless `dry`), so a stop loses nothing. Returns the edits.
    """
    assert write in WRITE, write
    pictures = [p for p in dataset.readable
                if not p.caption_problem and (write != "missing" or not (p.caption or "").strip())]
    if pictures:
        emit(events.Stage(f"loading {captioner.label}", 0, 0))
        captioner.load(devices.choose("auto"))
    edits: list[Edit] = []
    for number, picture in enumerate(pictures):
        if "stop" in asked():
            break
        emit(events.Stage("captioning", number, len(pictures)))
        new = captioner.caption(folder.decode(picture.path), picture.path)
        old = (picture.caption or "").strip()
        after = f"{old}, {new}" if write == "append" and old else new
        if after == picture.caption:
            continue
        edits.append(Edit(picture.path, picture.caption, after))
        if not dry:
            captions.apply(edits[-1:])
    emit(events.Stage("captioning", len(pictures), len(pictures)))
    return edits
