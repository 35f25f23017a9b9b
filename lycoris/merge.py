"""The verb merge: adapters into a base model, or into one new adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor

from . import lowrank, outfile
from .algorithms import Layer
from .assignments import Assignment
from .deltas import Change, Deltas
from .errors import AdapterError, ConfigError
from .families import open_base
from .lowrank import Rules
from .modelout import Merged, Share, Whole
from .outfile import KEEP, Draft, Written
from .progress import Progress
from .provenance import Deed

MODEL = "model"
WAYS = (MODEL, "exact", "full", "lora")


@dataclass(frozen=True)
class Block:
    """Adapters' weights are multiplied with `factor` on layers that fit `pattern`, a glob of
    <part>.<layer> or of the file's own name; of all adapters, or of the `adapter`th."""

    pattern: str
    factor: float
    adapter: int | None = None

    @classmethod
    def parse(cls, text: str) -> Block:
        """ "unet.up_blocks.*=0.5" or "2:unet.*=0"; ConfigError for anything else."""
        head, sign, tail = text.rpartition("=")
        number, colon, pattern = head.partition(":")
        try:
            own = int(number) if colon else None
            factor = float(tail)
        except ValueError:
            sign = ""
        if not sign or not head or not torch.isfinite(torch.tensor(factor)):
            raise ConfigError({"block": f"block {text!r} is not understood; write e.g. "
                                        "unet.up_blocks.*=0.5, or 2:unet.*=0 for the second "
                                        "adapter alone"})
        return cls(pattern if colon else head, factor, own)

    def fits(self, number: int, assignment: Assignment) -> bool:
        layer = assignment.layer
        return self.adapter in (None, number) and any(
            fnmatchcase(name, self.pattern)
            for name in (f"{layer.part}.{layer.name}".removeprefix("."), assignment.key))

    @property
    def text(self) -> str:
        own = "" if self.adapter is None else f"{self.adapter}:"
        return f"{own}{self.pattern}={self.factor:g}"


@dataclass(frozen=True)
class Merge:
    """`adapters` are (path, weight). `into` "model" writes the whole base with the changed weights:
    a new folder, or one file in the original layout where `out` ends in .safetensors; "exact" an
    adapter that stacks ranks where it can and holds whole differences elsewhere; "full" whole
    differences; "lora" what the rule keeps of the sum."""

    adapters: tuple[tuple[Path, float], ...]
    out: str
    into: str
    base: Path | None = None
    blocks: tuple[Block, ...] = ()
    rule: str = "dim"
    dim: int | None = None
    value: float | None = None
    conv_dim: int | None = None
    conv_value: float | None = None
    dialect: str = KEEP
    dtype: str = KEEP
    overwrite: bool = False
    no_vae: bool = False  # leave the autoencoder out of a model's one file


def run(asked: Merge, progress: Progress) -> Written | Merged:
    """Raises Stopped, having written nothing."""
    rules = _check(asked)
    paths = [path for path, _ in asked.adapters]
    out = (outfile.new_folder(asked.out, [asked.base])
           if asked.into == MODEL and not _is_file(asked.out)
           else outfile.place(asked.out, paths, [asked.base], asked.overwrite))
    family = None if asked.base is None else open_base(asked.base)
    stack = [Deltas(path, family) for path in paths]
    for deltas in stack:
        deltas.require_whole()
        deltas.warn(progress)
    shares = _shares(asked, stack)
    if asked.into == MODEL:
        assert family is not None
        if not shares:
            raise ConfigError({"adapters": "every layer's weight is 0: nothing would change"})
        deed = _deed(asked, None, _stack_of(shares))
        whole = Whole(family, shares, asked.dtype, deed, progress)
        return (whole.write_file(out, with_vae=not asked.no_vae) if _is_file(asked.out)
                else whole.write_folder(out))
    draft = Draft(outfile.dtype_of(asked.dtype, stack))
    for layer, parts in progress.over(list(shares.items()), "merging"):
        _add(asked.into, rules, layer, parts, draft)
    dialect = outfile.dialect_for(asked.dialect, stack, family, draft.groups)
    return draft.write(out, _deed(asked, rules, stack), [each.file.metadata for each in stack],
                       family, dialect, progress)


def _check(asked: Merge) -> Rules | None:
    problems = {}
    if asked.into not in WAYS:
        problems["into"] = f"into is {asked.into!r}; choose {', '.join(WAYS)}"
    if not asked.adapters:
        problems["adapters"] = "nothing to merge; choose at least one adapter"
    if asked.into == MODEL and asked.base is None:
        problems["base"] = "merging into a model needs the model: give --base"
    if asked.dialect not in outfile.DIALECTS:
        problems["dialect"] = (f"dialect is {asked.dialect!r}; choose "
                               f"{', '.join(outfile.DIALECTS)}")
    if asked.dtype not in outfile.DTYPES:
        problems["dtype"] = f"dtype is {asked.dtype!r}; choose {', '.join(outfile.DTYPES)}"
    count = len(asked.adapters)
    for block in asked.blocks:
        if block.adapter is not None and not 1 <= block.adapter <= count:
            problems["block"] = f"block {block.text} is for adapter {block.adapter} of {count}"
    if problems:
        raise ConfigError(problems)
    return Rules.of(asked.rule, asked.dim, asked.value, asked.conv_dim,
                    asked.conv_value) if asked.into == "lora" else None


