"""Batches by number: which pictures the n-th batch holds is a function of the seed and n alone."""

from __future__ import annotations

from collections.abc import Sequence

from .. import streams


class Batches:
    """The endless sequence of batches over pictures in buckets; every batch is of one bucket.

    In each epoch every picture comes once, or as often as its `repeats` say, in an order of that
    epoch; a bucket's last batch may be smaller.
    """

    def __init__(self, buckets: Sequence[tuple[int, int]], batch_size: int, seed: int,
                 repeats: Sequence[int] = ()):
        self.buckets = list(buckets)
        repeats = repeats or [1] * len(self.buckets)
        self.batch_size = batch_size
        self.seed = seed
        self.members: dict[tuple[int, int], list[int]] = {}
        for index, bucket in enumerate(self.buckets):
            self.members.setdefault(bucket, []).extend([index] * repeats[index])
        self.per_epoch = batches_per_epoch(presented(self.buckets, repeats), batch_size)
        self._epoch = -1
        self._batches: list[list[int]] = []

    def at(self, number: int) -> list[int]:
        """The picture indices of batch `number`, counted from 0 over all epochs."""
        epoch, place = divmod(number, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._order(epoch)
        return self._batches[place]

    def _order(self, epoch: int) -> list[list[int]]:
        found: list[list[int]] = []
        for bucket in sorted(self.members):
            members = self.members[bucket]
            order = streams.permutation(len(members), self.seed, "order", epoch, *bucket)
            shuffled = [members[i] for i in order]
            found += [shuffled[start:start + self.batch_size]
                      for start in range(0, len(shuffled), self.batch_size)]
        return [found[i] for i in streams.permutation(len(found), self.seed, "batches", epoch)]


def presented(buckets: Sequence[tuple[int, int]],
              repeats: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Each picture's bucket as often as the picture comes in an epoch."""
    return tuple(bucket for bucket, times in zip(buckets, repeats, strict=True)
                 for _ in range(times))


def batches_per_epoch(buckets: Sequence[tuple[int, int]], batch_size: int) -> int:
    """Batches of one epoch, remainders of each bucket included."""
    counts: dict[tuple[int, int], int] = {}
    for bucket in buckets:
        counts[bucket] = counts.get(bucket, 0) + 1
    return sum(-(-count // batch_size) for count in counts.values())
