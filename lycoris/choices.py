"""The verbs for choosing: estimate --match, --budget, --curves and --as; advise; recipe; presets.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from . import config, runpresets, units
from .follow import Signals
from .settings import Config
from .terminal import Terminal, mebibytes, table


def asked(options: argparse.Namespace) -> bool:
    """Is the estimate about a choice?"""
    return bool(options.match or options.budget or options.curves or options.form)


def estimate(options: argparse.Namespace, terminal: Terminal) -> int:
    run = config.settings(options.settings)
    if options.match:
        _match(run, options.match, terminal)
    elif options.budget:
        _budget(run, units.parsed(options.budget), terminal)
    elif options.curves:
        _curves(run, terminal)
    else:
        _written(run, options.form, terminal)
    return 0


def advise(options: argparse.Namespace, terminal: Terminal, signals: Signals) -> int:
    from . import advice, choose

    run = config.settings(options.settings)
    found = advice.advise(run, _family(run), options.goal)
    lines = [found.label]
    for number, each in enumerate(found.suggestions, 1):
        changes = " ".join(f"{path}={choose.short(value)}" for path, value in each.changes.items())
        lines += [f"{number}. {each.does} {mebibytes(each.file_bytes)}.",
                  f"   {each.why} {each.sure}", f"   {changes}"]
    if not found.suggestions:
        lines.append("There is nothing more to suggest from here.")
    terminal.document(found.data(), "\n".join([*lines, *found.notes]))
    return 0


def recipe(options: argparse.Namespace, terminal: Terminal, signals: Signals) -> int:
    """A configuration read from a file or from standard input; with --as, said in another form."""
    from . import recipes

    found = (recipes.read(sys.stdin.read()) if options.source == "-"
             else recipes.of_file(config.find(options.source)))
    if options.form:
        found = found.taken_over()
        shared = recipes.write(found.whole(), options.form)
        terminal.document({**found.data(), **_shared(shared, options.form)}, shared.text)
        terminal.say(found.text)
        return 0
    rows = [(path, config.toml_value("none" if value is None else value))
            for path, value in found.settings.items()]
    said = [*(("note", each) for each in found.notes),
            *(("not taken", each) for each in found.unknown)]
    terminal.document(found.data(), table([*rows, *said]))
    return 0


def presets(options: argparse.Namespace, terminal: Terminal, signals: Signals) -> int:
    """The list; or all that one says, and with --diff what it would change in the settings."""
    known, start = runpresets.catalogue(), f"{config.PRESET}="
    named = [word for word in options.settings if word in known or word.startswith(start)]
    if not options.settings:
        terminal.document({"presets": [_preset(one) for one in known.values()]},
                          table([(one.name, f"{one.title}. {one.text}") for one in known.values()]))
        return 0
    one = runpresets.find((named or options.settings)[-1].removeprefix(start))
    others = [word for word in options.settings if word not in named]
    run = config.settings(others) if others else Config()
    found = runpresets.changes(run, one)
    rows = [(path, _value(then) + f"  (now {_value(now)})") for path, (now, then) in found.items()]
    if not options.diff:
        rows = [(path, _value(value)) for path, value in one.values.items()]
    terminal.document({**_preset(one), "changes": {
        path: {"now": now, "then": then} for path, (now, then) in found.items()}},
        table([(one.title, one.text), *rows]))
    return 0


def _value(value: Any) -> str:
    return config.toml_value("none" if value is None else value)


def _preset(one: runpresets.RunPreset) -> dict[str, Any]:
    return {"name": one.name, "title": one.title, "text": one.text, "purpose": one.purpose,
            "family": one.family, "memory": one.memory, "values": dict(one.values)}


def _match(run: Config, algo: str, terminal: Terminal) -> None:
    from . import choose

    found = choose.match(run, algo, _family(run))
    terminal.document({"changed": found.changed, "wanted": found.wanted,
                       "file_bytes": found.file_bytes, "off": found.off, "far": found.far,
                       "text": found.text}, found.text)


def _budget(run: Config, limit: int, terminal: Terminal) -> None:
    from . import choose, outlook
    from .guideline import ASPECTS

    fits = choose.budget(run, _family(run), limit)
    peaks = [outlook.peak(fit.plan) if fit.plan and not fit.problem else 0 for fit in fits]
    lines = [("", f"{'file':>10}  {'parameters':>13}  {'peak memory':>11}  settings")]
    for fit, peak in zip(fits, peaks, strict=True):
        said = ", ".join(filter(None, (choose.in_words(fit.changed, fit.algo), fit.note)))
        lines.append((fit.label, fit.problem or (
            f"{units.size(fit.file_bytes):>10}  {fit.parameters:>13,}  {units.size(peak):>11}  "
            f"{said}")))
        if not fit.problem:
            ranks = fit.column and ", ".join(
                f"{ASPECTS[name].lower()} {symbol}" for name, symbol in fit.column.symbols.items())
            lines.append(("", f"guideline: {fit.rating}" + (f": {ranks}" if ranks else "")))
    terminal.document({"limit": limit, "fits": [
        {**fit.data(), "memory": peak} for fit, peak in zip(fits, peaks, strict=True)]},
        table(lines))


def _curves(run: Config, terminal: Terminal) -> None:
    from . import choose

    found = choose.curves(run, _family(run))
    rows = [(algo, "  ".join(f"{point.dim}: {mebibytes(point.file_bytes)}" for point in points))
            for algo, points in found.items()]
    terminal.document({algo: [{"dim": point.dim, "file_bytes": point.file_bytes,
                               "parameters": point.parameters} for point in points]
                       for algo, points in found.items()}, table(rows))


def _written(run: Config, form: str, terminal: Terminal) -> None:
    from . import recipes

    shared = recipes.write(run, form)
    terminal.document(_shared(shared, form), shared.text.rstrip("\n"))
    if shared.unsaid:
        terminal.say(f"Not said in this form: {', '.join(shared.unsaid)}.")


def _shared(shared: Any, form: str) -> dict[str, Any]:
    return {"form": form, "text": shared.text, "unsaid": list(shared.unsaid)}


def _family(run: Config) -> Any:
    from . import families

    return families.open_chosen(run.model)
