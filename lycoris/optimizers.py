"""The optimisers: one row each. A missing package is a typed error with the pip line."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .errors import ConfigError, MissingPackage
from .knobs import nearest
from .registry import pick


@dataclass(frozen=True)
class Row:
    """`path` is module:class; `state_bytes` are kept per trained parameter, FULL_STATE in tensors
    of fewer than `least` elements."""

    name: str
    path: str
    state_bytes: float
    needs: str = ""
    note: str = ""
    least: int = 0


FULL_STATE = 8.0  # two moments in fp32
FUSED_ON = ("cpu", "cuda")
FUSED_OR = {"fused", "foreach", "capturable", "differentiable"}
SETTINGS = ("lr", "weight_decay")  # what the section [optimizer] says itself
ROWS = {row.name: row for row in (
    Row("AdamW", "torch.optim:AdamW", 8, note="Two moments in fp32."),
    Row("AdamW8bit", "bitsandbytes.optim:AdamW8bit", 2, needs="bitsandbytes",
        note="Two moments in 8 bits, in blocks; tensors under 4,096 elements stay in fp32.",
        least=4096),
)}


def state_bytes(name: str, elements: int) -> float:
    """Bytes the optimiser keeps for one trained tensor."""
    row = ROWS[name]
    return elements * (FULL_STATE if elements < row.least else row.state_bytes)


def smaller(name: str) -> str | None:
    """The optimiser of the least state that does as this one; None where there is none."""
    own = ROWS[name]
    rivals = [row for row in ROWS.values()
              if row.state_bytes < own.state_bytes and row.name.startswith(own.name)]
    return min(rivals, key=lambda row: row.state_bytes).name if rivals else None


def make(name: str, groups: Iterable[Mapping[str, Any]], weight_decay: float,
         args: Mapping[str, Any]) -> torch.optim.Optimizer:
    """The optimiser over parameter groups (each with its own lr); ConfigError for its `args`."""
    kind = load(name)
    _check_names(name, args, kind)
    groups = [{**group, "params": list(group["params"])} for group in groups]
    fast = {"fused": True} if _takes_fused(kind, groups, args) else {}
    try:
        return kind(groups, weight_decay=weight_decay, **fast, **args)
    except (TypeError, ValueError, LookupError, RuntimeError) as error:
        listed = ", ".join(f"{key} = {value!r}" for key, value in args.items())
        raise ConfigError({"optimizer.args": f"{name} does not take {listed}: {error}"}) from error


def check(name: str, args: Mapping[str, Any]) -> None:
    """Refuse arguments the optimiser would not take, before there is anything to train."""
    if args:  # without any it need not be imported
        make(name, [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 1e-3}], 0.0, args)


def load(name: str) -> type[torch.optim.Optimizer]:
    row = pick(ROWS, name, "optimizer.name")
    module, _, attribute = row.path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError:
        raise MissingPackage(row.needs, f"Run: pip install {row.needs}, or choose AdamW.",
                             field="optimizer.name") from None


def _takes_fused(kind: type, groups: Iterable[Mapping[str, Any]], args: Mapping[str, Any]) -> bool:
    """Can a step be one operation over all tensors, and does nobody ask for another way?"""
    if "fused" not in inspect.signature(kind).parameters or not FUSED_OR.isdisjoint(args):
        return False
    return all(tensor.device.type in FUSED_ON for group in groups for tensor in group["params"])


def _check_names(name: str, args: Mapping[str, Any], kind: type) -> None:
    known = tuple(p for p in inspect.signature(kind).parameters if p not in ("params", *SETTINGS))
    problems = {}
    for key in args:
        if key in SETTINGS:
            problems[f"optimizer.args.{key}"] = f"{key} is a setting of its own: optimizer.{key}"
        elif key not in known:
            problems[f"optimizer.args.{key}"] = (
                f"{name} has no argument {key}.{nearest(key, known)}")
    if problems:
        raise ConfigError(problems)
