"""How long a run will take, as the Algorithm tab shows it: what was measured, and measuring it.

A calibration is a job like a tool's, followed in a folder of its own.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict
from typing import Any

from lycogui.wording import on_screen
from lycogui.workspace import Workspace, new_folder
from lycoris import config, devices, durable, machine, plan
from lycoris.plan import Plan
from lycoris.runs import RunFolder
from lycoris.settings import Config

FOLDER = "calibrations"
GOING = ("starting", "running")


def start(workspace: Workspace, run: Config) -> None:
    """Measure steps of these settings; what is going on already goes on."""
    if _going(workspace) is not None:
        return
    plan.make(run)  # refuses here what could not be trained
    parent = workspace.runs_folder / FOLDER
    shutil.rmtree(parent, ignore_errors=True)  # nobody looks at earlier ones again
    folder = new_folder(durable.make_folder(parent))
    settings = folder / "settings.toml"
    durable.write_text(settings, config.dump(run))
    workspace.jobs.launch(folder, ["calibrate", str(settings.resolve()), "--follow", str(folder)])


def stop(workspace: Workspace) -> None:
    job = _going(workspace)
    if job is not None:
        workspace.jobs.stop(job)


def calibration(workspace: Workspace, given: dict[str, Any]) -> dict[str, Any]:
    """How far it is: asked by the page while it shows one. Of one that has ended, however it did,
    nothing is left on the disk: what it found is kept elsewhere."""
    job = _latest(workspace)
    if job is None:
        return {"state": "none"}
    history, state = job.history(), workspace.jobs.state(job)
    if state not in GOING:
        shutil.rmtree(workspace.runs_folder / FOLDER, ignore_errors=True)
    return {"state": state,
            "stage": asdict(history.stage) if history.stage else None,
            "problem": on_screen(f"{history.failed.message} {history.failed.fix}".strip())
            if history.failed else ""}


def expected(workspace: Workspace, made: Plan) -> dict[str, Any]:
    """The run's time as far as it is known, and whether it is being measured."""
    name = devices.look(workspace.device).name
    found = machine.time_left(made, name)
    known = machine.speed(made, name)
    going = _going(workspace) is not None
    if found is None or known is None:
        return {"known": False, "going": going}
    return {"known": True, "going": going, "seconds": found.seconds, "low": found.low,
            "high": found.high, "per_second": known.per_second, "source": found.source,
            "without": list(found.without), "ago": max(0.0, time.time() - known.at)}


def _latest(workspace: Workspace) -> RunFolder | None:
    found = sorted((workspace.runs_folder / FOLDER).glob("*/settings.toml"))
    return workspace.jobs.run(found[-1].parent) if found else None


def _going(workspace: Workspace) -> RunFolder | None:
    job = _latest(workspace)
    return job if job is not None and workspace.jobs.state(job) in GOING else None
