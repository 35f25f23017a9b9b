"""Does kill -9 and resume give the very tensors of a run that was never interrupted? Every
algorithm with every optimiser, each killed at moments of its own.

    python benchmarks/kill_grid.py --json kill_grid.jsonl      # goes on where it was ended
    python benchmarks/kill_grid.py --only lora,loha --optimisers AdamW,Muon --kills 3

A pair is an uninterrupted run, then one that kills itself at a step, an fsync or a rename, before
or after it, resumed and killed again, `--kills` times, and brought to its end. All of it in engine
processes of their own on a model of a few thousand weights, on the CPU; moments are drawn from the
pair's names, so a failure can be had again.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from conftest import draw_pictures, make_base, small_run
from nursery import Nursery, moment, mortal, same

from lycoris import algorithms, config, optimizers
from lycoris.errors import LycorisError, MissingPackage

STEPS = 4
SAME, OTHER, ENDED, REFUSED, MISSING = "same", "other", "ended", "refused", "missing"
SIGNS = {SAME: "=", OTHER: "DIFFERENT", ENDED: "FAILED", REFUSED: "refused", MISSING: "–"}


class Grid:
    """Runs in `folder`, from one nursery."""

    def __init__(self, folder: Path, kills: int):
        self.folder, self.kills = folder, kills
        self.settings = small_run(make_base(folder / "base"), draw_pictures(folder / "pictures"),
                                  folder / "runs")
        self.nursery = Nursery()

    def pair(self, algo: str, optimiser: str) -> dict[str, Any]:
        """{result, moments, said}: what came of one algorithm with one optimiser."""
        shutil.rmtree(self.folder / "runs", ignore_errors=True)
        for log in self.folder.glob("*.txt"):
            log.unlink()
        draw = random.Random(f"{algo} {optimiser}")
        moments = [moment(draw, STEPS // self.kills) for _ in range(self.kills)]
        told: dict[str, Any] = {"algo": algo, "optimiser": optimiser, "moments": moments}
        try:
            optimizers.load(optimiser)
            row = mortal(algo, optimiser, STEPS)
            whole = self.run("whole", row)
        except MissingPackage as error:
            return {**told, "result": MISSING, "said": str(error)}
        except LycorisError as error:
            return {**told, "result": REFUSED, "said": str(error)}
        codes = [self.run("killed", row, die) for die in moments] + [self.run("killed", row)]
        if whole or codes != [-signal.SIGKILL] * self.kills + [0]:
            log = (self.folder / ("whole.txt" if whole else "killed.txt")).read_text()
            return {**told, "result": ENDED, "said": f"exit codes {whole}, {codes}: {log[-500:]}"}
        files = [self.folder / "runs" / n / f"{n}.safetensors" for n in ("whole", "killed")]
        return {**told, "result": SAME if same(*files) else OTHER, "said": ""}

    def run(self, name: str, row: Sequence[str], die: Sequence[Any] = ()) -> int:
        target = self.folder / "runs" / name
        if not target.is_dir():
            run = config.load(None, [*self.settings, f"output.name={name}", *row])
            target = self.folder / f"{name}.toml"
            target.write_text(config.dump(run), "utf-8")
        log = self.folder / f"{name}.txt"
        return self.nursery.run("train", str(target), log=log, die=die)


def table(told: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A row for each algorithm, a column for each optimiser; then what is not the same."""
    found = {(each["algo"], each["optimiser"]): each for each in told}
    columns = sorted({optimiser for _, optimiser in found})
    yield f"| | {' | '.join(columns)} |"
    yield "|---" * (1 + len(columns)) + "|"
    for algo in sorted({algo for algo, _ in found}):
        cells = [SIGNS[found[algo, each]["result"]] if (algo, each) in found else ""
                 for each in columns]
        yield f"| {algo} | {' | '.join(cells)} |"
    kills = sum(len(each["moments"]) for each in told if each["result"] in (SAME, OTHER))
    kept = sum(each["result"] == SAME for each in told)
    yield f"\n{kept} of {len(told)} pairs came to the same bytes, after {kills} kills."
    for each in told:
        if each["result"] != SAME:
            yield f"{each['algo']} with {each['optimiser']}: {each['result']}. {each['said']}"


def main() -> int:
    every = {"algo": sorted(algorithms.catalogue()), "optimiser": sorted(optimizers.ROWS)}
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default=",".join(every["algo"]), help="algorithms")
    parser.add_argument("--optimisers", default=",".join(every["optimiser"]))
    parser.add_argument("--kills", type=int, default=1, choices=(1, 2, 4),
                        help="how often each run is killed")
    parser.add_argument("--json", type=Path, help="a line for each pair; those there are kept")
    options = parser.parse_args()
    told = []
    if options.json and options.json.exists():
        told = [json.loads(line) for line in options.json.read_text("utf-8").splitlines()]
    done = {(each["algo"], each["optimiser"]) for each in told}
    # Diagonals first: however early it ends, all algorithms and all optimisers were among them.
    rows, columns = options.only.split(","), options.optimisers.split(",")
    pairs = [(rows[i], columns[(i + shift) % len(columns)])
             for shift in range(len(columns)) for i in range(len(rows))]
    with tempfile.TemporaryDirectory() as folder:
        grid = Grid(Path(folder), options.kills)
        for place, pair in enumerate(pairs, 1):
            if pair in done:
                continue
            told.append(grid.pair(*pair))
            sys.stderr.write(f"{place} of {len(pairs)}: {' '.join(pair)}: {told[-1]['result']}\n")
            if options.json:
                with options.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(told[-1]) + "\n")
        grid.nursery.close()
    sys.stdout.write("\n".join(table(told)) + "\n")
    return 0 if {each["result"] for each in told} <= {SAME, REFUSED, MISSING} else 1


if __name__ == "__main__":
    sys.exit(main())
