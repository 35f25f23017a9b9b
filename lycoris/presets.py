"""Presets: which layers of a base model get an adapter, and which have settings of their own.

Each family has its own; more are TOML files with the same keys (see presetfile), in a folder or
anywhere.

A target names modules by their class, and every layer in such a module is taken; or layers by their
path, or by a pattern that matches from the path's start on (a glob: all of it). A pattern that fits
no path so may fit whole components anywhere in it: `to_k` is every layer of that name, `attn2`
whatever is in a module of that name.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from . import config, durable, knobs
from .algorithms import Layer
from .errors import ConfigError
from .presetfile import FIELD, ROLES, Override, Preset, Target, parse, read, refusal
from .registry import pick

if TYPE_CHECKING:
    from .families import Family

EVERYTHING = "full"
# {class: (kind, dimensions of the weight)} of single layers, the same in every family.
SINGLE = {"Linear": ("linear", 2), "Conv1d": ("conv", 3), "Conv2d": ("conv", 4),
          "Conv3d": ("conv", 5)}
PARTS = {"unet": "UNet", "text_encoder": "text encoder",
         "text_encoder_2": "second text encoder", "vae": "VAE"}  # as a person calls them
SHOWN = 6  # names in a message


@dataclass(frozen=True)
class Selection:
    """The layers a preset takes, in the model's order, norms among them; `offered` is how many
    layers each part has, norms aside.

    `overrides` is what a layer has of its own, {(part, name): {algo, dim, alpha, option, ..}};
    an option means something only where the layer's algorithm has it. `matched` counts the layers,
    norms aside, that each target is about; `unmatched` lists the targets, exclusions and map
    entries that are about none. Without `conv`, convolutions larger than 1x1 are left out, but for
    those with a dim of their own.
    """

    preset: str
    layers: tuple[Layer, ...]
    offered: Mapping[str, int]
    overrides: Mapping[tuple[str, str], Mapping[str, Any]]
    matched: Mapping[str, int]
    unmatched: tuple[str, ...]
    conv: bool
    notes: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """{part: layers, norms aside}"""
        return _counted(self.layers)

    @property
    def said(self) -> str:
        """How many of each part, as in: “full”: all 83 of the UNet and all 18 of the text encoder.
        """
        said = []
        for part, offered in self.offered.items():
            count, name = self.counts.get(part, 0), PARTS.get(part, part)
            said.append(f"all {count:,} of the {name}" if count == offered else
                        f"{count:,} of the {name}'s {offered:,}" if count else
                        f"none of the {name}")
        return f"“{self.preset}”: {', '.join(said[:-1])}{' and ' * (len(said) > 1)}{said[-1]}."

    @property
    def taken(self) -> str:
        """What was matched, in sentences: by part, and by target in the preset's order."""
        said = [self.said]
        if named := [f"{text} ({count})" for text, count in self.matched.items() if count]:
            said.append(f"Matched by name or class: {_listed(named)}.")
        if self.overrides:
            said.append(f"{len(self.overrides)} layers have settings of their own.")
        return " ".join([*said, *self.notes])

    @property
    def text(self) -> str:
        """What was matched and what was not, in sentences."""
        missing = f" Nothing matched: {_listed(self.unmatched)}." if self.unmatched else ""
        return self.taken + missing


def own_names() -> tuple[str, ...]:
    """The presets in the user's folder."""
    return tuple(sorted(file.stem for file in _folder().glob("*.toml") if file.is_file()))


def find(name: str, kind: type[Family]) -> Preset:
    """A preset of the family, of a .toml file, or of the user's folder; ConfigError for others."""
    if name not in kind.presets:
        return own(name, kind.presets)
    if name in own_names():
        raise refusal(f"{name} is built in, and {_folder() / name}.toml has the same name; rename "
                      "the file")
    return parse(name, kind.presets[name])


def own(name: str, others: Iterable[str] = ()) -> Preset:
    """The preset of a .toml file, by its path or by its name in the user's folder.

    ConfigError lists what is wrong with it, or where there is none all names, `others` among them.
    """
    if (file := _file(name)) is not None:
        return read(file)
    known = tuple(dict.fromkeys((*others, *own_names())))
    raise refusal(f"there is no {name!r}; choose one of {', '.join(known)}, or give the path of a "
                  f".toml file.{knobs.nearest(name, known)}")


