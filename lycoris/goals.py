"""What people want of an adapter, and the guideline's rules for each: the first to be tried first.

A rule makes moves from the present settings, each a set of changes and what it does. The rankings
are those of the algorithms' own files (lycoris.guideline).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from . import algorithms, choose, knobs, plan
from .algorithms import Algorithm
from .assignments import Assignment, assign_family, select
from .config import LEAVES
from .data.folder import Dataset
from .errors import ConfigError
from .families import Family
from .guideline import ASPECTS, Column
from .plan import Plan
from .registry import pick
from .settings import Config, NetworkConfig
from .sizes import with_dim

TABLE = "The guideline's table, from hundreds of SD1 checkpoints; with a grain of salt."
WORDS = "The guideline's advice in words, without figures; with a grain of salt."
TIMED = "Timed once by the guideline's authors: SD1 on an RTX 4090. Elsewhere the share differs."
GUESS = "The guideline's authors call it a conjecture."
HABIT = "Not in the guideline; what people usually do."
SURE = "Certain: it is counted, not judged."
TWICE, HALF = 2.0, 0.5


class Now:
    """The settings that advice is asked about, and what follows from them."""

    def __init__(self, run: Config, family: Family, dataset: Dataset | None):
        self.run, self.family, self.dataset = run, family, dataset
        self.network = run.network
        self.entry: type[Algorithm] = pick(algorithms.catalogue(), run.network.algo,
                                           "network.algo")
        self.assignments = assign_family(family, run.network)
        self.widths = [a.layer.out for a in self.assignments if a.layer.kind != "norm"]
        self.search = choose.Search(run, family)
        self.weight = self.search.weigh(run.network)

    @cached_property
    def plan(self) -> Plan:
        return self._planned(self.run)

    def _planned(self, run: Config) -> Plan:
        return plan.make(run, family=self.family, dataset=self.dataset, need_dataset=False)

    @cached_property
    def column(self) -> Column | None:
        return self.entry.guide.column(self.network.options, self.widths)

    @cached_property
    def spatial(self) -> bool:
        return any(a.layer.is_spatial for a in self.assignments)

    def after(self, changes: Mapping[str, Any]) -> tuple[Config, Plan] | None:
        """The settings with those changes and what they make; None where they are the same or
        impossible."""
        run = knobs.replace(self.run, changes)
        if run == self.run:
            return None
        try:
            return run, self._planned(run)
        except ConfigError:
            return None

    def rate(self, entry: type[Algorithm]) -> dict[str, Any]:
        """The learning rate that goes with another algorithm, where the present one does not."""
        lr = self.run.optimizer.lr
        if entry.guide.rates is not None:
            low, high = entry.guide.rates
            wanted = min(max(lr, low), high)
        else:
            wanted = LEAVES["optimizer.lr"].default if self.entry.guide.rates is not None else lr
        return {"optimizer.lr": wanted} if wanted != lr else {}


Moves = Callable[[Now], Iterator[tuple[Mapping[str, Any], str]]]


@dataclass(frozen=True)
class Rule:
    moves: Moves
    why: str
    sure: str


@dataclass(frozen=True)
class Goal:
    """`smaller`: only what makes the file smaller serves it."""

    label: str
    rules: tuple[Rule, ...]
    smaller: bool = False


def rated(aspect: str, up: bool = True) -> Moves:
    """Algorithms that the table ranks higher (or lower), at the size of now; the nearest first."""
    def moves(now: Now) -> Iterator[tuple[Mapping[str, Any], str]]:
        key = ("speed_conv" if now.spatial else "speed_linear") if aspect == "speed" else aspect
        here = now.column.ratings[key] if now.column else None
        sign = 1 if up else -1
        for entry, column in sorted(_columns(), key=lambda each: sign * each[1].ratings[key]):
            there = column.ratings[key]
            same = column is now.column
            if same and not (up and key == "fidelity"
                             and not column.options.items() <= now.network.options.items()):
                continue
            if not same and not (sign * there > sign * here if here else
                                 there >= 3 if up else there == 1):
                continue
            network = _in_column(now, entry, column, smaller=key == "size")
            if network is not None:
                changes = {"network": network, **now.rate(entry)}
                yield changes, _switch(now, changes, column, key)
    return moves


def _columns() -> list[tuple[type[Algorithm], Column]]:
    return [(entry, column) for entry in algorithms.catalogue().values()
            for column in entry.guide.columns]


def _in_column(now: Now, entry: type[Algorithm], column: Column,
               smaller: bool) -> NetworkConfig | None:
    """The network of that column at the size of now, or as small as its settings make it."""
    def fits(options: Mapping[str, Any]) -> bool:
        return (entry.guide.column(options, now.widths) is column
                and column.options.items() <= options.items())

    if not smaller:
        try:
            return choose.match(now.run, entry.name, now.family, only=fits,
                                presets=False).run.network
        except ConfigError:
            return None
    start = plan.switched(now.network, entry.name)
    tried = [replace(start, options=dict(options)) for options in entry.sizings(start.options)
             if fits(options)]
    found = [(weight.file_bytes, number) for number, network in enumerate(tried)
             if (weight := now.search.possible(network)) is not None]
    size, number = min(found, default=(now.weight.file_bytes, 0))
    return tried[number] if size < now.weight.file_bytes else None


def _switch(now: Now, changes: Mapping[str, Any], column: Column, key: str) -> str:
    after = knobs.replace(now.run, changes)
    beside = f" beside {now.column.symbols[key]} now" if now.column else (
        "; the present settings are not rated")
    note = f" ({column.note})" if column.note else ""
    said = choose.in_words(choose.changes(now.run, after), after.network.algo)
    return (f"{column.label}{note}: {said}. "
            f"{ASPECTS[key]} {column.symbols[key]}{beside}.")


def dim(times: float) -> Moves:
    """A higher or lower dim, alpha along with it."""
    def moves(now: Now) -> Iterator[tuple[Mapping[str, Any], str]]:
        entry = now.entry
        wanted = max(1, round(now.network.dim * times))
        dims = entry.dims(wanted, now.network.options)
        for each in sorted(dims or (wanted,), key=lambda dim: abs(dim - wanted)):
            network = with_dim(now.network, each)
            weight = now.search.possible(network)
            if weight and (weight.parameters > now.weight.parameters) == (times > 1) and (
                    weight.parameters != now.weight.parameters):
                yield ({"network": network},
                       f"Dim {now.network.dim} to {each}" + (
                           f", alpha {now.network.alpha:g} to {network.alpha:g}: the strength at "
                           "the start stays." if entry.scaled else "."))
                return
    return moves


def alpha(times: float) -> Moves:
    """A higher or lower alpha alone, where it does anything."""
    def moves(now: Now) -> Iterator[tuple[Mapping[str, Any], str]]:
        wanted = now.network.alpha * times
        network = replace(now.network, alpha=wanted, conv_alpha=(
            now.network.conv_alpha and now.network.conv_alpha * times))
        scales, before = _scales(assign_family(now.family, network)), _scales(now.assignments)
        moved = [new for new, old in zip(scales, before, strict=True) if new != old]
        if moved and max(moved) <= 2 and min(moved) >= 1 / 256:
            yield ({"network": network}, f"Alpha {now.network.alpha:g} to {wanted:g}: "
                   f"the effective scale becomes {moved[0]:.3g}.")
    return moves


def _scales(assignments: Sequence[Assignment]) -> list[float]:
    return [a.algorithm.scale(a.layer) for a in assignments]


def layers(more: bool) -> Moves:
    """The nearest preset with more, or fewer, of the same layers."""
    def moves(now: Now) -> Iterator[tuple[Mapping[str, Any], str]]:
        for name, count in choose.beside(now.family, now.network):
            if (count > 0) == more and not (more and now.entry.guide.preset == name):
                yield ({"network.preset": name},
                       f"Preset {now.network.preset} to {name}: {abs(count)} layers "
                       f"{'more' if count > 0 else 'fewer'}.")
                return
    return moves


def made_for(now: Now) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Algorithms that come with a preset of their own: the lightest there are."""
    for name, entry in algorithms.catalogue().items():
        preset = entry.guide.preset
        if preset in type(now.family).presets and entry is not now.entry:
            network = replace(plan.switched(now.network, name), preset=preset)
            yield ({"network": network, **now.rate(entry)},
                   f"{entry.label} with the preset {preset}. {entry.about}")


