"""A setting is declared once, as a typed field with a Knob; everything else walks the declaration.

    dim: Annotated[int, Knob("Rank of each factor.", low=1, high=512)] = 16

Knobs carry facts of the domain only (help, bounds, unit, choices); where a setting stands on a
screen is the business of the screen.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import math
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Knob:
    """What a setting means. Bounds are inclusive; `none` is the word that stands for None."""

    help: str
    low: float | None = None
    high: float | None = None
    step: float | None = None
    unit: str = ""
    choices: tuple[str, ...] = ()
    catalogue: str = ""  # the registry whose names are allowed, e.g. "algorithms"
    none: str = ""
    label: str = ""
    file: bool = False  # a path on this machine


@dataclass(frozen=True)
class Leaf:
    """One setting: its dotted path, its type without Optional, its knob and its default."""

    path: str
    type: Any
    optional: bool
    knob: Knob
    default: Any

    @property
    def name(self) -> str:
        return self.path.rsplit(".", 1)[-1]

    @property
    def label(self) -> str:
        return self.knob.label or self.name.replace("_", " ").capitalize()

    @property
    def is_table(self) -> bool:
        """An open table such as network.options, whose keys belong to somebody else."""
        return self.type is dict

    @property
    def item_type(self) -> type | None:
        """int for tuple[int, ...]; None for anything that is no list."""
        if typing.get_origin(self.type) is not tuple:
            return None
        kind = typing.get_args(self.type)[0]
        return typing.get_origin(kind) or kind


@functools.cache
def leaves(config_type: type, prefix: str = "") -> dict[str, Leaf]:
    """{path: Leaf} over nested dataclasses, in declaration order."""
    hints = typing.get_type_hints(config_type, include_extras=True)
    found: dict[str, Leaf] = {}
    for field in dataclasses.fields(config_type):
        path = f"{prefix}{field.name}"
        kind, knob = _unwrap(hints[field.name])
        if dataclasses.is_dataclass(kind):
            found |= leaves(kind, f"{path}.")
            continue
        assert knob is not None, f"{path} has no Knob"
        kind, optional = _without_none(kind)
        found[path] = Leaf(path, kind, optional, knob, _default(field))
    return found


def get(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name)
    return config


def replace(config: Any, values: Mapping[str, Any]) -> Any:
    """A copy with the settings at the given paths changed; the paths must exist."""
    here: dict[str, Any] = {}
    below: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        head, _, rest = path.partition(".")
        if rest:
            below.setdefault(head, {})[rest] = value
        else:
            here[head] = value
    here |= {head: replace(getattr(config, head), inner) for head, inner in below.items()}
    return dataclasses.replace(config, **here)


def flatten(tree: Mapping[str, Any], known: Mapping[str, Leaf]) -> Iterator[tuple[str, Any]]:
    """(path, value) pairs of a nested table; a table leaf stays whole."""

    def walk(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in node.items():
            path = f"{prefix}{key}"
            if isinstance(value, Mapping) and not (path in known and known[path].is_table):
                yield from walk(value, f"{path}.")
            else:
                yield path, value

    return walk(tree, "")


def nearest(name: str, names: Iterator[str] | Mapping[str, Any] | tuple[str, ...]) -> str:
    """" Did you mean x?" or an empty string."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" Did you mean {close[0]}?" if close else ""


def unknown_key(path: str, known: Mapping[str, Any]) -> str:
    """The text for a setting that does not exist, with the nearest that does."""
    guess = nearest(path, known)
    if not guess:  # a right name in the wrong section
        homes = [p for p in known if p.rsplit(".", 1)[-1] == path.rsplit(".", 1)[-1]]
        guess = f" Did you mean {homes[0]}?" if homes else ""
    return f"there is no setting {path}.{guess}"


