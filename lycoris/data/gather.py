"""Everything a run learns from: the main folder and further ones, masks, what is held out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import config, knobs, streams
from ..errors import ConfigError
from ..settings import DatasetConfig
from . import folder
from .folder import Dataset, LeftOut, Picture

# What an entry of dataset.more may say, and the type of it.
KEYS: Mapping[str, tuple[type, ...]] = {
    "folder": (str,), "repeats": (int,), "weight": (int, float), "caption": (str,),
    "mask_folder": (str,), "regularisation": (bool,)}


def gather(settings: DatasetConfig, scan: Callable[[Path], Dataset] = folder.scan) -> Dataset:
    """The pictures of all folders, as one dataset that is called after the main one.

    Raises ConfigError for an entry of dataset.more that cannot be, DatasetError for a folder that
    cannot be read. Which pictures are held out depends on their names alone, so it is the same for
    every run on them.
    """
    check(settings)
    opened: list[Dataset] = []

    def read(path: str) -> Dataset:
        opened.append(scan(config.find(path)))
        if len(opened) > 1:  # named on purpose; the main one may still be empty
            folder.require_pictures(opened[-1])
        return opened[-1]

    main = read(settings.folder)
    found = [replace(picture, repeats=picture.repeats * settings.repeats)
             for picture in _masked(main, settings.mask_folder, settings, scan)]
    for entry in settings.more:
        found += [_as_said(picture, entry) for picture in _masked(
            read(entry["folder"]), entry.get("mask_folder", ""), settings, scan)]
    found = _held_out(found, settings.validation)
    if settings.validation_folder:
        found += [replace(picture, held=True)
                  for picture in read(settings.validation_folder).pictures]
    if settings.balance:
        found = _balanced(found)
    return Dataset(main.folder, tuple(found), _left_out(settings, opened, found))


def check(settings: DatasetConfig) -> None:
    """ConfigError for the first entry of dataset.more that says what cannot be."""
    for number, entry in enumerate(settings.more, 1):
        problem = _problem(entry)
        if problem:
            raise ConfigError({"dataset.more": f"dataset.more, entry {number}: {problem}"})


def _problem(entry: Mapping[str, Any]) -> str:
    if not entry.get("folder"):
        return "it has no folder. Write e.g. folder = \"pictures/dogs\", repeats = 2"
    for key, value in entry.items():
        if key not in KEYS:
            return f"there is no {key}.{knobs.nearest(key, KEYS)}"
        kinds = KEYS[key]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            return f"{key} is {value!r}, which is no {kinds[0].__name__}"
    if not 1 <= entry.get("repeats", 1) <= 100_000:
        return f"repeats is {entry['repeats']}; at least 1, at most 100,000"
    if not 0 <= entry.get("weight", 1) <= 1000:
        return f"weight is {entry['weight']}; at least 0, at most 1000"
    return ""


def _as_said(picture: Picture, entry: Mapping[str, Any]) -> Picture:
    return replace(picture, repeats=picture.repeats * entry.get("repeats", 1),
                   weight=float(entry.get("weight", 1)),
                   fallback=entry.get("caption", picture.fallback),
                   prior=entry.get("regularisation", False))


def _masked(found: Dataset, masks: str, settings: DatasetConfig,
            scan: Callable[[Path], Dataset]) -> list[Picture]:
    """The pictures with their masks, those beside them before those of the folder `masks`."""
    if not settings.masks:
        return [replace(picture, mask=None) for picture in found.pictures]
    if not masks:
        return list(found.pictures)
    named = {picture.path.stem: picture.path for picture in scan(config.find(masks)).pictures}
    return [replace(picture, mask=picture.mask or named.get(picture.path.stem))
            for picture in found.pictures]


def _held_out(pictures: list[Picture], share: float) -> list[Picture]:
    """With `share` of the pictures that teach something new held out, one at least; regularisation
    pictures never are."""
    new = [picture for picture in pictures if picture.size and not picture.prior]
    count = min(len(new) - 1, max(1, round(share * len(new)))) if share else 0
    drawn = sorted(new, key=lambda picture: streams.number(0, "validation", picture.name))
    chosen = {picture.path for picture in drawn[:max(0, count)]}
    return [replace(picture, held=picture.path in chosen) for picture in pictures]


def _balanced(pictures: list[Picture]) -> list[Picture]:
    """With the regularisation pictures shown as often in an epoch as all that teach something new:
    each in proportion to its repeats, to within one, and some not at all where there are too many.
    """
    new = sum(p.repeats for p in pictures if p.size and not p.prior and not p.held)
    prior = [i for i, p in enumerate(pictures) if p.size and p.prior]
    if not new:
        return pictures
    whole = sum(pictures[i].repeats for i in prior)
    times = {i: new * pictures[i].repeats // whole for i in prior}
    rest = sorted(prior, key=lambda i: (-(new * pictures[i].repeats % whole), streams.number(
        0, "balance", pictures[i].name)))
    for i in rest[:new - sum(times.values())]:
        times[i] += 1
    return [replace(p, repeats=times.get(i, p.repeats)) for i, p in enumerate(pictures)]


def _left_out(settings: DatasetConfig, opened: list[Dataset],
              found: list[Picture]) -> tuple[LeftOut, ...]:
    """What the folders leave out, but for folders that the settings name."""
    named = {one.folder.resolve() for one in opened} | {config.find(path).resolve() for path in (
        settings.mask_folder, *(entry.get("mask_folder", "") for entry in settings.more)) if path}
    return (*(each for one in opened for each in one.left_out
              if each.path.resolve() not in named),
            *(LeftOut(p.path, "there are more regularisation pictures than are balanced by others")
              for p in found if p.size and not p.repeats))
