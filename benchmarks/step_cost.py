"""What a training step with an adapter costs over the frozen model: time and peak memory.

    python benchmarks/step_cost.py [--only lora,lokr] [--rounds 7] [--json FILE] [--full] ...

For every algorithm: native (full fine-tuning of the same layers), ours, lycoris-lora in each of its
modes and PEFT, against the floor: the same model with frozen weights, forward and backward down to
the latents. Each contender is a process of its own (step_worker.py: lycoris-lora has a top-level
package of our name) that holds its model and waits; the rounds go through the contenders in turn,
forwards and backwards, one step at a time, so a machine that slows down slows all of them. A ratio
is the median over rounds of a step's seconds over the floor's in the same round.

The model is SD1.5's UNet, structure and text width as released, every channel count halved, on 32 x
32 latents, batch 2: linears see 2,048 to 32 positions of 160 to 640 channels, in the proportions of
SD1.5. It is the harder test for adapters: at dim 16 the thin matrices are twice as thick beside the
layer, and a rebuilt dW is spread over fewer positions than at 64 x 64. --full takes the true widths
and 64 x 64 latents, for a GPU (or, with --latents 32, a patient CPU).

All adapt the 192 linear and 1x1 layers of the transformers (preset attn-mlp), dim 16, alpha 8, with
torch's fused AdamW on what is trained. A peer is found in --peers, made with

    pip install --target .venv-peers --no-deps lycoris-lora==4.1.3 einops toml peft

and left out, in words, where it is not there; so is an algorithm for whose contenders, which hold
their models at once, the memory is too small. In pieces: --only boft --json b.json, then, for one
table, --join a.json b.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DIM, ALPHA = 16, 8
MIB = 2**20
OURS, FLOOR, NATIVE = "ours", "frozen", "native"
PEERS = ("lycoris-lora", "peft")
FIXED = (FLOOR, NATIVE)


@dataclass(frozen=True)
class Case:
    """One algorithm. `network` are create_lycoris's settings, ours and lycoris-lora's alike;
    `peft` are PEFT's by mode; `limit` is the goal on a CPU, as a ratio to the floor."""

    name: str
    network: Mapping[str, Any]
    peft: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    bypass: bool = True  # does lycoris-lora's bypass mode work, and compute the same?
    limit: float | None = None
    unequal: str = ""  # why PEFT's step is not the same work


def _peft(config: str, **settings: Any) -> Mapping[str, Any]:
    return {"config": config, **settings}


CASES = {case.name: case for case in (
    Case("lora", {"algo": "lora"}, limit=1.15,
         peft={"": _peft("LoraConfig", r=DIM, lora_alpha=ALPHA)}),
    # lycoris-lora ignores DoRA in bypass mode
    Case("dora", {"algo": "lora", "dora_wd": True}, bypass=False,
         peft={"": _peft("LoraConfig", r=DIM, lora_alpha=ALPHA, use_dora=True)}),
    Case("loha", {"algo": "loha"}, limit=1.3,
         peft={"": _peft("LoHaConfig", r=DIM, alpha=ALPHA)}),
    Case("lokr", {"algo": "lokr", "factor": 8}, limit=1.15,
         peft={"": _peft("LoKrConfig", r=DIM, alpha=ALPHA, decompose_factor=8)}),
    Case("lokr-full", {"algo": "lokr", "factor": 8, "full_matrix": True}, limit=1.15,
         peft={"": _peft("LoKrConfig", r=10_000, alpha=10_000, decompose_factor=8)}),
    Case("diag-oft", {"algo": "diag-oft"}, limit=1.4,
         peft={"exact": _peft("OFTConfig", oft_block_size=DIM, use_cayley_neumann=False),
               "series": _peft("OFTConfig", oft_block_size=DIM, use_cayley_neumann=True)}),
    Case("boft", {"algo": "boft"}, unequal="PEFT does one of the 5 to 9 stages",
         peft={"": _peft("BOFTConfig", boft_block_size=DIM, boft_n_butterfly_factor=1)}),
    Case("ia3", {"algo": "ia3"}, peft={"": _peft("IA3Config", feedforward_modules=[])}),
    Case("glora", {"algo": "glora"}),
    # lycoris-lora's bypass mode fails whenever the drawn rank is not the last one
    Case("dylora", {"algo": "dylora"}, bypass=False),
    Case("full", {"algo": "full"}, bypass=False),
)}


