"""What a preset says: a table of the LyCORIS package's keys, from TOML or from a family.

    unet_target_module, unet_target_name                  in the denoiser
    text_encoder_target_module, text_encoder_target_name  in every text encoder
    target_module, target_name       for those of the two that have no list of their own
    exclude_name                     layers left out again
    enable_conv                      false: no convolutions larger than 1x1; true if not given
    use_fnmatch                      names are globs instead of regular expressions
    module_algo_map, name_algo_map   {class or name: {algo, dim, alpha, an option, ..}}

A table without any target takes those of the preset full.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import algorithms, config, knobs
from .errors import ConfigError, RunError
from .knobs import Leaf

FIELD = "network.preset"
ROLES = ("unet", "text_encoder")
LISTS = ("target_module", "target_name")
MAPS = ("module_algo_map", "name_algo_map")
SWITCHES = {"enable_conv": True, "use_fnmatch": False}
# Keys of the reference package that change no result here, and why.
IGNORED = {"lora_prefix": "the family says how keys begin",
           "bypass_mode": "each layer takes the cheaper way"}
KEYS = (*SWITCHES, *LISTS, *(f"{role}_{key}" for role in ROLES for key in LISTS), "exclude_name",
        *MAPS, "lora_prefix")
# What a layer may have of its own beside algo and the algorithm's options, and what it may not.
OWN: Mapping[str, Leaf] = {name: config.LEAVES[f"network.{name}"] for name in ("dim", "alpha")}
FOR_ALL = {leaf.name for path, leaf in config.LEAVES.items() if path.startswith("network.")}
RENAMED = {"weight_decompose": "dora_wd", "wd_on_out": "wd_on_output", "lora_dim": "dim",
           "use_cp": "use_tucker"}  # the reference package's names for ours
SAME_ALGO = {"locon": "lora"}


@dataclass(frozen=True)
class Target:
    """A class of modules or a pattern of names; `role` says in which parts, "" in all."""

    text: str
    is_class: bool
    role: str = ""


@dataclass(frozen=True)
class Override:
    """What the layers of a target have of their own."""

    target: Target
    settings: tuple[tuple[str, Any], ...]

    @property
    def key(self) -> str:
        return f"{MAPS[not self.target.is_class]}.{self.target.text}"


@dataclass(frozen=True)
class Preset:
    """Targets in their order, None where the table names none; `globs`: names are globs."""

    name: str
    targets: tuple[Target, ...] | None
    conv: bool = True
    globs: bool = False
    exclude: tuple[str, ...] = ()
    overrides: tuple[Override, ...] = ()
    notes: tuple[str, ...] = ()


def refusal(text: str, fix: str = "") -> ConfigError:
    """What is wrong with network.preset, said of that setting."""
    return ConfigError({FIELD: f"{FIELD}: {text}"}, fix)


def read(path: Path) -> Preset:
    """The preset in a TOML file; ConfigError lists all that is wrong with it."""
    try:
        table = config.read_toml(path)
    except RunError as error:
        raise refusal(str(error)) from None
    except OSError as error:
        raise refusal(f"{path} cannot be read: {error.strerror}") from None
    return parse(path.stem, table, f"{path}: ")


def parse(name: str, table: Mapping[str, Any], where: str = "") -> Preset:
    """The preset that a table says; ConfigError with all that is wrong, `where` put before."""
    reading = _Reading(table)
    made = Preset(name, reading.targets(), reading.switch("enable_conv"),
                  reading.switch("use_fnmatch"), reading.texts("exclude_name"),
                  reading.overrides())
    if not made.globs:
        targets = (*(made.targets or ()), *(override.target for override in made.overrides))
        for text in (*(t.text for t in targets if not t.is_class), *made.exclude):
            reading.expression(text)
    if reading.problems:
        raise refusal(where + "; ".join(dict.fromkeys(reading.problems)))
    return replace(made, notes=tuple(dict.fromkeys(reading.notes)))


class _Reading:
    """One table being read: what is wrong with it and what is worth a note are collected."""

    def __init__(self, table: Mapping[str, Any]):
        self.table = table
        self.problems = [f"there is no key {key}.{knobs.nearest(key, KEYS)}"
                         for key in table if key not in KEYS]
        self.notes: list[str] = []
        if "lora_prefix" in table:
            self.ignored("lora_prefix")

    def ignored(self, key: str) -> None:
        self.notes.append(f"{key} is not used: {IGNORED[key]}.")

    def switch(self, key: str) -> bool:
        value = self.table.get(key, SWITCHES[key])
        if not isinstance(value, bool):
            self.problems.append(f"{key} is a switch: true or false, got {value!r}")
        return bool(value)

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.table.get(key, ())
        if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) and v for v in value):
            self.problems.append(f"{key} wants a list of texts, got {value!r}")
            return ()
        return tuple(dict.fromkeys(value))

    def expression(self, text: str) -> None:
        try:
            re.compile(text)
        except (re.error, OverflowError, RecursionError) as error:
            self.problems.append(f"{text!r} is no regular expression: {error}; set use_fnmatch = "
                                 "true for globs such as *.to_k")

    def targets(self) -> tuple[Target, ...] | None:
        """Those of each role's own lists; of target_* for a role that has none."""
        found: list[Target] = []
        general = any(key in self.table for key in LISTS)
        bare = [role for role in ROLES if not any(f"{role}_{key}" in self.table for key in LISTS)]
        for role in ROLES:
            head = "" if role in bare else f"{role}_"
            found += [Target(text, key == LISTS[0], role)
                      for key in LISTS for text in self.texts(head + key)]
        if len(bare) == len(ROLES) and not general:
            self.notes.append("It names no layers, so those of full are taken.")
            return None
        if general and not bare:
            self.notes.append("target_module and target_name are not used: the lists of unet and "
                              "text_encoder say it all.")
        return tuple(found)

    def overrides(self) -> tuple[Override, ...]:
        found = []
        for key in MAPS:
            entries = self.table.get(key, {})
            if not isinstance(entries, Mapping):
                self.problems.append(f"{key} wants a table, got {entries!r}")
                continue
            found += [Override(Target(text, key == MAPS[0]), self.settings(f"{key}.{text}", own))
                      for text, own in entries.items()]
        return tuple(found)

    def settings(self, where: str, own: Any) -> tuple[tuple[str, Any], ...]:
        """{algo, dim, alpha, an option, ..} of one map entry, each in its own type."""
        if not isinstance(own, Mapping):
            self.problems.append(f"{where} wants a table such as {{ dim = 8 }}, got {own!r}")
            return ()
        if nested := next((name for name, value in own.items() if isinstance(value, Mapping)), ""):
            self.problems.append(f"{where} has a table {nested} in it; write a name with dots in "
                                 "quotation marks")
            return ()
        catalogue = algorithms.catalogue()
        algo = SAME_ALGO.get(own.get("algo", ""), own.get("algo"))
        if algo is not None and algo not in catalogue:
            self.problems.append(f"{where}: there is no algorithm {algo!r}; choose one of "
                                 f"{', '.join(catalogue)}.{knobs.nearest(str(algo), catalogue)}")
            return ()
        kinds = catalogue.values() if algo is None else (catalogue[algo],)
        known = {name: leaf for kind in kinds for name, leaf in knobs.leaves(kind.Options).items()}
        found = {} if algo is None else {"algo": algo}
        for name, value in own.items():
            if name in IGNORED:
                self.ignored(name)
            elif name != "algo":
                self._setting(where, RENAMED.get(name, name), value, known | OWN, found)
        return tuple(found.items())

    def _setting(self, where: str, name: str, value: Any, known: Mapping[str, Leaf],
                 found: dict[str, Any]) -> None:
        if name in known:
            try:
                found[name] = knobs.coerce(known[name], value)
            except ValueError as error:
                self.problems.append(f"{where}.{name} {error}")
        elif name in FOR_ALL:
            self.problems.append(f"{where}: {name} is the same for all layers; set network.{name}")
        else:
            of = f"{found['algo']} has" if "algo" in found else "there is"
            self.problems.append(f"{where}: {of} no setting {name}."
                                 f"{knobs.nearest(name, {'algo': 0, **known})}")
