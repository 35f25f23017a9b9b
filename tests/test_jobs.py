"""The queue and its children, with real engine processes on a small base."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch

from lycogui import costs, deaths
from lycogui import jobs as jobs_module
from lycogui.jobs import Jobs
from lycogui.tabs import compare, train
from lycogui.workspace import Workspace
from lycoris import disk, plan, runs, trainer
from lycoris.errors import ConfigError, DiskError, RunError
from lycoris.runs import Process, RunFolder
from lycoris.settings import Config


@pytest.fixture
def workspace(settings: Callable[..., Config], tmp_path: Path) -> Iterator[Workspace]:
    made = Workspace(tmp_path / "settings" / "last.toml")
    made.remember(settings())
    yield made
    for run in made.jobs.runs():
        made.jobs.withdraw(run)
    made.jobs.close()
    for child in psutil.Process().children():
        child.kill()


def wait(ready: Callable[[], object], seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.05)


def test_a_pair_runs_one_after_the_other_and_is_compared(workspace: Workspace,
                                                         settings: Callable[..., Config]) -> None:
    """Start, queue, finish, then paint: what the two buttons do."""
    names = train.enqueue_pair(workspace, settings("network.dim=4", "output.name=x"))
    assert names == ("x-lora", "x-loha")
    by_name = {run.name: run for run in workspace.jobs.runs()}
    one, two = by_name["x-lora"], by_name["x-loha"]
    wait(lambda: workspace.jobs.state(one) in ("starting", "running", "done"))
    assert workspace.jobs.state(two) == "waiting"
    wait(lambda: one.state() == "done")
    wait(lambda: two.state() == "done")
    assert one.history().last_at <= two.history().started_at
    sizes = [run.adapter_file.stat().st_size for run in (one, two)]
    assert abs(sizes[0] - sizes[1]) < 0.1 * sizes[0], "equal size"

    name = compare.start(workspace, workspace.config, ("a ball",), ["base", *names])
    painted = workspace.comparison(name)
    assert painted is not None
    wait(lambda: painted.history().finished)
    assert (painted.path / "grid.png").is_file() and len(painted.history().samples) == 3


def test_a_pair_is_queued_whole_or_not_at_all(workspace: Workspace,
                                              settings: Callable[..., Config]) -> None:
    """What one side cannot start from keeps the other back too, and their names are a pair."""
    workspace.jobs.close()
    time.sleep(2 * jobs_module.POLL)
    (workspace.runs_folder / "x-lora").mkdir(parents=True)
    assert train.enqueue_pair(workspace, settings("network.dim=4", "output.name=x")) == (
        "x-lora-2", "x-loha-2")
    before = workspace.jobs.waiting()
    first = settings("network.dim=4", "output.name=first", "train.steps=1")
    trainer.run(plan.make(first), workspace.runs_folder / "first", lambda event: None, set)
    run = settings("network.dim=4", "output.name=y", "network.weights=first")
    with pytest.raises(ConfigError) as caught:
        train.enqueue_pair(workspace, run)
    assert caught.value.problems["network.weights"].startswith("B of the pair, LoHa: ")
    assert workspace.jobs.waiting() == before and not (workspace.runs_folder / "y-lora").exists()


def test_a_run_that_the_disk_cannot_hold_is_refused_at_the_click(
        workspace: Workspace, settings: Callable[..., Config],
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_free", lambda folder: 20 * 2**20)
    large = settings("train.steps=200000", "train.checkpoint_every=1", "train.keep_checkpoints=0",
                     "output.name=big")
    with pytest.raises(DiskError, match="MiB too little") as caught:
        workspace.enqueue(large)
    assert list(caught.value.problems) == ["output.folder"], "so its field is marked"
    assert workspace.jobs.runs() == [] and not (workspace.runs_folder / "big").exists()
    assert workspace.enqueue(settings("output.name=big")) == "big", "its name is free"


def test_stop_saves_and_resume_goes_on(workspace: Workspace,
                                       settings: Callable[..., Config]) -> None:
    workspace.enqueue(settings("train.steps=100000", "train.checkpoint_every=0"))
    run = workspace.jobs.runs()[0]
    wait(lambda: len(run.history().steps) > 2)
    with pytest.raises(RunError, match="running already"):
        workspace.jobs.enqueue(run)
    workspace.jobs.stop(run)
    wait(lambda: run.state() == "stopped")
    step = run.history().step
    assert run.adapter_file.is_file()
    wait(lambda: workspace.jobs.active() is None)
    workspace.jobs.enqueue(run)
    wait(lambda: run.state() == "running" and run.history().step > step)
    assert run.history().resumes[-1] == step
    workspace.jobs.stop(run)
    wait(lambda: run.state() == "stopped")


def test_a_stop_while_it_starts_is_not_forgotten(workspace: Workspace,
                                                 settings: Callable[..., Config]) -> None:
    workspace.enqueue(settings("train.steps=100000"))
    run = workspace.jobs.runs()[0]
    for _ in range(2):  # a first start, and a resume after it
        wait(lambda: workspace.jobs.state(run) == "starting")
        workspace.jobs.stop(run)
        wait(lambda: workspace.jobs.active() is None)
        assert run.state() == "stopped" and run.history().step <= 1
        workspace.jobs.enqueue(run)
    wait(lambda: workspace.jobs.state(run) == "starting")
    workspace.jobs.stop(run)
    wait(lambda: run.state() == "stopped")


def test_the_size_on_screen_is_the_files_to_the_byte(workspace: Workspace,
                                                     settings: Callable[..., Config]) -> None:
    """With the names a run gets by itself, and the folder as the page writes it."""
    for _ in range(2):
        run = settings("output.name=", "train.steps=2")
        said = costs.card(workspace, workspace.plan(run), costs.Asked())["bytes"]
        name = workspace.enqueue(plan.with_free_name(run))
        made = workspace.jobs.run(workspace.runs_folder / name)
        wait(lambda made=made: made.state() == "done")
        planned = json.loads((made.path / "plan.json").read_text("utf-8"))
        assert made.adapter_file.stat().st_size == said == planned["file_bytes_with_metadata"]


def test_training_survives_the_app_and_a_new_one_takes_over(
        workspace: Workspace, settings: Callable[..., Config]) -> None:
    workspace.enqueue(settings("train.steps=100000"))
    first = workspace.jobs.runs()[0]
    wait(lambda: first.state() == "running")
    workspace.jobs.close()  # the app is gone; its child is not
    train_again = Jobs(lambda: [workspace.runs_folder])
    try:
        run = train_again.runs()[0]
        assert train_again.state(run) == "running" and train_again.active() is run
        seen = run.history().step
        wait(lambda: run.history().step > seen)
        train_again.stop(run)
        wait(lambda: run.state() == "stopped")
    finally:
        train_again.close()


def test_a_killed_engine_is_shown_with_its_cause(workspace: Workspace,
                                                 settings: Callable[..., Config]) -> None:
    workspace.enqueue(settings("train.steps=100000"))
    run = workspace.jobs.runs()[0]
    wait(lambda: len(run.history().steps) > 3)
    assert run.process is not None
    os.kill(run.process.pid, signal.SIGKILL)
    wait(lambda: run.state() == "failed", 5)
    failed = run.history().failed
    assert failed is not None and failed.kind == "crashed" and "killed" in failed.message
    workspace.jobs.enqueue(run)
    wait(lambda: run.state() == "running")
    workspace.jobs.stop(run)
    wait(lambda: run.state() == "stopped")


def test_an_engine_of_an_app_before_is_looked_after(workspace: Workspace,
                                                    settings: Callable[..., Config]) -> None:
    workspace.enqueue(settings("train.steps=100000"))
    workspace.enqueue(settings("train.steps=2", "output.name=two"))
    first = workspace.jobs.runs()[-1]
    wait(lambda: len(first.history().steps) > 3)
    workspace.jobs.close()
    again = Jobs(lambda: [workspace.runs_folder])
    try:
        wait(lambda: again._kills)
        assert [run.name for run in again.waiting()] == ["two"]  # the queue is as it was
        assert first.process is not None
        os.kill(first.process.pid, signal.SIGKILL)
        run = again.run(first.path)
        wait(lambda: run.state() == "failed", 5)
        assert run.history().failed.kind == "crashed"  # type: ignore[union-attr]
        two = again.run(workspace.runs_folder / "two")
        wait(lambda: two.state() == "done")
    finally:
        again.close()


def test_one_run_on_each_device(workspace: Workspace, settings: Callable[..., Config],
                                monkeypatch: pytest.MonkeyPatch) -> None:
    """Four runs on two devices: the first of each at once, the others after them."""
    monkeypatch.setattr(jobs_module, "device_of", lambda run: run.name[0])
    workspace.jobs.close()
    time.sleep(2 * jobs_module.POLL)
    for name in ("a1", "a2", "b1", "b2"):
        workspace.enqueue(settings("train.steps=100000", f"output.name={name}"))
    again = Jobs(lambda: [workspace.runs_folder])

    def working() -> set[str]:
        return {run.name for run in again.at_work()}

    try:
        wait(lambda: working() == {"a1", "b1"})
        assert [run.name for run in again.waiting()] == ["a2", "b2"]
        again.stop(again.run(workspace.runs_folder / "b1"))
        wait(lambda: working() == {"a1", "b2"})
        assert [run.name for run in again.waiting()] == ["a2"]
        again.withdraw(again.waiting()[0])
        for run in again.at_work():
            again.stop(run)
        wait(lambda: not again.at_work())
    finally:
        again.close()


@pytest.mark.parametrize(("said", "device"), [("cpu", "cpu"), ("cuda", "cuda:0"),
                                              ("cuda:1", "cuda:1"), ("auto", "mps")])
def test_the_device_of_a_run(tmp_path: Path, said: str, device: str,
                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module.devices, "choose", lambda name: torch.device("mps"))
    (tmp_path / "config.toml").write_text(f'[train]\ndevice = "{said}"\n', "utf-8")
    assert jobs_module.device_of(RunFolder(tmp_path)) == device
    (tmp_path / "config.toml").write_text("[train", "utf-8")
    assert jobs_module.device_of(RunFolder(tmp_path)) == "mps"


VMSTAT = str(deaths.SYSTEM)


@pytest.mark.parametrize(("code", "before", "now", "words"), [
    (-9, {"g": 1}, {"g": 2}, "system ran out of memory and killed"),
    (137, {"g": 1, VMSTAT: 4}, {"g": 2, VMSTAT: 5}, "system ran out of memory and killed"),
    (-9, {"g": 1, VMSTAT: 4}, {"g": 1, VMSTAT: 5}, "by a person or another program"),
    (137, {VMSTAT: 4}, {VMSTAT: 5}, "probably because memory ran out"),
    (None, {"g": 1, VMSTAT: 4}, {"g": 1, VMSTAT: 5}, "probably because memory ran out"),
    (None, {"g": 1}, {"g": 2}, "system ran out of memory and killed"),
    (-9, {"g": 1}, {"g": 1}, "by a person or another program"),
    (-9, {}, {}, "most likely because memory ran out"),
    (-11, {"g": 1}, {"g": 2}, "by the signal SIGSEGV. Its last line: CUDA error"),
    (1, {}, {}, "with exit code 1. Its last line: CUDA error"),
    (None, {"g": 1}, {"g": 1}, "without a word. Its last line: CUDA error"),
])
def test_the_cause_of_a_death(code: int | None, before: dict, now: dict, words: str) -> None:
    found = deaths.post_mortem(code, before, now, "CUDA error")
    assert words in found.message and "resume goes on" in found.fix.lower()


def test_the_kernels_count_of_killed_processes(tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("memory.events", "low 0\noom 3\noom_kill 2\n"),
                       ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 7\n")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(deaths, "_groups", lambda: [tmp_path / "memory.events",
                                                    tmp_path / "memory.oom_control",
                                                    tmp_path / "missing"])
    found = deaths.kills()
    assert found[str(tmp_path / "memory.events")] == 2
    assert found[str(tmp_path / "memory.oom_control")] == 7
    assert set(found) <= {*map(str, tmp_path.iterdir()), VMSTAT}


def test_an_engine_that_does_not_answer_is_terminated_then_killed(
        workspace: Workspace, settings: Callable[..., Config],
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "QUIET", 1.0)
    workspace.enqueue(settings("train.steps=100000"))
    run = workspace.jobs.runs()[0]
    wait(lambda: len(run.history().steps) > 3)
    assert run.process is not None
    os.kill(run.process.pid, signal.SIGSTOP)  # hangs: neither requests nor SIGTERM are seen
    workspace.jobs.stop(run)
    wait(lambda: not run.process.alive, 20)  # type: ignore[union-attr]
    wait(lambda: run.state() == "failed")


def test_a_long_silent_step_is_not_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Who computes is left alone far longer than who hangs."""
    monkeypatch.setattr(jobs_module, "QUIET", 0.5)
    monkeypatch.setattr(jobs_module, "DEAF", 3.0)
    seconds = {}
    for work in ("while True: pass", "input()"):
        child = subprocess.Popen([sys.executable, "-c", work], stdin=subprocess.PIPE)
        process = Process.of(child.pid)
        assert process is not None
        began = time.monotonic()
        jobs_module._wait_while_living(RunFolder(tmp_path), process)
        seconds[work] = time.monotonic() - began
        child.kill()
        child.wait()
    assert seconds["input()"] < 2.9 < seconds["while True: pass"]