def times(path: str, factor: float) -> Moves:
    """A number of the run multiplied."""
    def moves(now: Now) -> Iterator[tuple[Mapping[str, Any], str]]:
        leaf, old = LEAVES[path], knobs.get(now.run, path)
        new = leaf.type(float(f"{old * factor:.3g}")) if leaf.type is float else round(old * factor)
        if path == "optimizer.lr" and now.entry.guide.rates and not (
                now.entry.guide.rates[0] <= new <= now.entry.guide.rates[1]):
            return
        yield {path: new}, f"{leaf.label} {old:g} to {new:g}."
    return moves


def put(path: str, value: Any, does: str, when: Callable[[Now], bool] = lambda now: True) -> Moves:
    """One setting at one value."""
    def moves(now: Now) -> Iterator[tuple[Mapping[str, Any], str]]:
        if when(now):
            yield {path: value}, does
    return moves


def _trains_text(now: Now) -> bool:
    parts = {layer.part for layer in select(now.family, now.network).layers}
    return any(part.startswith("text_encoder") for part in parts) and len(parts) > 1


MORE_DIM = Rule(dim(TWICE), "More numbers to hold details. Raised along with alpha, the concept is "
                "learned better.", WORDS)
LESS_DIM = Rule(dim(HALF), "Fewer numbers to remember the pictures by.", WORDS)
MORE_LAYERS = Rule(layers(more=True), "More places that can learn. What convolutions add is hard "
                   "to see; the guideline stays with attn-mlp in most cases.", WORDS)
