"""What the steps of a run are fed with: which pictures a batch holds, their latents and captions.

Everything drawn is a function of (seed, step, place in the step), so that it is the same after a
resume and for every adapter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from . import streams
from .data import cache, captions, folder
from .data.loader import Batches
from .families import Model
from .plan import Plan


@dataclass(frozen=True)
class Batch:
    """Some pictures of one size. `places` are theirs within the step, by which streams are drawn;
    `x0` are their latents (b, c, h, w) on the CPU. For each picture also: the weight of its loss,
    whether it is a regularisation picture, and how it was cut out, in pixels."""

    step: int
    members: tuple[int, ...]
    places: tuple[int, ...]
    x0: Tensor
    texts: tuple[str, ...]
    masks: Tensor | None  # (b, 1, h, w) in 0..1, as large as the latents: what counts of a picture
    weights: tuple[float, ...]
    prior: tuple[bool, ...]
    sizes: tuple[folder.Cut, ...]

    def piece(self, number: int, count: int) -> tuple[Batch, float]:
        """One of `count` parts of the batch, and its share of the pictures. Where there are fewer
        pictures than parts, one without any is the first picture with the share 0."""
        if count == 1:
            return self, 1.0
        whole = len(self.members)
        start, stop = number * whole // count, (number + 1) * whole // count
        share = (stop - start) / whole
        taken = slice(start, stop) if share else slice(1)
        return replace(self, **{
            each.name: value[taken] for each in fields(self)
            if not isinstance(value := getattr(self, each.name), (int, type(None)))}), share


class Feed:
    """The endless sequence of batches of a plan; `step` and `micro` count from 0."""

    def __init__(self, plan: Plan, model: Model, report: Callable[[int, int], None]):
        """Encodes every picture; `report(done, total)` hears how far it is."""
        self.settings = plan.config
        pictures = plan.dataset.readable if plan.dataset else ()
        self.latents = cache.encode(model, [p.path for p in pictures], plan.buckets, report)
        self.captions = [captions.as_prompt(p.caption or "") for p in pictures]
        self.names = [p.name for p in pictures]
        self.cuts = [folder.cut(p.size, bucket)
                     for p, bucket in zip(pictures, plan.buckets, strict=True) if p.size]
        train = self.settings.train
        self.batches = Batches(plan.buckets, train.batch_size, train.seed)

    @property
    def texts(self) -> list[str]:
        """Every text that a batch can hold, each once."""
        return list(dict.fromkeys(["", *self.captions]))

    def batch(self, step: int, micro: int) -> Batch:
        members = self.members(step, micro)
        first = micro * self.settings.train.batch_size
        places = [first + i for i in range(len(members))]
        return Batch(step, tuple(members), tuple(places),
                     torch.stack([self.latents[i] for i in members]),
                     tuple(self._caption(i, step, place)
                           for i, place in zip(members, places, strict=True)),
                     None, (1.0,) * len(members), (False,) * len(members),
                     tuple(self.cuts[i] for i in members))

    def members(self, step: int, micro: int) -> list[int]:
        return self.batches.at(step * self.settings.train.accumulate + micro)

    def named(self, step: int) -> list[str]:
        """The pictures of a whole step."""
        return [self.names[i] for micro in range(self.settings.train.accumulate)
                for i in self.members(step, micro)]

    def epoch(self, steps: int) -> float:
        """How often each picture has been seen after so many steps."""
        return steps * self.settings.train.accumulate / self.batches.per_epoch

    def _caption(self, index: int, step: int, place: int) -> str:
        run = self.settings
        dropped = (streams.uniform(run.train.seed, "caption", step, place)
                   < run.dataset.caption_dropout)
        return "" if dropped else self.captions[index]
