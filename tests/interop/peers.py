"""The tests' side of the peers' process: whether they are installed, and asking them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FOLDER = Path(os.environ.get("LYCOGUI_PEERS", ROOT / ".venv-peers")).resolve()
SECONDS = 240
INSTALLED = {"lycoris-lora": "lycoris_lora-4.1.3.dist-info", "PEFT": "peft"}


def need(*names: str) -> None:
    """Skip the module's tests where a peer is not installed."""
    missing = [name for name in names if not (FOLDER / INSTALLED[name]).is_dir()]
    if missing:
        pytest.skip(f"no {' and no '.join(missing)} in {FOLDER}; tests/run.sh installs it",
                    allow_module_level=True)


@dataclass(frozen=True)
class Answers:
    """What the peers' layers gave: {"<job>/<multiplier>/<layer>": output}, and {job: traceback}."""

    outputs: Mapping[str, Tensor]
    problems: Mapping[str, str]

    def of(self, job: str) -> dict[tuple[float, str], Tensor]:
        """{(multiplier, layer): output} of one job; fails with the peer's traceback."""
        if job in self.problems:
            pytest.fail(f"the peer could not do it:\n{self.problems[job]}")
        found = {}
        for key, value in self.outputs.items():
            name, _, rest = key.partition("/")
            if name == job:
                multiplier, _, layer = rest.partition("/")
                found[float(multiplier), layer] = value
        return found


def ask(folder: Path, jobs: Mapping[str, Mapping[str, Any]]) -> Answers:
    """Do all jobs in one process of the peers; `folder` is for what goes to and fro."""
    (folder / "jobs.json").write_text(json.dumps(jobs), "utf-8")
    environment = {**os.environ, "PYTHONPATH": str(FOLDER), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, str(HERE / "worker.py"), str(folder)], cwd=folder,
                          env=environment, capture_output=True, text=True, timeout=SECONDS,
                          check=False)
    assert done.returncode == 0, done.stderr
    return Answers(load_file(folder / "answers.safetensors"),
                   json.loads((folder / "answers.json").read_text("utf-8")))
