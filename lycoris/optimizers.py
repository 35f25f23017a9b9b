"""The optimisers: one row each. A missing package is a typed error with the pip line."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from .errors import ConfigError, MissingPackage
from .events import Warned
from .knobs import nearest
from .registry import pick
from .settings import Config

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """`path` is module:class.

    Bytes kept per trained parameter: `state_bytes`; `small` in tensors of fewer than `least`
    elements. `factored`: of tensors of two or more dimensions means over rows and over columns, so
    many of each, in fp32 besides; of the others one full moment. `matrices`: the optimiser is for
    matrices, everything else is taken by AdamW.

    `times`: its learning rate as a multiple of AdamW's; None where it finds the rate itself and
    optimizer.lr is a factor on that, 1 as a rule. `one_rate`: the same for all parameters.
    `averages`: it keeps a mean of its own, which is what is saved and painted, and wants no
    schedule. `given` are arguments that are not the class's own defaults. `lean` is the one that
    does the same with less state.
    """

    name: str
    path: str
    state_bytes: float
    needs: str = ""
    note: str = ""
    least: int = 0
    small: float = 8.0
    factored: int = 0
    matrices: bool = False
    times: float | None = 1.0
    one_rate: bool = False
    averages: bool = False
    given: Mapping[str, Any] = field(default_factory=dict)
    lean: str = ""


FUSED = "train.fused_backward"
FULL_STATE = 8.0  # two moments in fp32
FUSED_ON = ("cpu", "cuda")
FUSED_OR = {"fused", "foreach", "capturable", "differentiable"}
SETTINGS = ("lr", "weight_decay")  # what the section [optimizer] says itself
BLOCK = 4096  # smaller tensors bitsandbytes keeps in fp32
BITS = 4 / 256  # a scale in fp32 for every 256 numbers of 8 bits
TABLE = 4 * 256  # fp32 numbers that 8 bits stand for
BNB, MORE = "bitsandbytes", "pytorch-optimizer"
ROWS = {row.name: row for row in (
    Row("AdamW", "torch.optim:AdamW", 8, lean="AdamW8bit",
        note="The usual one. Keeps two more numbers in memory for each that is trained."),
    Row("AdamW8bit", "bitsandbytes.optim:AdamW8bit", 2 + 2 * BITS, BNB, least=BLOCK,
        note="As AdamW, in a quarter of its memory (8 bits; small tensors stay in fp32)."),
    Row("PagedAdamW8bit", "bitsandbytes.optim:PagedAdamW8bit", 2 + 2 * BITS, BNB, least=BLOCK,
        note="AdamW8bit whose state moves out of the GPU's memory where that is short."),
    Row("PagedAdamW32bit", "bitsandbytes.optim:PagedAdamW32bit", 8, BNB, lean="PagedAdamW8bit",
        note="AdamW whose state moves out of the GPU's memory where that is short."),
    Row("Lion", "pytorch_optimizer:Lion", 4, MORE, times=0.1, lean="Lion8bit",
        note="Steps of equal size, half of AdamW's memory. Wants a tenth of its learning rate."),
    Row("Lion8bit", "bitsandbytes.optim:Lion8bit", 1 + BITS, BNB, least=BLOCK, small=4, times=0.1,
        note="Lion in a quarter of its memory."),
    Row("Adafactor", "transformers.optimization:Adafactor", 0, factored=1,
        given={"scale_parameter": False, "relative_step": False},
        note="Hardly any memory: means over rows and columns alone. Without momentum."),
    Row("CAME", "pytorch_optimizer:CAME", 4, MORE, factored=2,
        note="As Adafactor, with momentum and a confidence in each step."),
    Row("Prodigy", "pytorch_optimizer:Prodigy", 16, MORE, times=None, one_rate=True,
        given={"safeguard_warmup": True},
        note="Finds the learning rate itself; leave that at 1."),
    Row("ScheduleFreeAdamW", "pytorch_optimizer:ScheduleFreeAdamW", 8, MORE, averages=True,
        note="Averages its steps in place of a falling rate; set the schedule to constant."),
    Row("ScheduleFreeRAdam", "pytorch_optimizer:ScheduleFreeRAdam", 8, MORE, averages=True,
        note="As ScheduleFreeAdamW, with a warm-up of its own."),
    Row("ADOPT", "pytorch_optimizer:ADOPT", 8, MORE,
        note="As Adam, and converges whatever its beta2 is."),
    Row("Muon", "pytorch_optimizer:Muon", 4, MORE, matrices=True,
        given={"use_adjusted_lr": True},
        note="Changes each matrix evenly in all directions, as much as AdamW; AdamW elsewhere."),
)}


def state_bytes(name: str, shape: Shape) -> float:
    """Bytes the optimiser keeps for one trained tensor."""
    row, count = ROWS[name], math.prod(shape)
    if count < row.least:
        return count * row.small
    if row.matrices and not is_matrix(shape):
        return count * FULL_STATE
    held = count * row.state_bytes
    if row.factored and len(shape) > 1:
        return held + row.factored * 4 * (count / shape[-1] + count / shape[-2])
    return held + (4 * count if row.factored else 0)


def table_bytes(name: str, shape: Shape) -> int:
    """Bytes of the tables by which one tensor's moments of 8 bits are read; the optimiser has one
    for all, a state saved has them for each."""
    row = ROWS[name]
    return round(row.state_bytes) * TABLE if math.prod(shape) >= row.least > 0 else 0


def is_matrix(shape: Shape) -> bool:
    """Is there more than one row and more than one column, a kernel being part of a column?"""
    return len(shape) > 1 and 1 < shape[0] < math.prod(shape)


def smaller(name: str) -> str | None:
    """The optimiser of the least state that does as this one; None where there is none."""
    return ROWS[name].lean or None


def problems(run: Config) -> dict[str, str]:
    """{path: text} of settings that this optimiser cannot be used with."""
    found = {}
    row = ROWS.get(run.optimizer.name)
    if run.train.fused_backward:
        found |= _without_gradient(run)
    if row is None:
        return found
    if row.averages and run.train.ema:
        found["train.ema"] = (f"train.ema is {run.train.ema:g}, but {row.name} keeps a mean of its "
                              "own. Set train.ema to 0.")
    if row.averages and run.train.max_norm:
        found["train.max_norm"] = (f"train.max_norm would not hold for what {row.name} saves, a "
                                   "mean of its steps. Set train.max_norm to 0.")
    return found


def _without_gradient(run: Config) -> dict[str, str]:
    """{path: text} of settings that need the whole gradient, where there never is one."""
    train, row = run.train, ROWS.get(run.optimizer.name)
    off = "or turn the fused backward pass off."
    found = {path: f"{path} is {value:g}, but with {FUSED} {why}. Set {path} to {least}, {off}"
             for path, value, least, why in (
                 ("train.clip_norm", train.clip_norm, 0,
                  "each step is taken before the whole gradient's length is known"),
                 ("train.accumulate", train.accumulate, 1, "no gradient is kept to add up"),
                 ("train.split", train.split, 1, "no gradient is kept to add up"))
             if value != least}
    if train.precision == "fp16":
        found["train.precision"] = ("fp16 finds its scale by the whole gradient, and with "
                                    f"{FUSED} there is none. Choose bf16 or fp32, {off}")
    if row is not None and row.one_rate:
        found["optimizer.name"] = (f"{row.name} finds its rate by the whole gradient, and with "
                                   f"{FUSED} there is none. Choose another optimiser, {off}")
    return found


def warnings(run: Config) -> Iterator[Warned]:
    """What of the rates and their course this optimiser would not do as most expect."""
    row, own = ROWS[run.optimizer.name], run.optimizer
    if row.times is None and not 0.1 <= own.lr <= 10:
        yield Warned(f"{row.name} finds the learning rate itself and multiplies it with "
                     f"optimizer.lr, which is {own.lr:g}.", "Set it to 1.")
    if row.averages and own.schedule != "constant":
        yield Warned(f"{row.name} takes a mean in place of a falling rate; the schedule "
                     f"{own.schedule} lowers it besides.", "Set optimizer.schedule to constant.")
    others = [f"optimizer.{name}" for name in ("text_encoder_lr", "text_encoder_2_lr")
              if getattr(own, name) not in (None, 0, own.lr)]
    others += [f"optimizer.{name}" for name in ("plus_ratio", "text_encoder_plus_ratio")
               if getattr(own, name) not in (None, 1)]
    others += ["the rates in network.rules"] if any(
        "lr" in rule for rule in run.network.rules) else []
    if row.one_rate and others:
        yield Warned(f"{row.name} has one rate for everything, so {', '.join(others)} does "
                     "nothing.", "")
    elif run.network.text_encoder and (own.text_encoder_lr or 0) > own.lr:
        yield Warned(f"The text encoder learns faster than all else: its rate is "
                     f"{own.text_encoder_lr:g}, optimizer.lr {own.lr:g}.",
                     "Lower optimizer.text_encoder_lr; half of optimizer.lr is usual.")


def distance(optimizer: torch.optim.Optimizer) -> float:
    """What an optimiser that finds its rate multiplies the given one with; 1 for the others."""
    return float(optimizer.param_groups[0].get("d", 1.0))


def make(name: str, groups: Iterable[Mapping[str, Any]], weight_decay: float,
         args: Mapping[str, Any]) -> torch.optim.Optimizer:
    """The optimiser over parameter groups (each with its own lr); ConfigError for its `args`."""
    kind = load(name)
    _check_names(name, args, kind)
    row = ROWS[name]
    groups = [{"weight_decay": weight_decay, **group, "params": list(group["params"])}
              for group in groups]
    if row.matrices:
        groups = _by_matrix(groups)
    fast = {"fused": True} if _takes_fused(kind, groups, args) else {}
    try:
        return kind(groups, weight_decay=weight_decay, **fast, **{**row.given, **args})
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
        raise _missing(row) from None


def require(name: str) -> None:
    """MissingPackage where the optimiser's package is not installed; nothing is imported."""
    row = pick(ROWS, name, "optimizer.name")
    if importlib.util.find_spec(row.path.partition(":")[0].partition(".")[0]) is None:
        raise _missing(row)


