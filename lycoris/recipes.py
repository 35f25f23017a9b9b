"""A configuration to share, and to take over: TOML, a command line, kohya's words, adapter files.
"""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import (
    algorithms,
    config,
    contestants,
    hub,
    knobs,
    kohya,
    kohya_data,
    kohya_file,
    metadata,
    plan,
    presets,
    provenance,
    tensorfile,
    words,
)
from .config import LEAVES
from .errors import AdapterError, ConfigError
from .families import built_in_presets
from .settings import Config

PROSE = 12  # words without a value that stand beside settings at most
OUR_WORDS = ("python", "-m", "lycoris", "train", "estimate", "advise", "sample", "compare")


@dataclass(frozen=True)
class Recipe:
    """Settings that were read: {path: value}; `unknown` are sentences on what was not understood,
    `notes` on what is not quite the same here; `preset` is the text of the preset they name, where
    it came along."""

    source: str
    settings: Mapping[str, Any]
    unknown: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    preset: str = ""

    @property
    def text(self) -> str:
        count = len(self.settings)
        said = f"{count} setting{'s' * (count != 1)} from {self.source}."
        return " ".join([said, *self.notes, *(f"Not taken: {each}" for each in self.unknown)])

    def applied(self, run: Config) -> Config:
        """The run with these settings; what belongs to another algorithm than theirs goes."""
        algo = self.settings.get("network.algo")
        if algo is not None and algo != run.network.algo:
            run = knobs.replace(run, {"network": plan.switched(run.network, algo)})
        settings = dict(self.settings)
        if "network.options" in settings and algo is None:
            settings["network.options"] = {**run.network.options, **settings["network.options"]}
        return knobs.replace(run, settings)

    def taken_over(self) -> Recipe:
        """To be used here: with its preset in the user's folder, where it came along."""
        name = self.settings.get("network.preset", "")
        here, said = presets.take_over(name, self.preset, built_in_presets())
        return replace(self, settings={**self.settings, "network.preset": here},
                       notes=(*self.notes, said)) if said else self

    def whole(self) -> Config:
        """A run of these settings; what they do not say is as always on their base."""
        base = {path: value for path, value in self.settings.items() if path.startswith("model.")}
        return self.applied(config.load(None, (), base))

    def data(self) -> dict[str, Any]:
        return {"source": self.source, "settings": dict(self.settings),
                "unknown": list(self.unknown), "notes": list(self.notes)}


@dataclass(frozen=True)
class Shared:
    """A configuration as text; `unsaid` are the settings that this form has no words for."""

    text: str
    unsaid: tuple[str, ...] = ()


def write(run: Config, form: str) -> Shared:
    """The configuration in one of FORMS."""
    if form not in FORMS:
        raise ConfigError({"form": f"there is no {form!r}; choose one of {', '.join(FORMS)}."
                                   + knobs.nearest(form, tuple(FORMS))})
    return FORMS[form](run)


def own(run: Config) -> dict[str, Any]:
    """{path: value} of the settings that are neither defaults nor recommended by the base."""
    given = config.load(None, [f"model.base={run.model.base}", f"model.family={run.model.family}"])
    found = {path: knobs.get(run, path) for path in LEAVES
             if knobs.get(run, path) != knobs.get(given, path)}
    for path in ("model.base", "model.family"):
        if knobs.get(run, path) != LEAVES[path].default:
            found = {path: knobs.get(run, path), **found}
    return found


def _short(run: Config) -> Shared:
    """TOML of what is not a default."""
    lines: list[str] = []
    section = ""
    changed = own(run)
    for path in (path for path in LEAVES if path in changed):
        head, name = path.split(".")
        if head != section:
            lines += [""] * bool(lines) + [f"[{head}]"]
            section = head
        lines.append(f"{name} = {_written(run, path)}")
    return Shared("".join(f"{line}\n" for line in lines))


