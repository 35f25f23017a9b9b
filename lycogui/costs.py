"""What settings cost and what else they could be, as the views of the Algorithm tab show it.

Each view is a function of what is on screen; only the one that is open is worked out.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lycogui import speed
from lycogui.describing import in_short, layers_of, plain, said_of, settings_of
from lycogui.form import labelled
from lycogui.pair import Pair
from lycogui.wording import on_screen
from lycogui.workspace import Workspace
from lycoris import (
    advice,
    algorithms,
    choose,
    config,
    devices,
    disk,
    footprint,
    guideline,
    known,
    machine,
    memory,
    plan,
    recipes,
    relief,
    runpresets,
)
from lycoris.config import LEAVES
from lycoris.data.folder import Dataset
from lycoris.errors import ConfigError, LycorisError
from lycoris.families import Family
from lycoris.plan import Plan
from lycoris.settings import Config

MIB = 2**20
KIN = {"sd15": "sd15", "sd21": "sd15", "sdxl": "sdxl"}  # {known model: whose presets suit it}


@dataclass(frozen=True)
class Asked:
    """A view and what was set in it; kept like the settings."""

    view: str = "layers"
    goal: str = ""
    budget: float = 0.0  # MiB; 0: as large as the file on screen
    form: str = "toml"
    preset: str = ""

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> Asked:
        """What was kept, as far as it still means something."""
        found = cls(**{name: type(getattr(cls, name))(value) for name, value in kept.items()
                       if name in ("view", "goal", "budget", "form", "preset")})
        return replace(found, budget=max(0.0, found.budget)) if found.view in VIEWS else cls()


def card(workspace: Workspace, made: Plan, asked: Asked) -> dict[str, Any]:
    """The plan as the page draws it, with the view that is open."""
    sizes, dataset, run = made.sizes, made.dataset, made.config
    return {
        "model": made.family.title, "by_name": made.family.known is not None,
        "side": run.dataset.resolution,
        "parameters": sizes.parameters, "layers": sizes.modules, "dtype": sizes.dtype,
        "bytes": sizes.file_bytes_with_metadata, "memory": peak(workspace, made),
        "time": speed.expected(workspace, made), "disk": written(made),
        "steps": run.train.steps, "epochs": f"{made.epoch.epochs:.4g}",
        "pictures": len(dataset.learned) if dataset else 0,
        "batches": made.epoch.batches, "smaller": made.epoch.smaller,
        "batch": run.train.batch_size, "buckets": len(set(made.buckets)),
        "trained": layers_of(made), "reminder": advice.batch_moved(run),
        "notes": [on_screen(f"{w.text} {w.fix}".strip()) for w in made.warnings],
        "view": asked.view, "data": VIEWS[asked.view](workspace, made, asked),
    }


def peak(workspace: Workspace, made: Plan) -> dict[str, Any]:
    """The most memory the run will have in use, beside what is free now."""
    device = workspace.device
    facts, found = devices.look(device), predicted(workspace, made)
    return {"peak": found.peak, "missing": found.missing, "free": facts.free,
            "device": "GPU" if device.type != "cpu" else "computer",
            "known": grounds(made, facts.name)}


def grounds(made: Plan, device: str) -> str:
    """What a prediction of memory rests on."""
    runs = machine.measured_runs(made, device)
    if not runs:
        return "Predicted; no run on this base has been measured here yet."
    share = machine.correction(made, device)
    counted = "one run" if runs == 1 else f"{runs} runs"
    return (f"Predicted, and corrected by {counted} on this base here: measured memory was "
            f"{share:.2f} of what was predicted.")


def predicted(workspace: Workspace, made: Plan) -> memory.Memory:
    """On this device, as far as it is known by what it has measured."""
    name = devices.look(workspace.device).name
    return memory.predict(made, workspace.device.type, correction=machine.correction(made, name))


@dataclass(frozen=True)
class Row:
    """A plan whose peak is asked for again and again while a slider moves; the same for the same
    `key`, which is all that decides it."""

    key: str
    made: Plan = field(compare=False)
    device: str = field(compare=False)
    correction: float = field(compare=False)

    @classmethod
    def of(cls, workspace: Workspace, made: Plan) -> Row:
        device, run = workspace.device.type, made.config
        share = machine.correction(made, devices.look(workspace.device).name)
        scaled = replace(run, network=replace(run.network, alpha=1.0, conv_alpha=None))
        traced = footprint.find(made.family, run.output.folder) is not None
        return cls(f"{scaled} {footprint.fingerprint(made.family)} {traced} {device} {share} "
                   f"{made.buckets} {made.held_buckets}", made, device, share)


@functools.lru_cache(maxsize=64)
def row_peak(row: Row) -> int:
    """Seconds for all rows of a large model together, so they are kept."""
    return memory.predict(row.made, row.device, correction=row.correction).peak


def written(made: Plan) -> dict[str, int]:
    """What the run will write, and by how much that is too much."""
    found = disk.predict(made)
    return {"bytes": found.bytes, "free": found.free, "lacking": found.lacking}


def layers(workspace: Workspace, made: Plan, asked: Asked) -> list[dict[str, Any]]:
    return rows(made)


def rows(made: Plan, *, possible: bool = True) -> list[dict[str, Any]]:
    """Every algorithm on the same layers; the chosen one may be impossible."""
    return [row(made, algo, possible) for algo in algorithms.catalogue()]


def row(made: Plan, algo: str, possible: bool) -> dict[str, Any]:
    """One algorithm at the settings on screen; where it is impossible with them, why."""
    run = made.config
    on = algo == run.network.algo
    network = run.network if on else plan.switched(run.network, algo)
    said = {"algo": algo, "label": algorithms.catalogue()[algo].label, "on": on,
            "settings": in_short(network), "equal": not on}
    try:
        sizes = made.sizes if on and possible else plan.sizes_with(made, network)
    except ConfigError as error:
        return {**said, "parameters": 0, "bytes": 0, "problem": "; ".join(labelled(error).values())}
    return {**said, "parameters": sizes.parameters, "bytes": sizes.file_bytes_with_metadata}


def dims(workspace: Workspace, made: Plan, asked: Asked) -> dict[str, Any]:
    """Size over dim for all algorithms, in bytes without metadata."""
    run = made.config
    found = choose.curves(run, made.family)
    return {"dim": run.network.dim, "chosen": run.network.algo, "lines": [
        {"algo": algo, "label": algorithms.catalogue()[algo].label,
         "fixed": not algorithms.catalogue()[algo].has_dim,
         "points": [[p.dim, p.file_bytes, p.parameters] for p in points]}
        for algo, points in found.items() if points]}


def budget(workspace: Workspace, made: Plan, asked: Asked) -> dict[str, Any]:
    """Every algorithm's largest file under a limit."""
    own = made.sizes.file_bytes_with_metadata
    limit = asked.budget or math.ceil(own / MIB * 100) / 100  # such that it fits itself
    fits = choose.budget(made.config, made.family, round(limit * MIB), made.dataset)
    return {"limit": limit, "own": not asked.budget, "bytes": own, "caveat": guideline.CAVEAT,
            "aspects": list(guideline.ASPECTS.values()),
            "fits": [_fitting(workspace, made.config, fit) for fit in fits]}


