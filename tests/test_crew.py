"""Several processes that train one run: the same run as one process trains, and how they end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from nursery import STEP, Nursery
from safetensors.torch import load_file

from lycoris import config, crew
from lycoris.crew import Crew
from lycoris.errors import ConfigError, RunError
from lycoris.runs import RunFolder
from lycoris.settings import Config

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the nursery forks")
Settings = Callable[..., Config]


@pytest.fixture
def start(nursery: Nursery, settings: Settings, tmp_path: Path) -> Callable[..., list[int]]:
    """start(size, name, settings...): the processes of a new run, or of the one that is there."""

    def begin(size: int, name: str, *overrides: str,
              die: dict[int, list[Any]] | None = None) -> list[int]:
        target = tmp_path / "runs" / name
        if not target.is_dir():
            toml = tmp_path / f"{name}.toml"
            toml.write_text(config.dump(settings(f"output.name={name}", *overrides)), "utf-8")
            target, overrides = toml, ()
        port = _free_port()
        return [nursery.start(
            "train", str(target), *overrides, log=tmp_path / f"{name}-{rank}.txt",
            die=(die or {}).get(rank, ()), RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=size,
            MASTER_ADDR="127.0.0.1", MASTER_PORT=port) for rank in range(size)]

    return begin


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def _losses(run: RunFolder) -> list[float]:
    return [step.loss for step in run.history().steps]


def _close(a: Path, b: Path) -> bool:
    one, other = load_file(a), load_file(b)
    return one.keys() == other.keys() and all(
        torch.allclose(one[key].float(), other[key].float(), atol=2e-4) for key in one)


SHARED = ("network.dropout=0", "dataset.caption_dropout=0.3", "optimizer.lr=0.003",
          "loss.noise_offset=0.1", "output.dtype=fp32", "sample.every=3")


@pytest.mark.parametrize(("size", "shape"), [
    (2, ("train.batch_size=4",)),  # parts of a batch; 5 pictures: the last one has but one
    (2, ("train.batch_size=2", "train.accumulate=2", "network.dropout=0.2",
         "network.module_dropout=0.3")),  # whole batches, so dropout is the same too
])
def test_several_processes_train_as_one(start: Callable, nursery: Nursery, tmp_path: Path,
                                        size: int, shape: tuple[str, ...]) -> None:
    ends = [nursery.wait(pid) for count, name in ((1, "one"), (size, "many"))
            for pid in start(count, name, *SHARED, *shape)]
    said = "".join(path.read_text() for path in tmp_path.glob("*.txt"))
    assert ends == [0] * (1 + size), said
    alone, many = (RunFolder(tmp_path / "runs" / name) for name in ("one", "many"))
    assert _losses(many) == pytest.approx(_losses(alone), rel=1e-4)
    assert len(set(_losses(many))) == 6
    assert _close(alone.adapter_file, many.adapter_file)
    history = many.history()
    assert [s.step for s in history.steps] == [1, 2, 3, 4, 5, 6]  # one writer
    assert [s.step for s in history.samples] == [0, 3, 6] and history.finished.reason == "done"
    assert history.started.device.startswith("2 x ")
    files = [sorted(p.relative_to(run.path).as_posix().replace("many", "one")
                    for p in run.path.rglob("*") if p.is_file()) for run in (alone, many)]
    assert files[0] == files[1]


def test_a_run_goes_on_with_another_number_of_processes(start: Callable, nursery: Nursery,
                                                        tmp_path: Path) -> None:
    """Extended twice: by two processes, then by one; as one process trains it in one go."""
    whole = ("train.batch_size=2", *SHARED, "sample.every=0", "optimizer.schedule=constant")
    assert [nursery.wait(p) for p in start(1, "one", *whole)] == [0]
    for size, steps in ((1, 2), (2, 4), (1, 6)):
        ends = [nursery.wait(p) for p in start(
            size, "many", *(whole if steps == 2 else ()), f"train.steps={steps}")]
        assert ends == [0] * size, (tmp_path / "many-0.txt").read_text()
    alone, many = (RunFolder(tmp_path / "runs" / name) for name in ("one", "many"))
    assert many.history().resumes == [0, 2, 4]
    assert _losses(many) == pytest.approx(_losses(alone), rel=1e-4)
    assert _close(alone.adapter_file, many.adapter_file)


def test_a_request_is_heard_by_all(start: Callable, nursery: Nursery, tmp_path: Path) -> None:
    pids = start(2, "many", "train.steps=100000", "train.checkpoint_every=0")
    run = RunFolder(tmp_path / "runs" / "many")
    _wait(lambda: len(run.history().steps) > 2)
    run.request("sample")
    _wait(lambda: run.history().samples)
    os.kill(pids[1], signal.SIGTERM)  # it does not matter who is asked
    assert [nursery.wait(pid) for pid in pids] == [0, 128 + signal.SIGTERM]
    assert run.state() == "stopped" and run.adapter_file.is_file()


@pytest.mark.parametrize("who", [0, 1])
def test_when_one_dies_all_end(start: Callable, nursery: Nursery, tmp_path: Path,
                               who: int) -> None:
    pids = start(2, "many", "train.steps=100000", "train.checkpoint_every=2")
    run = RunFolder(tmp_path / "runs" / "many")
    _wait(lambda: len(run.history().steps) > 4)
    os.kill(pids[who], signal.SIGKILL)
    ends = [nursery.wait(pid) for pid in pids]
    assert ends[who] == -signal.SIGKILL and ends[1 - who] == 2
    if who:
        failed = run.history().failed
        assert failed is not None and "ended without a word" in failed.message
    else:
        assert run.state() == "crashed"
    steps = run.history().step // 2 * 2
    assert [nursery.wait(p) for p in start(1, "many", f"train.steps={steps + 2}")] == [0]
    assert run.history().resumes[-1] in (steps, steps - 2)


def test_what_one_cannot_do_is_said_by_the_first(start: Callable, nursery: Nursery,
                                                 tmp_path: Path) -> None:
    pids = start(2, "many", die={1: ["lycoris.plan.make", 1]})
    assert [nursery.wait(pid) for pid in pids] == [2, -signal.SIGKILL]
    run = RunFolder(tmp_path / "runs" / "many")
    assert "ended without a word" in run.history().failed.message  # type: ignore[union-attr]
    pids = start(2, "odd", "train.batch_size=3")
    assert [nursery.wait(pid) for pid in pids] == [2, 2]
    failed = RunFolder(tmp_path / "runs" / "odd").history().failed
    assert failed is not None and failed.kind == "settings"
    assert "2 processes cannot share a step of 1 x 3 pictures" in failed.message
    assert "or start 1 or 3 processes" in failed.message


@pytest.mark.parametrize(("who", "wanted"), [(0, True), (1, True), (1, False)])
def test_when_memory_runs_out_in_one_all_go_on_with_less(
        start: Callable, nursery: Nursery, tmp_path: Path, who: int, wanted: bool) -> None:
    """Or all end, where that is not wanted; the result is that of one process alone."""
    shape = ("train.batch_size=4", "train.steps=5", f"train.retry_smaller={wanted}".lower(),
             *SHARED, "sample.every=0")
    pids = start(2, "many", *shape, die={who: [STEP, 3, "memory"]})
    ends = [nursery.wait(pid) for pid in pids]
    run = RunFolder(tmp_path / "runs" / "many")
    if not wanted:
        failed = run.history().failed
        assert ends == [2, 2] and failed is not None and failed.kind == "memory"
        assert failed.message.startswith("Process 1 of 2: The device ran out of memory")
        return
    assert ends == [0, 0], (tmp_path / "many-0.txt").read_text()
    assert nursery.wait(start(1, "one", *shape)[0]) == 0
    assert run.history().resumes == [0, 2] and len(run.history().steps) == 5
    assert config.load(run.config_file).train.gradient_checkpointing
    assert _losses(run) == pytest.approx(_losses(RunFolder(tmp_path / "runs" / "one")), rel=1e-4)


def test_accelerate_that_starts_one_of_several_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """So it does on a CPU without mpirun: the others would be missing without a word."""
    for name in (*os.environ,):
        if name in {word for words in crew.LAUNCHERS.values() for word in words}:
            monkeypatch.delenv(name)
    assert crew.join().size == 1
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert crew.join().size == 1
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(RunError, match="asked for several processes and has started one"):
        crew.join()
    monkeypatch.setenv("PMI_SIZE", "two")
    with pytest.raises(RunError, match="PMI_SIZE is 'two'"):
        crew.join()


@pytest.mark.slow
@pytest.mark.parametrize("words", [
    ("torch.distributed.run", "--standalone", "--nproc-per-node=2"),
    ("accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--main_process_port={}")],
    ids=("torchrun", "accelerate"))
def test_a_launcher_starts_it(words: tuple[str, ...], settings: Settings, tmp_path: Path) -> None:
    """On a CPU, as docs/engine.md says; HF_HOME hides what somebody may have set for accelerate."""
    toml = tmp_path / "run.toml"
    toml.write_text(config.dump(settings("train.device=cpu")), "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", *(word.format(_free_port()) for word in words), "-m", "lycoris",
         "train", str(toml)], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "none")})
    assert done.returncode == 0, done.stderr
    history = RunFolder(tmp_path / "runs" / "one").history()
    assert [step.step for step in history.steps] == [1, 2, 3, 4, 5, 6]
    assert history.started.device.startswith("2 x ") and history.finished.reason == "done"


@pytest.mark.parametrize(("size", "batch", "accumulate", "split"), [
    (1, 3, 2, 1), (1, 3, 2, 3), (2, 4, 1, 1), (2, 3, 2, 1), (4, 2, 2, 1), (4, 2, 6, 2),
    (6, 3, 4, 1)])
def test_every_piece_of_a_step_is_somebodys(size: int, batch: int, accumulate: int,
                                            split: int) -> None:
    dealt = [Crew(rank, size).pieces(batch, accumulate, split) for rank in range(size)]
    parts = {count for count, _ in dealt}
    assert len(parts) == 1 and len({len(own) for _, own in dealt}) == 1
    every = sorted(piece for _, own in dealt for piece in own)
    assert every == list(range(parts.pop() * accumulate))


def test_a_step_that_cannot_be_shared() -> None:
    with pytest.raises(ConfigError, match=r"8 processes.*4 x 1.*a multiple of 2.*one of 8.*"
                                          r"start 1 or 2 or 4 processes"):
        Crew(0, 8).pieces(1, 4)


def test_gradients_travel_in_messages_of_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "CHUNK", 10)
    parameters = [torch.nn.Parameter(torch.zeros(n)) for n in (4, 4, 4, 30, 1)]
    assert [[p.numel() for p in group] for group in crew._groups(parameters)] == [
        [4, 4], [4], [30], [1]]


def _wait(ready: Callable[[], object], seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.02)


