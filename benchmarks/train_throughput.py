"""Training speed of ours beside diffusers' own LoRA recipe with PEFT, at equal settings.

    python benchmarks/train_throughput.py [--family sd15,sdxl] [--peers FOLDER] [--rounds 7] ...

The same random model (random_model.py) in the same folder, the same pictures, LoRA on the same
attention layers, AdamW, the same batch and precision. Each contender is a process of its own
(throughput_worker.py) and they take turns, so a machine that slows down slows all; a ratio is the
median over rounds within the same round. On a CPU the model has a quarter of the widths. The recipe
runs as it is documented, encoding pictures and captions in every step, and with both cached as ours
has them, which is the fair row for the step itself. --profile shows where a step of ours spends its
time. A peer is found in --peers as step_cost.py says. On a machine that does other things
meanwhile, --threads 1 --clock cpu counts a step's CPU seconds instead of the clock on the wall.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from step_cost import HERE, MIB, Worker, row

OURS, CACHED, PLAIN = "ours", "recipe, cached", "recipe"
SIDES = {"sd15": 512, "sdxl": 1024}
NARROW_SIDE = 128  # of the pictures on a CPU
PICTURES = 8


@dataclass
class Result:
    """What one contender was measured at; times in seconds."""

    built: Mapping[str, float] = field(default_factory=dict)
    steps: list[float] = field(default_factory=list)
    saves: list[float] = field(default_factory=list)
    memory: int = 0


def measure(folder: Path, kind: str, options: argparse.Namespace) -> dict[str, Result]:
    import random_model

    base = random_model.make(folder / "base", kind, narrow=options.narrow)
    side = options.side or (NARROW_SIDE if options.narrow else SIDES[kind])
    pictures = random_model.pictures(folder / "pictures", PICTURES, side)
    workers = {name: Worker("ours" if name == OURS else "peft", options, "throughput_worker.py")
               for name in ((OURS,) if options.profile else (OURS, CACHED, PLAIN))}
    found = {name: Result() for name in workers}
    try:
        for name, worker in workers.items():
            found[name].built = asked(worker, "build", kind=worker.kind, base=str(base), side=side,
                                      pictures=str(pictures), batch=options.batch, dim=16,
                                      cached=name == CACHED)
            asked(worker, "steps", count=2)
        if len({each.built["trained"] for each in found.values()}) > 1:
            raise SystemExit(f"{kind}: they train different numbers of parameters: " + ", ".join(
                f"{name} {each.built['trained']:,}" for name, each in found.items()))
        if options.profile:
            sys.stdout.write(asked(workers[OURS], "profile", count=options.steps)["table"] + "\n")
            return {}
        for number in range(options.rounds):
            order = list(workers) if number % 2 else list(reversed(workers))
            for name in order:
                found[name].steps.append(
                    asked(workers[name], "steps", count=options.steps)["seconds"])
        for name in list(workers) * 3:
            found[name].saves.append(
                asked(workers[name], "save", folder=str(folder))["seconds"])
        for name, worker in workers.items():
            found[name].memory = asked(worker, "memory")["bytes"]
    finally:
        for worker in workers.values():
            worker.close()
    return found


def asked(worker: Worker, do: str, **more: Any) -> dict[str, Any]:
    found = worker.ask(do, **more)
    if "error" in found:
        raise SystemExit(f"{worker.kind}, {do}: {found['error']}")
    return found


def report(kind: str, found: Mapping[str, Result], batch: int) -> list[str]:
    """Rows: ours first; ratios are the contender's time over ours, with their quartiles."""
    own, rows = found[OURS], []
    for name, one in found.items():
        over = [a / b for a, b in zip(one.steps, own.steps, strict=True)]
        low, middle, high = statistics.quantiles(over, method="inclusive")
        ratio = f"{middle:.2f}" + ("" if name == OURS else f" ({low:.2f} to {high:.2f})")
        cached = PICTURES / one.built["cache"] if name != PLAIN else 0
        rows.append(row(
            kind, name, f"{batch / statistics.median(one.steps):.2f}", ratio,
            f"{one.memory / MIB:,.0f}", f"{cached:.1f}" if cached else "–",
            f"{one.built['load']:.2f}", f"{statistics.median(one.saves):.3f}"))
    return rows


HEAD = [row("model", "", "pictures/s", "time over ours", "peak MiB", "cached, pictures/s",
            "load, s", "save, s"), "|" + "---|" * 8]


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", default="sd15,sdxl", help="split by commas")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=0, help="steps a turn; default 2, GPU 10")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), help="default: bf16 on a GPU")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--side", type=int, default=0, help="of the pictures")
    parser.add_argument("--narrow", action="store_true", help="a quarter of the widths")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's own choice")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="of the steps")
    parser.add_argument("--peers", type=Path, default=HERE.parent / ".venv-peers")
    parser.add_argument("--profile", action="store_true", help="where a step of ours goes")
    parser.add_argument("--verbose", action="store_true", help="show the workers' own output")
    options = parser.parse_args(words)
    if set(options.family.split(",")) - set(SIDES):
        parser.error(f"--family: {', '.join(SIDES)}")
    if options.rounds < 2:
        parser.error("--rounds: two at least")
    if options.device == "auto":
        import torch

        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    cpu = options.device == "cpu"
    options.narrow = options.narrow or cpu
    options.steps = options.steps or (2 if cpu else 10)
    options.dtype = options.dtype or ("fp32" if cpu else "bf16")
    options.widths, options.latents = (), 0  # step_worker's, unused
    return options


def main() -> None:
    options = parse()
    lines = list(HEAD)
    for kind in options.family.split(","):
        with tempfile.TemporaryDirectory() as folder:
            if found := measure(Path(folder), kind, options):
                lines += report(kind, found, options.batch)
    if not options.profile:
        sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