def _shares(asked: Merge, stack: Sequence[Deltas]) -> dict[Layer, list[Share]]:
    """{layer: the adapters that change it}, in the base's order; ConfigError for a block that fits
    no layer."""
    used: set[Block] = set()
    found: dict[Layer, list[Share]] = {}
    for number, (deltas, (_, strength)) in enumerate(zip(stack, asked.adapters, strict=True), 1):
        for assignment in deltas.assignments:
            fitting = [block for block in asked.blocks if block.fits(number, assignment)]
            used.update(fitting)
            weight = strength * (fitting[0].factor if fitting else 1.0)
            found.setdefault(assignment.layer, []).append(Share(deltas, assignment, weight))
    if idle := [block.text for block in asked.blocks if block not in used]:
        first = next(iter(found))
        raise ConfigError({"block": f"block {idle[0]} fits no layer; layers have names like "
                                    f"{f'{first.part}.{first.name}'.removeprefix('.')}"})
    if stack[0].family is None:
        _refuse_apart(stack, found)
    else:
        order = {layer: place for place, layer in enumerate(stack[0].family.layers)}
        found = dict(sorted(found.items(), key=lambda item: order[item[0]]))
    return {layer: parts for layer, each in found.items()
            if (parts := [share for share in each if share.weight])}


def _refuse_apart(stack: Sequence[Deltas], found: Mapping[Layer, list[Share]]) -> None:
    """Without a base only files that name and shape their layers alike can meet."""
    dialects = {deltas.file.dialect for deltas in stack}
    names = [layer.name for layer in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if len(dialects) > 1 or twice:
        said = (f"they are written as {' and '.join(sorted(dialects))}" if len(dialects) > 1
                else f"{twice[0]} has different shapes in them")
        raise AdapterError(f"These adapters cannot be laid over each other: {said}.",
                           "Give the base model with --base, by which their layers are found.")


def _add(into: str, rules: Rules | None, layer: Layer, parts: Sequence[Share],
         draft: Draft) -> None:
    """One layer of the new adapter."""
    changes = [(share.change(), share.weight) for share in parts]
    delta = sum((change.delta(weight) for change, weight in changes), torch.zeros(layer.shape))
    shifts = [shift for change, weight in changes if (shift := change.bias(weight)) is not None]
    shift = torch.stack(shifts).sum(0) if shifts else None
    source = " + ".join(f"{share.deltas.describe(share.assignment)} at {share.weight:g}"
                        for share in parts)
    if layer.kind == "norm":
        group = {"w_norm": delta} | ({} if shift is None else {"b_norm": shift})
        draft.add(layer, group, delta, source)
        return
    stacked = _stacked(changes)
    if into == "lora":
        assert rules is not None
        rule = rules.conv if layer.is_spatial else rules.plain
        kept = lowrank.spectrum(rule, lambda: delta, stacked).kept(rule)
        draft.add(layer, outfile.lora_of(layer, *kept), delta, source)
        draft.miss_bias(layer, shift)
    elif into == "exact" and shift is None and stacked is not None and (
            stacked[0].numel() + stacked[1].numel() < delta.numel()):
        draft.add(layer, outfile.lora_of(layer, *stacked), delta, source)
    else:
        draft.add(layer, outfile.full(delta, shift), delta, source)


def _is_file(out: str) -> bool:
    return out.endswith(".safetensors")


def _stack_of(shares: Mapping[Layer, Sequence[Share]]) -> list[Deltas]:
    return list({id(share.deltas): share.deltas
                 for parts in shares.values() for share in parts}.values())


def _stacked(changes: Sequence[tuple[Change, float]]) -> tuple[Tensor, Tensor] | None:
    """All factors side by side, whose product is the sum; None where one has none."""
    pairs = [change.factors(weight) for change, weight in changes]
    whole = [pair for pair in pairs if pair is not None]
    if len(whole) < len(pairs):
        return None
    return torch.cat([up for up, _ in whole], 1), torch.cat([down for _, down in whole], 0)


def _deed(asked: Merge, rules: Rules | None, stack: Sequence[Deltas]) -> Deed:
    settings = {"into": asked.into, "weights": [weight for _, weight in asked.adapters],
                "blocks": [block.text for block in asked.blocks] or None,
                "rule": rules and rules.text}
    return Deed("merge", settings, [deltas.name for deltas in stack])
