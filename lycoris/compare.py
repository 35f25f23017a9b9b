"""The verb compare: the same prompts and seeds for every contestant, side by side in one
picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from . import (
    __version__,
    contestants,
    devices,
    durable,
    events,
    grid,
    loading,
    metadata,
    plan,
    promptfile,
    sampling,
)
from .contestants import Contestant
from .errors import ConfigError, OutOfMemory
from .families import Family, open_chosen
from .network import LycorisNetwork
from .settings import Config

GRID = "grid.png"


@dataclass(frozen=True)
class Result:
    grid: Path
    pictures: int
    reason: str


def check(run: Config, takers: Sequence[Contestant]) -> Family:
    """Refuse what cannot be painted before anything is loaded; returns the base's facts."""
    plan.check_names(run)
    problems = {}
    if len(takers) < 2:
        problems["contestants"] = ("a comparison needs at least two contestants; base counts as "
                                   "one, and sample paints with one alone")
    if not run.sample.prompts:
        problems["sample.prompts"] = "sample.prompts is empty; write at least one prompt"
    if not run.sample.seeds:
        problems["sample.seeds"] = "sample.seeds is empty; write at least one seed"
    if problems:
        raise ConfigError(problems)
    family = open_chosen(run.model)
    plan.check_base(run, family)
    return family


@devices.released
def run(run: Config, takers: Sequence[Contestant], where: Path,
        emit: Callable[[events.Event], None], asked: Callable[[], set[str]]) -> Result:
    """Paint every (prompt, seed) with every contestant into `where`/pictures and `where`/grid.png.

    Cell after cell over all contestants, so that the first pictures can be compared at once. A
    "stop" leaves a grid of what is there. Raises AdapterError for an adapter of another base.
    """
    takers = contestants.unique(list(takers))
    run = replace(run, sample=promptfile.plain(run.sample))
    family = check(run, takers)
    device = devices.choose(run.train.device)
    precision = devices.precision(run.train.precision, device)
    emit(events.Stage("loading the model", 0, 0))
    try:
        model = loading.load(run, family, device, precision)
        networks: dict[str, LycorisNetwork | None] = {}
        recipe = _recipe(run, family, takers)
        for taker, described in zip(takers, recipe["contestants"], strict=True):
            networks[taker.name], match = contestants.load(taker, family, model)
            described["match"] = match.text if match else ""
            if match and not match.whole:
                emit(events.Warned(f"{taker.name} fits this base only in part: {match.text}.",
                                   "It was probably made for another base."))
        durable.write_text(where / "recipe.json", json.dumps(recipe, indent=1, ensure_ascii=False))
        painter = _Painter(run, family, model, networks, where, emit, asked)
        pictures = painter.paint(recipe)
    except torch.OutOfMemoryError as error:
        raise OutOfMemory("painting", ["lower sample.width and sample.height"]) from error
    sheet = grid.draw(pictures, run.sample.prompts, run.sample.seeds,
                      [_column(each) for each in recipe["contestants"]])
    texts = {sampling.RECIPE: json.dumps(recipe, ensure_ascii=False),
             "parameters": "\n".join(run.sample.prompts)}
    path = sampling.write_png(where / GRID, sheet, texts)
    whole = len(pictures) == len(takers) * len(run.sample.prompts) * len(run.sample.seeds)
    reason = "done" if whole else "stopped"
    emit(events.Finished(reason, len(pictures), GRID))
    return Result(path, len(pictures), reason)


@dataclass
class _Painter:
    run: Config
    family: Family
    model: Any
    networks: dict[str, LycorisNetwork | None]
    where: Path
    emit: Callable[[events.Event], None]
    asked: Callable[[], set[str]]

    def paint(self, recipe: dict[str, Any]) -> dict[tuple[str, int, str], Image.Image]:
        """Every cell; {(prompt, seed, contestant): picture} of those that were finished."""
        how = sampling.settings_of(self.run.sample, self.run.dataset.resolution,
                                   self.family.side_multiple)
        jobs = sampling.jobs_of(self.run.sample)
        total = len(jobs) * len(self.networks)
        found: dict[tuple[str, int, str], Image.Image] = {}
        for number, job in enumerate(jobs):
            for name, network in self.networks.items():
                self.emit(events.Stage("painting", len(found), total))
                image = self._one(network, job, how)
                if image is None:
                    return found
                found[job.prompt, job.seed, name] = image
                taker = next(c for c in recipe["contestants"] if c["name"] == name)
                place = list(self.networks).index(name)
                file = f"pictures/{number:04d}-{place:02d}.png"
                sampling.write_png(self.where / file, image, sampling.recipe(
                    job, how, self.family.called, taker))
                self.emit(events.Sampled(0, number, file, job.prompt, job.seed, name))
        self.emit(events.Stage("painting", total, total))
        return found

    def _one(self, network: LycorisNetwork | None, job: sampling.Job,
             how: sampling.Settings) -> Image.Image | None:
        if network is not None:
            network.apply_to()
        try:
            return next(sampling.paint(self.model, [job], how,
                                       lambda: "stop" in self.asked()), None)
        finally:
            if network is not None:
                network.restore()


def _recipe(run: Config, family: Family, takers: Sequence[Contestant]) -> dict[str, Any]:
    """Everything needed to paint this again, embedded in the grid."""
    said = {path.partition(".")[2]: value for path, value in metadata.shared(run).items()
            if path.startswith("sample.")}
    return {"lycogui": __version__, "base": family.called, "sample": said,
            "resolution": run.dataset.resolution,
            "contestants": [contestants.describe(each, family) for each in takers]}


def _column(described: dict[str, Any]) -> grid.Column:
    if "file" not in described:
        return grid.Column(described["name"], described["base"], is_base=True)
    size = described["bytes"] / 2**20
    return grid.Column(described["name"], f"{described['algorithms']}, {size:.2f} MiB, "
                                          f"weight {described['weight']:g}")
