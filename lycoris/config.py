"""The settings of a run, from where people write them: TOML files, the command line, the form.

They come in layers, later over earlier: the defaults in `lycoris.settings`, what the base model's
folder recommends (`lycogui.toml` in it), a preset that is named (`preset = "person-sdxl-12gb"`, a
file of assets/presets), the run's TOML file, and `path=value` overrides.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from . import knobs
from .errors import ConfigError, RunError
from .settings import Config

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "assets"
BASE_SETTINGS = "lycogui.toml"
# Names that mean something else beside the runs: a contestant, and folders of pictures.
RESERVED_NAMES = ("base", "cache", "comparisons", "pictures", "tools", "adapters", "models",
                  "calibrations")
PRESETS = Path("presets")  # the user's own choices of layers, in the working folder
RUN_PRESETS = ASSETS / "presets"  # ours, of whole runs
PRESET = "preset"  # the word that names one of those, in a file or on the command line
# Settings that files of earlier versions have under another name.
MOVED = {"train.noise_offset": "loss.noise_offset"}
# Min-SNR by its gamma alone, 0 for none.
OLD_GAMMA = ("train.min_snr_gamma", "loss.min_snr_gamma")


LEAVES = knobs.leaves(Config)
SAMPLE = LEAVES["dataset.folder"].default
# The open tables, and the setting whose value says what may stand in them.
OWNERS = {"network.options": "network.algo", "optimizer.args": "optimizer.name"}
# What an entry of network.rules may say, and the setting whose bounds it shares.
RULE_KEYS = {"match": "", "exclude": "", "algo": "network.algo", "dim": "network.dim",
             "alpha": "network.alpha", "lr": "optimizer.text_encoder_lr",
             "options": "network.options"}


def build(values: Mapping[str, Any]) -> Config:
    """A Config from {path: value}; raises ConfigError naming every unknown or impossible
    setting."""
    values = renamed(values)
    problems: dict[str, str] = {}
    ready: dict[str, Any] = {}
    for path, value in values.items():
        leaf = LEAVES.get(path)
        if leaf is None:
            problems[path] = knobs.unknown_key(path, LEAVES)
            continue
        try:
            ready[path] = knobs.coerce(leaf, value)
        except ValueError as error:
            problems[path] = f"{path} {error}"
    if "output.name" in ready and (bad := name_problem(ready["output.name"])):
        problems["output.name"] = bad
    if problems:
        raise ConfigError(problems)
    return knobs.replace(Config(), ready)


def load(file: Path | str | None = None, overrides: Iterable[str] = (),
         values: Mapping[str, Any] | None = None) -> Config:
    """The settings of a TOML file (or none) with ``path=value`` overrides over it, and typed
    `values` by their paths over both.

    What the base model's own folder recommends, and over it the preset that is named, lie between
    the defaults and the file.
    """
    own = flat(read_toml(Path(file))) if file else {}
    for text in overrides:
        _override(own, text)
    for path, value in (values or {}).items():
        _put(own, path, value)
    named = own.pop(PRESET, "")
    preset = preset_settings(named) if named else {}
    base = own.get("model.base", LEAVES["model.base"].default)
    pictures = own.get("dataset.folder", SAMPLE)
    recommended = base_settings(base, str(pictures)) if isinstance(base, str) and not known_model(
        own.get("model.family")) else {}
    return build(_over(recommended | preset, own))


def _over(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Settings over others; tables are merged key by key, where they are still the same thing's."""
    merged = {**lower, **upper}
    for path, leaf in LEAVES.items():
        if not leaf.is_table or path not in lower:
            continue
        owner = OWNERS.get(path, "")
        if owner in upper and owner in lower and upper[owner] != lower[owner]:
            merged[path] = upper.get(path, {})
        elif isinstance(upper.get(path), Mapping):
            merged[path] = {**lower[path], **upper[path]}
    return merged


def target(words: Iterable[str]) -> tuple[Path | None, list[str]]:
    """(the first word if it is a file or folder, the other words: settings)"""
    words = list(words)
    if words and ("=" not in words[0] or Path(words[0]).exists()):
        return Path(words[0]), words[1:]
    return None, words


def settings(words: Iterable[str], values: Mapping[str, Any] | None = None) -> Config:
    """What a command line says: a TOML file or a run folder, and overrides; `values` as for `load`.

    A folder of pictures is taken as the dataset.
    """
    first, others = target(words)
    if first and first.is_dir():
        own = first / "config.toml"
        if own.is_file():
            return load(own, others, values)
        return load(None, [f"dataset.folder={first}", *others], values)
    return load(first, others, values)


def known_model(family: Any) -> bool:
    """Is it the name of a model in assets/models, whose facts count instead of the base's?"""
    return isinstance(family, str) and (ASSETS / "models" / f"{family}.json").is_file()


def base_settings(base: str, pictures: str = "") -> dict[str, Any]:
    """{path: value} that a base model's folder recommends; empty where it says nothing. Its prompts
    are about the pictures of our sample: they are left out for a folder of others."""
    file = find(base) / BASE_SETTINGS
    found = flat(read_toml(file)) if file.is_file() else {}
    if pictures and find(pictures).name != Path(SAMPLE).name:  # a copy keeps its name
        found.pop("sample.prompts", None)
    return found


