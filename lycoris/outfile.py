"""A new adapter file in the making: its layers cast as they will be written and measured against
what was asked for, then written at once; never over its own source."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import adapterfile, algorithms, dialects, metadata, provenance, sources, tensorfile
from .adapter import Adapter
from .algorithms import Layer
from .assignments import Assignment
from .deltas import Change, Deltas
from .errors import ConfigError
from .families import Family
from .lowrank import Rules
from .progress import Progress
from .provenance import Deed
from .sources import Source

KEEP = "keep"
DTYPES = (KEEP, *tensorfile.DTYPES)
DIALECTS = (KEEP, "kohya", "lycoris", "diffusers", "onetrainer", "ai-toolkit")
# {who wrote a file: in what it is written again}; LoRAs with dotted paths in diffusers' keys.
AGAIN = {"ai-toolkit": "ai-toolkit", "OneTrainer": "onetrainer", "lycoris": "lycoris"}
DOTTED = ("diffusers", "PEFT", "bare paths")
_FLOATS = {name: dtype for dtype, name in tensorfile.NAMES.items() if dtype.is_floating_point}


@dataclass(frozen=True)
class Row:
    """One layer of the result. `norm` is of the dW that was asked for, `error` the share of it that
    the written numbers miss; None where it was not measured. `source` is what it was made from.
    """

    layer: str
    algorithm: str
    dim: int
    alpha: float | None
    parameters: int
    norm: float | None = None
    error: float | None = None
    source: str = ""

    def data(self) -> dict[str, Any]:
        found = asdict(self)
        source = found.pop("source")
        return {**found, "from": source}


@dataclass(frozen=True)
class Written:
    """An adapter file that a verb wrote; `error` is that of all layers together."""

    verb: str
    out: Path
    bytes: int
    dtype: str
    dialect: str
    rows: tuple[Row, ...]
    error: float | None
    notes: tuple[str, ...]

    @property
    def summary(self) -> str:
        """ "LoRA, dim 2 to 8, in 72 layers" """
        return f"{_summary(self.rows)} in {len(self.rows)} layers"

    def data(self) -> dict[str, Any]:
        return {"verb": self.verb, "out": str(self.out), "bytes": self.bytes, "dtype": self.dtype,
                "dialect": self.dialect, "summary": self.summary, "error": self.error,
                "parameters": sum(row.parameters for row in self.rows),
                "layers": [row.data() for row in self.rows], "notes": list(self.notes)}


@dataclass
class Draft:
    """Layers added one after the other; floats are cast to `dtype`, but for alpha."""

    dtype: torch.dtype
    groups: list[tuple[Layer, dict[str, Tensor]]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    _lost: list[tuple[float, float]] = field(default_factory=list)
    _biases: list[str] = field(default_factory=list)

    @torch.no_grad()
    def add(self, layer: Layer, group: Mapping[str, Tensor], wanted: Tensor | None = None,
            source: str = "") -> None:
        """Take over {suffix: tensor}; `wanted` is the dW it is to make, if that is to be
        measured."""
        stored = {suffix: tensor.float() if suffix == "alpha" else tensor.to(self.dtype)
                  if tensor.is_floating_point() else tensor for suffix, tensor in group.items()}
        stored = {suffix: tensor.detach().contiguous().clone()
                  for suffix, tensor in stored.items()}
        self.groups.append((layer, stored))
        norm = error = None
        if wanted is not None:
            norm = wanted.double().norm().item()
            lost = (made(layer, stored) - wanted).double().norm().item()
            error = lost / norm if norm else 0.0
            self._lost.append((lost, norm))
        name, dim = _kind(stored)
        alpha = stored["alpha"].item() if "alpha" in stored else None
        parameters = sum(t.numel() for suffix, t in stored.items() if suffix != "alpha")
        self.rows.append(Row(_full_name(layer), name, dim, alpha, parameters, norm, error, source))

    def add_lora(self, change: Change, rules: Rules, source: str) -> None:
        """Add a layer's change as a LoRA of what its rule keeps."""
        layer = change.layer
        rule = rules.conv if layer.is_spatial else rules.plain
        up, down = change.spectrum(rule).kept(rule)
        self.add(layer, lora_of(layer, up, down), change.delta(), source)
        self.miss_bias(layer, change.bias())

    def miss_bias(self, layer: Layer, shift: Tensor | None) -> None:
        """Remember a change of a layer's bias that the result cannot hold."""
        if shift is not None and shift.any():
            self._biases.append(layer.name)

    @property
    def error(self) -> float | None:
        """The relative Frobenius error of all measured layers together."""
        if not self._lost:
            return None
        lost, norms = (math.sqrt(sum(each**2 for each in column))
                       for column in zip(*self._lost, strict=True))
        return lost / norms if norms else 0.0

    def write(self, out: Path, deed: Deed, origins: Sequence[Mapping[str, str]],
              family: Family | None, dialect: str, progress: Progress) -> Written:
        """Write the file durably; ConfigError where nothing is in it."""
        tensors = keyed(self.groups, family, dialect)
        described = provenance.describe(out.stem, deed, self.groups, origins, family)
        self.finish(progress)
        adapterfile.write(out, tensors, None, metadata.with_hashes(described, tensors))
        return self.written(deed.verb, out, out.stat().st_size, dialect, progress)

    def finish(self, progress: Progress) -> None:
        """The last words before it is written, and the last moment to stop."""
        if not self.groups:
            raise ConfigError({"": "there is no layer to write; nothing was left of the adapter"})
        if self._biases:
            progress.warn(f"{len(self._biases)} layers change their bias as well, which a LoRA "
                          f"cannot: that is left out. The first is {self._biases[0]}.")
        progress.check()

    def written(self, verb: str, out: Path, size: int, dialect: str,
                progress: Progress) -> Written:
        return Written(verb, out, size, dtype_name(self.dtype), dialect, tuple(self.rows),
                       self.error, tuple(progress.notes))


