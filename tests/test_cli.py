"""python -m lycoris: every verb as a person and as a script would call it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from lycoris import config, runs
from lycoris.__main__ import main
from lycoris.follow import Signals

Verb = Callable[..., tuple[int, Any, str]]


@pytest.fixture
def lycoris(capfd: pytest.CaptureFixture[str]) -> Verb:
    """lycoris("estimate", ...): (exit code, JSON documents of stdout, stderr)."""

    def call(*arguments: str) -> tuple[int, Any, str]:
        capfd.readouterr()
        code = main([*arguments, "--json"])
        out, err = capfd.readouterr()
        lines = [json.loads(line) for line in out.splitlines()]
        return code, lines[-1] if lines else None, err

    return call


@pytest.fixture
def small(small_base: Path, pictures: Path, tmp_path: Path) -> list[str]:
    """Settings of a run that takes a second, as a command line."""
    return [f"model.base={small_base}", f"dataset.folder={pictures}",
            f"output.folder={tmp_path / 'runs'}", "output.name=one", "dataset.resolution=16",
            "dataset.bucket_step=4", "network.preset=full", "network.dim=2", "network.alpha=2",
            "train.steps=6", "train.batch_size=2", "train.checkpoint_every=2", "sample.every=3",
            "sample.steps=2", "sample.seeds=1", "optimizer.lr=0.01",
            'sample.prompts=["a ball"]']


def test_estimate(lycoris: Verb, small: list[str]) -> None:
    code, found, _ = lycoris("estimate", *small, "network.algo=loha")
    assert code == 0 and found["algo"] == "loha"
    assert {"parameters", "tensors", "tensor_bytes", "file_bytes",
            "file_bytes_with_metadata"} <= set(found)
    assert found["pictures"] == 5 and found["batches_per_epoch"] == 3


def test_estimate_without_pictures(lycoris: Verb) -> None:
    code, found, _ = lycoris("estimate", "dataset.folder=/nowhere", "network.dim=4")
    assert code == 0 and found["parameters"] > 0 and found["pictures"] == 0


@pytest.mark.parametrize(("arguments", "words"), [
    (["estimate", "network.dim=0"], "least is 1"),
    (["estimate", "network.algo=lorra"], "Did you mean lora"),
    (["estimate", "model.base=/nowhere"], "no base model"),
    (["estimate", "nowhere.toml"], "no settings file"),
    (["train", "dataset.folder=/nowhere"], "no folder /nowhere"),
    (["train", "/nowhere/run"], "no settings file"),
    (["inspect", "/nowhere.safetensors"], "There is no file"),
    (["sample", "--adapter", "nothing"], "no adapter 'nothing'"),
    (["compare", "--adapter", "nothing"], "no adapter 'nothing'"),
    (["caption", "/nowhere", "--trigger", "x"], "no settings file"),
])
def test_mistakes_are_code_2_and_json(lycoris: Verb, tmp_path: Path, monkeypatch: Any,
                                      arguments: list[str], words: str) -> None:
    monkeypatch.chdir(tmp_path)
    code, found, err = lycoris(*arguments)
    assert code == 2 and words in found["error"]["message"] and "Traceback" not in err


def test_bugs_are_code_1(lycoris: Verb, monkeypatch: pytest.MonkeyPatch) -> None:
    import lycoris.__main__ as command

    def broken(*_: Any) -> int:
        raise ZeroDivisionError

    monkeypatch.setitem(command.VERBS, "estimate", broken)
    code, found, err = lycoris("estimate")
    assert code == 1 and found is None and "This is a bug" in err and "ZeroDivisionError" in err


def test_train_inspect_resume_sample_compare(lycoris: Verb, small: list[str],
                                             tmp_path: Path) -> None:
    """The story of one run, verb after verb."""
    code, ended, _ = lycoris("train", *small)
    folder = tmp_path / "runs" / "one"
    assert code == 0 and ended["event"] == "finished" and ended["step"] == 6
    assert {f.name for f in folder.iterdir()} >= {"one.safetensors", "config.toml", "plan.json",
                                                  "events.jsonl", "log.txt", "samples",
                                                  "checkpoints", "state", "requests"}
    planned = json.loads((folder / "plan.json").read_text())
    assert planned["file_bytes_with_metadata"] == (folder / "one.safetensors").stat().st_size
    assert runs.RunFolder(folder).state() == "done"

    assert lycoris("train", *small)[1]["error"]["message"].startswith("There is already a run")
    code, found, _ = lycoris("inspect", str(folder))
    assert (found["state"], found["step"], len(found["samples"])) == ("done", 6, 3)
    code, found, _ = lycoris("inspect", str(folder / "one.safetensors"))
    assert found["summary"] == "LoRA, dim 2"

    code, found, _ = lycoris("train", str(folder), "network.dim=3")
    assert code == 2 and "cannot change within a run" in found["error"]["message"]
    code, ended, _ = lycoris("train", str(folder), "train.steps=8")
    assert code == 0 and ended["step"] == 8

    code, found, _ = lycoris("sample", str(folder), "--adapter", "one:0.5", "sample.seeds=1,2",
                             "--out", str(tmp_path / "painted"))
    assert code == 0 and len(found["pictures"]) == 2
    recipe = json.loads(Image.open(found["pictures"][0]).text["lycogui"])
    assert recipe["seed"] == 1 and recipe["adapter"]["weight"] == 0.5

    code, found, _ = lycoris("compare", str(folder), "--adapter", "base", "--adapter", "one",
                             "--adapter", "one:0", "--out", str(tmp_path / "compared"))
    assert code == 0 and found["pictures"] == 3
    grid = Image.open(found["grid"])
    told = json.loads(grid.text["lycogui"])
    assert [c["name"] for c in told["contestants"]] == ["base", "one", "one at 0"]
    assert told["contestants"][1]["settings"]["network"]["dim"] == 2
    painted = [Image.open(tmp_path / "compared" / "pictures" / f"0000-0{n}.png").tobytes()
               for n in range(3)]
    assert painted[0] == painted[2] != painted[1], "weight 0 is the base, to the bit"


def test_a_settings_file_and_overrides(lycoris: Verb, small: list[str], tmp_path: Path) -> None:
    from lycoris import config

    file = tmp_path / "mine.toml"
    file.write_text(config.dump(config.load(None, small)), "utf-8")
    code, found, _ = lycoris("estimate", str(file), "network.dim=4")
    assert code == 0 and found["parameters"] == 2 * lycoris("estimate", str(file))[1]["parameters"]


def test_dataset_and_caption(lycoris: Verb, pictures: Path) -> None:
    (pictures / "2.txt").unlink()
    code, found, _ = lycoris("dataset", str(pictures))
    assert code == 0 and found["pictures"] == 5 and found["problems"]["no caption"] == ["2.png"]
    assert found["items"][0]["tokens"] > 3
    arguments = ["caption", str(pictures), "--trigger", "orb", "--find", "ball", "--replace", "egg"]
    code, found, _ = lycoris(*arguments, "--dry-run")
    assert len(found["edits"]) == 5 and not (pictures / "2.txt").exists()
    lycoris(*arguments)
    assert (pictures / "1.txt").read_text() == "orb, a egg, number 1\n"
    (pictures / "5.txt").unlink()
    code, found, _ = lycoris("caption", str(pictures), "--captioner", "file-name")
    assert code == 0 and found["edits"] == [{"picture": "5.png", "before": None, "after": "5"}]


def test_people_get_sentences(small: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", *small]) == 0
    out, _ = capfd.readouterr()
    assert "Parameters" in out and "bytes" in out and not out.startswith("{")
    assert main(["estimate", "network.dim=0"]) == 2
    _, err = capfd.readouterr()
    assert "least is 1" in err and "Traceback" not in err
    assert main(["train", *small]) == 0
    out, err = capfd.readouterr()
    assert out.startswith("Done at step 6") and "training" in err


def test_json_is_the_only_thing_on_stdout(small: list[str]) -> None:
    """In a real process, with all the libraries that like to talk."""
    done = _start("train", *small).communicate(timeout=300)
    lines = [json.loads(line) for line in done[0].splitlines()]
    assert lines[0]["event"] == "started" and lines[-1]["event"] == "finished"


def test_any_prompt_passes_a_pipe_that_is_not_utf8(small: list[str]) -> None:
    """A pipe on Windows speaks cp1252 by itself."""
    done = subprocess.run(
        [sys.executable, "-m", "lycoris", "train", *small, 'sample.prompts=["一只猫 🐈"]',
         "--json"],
        cwd=ROOT, capture_output=True, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "cp1252"})
    told = [json.loads(line) for line in done.stdout.decode("utf-8").splitlines()]
    assert {e["prompt"] for e in told if e["event"] == "sampled"} == {"一只猫 🐈"}


def test_a_broken_settings_file_of_a_run_is_told_in_its_folder(
        lycoris: Verb, small: list[str], tmp_path: Path) -> None:
    lycoris("train", *small)
    run = runs.RunFolder(tmp_path / "runs" / "one")
    run.config_file.write_text(run.config_file.read_text().replace("dim = 2", "dim = 0"))
    code, _, _ = lycoris("train", str(run.path))
    failed = run.history().failed
    assert code == 2 and run.state() == "failed" and failed and "network.dim" in failed.message


SIGNALS = [(signal.SIGTERM, 143), (signal.SIGINT, 130),
           *([(signal.SIGHUP, 129)] if hasattr(signal, "SIGHUP") else [])]


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_signals_save_first(small: list[str], tmp_path: Path, number: int, code: int) -> None:
    run = runs.RunFolder(tmp_path / "runs" / "one")
    process = _start("train", *small, "train.steps=100000", "sample.every=0")
    _wait(lambda: len(run.history().steps) > 3, process)
    process.send_signal(number)
    process.communicate(timeout=120)
    assert process.returncode == code
    history = run.history()
    assert history.finished and history.finished.reason == "stopped"
    assert run.adapter_file.is_file() and run.state() == "stopped"


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows closes no terminal so")
def test_a_run_under_nohup_outlives_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            signal.raise_signal(signal.SIGHUP)
            assert signals.asked() == set()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_start_of_a_running_run_is_refused(lycoris: Verb, small: list[str],
                                                    tmp_path: Path) -> None:
    run = runs.RunFolder(tmp_path / "runs" / "one")
    process = _start("train", *small, "train.steps=100000", "sample.every=0")
    _wait(lambda: len(run.history().steps) > 1, process)
    code, found, _ = lycoris("train", str(run.path))
    assert code == 2 and "is going on already" in found["error"]["message"]
    run.request("stop")
    process.communicate(timeout=120)
    assert process.returncode == 0 and run.state() == "stopped" and run.requests() == set()


@pytest.mark.parametrize("wanted", [True, False])
def test_out_of_memory_is_tried_again_with_less(lycoris: Verb, small: list[str], tmp_path: Path,
                                                monkeypatch: Any, wanted: bool) -> None:
    """From the third step on a picture more than one, or a pass that keeps its activations, is too
    much: it goes on with what leaves the result the same, and says so."""
    from lycoris import trainer

    real = trainer.Session.loss

    def full(self: Any, step: int, piece: int) -> torch.Tensor:
        run = self.plan.config.train
        if step > 2 and not (run.gradient_checkpointing and run.split == 2):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, step, piece)

    monkeypatch.setattr(trainer.Session, "loss", full)
    code, found, _ = lycoris("train", *small, f"train.retry_smaller={wanted}".lower())
    run = runs.RunFolder(tmp_path / "runs" / "one")
    history = run.history()
    settings = config.load(run.config_file, []).train
    if not wanted:
        assert code == 2 and "train.split=2" in history.failed.fix
        assert history.failed and history.failed.kind == "memory" and settings.split == 1
        return
    assert code == 0 and run.state() == "done"
    assert history.resumes == [0, 2, 2] and len(history.steps) == 6
    assert [warning.fix.split(" with ")[1] for warning in history.warnings] == [
        "train.gradient_checkpointing=true; the result is the same.",
        "train.split=2; the result is the same."]
    assert settings.gradient_checkpointing and settings.split == 2
    assert settings.batch_size == 2 and settings.accumulate == 1


@pytest.mark.slow
def test_kill_at_random_moments_and_resume(small: list[str], tmp_path: Path) -> None:
    """kill -9 of one run while it starts, then anywhere: the final tensors are those of a run that
    was never interrupted. (test_killed.py has more: every algorithm, at every write and step.)"""
    steps = 60
    shared = [*small, "network.algo=loha", f"train.steps={steps}", "train.checkpoint_every=7",
              "sample.every=20", "network.dropout=0.1", "dataset.caption_dropout=0.2"]
    whole = _start("train", *shared, "output.name=whole")
    whole.communicate(timeout=300)
    assert whole.returncode == 0
    run = runs.RunFolder(tmp_path / "runs" / "one")
    draw = random.Random("kills loha")
    process = _start("train", *shared)
    for kill in range(2):
        goal = draw.randrange(steps) if kill else -1
        if goal < 0:
            _wait(lambda: run.config_file.is_file(), process)
            time.sleep(draw.uniform(0, 3))
        else:
            goal = max(goal, min(run.history().step, steps - 2))
            _wait(lambda p=process, goal=goal: run.history().step >= goal or p.poll() is not None,
                  process)
            time.sleep(draw.uniform(0, 0.05))
        process.kill()
        process.communicate()
        process = _start("train", str(run.path))
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    file = tmp_path / "runs" / "whole" / "whole.safetensors"
    a, b = load_file(file), load_file(run.adapter_file)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert _told(run.adapter_file) == {key: text.replace("whole", "one")
                                       for key, text in _told(file).items()}
    numbers = [s.step for s in run.history().steps]
    assert numbers == sorted(set(numbers)) and numbers[-1] == steps
    assert not list(run.path.rglob("*.tmp"))


def _told(file: Path) -> dict[str, str]:
    """A file's metadata without the times, and the ids and hashes that come of them."""
    with safe_open(file, "pt") as opened:
        found = opened.metadata()
    changing = ("_at", "session_id", "modelspec.date", "sshs_legacy_hash")
    return {key: text for key, text in found.items() if not key.endswith(changing)}


