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
    """`path` is module:class; `state_bytes` are kept per trained parameter."""

    name: str
    path: str
    state_bytes: float
    needs: str = ""
    note: str = ""


ROWS = {row.name: row for row in (
    Row("AdamW", "torch.optim:AdamW", 8, note="Two moments in fp32."),
    Row("AdamW8bit", "bitsandbytes.optim:AdamW8bit", 2, needs="bitsandbytes",
        note="Two moments in 8 bits, in blocks; tensors under 4,096 elements stay in fp32."),
)}


def make(name: str, groups: Iterable[Mapping[str, Any]], weight_decay: float,
         args: Mapping[str, Any]) -> torch.optim.Optimizer:
    """The optimiser over parameter groups (each with its own lr)."""
    kind = load(name)
    check_args(name, args, kind)
    return kind(list(groups), weight_decay=weight_decay, **args)


def load(name: str) -> type[torch.optim.Optimizer]:
    row = pick(ROWS, name, "optimizer.name")
    module, _, attribute = row.path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError:
        raise MissingPackage(row.needs, f"Run: pip install {row.needs}, or choose AdamW.",
                             field="optimizer.name") from None


def check_args(name: str, args: Mapping[str, Any], kind: type) -> None:
    known = [p for p in inspect.signature(kind).parameters if p not in ("params", "lr")]
    unknown = {f"optimizer.args.{key}": f"{name} has no argument {key}.{nearest(key, tuple(known))}"
               for key in args if key not in known}
    if unknown:
        raise ConfigError(unknown)
