"""From what stands on the Tools tab to a job of its own, and from a recipe back to settings."""

from __future__ import annotations

import html
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lycogui import toolviews, upkeep
from lycogui.page import with_weights
from lycogui.toolbox import Merge, Task, place_for
from lycogui.workspace import Workspace, new_folder, run_id
from lycoris import config, contestants, durable, families, hub, plan, presets, recipes
from lycoris.config import LEAVES
from lycoris.contestants import BASE
from lycoris.errors import AdapterError, ConfigError, LycorisError, RunError
from lycoris.settings import Config

RECENT = 12  # jobs looked through for one that does the same
GOING = ("starting", "running")


def task_of(workspace: Workspace, given: Mapping[str, Any]) -> Task:
    """What the chosen tool works on, of the fields `tool`, `adapter`, `adapters`, `weights` and
    `tuned`; an error for an adapter that is none."""
    tool, base = given["tool"], usable_base(workspace)
    if tool == "extract":
        return Task(base=base, tuned=_tuned(given["tuned"]))
    field = "adapters" if tool == "merge" else "adapter"
    if tool == "merge":
        names = with_weights(given["adapters"] or [], given["weights"])
    else:
        names = [given["adapter"]] if given["adapter"] else []
    takers = [contestants.parse(name, workspace.runs_folder) for name in names]
    if any(taker.path is None for taker in takers):
        raise ConfigError({field: f"{BASE} is the base model itself; choose an adapter"})
    found = tuple(taker for taker in takers if taker.path is not None)
    return Task(found, tuple(facts(workspace, taker.path) for taker in found if taker.path), base)


def facts(workspace: Workspace, adapter: Path) -> Mapping[str, Any]:
    return workspace.facts(adapter, workspace.config)


def usable_base(workspace: Workspace) -> Path | None:
    """The base model in the header; None where it cannot be used."""
    try:
        return workspace.base(workspace.config).base
    except LycorisError:
        return None


def prepare(workspace: Workspace, settings: Any, task: Task) -> tuple[list[str], Path | None]:
    """(command line, where it writes); ConfigError or AdapterError for what cannot be."""
    out = place_for(settings, task, workspace.adapters_folder, workspace.models_folder)
    words = settings.words(task)
    return [*words, "--out", str(out.resolve())] if out else words, out


def free_place(workspace: Workspace, settings: Any, task: Task) -> Path | None:
    """Where it would write under a name of its own."""
    if hasattr(settings, "out"):
        settings = replace(settings, out="")
    return place_for(settings, task, workspace.adapters_folder, workspace.models_folder)


def start(workspace: Workspace, settings: Any, task: Task) -> str:
    """A job for a tool, in a folder of its own; returns its id. The same asked for twice, while it
    is going on, is one job."""
    words, out = prepare(workspace, settings, task)
    for job in workspace.tool_jobs(RECENT):
        asked = toolviews.request_of(job)
        if asked and asked.get("words") == words and workspace.jobs.state(job) in GOING:
            return run_id(job.path)
    if out is not None:
        durable.make_folder(out.parent)
    sources = [adapter.path for adapter in task.adapters if adapter.path]
    what = " and ".join(task.names) or (task.tuned.name if task.tuned else "")
    folder = new_folder(workspace.tools_folder)
    durable.write_text(folder / "request.json", json.dumps({
        "tool": type(settings).title.lower(), "title": f"{settings.action(task)}: {what}",
        "at": time.time(),
        "sources": [str(path.parent if path.parent.name == path.stem else path)
                    for path in sources],
        "before": sum(path.stat().st_size for path in sources) or None,
        "whole": isinstance(settings, Merge) and settings.is_folder,
        "words": words}, ensure_ascii=False))
    workspace.jobs.launch(folder, [*words, "--follow", str(folder)])
    upkeep.prune_records(workspace)
    return run_id(folder)


