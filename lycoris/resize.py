"""The verb resize: any adapter as a smaller LoRA, by its singular values, or a LoRA cut to its
first ranks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from . import outfile
from .assignments import Assignment
from .deltas import Deltas
from .errors import AdapterError, ConfigError
from .families import open_base
from .lowrank import Rules
from .outfile import Draft, Written
from .progress import Progress
from .provenance import Deed

FIRST = "first"


@dataclass(frozen=True)
class Resize:
    """`rule` is one of lowrank.RULES, or "first": the first `dim` ranks of a file of DyLoRA's.

    What is not said of convolutions larger than 1x1 is as for the other layers. `base` is the
    folder of the model it was trained on, for what is made from its weights.
    """

    path: Path
    out: str
    rule: str = "dim"
    dim: int | None = None
    value: float | None = None
    conv_dim: int | None = None
    conv_value: float | None = None
    base: Path | None = None
    dtype: str = outfile.KEEP
    overwrite: bool = False


def run(asked: Resize, progress: Progress) -> Written:
    """Write the smaller adapter; every row tells what it cost. Raises Stopped, having written
    nothing."""
    rules = None if asked.rule == FIRST else Rules.of(
        asked.rule, asked.dim, asked.value, asked.conv_dim, asked.conv_value)
    out = outfile.place(asked.out, [asked.path], [asked.base], asked.overwrite)
    family = None if asked.base is None else open_base(asked.base)
    deltas = Deltas(asked.path, family)
    dtype = outfile.dtype_of(asked.dtype, [deltas])
    deltas.warn(progress)
    draft = Draft(dtype)
    if rules is None:
        said = f"first {_first(asked, deltas, draft, progress)}"
    else:
        said = rules.text
        _by_values(rules, deltas, draft, progress)
    deed = Deed("resize", {"rule": said}, [deltas.name])
    dialect = outfile.dialect_for(outfile.KEEP, [deltas], family, draft.groups)
    return draft.write(out, deed, [deltas.file.metadata], family, dialect, progress)


def _by_values(rules: Rules, deltas: Deltas, draft: Draft, progress: Progress) -> None:
    deltas.require_whole()
    for assignment in progress.over(deltas.assignments, "resizing"):
        change, source = deltas.change(assignment), deltas.describe(assignment)
        if assignment.layer.kind == "norm":
            draft.add(assignment.layer, deltas.group(assignment), change.delta(), source)
        else:
            draft.add_lora(change, rules, source)


def _first(asked: Resize, deltas: Deltas, draft: Draft, progress: Progress) -> int:
    """Every LoRA's first ranks, at the scale it had; the dim it was cut to."""
    problems = {}
    if asked.dim is None or asked.dim < 1:
        problems["dim"] = "the rule first needs dim: how many ranks are kept"
    for name in ("value", "conv_dim", "conv_value"):
        if getattr(asked, name) is not None:
            problems[name] = f"the rule first takes no {name}: all layers are cut alike"
    if problems:
        raise ConfigError(problems)
    assert asked.dim is not None
    others = [*deltas.unplaced,
              *(a.source for a in deltas.assignments if not _has_first(deltas, a))]
    if others:
        raise AdapterError(
            f"{deltas.name} has {len(others)} layers without first ranks; one is {others[0]}.",
            "LoRA and DyLoRA have them; use another rule, which finds the strongest.", keys=others)
    cut = Deltas(asked.path, deltas.family, ranks=asked.dim)
    parts = list(zip(deltas.assignments, cut.assignments, strict=True))
    for whole, part in progress.over(parts, "cutting"):
        wanted = None if whole.extras.dora else deltas.change(whole).delta()
        draft.add(part.layer, cut.group(part), wanted, deltas.describe(whole))
    return asked.dim


def _has_first(deltas: Deltas, assignment: Assignment) -> bool:
    group = deltas.group(assignment)
    return assignment.layer.kind == "norm" or (
        "lora_up.weight" in group and "lora_mid.weight" not in group)
