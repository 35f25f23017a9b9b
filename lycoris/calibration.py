"""calibrate: a few real training steps of a plan on this machine, for how long a run will take.

It works in a temporary folder; the run's own is neither made nor touched. What it finds goes where
runs put theirs (`lycoris.machine`).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import events, machine, units
from .errors import OutOfMemory
from .follow import Followed, Signals
from .plan import Plan
from .progress import Progress, Stopped
from .settings import Config
from .terminal import Terminal, mebibytes, table

STEPS, SECONDS = 10, 60.0  # so many steps after the warm ones, or as many as fit the time
LEAST = machine.WARM + machine.FEWEST
MEASURING = "measuring steps"


def run(plan: Plan, progress: Progress) -> Mapping[str, Any]:
    """Measure, keep it and say it. Raises Stopped when asked to stop, and the trainer's errors."""
    import torch

    from . import trainer

    def told(event: events.Event) -> None:
        if isinstance(event, (events.Stage, events.Warned)):
            progress.emit(event)

    short = _short(plan)
    with tempfile.TemporaryDirectory(prefix="lycogui-") as folder:
        session = trainer.Session(short, Path(folder), told)
        try:
            session.prepare(progress.asked)
            _steps(session, progress)
        except trainer.Halted:
            raise Stopped from None
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(session.doing) from error
    session.watch.plan = plan
    session.watch.learn("calibration")
    return summary(plan, session.watch)


def _short(plan: Plan) -> Plan:
    """The same steps without what surrounds them: the schedule's length changes no step's cost."""
    settings = plan.config
    return replace(plan, config=replace(
        settings, sample=replace(settings.sample, every=0),
        train=replace(settings.train, checkpoint_every=0)))


def _steps(session: Any, progress: Progress) -> None:
    began, whole = time.monotonic(), machine.WARM + STEPS
    for done in range(whole):
        progress.check()
        progress.emit(events.Stage(MEASURING, done, whole))
        session.advance()
        if done + 1 >= LEAST and time.monotonic() - began > SECONDS:
            break
    progress.emit(events.Stage(MEASURING, whole, whole))


def summary(plan: Plan, watch: machine.Watch) -> dict[str, Any]:
    found = watch.speed("calibration")
    left = machine.time_left(plan, watch.name)
    assert found is not None and left is not None, "it has just been measured"
    return {"device": watch.name, "steps_per_second": round(found.per_second, 4),
            "steps": found.steps, "seconds_a_step": [round(each, 5) for each in (
                found.low, found.seconds, found.high)],
            "seconds": round(left.seconds, 1), "low": round(left.low, 1),
            "high": round(left.high, 1), "without": list(left.without),
            "memory": watch.measured(), "memory_predicted": watch.predicted.counted}


def verb(options: argparse.Namespace, terminal: Terminal, signals: Signals,
         settings: Config) -> int:
    from . import plan as planning

    with Followed(Path(options.follow) if options.follow else None, terminal, signals) as followed:
        made = planning.make(settings)
        try:
            data = run(made, Progress(followed.emit, followed.asked))
        except Stopped:
            followed.finish("stopped")
            terminal.document({"reason": "stopped"}, "Stopped; nothing was kept.")
            return signals.exit_code
        followed.finish("done", data)
    steps = made.config.train.steps
    rows = [("Speed", f"{data['steps_per_second']:.3g} steps a second on {data['device']}, over "
                      f"{data['steps']} steps"),
            ("The run", f"{steps} steps in {units.duration(data['seconds'])} "
                        f"({units.duration(data['low'])} to {units.duration(data['high'])})"
                        + (f", without {' and '.join(data['without'])}" if data["without"]
                           else "")),
            ("Memory", f"{mebibytes(data['memory'])} at most, predicted "
                       f"{mebibytes(data['memory_predicted'])}")]
    terminal.document(data, table(rows))
    return signals.exit_code
