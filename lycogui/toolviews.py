"""What the page asks for of the tools: their jobs as the folders tell them, and their results."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lycogui import wording
from lycogui.workspace import Workspace, run_id
from lycoris import algorithms, config, contestants, knobs, recipes
from lycoris.config import LEAVES
from lycoris.errors import ConfigError, RunError
from lycoris.runs import RunFolder
from lycoris.settings import Config

EARLIER = 12  # jobs listed beside the one on screen
OURS = ("output.folder",)  # where this machine keeps its runs: not part of a recipe


def tool(workspace: Workspace, given: dict[str, Any]) -> dict[str, Any]:
    """One job of a tool, the latest where none is named, and the ones before it.

    The result is left out where the page says that it has it (`have`).
    """
    jobs = [(job, asked) for job in workspace.tool_jobs(3 * EARLIER) if (asked := request_of(job))]
    wanted = next((pair for pair in jobs if run_id(pair[0].path) == given.get("id")), None) or next(
        (pair for pair in jobs if pair[1]["tool"] == given.get("tool")), None)
    found: dict[str, Any] = {"id": "", "earlier": [
        _short(workspace, job, asked) for job, asked in jobs[:EARLIER]]}
    if wanted is None:
        return found
    job, asked = wanted
    history = job.history()
    found |= {**_short(workspace, job, asked), **asked,
              "stage": asdict(history.stage) if history.stage else None,
              "warnings": wording.warnings(history),
              "log": job.log_tail(20) if history.failed and history.failed.kind == "bug" else ""}
    if history.finished and given.get("have") != found["id"]:
        found["result"] = _shown(result_of(job), asked)
    return found


def cancel_tool(workspace: Workspace, given: dict[str, Any]) -> dict[str, Any]:
    job = find(workspace, given["id"])
    workspace.jobs.stop(job)
    return _short(workspace, job, request_of(job) or {})


def find(workspace: Workspace, name: str) -> RunFolder:
    """The job of that id; RunError where there is none."""
    for job in workspace.tool_jobs():
        if run_id(job.path) == name:
            return job
    raise RunError("That result is no longer there.", "Its folder may have been deleted or moved.")


def request_of(job: RunFolder) -> dict[str, Any] | None:
    """What the job was asked for; None for a folder that is none."""
    file = job.path / "request.json"
    try:
        return _read(file, file.stat().st_mtime_ns)
    except (OSError, ValueError):
        return None


def result_of(job: RunFolder) -> dict[str, Any]:
    """What the tool found; empty where it was stopped before."""
    try:
        return json.loads((job.path / "result.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def recipe_of(result: Mapping[str, Any]) -> Config | None:
    """The settings an inspected adapter was trained with, or the one that it was made from; what
    this version does not know is left at its default. None where the file says nothing."""
    settings = result.get("settings") or result.get("source_settings")
    if not settings:
        return None
    values = dict(knobs.flatten(settings, LEAVES))
    try:
        run = config.build(values)
    except ConfigError as error:
        run = config.build({path: value for path, value in values.items()
                            if path not in error.problems})
    return contestants.at_home(Path(result["file"]), run) if "file" in result else run


@functools.lru_cache(maxsize=256)
def _read(file: Path, modified: int) -> dict[str, Any]:
    return json.loads(file.read_text("utf-8"))


def _short(workspace: Workspace, job: RunFolder, asked: Mapping[str, Any]) -> dict[str, Any]:
    """One line of the list."""
    history = job.history()
    return {"id": run_id(job.path), "tool": asked.get("tool", ""), "title": asked.get("title", ""),
            "state": workspace.jobs.state(job), "at": asked.get("at"),
            "error": wording.failure(history.failed), "folder": str(job.path)}


def _shown(result: dict[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """A result as the page draws it: with its recipe row by row, and where it now lies."""
    found = {key: value for key, value in result.items()
             if key not in ("settings", "source_settings", "preset")}
    for part in ("rows", "layers"):
        if isinstance(found.get(part), list):
            found[part] = [_labelled(row) for row in found[part]]
    run = recipe_of(result)
    if run is not None:
        lost = recipes.missing(run)
        found["recipe"] = [
            {"path": path, "label": leaf.label, "value": _text(knobs.get(run, path)),
             "changed": knobs.get(run, path) != leaf.default, "missing": path in lost}
            for path, leaf in LEAVES.items() if path not in OURS]
        found["recipe_of_source"] = not result.get("settings")
        entry = algorithms.catalogue().get(run.network.algo)
        if entry and result.get("settings") and entry.label not in result.get("summary", ""):
            found["trained_as"] = entry.label  # as a DyLoRA, whose tensors are a LoRA's
    if out := result.get("out"):
        found["exists"] = Path(out).exists()
    return found


def _labelled(row: Mapping[str, Any]) -> dict[str, Any]:
    """A layer's row with its algorithms as the screen calls them."""
    labels = {name: entry.label or "norm" for name, entry in algorithms.all_entries().items()}
    found = dict(row)
    if "algorithm" in row:
        found["algorithm"] = labels.get(row["algorithm"], row["algorithm"])
    if row.get("from"):
        head, comma, tail = row["from"].partition(",")
        found["from"] = f"{labels.get(head, head)}{comma}{tail}"
    return found


def _text(value: Any) -> str:
    if isinstance(value, str) or value is None:
        return value or ""
    return config.toml_value(value)
