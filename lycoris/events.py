"""What a run tells the world: frozen events, one JSON object a line.

    {"t": 1763884800.25, "event": "step", "step": 12, "loss": 0.231, ...}

A number that is not finite is written as null, so every line is plain JSON.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Event:
    """The base of all events; the class name in lower case is the event's name."""


@dataclass(frozen=True)
class Started(Event):
    """`born` is the process's start time, so that a reused pid is not taken for this process."""

    pid: int
    born: float
    device: str
    total_steps: int


@dataclass(frozen=True)
class Resumed(Event):
    step: int


@dataclass(frozen=True)
class Stage(Event):
    """Long work before or between steps; total 0 means unknown. So many of what is done were
    `taken` from the cache."""

    name: str
    done: int
    total: int
    taken: int = 0

    @property
    def words(self) -> str:
        return f"{self.name}, {self.taken} from the cache" if self.taken else self.name


@dataclass(frozen=True)
class Cached(Event):
    """What the cache on disk holds now, of this run and of others."""

    folder: str
    files: int
    bytes: int


@dataclass(frozen=True)
class Step(Event):
    """`sec` is the step's wall time, `memory` the peak so far in bytes (device, else process)."""

    step: int
    epoch: float
    loss: float
    loss_avg: float
    lr: float
    grad_norm: float
    sec: float
    memory: int
    capped: int = 0  # layers that max_norm shrank; norms of all layers' scaled dW after it
    norm_mean: float | None = None
    norm_max: float | None = None


@dataclass(frozen=True)
class Validated(Event):
    """The mean loss on the pictures that are held out, and at each timestep."""

    step: int
    loss: float
    timesteps: dict[str, float]


@dataclass(frozen=True)
class Sampled(Event):
    """One picture; `path` is relative to the run folder."""

    step: int
    index: int
    path: str
    prompt: str
    seed: int
    contestant: str = ""


@dataclass(frozen=True)
class Saved(Event):
    step: int
    path: str
    bytes: int


@dataclass(frozen=True)
class Paused(Event):
    """It holds between two steps, and listens."""

    step: int


@dataclass(frozen=True)
class Continued(Event):
    step: int


@dataclass(frozen=True)
class Stopping(Event):
    """A stop was heard while files are written: they come whole first. `cancels` is what a request
    `cancel` leaves out; empty where there is nothing."""

    step: int
    cancels: str = ""


@dataclass(frozen=True)
class Measured(Event):
    """At a run's end: the highest memory in bytes as it was predicted and as it was, and steps a
    second without the first ones (0 where there were too few)."""

    predicted: int
    memory: int
    steps_per_second: float


@dataclass(frozen=True)
class Warned(Event):
    text: str
    fix: str = ""


@dataclass(frozen=True)
class Failed(Event):
    kind: str
    message: str
    fix: str = ""
    field: str = ""


@dataclass(frozen=True)
class Finished(Event):
    """`reason` is "done" or "stopped"."""

    reason: str
    step: int
    path: str


KINDS = {kind.__name__.lower(): kind
         for kind in (Started, Resumed, Stage, Cached, Step, Validated, Sampled, Saved, Paused,
                      Continued, Stopping,
                      Measured, Warned, Failed, Finished)}


def to_dict(event: Event, at: float | None = None) -> dict[str, Any]:
    values = {key: _written(value) for key, value in asdict(event).items()}
    stamp = time.time() if at is None else at
    return {"t": round(stamp, 3), "event": type(event).__name__.lower(), **values}


def _written(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _written(each) for key, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def line(event: Event, at: float | None = None) -> str:
    return json.dumps(to_dict(event, at), ensure_ascii=False)


def parse(text: str) -> tuple[float, Event] | None:
    """(time, event) of one line; None for a line this version does not know or cannot read.

    A torn line in the middle of a file is what a crash leaves; newer versions may add events.
    """
    try:
        values = json.loads(text)
    except ValueError:
        return None
    kind = KINDS.get(values.pop("event", "")) if isinstance(values, dict) else None
    if kind is None:
        return None
    stamp = values.pop("t", 0.0)
    known = {field.name: str(field.type) for field in fields(kind)}
    values = {key: _read(value) if "None" not in known[key] else value
              for key, value in values.items() if key in known}
    try:
        return stamp, kind(**values)
    except TypeError:
        return None


def _read(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _read(each) for key, each in value.items()}
    return math.nan if value is None else value
