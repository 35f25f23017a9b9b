"""The verb estimate on the command line: one configuration, many of a file, the guideline's table.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from . import choices, config, units
from .errors import LycorisError, RunError
from .follow import Signals
from .settings import DatasetConfig, ModelConfig
from .terminal import Terminal, as_data, table

TABLE = "table"


def run(options: argparse.Namespace, terminal: Terminal, signals: Signals) -> int:
    if options.settings == [TABLE]:
        return guideline(terminal)
    if options.batch:
        return batch(options, terminal, signals)
    if choices.asked(options):
        return choices.estimate(options, terminal)
    return one(options, terminal)


def one(options: argparse.Namespace, terminal: Terminal) -> int:
    from . import outlook, plan

    made = plan.make(config.settings(options.settings), need_dataset=False)
    data = {**made.summary(), **outlook.describe(made)}
    every = ", ".join(f"{name} {counts['file_bytes_with_metadata']:,}"
                      for name, counts in made.sizes.every.items() if name != made.sizes.dtype)
    rows = [("Algorithm", f"{label_of(data['algo'])} on {made.family.title}"),
            ("Layers", made.selection.taken),
            ("Parameters", f"{data['parameters']:,}"),
            *(("", split(groups)) for groups in (made.sizes.parts, made.sizes.kinds)),
            ("File", f"{data['file_bytes_with_metadata']:,} bytes "
                     f"({units.size(data['file_bytes_with_metadata'])}) in {data['dtype']}, "
                     f"{data['file_bytes']:,} without metadata; {every}"),
            ("While training", f"{units.size(data['training_bytes'])} for weights, gradients and "
                               "optimiser of the adapter"),
            ("Steps", f"{data['steps']} ({data['epochs']:g} epochs of "
                      f"{data['batches_per_epoch']} batches)")]
    rows += outlook.sentences(data)
    rows += [("Note", f"{w['text']} {w['fix']}") for w in data["warnings"]]
    terminal.document(data, table(rows))
    return 0


def label_of(algo: str) -> str:
    from . import algorithms

    return algorithms.catalogue()[algo].label


def split(groups: Mapping[str, Any]) -> str:
    """How many parameters each part, or each kind of layer, has."""
    from .presets import PARTS

    return ", ".join(f"{PARTS.get(name, name)} {group.parameters:,} in {group.modules} layers"
                     for name, group in groups.items())


def batch(options: argparse.Namespace, terminal: Terminal, signals: Signals) -> int:
    """One answer a line for one JSON object a line, in their order and as many as there are lines,
    empty ones included; until there are no more, or a signal."""
    base = list(options.settings)
    for line in _lines(options.batch):
        if signals.received:
            break
        terminal.line(_answer(base, line))
    return signals.exit_code


def _lines(source: str) -> Iterator[str]:
    if source == "-":
        yield from sys.stdin
        return
    try:
        with Path(source).open(encoding="utf-8-sig") as file:
            yield from file
    except OSError as error:
        raise RunError(f"{source} cannot be read: {error.strerror}.",
                       "Give the path of a file with a JSON object on each line, or - for "
                       "standard input.") from None


def _answer(base: Iterable[str], line: str) -> Mapping[str, Any]:
    from . import plan

    try:
        values = _object(line)
        made = config.settings(base, values)
        plan.check_names(made)  # before the model is looked for under one of them
        return plan.make(made, family=_family(made.model),
                         dataset=_dataset(made.dataset), need_dataset=False).summary()
    except LycorisError as error:
        return {"error": as_data(error)}


def _object(line: str) -> dict[str, Any]:
    if not line.strip():
        raise RunError("The line is empty.", 'Write one object a line, e.g. {"network.dim": 8}.')
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RunError(f"The line is no JSON: {error}.",
                       'Write one object a line, e.g. {"network.dim": 8}.') from None
    if not isinstance(found, dict):
        raise RunError(f"The line holds a {type(found).__name__}, not an object of settings.",
                       'Write one object a line, e.g. {"network.dim": 8}.')
    return found


@functools.lru_cache(maxsize=8)
def _family(model: ModelConfig) -> Any:
    from . import families

    return families.open_chosen(model)


def _dataset(settings: DatasetConfig) -> Any:
    from .data import gather

    try:
        return gather.gather(settings, _scanned)
    except LycorisError:
        return None  # an estimate without pictures


@functools.lru_cache(maxsize=8)
def _scanned(folder: Path) -> Any:
    from .data.folder import scan

    return scan(folder)


def guideline(terminal: Terminal) -> int:
    from . import published

    data = {"rows": published.table()}
    rows = [(r["row"], f"{r['published']:>5}  {r['as_published']:>5}  {r['parameters']:>13,}  "
                       f"{r['file_bytes']:>15,} bytes  {r['note']}".rstrip())
            for r in data["rows"]]
    head = [("", f"{'said':>5}  {'ours':>5}  {'parameters':>13}  {'file without metadata':>19}")]
    terminal.document(data, table(head + rows))
    return 0
