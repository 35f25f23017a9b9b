"""The verb convert: an adapter in another dialect, or as a LoRA or a Full, which others read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from . import outfile, peftfolder
from .algorithms import Layer, elements
from .deltas import Deltas
from .errors import ConfigError
from .families import open_base
from .lowrank import Rules
from .outfile import KEEP, Draft, Written
from .progress import Progress
from .provenance import Deed

ALGOS = (KEEP, "lora", "full")
PEFT = "peft"
PLAIN = {"lora_up.weight", "lora_down.weight", "alpha"}  # of a LoRA that every program reads
DIALECTS = (*outfile.DIALECTS, PEFT)


@dataclass(frozen=True)
class Convert:
    """`algo` "keep" rewrites the tensors as they are; "full" loses nothing but the precision of
    `dtype`; "lora" keeps what the rule says, all of it with "lossless".

    A dialect other than "keep" needs `base`, for the layers' own names; "peft" makes a folder.
    """

    path: Path
    out: str
    dialect: str = KEEP
    algo: str = KEEP
    rule: str = "lossless"
    dim: int | None = None
    value: float | None = None
    conv_dim: int | None = None
    conv_value: float | None = None
    base: Path | None = None
    dtype: str = KEEP
    overwrite: bool = False


def run(asked: Convert, progress: Progress) -> Written:
    """Write the converted adapter. Raises Stopped, having written nothing."""
    rules = _check(asked)
    out = (outfile.new_folder(asked.out, [asked.base]) if asked.dialect == PEFT
           else outfile.place(asked.out, [asked.path], [asked.base], asked.overwrite))
    family = None if asked.base is None else open_base(asked.base)
    deltas = Deltas(asked.path, family)
    draft = Draft(outfile.dtype_of(asked.dtype, [deltas]))
    deltas.warn(progress)
    if asked.algo == KEEP:
        _as_it_is(deltas, draft, progress)
    else:
        deltas.require_whole()
        _as_full(deltas, draft, progress) if asked.algo == "full" else _as_lora(
            rules, deltas, draft, progress)
    settings = {"dialect": asked.dialect, "algo": asked.algo,
                "rule": rules.text if asked.algo == "lora" else None}
    deed = Deed("convert", settings, [deltas.name], keeps_training=asked.algo == KEEP)
    if asked.dialect == PEFT:
        assert family is not None
        return peftfolder.write(out, draft, family, deed, [deltas.file.metadata], progress)
    dialect = outfile.dialect_for(asked.dialect, [deltas], family, draft.groups)
    return draft.write(out, deed, [deltas.file.metadata], family, dialect, progress)


def _check(asked: Convert) -> Rules:
    problems = {}
    if asked.algo not in ALGOS:
        problems["algo"] = f"algo is {asked.algo!r}; choose {', '.join(ALGOS)}"
    if asked.dialect not in DIALECTS:
        problems["dialect"] = f"dialect is {asked.dialect!r}; choose {', '.join(DIALECTS)}"
    elif asked.dialect != KEEP and asked.base is None:
        problems["base"] = (f"{asked.dialect}'s keys are made from the base's own layer names; "
                            "give the base with --base")
    if problems:
        raise ConfigError(problems)
    return Rules.of(asked.rule, asked.dim, asked.value, asked.conv_dim, asked.conv_value)


def _as_it_is(deltas: Deltas, draft: Draft, progress: Progress) -> None:
    """Every group under its canonical suffixes; without a base those without a shape as well."""
    for assignment in progress.over(deltas.assignments, "converting"):
        draft.add(assignment.layer, deltas.group(assignment), None, deltas.describe(assignment))
    for name in deltas.unplaced:
        draft.add(Layer(name, "linear", ()), deltas.file.group(name), None,
                  deltas.file.kind(name)[0].name)


def _as_full(deltas: Deltas, draft: Draft, progress: Progress) -> None:
    for assignment in progress.over(deltas.assignments, "converting"):
        change, layer = deltas.change(assignment), assignment.layer
        delta = change.delta()
        group = (deltas.group(assignment) if layer.kind == "norm"
                 else outfile.full(delta, change.bias()))
        draft.add(layer, group, delta, deltas.describe(assignment))


def _as_lora(rules: Rules, deltas: Deltas, draft: Draft, progress: Progress) -> None:
    """As LoRA; without loss what is one already stays as it is."""
    lossless = rules.plain.kind == "lossless"
    room = sum(elements(a.layer.shape) for a in deltas.assignments)
    for assignment in progress.over(deltas.assignments, "converting"):
        change, source = deltas.change(assignment), deltas.describe(assignment)
        group = deltas.group(assignment)
        if assignment.layer.kind == "norm" or (lossless and set(group) <= PLAIN):
            draft.add(assignment.layer, group, change.delta(), source)
        else:
            draft.add_lora(change, rules, source)
        if lossless and sum(row.parameters for row in draft.rows) > room:
            raise ConfigError({"rule": (
                f"a LoRA without loss would be larger than the {len(deltas)} layers themselves; "
                "convert to full, or keep a part with --rule sv_fro --value 0.99, or with --rule "
                "dim --dim 64")})
