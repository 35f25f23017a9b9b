"""Bringing from Hugging Face what the base model on screen lacks: asked for by hand, one at a time,
in a job of its own that goes on when the page is closed."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lycogui.wording import failure
from lycogui.workspace import Workspace, new_folder
from lycoris import durable, hub
from lycoris.errors import NotDownloaded, RunError
from lycoris.runs import RunFolder

FOLDER = "downloads"
REQUEST = "request.json"
GOING = ("starting", "running")


def lacking(workspace: Workspace) -> str:
    """The name on Hugging Face of what the base lacks: itself, or a single file's tokenizer; empty
    where nothing is, or where a download would not help."""
    problem = workspace.base_problem(workspace.config)
    return problem.name if isinstance(problem, NotDownloaded) else ""


def offer(workspace: Workspace, given: dict[str, Any]) -> dict[str, Any]:
    """What a download would bring, and where to; asks Hugging Face."""
    name = _needed(workspace)
    found = hub.look(name, _in_half(workspace))
    return {"name": name, "files": len(found.missing), "bytes": found.bytes,
            "cache": str(found.cache), "free": found.free}


def start_download(workspace: Workspace, given: dict[str, Any]) -> dict[str, Any]:
    """Begin it; what is going on already goes on."""
    if going(workspace):
        return download(workspace, {})
    name = _needed(workspace)
    parent = workspace.runs_folder / FOLDER
    shutil.rmtree(parent, ignore_errors=True)  # records; what came lies in the cache
    folder = new_folder(durable.make_folder(parent))
    durable.write_text(folder / REQUEST, json.dumps({"name": name}))
    whole = [] if _in_half(workspace) else ["--whole"]
    workspace.jobs.launch(folder, ["download", name, *whole, "--follow", str(folder.resolve())])
    return download(workspace, {})


def stop_download(workspace: Workspace, given: dict[str, Any]) -> dict[str, Any]:
    """End it. One that waits for the network does not listen, and has nothing to lose: what has
    come whole is in the cache."""
    job = _latest(workspace)
    if job is not None and workspace.jobs.state(job) in GOING:
        workspace.jobs.end(job)
    return {}


def download(workspace: Workspace, given: dict[str, Any]) -> dict[str, Any]:
    """What is lacking now, and how the latest download stands: `state` is that of its job, or
    "none"; one that was asked to stop and has ended is "stopped", however it did."""
    found: dict[str, Any] = {"lacking": lacking(workspace), "state": "none"}
    job = _latest(workspace)
    if job is None:
        return found
    history, state = job.history(), workspace.jobs.state(job)
    stopped = state not in (*GOING, "done") and job.requested_at("stop") > 0
    return {**found, "state": "stopped" if stopped else state, "name": _name_of(job),
            "stage": asdict(history.stage) if history.stage else None,
            "left": history.stage_left, "stopping": job.requested_at("stop") > 0,
            "error": None if stopped else failure(history.failed)}


def going(workspace: Workspace) -> bool:
    """Also where an app before this one has started it."""
    job = _latest(workspace)
    return job is not None and workspace.jobs.state(job) in GOING


def _needed(workspace: Workspace) -> str:
    name = lacking(workspace)
    if not name:
        raise RunError("The base model on screen lacks nothing that could be downloaded.",
                       "Load the page again.")
    return name


def _in_half(workspace: Workspace) -> bool:
    return workspace.config.model.dtype != "fp32"


def _latest(workspace: Workspace) -> RunFolder | None:
    found = sorted((workspace.runs_folder / FOLDER).glob(f"*/{REQUEST}"))
    return workspace.jobs.run(found[-1].parent) if found else None


def _name_of(job: RunFolder) -> str:
    return json.loads(Path(job.path / REQUEST).read_text("utf-8"))["name"]
