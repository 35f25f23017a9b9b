"""The run folder is the truth: events, tails, states derived from them and from the process."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from lycoris import events, runs
from lycoris.errors import RunError
from lycoris.runs import Process, RunFolder


def step(number: int) -> events.Step:
    return events.Step(number, 0.5, 0.25, 0.3, 1e-3, 0.1, 0.2, 1000)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "one").create({"config.toml": ""})


ALL = [events.Started(1, 2.5, "CPU", 10), events.Resumed(3), events.Stage("x", 1, 2), step(1),
       events.Cached("runs/cache", 3, 4096), events.Validated(2, 0.5, {"62": 0.5}),
    events.Sampled(1, 0, "a.png", "a 🙂 b", 5, "base"), events.Saved(1, "x", 10),
       events.Paused(3), events.Continued(3), events.Stopping(3, "the whole model"),
       events.Measured(2**30, 2**29, 1.5), events.Warned("a", "b"),
       events.Failed("bug", "m", "f", "train.steps"),
       events.Finished("done", 5, "x")]


@pytest.mark.parametrize("event", ALL, ids=lambda e: type(e).__name__)
def test_events_round_trip(event: events.Event) -> None:
    stamp, back = events.parse(events.line(event, 12.5)) or (0, None)
    assert (stamp, back) == (12.5, event)


def test_every_event_class_is_tried() -> None:
    assert {type(event) for event in ALL} == set(events.KINDS.values())


def test_not_a_number_becomes_null() -> None:
    text = events.line(events.Step(1, 0.5, math.nan, math.inf, 1e-3, 0.1, 0.2, 0))
    assert '"loss": null' in text and "NaN" not in text
    _, back = events.parse(text) or (0, None)
    assert isinstance(back, events.Step) and math.isnan(back.loss)
    assert back.norm_mean is None, "no number, which is not the same"


@given(st.text() | st.binary().map(lambda b: b.decode("latin-1")))
def test_any_line_is_survived(text: str) -> None:
    events.parse(text)


def test_unknown_events_and_fields_are_passed_over() -> None:
    assert events.parse('{"event": "of the future", "t": 1}') is None
    assert events.parse('{"event": "resumed", "t": 1, "step": 4, "new": 2}') == (
        1, events.Resumed(4))


def test_tail_returns_whole_lines_only(run: RunFolder) -> None:
    run.append(events.Resumed(0))
    pairs, offset = run.tail()
    assert [event for _, event in pairs] == [events.Resumed(0)]
    with (run.path / runs.EVENTS).open("ab") as file:
        line = events.line(step(1)).encode()
        file.write(line[:20])
    assert run.tail(offset) == ([], offset)
    with (run.path / runs.EVENTS).open("ab") as file:
        file.write(line[20:] + b"\n")
    pairs, _ = run.tail(offset)
    assert [event for _, event in pairs] == [step(1)]


def test_history_reads_each_event_once_and_resuming_takes_back(run: RunFolder) -> None:
    for number in (1, 2, 3):
        run.append(step(number))
    assert [s.step for s in run.history().steps] == [1, 2, 3]
    run.append(events.Resumed(2))
    run.append(step(3))
    history = run.history()
    assert [s.step for s in history.steps] == [1, 2, 3] and history.resumes == [2]
    assert RunFolder(run.path).history().steps == history.steps


def test_states(run: RunFolder) -> None:
    assert run.state() == "new"
    run.request("start")
    assert run.state() == "waiting"
    run.clear(["start"])
    me = Process.this()
    run.append(events.Started(me.pid, me.born, "CPU", 5))
    assert run.state() == "running"
    run.append(events.Finished("stopped", 3, "x"))
    assert run.state() == "stopped"
    run.append(events.Started(me.pid, me.born, "CPU", 5))
    assert run.state() == "running"
    run.append(events.Failed("bug", "m"))
    assert run.state() == "failed"
    run.request("start")
    assert run.state() == "waiting"


def test_a_dead_process_and_a_reused_pid_are_not_running(run: RunFolder) -> None:
    gone = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = Process.of(gone.pid)
    assert process is not None
    run.append(events.Started(gone.pid, process.born, "CPU", 5))
    assert run.state() == "running"
    gone.kill()
    while psutil.Process(gone.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert run.state() == "crashed", "also while nobody has reaped it"
    gone.wait()
    assert run.state() == "crashed"
    me = Process.this()
    run.append(events.Started(me.pid, me.born - 1000, "CPU", 5))
    assert run.state() == "crashed"


def test_readers_in_many_threads_lose_and_double_nothing(run: RunFolder) -> None:
    count, done = 400, threading.Event()

    def read() -> None:
        while not done.is_set():
            run.history()

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    run.append(events.Started(1, 2.0, "CPU", count))
    for number in range(1, count + 1):
        run.append(step(number))
    done.set()
    for reader in readers:
        reader.join()
    history = run.history()
    assert history.started and [s.step for s in history.steps] == list(range(1, count + 1))


def test_another_run_under_the_same_name_is_read_from_its_start(run: RunFolder) -> None:
    run.append(events.Started(1, 2.0, "CPU", 5))
    run.append(step(1))
    assert run.history().step == 1
    (run.path / "events.jsonl").unlink()
    later = RunFolder(run.path)
    later.append(events.Started(3, 4.0, "CPU", 9))
    for number in range(1, 5):
        later.append(step(number))
    assert run.history().started == events.Started(3, 4.0, "CPU", 9) and run.history().step == 4


def test_a_sample_painted_again_replaces_the_one_before(run: RunFolder) -> None:
    for path in ("old.png", "new.png"):
        run.append(events.Sampled(0, 0, path, "a", 1))
        run.append(events.Resumed(0))
    run.append(events.Sampled(0, 1, "other.png", "b", 1))
    assert [s.path for s in run.history().samples] == ["new.png", "other.png"]


def test_only_requests_to_an_earlier_process_are_dropped(run: RunFolder) -> None:
    run.request("save")
    time.sleep(0.02)
    moment = time.time()
    run.request("stop")
    (run.path / "requests" / "sample").touch()  # as a person would ask
    run.clear_before(moment)
    assert run.requests() == {"stop", "sample"}


def test_one_process_works_in_a_run(run: RunFolder) -> None:
    code = ("import sys; from lycoris.runs import RunFolder\n"
            "with RunFolder(sys.argv[1]).locked(): print('mine', flush=True); input()")
    other = subprocess.Popen([sys.executable, "-c", code, str(run.path)], cwd=ROOT, text=True,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout and other.stdout.readline() == "mine\n"
    with pytest.raises(RunError, match="one is going on already"), run.locked():
        pass
    other.kill()
    other.wait()
    with run.locked():
        pass


def test_a_run_is_made_once(run: RunFolder) -> None:
    with pytest.raises(RunError, match="already a run called one"):
        RunFolder(run.path).create({"config.toml": ""})


def test_requests(run: RunFolder) -> None:
    assert run.requests() == set()
    run.request("stop")
    run.request("save")
    (run.path / "requests" / "something else").write_text("")
    assert run.requests() == {"stop", "save"}
    assert run.requested_at("stop") > 0 and run.requested_at("sample") == 0
    run.clear(["stop"])
    assert run.requests() == {"save"}


def test_list_runs_newest_first_and_only_runs(tmp_path: Path) -> None:
    import os

    for age, name in enumerate(("c", "b", "a")):
        made = RunFolder(tmp_path / name).create({"config.toml": ""})
        os.utime(made.config_file, (1000 - age, 1000 - age))
    (tmp_path / "not a run").mkdir()
    assert [r.name for r in runs.list_runs(tmp_path)] == ["c", "b", "a"]
    assert runs.list_runs(tmp_path / "nowhere") == []
    with pytest.raises(RunError, match="not a run folder"):
        runs.open_run(tmp_path / "not a run")


def test_the_time_a_stage_still_takes() -> None:
    history = runs.History()
    history.add(10.0, events.Stage("encoding", 8, 48))
    history.add(14.0, events.Stage("encoding", 16, 48))
    assert history.stage_left == 16.0
    history.add(20.0, events.Stage("saving", 0, 0))
    assert history.stage_left is None
    history.add(21.0, events.Saved(3, "x", 1))
    assert history.stage is None and history.stage_left is None