def _fitting(workspace: Workspace, run: Config, fit: choose.Fit) -> dict[str, Any]:
    found = {**fit.data(), "changed": plain(fit.changed),
             "symbols": list(fit.column.symbols.values()) if fit.column else None}
    if fit.run is None or fit.plan is None:
        return {**found, "settings": "", "problem": on_screen(fit.problem)}
    settings = [in_short(fit.run.network, run.network), fit.note]
    return {**found, "settings": "; ".join(filter(None, settings)),
            "memory": 0 if fit.problem else row_peak(Row.of(workspace, fit.plan))}


def needs(workspace: Workspace, made: Plan, asked: Asked) -> dict[str, Any]:
    """Where the memory goes, and what would lower it."""
    device = workspace.device
    facts = devices.look(device)
    share = machine.correction(made, facts.name)
    found = memory.predict(made, device.type, correction=share)
    saved, enough = relief.savings(made, device.type, free=facts.free, correction=share)
    return {**found.data(), "free": facts.free, "total": facts.total, "name": facts.name,
            "known": grounds(made, facts.name),
            "at": f"at batch size {made.config.train.batch_size}, "
                  f"{made.config.dataset.resolution} px",
            "enough": enough, "savings": [
                {"values": plain(s.values), "text": s.text, "bytes": s.bytes, "peak": s.peak}
                for s in saved]}


def goals(workspace: Workspace, made: Plan, asked: Asked) -> dict[str, Any]:
    """The guideline's advice for a goal."""
    found: dict[str, Any] = {"goals": [[name, goal.label] for name, goal in advice.GOALS.items()],
                             "goal": asked.goal, "notes": advice.notes(made.config, made.family),
                             "now": made.sizes.file_bytes_with_metadata}
    if asked.goal in advice.GOALS:
        told = advice.advise(made.config, made.family, asked.goal, made.dataset)
        found["suggestions"] = [{**each.data(), "changes": plain(each.changes)}
                                for each in told.suggestions]
    return found


