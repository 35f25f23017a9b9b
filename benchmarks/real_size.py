"""A run of a few steps at the real size of SD 1.5 or SDXL, with random weights.

    python benchmarks/real_size.py [--family sdxl] [--device cuda] [--steps 20] [path=value ...]

The model is diffusers' and transformers' own classes by assets/models, written into a temporary
folder (SD 1.5: 4.3 GB in fp32, SDXL: 14; half of that with --dtype fp16), and trained through the
trainer itself: load, encode, steps, adapter. Says the time of each part, seconds a step, and the
peak of memory beside lycoris.memory's prediction. For SDXL on 12 GB: preset=person-sdxl-12gb.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
MIB = 2**20
SIDES = {"sd15": 512, "sd21": 768, "sdxl": 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=SIDES, default="sd15")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=("fp32", "fp16"), default="fp16", help="of the files")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--side", type=int, default=0, help="of the pictures; default: the model's")
    parser.add_argument("--narrow", action="store_true", help="a quarter of the widths")
    parser.add_argument("settings", nargs="*", help="settings of the run, path=value")
    options = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, value in measure(Path(folder), options).items():
            sys.stdout.write(f"{name:28} {value}\n")


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    import random_model
    import torch

    from lycoris import config, devices, events, memory, plan, trainer

    side = options.side or SIDES[options.family]
    base = folder / "base"
    dtype = torch.float16 if options.dtype == "fp16" else torch.float32
    # In a process of its own: what the heap kept of it would count as there before the run.
    maker = multiprocessing.get_context("spawn").Process(
        target=random_model.make, args=(base, options.family),
        kwargs={"narrow": options.narrow, "dtype": dtype})
    maker.start()
    maker.join()
    if maker.exitcode:
        sys.exit("The model could not be made; what is above says why.")
    shown = random_model.pictures(folder / "pictures", 8, side)
    run = config.load(None, [
        f"dataset.resolution={side}", "sample.every=0", "train.checkpoint_every=0",
        *options.settings, f"model.base={base}", f"dataset.folder={shown}",
        f"train.steps={options.steps}", f"train.device={options.device}",
        f"output.folder={folder / 'runs'}", "output.name=one"])
    made = plan.make(run)
    device = devices.choose(run.train.device)
    known = replace(run, model=replace(run.model, family=options.family))
    asked = made if options.narrow else plan.make(known, dataset=made.dataset)
    told = memory.predict(asked, device.type)  # activations are in the tables of models by name
    where = plan.create(made).path
    found: list[tuple[float, events.Event]] = []
    meter = devices.Meter(device)
    began = time.perf_counter()
    trainer.run(made, where, lambda event: found.append((time.perf_counter(), event)), set)
    ended, steps = time.perf_counter(), [(at, e) for at, e in found if isinstance(e, events.Step)]
    seconds = [event.sec for _, event in steps[min(2, len(steps) - 1):]]
    return {
        "device": devices.look(device).name, "run": f"{options.family}, {side} px, batch "
        f"{run.train.batch_size}, {run.network.algo} dim {run.network.dim}",
        "until the first step, s": f"{steps[0][0] - steps[0][1].sec - began:.1f}",
        "a step, s (median)": f"{statistics.median(seconds):.3f}",
        "from last step to file, s": f"{ended - steps[-1][0]:.1f}",
        "loss, first and last": f"{steps[0][1].loss:.4f} {steps[-1][1].loss:.4f}",
        "peak memory, MiB": f"{meter.peak() / MIB:,.0f}",
        "predicted, MiB": f"{told.counted / MIB:,.0f}, {told.highest.name}. {told.missing}"}


if __name__ == "__main__":
    main()