@pytest.mark.parametrize(("status", "left"), [("disk-sleep", 0), ("sleeping", 4)])
def test_a_process_that_waits_for_the_disk_lives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                                 status: str, left: int) -> None:
    """Neither words nor work, in the fsync of a model of many gigabytes."""
    for name in ("QUIET", "DEAF", "POLL"):
        monkeypatch.setattr(jobs_module, name, 0.0)
    clock = iter(range(100))
    monkeypatch.setattr(jobs_module.time, "time", lambda: next(clock))
    monkeypatch.setattr(jobs_module.psutil.Process, "status", lambda self: status)

    class Busy:
        pid, looks = os.getpid(), 5

        @property
        def alive(self) -> bool:
            self.looks -= 1
            return self.looks > 0

    busy = Busy()
    jobs_module._wait_while_living(RunFolder(tmp_path), busy)  # type: ignore[arg-type]
    assert busy.looks == left


def test_a_run_that_cannot_start_says_why(workspace: Workspace, pictures: Path,
                                          settings: Callable[..., Config]) -> None:
    """The queue does not stall: the error is in the run's folder, and the next one starts."""
    workspace.jobs.close()
    workspace.enqueue(settings("output.name=bad"))
    for picture in pictures.iterdir():
        picture.unlink()
    again = Jobs(lambda: [workspace.runs_folder])
    try:
        run = again.runs()[0]
        wait(lambda: run.state() == "failed")
        failed = run.history().failed
        assert failed is not None and failed.kind == "dataset", failed
        assert again.waiting() == [] and again.active() is None
    finally:
        again.close()