def _command(run: Config) -> Shared:
    """What trains it in a terminal."""
    said = []
    for path in own(run):
        leaf, value = LEAVES[path], knobs.get(run, path)
        if leaf.is_table:
            said += [f"{path}.{name}={config.toml_value(each)}" for name, each in value.items()]
        elif leaf.item_type is not None:
            said.append(f"{path}={config.toml_value(value)}")
        else:
            said.append(f"{path}={leaf.knob.none if value is None else _text(value)}")
    return Shared(shlex.join(["python", "-m", "lycoris", "train", *said]))


FORMS: Mapping[str, Callable[[Config], Shared]] = {
    "toml": _short, "whole": lambda run: Shared(config.dump(run)), "command": _command,
    "kohya": lambda run: Shared(*kohya_file.write(run))}


def read(text: str) -> Recipe:
    """The settings in a pasted text: our TOML or kohya's, a command line of either, network_args,
    or the JSON of a file's metadata. ConfigError where it is none of them, and for every value
    that means nothing."""
    text = text.strip().lstrip("\ufeff")
    if not text:
        raise ConfigError({"": "there is nothing to read"}, "Paste a configuration.")
    recipe = _of_json(text) or _of_toml(text) or _of_words(text)
    if recipe is None or not recipe.settings:
        said = " ".join(recipe.unknown) if recipe else ""
        raise ConfigError({"": f"the text holds no settings that are known here. {said}".strip()},
                          "Paste TOML, a command line, kohya's network_args, or give an adapter "
                          "file.")
    return recipe


def of_file(path: Path) -> Recipe:
    """How an adapter was made, by its file's metadata; a text file is read as pasted text.

    AdapterError where it says nothing of that.
    """
    if path.suffix == ".safetensors":
        _, found = tensorfile.peek(path, AdapterError)
        recipe = of_metadata(found, path)
        if recipe is None:
            raise AdapterError(f"{path.name} does not say how it was trained.",
                               "Ask its author; what its tensors tell, inspect shows.")
        return recipe
    try:
        return read(path.read_text("utf-8-sig"))
    except OSError as error:
        raise AdapterError(f"{path} cannot be read: {error.strerror}.", "Check the path.") from None
    except UnicodeDecodeError:
        raise AdapterError(f"{path} is neither text nor a .safetensors file.",
                           "Give an adapter, or a file with settings.") from None


def of_metadata(found: Mapping[str, str], path: Path | None = None) -> Recipe | None:
    """The settings in an adapter's metadata: ours, with its places where they are here, else
    kohya's; None where there are none. `path` is where it lies, if it is a file."""
    run = metadata.config_of(found) or provenance.source_config(found)
    if run is not None:
        lost = missing(run := contestants.at_home(path, run) if path else run)
        return Recipe("the adapter's own settings", {
            name: value for name, value in config.to_dict(run).items()
            if name != metadata.NOT_SHARED and name not in lost},
            tuple(f"{name}={named}: not on this machine." for name, named in lost.items()),
            preset=found.get(metadata.PRESET_KEY, ""))
    given = kohya.from_metadata(found)
    if not any(key.startswith("network_") for key in given):
        return None
    return Recipe("the adapter's metadata, in kohya's words", *kohya.read(given))


def missing(run: Config) -> dict[str, str]:
    """{setting: path} of what a recipe names and this machine does not have."""
    found = {path: knobs.get(run, path) for path in metadata.PLACES
             if not LEAVES[path].knob.catalogue}
    runs = Path(run.output.folder).expanduser()  # an adapter may be called as its run is
    return {path: named for path, named in found.items()
            if not (kohya_data.is_here(named) or hub.is_name(config.find(named))
                    or (path == "network.weights" and (runs / named).is_dir()))}


def _of_json(text: str) -> Recipe | None:
    if not text.startswith("{"):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    if any(str(key).startswith(("ss_", metadata.CONFIG_KEY)) for key in found):
        return of_metadata({str(key): value if isinstance(value, str) else json.dumps(value)
                            for key, value in found.items()})
    return _of_table(found, "JSON")


