"""The loss on pictures that are held out: does the adapter learn, or does it learn by heart?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from . import events
from .feed import Feed
from .lesson import Lesson
from .plan import Plan

TIMES = 8  # timesteps at which each picture is looked at, evenly over all


@dataclass
class Validator:
    """Looks at the held-out pictures every so many steps, always with the same noise."""

    plan: Plan
    emit: Callable[[events.Event], None]
    feed: Feed
    lesson: Lesson

    def due(self, step: int) -> bool:
        train = self.plan.config.train
        return bool(self.feed.held and train.validate_every) and (
            step % train.validate_every == 0 or step == train.steps)

    def look(self, step: int, asked: Callable[[], set[str]] = set) -> set[str]:
        """Emit the mean loss, and that of each timestep; what was asked meanwhile. A stop ends it,
        and it is done when the run goes on."""
        heard: set[str] = set()
        count = self.lesson.model.objective.timesteps
        at = [count * (2 * i + 1) // (2 * TIMES) for i in range(TIMES)]
        batches = list(self.feed.held_out())
        found = []
        for number, batch in enumerate(batches):
            self.emit(events.Stage("validating", number, len(batches)))
            heard |= asked()
            if "stop" in heard:
                return heard
            found.append(self.lesson.validation(batch, at))
        losses = torch.cat(found, 1).double().mean(1)
        self.emit(events.Validated(step, losses.mean().item(), {
            str(timestep): round(loss, 6) for timestep, loss in
            zip(at, losses.tolist(), strict=True)}))
        return heard
