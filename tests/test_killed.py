"""kill -9 at any moment, and resume: the tensors are, to the byte, those of a run that was never
interrupted. Real engine processes that kill themselves at a given write, rename or step."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nursery import STEP, Nursery, moment, mortal, same

from lycoris import algorithms, checkpoint, config, optimizers
from lycoris.errors import MissingPackage
from lycoris.runs import RunFolder
from lycoris.settings import Config

pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(os.name == "nt", reason="the nursery forks")]
STEPS = 4
# Every algorithm and every optimiser: in pairs, the shorter list again from its start.
ALGORITHMS, OPTIMISERS = sorted(algorithms.catalogue()), sorted(optimizers.ROWS)
ROWS = [(ALGORITHMS[i % len(ALGORITHMS)], OPTIMISERS[i % len(OPTIMISERS)])
        for i in range(max(len(ALGORITHMS), len(OPTIMISERS)))]


@pytest.fixture
def begin(nursery: Nursery, settings: Callable[..., Config], tmp_path: Path) -> Callable[..., int]:
    """begin(name, settings..., die=...): train the run, new or resumed; its exit code."""

    def go(name: str, *overrides: str, die: Any = ()) -> int:
        target = tmp_path / "runs" / name
        if not target.is_dir():
            target = tmp_path / f"{name}.toml"
            target.write_text(config.dump(settings(f"output.name={name}", *overrides)), "utf-8")
            overrides = ()
        return nursery.run("train", str(target), *overrides, log=tmp_path / f"{name}.txt", die=die)

    return go


def _row(algo: str, optimiser: str) -> list[str]:
    try:
        optimizers.load(optimiser)
    except MissingPackage as error:
        pytest.skip(str(error))
    return mortal(algo, optimiser, STEPS)


@pytest.mark.parametrize(("algo", "optimiser"), ROWS)
def test_killed_and_resumed_for_every_algorithm_and_optimiser(
        begin: Callable, tmp_path: Path, algo: str, optimiser: str) -> None:
    """Twice, so that a resumed run is resumed; then extended by a step after its end."""
    row = _row(algo, optimiser)
    draw = random.Random(f"{algo} {optimiser}")
    runs = tmp_path / "runs"
    assert begin("whole", *row, f"train.steps={STEPS + 1}") == 0, (
        tmp_path / "whole.txt").read_text()
    for _ in range(2):
        code = begin("killed", *row, die=moment(draw, 2))
        row = []
        assert code == -signal.SIGKILL, (tmp_path / "killed.txt").read_text()
    assert begin("killed") == 0, (tmp_path / "killed.txt").read_text()
    assert RunFolder(runs / "killed").history().step == STEPS
    assert begin("killed", f"train.steps={STEPS + 1}") == 0
    assert same(runs / "whole" / "whole.safetensors", runs / "killed" / "killed.safetensors")
    numbers = [step.step for step in RunFolder(runs / "killed").history().steps]
    assert numbers == list(range(1, STEPS + 2))
    assert not list((runs / "killed").rglob("*.tmp"))


def test_killed_at_every_write_of_a_save(begin: Callable, tmp_path: Path) -> None:
    """Every fsync and rename after a run's third step until its end, which saves everything."""
    row = _row("lora", "AdamW")
    runs = tmp_path / "runs"
    assert begin("whole", *row, "train.steps=3") == 0
    assert begin("run", *row, "train.steps=2") == 0
    shutil.copytree(runs / "run", tmp_path / "before")
    survived = {"os.fsync": False, "os.replace": False}
    steps = set()
    for name in survived:
        for number in range(1, 99):
            shutil.rmtree(runs / "run")
            shutil.copytree(tmp_path / "before", runs / "run")
            code = begin("run", "train.steps=3", die=[name, number])
            if code == 0:
                survived[name] = True
                break
            assert code == -signal.SIGKILL
            state, problems = checkpoint.load(runs / "run" / "state")
            assert state is not None and not problems  # never a torn one under its own name
            steps.add(state.progress.step)
            assert begin("run") == 0
            assert same(runs / "whole" / "whole.safetensors", runs / "run" / "run.safetensors")
    assert all(survived.values()) and steps == {2, 3}


@pytest.mark.parametrize("damage", ["zeros", "swapped", "missing", "junk"])
def test_damaged_states_are_passed_over(begin: Callable, tmp_path: Path, damage: str) -> None:
    """A page of zeros, another state's content under the name, no file, another kind of file: the
    one before is used, and said where there is something to say."""
    row = _row("lora", "AdamW")
    runs = tmp_path / "runs"
    assert begin("whole", *row, "train.steps=3") == 0
    assert begin("run", *row, "train.steps=3", die=[STEP, 3]) == -9
    older, newest = checkpoint.found(runs / "run" / "state")
    data = bytearray(newest.read_bytes())
    if damage == "zeros":
        data[len(data) // 2:len(data) // 2 + 4096] = bytes(4096)
    newest.unlink() if damage == "missing" else newest.write_bytes(
        {"zeros": data, "swapped": older.read_bytes(), "junk": b"junk"}[damage])
    assert begin("run") == 0
    history = RunFolder(runs / "run").history()
    assert history.resumes[-1] == 1
    told = [warning.text for warning in history.warnings]
    assert damage == "missing" or any(newest.name in text for text in told)
    assert same(runs / "whole" / "whole.safetensors", runs / "run" / "run.safetensors")
