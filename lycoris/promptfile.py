"""What sample pictures are painted of: prompts with settings of their own, in kohya's syntax.

    a zorb on grass --w 768 --h 512 --d 7 --s 30 --l 5 --n blurry --ss euler_a
    # a line that begins like this is left alone

They stand in sample.prompts, one a line, and in a file: .txt as above; .toml with defaults under
[prompt] and a [[prompt.subset]] each; .json, a list of objects.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from . import config, knobs, samplers
from .errors import ConfigError, RunError
from .events import Warned
from .settings import SampleConfig

LINES, FILE = "sample.prompts", "sample.prompts_file"
# An option of a line, the field it fills, and the setting whose type and bounds it shares.
OPTIONS = {"w": ("width", "sample.width"), "h": ("height", "sample.height"),
           "d": ("seed", "sample.seeds"), "s": ("steps", "sample.steps"),
           "l": ("guidance", "sample.guidance"), "n": ("negative", "sample.negative"),
           "ss": ("sampler", "sample.sampler")}
# What belongs to other kinds of models than ours, and what it is there.
OTHERS = {"g": "the guidance that Flux has learned", "fs": "the shift of flow models",
          "cn": "a picture for ControlNet", "ctr": "where Lumina ends its CFG",
          "rcfg": "how far Lumina evens out its CFG"}
# The same in the tables of .toml and .json files.
KEYS = {"width": "w", "height": "h", "seed": "d", "sample_steps": "s", "scale": "l",
        "negative_prompt": "n", "sample_sampler": "ss", "guidance_scale": "g", "flow_shift": "fs",
        "controlnet_image": "cn", "cfg_trunc_ratio": "ctr", "renorm_cfg": "rcfg"}
IDLE = ("enum",)  # kohya's own numbering: says nothing
THEIRS = {"ddim": "DDIM", "pndm": "PNDM", "lms": "LMS", "euler": "Euler", "euler_a": "Euler a",
          "heun": "Heun", "dpm_2": "DPM2", "dpm_2_a": "DPM2 a", "dpmsolver++": "DPM++ 2M",
          "dpmsolver": "DPM++ 2M", "dpmsingle": "DPM++ 2S", "k_lms": "LMS", "k_euler": "Euler",
          "k_euler_a": "Euler a", "k_dpm_2": "DPM2", "k_dpm_2_a": "DPM2 a"}
SAMPLERS = {**THEIRS, **{name.lower(): name for name in samplers.ROWS}}
SHOWN = 3  # bad lines that are named in one message


@dataclass(frozen=True)
class Prompt:
    """One prompt; None leaves it to the settings. `place` is where it stands, for messages;
    `unused` has what it says and is not painted by, in sentences."""

    text: str
    width: int | None = None
    height: int | None = None
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    negative: str | None = None
    sampler: str | None = None
    place: str = ""
    unused: tuple[str, ...] = ()

    @property
    def own(self) -> dict[str, Any]:
        """What it says itself of how it is painted, without its seed."""
        return {name: value for name, value in asdict(self).items()
                if value is not None and name not in ("text", "seed", "place", "unused")}


def read(sample: SampleConfig) -> tuple[Prompt, ...]:
    """The prompts of the settings, then those of the file; ConfigError names what is wrong with
    which line."""
    problems: dict[str, str] = {}
    found: list[Prompt] = []
    sources = [(LINES, lambda: [(f"prompt {n}", line) for n, line in enumerate(sample.prompts, 1)])]
    if sample.prompts_file.strip():
        sources.append((FILE, lambda: _entries(config.find(sample.prompts_file.strip()))))
    for field, entries in sources:
        wrong = []
        try:
            for place, entry in entries():
                try:
                    found += _prompts(place, entry)
                except ValueError as error:
                    wrong.append(f"{place}: {error}")
        except RunError as error:
            wrong.append(str(error))
        if wrong:
            more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
            problems[field] = f"{field}, " + "; ".join(wrong[:SHOWN]) + more
    if problems:
        raise ConfigError(problems)
    return tuple(found)


def plain(sample: SampleConfig) -> SampleConfig:
    """The same with the bare texts of all prompts, each once: for a comparison, where everything
    else is the same in every cell."""
    texts = tuple(dict.fromkeys(prompt.text for prompt in read(sample)))
    return replace(sample, prompts=texts, prompts_file="")


def notes(sample: SampleConfig) -> list[Warned]:
    """What prompts say and are not painted by, each thing once."""
    found: dict[str, list[str]] = {}
    for prompt in read(sample):
        for said in prompt.unused:
            found.setdefault(said, []).append(prompt.place)
    return [Warned(f"{places[0][0].upper()}{places[0][1:]}"
                   + f" and {len(places) - 1} more" * (len(places) > 1) + f": {said}")
            for said, places in found.items()]


def check_sides(sample: SampleConfig, unit: int) -> dict[str, str]:
    """{setting: problem} of prompts whose own sides are no multiples of what the model halves."""
    found: dict[str, str] = {}
    for prompt in read(sample):
        field = FILE if prompt.place.startswith(("line", "entry", "subset")) else LINES
        for name, side in (("w", prompt.width), ("h", prompt.height)):
            if side is not None and side % unit:
                found.setdefault(field, f"{field}, {prompt.place}: --{name} is {side}; this model "
                                 f"needs multiples of {unit} px. Set it to "
                                 f"{max(unit, round(side / unit) * unit)}.")
    return found


def _prompts(place: str, entry: Any) -> list[Prompt]:
    if not isinstance(entry, str):
        return [_table(place, entry)]
    line = entry.strip()
    return [] if not line or line.startswith("#") else [_line(place, line)]


def _line(place: str, line: str) -> Prompt:
    """ "a zorb --w 512" as a prompt; ValueError for an option that is none, or says nothing."""
    text, *options = re.split(r"(?:^|\s)--(?=[A-Za-z])", line)
    values: dict[str, Any] = {}
    for option in options:
        name, _, value = option.strip().partition(" ")
        if name.lower() not in OPTIONS | OTHERS:
            raise ValueError(f"there is no option --{name}; known are "
                             + ", ".join(f"--{known}" for known in OPTIONS | OTHERS))
        values[name.lower()] = value.strip()
    return _made(place, text.strip(), values)


def _table(place: str, entry: Any) -> Prompt:
    if not isinstance(entry, Mapping):
        raise ValueError(f"expects a table with a prompt, got {entry!r}")
    unknown = [key for key in entry if key not in (*KEYS, *IDLE, "prompt")]
    if unknown:
        raise ValueError(f"there is no key {unknown[0]}." + knobs.nearest(unknown[0], KEYS))
    text = entry.get("prompt", "")
    if not isinstance(text, str):
        raise ValueError(f"its prompt is no text: {text!r}")
    if " --" in text:  # options within the text, as the other kind of file has them
        inner = _line(place, text)
        rest = _made(place, "", {KEYS[key]: entry[key] for key in KEYS if key in entry})
        seed = inner.seed if inner.seed is not None else rest.seed
        return replace(inner, **{**rest.own, **inner.own}, seed=seed,
                       unused=tuple(dict.fromkeys(rest.unused + inner.unused)))
    return _made(place, text.strip(), {KEYS[key]: entry[key] for key in KEYS if key in entry})


def _made(place: str, text: str, values: Mapping[str, Any]) -> Prompt:
    found: dict[str, Any] = {}
    unused = [f"--{option} is {OTHERS[option]}, and not used with this kind of model."
              for option in values if option in OTHERS]
    for option, value in values.items():
        if option in OTHERS:
            continue
        field, path = OPTIONS[option]
        leaf = config.LEAVES[path]
        try:
            got = knobs.coerce(leaf, [value] if leaf.item_type else value)
        except ValueError as error:
            raise ValueError(f"--{option} {error}") from None
        if got is None:
            raise ValueError(f"--{option} is empty")
        found[field] = got[0] if leaf.item_type else got
    if "sampler" in found:
        found["sampler"] = _sampler(found["sampler"])
        if lacking := samplers.problem(found["sampler"]):
            unused.append(f"--ss is not used. {lacking}")
            del found["sampler"]
    return Prompt(text, place=place, unused=tuple(unused), **found)


def _sampler(name: str) -> str:
    known = SAMPLERS.get(name.strip().lower())
    if known is None:
        raise ValueError(f"--ss: there is no sampler {name!r}; choose one of "
                         f"{', '.join(samplers.ROWS)}." + knobs.nearest(name, SAMPLERS))
    return known


def _entries(file: Path) -> list[tuple[str, Any]]:
    """(where, line or table) of a file; RunError where it cannot be read as what it is."""
    kind = file.suffix.lower()
    if kind == ".toml":
        whole = config.read_toml(file)
        table = whole.get("prompt", whole)
        if not isinstance(table, Mapping):
            raise RunError(f"{file} has no table [prompt].", "Write its prompts under it.")
        shared = {key: value for key, value in table.items() if key != "subset"}
        subsets = table.get("subset", [{}] if "prompt" in shared else [])
        return [(f"subset {n} of {file.name}",
                 {**shared, **each} if isinstance(each, Mapping) else each)
                for n, each in enumerate(subsets, 1)]
    text = _text(file)
    if kind == ".json":
        try:
            listed = json.loads(text)
        except ValueError as error:
            raise RunError(f"{file} is not valid JSON: {error}.", "Correct that line.") from None
        if not isinstance(listed, list):
            raise RunError(f"{file} holds no list.", "Write a list of objects with a prompt each.")
        return [(f"entry {n} of {file.name}", each) for n, each in enumerate(listed, 1)]
    if kind != ".txt":
        raise RunError(f"{file} is none of .txt, .toml and .json.",
                       "Give a file of prompts, one a line.")
    return [(f"line {n} of {file.name}", line) for n, line in enumerate(text.splitlines(), 1)]


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise RunError(f"There is no file {file} that can be read ({error.strerror}).",
                       "Give the path of a file of prompts.") from None
    except UnicodeDecodeError as error:
        raise RunError(f"{file} is not UTF-8 text ({error.reason} at byte {error.start}).",
                       "Save it again as UTF-8.") from None
