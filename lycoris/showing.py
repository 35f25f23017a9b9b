"""Sample pictures on the way: the prompts as the adapter stands, as compare would paint them, and
once as the base model paints them alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import config, events, sampling
from .contestants import BASE
from .families import Model
from .memory import PAINTING
from .network import LycorisNetwork
from .plan import Plan


@dataclass
class Painter:
    """Paints into the run folder `where`, each prompt with one seed."""

    plan: Plan
    where: Path
    emit: Callable[[events.Event], None]
    model: Model
    network: LycorisNetwork

    def __post_init__(self) -> None:
        run = self.plan.config
        self.jobs = sampling.while_training(run.sample)
        self.how = sampling.settings_of(run.sample, run.dataset.resolution,
                                        self.plan.family.side_multiple)
        self.painted = 0  # pictures of the last call of `paint`

    def done(self, step: int) -> bool:
        """Are all samples of this step there, and the base's beside them?"""
        own = range(len(self.jobs)) if self._differs(step) else ()
        return not self._missing() and all(
            (self.where / _name(step, index)).is_file() for index in own)

    def paint(self, step: int, asked: Callable[[], set[str]]) -> set[str]:
        """The base's pictures where they are not there yet, and the adapter's; what was asked
        meanwhile. A stop ends the painting."""
        heard: set[str] = set()

        def stopped() -> bool:
            heard.update(asked())
            return "stop" in heard

        bare, own = self._missing(), range(len(self.jobs)) if self._differs(step) else ()
        self.painted = 0
        total = len(bare) + len(own)
        self.emit(events.Stage(PAINTING, 0, total))
        if bare:
            self.network.set_multiplier(0.0)
            try:
                self._series(bare, BASE, 0, total, stopped)
            finally:
                self.network.set_multiplier(1.0)
        if "stop" not in heard:
            self._series(own, "", step, total, stopped)
        return heard

    def _series(self, indices: Sequence[int], contestant: str, step: int, total: int,
                stopped: Callable[[], bool]) -> None:
        run = self.plan.config
        jobs = [self.jobs[index] for index in indices]
        described = None if contestant else {"run": config.run_name(run), "step": step}
        for index, job, image in zip(indices, jobs, sampling.paint(
                self.model, jobs, self.how, stopped), strict=False):
            name = self._base_name(index) if contestant else _name(step, index)
            sampling.write_png(self.where / name, image, sampling.recipe(
                job, self.how, self.plan.family.called, described))
            self.emit(events.Sampled(step, index, name, job.prompt, job.seed, contestant))
            self.painted += 1
            self.emit(events.Stage(PAINTING, self.painted, total))

    def _differs(self, step: int) -> bool:
        """Before the first step the adapter changes nothing, unless it starts from another one: the
        base's picture is its own."""
        return step > 0 or bool(self.plan.config.network.weights)

    def _missing(self) -> list[int]:
        return [index for index in range(len(self.jobs))
                if not (self.where / self._base_name(index)).is_file()]

    def _base_name(self, index: int) -> str:
        """It names what it was painted of: prompts may change when a run is resumed."""
        job = self.jobs[index]
        told = f"{job.prompt}\0{job.seed}\0{job.how(self.how)}".encode()
        return f"samples/base-{index:02d}-{hashlib.blake2b(told, digest_size=4).hexdigest()}.png"


def _name(step: int, index: int) -> str:
    return f"samples/step-{step:06d}-{index:02d}.png"