def source(name: str) -> str:
    """The text of a preset of the user's own as it now is; empty for any other name, and where the
    file is gone."""
    file = _file(name)
    return "" if file is None or not file.is_file() else file.read_text("utf-8")


def take_over(name: str, text: str, built_in: Iterable[str]) -> tuple[str, str]:
    """(what a preset that came along with a recipe is called here, a sentence on it): its `text` is
    in the user's folder then, never over another file, unless it is no preset."""
    if not text or name in built_in or source(name) == text:
        return name, ""
    stem = re.split(r"[\\/]", name)[-1].removesuffix(".toml")
    if config.name_problem(stem) or not stem:
        stem = "preset"
    try:
        parse(stem, tomllib.loads(text.lstrip("\ufeff")))
    except (tomllib.TOMLDecodeError, ConfigError) as error:
        return name, f"Its preset {stem} cannot be used: {error}."
    free, number = stem, 1
    while free in built_in or (_named(free).exists() and source(free) != text):
        number += 1
        free = f"{stem}-{number}"
    if not _named(free).exists():
        durable.make_folder(_folder())
        durable.write_text(_named(free), text)
    other = "" if free == stem else f" {stem} is the name of another one here."
    return free, f"Its preset of layers is {free} in {_folder()}.{other}"


def select(kind: type[Family], layers: Sequence[Layer], preset: Preset) -> Selection:
    """What a preset takes of these layers; ConfigError where that is nothing.

    Targets for parts that are not among the layers are passed over.
    """
    return _select(kind, tuple(layers), preset)


@functools.lru_cache(maxsize=32)
def _select(kind: type[Family], layers: tuple[Layer, ...], preset: Preset) -> Selection:
    names = _Names(kind, layers, preset.globs)
    targets = preset.targets
    if targets is None:
        targets = parse(EVERYTHING, pick(kind.presets, EVERYTHING, FIELD)).targets or ()
    roles = {_role(layer) for layer in layers}
    about = {target: names.about(target) for target in targets if target.role in roles}
    excluded = {text: names.about(Target(text, False)) for text in preset.exclude}
    targeted = set().union(*about.values()) - set().union(*excluded.values())
    settings, applied = _overrides(names, targeted, preset.overrides)
    taken = {i for i in targeted
             if preset.conv or not layers[i].is_spatial or "dim" in settings.get(i, {})}
    if not taken:
        raise _nothing(kind, layers, preset, bool(set().union(*about.values())), bool(targeted))
    matched: dict[str, set[int]] = {}
    for target, found in about.items():
        matched.setdefault(target.text, set()).update(found & taken)
    return Selection(
        preset.name, tuple(layer for i, layer in enumerate(layers) if i in taken),
        MappingProxyType(_counted(layers)),
        MappingProxyType({(layers[i].part, layers[i].name): MappingProxyType(own)
                          for i, own in settings.items() if i in taken}),
        MappingProxyType({text: sum(layers[i].kind != "norm" for i in found)
                          for text, found in matched.items()}),
        (*(text for text, found in matched.items() if not found),
         *(f"exclude_name {text}" for text, found in excluded.items() if not found),
         *(override.key for override in preset.overrides if not applied[override] & taken)),
        preset.conv, preset.notes)


def _overrides(names: _Names, targeted: set[int], overrides: Sequence[Override],
               ) -> tuple[dict[int, dict[str, Any]], dict[Override, set[int]]]:
    """{layer: its own settings}, {entry: layers it is applied to}.

    Of the modules a layer is in, the nearest with an entry counts, and before all a name's. Only
    the algorithm goes on inwards where the nearer entry says none.
    """
    depths = {o: names.depths(o.target) for o in overrides if o.target.is_class}
    named = {o: names.about(o.target) for o in overrides if not o.target.is_class}
    settings: dict[int, dict[str, Any]] = {}
    applied: dict[Override, set[int]] = {override: set() for override in overrides}
    for i in sorted(targeted):
        chain = sorted((o for o, found in depths.items() if i in found),
                       key=lambda o: (depths[o][i], -overrides.index(o)))
        chain += sorted((o for o, found in named.items() if i in found),
                        key=lambda o: o.target.text not in names.paths[i])[:1]
        for override in chain:
            above = settings.get(i, {})
            settings[i] = ({"algo": above["algo"]} if "algo" in above else {}) | dict(
                override.settings)
            applied[override].add(i)
    return settings, applied


