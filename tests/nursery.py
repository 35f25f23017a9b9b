"""Engine processes without their ten seconds of imports: one process has imported everything and
forks a `python -m lycoris` at each word from its standard input. POSIX only.

    {"arguments": [...], "environment": {...}, "log": "path", "die": ["os.replace", 3]}  -> its pid
    {"wait": pid}                                                                -> its exit code

With `die` the process kills itself at the n-th call of that function, before it or, with a third
element true, after it; counted from the first step's backward pass on. Where that is "memory", the
call fails as it does where memory runs out, and the process lives on.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STEP = "torch.nn.utils.clip_grad_norm_"  # once in every step, before the optimiser's
MOMENTS = {STEP: 1, "os.fsync": 4, "os.replace": 2}  # {at what to die: calls of a saved step}


def mortal(algo: str, optimiser: str, steps: int) -> list[str]:
    """The settings of a run that saves every step, for one that is killed; dropout and dropped
    captions show whether what is drawn goes on too."""
    return [f"network.algo={algo}", f"optimizer.name={optimiser}", f"train.steps={steps}",
            "network.preset=attn-only", "network.dim=4", "network.dropout=0.1",
            "train.checkpoint_every=1", "train.keep_checkpoints=1", "output.dtype=fp32",
            "dataset.caption_dropout=0.3", "optimizer.schedule=constant", "optimizer.warmup=0"]


def moment(draw: random.Random, steps: int) -> list[Any]:
    """Where, in that many steps, to die: as `die` takes it."""
    name = draw.choice(list(MOMENTS))
    return [name, draw.randint(1, MOMENTS[name] * steps), draw.random() < 0.5]


def same(a: Path, b: Path) -> bool:
    """Do two files hold the same tensors, to the bit?"""
    import torch
    from safetensors.torch import load_file

    one, other = load_file(a), load_file(b)
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


class Nursery:
    """The other side: starts the process, and engine processes from it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
                 "PYTHONPATH": str(ROOT)})

    def close(self) -> None:
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait(20)

    def start(self, *arguments: str, log: Path, die: Sequence[Any] = (),
              **environment: Any) -> int:
        return self._say({"arguments": [*arguments, "--json"], "log": str(log), "die": list(die),
                          "environment": {k: str(v) for k, v in environment.items()}})

    def wait(self, pid: int) -> int:
        """Its exit code; that of a signal is negative."""
        return self._say({"wait": pid})

    def run(self, *arguments: str, log: Path, die: Sequence[Any] = ()) -> int:
        return self.wait(self.start(*arguments, log=log, die=die))

    def _say(self, word: dict[str, Any]) -> int:
        print(json.dumps(word), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())  # type: ignore[union-attr]


def main() -> None:
    import diffusers
    import torch
    import transformers

    from lycoris import __main__, devices, plan, trainer  # noqa: F401

    assert diffusers.UNet2DConditionModel and transformers.CLIPTextModel
    assert diffusers.AutoencoderKL and diffusers.DPMSolverMultistepScheduler
    torch.set_num_threads(1)
    for line in sys.stdin:
        word = json.loads(line)
        if "wait" in word:
            said = os.waitstatus_to_exitcode(os.waitpid(word["wait"], 0)[1])
        elif (said := os.fork()) == 0:
            _be_born(word)
        print(said, flush=True)


def _be_born(word: dict[str, Any]) -> None:
    log = os.open(word["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for handle in (1, 2):
        os.dup2(log, handle)
    os.close(0)
    os.environ |= word["environment"]
    if word["die"]:
        _mortal(*word["die"])
    from lycoris.__main__ import main as engine

    code = engine(word["arguments"])
    sys.stdout.flush()
    os._exit(code)


def _mortal(name: str, at: int, after: bool | str = False) -> None:
    import torch

    module, _, attribute = name.rpartition(".")
    owner = importlib.import_module(module)
    real, left = getattr(owner, attribute), at
    began = name.startswith("lycoris.")  # what is called before there are steps
    backward = torch.Tensor.backward

    def begin(*arguments: Any, **named: Any) -> Any:
        nonlocal began
        began = True
        return backward(*arguments, **named)

    def deadly(*arguments: Any, **named: Any) -> Any:
        nonlocal left
        left -= began
        if left == 0 and began and after == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory")
        if left == 0 and began and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        answer = real(*arguments, **named)
        if left == 0 and began:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    setattr(owner, attribute, deadly)
    torch.Tensor.backward = begin  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
