"""Runs that have ended: going on with more steps, what they take on the disk, and their end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from test_training import same, train

from lycogui import extending, upkeep, views
from lycogui.workspace import Workspace, run_id
from lycoris import config, events, plan, resuming
from lycoris.errors import ConfigError, RunError
from lycoris.runs import Process, RunFolder
from lycoris.settings import Config

Settings = Callable[..., Config]


def ended(workspace: Workspace, run: Config, step: int, reason: str = "done") -> RunFolder:
    """A run that has saved this step and ended there."""
    workspace.jobs.close()  # what waits stays waiting
    folder = plan.create(plan.make(run))
    folder.append(events.Started(1, 2.0, "CPU", run.train.steps))
    folder.append(events.Saved(step, "one.safetensors", 9))
    folder.append(events.Finished(reason, step, "one.safetensors"))
    return workspace.jobs.run(folder.path)


def given(run: RunFolder, **values: object) -> dict[str, object]:
    return {"run": run_id(run.path),
            "values": {path.replace("__", "."): value for path, value in values.items()}}


def test_a_finished_run_goes_on_through_the_queue(workspace: Workspace,
                                                  settings: Settings) -> None:
    run = ended(workspace, settings("sample.every=0"), 6)
    found = extending.extension(workspace, given(run))
    assert (found["step"], found["total"]) == (6, 6) and found["fixed"]
    assert {f["path"]: f["value"] for f in found["fields"]}["sample.prompts"] == ["a ball"]
    extending.proceed(workspace, given(run, train__steps="9", sample__prompts=["two balls"],
                                       train__keep_checkpoints="1"))
    written = config.load(run.config_file)
    assert written.train.steps == 9 and written.sample.prompts == ("two balls",)
    assert written.train.keep_checkpoints == 1
    shown = views.all_runs(workspace, {})
    assert shown["queue"] == [run_id(run.path)] and shown["runs"][0]["total"] == 9
    with pytest.raises(RunError, match="waiting"):
        extending.proceed(workspace, given(run, train__steps=12))


@pytest.mark.parametrize(("values", "words"), [
    ({"train__steps": 6}, "6 steps are done"), ({"train__steps": 3}, "6 steps are done"),
    ({"train__steps": "many"}, "expects a number"), ({"train__seed": 1}, "cannot change"),
    ({"network__dim": 8, "train__steps": 9}, "cannot change")])
def test_what_cannot_be_leaves_the_run_as_it_was(workspace: Workspace, settings: Settings,
                                                 values: dict, words: str) -> None:
    run = ended(workspace, settings(), 6)
    before = run.config_file.read_bytes()
    with pytest.raises(ConfigError, match=words):
        extending.proceed(workspace, given(run, **values))
    assert run.config_file.read_bytes() == before and run.state() == "done"


def test_only_what_leaves_it_the_same_run_is_offered() -> None:
    resuming.refuse_others(extending.FIELDS)
    with pytest.raises(ConfigError, match="start a new one"):
        resuming.refuse_others(["optimizer.name"])


def test_a_run_at_work_is_left_alone(workspace: Workspace, settings: Settings) -> None:
    run = ended(workspace, settings(), 6)
    me = Process.this()
    run.append(events.Started(me.pid, me.born, "CPU", 6))
    for view in (extending.proceed, extending.extension, upkeep.delete_run):
        with pytest.raises(RunError, match="going on"):
            view(workspace, given(run, train__steps=9))
    assert run.config_file.is_file()


def test_the_course_is_told(settings: Settings) -> None:
    flat = settings("optimizer.schedule=constant", "optimizer.warmup=0")
    assert "run that had 9 steps" in resuming.course(flat, 6, {"train.steps": 9})
    assert "never interrupted" in resuming.course(flat, 3, {"train.steps": 6})
    round_ = settings("optimizer.schedule=cosine", "optimizer.warmup=0", "train.steps=8")
    told = resuming.course(round_, 8, {"train.steps": 16})
    # half of the new cosine lies behind it; the old one stood at its last step, 7 of 8
    assert "goes on with 0.005." in told and "was 0.000381" in told and "step 16" in told


def test_going_on_is_exact_by_the_way_of_the_page(settings: Settings) -> None:
    """What `extend` writes is what the engine then trains with, to the byte."""
    shared = ("optimizer.schedule=constant", "optimizer.warmup=0", "output.dtype=fp32")
    run = settings(*shared)
    folder = plan.create(plan.make(run))
    for event in train(run, where=folder.path)[0]:
        folder.append(event)
    longer = resuming.extend(folder, {"train.steps": 9, "train.checkpoint_every": 4})
    _, _, last = train(longer, where=folder.path)
    assert last == events.Finished("done", 9, "one.safetensors")
    _, whole, _ = train(settings("output.name=whole", *shared, "train.steps=9",
                                 "train.checkpoint_every=4"))
    assert same(whole / "whole.safetensors", folder.adapter_file)


def test_deleting_takes_one_folder_and_nothing_else(workspace: Workspace, settings: Settings,
                                                    tmp_path: Path) -> None:
    run = ended(workspace, settings(), 6)
    other = ended(workspace, settings("output.name=two", "sample.every=0"), 6)
    text = other.config_file.read_text("utf-8").replace('weights = ""', 'weights = "one"')
    other.config_file.write_text(text, "utf-8")
    far = tmp_path / "far"
    far.mkdir()
    (far / "keep.txt").write_text("mine")
    (run.path / "linked").symlink_to(far)
    (run.path / "checkpoints").mkdir()
    (run.path / "checkpoints" / "a.safetensors").write_bytes(bytes(5000))
    doomed = upkeep.doomed(workspace, given(run))
    assert doomed["checkpoints"] == 1 and doomed["missed_by"] == ["two"]
    assert 5000 < doomed["bytes"] < 50_000
    (run.path / "checkpoints" / "b.safetensors").write_bytes(bytes(7000))
    assert upkeep.size_of(run.path) == doomed["bytes"] + 7000, "counted again"
    with run.locked(), pytest.raises(RunError, match="another process"):
        upkeep.delete_run(workspace, given(run))
    upkeep.delete_run(workspace, given(run))
    assert not run.path.exists() and other.config_file.is_file()
    assert (far / "keep.txt").read_text() == "mine"
    assert [p.name for p in workspace.runs_folder.iterdir()] == ["two"]
    with pytest.raises(RunError, match="no longer there"):
        upkeep.delete_run(workspace, given(run))


def test_a_linked_run_and_a_waiting_one_are_not_deleted(workspace: Workspace, settings: Settings,
                                                        tmp_path: Path) -> None:
    run = ended(workspace, settings(), 6)
    workspace.jobs.enqueue(run)
    with pytest.raises(RunError, match="waiting"):
        upkeep.delete_run(workspace, given(run))
    moved = run.path.rename(tmp_path / "elsewhere")
    (workspace.runs_folder / "one").symlink_to(moved)
    workspace.jobs.withdraw(RunFolder(moved))
    with pytest.raises(RunError, match="link"):
        upkeep.delete_run(workspace, {"run": run_id(moved)})
    assert (moved / "config.toml").is_file()


def test_old_records_of_the_tools_go_and_nothing_else(workspace: Workspace,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "RECORDS", 2)
    for number in range(5):
        folder = workspace.tools_folder / f"2025010{number}-000000"
        folder.mkdir(parents=True)
        (folder / "request.json").write_text(json.dumps({"tool": "inspect"}))
    (workspace.tools_folder / "20250101-000000" / "mine.safetensors").write_bytes(b"x")
    me = Process.this()
    RunFolder(workspace.tools_folder / "20250102-000000").append(
        events.Started(me.pid, me.born, "", 0))
    upkeep.prune_records(workspace)
    left = sorted(path.name[7] for path in workspace.tools_folder.iterdir())
    assert left == ["1", "2", "3", "4"], "0 is gone; 1 holds a file of somebody, 2 is at work"
