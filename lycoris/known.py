"""The models that are known by name alone: their configs, and what follows from them.

A file assets/models/<name>.json holds the config of every part in diffusers' and transformers'
words, `family` and `label`; assets/layers/<name>.json, made from it by `python -m assets.layers`,
every layer that an adapter could take and how many numbers each part has.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .algorithms import Layer
from .config import ASSETS
from .registry import pick


@dataclass(frozen=True)
class Known:
    """One such model. `parameters` are all numbers of a part, embeddings included."""

    name: str
    label: str
    family: str
    configs: Mapping[str, Mapping[str, Any]]
    parameters: Mapping[str, int]
    layers: tuple[Layer, ...]


@functools.cache
def names() -> tuple[str, ...]:
    return tuple(sorted(file.stem for file in (ASSETS / "models").glob("*.json")))


def configs(name: str) -> dict[str, Any]:
    """What assets/models says of a model; ConfigError for a name that is not known."""
    path = pick({each: ASSETS / "models" / f"{each}.json" for each in names()}, name,
                "model.family")
    return json.loads(path.read_text("utf-8"))


@functools.cache
def find(name: str) -> Known:
    said = configs(name)
    parts = json.loads((ASSETS / "layers" / f"{name}.json").read_text("utf-8"))
    layers = tuple(Layer(path, kind, tuple(shape), bias, part)
                   for part, group in parts.items()
                   for path, kind, shape, bias in group["layers"])
    return Known(
        name, said["label"], said["family"],
        {key: value for key, value in said.items() if isinstance(value, dict)},
        {part: group["parameters"] for part, group in parts.items()}, layers)


def like(layers: Iterable[Layer]) -> str:
    """The name of the known model that has these layers; empty where none has."""
    shapes = _shapes(layers)
    return next((name for name in names() if _shapes(find(name).layers) == shapes), "")


def _shapes(layers: Iterable[Layer]) -> Counter[tuple[str, tuple[int, ...]]]:
    """The UNet's: files may have more or fewer layers of the text encoders."""
    return Counter((layer.kind, layer.shape) for layer in layers if layer.part == "unet")
