"""The verb extract: what a fine-tuned model has more than its base, as an adapter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from . import lowrank, outfile, presets
from .algorithms import Layer, elements, factorization
from .errors import AdapterError, ConfigError, ModelFileError
from .families import Family, open_base
from .lowrank import Rule, Rules
from .outfile import Draft, Written
from .progress import Progress
from .provenance import Deed

ALGOS = ("lora", "lokr", "full")
INT16 = 2**15  # sides from here on need wider indices


@dataclass(frozen=True)
class Extract:
    """`algo` "lora" keeps of each layer what `rule` says, with `sparsity` also the largest
    (1 - sparsity) of the rest; "lokr" takes the nearest Kronecker product of `factor`, its large
    block whole unless a dim or another rule is given; "full" keeps all, biases and norms too.

    `preset` takes some of the layers only; a `conv_dim` of 0 leaves out convolutions larger than
    1x1. Layers of which no number differs by more than `min_diff` are left out.
    """

    base: Path
    tuned: Path
    out: str
    algo: str = "lora"
    rule: str = "dim"
    dim: int | None = None
    value: float | None = None
    conv_dim: int | None = None
    conv_value: float | None = None
    factor: int = -1
    sparsity: float | None = None
    preset: str = ""
    min_diff: float = 0.0
    dtype: str = "fp16"
    overwrite: bool = False


def run(asked: Extract, progress: Progress) -> Written:
    """Write the adapter. Raises ModelFileError where the two are not of one kind, and Stopped,
    having written nothing."""
    rules = _check(asked)
    out = outfile.place(asked.out, [], [asked.base, asked.tuned], asked.overwrite)
    family, tuned = open_base(asked.base), open_base(asked.tuned)
    pairs = _pairs(family, tuned)
    layers = family.layers
    if asked.preset:
        chosen = presets.find(asked.preset, type(family))
        layers = presets.select(type(family), layers, chosen).layers
    draft = Draft(outfile.dtype_of(asked.dtype, []))
    left = _Left()
    for layer in progress.over(layers, "extracting"):
        found = _difference(family, tuned, layer, pairs[layer])
        _layer(asked, rules, layer, found, draft, left)
    if not draft.rows:
        raise AdapterError(
            f"{tuned.called} and {family.called} do not differ in any of the {len(layers)} "
            "layers that were asked for.", "Choose another model or preset, or lower min_diff.")
    left.tell(progress, _elsewhere(family, tuned, progress))
    settings = {"algo": asked.algo, "rule": None if asked.algo == "full" else rules.text,
                "factor": asked.factor if asked.algo == "lokr" else None,
                "sparsity": asked.sparsity, "preset": asked.preset or None,
                "base": family.called}
    deed = Deed("extract", settings, [tuned.called])
    return draft.write(out, deed, [], family, "kohya", progress)


@dataclass
class _Left:
    """Changes that the result does not hold."""

    biases: int = 0
    norms: int = 0
    convolutions: int = 0

    def tell(self, progress: Progress, elsewhere: int) -> None:
        said = [f"{count} {what}" for count, what in (
            (self.biases, "biases"), (self.norms, "norm layers"),
            (self.convolutions, "convolutions"),
            (elsewhere, "tensors that no adapter holds, such as embeddings")) if count]
        if said:
            progress.warn(f"Left out, though they differ: {', '.join(said)}.")


def _check(asked: Extract) -> Rules:
    problems = {}
    if asked.algo not in ALGOS:
        problems["algo"] = f"algo is {asked.algo!r}; choose {', '.join(ALGOS)}"
    if asked.sparsity is not None and not (asked.algo == "lora" and 0 < asked.sparsity < 1):
        problems["sparsity"] = ("sparsity goes with lora and lies between 0 and 1: the share of "
                                "the rest that is dropped")
    if not asked.min_diff >= 0:
        problems["min_diff"] = f"min_diff is {asked.min_diff:g}, the least is 0"
    if asked.factor < 1 and asked.factor != -1:
        problems["factor"] = f"factor is {asked.factor}; give 1 or more, or -1 for the most even"
    if asked.dtype not in outfile.DTYPES or asked.dtype == outfile.KEEP:
        problems["dtype"] = f"dtype is {asked.dtype!r}; choose {', '.join(outfile.DTYPES[1:])}"
    if problems:
        raise ConfigError(problems)
    if asked.algo == "full" or (asked.algo == "lokr" and asked.rule == "dim" and not asked.dim):
        return Rules(Rule("lossless"), Rule("lossless"))
    dim = 16 if asked.rule == "dim" and asked.dim is None else asked.dim
    return Rules.of(asked.rule, dim, asked.value, asked.conv_dim or None, asked.conv_value)


def _pairs(family: Family, tuned: Family) -> dict[Layer, Layer]:
    """{layer of the base: the tuned model's}; ModelFileError where they do not match."""
    there = {(layer.part, layer.name): layer for layer in tuned.layers}
    found = {layer: there.get((layer.part, layer.name)) for layer in family.layers}
    wrong = [layer for layer, other in found.items() if other is None or (
        other.shape != layer.shape)]
    if wrong or type(family) is not type(tuned):
        first = f", the first is {wrong[0].part}.{wrong[0].name}" if wrong else ""
        raise ModelFileError(
            f"{tuned.called} was not made from {family.called}: {len(wrong)} of its "
            f"{len(family.layers)} layers are missing or of another shape{first}.",
            "Choose the base that it was fine-tuned from.")
    return {layer: other for layer, other in found.items() if other is not None}


def _difference(family: Family, tuned: Family, layer: Layer,
                other: Layer) -> tuple[Tensor, Tensor | None]:
    """(W' - W, b' - b) in fp32."""
    weight = tuned.weight(other).float() - family.weight(layer).float()
    before, after = family.bias(layer), tuned.bias(other)
    bias = None if before is None or after is None else after.float() - before.float()
    return weight, bias


def _layer(asked: Extract, rules: Rules, layer: Layer, found: tuple[Tensor, Tensor | None],
           draft: Draft, left: _Left) -> None:
    """Add the layer in the algorithm's form, or count what is not held of it."""
    weight, bias = found
    shifted = bias is not None and bool(bias.abs().amax() > asked.min_diff)
    changed = bool(weight.abs().amax() > asked.min_diff)
    if asked.algo == "full":
        if changed or shifted:
            names = ("w_norm", "b_norm") if layer.kind == "norm" else ("diff", "diff_b")
            group = dict(zip(names, found, strict=True))
            draft.add(layer, {suffix: t for suffix, t in group.items() if t is not None}, weight)
        return
    if layer.kind == "norm":
        left.norms += changed or shifted
        return
    left.biases += shifted
    if layer.is_spatial and asked.conv_dim == 0:
        left.convolutions += changed
    elif changed:
        make = _lokr if asked.algo == "lokr" else _lora
        draft.add(layer, make(asked, rules, layer, weight), weight)


def _lora(asked: Extract, rules: Rules, layer: Layer, delta: Tensor) -> dict[str, Tensor]:
    """The rule's LoRA, with its sparse rest; the difference itself where that is no larger."""
    rule = rules.conv if layer.is_spatial else rules.plain
    up, down = lowrank.spectrum(rule, lambda: delta).kept(rule)
    if up.numel() + down.numel() >= delta.numel():
        return outfile.full(delta, None)
    group = outfile.lora_of(layer, up, down)
    if asked.sparsity is None:
        return group
    dtype = outfile.dtype_of(asked.dtype, [])
    rest = delta.flatten(1) - up.to(dtype).float() @ down.to(dtype).float()
    return group | _sparse(rest, round((1 - asked.sparsity) * rest.numel()))


def _sparse(rest: Tensor, count: int) -> dict[str, Tensor]:
    """The `count` largest numbers of (o, i K) in the reference package's keys."""
    places = rest.flatten().abs().topk(max(1, count)).indices.sort().values
    values = rest.flatten()[places]
    indices = torch.stack([places // rest.shape[1], places % rest.shape[1]])
    integer = torch.int16 if max(rest.shape) < INT16 else torch.int32
    return {"bias_indices": indices.to(integer), "bias_values": values,
            "bias_size": torch.tensor(rest.shape, dtype=integer)}


def _lokr(asked: Extract, rules: Rules, layer: Layer, delta: Tensor) -> dict[str, Tensor]:
    """The nearest Kronecker product, its large block split where the rule lowers its rank."""
    outs, (in_m, in_n) = (factorization(side, asked.factor) for side in (layer.out, layer.inp))
    in_n *= elements(layer.kernel)
    w1, w2 = lowrank.nearest_kronecker(delta.flatten(1), outs, (in_m, in_n))
    rule = rules.conv if layer.is_spatial else rules.plain
    if rule.kind == "lossless":
        return _whole(layer, w1, w2)
    up, down = lowrank.spectrum(rule, lambda: w2).kept(rule)
    if up.numel() + down.numel() >= w2.numel():
        return _whole(layer, w1, w2)
    return {"lokr_w1": w1, "lokr_w2_a": up, "lokr_w2_b": down,
            "alpha": torch.tensor(float(up.shape[1]))}


def _whole(layer: Layer, w1: Tensor, w2: Tensor) -> dict[str, Tensor]:
    return {"lokr_w1": w1, "lokr_w2": w2.view(w2.shape[0], -1, *layer.kernel),
            "alpha": torch.tensor(1.0)}


def _elsewhere(family: Family, tuned: Family, progress: Progress) -> int:
    """How many tensors beside the layers' own differ."""
    count = 0
    for part, weights in family.weights.items():
        own = {f"{family.name_in_weights(layer)}.{leaf}" for layer in family.layers
               if layer.part == part for leaf in ("weight", "bias")}
        for name in progress.over([n for n in weights.entries if n not in own], "comparing"):
            other = next((n for n in tuned.weights[part].entries if n.endswith(name)
                          or name.endswith(n)), None)
            count += other is not None and not torch.equal(weights[name].float(), (
                tuned.weights[part][other].float()))
    return count
