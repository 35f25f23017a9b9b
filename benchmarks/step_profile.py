"""Where the time of a run's steps goes on the host, and what makes it wait for the device.

    python benchmarks/step_profile.py [--steps 20] [--trace steps.json] [path=value ...]

The trainer's own session takes the steps, as a run would: requests are looked for, events written.
Each part of a step is named in the profile. Calls that wait for a GPU are counted, and there for
how long no kernel ran; `--trace` writes it all for chrome://tracing or ui.perfetto.dev.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lycoris import config, lesson, plan, trainer

WARM = 3  # steps before those that count
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize",
         "aten::_local_scalar_dense")
MARK = "part: "


def named(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def within(*given: Any, **more: Any) -> Any:
        with record_function(MARK + name):
            return call(*given, **more)

    return within


def parts(session: trainer.Session) -> None:
    """Name the parts of a step; none of them is within another."""
    session._made = named("the next pictures", session._made)
    lesson.noises.draw = named("noise", lesson.noises.draw)
    lesson.timesteps.draw = named("timesteps", lesson.timesteps.draw)
    session.lesson.condition = named("captions", session.lesson.condition)
    session.model.predict = named("forward pass", session.model.predict)
    torch.Tensor.backward = named("backward pass", torch.Tensor.backward)
    session._settle = named("loss and norm read", session._settle)
    optimizer = session.learner.optimizer
    optimizer.step = named("optimiser", optimizer.step)
    session.emit = named("event written", session.emit)


def idle(events: list[Any]) -> float:
    """Seconds within the device's first and last kernel in which none ran."""
    spans = sorted((e.time_range.start, e.time_range.end) for e in events
                   if e.device_type == torch.autograd.DeviceType.CUDA)
    gaps, end = 0.0, spans[0][1] if spans else 0
    for start, stop in spans:
        gaps, end = gaps + max(0, start - end), max(end, stop)
    return gaps / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--trace", type=Path)
    parser.add_argument("settings", nargs="*")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        run = config.load(None, [
            f"output.folder={place}", "output.name=profiled", "train.steps=100000",
            "dataset.folder=assets/datasets/zorb", "sample.every=0", *options.settings])
        made = plan.make(replace(run, train=replace(run.train, checkpoint_every=0)))
        folder = plan.create(made)
        session = trainer.Session(made, folder.path, folder.append)
        session.prepare(set)
        for _ in range(WARM):
            session.advance()
        parts(session)
        asked = named("requests looked for", folder.requests)
        kinds = {ProfilerActivity.CPU, *([ProfilerActivity.CUDA] * torch.cuda.is_available())}
        with profile(activities=kinds) as recorded:
            began = time.perf_counter()
            for _ in range(options.steps):
                asked()
                session.advance()
            seconds = time.perf_counter() - began
        if options.trace:
            recorded.export_chrome_trace(str(options.trace))
        print(table(recorded, seconds, options.steps, session.device))


def table(recorded: Any, seconds: float, steps: int, device: torch.device) -> str:
    events, found = recorded.events(), {}
    for event in events:
        if event.name.startswith(MARK) and event.device_type == torch.autograd.DeviceType.CPU:
            name = event.name.removeprefix(MARK)
            found[name] = found.get(name, 0.0) + event.time_range.elapsed_us() / 1e6
    found["everything else"] = seconds - sum(found.values())
    lines = [f"{device}: {steps} steps, {1e3 * seconds / steps:.1f} ms each", "",
             "| part of a step | ms | share |", "|---|---|---|"]
    lines += [f"| {name} | {1e3 * taken / steps:.2f} | {taken / seconds:.1%} |"
              for name, taken in found.items()]
    if device.type == "cuda":
        counted = Counter(event.name for event in events if event.name in WAITS)
        lines += ["", *(f"{name}: {count / steps:.1f} a step" for name, count in counted.items())]
        lines += [f"no kernel ran for {idle(events) / seconds:.1%} of the time"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