@dataclass(frozen=True)
class Entry:
    """One contender in one mode. The first mode of a contender is its default."""

    kind: str
    mode: str
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"{self.kind} {self.mode}".strip()


@dataclass
class Result:
    """What an entry was measured at. `over` is one time ratio to the floor a round."""

    entry: Entry
    layers: int = 0
    trained: int = 0
    memory: int = 0  # bytes over the floor
    over: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    problem: str = ""

    @property
    def ratio(self) -> float:
        return statistics.median(self.over)

    @property
    def text(self) -> str:
        return f"{self.ratio:.2f}, {self.memory / MIB:+,.0f}"


class WorkerEnded(Exception):
    """Says whose process ended."""


class Worker:
    """A contender's process; `ask` waits for its answer. Raises WorkerEnded."""

    def __init__(self, kind: str, options: argparse.Namespace, script: str = "step_worker.py"):
        self.kind = kind
        source = {OURS: str(HERE.parent), **dict.fromkeys(PEERS, str(options.peers))}.get(kind, "")
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}  # who waits must not spin
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / script)], env=environment, text=True,
            encoding="utf-8", stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=None if options.verbose else subprocess.DEVNULL)
        self._send({"source": source, "device": options.device, "dtype": options.dtype,
                    "threads": options.threads, "clock": options.clock, "batch": options.batch,
                    "widths": options.widths, "latents": options.latents})

    def ask(self, do: str, **more: Any) -> dict[str, Any]:
        """The answer, with `error` where the command failed."""
        with suppress(BrokenPipeError):
            self._send({"do": do, **more})
        line = self.process.stdout.readline()
        if not line:
            raise WorkerEnded(f"{self.kind}'s process ended by itself ({self.process.wait()}; -9: "
                              "the memory was full); --verbose shows what it said")
        return json.loads(line)

    def _send(self, message: Mapping[str, Any]) -> None:
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def close(self) -> None:
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


def entries(case: Case, peers: Sequence[str]) -> list[Entry]:
    shared = {"linear_dim": DIM, "linear_alpha": ALPHA, **case.network}
    found = [Entry(FLOOR, "", {}), Entry(NATIVE, "", {}), Entry(OURS, "", shared)]
    if "lycoris-lora" in peers:
        found.append(Entry("lycoris-lora", "rebuild", shared))
        if case.bypass:
            found.append(Entry("lycoris-lora", "bypass", {**shared, "bypass_mode": True}))
    if "peft" in peers:
        found += [Entry("peft", mode, settings) for mode, settings in case.peft.items()]
    return found


def measure(case: Case, workers: Mapping[str, Worker], options: argparse.Namespace,
            built: dict[str, Result]) -> list[Result]:
    """All entries of one algorithm, the floor and native among them (`built` keeps those)."""
    results = []
    for entry in entries(case, [kind for kind in PEERS if kind in workers]):
        kept = built.get(entry.name)
        if kept is None:
            kept = _build(entry, workers[entry.kind])
            if entry.kind in FIXED:
                built[entry.name] = kept
        results.append(Result(entry, kept.layers, kept.trained, kept.memory, problem=kept.problem))
    running = [result for result in results if not result.problem]
    for number in range(options.rounds):
        for result in running if number % 2 else reversed(running):
            answered = workers[result.entry.kind].ask("steps", name=result.entry.name,
                                                      count=options.steps)
            if "error" in answered:
                raise SystemExit(f"{case.name}, {result.entry.name}: {answered['error']}")
            result.seconds.append(answered["seconds"])
    floor, base = results[0], results[0].memory
    for result in running:
        result.over = [a / b for a, b in zip(result.seconds, floor.seconds, strict=True)]
    for result in results:
        result.memory -= base
    return results


def _build(entry: Entry, worker: Worker) -> Result:
    answered = worker.ask("build", name=entry.name, kind=entry.kind, settings=entry.settings)
    if "error" in answered:
        return Result(entry, problem=answered["error"])
    return Result(entry, answered["layers"], answered["trained"], answered["memory"])


def row(*texts: str) -> str:
    return f"| {' | '.join(texts)} |"


