"""What runs take on the disk, and their end: deleted by hand; old records of the tools by
themselves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lycogui.workspace import Workspace
from lycoris import config
from lycoris.errors import LycorisError
from lycoris.runs import RunFolder

RECORDS = 36  # jobs of the tools that are remembered
OF_A_RECORD = {"request.json", "result.json", "events.jsonl", "log.txt", "lock", "requests"}
_sizes: dict[Path, tuple[Any, int]] = {}


def size_of(folder: Path) -> int:
    """Bytes in a run folder, links not followed; counted again when files came or went."""
    stamp = _stamp(folder)
    held = _sizes.get(folder)
    if held is None or held[0] != stamp:
        held = _sizes[folder] = stamp, _count(folder)
    return held[1]


def doomed(workspace: Workspace, given: dict[str, Any]) -> dict[str, Any]:
    """What would go with a run, and which runs would miss it."""
    run = workspace.known_run(given["run"])
    return {"name": run.name, "folder": str(run.path), "bytes": size_of(run.path),
            "adapter": run.adapter_file.is_file(),
            "checkpoints": len([*run.path.glob("checkpoints/*.safetensors")]),
            "pictures": len([*run.path.glob("samples/*.png")]),
            "missed_by": [other.name for other in workspace.jobs.runs()
                          if other is not run and _starts_from(other, run)]}


def delete_run(workspace: Workspace, given: dict[str, Any]) -> dict[str, Any]:
    """Delete a run's folder and nothing else; RunError where it is going on, waits, or is a link to
    somewhere else."""
    run = workspace.known_run(given["run"])
    workspace.jobs.delete(run)
    _sizes.pop(run.path, None)
    return {"name": run.name}


def prune_records(workspace: Workspace) -> None:
    """Forget old jobs of the tools. What they have made lies elsewhere; a folder that holds
    anything but a record stays."""
    for job in workspace.tool_jobs()[RECORDS:]:
        names = {entry.name for entry in os.scandir(job.path)}
        if names <= OF_A_RECORD and workspace.jobs.state(job) not in ("running", "starting"):
            job.delete()


def _starts_from(other: RunFolder, run: RunFolder) -> bool:
    try:
        weights = config.read_toml(other.config_file).get("network", {}).get("weights", "")
    except LycorisError:
        return False
    return bool(weights) and (weights == run.name
                              or Path(weights).expanduser().is_relative_to(run.path))


def _stamp(folder: Path) -> Any:
    try:
        inner = [entry.path for entry in os.scandir(folder)
                 if entry.is_dir(follow_symlinks=False)]
        return [Path(path).stat().st_mtime_ns for path in (folder, *inner)]
    except FileNotFoundError:
        return None


def _count(folder: Path) -> int:
    total = 0
    for home, _, names in os.walk(folder):
        for name in names:
            try:
                total += Path(home, name).lstat().st_size
            except FileNotFoundError:
                continue  # gone meanwhile
    return total