def _missing(row: Row) -> MissingPackage:
    return MissingPackage(row.needs, f"Run: pip install {row.needs}, or choose AdamW.",
                          field="optimizer.name")


def _by_matrix(groups: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each group in two, as an optimiser for matrices wants them; empty ones left out."""
    parts = [{**group, "use_muon": wanted,
              "params": [p for p in group["params"] if is_matrix(tuple(p.shape)) is wanted]}
             for group in groups for wanted in (True, False)]
    return [part for part in parts if part["params"]]


def _takes_fused(kind: type, groups: Iterable[Mapping[str, Any]], args: Mapping[str, Any]) -> bool:
    """Can a step be one operation over all tensors, and does nobody ask for another way?"""
    if "fused" not in inspect.signature(kind).parameters or not FUSED_OR.isdisjoint(args):
        return False
    return all(tensor.device.type in FUSED_ON for group in groups for tensor in group["params"])


def _check_names(name: str, args: Mapping[str, Any], kind: type) -> None:
    known = tuple(p.name for p in inspect.signature(kind).parameters.values()
                  if p.kind is not p.VAR_KEYWORD and p.name not in ("params", *SETTINGS))
    found = {}
    for key in args:
        if key in SETTINGS:
            found[f"optimizer.args.{key}"] = f"{key} is a setting of its own: optimizer.{key}"
        elif key not in known:
            found[f"optimizer.args.{key}"] = (
                f"{name} has no argument {key}.{nearest(key, known)}")
    if found:
        raise ConfigError(found)
