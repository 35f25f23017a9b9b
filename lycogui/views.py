"""What the page asks for by itself, as plain data: status, pictures, runs, curves, comparisons.

Each view is f(workspace, given) -> JSON. Pictures and runs are named by what the server handed out,
and looked up again here; a path from the page is never followed.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from lycogui import extending, fetching, speed, toolviews, upkeep, wording
from lycogui.workspace import Workspace, run_id
from lycoris import (
    algorithms,
    config,
    devices,
    events,
    following,
    plan,
    promptfile,
    report,
)
from lycoris.contestants import BASE
from lycoris.data import captions
from lycoris.data import epoch as epochs
from lycoris.data.folder import Dataset, Picture
from lycoris.errors import DatasetError, LycorisError, RunError
from lycoris.families import Family
from lycoris.runs import History, RunFolder
from lycoris.settings import Config

CURVE_POINTS = 3000  # a longer history is thinned before it is sent


def status(workspace: Workspace, given: dict[str, Any]) -> dict[str, Any]:
    """The header: base, device, what runs; `beside` names the folders of other jobs at work."""
    run = workspace.config
    base: dict[str, Any] = {"name": config.find(run.model.base).name, "label": "", "problem": ""}
    try:
        base["label"] = workspace.base(run).label
        base["problem"] = wording.on_screen(str(workspace.base_problem(run) or ""))
    except LycorisError as error:
        base["problem"] = wording.on_screen(str(error))
    active = workspace.jobs.active()
    return {"base": base, "device": asdict(devices.look(workspace.device)),
            "job": _run(workspace, active) if active else None,
            "beside": [run.path.parent.name for run in workspace.jobs.beside()],
            "waiting": len(workspace.jobs.waiting()), "fetching": fetching.going(workspace)}


def gallery(workspace: Workspace, given: dict[str, Any]) -> dict[str, Any]:
    """The pictures of the dataset folder; without `items` where the page has this version."""
    run = workspace.config
    dataset = workspace.dataset(run)
    family = _family(workspace)
    version = _digest(str(dataset.folder.resolve()), *(
        f"{p.name}{p.caption}{p.problem}{_modified(p.path)}" for p in dataset.pictures),
        f"{run.dataset} {family and family.base}")
    found: dict[str, Any] = {"folder": str(dataset.folder), "version": version}
    if given.get("version") == version:
        return found
    counts = _tokens(family, [p.caption or "" for p in dataset.pictures])
    limit = family.max_tokens * run.dataset.caption_chunks if family else None
    problems = dataset.problems(run.dataset.resolution)
    long = [p for p, count in zip(dataset.pictures, counts, strict=True)
            if count is not None and limit is not None and count > limit]
    if long:
        problems[f"longer than {limit} tokens"] = long
    flags: dict[Path, list[str]] = {}
    for kind, pictures in problems.items():
        for picture in pictures:
            flags.setdefault(picture.path, []).append(kind)
    return {
        **found, "limit": limit,
        "captioned": sum(bool((p.caption or "").strip()) for p in dataset.pictures),
        "problems": {kind: [p.name for p in pictures] for kind, pictures in problems.items()},
        "items": [{
            "name": p.name, "folder": str(p.path.parent), "caption": p.caption or "",
            "caption_file": captions.file_of(p.path).name, "tokens": count, "size": p.size,
            "problem": p.problem or p.caption_problem, "flags": flags.get(p.path, []),
            "thumb": _picture_url(p, "thumb"), "large": _picture_url(p, "large"),
        } for p, count in zip(dataset.pictures, counts, strict=True)],
    }


def epoch(workspace: Workspace, given: dict[str, Any]) -> dict[str, Any]:
    """The epoch of the run on screen, counted from the headers of its pictures, and what its
    folders leave out; `problem` where a folder cannot be read."""
    run = workspace.config
    try:
        found = workspace.pictures(run)
    except LycorisError as error:
        return {"problem": wording.on_screen(str(error))}
    counted = epochs.of(found, plan.buckets_of(run, found.learned), run.train)
    return {**counted.data(), "left_out": epochs.left_out(found), "every": run.sample.every,
            "painted": _painted(run, found)}


def _painted(run: Config, found: Dataset) -> list[str]:
    """The prompts of the samples; none where they cannot be read, which Train says."""
    try:
        return [each.text for each in promptfile.read(following.with_prompts(run, found).sample)]
    except LycorisError:
        return []


def save_caption(workspace: Workspace, given: dict[str, Any]) -> dict[str, Any]:
    """Save one caption; returns it as it now stands. `before` is what the page last saw; a caption
    changed elsewhere meanwhile is not overwritten but handed back. `folder` is where it was written
    (Workspace.writable)."""
    home = Path(given["folder"])
    pictures = workspace.open_folder(home).pictures if workspace.may_show(home) else ()
    picture = next((p for p in pictures if p.name == given["name"]), None)
    if picture is None:
        raise DatasetError(f"{given['name']} is no longer in {home}.", "Load the folder again.")
    now, _ = captions.read(picture.path)
    text, before = str(given["text"]), str(given["before"])
    if (now or "") != before and (now or "") != text:
        return {"conflict": now or ""}
    path = picture.path
    if text != (now or ""):
        path = workspace.writable(home) / path.name
        captions.write(path, text)
    return {"caption": captions.read(path)[0] or "", "folder": str(path.parent),
            "tokens": _tokens(_family(workspace), [text])[0]}


def all_runs(workspace: Workspace, given: dict[str, Any]) -> dict[str, Any]:
    """The queue and the earlier runs, the newest first."""
    return {"runs": [_run(workspace, run) for run in workspace.jobs.runs()],
            "queue": [run_id(run.path) for run in workspace.jobs.waiting()]}


def follow(workspace: Workspace, given: dict[str, Any]) -> dict[str, Any]:
    """What is new in a run since `steps` points and `resumes` resumptions were seen."""
    run = workspace.known_run(given["run"])
    history = run.history()
    seen, resumes = int(given.get("steps", 0)), int(given.get("resumes", 0))
    reset = resumes != len(history.resumes) or seen > len(history.steps)
    fresh = history.steps[0 if reset else seen:]
    return {
        **_run(workspace, run), "reset": reset, "seen": len(history.steps),
        "resumes": len(history.resumes), "resumed_at": [s for s in history.resumes if s],
        "points": [[s.step, s.loss, s.loss_avg, s.lr] for s in thinned(fresh, CURVE_POINTS)],
        "saves": [s.step for s in history.saves],
        "validations": [[v.step, _number(v.loss)] for v in history.validations],
        "looks": [{"step": v.step, "loss": _number(v.loss),
                   "timesteps": {t: _number(loss) for t, loss in v.timesteps.items()}}
                  for v in history.looks],
        "samples": [{"step": s.step, "index": s.index, "prompt": s.prompt, "seed": s.seed,
                     "base": s.contestant == BASE, "url": _painted_url(run, s.path)}
                    for s in history.samples],
        "warnings": wording.warnings(history),
        "log": run.log_tail(40) if given.get("log") else "",
    }


def ask(workspace: Workspace, given: dict[str, Any]) -> dict[str, Any]:
    """One of stop, cancel, save, sample, pause, resume, withdraw, up, down for a run."""
    run = workspace.known_run(given["run"])
    jobs, what = workspace.jobs, given["what"]
    if what == "stop":
        jobs.stop(run)
    elif what in ("save", "sample", "pause", "cancel"):
        if jobs.state(run) != "running":
            raise RunError(f"{run.name} is not running.", "Start or resume it first.")
        run.clear(["resume"] if what == "pause" else [])
        run.request(what)
    elif what == "resume" and jobs.state(run) == "running":
        run.clear(["pause"])
        run.request(what)
    elif what == "resume":
        jobs.enqueue(run)
    elif what in ("up", "down"):
        jobs.move(run, -1 if what == "up" else 1)
    elif what == "withdraw":
        jobs.withdraw(run)
        if jobs.state(run) in ("starting", "running"):  # it had just begun
            jobs.stop(run)
    else:
        raise RunError(f"There is no request {what!r}.", "")
    return _run(workspace, run)


def report_of(workspace: Workspace, names: Sequence[str]) -> tuple[str, str]:
    """(the report of these runs, a name for its file); of a pair A comes first."""
    found = [workspace.known_run(name) for name in names if name]
    found.sort(key=lambda run: (_json(run.path / "plan.json").get("pair") or {}).get("side", ""))
    return report.of(found[:2]), f"{'-and-'.join(run.name for run in found[:2])}.html"


def comparison(workspace: Workspace, given: dict[str, Any]) -> dict[str, Any]:
    """A comparison as far as it is painted; the latest one where none is named."""
    run = workspace.comparison(given.get("id", ""))
    if run is None:
        return {"id": ""}
    history = run.history()
    wanted = _json(run.path / "request.json")
    recipe = _json(run.path / "recipe.json")
    details = {each["name"]: each for each in recipe.get("contestants", [])}
    grid = run.path / "grid.png"
    return {
        "id": run_id(run.path), "state": workspace.jobs.state(run), **wanted,
        "contestants": [{"name": name, **_detail(details.get(name))}
                        for name in wanted.get("contestants", [])],
        "cells": [{"prompt": s.prompt, "seed": s.seed, "contestant": s.contestant,
                   "url": _painted_url(run, s.path)} for s in history.samples],
        "stage": asdict(history.stage) if history.stage else None,
        "warnings": wording.warnings(history),
        "error": wording.failure(history.failed),
        "grid": _painted_url(run, "grid.png") if grid.is_file() and history.finished else "",
        "folder": str(run.path),
    }


def stop_comparison(workspace: Workspace, given: dict[str, Any]) -> dict[str, Any]:
    run = workspace.comparison(given.get("id", ""))
    if run is not None:
        workspace.jobs.stop(run)
    return {}


VIEWS: dict[str, Callable[[Workspace, dict[str, Any]], Any]] = {
    view.__name__: view for view in (status, gallery, epoch, save_caption, all_runs, follow, ask,
                                     comparison, stop_comparison, toolviews.tool,
                                     extending.extension, extending.proceed,
                                     upkeep.doomed, upkeep.delete_run,
                                     toolviews.cancel_tool, speed.calibration,
                                     fetching.offer, fetching.download, fetching.start_download,
                                     fetching.stop_download)}


def thinned(steps: list[events.Step], most: int) -> list[events.Step]:
    """At most about `most` steps: of each stretch the lowest and the highest loss, and the last."""
    if len(steps) <= most:
        return steps
    stretch = -(-len(steps) * 3 // most)
    found = []
    for start in range(0, len(steps), stretch):
        part = steps[start:start + stretch]
        kept = {min(part, key=lambda s: s.loss).step, max(part, key=lambda s: s.loss).step,
                part[-1].step}
        found += [s for s in part if s.step in kept]
    return found


def seconds_left(history: History) -> float | None:
    """From the pace of the last steps; None before there are any."""
    if not history.started or len(history.steps) < 3:
        return None
    recent = history.steps[-30:]
    return (history.started.total_steps - history.step) * sum(s.sec for s in recent) / len(recent)


def _run(workspace: Workspace, run: RunFolder) -> dict[str, Any]:
    """One run in short."""
    history, made = run.history(), _json(run.path / "plan.json")
    state = workspace.jobs.state(run)
    last = history.steps[-1] if history.steps else None
    pace = [s.sec for s in history.steps[-30:]]
    return {
        "id": run_id(run.path), "name": run.name, "state": state,
        "about": _about(run), "pair": made.get("pair"),
        "paused": history.paused and state == "running",
        "stopping": asdict(history.stopping)
        if history.stopping and state == "running" else None,
        "step": history.step,
        "total": _steps(run) if state == "waiting" else (
            history.started.total_steps if history.started else made.get("steps", 0)),
        "loss": last.loss if last else None, "loss_avg": last.loss_avg if last else None,
        "pace": sum(pace) / len(pace) if pace else None,
        "left": seconds_left(history), "stage_left": history.stage_left,
        "seconds": sum(s.sec for s in history.steps),
        "memory": last.memory if last else None,
        "measured": _memory(history.measured, made.get("memory", {})),
        "on_card": made.get("memory", {}).get("device") == "cuda",
        "norms": {"capped": last.capped, "mean": last.norm_mean, "most": last.norm_max}
        if last and last.norm_mean is not None else None,
        "stage": {**asdict(history.stage), "name": history.stage.words} if history.stage else None,
        "validation": _number(history.validations[-1].loss) if history.validations else None,
        "cached": asdict(history.cached) if history.cached else None,
        "error": wording.failure(history.failed),
        "bytes": run.adapter_file.stat().st_size if run.adapter_file.is_file() else None,
        "folder": str(run.path), "disk": upkeep.size_of(run.path),
    }


def _memory(measured: events.Measured | None, shown: dict[str, Any]) -> dict[str, int] | None:
    """The highest memory of a run as it was: beside the prediction that was `shown` before it
    began, and counted as that one, which has a card's context in it."""
    if measured is None:
        return None
    context = shown.get("peak", 0) - shown.get("counted", 0)
    return {"predicted": shown.get("peak", measured.predicted),
            "memory": measured.memory + context}


