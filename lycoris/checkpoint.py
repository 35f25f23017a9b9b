"""The full state of a training run in one file, written whole or not at all, checked when read.

    state/step-00000100.safetensors    adapter in fp32, optimiser, step; a checksum of it all
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import durable, tensorfile
from .errors import RunError

if TYPE_CHECKING:
    from .network import LycorisNetwork
    from .writing import Writing

# The checksum of all that a state holds; earlier versions had one of its tensors alone.
WHOLE, OLD = "checksum", "sha256"
KEEP = 2  # the newest and, should it be damaged, the one before


@dataclass(frozen=True)
class Progress:
    """Where a run stands: `step` optimiser steps are done. Times in seconds since 1970. `pictures`
    is the mark of what it learns from."""

    step: int = 0
    loss_avg: float = 0.0
    started: float = 0.0
    session: int = 0
    pictures: str = ""


def save(folder: Path, network: LycorisNetwork, optimizer: torch.optim.Optimizer,
         progress: Progress, scaler: Mapping[str, Any],
         others: Mapping[str, Tensor] | None = None, writing: Writing | None = None) -> Path:
    """Write the state of a step, with tensors of `others`; `tidy` then removes what it makes
    superfluous."""
    tensors = {f"network/{name}": p.detach() for name, p in network.named_parameters()}
    state, plain = _split(optimizer.state_dict()["state"])
    tensors |= state
    tensors |= {f"group/{number}/{key}": value
                for number, group in enumerate(optimizer.param_groups)
                for key, value in group.items() if isinstance(value, Tensor)}
    tensors |= others or {}
    ticks = {"tick": writing.over("saving the state", 2 * len(tensors))} if writing else {}
    described = {
        "progress": json.dumps(asdict(progress)),
        "optimizer": json.dumps({"state": plain, "groups": _groups(optimizer)}),
        "scaler": json.dumps(dict(scaler)),
    }
    described[WHOLE] = _checksum(tensors, described, **ticks)
    return tensorfile.write(folder / f"step-{progress.step:08d}.safetensors", tensors, described,
                            **ticks)


def tidy(folder: Path, step: int) -> None:
    """Of the states leave `step` and the one before it. Later ones go too: a run that stands before
    them could not read them. Raises DiskError where another program holds one open."""
    for number, later in _numbered(folder, "step").items():
        if number > step:
            durable.remove(later)
    prune(folder, "step", step, KEEP)


def prune(folder: Path, stem: str, step: int, keep: int) -> None:
    """Of the files <stem>-<number>.safetensors up to `step`, the one just written, leave the last
    `keep`."""
    until = [path for number, path in _numbered(folder, stem).items() if number <= step]
    for old in until[:-keep]:
        durable.remove(old)


def newest(folder: Path) -> int:
    """The step of the newest state; 0 where there is none."""
    return max(_numbered(folder, "step"), default=0)


def found(folder: Path) -> list[Path]:
    """The states in a folder, the oldest first."""
    return list(_numbered(folder, "step").values())


def _numbered(folder: Path, stem: str) -> dict[int, Path]:
    """{number: path} of the files <stem>-<number>.safetensors, the lowest first."""
    name = re.compile(re.escape(stem) + r"-(\d+)\.safetensors")
    numbers = {int(match[1]): path for path in folder.glob("*.safetensors")
               if (match := name.fullmatch(path.name))}
    return dict(sorted(numbers.items()))


@dataclass(frozen=True)
class State:
    progress: Progress
    tensors: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    scaler: Mapping[str, Any]

    def restore(self, network: LycorisNetwork, optimizer: torch.optim.Optimizer) -> None:
        """Put weights and optimiser back as they were; RunError where the network is another.

        The learning rate is the optimiser's own: the settings may have another one by now.
        """
        own = dict(network.named_parameters())
        saved = {name.removeprefix("network/"): t for name, t in self.tensors.items()
                 if name.startswith("network/")}
        if {n: p.shape for n, p in own.items()} != {n: t.shape for n, t in saved.items()}:
            raise RunError("The saved state belongs to another network than the settings describe.",
                           "Resume with the run's own config.toml, or start a new run.")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(saved[name])
        state = {int(index): dict(values) for index, values in self.optimizer["state"].items()}
        for name, tensor in self.tensors.items():
            if name.startswith("optimizer/"):
                _, index, *keys, last = name.split("/")
                node = state.setdefault(int(index), {})
                for key in keys:
                    node = node.setdefault(key, {})
                node[last] = tensor
        groups = optimizer.state_dict()["param_groups"]
        device = optimizer.param_groups[0]["params"][0].device
        for name, tensor in self.tensors.items():
            if name.startswith("group/"):
                _, number, key = name.split("/")
                groups[int(number)][key] = tensor.to(device)
        for group, values in zip(groups, self.optimizer["groups"], strict=True):
            group.update({**values, "base_lr": group["base_lr"]})
        optimizer.load_state_dict({"state": state, "param_groups": groups})


def load(folder: Path) -> tuple[State | None, list[str]]:
    """The newest whole state, or None where there is none; and what was wrong with newer ones."""
    problems: list[str] = []
    for number, path in reversed(_numbered(folder, "step").items()):
        try:
            tensors, described = tensorfile.read(path, RunError)
            _check(path, tensors, described)
            progress = Progress(**json.loads(described["progress"]))
            if progress.step != number:
                raise RunError(f"{path.name} is the state of step {progress.step}, renamed.")
            return State(progress, tensors,
                         json.loads(described["optimizer"]),
                         json.loads(described["scaler"])), problems
        except RunError as error:
            problems.append(error.message)
    return None, problems


def _checksum(tensors: Mapping[str, Tensor], described: Mapping[str, str],
              tick: tensorfile.Tick = tensorfile.silent) -> str:
    """sha256 over the tensors, and over what is said beside them."""
    said = json.dumps({key: text for key, text in described.items() if key not in (WHOLE, OLD)},
                      sort_keys=True)
    return hashlib.sha256(f"{tensorfile.digest(tensors, tick)}\n{said}".encode()).hexdigest()


def _check(path: Path, tensors: Mapping[str, Tensor], described: Mapping[str, str]) -> None:
    """RunError where anything in a state is not as it was written."""
    whole = (described[WHOLE] == _checksum(tensors, described) if WHOLE in described
             else tensorfile.digest(tensors) == described.get(OLD))
    if not whole:
        raise RunError(f"{path.name} is damaged: its checksum does not match.")


def _split(state: Mapping[int, Mapping[str, Any]]) -> tuple[dict[str, Tensor], dict[int, dict]]:
    """An optimiser's state as ({path: tensor}, the rest as it is); 8-bit ones nest theirs."""
    tensors: dict[str, Tensor] = {}

    def rest(node: Mapping[Any, Any], path: str) -> dict[Any, Any]:
        left: dict[Any, Any] = {}
        for key, value in node.items():
            if isinstance(value, Tensor):
                tensors[f"{path}/{key}"] = value
            else:
                left[key] = rest(value, f"{path}/{key}") if isinstance(value, Mapping) else value
        return left

    return tensors, rest(state, "optimizer")


def _groups(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The parameter groups' plain settings; tensors are kept apart."""
    return [{key: value for key, value in group.items()
             if isinstance(value, (int, float, bool, str, type(None)))}
            for group in optimizer.param_groups]