def presets(workspace: Workspace, made: Plan, asked: Asked) -> dict[str, Any]:
    return presets_for(workspace, made.family, made.dataset, asked)


def presets_for(workspace: Workspace, family: Family | None, dataset: Dataset | None,
                asked: Asked) -> dict[str, Any]:
    """The presets of whole runs, those for this base and card first, and what the chosen one would
    change in the settings that were last read."""
    run = workspace.config  # a plan by name is at its model's own resolution
    kin = KIN.get(known.like(family.layers), "") if family else ""
    size = runpresets.card(devices.look(workspace.device).total)
    if workspace.device.type == "cpu":
        size = 0  # none is for it
    every = sorted(runpresets.catalogue().values(),
                   key=lambda one: (one.family != kin, one.memory != size))
    found: dict[str, Any] = {
        "preset": asked.preset, "base": family.title if family and kin else "", "size": size,
        "presets": [{"name": one.name, "title": one.title, "text": one.text,
                     "purpose": one.purpose, "own": one.family == kin,
                     "fits": one.family == kin and one.memory == size} for one in every]}
    if asked.preset in runpresets.catalogue():
        one = runpresets.find(asked.preset)
        then = runpresets.applied(run, one)
        after = plan.make(replace(then, model=replace(then.model, family=one.family)),
                          dataset=dataset, need_dataset=False)
        changed = runpresets.changes(run, one)
        found |= {"text": one.text, "values": {path: new for path, (_, new) in changed.items()},
                  "for": {"title": known.find(one.family).label, "memory": one.memory,
                          "peak": memory.predict(after, "cuda").peak},
                  "changes": [[LEAVES[path].label, said_of(path, old), said_of(path, new)]
                              for path, (old, new) in changed.items()]}
    return found


def pair(workspace: Workspace, made: Plan, asked: Asked) -> dict[str, Any]:
    """A and B side by side, and in what they differ."""
    held = Pair.of(workspace, made.config)
    sides = []
    for side in held.sides:
        said: dict[str, Any] = {"label": algorithms.catalogue()[side.network.algo].label,
                                "settings": in_short(side.network), "own": side.own,
                                "values": settings_of(side.network)}
        try:
            planned = replace(made, config=replace(made.config, network=side.network))
            one = plan.make(planned.config, family=made.family, dataset=made.dataset,
                            need_dataset=False)
            said |= {"parameters": one.sizes.parameters, "layers": one.sizes.modules,
                     "bytes": one.sizes.file_bytes_with_metadata,
                     "memory": peak(workspace, one)["peak"],
                     "time": speed.expected(workspace, one)}
        except LycorisError as error:
            said["problem"] = "; ".join(labelled(error).values())
        sides.append(said)
    return {"sides": sides, "note": _compared(sides)}


def _compared(sides: list[dict[str, Any]]) -> str:
    """Is it a fair comparison? The guideline's: at roughly equal size and equal settings."""
    if any("problem" in side for side in sides):
        return ""
    a, b = (side["bytes"] for side in sides)
    if abs(a - b) > choose.FAR * max(a, b):
        return (f"The larger file is {max(a, b) / min(a, b):.2f} times the smaller one. A "
                "comparison means most at about the same size: make them equal.")
    return "About the same size, and all other settings are shared: a fair comparison."


def share(workspace: Workspace, made: Plan, asked: Asked) -> dict[str, Any]:
    """The configuration as text."""
    form = asked.form if asked.form in recipes.FORMS else "toml"
    # the prompts as they were given: the plan has captions where there are none
    written = recipes.write(replace(made.config, sample=workspace.config.sample), form)
    return {"form": form, "text": written.text, "unsaid": list(map(on_screen, written.unsaid))}


def without_plan(workspace: Workspace, asked: Asked) -> Any:
    """What a view shows of settings that make no plan; None for one that needs it."""
    if asked.view == "share":
        return {"form": asked.form, "text": None, "unsaid": []}
    if asked.view != "presets":
        return None
    try:
        family = workspace.family(workspace.config)
    except LycorisError:
        family = None
    try:
        dataset = workspace.pictures(workspace.config)
    except LycorisError:
        dataset = None
    return presets_for(workspace, family, dataset, asked)


VIEWS: Mapping[str, Callable[[Workspace, Plan, Asked], Any]] = {
    "layers": layers, "dims": dims, "budget": budget, "needs": needs, "advice": goals,
    "pair": pair, "share": share, "presets": presets}


def applied(run: Config, values: Mapping[str, Any]) -> Config:
    """The run with settings that a view suggested; ConfigError for what is none."""
    return config.build({**config.to_dict(run), **values})