def _number(value: float) -> float | None:
    """As JSON has it, which knows no nan."""
    return value if math.isfinite(value) else None


def _about(run: RunFolder) -> str:
    """ "LoHa 4, full" from the run's settings; without a dim where the algorithm has none."""
    status = run.config_file.stat()
    return _about_cached(run.config_file, status.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _about_cached(file: Path, modified: int) -> str:
    try:
        network = config.read_toml(file)["network"]
        entry = algorithms.catalogue().get(network["algo"])
        label = entry.label if entry else network["algo"]
        dim = f" {network['dim']}" if entry is None or entry.has_dim else ""
        return f"{label}{dim}, {network['preset']}"
    except (LycorisError, KeyError):
        return ""


def _steps(run: RunFolder) -> int:
    """As many as a run that waits will have: it may have been given more."""
    try:
        return int(config.read_toml(run.config_file)["train"]["steps"])
    except (LycorisError, KeyError, ValueError):
        return 0


def _family(workspace: Workspace) -> Family | None:
    """The base model on screen; None where it cannot be used, which the header says."""
    if workspace.base_problem(workspace.config):
        return None
    return workspace.base(workspace.config)


def _tokens(family: Family | None, texts: list[str]) -> Sequence[int | None]:
    return family.count_tokens(texts) if family else [None] * len(texts)


def _detail(described: dict[str, Any] | None) -> dict[str, Any]:
    if not described or "file" not in described:
        return {"detail": (described or {}).get("base", ""), "base": bool(described)}
    weight = "" if described["weight"] == 1 else f", weight {described['weight']:g}"
    return {"detail": f"{described['algorithms']}, {described['bytes'] / 2**20:.2f} MiB{weight}",
            "base": False}


def _json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def _picture_url(picture: Picture, size: str) -> str:
    return "/lyco/picture?" + urlencode({
        "folder": str(picture.path.parent), "name": picture.name, "size": size,
        "v": _modified(picture.path)})


def _painted_url(run: RunFolder, path: str) -> str:
    """Its time is in the address: a run made anew under an old name has other pictures."""
    return f"/lyco/run/{run_id(run.path)}/{path}?v={_modified(run.path / path)}"


def _modified(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0


def _digest(*texts: str) -> str:
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=8).hexdigest()