FEWER_LAYERS = Rule(layers(more=False), "Fewer layers take less time: LoRA of dim 32 took 16 % "
                    "less on attn-only than on attn-mlp.", TIMED)
LIGHTEST = Rule(made_for, "The lightest way: it can hardly remember a picture.", WORDS)
NO_CONV = Rule(put("network.conv_dim", 0, "Leaves out the convolutions larger than 1x1.",
                   lambda now: now.spatial),
               "Adapters of convolutions cost most time: LoHa of dim 16 took 36 % more with them.",
               TIMED)
NO_TEXT = put("network.text_encoder", False, "Leaves the text encoder as it is.", _trains_text)
GOALS: Mapping[str, Goal] = {
    "faithful": Goal("Faithful: details as in the pictures", (
        Rule(rated("fidelity"), "Ranked higher in fidelity.", TABLE), MORE_DIM, MORE_LAYERS)),
    "flexible": Goal("Flexible: new poses, scenes and combinations", (
        Rule(rated("flexibility"), "Ranked higher in flexibility.", TABLE),
        Rule(dim(TWICE), "Learning a concept and combining concepts trade off at one size; a "
             "larger adapter can better both.", GUESS))),
    "diverse": Goal("Diverse: pictures that differ from each other", (
        Rule(rated("diversity"), "Ranked higher in diversity.", TABLE), LESS_DIM)),
    "small": Goal("Small: the least file", (
        Rule(rated("size"), "Ranked smaller.", TABLE),
        Rule(put("output.dtype", "fp16", "Saves 16 bits a number.",
                 lambda now: now.run.output.dtype == "fp32"), "Half the bytes of fp32.", SURE),
        Rule(dim(HALF), "Bytes go down with dim.", SURE),
        Rule(layers(more=False), "Fewer layers, fewer bytes.", SURE),
        Rule(put("network.conv_dim", 0, "Leaves out the convolutions larger than 1x1.",
                 lambda now: now.spatial), "A 3x3 kernel has nine numbers for each one of a "
             "linear layer.", SURE),
        Rule(NO_TEXT, "The text encoder's layers need no file then.", SURE), LIGHTEST),
        smaller=True),
    "fast": Goal("Fast: less time to train", (
        Rule(put("train.gradient_checkpointing", False, "Keeps activations instead of computing "
                 "them twice; takes more memory.", lambda now: now.run.train.gradient_checkpointing
                 ), "One forward pass less in each step.", SURE),
        Rule(rated("speed"), "Ranked faster on these layers.", TABLE), NO_CONV, FEWER_LAYERS,
        Rule(NO_TEXT, "No gradients go through the text encoder then.", HABIT))),
    "learns-too-little": Goal("It learns too little", (
        Rule(rated("fidelity"), "Ranked higher in fidelity; a low factor with full dimension comes "
             "first where space matters, native training where it does not.", TABLE),
        MORE_DIM,
        Rule(alpha(TWICE), "A larger scale makes every step larger, much as a higher learning rate "
             "does.", WORDS),
        MORE_LAYERS,
        Rule(times("optimizer.lr", TWICE), "Larger steps.", HABIT),
        Rule(times("train.steps", 1.5), "More of them; with a larger batch they are due anyway.",
             WORDS))),
    "learns-too-much": Goal("It learns too much: style leaks, poses freeze", (
        Rule(rated("fidelity", up=False), "Ranked lower in fidelity, which lets go of the style "
             "and the poses of the pictures.", TABLE),
        LESS_DIM, LIGHTEST,
        Rule(alpha(HALF), "A smaller scale makes every step smaller.", WORDS),
        Rule(times("train.steps", 2 / 3), "An earlier checkpoint remembers less.", HABIT))),
}