def cells(case: Case, results: Sequence[Result]) -> str:
    """One row: each contender's time ratio and MiB over the floor, its fastest mode first."""
    shown = [case.name]
    for kind in (NATIVE, OURS, *PEERS):
        modes = sorted(_working(results, kind), key=lambda result: result.ratio)
        text = "; ".join(f"{mode.text} {mode.entry.mode}".strip() for mode in modes) or "–"
        shown.append(f"**{text}**" if kind == OURS and modes else text)
    return row(*shown)


def _working(results: Sequence[Result], *kinds: str) -> list[Result]:
    return [r for r in results if r.entry.kind in kinds and not r.problem]


def goals(case: Case, results: Sequence[Result], cpu: bool) -> Iterator[str]:
    """Rows of the second table: what was asked, what was found, is it reached."""
    found = _working(results, OURS)
    if not found:
        return
    own = found[0]
    if case.limit and cpu:
        yield row(case.name, f"time <= {case.limit:.2f}", f"{own.ratio:.2f}",
                  "reached" if own.ratio <= case.limit else "**not reached**")
    kinds = PEERS[:1] if case.unequal else PEERS
    peers = _working(results, *kinds)
    if not peers:
        return
    fastest = min(peers, key=lambda result: result.ratio)
    low, middle, high = statistics.quantiles(
        [a / b for a, b in zip(own.seconds, fastest.seconds, strict=True)], n=4)
    verdict = "reached" if middle <= 1 else "level" if low <= 1 <= high else "**not reached**"
    yield row(case.name, f"time <= fastest peer ({fastest.entry.name} {fastest.ratio:.2f})",
              f"{middle:.2f} of it ({low:.2f} to {high:.2f})", verdict)
    leanest = min(peers, key=lambda result: result.memory)
    yield row(case.name, f"memory <= leanest peer ({leanest.entry.name} "
              f"{leanest.memory / MIB:+,.0f})", f"{own.memory / MIB:+,.0f} MiB",
              "reached" if own.memory <= leanest.memory else "**not reached**")


def remarks(case: Case, results: Sequence[Result]) -> Iterator[str]:
    for result in results:
        if result.problem:
            yield f"{case.name}, {result.entry.name}: left out. {result.problem.splitlines()[0]}"
    counts = {result.entry.name: result.layers for result in results
              if not result.problem and result.entry.kind != FLOOR}
    if len(set(counts.values())) > 1:
        yield f"{case.name}: not the same number of layers: {counts}"
    if case.unequal:
        yield f"{case.name}: {case.unequal}; not counted as a peer."


def report(found: Mapping[str, list[Result]], options: argparse.Namespace) -> str:
    rows = [cells(CASES[name], results) for name, results in found.items()]
    goal_rows = [each for name, results in found.items()
                 for each in goals(CASES[name], results, options.device == "cpu")]
    said = [f"* {text}" for name, results in found.items()
            for text in remarks(CASES[name], results)]
    said += [f"* {name}: not measured. {why}." for name, why in options.lost.items()]
    said += [f"* {kind} is not installed in {options.peers}." for kind in options.missing]
    floor = [s for results in found.values() for s in results[0].seconds]
    size = options.latents
    return "\n".join([
        f"Frozen step {statistics.median(floor):.2f} s of {options.clock} time; {options.device}, "
        f"{options.dtype}, widths {tuple(options.widths)}, latents {size} x {size}, batch "
        f"{options.batch}, {options.threads or 'all'} threads, {options.rounds} rounds.", "",
        "Time as a ratio to the frozen step, then MiB of peak memory over it, each mode:", "",
        "| algorithm | native | ours | lycoris-lora | PEFT |", "|---|---|---|---|---|", *rows, "",
        "| algorithm | goal | found | |", "|---|---|---|---|", *goal_rows, "", *said])


