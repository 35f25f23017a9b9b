"""The guideline as advice: what to change for a goal, why, and how sure that is.

The goals and their rules are in lycoris.goals; what is impossible on this model, or changes
nothing, is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from . import algorithms, choose, config
from .choose import short
from .data.folder import Dataset
from .families import Family
from .goals import GOALS, Now
from .guideline import CAVEAT
from .plan import Plan
from .registry import pick
from .settings import Config, NetworkConfig


@dataclass(frozen=True)
class Suggestion:
    """`changes` are {path: value} over the settings that were asked about; `run` is the result,
    `file_bytes` its file with metadata."""

    changes: Mapping[str, Any]
    does: str
    why: str
    sure: str
    run: Config
    file_bytes: int
    parameters: int

    def data(self) -> dict[str, Any]:
        return {"changes": dict(self.changes), "does": self.does, "why": self.why,
                "sure": self.sure, "file_bytes": self.file_bytes, "parameters": self.parameters}


@dataclass(frozen=True)
class Advice:
    goal: str
    label: str
    suggestions: tuple[Suggestion, ...]
    notes: tuple[str, ...]

    def data(self) -> dict[str, Any]:
        return {"goal": self.goal, "label": self.label, "notes": list(self.notes),
                "suggestions": [each.data() for each in self.suggestions]}


@dataclass(frozen=True)
class Scale:
    """What every change is multiplied with, and how it moves: `moves` are (dim, with alpha left
    alone, with alpha moved along)."""

    value: float
    formula: str
    alpha: float
    moves: tuple[tuple[int, float, float], ...]

    @property
    def text(self) -> str:
        moved = " and ".join(f"{left:.3g} at dim {dim}" for dim, left, _ in self.moves)
        kept = {f"{value:.3g}" for _, _, value in self.moves}
        along = (f"it stays {self.value:.3g}" if kept == {f"{self.value:.3g}"} else
                 " and ".join(f"{value:.3g} at dim {dim}" for dim, _, value in self.moves))
        return (f"Effective scale {self.formula} = {self.value:.3g}. With alpha left at "
                f"{short(self.alpha)} it becomes {moved}; with alpha moved along with dim {along}. "
                "Left alone, a higher dim learns more quietly; moved along, more strongly.")


def advise(run: Config, family: Family, goal: str, dataset: Dataset | None = None) -> Advice:
    """What to change for a goal, from these settings on; ConfigError for a goal there is not, and
    where the settings themselves are impossible."""
    aim = pick(GOALS, goal, "goal")
    now = Now(run, family, dataset)
    found: list[Suggestion] = []
    least, seen = now.plan.sizes.file_bytes_with_metadata, [_trained(run, now.plan)]
    for rule in aim.rules:
        for changes, does in rule.moves(now):
            made = now.after(changes)
            if made is None:
                continue
            after, planned = made
            sizes, result = planned.sizes, _trained(after, planned)
            if result in seen or (aim.smaller and sizes.file_bytes_with_metadata >= least):
                continue
            seen.append(result)
            found.append(Suggestion(choose.changes(run, after), does, rule.why, rule.sure,
                                    after, sizes.file_bytes_with_metadata, sizes.parameters))
    return Advice(goal, aim.label, tuple(found), notes(run, family))


def _trained(run: Config, made: Plan) -> tuple[Any, ...]:
    """Equal for two sets of settings that train the same thing, however they are written: a preset
    with fewer layers may be another's without its convolutions."""
    layers = tuple((a.key, type(a.algorithm), a.algorithm.has_dim and a.algorithm.dim,
                    a.algorithm.scaled and a.algorithm.alpha, a.algorithm.options,
                    a.algorithm.rank_stabilised, a.algorithm.start, a.extras, a.rate)
                   for a in made.assignments)
    return layers, replace(run, network=NetworkConfig(weights=run.network.weights))


def notes(run: Config, family: Family) -> tuple[str, ...]:
    """What goes with any advice: the effective scale, the batch, and what the table is good for."""
    moved = scale(run.network)
    return (*((moved.text,) if moved else ()), batch(run),
            CAVEAT if family.metadata.get("ss_base_model_version", "").startswith("sd_v1")
            else f"{CAVEAT} This model is another.")


def scale(network: NetworkConfig) -> Scale | None:
    """The effective scale; None for algorithms that have none."""
    if not pick(algorithms.catalogue(), network.algo, "network.algo").scaled:
        return None

    def value(alpha: float, dim: int) -> float:
        return alpha / (dim**0.5 if network.rs_lora else dim)

    alpha, dim = network.alpha, network.dim
    others = [max(1, dim // 2), dim * 2] if dim > 1 else [2, 4]
    return Scale(value(alpha, dim), "alpha / √dim" if network.rs_lora else "alpha / dim", alpha,
                 tuple((each, value(alpha, each), value(alpha * each / dim, each))
                       for each in others))


def batch(run: Config) -> str:
    """What the batch size asks of learning rate and steps."""
    train = run.train
    pictures = train.batch_size * train.accumulate
    return (f"Each step learns from {pictures} picture{'s' * (pictures > 1)} and there are "
            f"{train.steps:,} steps at a learning rate of {run.optimizer.lr:g}. Twice the batch "
            "over half the steps learns less: raise the learning rate (1.4 to 2 times) or keep the "
            "steps.")


def batch_moved(run: Config) -> str:
    """The same as a reminder where the batch is another than the base model's settings begin with;
    empty where it is not."""
    usual = config.base_settings(run.model.base).get(
        "train.batch_size", config.LEAVES["train.batch_size"].default)
    pictures = run.train.batch_size * run.train.accumulate
    if pictures == usual:
        return ""
    larger = pictures > usual
    return (f"A step learns from {pictures} picture{'s' * (pictures > 1)}, "
            f"{max(pictures, usual) / min(pictures, usual):.3g} times as "
            f"{'many' if larger else 'few'} as usual with this base. "
            + ("Raise the learning rate with it (1.4 to 2 times for twice the batch), and keep the "
               "steps." if larger else
               "Lower the learning rate with it, or give it more steps."))
