"""What every training stage shares: seeds by step, averages, checkpoints, a progress line.

Everything is counted in steps and every random number is a function of the seed and the step, so
a stage that was interrupted and started again ends with the weights it would have had anyway.
"""

import json
import time
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def step_generator(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


@dataclass(frozen=True)
class Schedule:
    """Learning rate over the steps: warm-up, a level, then linearly down to `end` of it."""

    steps: int
    rate: float
    warmup: int = 100
    level: float = 0.4  # share of the steps before it goes down
    end: float = 0.01

    def factor(self, step: int) -> float:
        progress = step / self.steps
        falling = (1 - progress) / (1 - self.level)
        return min(1.0, (step + 1) / self.warmup) * max(self.end, min(1.0, falling))


class Average:
    """Exponential moving average of parameters; young averages forget faster."""

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        self.parameters, self.decay = list(parameters), decay
        self.shadow = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (step + 1) / (step + 20))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.parameters], 1 - decay)

    @contextmanager
    def applied(self):
        """Inside, the parameters have their averages."""
        kept = [parameter.detach().clone() for parameter in self.parameters]
        self._set(self.shadow)
        try:
            yield
        finally:
            self._set(kept)

    @torch.no_grad()
    def _set(self, values: Iterable[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)


class Checkpoint:
    """State of one stage in one file: models, optimiser, average, step, seconds spent."""

    def __init__(self, path: Path, models: dict[str, nn.Module], optimizer: Any, average: Average):
        self.path, self.models, self.optimizer, self.average = path, models, optimizer, average

    def save(self, step: int, seconds: float) -> None:
        state = {name: model.state_dict() for name, model in self.models.items()}
        state |= {"optimizer": self.optimizer.state_dict(), "average": self.average.shadow}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        torch.save(state | {"step": step, "seconds": seconds}, temporary)
        temporary.replace(self.path)

    def load(self) -> tuple[int, float]:
        """Restores everything; the step to go on from and the seconds spent so far."""
        if not self.path.exists():
            return 0, 0.0
        state = torch.load(self.path, weights_only=True)
        for name, model in self.models.items():
            model.load_state_dict(state[name])
        self.optimizer.load_state_dict(state["optimizer"])
        for kept, value in zip(self.average.shadow, state["average"], strict=True):
            kept.copy_(value)
        print(f"goes on from step {state['step']}", flush=True)
        return state["step"], state["seconds"]


class Progress:
    """A line now and then: step, loss, steps a second, time left."""

    def __init__(self, name: str, steps: int, start: int, seconds: float) -> None:
        self.name, self.steps, self.start, self.before = name, steps, start, seconds
        self.began = time.monotonic()
        self.losses: list[float] = []

    @property
    def seconds(self) -> float:
        """Spent on this stage, earlier runs included."""
        return self.before + time.monotonic() - self.began

    def add(self, step: int, loss: float, every: int) -> None:
        self.losses.append(loss)
        done = step + 1
        if done % every and done != self.steps:
            return
        rate = (done - self.start) / max(1e-9, time.monotonic() - self.began)
        left = (self.steps - done) / rate / 60
        mean = sum(self.losses) / len(self.losses)
        self.losses.clear()
        print(
            f"{self.name} {done}/{self.steps}  loss {mean:.4f}  {rate:.2f} steps/s  "
            f"{left:.0f} min left",
            flush=True,
        )


def finished(work: Path, stage: str) -> dict[str, Any] | None:
    """What a finished stage noted; None if it has to run."""
    note = work / f"{stage}.json"
    return json.loads(note.read_text(encoding="utf-8")) if note.exists() else None


def finish(work: Path, stage: str, **facts: Any) -> None:
    write_atomically(work / f"{stage}.json", json.dumps(facts, indent=2) + "\n")