def _start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "lycoris", *arguments, "--json"], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"})


def _wait(ready: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < until, "it took too long"
        if process.poll() is not None and not ready():
            raise AssertionError(f"it ended with {process.returncode}: {process.stderr.read()}")
        time.sleep(0.02)


@pytest.mark.parametrize("later", ['unet_target_name = ["to_v"]', None])
def test_a_run_keeps_the_preset_it_was_made_with(lycoris: Verb, small: list[str], tmp_path: Path,
                                                 later: str | None) -> None:
    """One's own preset is edited, or deleted, between the two halves of a run."""
    preset = tmp_path / "mine.toml"
    preset.write_text('unet_target_name = ["to_k"]', "utf-8")
    code, _, _ = lycoris("train", *small, f"network.preset={preset}", "train.steps=2")
    folder = tmp_path / "runs" / "one"
    assert code == 0
    before = set(load_file(folder / "one.safetensors"))
    preset.unlink() if later is None else preset.write_text(later, "utf-8")
    code, ended, _ = lycoris("train", str(folder), "train.steps=4")
    assert code == 0 and ended["step"] == 4
    assert set(load_file(folder / "one.safetensors")) == before
    assert f'preset = "{preset}"' in (folder / "config.toml").read_text("utf-8")


def test_a_comparison_needs_two(lycoris: Verb, small: list[str], tmp_path: Path) -> None:
    for words in ([], ["--adapter", "base"]):
        code, found, _ = lycoris("compare", *small, *words, "--out", str(tmp_path / "alone"))
        assert code == 2 and "at least two contestants" in found["error"]["message"]
