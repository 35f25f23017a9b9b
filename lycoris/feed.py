"""What the steps of a run are fed with: which pictures a batch holds, their latents and captions.

Everything drawn is a function of (seed, step, place in the step), so that it is the same after a
resume and for every adapter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from . import streams
from .data import buckets, cache, folder, wording
from .data.cache import Encoded, Wanted
from .data.folder import Picture
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


@dataclass(frozen=True)
class Shown:
    """A picture as a batch shows it: latents (c, h, w), mask (1, h, w) where there is one."""

    latents: Tensor
    mask: Tensor | None
    cut: folder.Cut


class Feed:
    """The endless sequence of batches of a plan; `step` and `micro` count from 0."""

    def __init__(self, plan: Plan, model: Model, report: Callable[[int, int, int], None],
                 kept: cache.Store = cache.NOWHERE):
        """Encodes every picture, but for those that are `kept`; `report(done, total, taken from
        there)` hears how far it is."""
        self.settings = plan.config
        run = self.settings.dataset
        self.pictures: Sequence[Picture] = plan.dataset.learned if plan.dataset else ()
        self.held: Sequence[Picture] = plan.dataset.held if plan.dataset else ()
        self.scale = model.latent_scale
        self.buckets, self.held_buckets = plan.buckets, plan.held_buckets
        sizes = [buckets.cover(p.size, bucket, self.scale) if run.random_crop and p.size else bucket
                 for p, bucket in zip(self.pictures, plan.buckets, strict=True)]
        upright = [Wanted(p.path, size, False, run.masks, p.mask)
                   for p, size in zip((*self.pictures, *self.held),
                                      (*sizes, *plan.held_buckets), strict=True)]
        mirrored = [Wanted(one.path, one.size, True, one.masked, one.mask)
                    for one in upright[:len(self.pictures)] if run.flip]
        found = cache.encode(model, [*upright, *mirrored], report, kept)
        count, both = len(self.pictures), len(upright)
        self.latents = found[:count]
        self.held_latents, self.mirrored = found[count:both], found[both:]
        self.captions = [p.words for p in self.pictures]
        self.names = _names(p.path for p in self.pictures)
        train = self.settings.train
        self.batches = Batches(plan.buckets, train.batch_size, train.seed,
                               [p.repeats for p in self.pictures])

    @property
    def texts(self) -> list[str] | None:
        """Every text that a batch can hold, each once; None where they vary from step to step."""
        run = self.settings.dataset
        if wording.varies(run):
            return None
        return list(dict.fromkeys(["", *(wording.plain(text, run) for text in (
            *self.captions, *(p.words for p in self.held)))]))

    @property
    def mark(self) -> str:
        """Of all that is learned from: names, sizes, repeats, captions. Another is another run."""
        told = [(p.name, p.size, bucket, p.repeats, p.weight, p.prior, p.words,
                 p.mask and p.mask.name)
                for p, bucket in zip(self.pictures, self.buckets, strict=True)]
        return hashlib.sha256(repr(told).encode()).hexdigest()[:16]

    def batch(self, step: int, micro: int) -> Batch:
        run, seed = self.settings, self.settings.train.seed
        members = self.members(step, micro)
        first = micro * run.train.batch_size
        places = [first + i for i in range(len(members))]
        drawn = list(zip(members, places, strict=True))
        return _batch(step, members, places,
                      [self._shown(member, step, place) for member, place in drawn],
                      [wording.drawn(self.captions[member], run.dataset, seed, step, place)
                       for member, place in drawn],
                      [self.pictures[member] for member in members])

    def held_out(self) -> Iterator[Batch]:
        """The pictures that are held out, each once, with nothing left to chance; as many at once
        as a step computes."""
        train = self.settings.train
        size = -(-train.batch_size // train.split)
        for bucket in sorted(set(self.held_buckets)):
            own = [i for i, other in enumerate(self.held_buckets) if other == bucket]
            for start in range(0, len(own), size):
                members = own[start:start + size]
                pictures = [self.held[i] for i in members]
                shown = [Shown(self.held_latents[i].latents, self.held_latents[i].mask,
                               folder.cut(self.held[i].size or bucket, bucket)) for i in members]
                yield _batch(0, members, range(len(members)), shown,
                             [wording.plain(p.words, self.settings.dataset) for p in pictures],
                             pictures)

    def members(self, step: int, micro: int) -> list[int]:
        return self.batches.at(step * self.settings.train.accumulate + micro)

    def named(self, step: int) -> list[str]:
        """The pictures of a whole step."""
        return [self.names[i] for micro in range(self.settings.train.accumulate)
                for i in self.members(step, micro)]

    def epoch(self, steps: int) -> float:
        """How often all has been seen after so many steps."""
        return steps * self.settings.train.accumulate / self.batches.per_epoch

    def _shown(self, member: int, step: int, place: int) -> Shown:
        """One picture as it is mirrored and cropped at this place of this step."""
        run, seed = self.settings.dataset, self.settings.train.seed
        turned = run.flip and streams.uniform(seed, "flip", step, place) < 0.5
        one: Encoded = (self.mirrored if turned else self.latents)[member]
        bucket = self.buckets[member]
        cut = folder.cut(self.pictures[member].size or bucket, bucket)
        if run.random_crop:
            width, height = (side // self.scale for side in bucket)
            free = one.latents.shape[-2] - height, one.latents.shape[-1] - width
            top, left = (streams.number(seed, "crop", step, place, way) % (most + 1)
                         for way, most in zip(("top", "left"), free, strict=True))
            window = (slice(None), slice(top, top + height), slice(left, left + width))
            one = Encoded(one.latents[window], None if one.mask is None else one.mask[window])
            if turned:  # where its left edge is in the picture as it was
                left = free[1] - left
            cut = cut._replace(top=top * self.scale, left=left * self.scale)
        return Shown(one.latents, one.mask, cut)


def _batch(step: int, members: Sequence[int], places: Sequence[int], shown: Sequence[Shown],
           texts: Sequence[str], pictures: Sequence[Picture]) -> Batch:
    masks = [one.mask for one in shown if one.mask is not None]
    return Batch(step, tuple(members), tuple(places), torch.stack([one.latents for one in shown]),
                 tuple(texts), torch.stack(masks) if masks else None,
                 tuple(p.weight for p in pictures), tuple(p.prior for p in pictures),
                 tuple(one.cut for one in shown))


def _names(paths: Iterable[Path]) -> list[str]:
    """What pictures are called: with their folder where they are in several."""
    paths = list(paths)
    several = len({path.parent for path in paths}) > 1
    return [f"{path.parent.name}/{path.name}" if several else path.name for path in paths]
