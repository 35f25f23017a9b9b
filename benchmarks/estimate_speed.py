"""How long exact estimates take, with the layer table read already: from settings to bytes.

Prints milliseconds for one algorithm on each model that is known by name and on the embedded one,
for the whole comparison of all algorithms that the Algorithm tab shows, and for one plan's own
sizes, where each layer is given its adapter as for training:

    python benchmarks/estimate_speed.py [--rounds 30] [--preset full]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lycoris import algorithms, assignments, config, known, plan, sizes
from lycoris.errors import ConfigError
from lycoris.plan import Plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--preset", default="full")
    options = parser.parse_args()
    for name in ("auto", *known.names()):
        made = plan.make(config.load(None, [
            f"model.family={name}", f"network.preset={options.preset}"]), need_dataset=False)
        one = median(options.rounds, lambda dim, made=made: estimate(made, "loha", dim))
        table = median(options.rounds, lambda dim, made=made: comparison(made, dim))
        planned = median(options.rounds, lambda dim, made=made: layer_by_layer(made, "loha", dim))
        print(f"{made.family.title}: one algorithm {one:.2f} ms, all {len(algorithms.catalogue())} "
              f"{table:.1f} ms, ratio {table / one:.1f}; layer by layer {planned:.2f} ms "
              f"({made.sizes.modules} layers)")


def median(rounds: int, work: Callable[[int], None]) -> float:
    """Milliseconds, another dim each time."""
    taken = []
    for number in range(rounds):
        began = time.perf_counter()
        work(8 + number)
        taken.append(1000 * (time.perf_counter() - began))
    return statistics.median(taken)


def estimate(made: Plan, algo: str, dim: int) -> None:
    """One row of the table."""
    plan.sizes_with(made, replace(plan.switched(made.config.network, algo), dim=dim))


def layer_by_layer(made: Plan, algo: str, dim: int) -> None:
    network = replace(made.config.network, algo=algo, dim=dim)
    sizes.measure(assignments.assign_family(made.family, network), "fp16", {})


def comparison(made: Plan, dim: int) -> None:
    """Every algorithm with its metadata, as the tab shows it."""
    for algo in algorithms.catalogue():
        try:
            estimate(made, algo, dim)
        except ConfigError:
            continue  # not possible at that dim


if __name__ == "__main__":
    main()
