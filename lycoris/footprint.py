"""Tables of what base models hold in memory: read from assets/activations, or from the folder
where a trace of a model of one's own was kept. `lycoris.activations` makes them.

A number is a line (a, b): a + b * latent positions bytes, for one picture of a batch.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import durable
from .config import ASSETS
from .families import Family

FORMAT = 1
MODES = ("fp32", "half")  # everything in fp32; a half-precision base under autocast
FOLDER = "activations"  # of the tables, in assets and in the folder of the runs
TEXT_LEVEL = "text_model."
SOME = 4096  # latent positions at which two places of a pass are compared: 512 px
Line = tuple[float, float]


@dataclass(frozen=True)
class Spot:
    """Where a layer stands in the forward pass.

    `positions` of its output, `fed` of its input, `before`: bytes held for the backward pass when
    it is reached, if everything learns. `source` says of its input: "saved" by the model anyway,
    "cast" to half precision for this layer alone, or the number of an input it shares with others.
    `keeps_output`: its output is saved by what comes next.
    """

    positions: Line
    fed: Line
    before: Line
    source: int | str
    keeps_output: bool


@dataclass(frozen=True)
class Pass:
    """One part's forward and backward pass in one mode.

    `segments` are what checkpointing computes again: (bytes held before it, within it, of its
    inputs, of it when it is computed again). `transient` is what is in use besides what is saved
    where that is most, `no_gradient` what a pass without gradients takes.
    """

    spots: Mapping[str, Spot]
    segments: tuple[tuple[Line, Line, Line, Line], ...]
    total: Line
    transient: Line
    transient_checkpointed: Line
    no_gradient: Line

    def grown(self, more: Mapping[str, Line]) -> Pass:
        """The pass with so many more bytes saved between each of these layers and the next."""
        spots, places = {}, []
        ahead = (0.0, 0.0)
        for name, spot in self.spots.items():
            spots[name] = replace(spot, before=_sum(spot.before, ahead))
            if name in more:
                places.append((at(spot.before, SOME), more[name]))
                ahead = _sum(ahead, more[name])
        segments = []
        for first, full, held, own in self.segments:
            begin, end = at(first, SOME), at(first, SOME) + at(full, SOME)
            inside = _sum(*(line for place, line in places if begin <= place < end))
            segments.append((_sum(first, *(line for place, line in places if place < begin)),
                             _sum(full, inside), held, _sum(own, inside)))
        return replace(self, spots=spots, segments=tuple(segments),
                       total=_sum(self.total, ahead))


@dataclass(frozen=True)
class Table:
    """`parts`: {part: {"parameters": numbers, "modes": {mode: its Pass as JSON}}} and "vae" with
    "encode" and "decode", the bytes in use while it does that for one picture."""

    format: int
    fingerprint: str
    family: str
    parts: Mapping[str, Mapping[str, Any]]

    def parameters(self, part: str) -> int:
        return self.parts[part]["parameters"]

    @property
    def learning(self) -> tuple[str, ...]:
        """The parts that can have adapters, the denoiser first."""
        return tuple(part for part, said in self.parts.items() if "modes" in said)

    def run(self, part: str, mode: str) -> Pass:
        return _pass(self, part, mode)

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def text(self) -> str:
        """As JSON, a layer a line."""
        parts = []
        for part, said in self.parts.items():
            if "modes" not in said:
                parts.append(f'"{part}": {json.dumps(said)}')
                continue
            modes = [f'"{mode}": ' + "{" + ",\n".join(
                f'"{key}": {_rows(value) if key in ("layers", "segments") else json.dumps(value)}'
                for key, value in one.items()) + "}" for mode, one in said["modes"].items()]
            parts.append(f'"{part}": {{"parameters": {said["parameters"]}, "modes": {{\n'
                         + ",\n".join(modes) + "}}")
        return (f'{{"format": {self.format}, "family": "{self.family}",\n"fingerprint": '
                f'"{self.fingerprint}", "parts": {{\n' + ",\n".join(parts) + "}}\n")


def _rows(rows: list[Any]) -> str:
    return "[\n" + ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows) + "]"


@functools.lru_cache(maxsize=16)
def _pass(table: Table, part: str, mode: str) -> Pass:
    said = table.parts[part]["modes"][mode]
    return Pass(
        {name: Spot(tuple(positions), tuple(fed), tuple(before), source, bool(result))
         for name, positions, fed, before, source, result in said["layers"]},
        tuple(tuple(tuple(line) for line in segment) for segment in said["segments"]),
        tuple(said["total"]), tuple(said["transient"]), tuple(said["transient_checkpointed"]),
        tuple(said["no_gradient"]))


def _sum(*lines: Line) -> Line:
    return sum(line[0] for line in lines), sum(line[1] for line in lines)


def at(line: Line, positions: float) -> float:
    return line[0] + line[1] * positions


def fingerprint(family: Family) -> str:
    """The same for two models exactly where their layers have the same names and shapes."""
    return _fingerprint(family.layers)


@functools.lru_cache(maxsize=16)
def _fingerprint(layers: tuple) -> str:
    listed = sorted(f"{layer.part} {layer.name.removeprefix(TEXT_LEVEL)} {layer.shape}"
                    for layer in layers if layer.kind != "norm")
    return hashlib.sha256("\n".join(listed).encode()).hexdigest()[:24]


def find(family: Family, folder: Path | str) -> Table | None:
    """The table of a base model: one of ours, or a trace kept in `folder` of the runs; None where
    there is none of this version."""
    mark = fingerprint(family)
    own = _shipped().get(mark)
    if own is not None:
        return _read(own)
    kept = _kept(folder, mark)
    table = _read(kept) if kept.is_file() else None
    return table if table is not None and table.format == FORMAT else None


def keep(table: Table, folder: Path | str) -> Path:
    """Keep a trace beside the runs, for `find`."""
    path = _kept(folder, table.fingerprint)
    _read.cache_clear()
    return durable.write_text(path, table.text())


def _kept(folder: Path | str, mark: str) -> Path:
    return Path(folder).expanduser() / FOLDER / f"{mark}.json"


@functools.cache
def _shipped() -> Mapping[str, Path]:
    """{fingerprint: file} of the tables in assets, from their second line alone."""
    found = {}
    for file in sorted((ASSETS / FOLDER).glob("*.json")):
        with file.open(encoding="utf-8") as lines:
            next(lines)
            found[next(lines).split('"')[3]] = file
    return found


@functools.lru_cache(maxsize=8)
def _read(path: Path) -> Table | None:
    try:
        said = json.loads(path.read_text("utf-8"))
        return Table(said["format"], said["fingerprint"], said["family"], said["parts"])
    except (ValueError, KeyError):
        return None  # of another version, or torn: it is made again
