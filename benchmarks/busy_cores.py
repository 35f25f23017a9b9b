"""Training on a CPU that is also doing something else: OpenMP threads that spin against ones that
wait.

Runs the same few training steps of the embedded model twice, alternating, beside a process that
keeps all cores busy, and prints the seconds a step and their ratio:

    python benchmarks/busy_cores.py [--steps 12] [--rounds 2]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUSY = "import torch\na = torch.randn(1500, 1500)\nwhile True: a @ a"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {"ACTIVE": [], "PASSIVE": []}
    busy = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        for _ in range(options.rounds):
            for policy, found in seconds.items():
                found += steps(policy, options.steps)
    finally:
        busy.kill()
    middle = {policy: statistics.median(found) for policy, found in seconds.items()}
    for policy, value in middle.items():
        print(f"{policy:8} {value:8.3f} s/step (median of {len(seconds[policy])})")
    print(f"ratio    {middle['ACTIVE'] / middle['PASSIVE']:8.2f}  on {os.cpu_count()} cores")


def steps(policy: str, count: int) -> list[float]:
    """Seconds of each step of a run under this policy, the first left out."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lycoris", "train", f"output.folder={folder}",
                   f"train.steps={count}", "sample.every=0", "train.checkpoint_every=0", "--json"]
        environment = {**os.environ, "OMP_WAIT_POLICY": policy}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True,
                              check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return [line["sec"] for line in lines if line["event"] == "step"][1:]


if __name__ == "__main__":
    main()
