"""Sample pictures on the way: the prompts as the adapter stands, as compare would paint them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import config, events, sampling
from .families import Model
from .memory import PAINTING
from .plan import Plan


@dataclass
class Painter:
    """Paints into the run folder `where`; one seed for each prompt."""

    plan: Plan
    where: Path
    emit: Callable[[events.Event], None]
    model: Model

    @property
    def jobs(self) -> list[sampling.Job]:
        sample = self.plan.config.sample
        return [sampling.Job(prompt, sample.seeds[0] if sample.seeds else 1)
                for prompt in sample.prompts]

    def done(self, step: int) -> bool:
        """Are all samples of this step there?"""
        return all((self.where / _name(step, index)).is_file()
                   for index in range(len(self.plan.config.sample.prompts)))

    def paint(self, step: int, asked: Callable[[], set[str]]) -> set[str]:
        """What was asked meanwhile; a stop ends the painting."""
        run, jobs = self.plan.config, self.jobs
        heard: set[str] = set()

        def stopped() -> bool:
            heard.update(asked())
            return "stop" in heard

        how = sampling.settings_of(run.sample, run.dataset.resolution,
                                   self.plan.family.side_multiple)
        self.emit(events.Stage(PAINTING, 0, len(jobs)))
        for index, image in enumerate(sampling.paint(self.model, jobs, how, stopped)):
            name = _name(step, index)
            texts = sampling.recipe(jobs[index], how, self.plan.family.base.name,
                                    {"run": config.run_name(run), "step": step})
            sampling.write_png(self.where / name, image, texts)
            self.emit(events.Sampled(step, index, name, jobs[index].prompt, jobs[index].seed))
            self.emit(events.Stage(PAINTING, index + 1, len(jobs)))
        return heard


def _name(step: int, index: int) -> str:
    return f"samples/step-{step:06d}-{index:02d}.png"
