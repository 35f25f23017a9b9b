"""The tools' own settings, each once, and the command line that they make.

A tool is a frozen dataclass of settings; what it works on (adapters, a tuned model) comes beside
it, in a `Task`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from lycoris import hub
from lycoris.contestants import Contestant
from lycoris.errors import ConfigError
from lycoris.knobs import Knob
from lycoris.settings.model import DTYPES

KEPT_DTYPES = ("keep", *DTYPES)
# Rules that keep what a value says of the singular values, and the value that stands for empty.
VALUES = {"sv_fro": 0.99, "sv_cumulative": 0.9, "sv_ratio": 20.0, "threshold": 0.05}
BY_SVD = ("dim", *VALUES)
BLOCKS = {"text_encoder": "text_encoder*", "down": "unet.down_blocks.*", "mid": "unet.mid_block.*",
          "up": "unet.up_blocks.*"}
OUT = Annotated[str, Knob("A name, or a whole path; empty: made from what it is.", label="Save as",
                          none="automatic")]


@dataclass(frozen=True)
class Task:
    """What a tool is to work on. `facts` are contestants.facts of each adapter; `base` is the model
    in the header, None where it cannot be used."""

    adapters: tuple[Contestant, ...] = ()
    facts: tuple[Mapping[str, Any], ...] = ()
    base: Path | None = None
    tuned: Path | None = None

    @property
    def names(self) -> list[str]:
        return [adapter.name for adapter in self.adapters]

    @property
    def dim(self) -> int:
        """The largest dim of the adapters; 0 where none has one."""
        return max((fact["dim"] for fact in self.facts), default=0)

    @property
    def fitting_base(self) -> list[str]:
        """`--base` where all adapters fit it at least partly: for others it is only in the way."""
        if self.base is None or any(fact["fits"] is None for fact in self.facts):
            return []
        return ["--base", str(self.base)]

    def needed_base(self) -> list[str]:
        if self.base is None:
            raise ConfigError({"": "the base model in the header cannot be used; choose another"})
        return ["--base", str(self.base)]


@dataclass(frozen=True)
class Inspect:
    title: ClassVar[str] = "Inspect"

    def action(self, task: Task) -> str:
        """What its button says."""
        return "Inspect"

    def words(self, task: Task) -> list[str]:
        """Its command line, without where to write."""
        return ["inspect", _only(task), *task.fitting_base]


@dataclass(frozen=True)
class Resize:
    title: ClassVar[str] = "Resize"
    rule: Annotated[str, Knob("What is kept of each layer.", choices=(*BY_SVD[:1], "first",
                                                                      *BY_SVD[1:]))] = "dim"
    dim: Annotated[int | None, Knob("Empty: half of a LoRA's own; one as large as a LoHa.", 1, 4096,
                                    none="half")] = None
    value: Annotated[float | None, Knob("", 0, 1_000_000, none="usual")] = None
    conv_dim: Annotated[int | None, Knob("Of convolutions larger than 1x1.", 1, 4096,
                                         none="same")] = None
    conv_value: Annotated[float | None, Knob("Of convolutions larger than 1x1.", 0, 1_000_000,
                                             none="same", label="Value of convolutions")] = None
    dtype: Annotated[str, Knob("Precision of the new file.", choices=KEPT_DTYPES,
                               label="Precision of the file")] = "keep"
    out: OUT = ""

    def to_dim(self, task: Task) -> int | None:
        """The dim that an empty field stands for, where the rule needs one."""
        if self.dim is not None or self.rule in VALUES:
            return self.dim
        kinds = {kind for fact in task.facts for kind in fact["algorithms"]} - {"norm"}
        if kinds <= {"lora", "dylora"}:
            return max(1, task.dim // 2)
        return 2 * task.dim if kinds == {"loha"} else task.dim or 8

    def action(self, task: Task) -> str:
        dim = self.to_dim(task)
        if self.rule == "first":
            return f"Cut to the first {dim} ranks"
        if self.rule == "dim":
            return f"Resize to dim {dim}"
        return f"Resize by {_rule_in_words(self.rule, self.value)}"

    def name(self, task: Task) -> str:
        stem, dim = task.names[0], self.to_dim(task)
        return f"{stem}-{self.rule}-{_value(self):g}" if self.rule in VALUES else f"{stem}-dim{dim}"

    def words(self, task: Task) -> list[str]:
        return ["resize", _only(task), *task.fitting_base, *_cut(self, self.to_dim(task)),
                "--dtype", self.dtype]


@dataclass(frozen=True)
class Convert:
    title: ClassVar[str] = "Convert"
    dialect: Annotated[str, Knob("What the tensors are called; other keys need the base.",
                                 choices=("keep", "kohya", "lycoris", "diffusers", "onetrainer",
                                          "ai-toolkit", "peft"),
                                 label="Keys")] = "keep"
    algo: Annotated[str, Knob("For programs that do not know the algorithm.",
                              choices=("keep", "lora", "full"), label="Algorithm")] = "keep"
    rule: Annotated[str, Knob("How much of each layer becomes LoRA.",
                              choices=("lossless", *BY_SVD))] = "lossless"
    dim: Annotated[int | None, Knob("Rank of the LoRA.", 1, 4096, none="as it is")] = None
    value: Annotated[float | None, Knob("", 0, 1_000_000, none="usual")] = None
    conv_dim: Annotated[int | None, Knob("Of convolutions larger than 1x1.", 1, 4096,
                                         none="same")] = None
    conv_value: Annotated[float | None, Knob("Of convolutions larger than 1x1.", 0, 1_000_000,
                                             none="same", label="Value of convolutions")] = None
    dtype: Annotated[str, Knob("Precision of the new file.", choices=KEPT_DTYPES,
                               label="Precision of the file")] = "keep"
    out: OUT = ""

    def action(self, task: Task) -> str:
        algo = {"lora": " to LoRA", "full": " to Full"}.get(self.algo, "")
        spelled = {"onetrainer": "OneTrainer"}.get(self.dialect, self.dialect)
        keys = "" if self.dialect == "keep" else f" to {spelled} keys"
        return "Convert" + " and".join(part for part in (algo, keys) if part)

    def name(self, task: Task) -> str:
        parts = [part for part in (self.algo, self.dialect) if part != "keep"]
        return "-".join([task.names[0], *(parts or [self.dtype])])

    @property
    def is_folder(self) -> bool:
        return self.dialect == "peft"

    def words(self, task: Task) -> list[str]:
        if (self.dialect, self.algo, self.dtype) == ("keep", "keep", "keep"):
            raise ConfigError({"dialect": "nothing would change; choose other keys, another "
                                          "algorithm or another precision"})
        base = task.fitting_base if self.dialect == "keep" else task.needed_base()
        dim = self.dim or (task.dim or 16 if self.rule == "dim" else None)
        cut = _cut(self, dim) if self.algo == "lora" else []
        return ["convert", _only(task), "--dialect", self.dialect, "--algo", self.algo, *cut, *base,
                "--dtype", self.dtype]


@dataclass(frozen=True)
class Merge:
    title: ClassVar[str] = "Merge"
    into: Annotated[str, Knob("A whole model that needs no adapter, or one adapter out of all.",
                              choices=("model", "exact", "lora", "full"))] = "model"
    text_encoder: Annotated[float, Knob("", -100, 100)] = 1.0
    down: Annotated[float, Knob("", -100, 100, label="UNet down")] = 1.0
    mid: Annotated[float, Knob("", -100, 100, label="UNet mid")] = 1.0
    up: Annotated[float, Knob("", -100, 100, label="UNet up")] = 1.0
    block: Annotated[tuple[str, ...], Knob(
        "One a line, the first that fits a layer counts: unet.*.attn2.* = 0.5; with 2: in front "
        "for the second adapter only.", label="Single layers")] = ()
    rule: Annotated[str, Knob("How much of each layer is kept.", choices=BY_SVD)] = "dim"
    dim: Annotated[int | None, Knob("Empty: the sum of theirs.", 1, 4096, none="sum")] = None
    value: Annotated[float | None, Knob("", 0, 1_000_000, none="usual")] = None
    dtype: Annotated[str, Knob("Precision of the new file.", choices=KEPT_DTYPES,
                               label="Precision of the file")] = "keep"
    out: OUT = ""

    def action(self, task: Task) -> str:
        return "Merge into the base" if self.into == "model" else "Merge into one adapter"

    def name(self, task: Task) -> str:
        adapters = "+".join(task.names[:3])
        if not (self.is_folder and task.base):
            return adapters
        return f"{hub.called(task.base).rpartition('/')[2]}+{adapters}"

    @property
    def is_folder(self) -> bool:
        return self.into == "model"

    def words(self, task: Task) -> list[str]:
        if not task.adapters:
            raise ConfigError({"adapters": "choose at least one adapter"})
        if not self.is_folder and len(task.adapters) < 2:
            raise ConfigError({"adapters": "choose at least two adapters, or merge into the base"})
        takers = [f"{each.path}:{each.weight:g}" for each in task.adapters]
        base = task.needed_base() if self.is_folder else task.fitting_base
        total = sum(fact["dim"] for fact in task.facts) or 16
        cut = _cut(self, self.dim or (total if self.rule == "dim" else None)
                   ) if self.into == "lora" else []
        return ["merge", *takers, "--into", self.into, *base, *cut, *self._blocks(), "--dtype",
                self.dtype]

    def _blocks(self) -> list[str]:
        found = [_factor(line) for line in self.block if line.strip()]
        found += [f"{pattern}={getattr(self, name):g}" for name, pattern in BLOCKS.items()
                  if getattr(self, name) != 1]
        return [word for text in found for word in ("--block", text)]


@dataclass(frozen=True)
class Extract:
    title: ClassVar[str] = "Extract"
    algo: Annotated[str, Knob("What the difference is written down as.",
                              choices=("lora", "lokr", "full"), label="Algorithm")] = "lora"
    rule: Annotated[str, Knob("How much of each layer is kept.", choices=BY_SVD)] = "dim"
    dim: Annotated[int | None, Knob("LoKr: empty keeps its large block whole.", 1, 4096,
                                    none="16")] = None
    value: Annotated[float | None, Knob("", 0, 1_000_000, none="usual")] = None
    conv_dim: Annotated[int | None, Knob("Of convolutions larger than 1x1; 0 leaves them out.", 0,
                                         4096, none="same")] = None
    conv_value: Annotated[float | None, Knob("Of convolutions larger than 1x1.", 0, 1_000_000,
                                             none="same", label="Value of convolutions")] = None
    factor: Annotated[int, Knob("LoKr: size of the small block; -1 takes the most even split.", -1,
                                4096)] = -1
    sparsity: Annotated[float | None, Knob(
        "LoRA: what it leaves is kept too where it is largest; 0.98 keeps 2 % of it.", 0, 1,
        none="off")] = None
    preset: Annotated[str, Knob("Which layers it gets.", catalogue="presets", file=True,
                                label="Layers")] = "full"
    min_diff: Annotated[float | None, Knob("Layers that differ by less are left out.", 0, 1000,
                                           none="off", label="Least difference")] = None
    dtype: Annotated[str, Knob("Precision of the new file.", choices=DTYPES,
                               label="Precision of the file")] = "fp16"
    out: OUT = ""

    def action(self, task: Task) -> str:
        label = {"lora": "LoRA", "lokr": "LoKr"}.get(self.algo)
        if label is None:
            return "Extract the whole difference"
        if self.rule in VALUES:
            return f"Extract a {label} by {_rule_in_words(self.rule, self.value)}"
        dim = self.dim or (16 if self.algo == "lora" else None)
        return f"Extract a {label}" + (f" of dim {dim}" if dim else "")

    def name(self, task: Task) -> str:
        tuned = task.tuned.name.removesuffix(".safetensors") if task.tuned else "model"
        return f"{tuned}-{self.algo}"

    def words(self, task: Task) -> list[str]:
        if task.tuned is None:
            raise ConfigError({"tuned": "choose the tuned model"})
        found = ["extract", *task.needed_base(), "--tuned", str(task.tuned), "--algo", self.algo,
                 "--preset", self.preset, "--dtype", self.dtype]
        if self.algo != "full":
            found += _cut(self, self.dim)
        if self.algo == "lokr":
            found += ["--factor", str(self.factor)]
        for word, value in (("--sparsity", self.sparsity if self.algo == "lora" else None),
                            ("--min-diff", self.min_diff)):
            found += [] if value is None else [word, f"{value:g}"]
        return found


TOOLS: dict[str, type[Any]] = {
    kind.title.lower(): kind for kind in (Inspect, Resize, Convert, Merge, Extract)}


def place_for(settings: Any, task: Task, adapters: Path, models: Path) -> Path | None:
    """Where the tool is to write: what was asked for, or a free name of its own; None for a tool
    that writes nothing. ConfigError where something is there already."""
    if isinstance(settings, Inspect):
        return None
    folder = getattr(settings, "is_folder", False)
    home = models if isinstance(settings, Merge) and folder else adapters
    ending = "" if folder else ".safetensors"
    if asked := settings.out.strip():
        given = Path(asked).expanduser()
        if not given.is_absolute() and given.name != asked:  # from which folder, nobody can see
            raise ConfigError({"out": f"{asked!r} is neither a name nor a whole path; write a "
                                      f"name, which goes to {home}, or a path from its root on"})
        path = home / given
        path = path if path.name.endswith(ending) else path.with_name(path.name + ending)
        if path.exists():
            raise ConfigError({"out": f"there is already {path}; choose another name"})
        return path
    stem = re.sub(r"[^\w.+-]+", "-", settings.name(task)).strip("-.")[:100]
    path, number = home / f"{stem}{ending}", 1
    while path.exists():
        number += 1
        path = home / f"{stem}-{number}{ending}"
    return path


def _only(task: Task) -> str:
    if len(task.adapters) != 1:
        raise ConfigError({"adapter": "choose an adapter"})
    return str(task.adapters[0].path)


def _value(settings: Any) -> float:
    return VALUES[settings.rule] if settings.value is None else settings.value


def _rule_in_words(rule: str, value: float | None) -> str:
    value = VALUES[rule] if value is None else value
    return {"sv_fro": f"{100 * value:g} % of the norm",
            "sv_cumulative": f"{100 * value:g} % of the singular values",
            "sv_ratio": f"singular values above 1/{value:g} of the largest",
            "threshold": f"singular values above {value:g}"}[rule]


def _cut(settings: Any, dim: int | None) -> list[str]:
    """The words of a rule with its dim and value."""
    found = ["--rule", settings.rule]
    if settings.rule in VALUES:
        found += ["--value", f"{_value(settings):g}"]
    elif settings.rule == "lossless":
        return found
    pairs: Sequence[tuple[str, Any]] = (
        ("--dim", dim), ("--conv-dim", getattr(settings, "conv_dim", None)),
        ("--conv-value", getattr(settings, "conv_value", None)
         if settings.rule in VALUES else None))
    for word, value in pairs:
        found += [] if value is None else [word, f"{value:g}"]
    return found


def _factor(line: str) -> str:
    """One line "pattern = factor" as the command line writes it."""
    pattern, equals, factor = line.rpartition("=")
    try:
        return f"{pattern.strip()}={float(factor):g}" if equals and pattern.strip() else _no(line)
    except ValueError:
        return _no(line)


def _no(line: str) -> str:
    raise ConfigError({"block": f"{line!r} is no rule; write e.g. unet.up_blocks.* = 0.5"})