def preset_names() -> list[str]:
    """The presets of whole runs."""
    return sorted(file.stem for file in RUN_PRESETS.glob("*.toml"))


def preset_settings(name: str) -> dict[str, Any]:
    """{path: value} that a preset says, its tables whole."""
    return {**{path: {} for path in OWNERS}, **flat(read_preset(name)[1])}


def read_preset(name: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what a preset's file says of itself, its settings); ConfigError for a name that is none."""
    names = preset_names()
    if name not in names:
        raise ConfigError({PRESET: f"there is no preset {name!r}."
                           + knobs.nearest(str(name), tuple(names))},
                          "python -m lycoris presets lists them.")
    tree = read_toml(RUN_PRESETS / f"{name}.toml")
    return tree.pop("about"), tree


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """{path: value} of nested tables, under the names that settings have now."""
    return renamed(dict(knobs.flatten(tree, LEAVES)))


def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """{path: value} under the names of now; what stands under such a name itself goes first."""
    found: dict[str, Any] = {}
    for path in OLD_GAMMA:
        if path in values:
            off = values[path] is None or str(values[path]) in ("0", "0.0")
            found |= {"loss.weighting": "none"} if off else {
                "loss.weighting": "min-snr", "loss.snr_gamma": values[path]}
    return found | {MOVED.get(path, path): value for path, value in values.items()
                    if path not in OLD_GAMMA}


def read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise RunError(f"There is no settings file {file}.",
                       "Give the path of a .toml file or of a run folder.") from None
    except UnicodeDecodeError as error:
        raise RunError(f"{file} is not UTF-8 text ({error.reason} at byte {error.start}).",
                       "Save it again as UTF-8.") from None
    except tomllib.TOMLDecodeError as error:
        raise RunError(f"{file} is not valid TOML: {error}.", "Correct that line.") from None


def dump(config: Config) -> str:
    """The whole config as TOML, defaults included, each setting under its help."""
    lines: list[str] = []
    section = ""
    for path, leaf in LEAVES.items():
        head, name = path.split(".")
        if head != section:
            lines += [""] * bool(lines) + [f"[{head}]"]
            section = head
        value = knobs.get(config, path)
        written = toml_value(leaf.knob.none if value is None else value)
        lines += [f"# {leaf.knob.help}", f"{name} = {written}"]
    return "\n".join(lines) + "\n"


def to_dict(config: Config) -> dict[str, Any]:
    """{path: value} of every setting; None stays None."""
    return {path: knobs.get(config, path) for path in LEAVES}


def find(path: str) -> Path:
    """A path as the user means it: as it stands, else from the program's own folder."""
    try:
        given = Path(path).expanduser()
    except RuntimeError:  # ~somebody who is not here
        given = Path(path)
    if given.is_absolute() or given.exists() or not (ROOT / given).exists():
        return given
    return ROOT / given


def run_name(config: Config) -> str:
    """The run's name; made from the dataset and the algorithm where none is given."""
    if config.output.name:
        return config.output.name
    stem = re.sub(r"[^\w.-]+", "-", find(config.dataset.folder).name).strip("-.") or "run"
    return f"{stem[:60]}-{config.network.algo}"


def name_problem(name: str) -> str:
    """Why `name` cannot be a folder's name on every system, or an empty string."""
    if not name:
        return ""
    if re.search(r'[<>:"/\\|?*\x00-\x1f]', name):
        return f"output.name {name!r} has a character that cannot stand in a file name"
    if name != name.strip(" .") or len(name) > 100:
        return "output.name must be at most 100 characters and not start or end with a dot or space"
    if re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?", name):
        return f"output.name {name!r} is a reserved name on Windows"
    if name.casefold() in RESERVED_NAMES:
        return f"output.name {name!r} has a meaning of its own here; choose another name"
    return ""


def _override(values: dict[str, Any], text: str) -> None:
    path, equals, value = text.partition("=")
    path = path.strip()
    if not equals:
        raise ConfigError({"": f"{text!r} is no setting; write path=value, e.g. network.dim=8"})
    _put(values, path, parse_value(value) if _table_of(path) else value)


def _put(values: dict[str, Any], path: str, value: Any) -> None:
    """Set one setting; path may lead into an open table, as network.options.factor does."""
    if table := _table_of(path):
        values[table] = {**values.get(table, {}), path.rpartition(".")[2]: value}
    else:
        values |= renamed({path: value})


def _table_of(path: str) -> str:
    table = path.rpartition(".")[0]
    return table if table in LEAVES and LEAVES[table].is_table else ""


def parse_value(text: str) -> Any:
    """An open table's value from a command line: TOML where it is TOML, else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def toml_value(value: Any) -> str:
    """One value as TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_toml_key(str(k))} = {toml_value(v)}" for k, v in value.items())
        return f"{{{inner}}}"
    return "[" + ", ".join(toml_value(item) for item in value) + "]"


def _toml_key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml_value(name)