def _of_toml(text: str) -> Recipe | None:
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        if re.search(r"(?m)^\s*\[[\w.]+\]\s*$", text):  # sections: it was meant as TOML
            raise ConfigError({"": f"the text is not valid TOML: {error}"},
                              "Correct that line.") from None
        return None
    return _of_table(found, "TOML")


def _of_table(found: Mapping[str, Any], kind: str) -> Recipe | None:
    """Our settings by their sections or paths, or kohya's arguments in any."""
    flat = config.flat(found)
    if any(path in LEAVES or path.rpartition(".")[0] in _tables() for path in flat):
        return _ours(flat, f"our {kind}")
    given = {path.rpartition(".")[2]: value for path, value in flat.items()}
    if given.keys() & kohya.KNOWN:
        return Recipe(f"kohya's {kind}", *kohya.read(given))
    if given.keys() & {*kohya.ARGS, *kohya.ALIASES, *_option_names()}:
        return Recipe("network_args", *kohya.read({"network_args": given}))
    return None


def _of_words(text: str) -> Recipe | None:
    found = words.split(text)
    flags = words.flags(found)
    if flags.keys() & kohya.KNOWN:
        return Recipe("kohya's command line", *kohya.read(flags))
    pairs = [word for word in found if "=" in word and not word.startswith("--")]
    other = [word for word in found if word not in pairs and word not in OUR_WORDS]
    ours = [word for word in pairs if _is_ours(word.partition("=")[0].strip())]
    if ours:
        recipe = _ours(_values(pairs), "our command line")
    elif pairs:
        recipe = Recipe("network_args", *kohya.read({"network_args": pairs}))
    else:
        return None
    if len(other) > PROSE + len(pairs):
        return None
    listed = (f"{', '.join(other)}: no settings.",) if other else ()
    return replace(recipe, unknown=(*recipe.unknown, *listed))


def _ours(flat: Mapping[str, Any], source: str) -> Recipe:
    """Settings by our own paths; ConfigError for values out of bounds."""
    problems: dict[str, str] = {}
    unknown: list[str] = []
    settings: dict[str, Any] = {}
    for path, value in flat.items():
        table, _, name = path.rpartition(".")
        if path not in LEAVES and table in _tables():
            settings[table] = {**settings.get(table, {}), name: value}
        elif path not in LEAVES:
            text = knobs.unknown_key(path, LEAVES)
            unknown.append(text[:1].upper() + text[1:])
        else:
            try:
                settings[path] = knobs.coerce(LEAVES[path], value)
            except ValueError as error:
                problems[path] = f"{path} {error}"
    if "network.algo" in settings or "network.options" in settings:
        problems |= _option_problems(settings)
    if problems:
        raise ConfigError(problems)
    return Recipe(source, settings, tuple(unknown))


def _option_problems(settings: Mapping[str, Any]) -> dict[str, str]:
    """A recipe that names its algorithm must give it options of its own."""
    if "network.algo" not in settings:
        return {}
    try:
        algorithms.read_options(settings["network.algo"], settings.get("network.options", {}))
    except ConfigError as error:
        return error.problems
    return {}


def _values(pairs: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for word in pairs:
        path, _, value = word.partition("=")
        path = path.strip()
        found[path] = config.parse_value(value) if path.rpartition(".")[0] in _tables() else value
    return found


def _is_ours(path: str) -> bool:
    section, dot, _ = path.partition(".")
    return bool(dot) and section in {leaf.partition(".")[0] for leaf in LEAVES}


def _tables() -> set[str]:
    return {path for path, leaf in LEAVES.items() if leaf.is_table}


def _option_names() -> set[str]:
    return {name for entry in algorithms.catalogue().values()
            for name in knobs.leaves(entry.Options)}


def _written(run: Config, path: str) -> str:
    value = knobs.get(run, path)
    return config.toml_value(LEAVES[path].knob.none if value is None else value)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
