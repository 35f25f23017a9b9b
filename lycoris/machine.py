"""What this machine has shown: how its memory differs from the prediction, how fast it trains.

One small file, machine.json in the folder of the runs: it is about these runs, goes where they go,
and a second installation or a test with another folder learns for itself. Everything in it is kept
by the device's name, so a folder that several machines share is right for each. A file that cannot
be read is begun anew: nothing in it cannot be measured again.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from . import config, devices, durable, events, footprint, memory, promptfile
from .data import wording
from .plan import Plan

FILE, FORMAT = "machine.json", 1
WARM = 2  # steps that are left out: caches fill, kernels are chosen
FEWEST = 3  # steps that make a measurement
LIMITS = (0.5, 2.0)  # a correction beyond them is no correction
SPEED = ("model.dtype", "train.precision", "train.batch_size", "train.accumulate",
         "train.split", "train.gradient_checkpointing", "train.block_swap", "train.max_norm",
         "train.fused_backward",
         "train.compile", "train.ema", "optimizer.name", "optimizer.args", "loss.prior_from_base",
         "dataset.resolution", "dataset.bucket", "dataset.bucket_step", "dataset.caption_chunks")
NO_MATTER = ("network.alpha", "network.conv_alpha", "network.rs_lora", "network.init",
             "network.weights")  # numbers a step has, not how many


@dataclass(frozen=True)
class Speed:
    """Seconds of a step, in the middle and between the quartiles; of a sample picture and of a
    checkpoint where they were measured. `source` is "calibration" or "run"."""

    seconds: float
    low: float
    high: float
    steps: int
    source: str
    at: float
    sample: float | None = None
    checkpoint: float | None = None

    @property
    def per_second(self) -> float:
        return 1 / self.seconds


@dataclass(frozen=True)
class Estimate:
    """Seconds a run still takes; `low` and `high` as far apart as steps were. `without` says what
    is not in it because it was never measured."""

    seconds: float
    low: float
    high: float
    source: str
    without: tuple[str, ...] = ()


def path_of(plan: Plan) -> Path:
    return Path(plan.config.output.folder).expanduser() / FILE


def device_name(plan: Plan) -> str:
    return devices.look(devices.choose(plan.config.train.device)).name


def correction(plan: Plan, device: str) -> float:
    """Measured / predicted memory of earlier runs on this device with this base; 1 without any."""
    found = _read(path_of(plan))["memory"].get(_memory_key(plan, device))
    return found["ratio"] if found else 1.0


def measured_runs(plan: Plan, device: str) -> int:
    """How many runs that correction comes from."""
    found = _read(path_of(plan))["memory"].get(_memory_key(plan, device))
    return found["runs"] if found else 0


def learn_memory(plan: Plan, device: str, predicted: int, measured: int) -> None:
    """Half of what was known, half of what was seen."""
    if predicted <= 0 or measured <= 0:
        return
    ratio = min(LIMITS[1], max(LIMITS[0], measured / predicted))
    said, key = _read(path_of(plan)), _memory_key(plan, device)
    before = said["memory"].get(key)
    said["memory"][key] = {
        "ratio": round((before["ratio"] + ratio) / 2 if before else ratio, 4),
        "runs": (before["runs"] if before else 0) + 1, "predicted": predicted,
        "measured": measured}
    _write(path_of(plan), said)


def speed(plan: Plan, device: str) -> Speed | None:
    """The last measurement of such steps on this device; None where there is none."""
    found = _read(path_of(plan))["speed"].get(_speed_key(plan, device))
    return Speed(**found) if found else None


def learn_speed(plan: Plan, device: str, found: Speed) -> None:
    said = _read(path_of(plan))
    said["speed"][_speed_key(plan, device)] = asdict(found)
    _write(path_of(plan), said)


def time_left(plan: Plan, device: str, step: int = 0) -> Estimate | None:
    """How long the run takes from `step` on; None, for unknown, where nothing was measured."""
    known = speed(plan, device)
    if known is None:
        return None
    run = plan.config
    steps = run.train.steps - step
    pictures = checkpoints = 0
    if run.sample.every:
        pictures = len(promptfile.read(run.sample)) * (-(-steps // run.sample.every) + (step == 0))
    if run.train.checkpoint_every:
        checkpoints = -(-steps // run.train.checkpoint_every)
    more = pictures * (known.sample or 0) + checkpoints * (known.checkpoint or 0)
    without = tuple(name for name, count, each in (
        ("sample pictures", pictures, known.sample), ("checkpoints", checkpoints,
                                                      known.checkpoint)) if count and each is None)
    return Estimate(*(steps * each + more for each in (known.seconds, known.low, known.high)),
                    known.source, without)


@dataclass
class Watch:
    """What one run sees of its own speed and memory while it goes. `parts`: in how many each batch
    is computed, by this process or by several."""

    plan: Plan
    device: torch.device
    parts: int = 0
    seconds: list[float] = field(default_factory=list)
    others: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """To be made when the base model is loaded: what was loaded before is the libraries'."""
        self.name = devices.look(self.device).name
        self.meter = devices.Meter(self.device)
        own = self.plan.config
        shared = replace(own, train=replace(own.train, split=self.parts or own.train.split))
        self.predicted = memory.predict(replace(self.plan, config=shared), self.device.type)

    def took(self, what: str, began: float, count: int) -> None:
        """`count` of "sample" or "checkpoint" took from `began` (perf_counter) until now."""
        if count:
            self.others.setdefault(what, []).append((time.perf_counter() - began) / count)

    def event(self) -> events.Measured:
        found = self.speed("run")
        return events.Measured(self.predicted.counted, self.measured(),
                               0.0 if found is None else round(found.per_second, 4))

    def measured(self) -> int:
        """The highest memory so far, as the prediction counts it."""
        weights = sum(item.bytes for item in self.predicted.items if item.kind == "weights")
        return self.meter.peak() + (0 if self.device.type == "cuda" else weights)

    def speed(self, source: str) -> Speed | None:
        warm = self.seconds[WARM:]
        if len(warm) < FEWEST:
            return None
        low, middle, high = statistics.quantiles(warm, n=4)
        other = {name: statistics.median(found) for name, found in self.others.items()}
        return Speed(middle, low, high, len(warm), source, time.time(), other.get("sample"),
                     other.get("checkpoint"))

    def learn(self, source: str) -> None:
        """Keep it for later runs."""
        if (found := self.speed(source)) is not None:
            learn_speed(self.plan, self.name, found)
        if self.seconds and not self.predicted.missing:
            learn_memory(self.plan, self.name, self.predicted.counted, self.measured())


