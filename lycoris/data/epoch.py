"""An epoch counted before it begins: how often pictures come, in which buckets, batches and steps.

Counted from sizes and names alone, by the rules that `loader.Batches` deals by.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..settings import TrainConfig
from .folder import Dataset, Picture

NAMED = 20  # of what is left out for one reason
NEW, PRIOR, HELD = "new", "regularisation", "validation"


@dataclass(frozen=True)
class Share:
    """What one folder gives: `shown` is how many pictures of it an epoch shows, each of them from
    `repeats` least to most often; what is for validation is not shown."""

    folder: Path
    kind: str
    pictures: int
    repeats: tuple[int, int]
    shown: int
    weight: float


@dataclass(frozen=True)
class Bucket:
    """The pictures of one size in px; `rest` is what is in its last batch where that is not full,
    else 0."""

    width: int
    height: int
    pictures: int
    shown: int
    batches: int
    rest: int


@dataclass(frozen=True)
class Epoch:
    folders: tuple[Share, ...]
    buckets: tuple[Bucket, ...]
    batch_size: int
    accumulate: int
    steps: int  # of the whole run

    @cached_property
    def pictures(self) -> int:
        return sum(each.pictures for each in self.buckets)

    @cached_property
    def shown(self) -> int:
        """How many pictures an epoch shows, repeats counted."""
        return sum(each.shown for each in self.buckets)

    @cached_property
    def batches(self) -> int:
        return sum(each.batches for each in self.buckets)

    @property
    def smaller(self) -> int:
        """How many batches are not full: the rest of each bucket."""
        return sum(bool(each.rest) for each in self.buckets)

    @property
    def steps_per_epoch(self) -> float:
        """Whole only where `accumulate` divides the batches: a step may reach into the next epoch.
        """
        return self.batches / self.accumulate

    @property
    def epochs(self) -> float:
        """How many the run has."""
        return self.steps * self.accumulate / max(1, self.batches)

    def data(self) -> dict[str, Any]:
        return {"folders": [{**asdict(each), "folder": str(each.folder)} for each in self.folders],
                "buckets": [asdict(each) for each in self.buckets],
                "batch_size": self.batch_size, "accumulate": self.accumulate,
                "pictures": self.pictures, "shown": self.shown, "batches": self.batches,
                "smaller": self.smaller, "steps_per_epoch": round(self.steps_per_epoch, 3),
                "steps": self.steps, "epochs": round(self.epochs, 3)}


def of(dataset: Dataset | None, buckets: Sequence[tuple[int, int]], train: TrainConfig) -> Epoch:
    """The epoch of a run: `buckets` has one for each picture that is learned from."""
    learned = dataset.learned if dataset else ()
    pictures, shown = Counter(buckets), Counter[tuple[int, int]]()
    for picture, bucket in zip(learned, buckets, strict=True):
        shown[bucket] += picture.repeats
    size = train.batch_size
    return Epoch(_folders(dataset), tuple(
        Bucket(*bucket, pictures[bucket], count, -(-count // size), count % size)
        for bucket, count in sorted(shown.items())), size, train.accumulate, train.steps)


def _folders(dataset: Dataset | None) -> tuple[Share, ...]:
    """In the order in which they were named."""
    found: dict[tuple[Path, str, float], list[int]] = {}
    for picture in (*dataset.learned, *dataset.held) if dataset else ():
        key = picture.path.parent, _kind(picture), picture.weight
        found.setdefault(key, []).append(0 if picture.held else picture.repeats)
    return tuple(Share(folder, kind, len(times), (min(times), max(times)), sum(times), weight)
                 for (folder, kind, weight), times in found.items())


def _kind(picture: Picture) -> str:
    return HELD if picture.held else PRIOR if picture.prior else NEW


def left_out(dataset: Dataset) -> list[dict[str, Any]]:
    """What the folders hold and the run does not use, by its reason: {why, count, names}, the names
    cut short where there are many."""
    found: dict[str, list[str]] = {}
    for each in dataset.left_out:
        found.setdefault(each.why, []).append(each.path.name)
    return [{"why": why, "count": len(names), "names": names[:NAMED]}
            for why, names in found.items()]


def sentences(epoch: Epoch) -> list[tuple[str, str]]:
    """Rows of a table for people."""
    rows = [("" if number else "Folders", _of_folder(each))
            for number, each in enumerate(epoch.folders)]
    rows += [("" if number else "Buckets", _of_bucket(each))
             for number, each in enumerate(epoch.buckets)]
    together = "" if epoch.accumulate == 1 else f", {epoch.accumulate} in a step"
    short = f", {epoch.smaller} of them not full" if epoch.smaller else ""
    rows.append(("An epoch", f"{epoch.shown:,} pictures in {epoch.batches:,} batches of "
                             f"{epoch.batch_size}{short}{together}: "
                             f"{epoch.steps_per_epoch:,.10g} steps"))
    rows.append(("The run", f"{epoch.steps:,} steps, {epoch.epochs:,.4g} epochs"))
    return rows


def _of_folder(share: Share) -> str:
    low, high = share.repeats
    times = f"{low}" if low == high else f"{low} to {high}"
    said = f"{share.folder}: {share.pictures:,}"
    if share.kind == HELD:
        return f"{said} held out for validation"
    weight = "" if share.weight == 1 else f", weight {share.weight:g}"
    prior = ", regularisation" if share.kind == PRIOR else ""
    return f"{said} x {times} = {share.shown:,}{prior}{weight}"


def _of_bucket(bucket: Bucket) -> str:
    last = f", the last with {bucket.rest}" if bucket.rest else ""
    return f"{bucket.width} x {bucket.height} px: {bucket.shown:,} in {bucket.batches:,}{last}"