def as_json(found: Mapping[str, list[Result]], options: argparse.Namespace) -> str:
    setup = {name: str(value) if isinstance(value, Path) else value
             for name, value in vars(options).items()}
    return json.dumps({
        "setup": setup, "machine": platform.platform(), "cores": os.cpu_count(),
        "results": {name: [{
            "contender": r.entry.kind, "mode": r.entry.mode, "layers": r.layers,
            "trained": r.trained, "memory_over_floor": r.memory, "seconds": r.seconds,
            "ratio": r.ratio if r.over else None, "problem": r.problem} for r in results]
            for name, results in found.items()}}, indent=1)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default=",".join(CASES), help="algorithms, split by commas")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, help="steps a turn; default 1, on a GPU 10")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32",
                        help="bf16: base in bf16, autocast, adapters in fp32")
    parser.add_argument("--full", action="store_true", help="SD1.5's own widths, 64 x 64 latents")
    parser.add_argument("--latents", type=int, help="side of the latents")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's own choice")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall",
                        help="cpu: the process's CPU seconds, for a machine that others use too")
    parser.add_argument("--peers", type=Path, default=HERE.parent / ".venv-peers",
                        help="folder made by pip install --target")
    parser.add_argument("--json", type=Path, help="also write every figure here")
    parser.add_argument("--join", type=Path, nargs="+", metavar="FILE", default=(),
                        help="measure nothing: one table of what runs wrote with --json")
    parser.add_argument("--profile", metavar="ALGORITHM", choices=CASES,
                        help="print torch.profiler's table of one step of ours, nothing else")
    parser.add_argument("--verbose", action="store_true", help="show the workers' own output")
    options = parser.parse_args(words)
    unknown = set(options.only.split(",")) - set(CASES)
    if unknown:
        parser.error(f"no algorithm {', '.join(unknown)}; there are {', '.join(CASES)}")
    if options.rounds < 2:
        parser.error("--rounds: two at least")
    if options.device == "auto":
        import torch

        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    options.steps = options.steps or (1 if options.device == "cpu" else 10)
    options.latents = options.latents or (64 if options.full else 32)
    options.widths = (320, 640, 1280, 1280) if options.full else (160, 320, 640, 640)
    options.lost = {}
    options.missing = [kind for kind in PEERS if not any(
        options.peers.glob(f"{kind.replace('-', '_')}-*.dist-info"))]
    return options


def main() -> None:
    options = parse()
    if options.profile:
        entry = entries(CASES[options.profile], ())[-1]
        worker = Worker(OURS, options)
        built = _build(entry, worker)
        print(built.problem or worker.ask("profile", name=entry.name)["table"])
        worker.close()
        return
    found: dict[str, list[Result]] = {}
    (joined if options.join else run)(options, found)
    print(report(found, options))


def run(options: argparse.Namespace, found: dict[str, list[Result]]) -> None:
    """Fill in what is measured, algorithm by algorithm; --json has all that is done so far."""
    workers = {kind: Worker(kind, options) for kind in (*FIXED, OURS, *PEERS)
               if kind not in options.missing}
    built: dict[str, Result] = {}
    try:
        for name in options.only.split(","):
            try:
                found[name] = measure(CASES[name], workers, options, built)
                print(cells(CASES[name], found[name]), file=sys.stderr, flush=True)
            except WorkerEnded as ended:
                options.lost[name] = str(ended)
            renew(workers, options, built)
            if options.json:
                options.json.write_text(as_json(found, options), "utf-8")
    finally:
        for worker in workers.values():
            worker.close()


def renew(workers: dict[str, Worker], options: argparse.Namespace,
          built: dict[str, Result]) -> None:
    """Workers with nothing left of the last algorithm, new ones for those that ended."""
    for kind, worker in workers.items():
        if worker.process.poll() is not None:
            built.pop(kind, None)
            workers[kind] = Worker(kind, options)
        elif kind not in FIXED:
            worker.ask("drop")


def joined(options: argparse.Namespace, found: dict[str, list[Result]]) -> None:
    """Fill in what earlier runs wrote with --json; the setup is the last one's."""
    for file in options.join:
        read = json.loads(file.read_text("utf-8"))
        vars(options).update({name: value for name, value in read["setup"].items()
                              if name not in ("join", "json", "lost")})
        options.lost |= read["setup"]["lost"]
        for name, rows in read["results"].items():
            found[name] = [Result(
                Entry(row["contender"], row["mode"], {}), row["layers"], row["trained"],
                row["memory_over_floor"], seconds=row["seconds"], problem=row["problem"],
                over=[a / b for a, b in zip(row["seconds"], rows[0]["seconds"], strict=False)])
                for row in rows]


if __name__ == "__main__":
    main()
