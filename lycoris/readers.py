"""The verbs that read run folders and change nothing in them."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import eventfile, report, runs
from .errors import ConfigError
from .follow import Signals
from .terminal import Terminal


def write_report(options: argparse.Namespace, terminal: Terminal, signals: Signals) -> int:
    """One run, or two with the difference of their curves, as one HTML file."""
    if len(options.runs) > 2:
        raise ConfigError({"": f"a report shows one run or two, not {len(options.runs)}"})
    found = [runs.open_run(name) for name in options.runs]
    path = report.write(found, Path(options.out) if options.out else None)
    terminal.document({"report": path}, str(path))
    return 0


def tensorboard(options: argparse.Namespace, terminal: Terminal, signals: Signals) -> int:
    """The runs' events as files that TensorBoard reads."""
    out = Path(options.out)
    written = [eventfile.write(runs.open_run(name), out) for name in options.runs]
    terminal.document({"files": written}, "\n".join([
        *map(str, written), f"Look at them: tensorboard --logdir {out}"]))
    return 0