def _memory_key(plan: Plan, device: str) -> str:
    return f"{device} | {plan.family.name} {footprint.fingerprint(plan.family)}"


def _speed_key(plan: Plan, device: str) -> str:
    """Everything that decides how long a step takes, readable as far as it is short."""
    run = config.to_dict(plan.config)
    decides = {path: value for path, value in run.items()
               if path in SPEED or (path.startswith("network.") and path not in NO_MATTER)}
    decides["largest"] = memory.largest(plan)
    decides["encodes"] = wording.varies(plan.config.dataset)  # captions, at every step
    if plan.presented:  # coarsely: one picture more is the same speed
        area = sum(w * h for w, h in plan.presented) / len(plan.presented)
        decides["mean"] = [f"{each:.2g}" for each in (
            area, len(plan.presented) / plan.epoch.batches)]
    mark = hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()
    network = plan.config.network
    return (f"{_memory_key(plan, device)} | {network.algo} {network.dim} {network.preset}, "
            f"{plan.config.dataset.resolution} px, batch {plan.config.train.batch_size} | "
            f"{mark[:16]}")


def _read(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        said = None
    if not isinstance(said, Mapping) or said.get("format") != FORMAT:
        return {"format": FORMAT, "memory": {}, "speed": {}}
    return {"format": FORMAT, "memory": dict(said["memory"]), "speed": dict(said["speed"])}


def _write(path: Path, said: Mapping[str, Any]) -> None:
    durable.write_text(path, json.dumps(said, indent=1, ensure_ascii=False))