def test_the_queue_is_put_in_another_order(workspace: Workspace,
                                           settings: Callable[..., Config]) -> None:
    """It is told by the files alone: another app sees the same."""
    workspace.jobs.close()
    time.sleep(2 * jobs_module.POLL)
    for name in ("a", "b", "c"):
        workspace.enqueue(settings(f"output.name={name}"))
    for run in workspace.jobs.waiting():
        run.request("start", 1000.0)  # all at the same moment
    first = [run.name for run in workspace.jobs.waiting()]
    workspace.jobs.move(workspace.jobs.waiting()[2], -1)
    second = [run.name for run in workspace.jobs.waiting()]
    assert second == [first[0], first[2], first[1]]
    workspace.jobs.move(workspace.jobs.waiting()[0], 1)
    workspace.jobs.move(workspace.jobs.waiting()[0], -1)  # the first stays the first
    other = jobs_module.Jobs(lambda: [workspace.runs_folder])
    other.close()
    assert [run.name for run in other.waiting()] == [first[2], first[0], first[1]]
    gone = workspace.jobs.waiting()[1]
    workspace.jobs.withdraw(gone)
    with pytest.raises(RunError, match="is not waiting"):
        workspace.jobs.move(gone, 1)


def test_queue_order_and_withdrawing(workspace: Workspace,
                                     settings: Callable[..., Config]) -> None:
    workspace.jobs.close()
    time.sleep(2 * jobs_module.POLL)
    for name in ("c", "a", "b"):
        workspace.enqueue(settings(f"output.name={name}"))
    assert [run.name for run in workspace.jobs.waiting()] == ["c", "a", "b"]
    workspace.jobs.withdraw(next(r for r in workspace.jobs.runs() if r.name == "a"))
    assert [run.name for run in workspace.jobs.waiting()] == ["c", "b"]
    assert RunFolder(workspace.runs_folder / "a").state() == "new"
    assert len(runs.list_runs(workspace.runs_folder)) == 3