def from_recipe(workspace: Workspace, job: str) -> tuple[Config, str]:
    """(the settings of an inspected adapter, but for where this machine keeps its runs; what to say
    of a preset that came along)."""
    found = toolviews.result_of(toolviews.find(workspace, job))
    run = toolviews.recipe_of(found)
    if run is None:
        raise AdapterError("This file does not say how it was trained.",
                           "Only adapters trained with lycogui carry their settings.")
    run, said = with_preset(run, found.get("preset", ""))
    return replace(run, output=replace(run.output, folder=workspace.config.output.folder)), said


def with_preset(run: Config, text: str) -> tuple[Config, str]:
    """(the settings of a recipe with the preset that came along in the user's folder, what to say
    of it)."""
    name, said = presets.take_over(run.network.preset, text, families.built_in_presets())
    return replace(run, network=replace(run.network, preset=name)), said


def settings_of(workspace: Workspace, folder: str) -> Config:
    """The settings of a run that this app knows; RunError for any other folder."""
    run = next((run for run in workspace.jobs.runs() if str(run.path) == folder), None)
    if run is None:
        raise RunError("That run is no longer there.", "It may have been deleted or moved.")
    return config.load(run.config_file)


def going_on(workspace: Workspace, adapter: str) -> tuple[Config, str]:
    """(settings of a new run that starts as that adapter, what to say of it): those of its recipe,
    or those on screen where it has none."""
    taker = contestants.parse(adapter, workspace.runs_folder)
    if taker.path is None:
        raise AdapterError(f"{BASE} is the base model itself.", "Choose an adapter.")
    recipe, preset = contestants.recipe(taker.path)
    run, kept = with_preset(recipe, preset) if recipe else (workspace.config, "")
    run = replace(run, network=replace(run.network, weights=str(taker.path), init="default"),
                  output=replace(run.output, name="", folder=workspace.config.output.folder))
    if recipe is None:
        return run, (f"{taker.name} does not say how it was trained: set its algorithm, dim, alpha "
                     "and layers yourself.")
    said = f"The next run goes on from {taker.name}, with its settings. Press Train."
    return run, f"{said} {kept}".strip()


def for_form(run: Config) -> tuple[Config, str]:
    """A recipe as the form takes it, and what to say of it: a name that is taken is left out, paths
    that do not exist here stay as they are."""
    said = f"{len(LEAVES) - 1} settings are in the form."
    name = run.output.name
    if name and plan.with_free_name(run).output.name != name:
        said += f" There is a run called {name} already, so the name is left empty."
        run = replace(run, output=replace(run.output, name=""))
    for path, named in recipes.missing(run).items():
        said += f" {LEAVES[path].label} {named} does not exist here."
    return run, said


def told(task: Task) -> str:
    """A line on each adapter; escaped."""
    lines = []
    for adapter, fact in zip(task.adapters, task.facts, strict=True):
        text = (f"<b>{html.escape(adapter.name)}</b>: {html.escape(fact['summary'])}, in "
                f"{fact['layers']} layers, {fact['bytes'] / 2**20:.2f} MiB, "
                f"{html.escape(fact['dialect'])} keys.")
        lines.append(note(text, escaped=True))
        if not fact["fits"] and fact["match"]:
            said = fact["match"].rstrip(".")
            lines.append(note(f"{adapter.name} {said}." if fact["fits"] is False else f"{said}.",
                              "warn"))
    if task.tuned is not None and task.base is not None:
        lines.append(note(f"Against the base {hub.called(task.base)}."))
    return "".join(lines)


def note(text: str, look: str = "", *, escaped: bool = False) -> str:
    return f"<p class='note {look}'>{text if escaped else html.escape(text)}</p>"


def with_chosen(known: Sequence[tuple[str, str]],
                chosen: Sequence[str]) -> list[tuple[str, str]]:
    """The choices of a dropdown, with what is chosen and is none of them."""
    values = {value for _, value in known}
    return [*known, *((each, each) for each in chosen if each not in values)]


def _tuned(text: str | None) -> Path | None:
    if not (text or "").strip():
        return None
    path = config.find(str(text).strip())
    if not (path.is_dir() or (path.suffix == ".safetensors" and path.is_file())):
        raise ConfigError({"tuned": f"there is no folder {path}, nor such a .safetensors file"})
    return path