def coerce(leaf: Leaf, value: Any) -> Any:
    """`value` as the leaf's type, within its bounds; raises ValueError with a text for a person.

    Strings come from a command line or a text field, so ``"8"`` is fine for a number and ``"true"``
    for a switch; anything that would have to be guessed is refused.
    """
    if leaf.optional and (value is None or value in ("", leaf.knob.none)):
        return None
    if leaf.is_table:
        if not isinstance(value, Mapping):
            raise ValueError(f"expects a table of settings, got {value!r}")
        return dict(value)
    item = leaf.item_type
    if item is not None:
        return tuple(_scalar(leaf, item, part) for part in _parts(item, value))
    return _scalar(leaf, leaf.type, value)


def _scalar(leaf: Leaf, kind: type, value: Any) -> Any:
    if kind is bool:
        return _switch(value)
    if kind is dict:
        if not isinstance(value, Mapping):
            raise ValueError(f"expects tables such as {{match = \"*\", dim = 4}}, got {value!r}")
        return dict(value)
    if kind in (int, float):
        return _bounded(leaf.knob, _number(kind, value))
    if not isinstance(value, str):
        raise ValueError(f"expects text, got {value!r}")
    if leaf.knob.choices and value not in leaf.knob.choices:
        raise ValueError(
            f"there is no {value!r}; choose one of {', '.join(leaf.knob.choices)}."
            + nearest(value, leaf.knob.choices))
    return value


def _switch(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise ValueError(f"is a switch: true or false, got {value!r}")


def _number(kind: type, value: Any) -> Any:
    if value is None:
        raise ValueError("is empty; give a number")
    if isinstance(value, bool):
        raise ValueError(f"expects a number, got {value!r}")
    if kind is int and isinstance(value, (int, str)):
        with contextlib.suppress(ValueError):
            return int(value)  # not by way of float, which is exact up to 2**53 only
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"expects a number, got {value!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"expects a finite number, got {value!r}")
    if kind is int:
        if number != int(number):
            raise ValueError(f"expects a whole number, got {value!r}")
        return int(number)
    return number


def _bounded(knob: Knob, number: float) -> float:
    if knob.low is not None and number < knob.low:
        raise ValueError(f"is {_short(number)}; the least is {_short(knob.low)}{_unit(knob)}")
    if knob.high is not None and number > knob.high:
        raise ValueError(f"is {_short(number)}; the most is {_short(knob.high)}{_unit(knob)}")
    return number


def _parts(item: type, value: Any) -> list[Any]:
    """The members of a list given as a list, as TOML text, or as one setting's plain text."""
    if isinstance(value, (list, tuple)):
        return list(value)
    if not isinstance(value, str):
        return [value]
    text = value.strip()
    if text.startswith("["):
        try:
            return list(tomllib.loads(f"value = {text}")["value"])
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"is not a list: {text!r} ({error})") from None
    if item is dict:
        return [_table(line.strip()) for line in text.splitlines() if line.strip()]
    split = text.splitlines() if item is str else text.replace(",", " ").split()
    return [part.strip() for part in split if part.strip()]


def _table(line: str) -> Any:
    """One line such as `match = "*attn2*", dim = 4` as a table."""
    braced = line if line.startswith("{") else f"{{{line}}}"
    try:
        return tomllib.loads(f"value = {braced}")["value"]
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"wants lines like match = \"*attn2*\", dim = 4, not {line!r} "
                         f"({error})") from None


def _unwrap(hint: Any) -> tuple[Any, Knob | None]:
    if typing.get_origin(hint) is typing.Annotated:
        kind, *extras = typing.get_args(hint)
        return kind, next((extra for extra in extras if isinstance(extra, Knob)), None)
    return hint, None


def _without_none(kind: Any) -> tuple[Any, bool]:
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        inner = [part for part in typing.get_args(kind) if part is not type(None)]
        assert len(inner) == 1, f"only X | None is supported, not {kind}"
        return inner[0], True
    if typing.get_origin(kind) in (dict, Mapping):
        return dict, False
    return kind, False


def _default(field: dataclasses.Field) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None


def _short(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


def _unit(knob: Knob) -> str:
    return f" {knob.unit}" if knob.unit else ""
