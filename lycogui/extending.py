"""Continue: a run that has ended goes on with more steps, or with other settings that leave it the
same run."""

from __future__ import annotations

from typing import Any

from lycogui.wording import on_screen
from lycogui.workspace import Workspace
from lycoris import config, knobs, resuming
from lycoris.config import LEAVES
from lycoris.errors import ConfigError, RunError
from lycoris.runs import RunFolder

FIELDS = ("train.steps", "train.checkpoint_every", "train.keep_checkpoints", "train.validate_every",
          "sample.every", "optimizer.lr", "sample.prompts")
FIXED = ("Base model, pictures, network, batch, seed, loss, optimiser and schedule stay: the steps "
         "that are done were made with them, and with others it would be another run. For that "
         "load its settings into the form, or start a new run from its adapter.")


def extension(workspace: Workspace, given: dict[str, Any]) -> dict[str, Any]:
    """What may change where this run goes on, as it stands; with `values` as they are in the dialog
    what they would mean: `course`, or `problems` by their paths."""
    run = _ended(workspace, given["run"])
    step = resuming.saved_step(run.history())
    now = config.load(run.config_file)
    found: dict[str, Any] = {
        "step": step, "total": now.train.steps, "fixed": FIXED, "problems": {}, "fields": [
            {"path": path, "label": LEAVES[path].label, "help": LEAVES[path].knob.help,
             "value": list(value) if isinstance(value := knobs.get(now, path), tuple) else value}
            for path in FIELDS]}
    try:
        values = {path: knobs.get(config.load(run.config_file, values=_known(given)), path)
                  for path in FIELDS}
        found["course"] = resuming.course(now, step, values)
    except ConfigError as error:
        found |= {"course": "", "problems": {
            path: on_screen(text) for path, text in error.problems.items()}}
    return found


def proceed(workspace: Workspace, given: dict[str, Any]) -> dict[str, Any]:
    """Write those settings into the run and put it into the queue."""
    run = _ended(workspace, given["run"])
    resuming.extend(run, _known(given))
    workspace.jobs.enqueue(run)
    return {"name": run.name}


def _known(given: dict[str, Any]) -> dict[str, Any]:
    values = dict(given.get("values") or {})
    if other := values.keys() - set(FIELDS):
        raise ConfigError({path: f"{path} cannot change here" for path in other})
    return values


def _ended(workspace: Workspace, name: str) -> RunFolder:
    run = workspace.known_run(name)
    state = workspace.jobs.state(run)
    if state in ("running", "starting"):
        raise RunError(f"{run.name} is going on.", "Stop it first.")
    if state == "waiting":
        raise RunError(f"{run.name} is waiting in the queue.", "Take it out first.")
    return run