def lora_of(layer: Layer, up: Tensor, down: Tensor) -> dict[str, Tensor]:
    """The tensors of a LoRA whose scale is 1: up (o, r) and down (r, i K) with up @ down = dW."""
    r, ones = up.shape[1], (1,) * len(layer.kernel)
    return {"lora_up.weight": up.reshape(layer.out, r, *ones),
            "lora_down.weight": down.reshape(r, *layer.shape[1:]), "alpha": torch.tensor(float(r))}


def full(delta: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
    return {"diff": delta} | ({} if bias is None else {"diff_b": bias})


@torch.no_grad()
def made(layer: Layer, stored: Mapping[str, Tensor]) -> Tensor:
    """dW in fp32 as a reader makes it of {suffix: tensor}; not for what reads the base's weight."""
    group = sources.sparse_rests({suffix: Source((suffix,), tuple(tensor.shape))
                                  for suffix, tensor in stored.items()})
    tensors = {suffix: source.tensor(stored).float() for suffix, source in group.items()}
    read = dialects.identify({suffix: tuple(tensor.shape) for suffix, tensor in tensors.items()})
    assert read is not None, sorted(tensors)
    kind, dim, options = read
    algorithm = kind(dim, None, options).with_facts(tensors)
    algorithm.fixed = {name: tuple(tensors[suffix].shape) for name, suffix in kind.keys.items()
                       if suffix in tensors}
    adapter = Adapter(Assignment(layer, "", algorithm))
    adapter.load_tensors(tensors)
    return adapter.scaled_delta(torch.zeros(()).expand(layer.shape)).view(layer.shape)


def keyed(groups: Sequence[tuple[Layer, Mapping[str, Tensor]]], family: Family | None,
          dialect: str) -> dict[str, Tensor]:
    """{key: tensor} of a file; without a family the layers' names are those of the source file."""
    if family is not None:
        return dialects.rewrite(groups, names_in(family), dialect)
    found: dict[str, Tensor] = {}
    for layer, group in groups:
        plain = "lora_up.weight" in group and not {"dora_scale", *sources.SPARSE} & set(group)
        dotted = "." in layer.name and dialects.dialect_of(layer.name) != "OneTrainer"
        words = "diffusers" if dotted and plain else "kohya"
        found |= dialects.rewrite([(layer, group)], lambda named, _: named.name, words)
    return found


def names_in(family: Family) -> Callable[[Layer, str], str]:
    """(layer, dialect) -> how its tensors' keys begin, in every dialect."""
    originals = family.other_paths(family.layers)

    def name(layer: Layer, dialect: str) -> str:
        if dialect not in family.original_prefixes:
            return family.key(layer, dialect)
        path = next(iter(originals.get(layer, ())), family.path_in_file(layer))
        return f"{family.original_prefixes[dialect][layer.part]}.{path}"

    return name


def dialect_for(asked: str, deltas: Sequence[Deltas], family: Family | None,
                groups: Sequence[tuple[Layer, Mapping[str, Tensor]]]) -> str:
    """The dialect to write in. "keep" is that of the first file where we have words for it, else
    kohya's; ConfigError where the names it needs are not known."""
    spoken = deltas[0].file.dialect
    if asked != KEEP:
        if family is None:
            raise ConfigError({"base": f"{asked}'s keys are made from the base's own layer names; "
                                       "give the base with --base"})
        return asked
    if family is None:
        return spoken
    for writer, again in AGAIN.items():
        if writer in spoken:
            return again
    if any(each in spoken for each in DOTTED) and all(
            "lora_up.weight" in group and not set(sources.SPARSE) & set(group)
            for _, group in groups):
        return "diffusers"
    return "kohya"


def place(out: str | Path, origins: Sequence[Path], bases: Sequence[Path | None],
          overwrite: bool) -> Path:
    """Where the file goes; ConfigError where it cannot: over what is read, or into a model."""
    path = Path(out).expanduser()
    refuse_inside(path, bases)
    if path.suffix != ".safetensors":
        raise ConfigError({"out": f"out is {out}; name a file that ends in .safetensors"})
    if any(path.resolve() == adapterfile.inside(origin).resolve() for origin in origins):
        raise ConfigError({"out": f"out is {out}, which is read as well; choose another name, so "
                                  "that what it was made from stays"})
    if path.is_dir():
        raise ConfigError({"out": f"out is {out}, which is a folder; give a file in it"})
    if path.exists() and not overwrite:
        raise ConfigError({"out": f"out is {out}, which exists already; choose another name, or "
                                  "say --overwrite"})
    return path.resolve()


def new_folder(out: str | Path, bases: Sequence[Path | None]) -> Path:
    """Where a folder goes; ConfigError where something is there already, or in a model."""
    path = Path(out).expanduser().resolve()
    refuse_inside(path, bases)
    if path.exists():
        raise ConfigError({"out": f"out is {out}, which exists already; name a new folder"})
    return path


def refuse_inside(out: Path, bases: Sequence[Path | None]) -> None:
    """ConfigError for a place in a base model's folder."""
    for base in bases:
        if base is not None and base.resolve() in (out.resolve(), *out.resolve().parents):
            raise ConfigError({"out": f"out is {out}, in the model {base.name}; choose a place "
                                      "outside of it"})


def dtype_of(asked: str, deltas: Sequence[Deltas]) -> torch.dtype:
    """The precision to write in; "keep" is that of most tensors of the first file, fp16 for
    types that other programs do not read."""
    if asked not in DTYPES:
        raise ConfigError({"dtype": f"there is no dtype {asked!r}; choose {', '.join(DTYPES)}"})
    if asked != KEEP:
        return tensorfile.DTYPES[asked]
    counts = Counter(dtype for key, (dtype, shape) in deltas[0].file.entries.items()
                     if shape and not key.endswith(".alpha"))
    return _FLOATS.get(counts.most_common(1)[0][0] if counts else "", torch.float16)


def dtype_name(dtype: torch.dtype) -> str:
    return next((name for name, each in tensorfile.DTYPES.items() if each == dtype),
                str(dtype).removeprefix("torch."))


def _kind(stored: Mapping[str, Tensor]) -> tuple[str, int]:
    read = dialects.identify({suffix: tuple(tensor.shape) for suffix, tensor in stored.items()})
    if read is None:
        return "lora with a sparse rest", stored["lora_down.weight"].shape[0]
    return read[0].name, read[1]


def _full_name(layer: Layer) -> str:
    return f"{layer.part}.{layer.name}" if layer.part else layer.name


def _summary(rows: Sequence[Row]) -> str:
    labels = algorithms.all_entries()
    dims: dict[str, set[int]] = {}
    for row in rows:
        dims.setdefault(row.algorithm, set()).add(row.dim)
    said = []
    for name, found in dims.items():
        entry = labels.get(name)
        text = (entry.label or "norm layers") if entry else name
        if entry is None or entry.scaled:
            text += f", dim {min(found)}" + (f" to {max(found)}" if len(found) > 1 else "")
        said.append(text)
    return " and ".join(said)