class _Names:
    """The layers of a model by the classes and paths that targets may name; all by index."""

    def __init__(self, kind: type[Family], layers: Sequence[Layer], globs: bool):
        self.kind = kind
        self.layers = layers
        self.paths = [kind.paths(layer) for layer in layers]
        self.globs = globs

    def about(self, target: Target) -> set[int]:
        """The layers that a target is about."""
        if target.is_class:
            return set(self.depths(target))
        here = [i for i, layer in enumerate(self.layers)
                if target.role in ("", _role(layer))]
        start, whole = _matchers(target.text, self.globs)
        found = {i for i in here if any(map(start, self.paths[i]))}
        return found or {i for i in here
                         if any(whole(run) for path in self.paths[i] for run in _runs(path))}

    def depths(self, target: Target) -> dict[int, int]:
        """{layer: length of the path of the innermost module of that class that it is in}."""
        found = {}
        for i, layer in enumerate(self.layers):
            if target.role in ("", _role(layer)):
                depth = self._depth(layer, target.text)
                if depth is not None:
                    found[i] = depth
        return found

    def _depth(self, layer: Layer, name: str) -> int | None:
        if name in SINGLE:
            return (len(layer.name) if SINGLE[name] == (layer.kind, len(layer.shape)) else None)
        if self.kind.classes.get(name) == layer.part:
            return 0
        pattern = self.kind.blocks.get(layer.part, {}).get(name)
        if pattern is None:
            return None
        compiled, end = re.compile(pattern), len(layer.name)
        while end > 0:
            if compiled.fullmatch(layer.name, 0, end):
                return end
            end = layer.name.rfind(".", 0, end)
        return None


def _matchers(text: str, globs: bool) -> tuple[Callable[[str], bool], Callable[[str], bool]]:
    """(does it fit a path from its start on, does it fit all of a piece of one)"""
    if globs:
        def glob(path: str) -> bool:
            return fnmatchcase(path, text)

        return glob, glob
    compiled = re.compile(text)
    return (lambda path: path == text or compiled.match(path) is not None,
            lambda run: run == text or compiled.fullmatch(run) is not None)


@functools.lru_cache(maxsize=16384)
def _runs(path: str) -> tuple[str, ...]:
    """Every run of whole components of a path."""
    parts = path.split(".")
    return tuple(".".join(parts[start:end]) for start in range(len(parts))
                 for end in range(start + 1, len(parts) + 1))


def _role(layer: Layer) -> str:
    """Presets know two: text encoders, however many, and what denoises."""
    return ROLES[layer.part.startswith(ROLES[1])]


def _nothing(kind: type[Family], layers: Sequence[Layer], preset: Preset, named: bool,
             left: bool) -> ConfigError:
    why = ("enable_conv = false leaves none of its convolutions" if left
           else "exclude_name takes out all that it names" if named
           else "nothing matched " + (_listed([t.text for t in preset.targets or ()]) or
                                      "because it names nothing"))
    parts = dict.fromkeys(layer.part for layer in layers)
    classes = dict.fromkeys(name for part in parts for name in kind.blocks.get(part, {}))
    example = f" Its layers have names like {layers[0].name}." if layers else ""
    return refusal(f"the preset {preset.name} takes no layer of this model: {why}.",
                   f"{kind.label} has the classes {', '.join(classes)}.{example}")


def _counted(layers: Iterable[Layer]) -> dict[str, int]:
    """{part: its layers, norms aside}"""
    found: dict[str, int] = {}
    for layer in layers:
        found[layer.part] = found.get(layer.part, 0) + (layer.kind != "norm")
    return found


def _listed(texts: Sequence[str]) -> str:
    more = len(texts) - SHOWN
    return ", ".join(texts[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _file(name: str) -> Path | None:
    """The file of an own preset, by its path or its name; None for a name that no file has."""
    if name.endswith(".toml") or {"/", "\\"} & set(name):
        return config.find(name)
    return _named(name) if name in own_names() else None


def _named(name: str) -> Path:
    return _folder() / f"{name}.toml"


def _folder() -> Path:
    return config.find(str(config.PRESETS))
