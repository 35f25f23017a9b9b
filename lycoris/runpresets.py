"""Presets of whole runs: assets/presets/*.toml, what they would change, and whom they are for.

A preset is a partial run for one purpose, one kind of model and one size of card. It never names
the base model, the folder of pictures or the run (`KEPT`), so it can be put over any settings.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import config, knobs
from .settings import Config

KEPT = ("model.base", "dataset.folder", "output.name")
PURPOSES = {"person": "A person", "character": "A character", "style": "A style",
            "object": "An object"}
GIB = 2**30
# What a card gives of its size: drivers report a little less than is printed on the box.
WHOLE = 0.93


@dataclass(frozen=True)
class RunPreset:
    """`purpose` is what is taught, `family` the known model it is for, `memory` the card's GB;
    `values` are its settings, {path: value}."""

    name: str
    title: str
    text: str
    purpose: str
    family: str
    memory: int
    values: Mapping[str, Any]


@functools.cache
def catalogue() -> Mapping[str, RunPreset]:
    """Every preset by its name: by purpose, model and size of card."""
    found = []
    for name in config.preset_names():
        about, _ = config.read_preset(name)
        said = config.preset_settings(name)
        values = {path: said[path] for path in config.LEAVES if path in said}
        found.append(RunPreset(name, values=values, **about))
    purposes = list(PURPOSES)
    found.sort(key=lambda one: (purposes.index(one.purpose), one.family, one.memory))
    return {one.name: one for one in found}


def find(name: str) -> RunPreset:
    """ConfigError for a name that is none."""
    config.read_preset(name)
    return catalogue()[name]


def applied(run: Config, preset: RunPreset) -> Config:
    """The run under a preset; what the preset does not name stays as it is."""
    return config.build({**config.to_dict(run), **preset.values})


def changes(run: Config, preset: RunPreset) -> dict[str, tuple[Any, Any]]:
    """{path: (now, then)} of what a preset would change."""
    then = applied(run, preset)
    both = {path: (knobs.get(run, path), knobs.get(then, path)) for path in preset.values}
    return {path: pair for path, pair in both.items() if pair[0] != pair[1]}


def card(total: int) -> int:
    """The size of card in GB whose presets fit a device of `total` bytes: the largest of those
    there are, and the smallest where none fits."""
    sizes = sorted({one.memory for one in catalogue().values()})
    return max((size for size in sizes if size * WHOLE * GIB <= total), default=sizes[0])
