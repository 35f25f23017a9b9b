"""The verbs for files on the command line: inspect, resize, convert, merge, extract, download.

Each may be followed in a folder (--follow), where its answer is result.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from . import config, runs
from .errors import ConfigError
from .follow import Followed, Signals
from .terminal import Terminal, mebibytes, table

WORST = 5  # layers that are shown with what they cost
Verb = Callable[[Any], Mapping[str, Any]]


def inspect(options: argparse.Namespace, terminal: Terminal, signals: Signals) -> int:
    from . import inspect as verb

    path = config.find(options.what)
    if options.what == "catalogues":
        data = verb.catalogues()
    elif path.is_dir() and (path / "config.toml").is_file():
        data = verb.run(runs.open_run(path).path)
    else:
        base = _base(options)
        return _followed(options, terminal, signals,
                         lambda progress: verb.adapter(path, base, progress), _inspected)
    terminal.document(data, table(_plain_rows(data)))
    return 0


def resize(options: argparse.Namespace, terminal: Terminal, signals: Signals) -> int:
    def work(progress: Any) -> Mapping[str, Any]:
        from . import resize as verb

        return verb.run(_settings(verb.Resize, options, path=_adapter(options.adapter)),
                        progress).data()

    return _followed(options, terminal, signals, work, _written)


def convert(options: argparse.Namespace, terminal: Terminal, signals: Signals) -> int:
    def work(progress: Any) -> Mapping[str, Any]:
        from . import convert as verb

        return verb.run(_settings(verb.Convert, options, path=_adapter(options.adapter)),
                        progress).data()

    return _followed(options, terminal, signals, work, _written)


def extract(options: argparse.Namespace, terminal: Terminal, signals: Signals) -> int:
    def work(progress: Any) -> Mapping[str, Any]:
        from . import extract as verb

        return verb.run(_settings(verb.Extract, options, tuned=config.find(options.tuned)),
                        progress).data()

    return _followed(options, terminal, signals, work, _written)


def merge(options: argparse.Namespace, terminal: Terminal, signals: Signals) -> int:
    def work(progress: Any) -> Mapping[str, Any]:
        from . import merge as verb

        file = options.out.endswith(".safetensors")
        return verb.run(_settings(
            verb.Merge, options, into=options.into or ("exact" if file else verb.MODEL),
            adapters=tuple(map(_weighted, options.adapters)),
            blocks=tuple(map(verb.Block.parse, options.block))), progress).data()

    return _followed(options, terminal, signals, work, _written)


def download(options: argparse.Namespace, terminal: Terminal, signals: Signals) -> int:
    def work(progress: Any) -> Mapping[str, Any]:
        from . import hub

        return hub.fetch(hub.look(options.name, not options.whole), progress)

    return _followed(options, terminal, signals, work, lambda data: (
        f"{data['name']} is in {data['folder']}: {data['files']} files came, "
        f"{mebibytes(data['bytes'])}."))


def _followed(options: argparse.Namespace, terminal: Terminal, signals: Signals,
              work: Verb, text: Callable[[Mapping[str, Any]], str]) -> int:
    """Do the work, with its progress on the terminal and in the folder that is followed."""
    where = Path(options.follow) if options.follow else None
    with Followed(where, terminal, signals) as followed:
        from .progress import Progress, Stopped

        try:
            data = work(Progress(followed.emit, followed.asked))
        except Stopped:
            followed.finish("stopped")
            terminal.document({"reason": "stopped"}, "Stopped.")
            return signals.exit_code
        followed.finish("done", data)
    terminal.document(data, text(data))
    return signals.exit_code


def _settings(kind: type, options: argparse.Namespace, **own: Any) -> Any:
    """The verb's settings from what was said of them; what was not said stays at its default."""
    said = {key: value for key, value in vars(options).items() if value is not None}
    own |= {"base": base} if (base := _base(options)) else {}
    return kind(**{field.name: {**said, **own}[field.name] for field in fields(kind)
                   if field.name in said or field.name in own})


def _base(options: argparse.Namespace) -> Path | None:
    return config.find(options.base) if options.base else None


def _weighted(text: str) -> tuple[Path, float]:
    """An adapter as Compare names it: a run, a folder or a file, with its weight."""
    from . import contestants

    found = contestants.parse(text, Path(config.Config().output.folder))
    if found.path is None:
        raise ConfigError({"adapters": "base is the model itself and no adapter; it goes with "
                                       "--base"})
    return found.path, found.weight


def _adapter(text: str) -> Path:
    path, weight = _weighted(text)
    if weight != 1.0:
        raise ConfigError({"adapter": f"{text} has a weight, which only merge takes"})
    return path


def _plain_rows(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [(str(key), str(value)[:2000]) for key, value in data.items() if key != "metadata"]
    return rows + [(key, value[:200]) for key, value in data.get("metadata", {}).items()]


def _inspected(data: Mapping[str, Any]) -> str:
    long = ("rows", "tags", "needs_base", "settings", "source_settings")
    rows = _plain_rows({key: value for key, value in data.items()
                        if key not in long and value not in (None, "", [], {})})
    if data["needs_base"]:
        rows.append(("norms", f"of {len(data['needs_base'])} layers need --base"))
    strongest = sorted((row for row in data["rows"] if row["norm"] is not None),
                       key=lambda row: -row["norm"])[:WORST]
    return table(rows + [("norm", f"{row['norm']:.4g}  {row['name'] or row['layer']}")
                         for row in strongest])


def _written(data: Mapping[str, Any]) -> str:
    rows = [("Written", f"{data['out']} ({mebibytes(data['bytes'])})"),
            ("Holds", data["summary"])]
    if data.get("error") is not None:
        rows.append(("Error", f"{data['error']:.3%} of the change (Frobenius norm)"))
        costly = sorted((row for row in data["layers"] if row["error"]),
                        key=lambda row: -row["error"])[:WORST]
        rows += [("", f"{row['error']:.3%}  {row['layer']}, dim {row['dim']}") for row in costly]
    return table(rows)
