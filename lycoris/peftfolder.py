"""A folder as PEFT saves an adapter: adapter_model.safetensors beside adapter_config.json.

    base_model.model.<path>.lora_A.weight       LORA
    base_model.model.<path>.hada_w1_a           LOHA
    base_model.model.<path>.lokr_w1             LOKR
    base_model.model.<path>.ia3_l               IA3

PEFT builds its layers from the config and then fills in the tensors, so that only what its own
rules make of (r, factor) can be written.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from . import adapterfile, dialects, durable, metadata, provenance
from .algorithms import Layer, Shape, factorization
from .errors import AdapterError
from .families import Family
from .outfile import Draft, Written
from .progress import Progress
from .provenance import Deed

Group = tuple[Layer, Mapping[str, Tensor]]
NAMES = {"lora": "LORA", "loha": "LOHA", "lokr": "LOKR", "ia3": "IA3"}
INSTEAD = "Convert it to LoRA with --algo lora, which PEFT always reads."


def write(out: Path, draft: Draft, family: Family, deed: Deed,
          origins: Sequence[Mapping[str, str]], progress: Progress) -> Written:
    """One folder, or one for each part of the model in it. AdapterError for what PEFT has no words
    for."""
    parts: dict[str, list[Group]] = {}
    for layer, group in draft.groups:
        parts.setdefault(layer.part, []).append((layer, group))
    ready = {part: (_tensors(groups), _config(groups)) for part, groups in parts.items()}
    described = provenance.describe(out.name, deed, draft.groups, origins, family)
    draft.finish(progress)
    size = 0
    with durable.whole_folder(out) as temporary:
        for part, (tensors, config) in ready.items():
            folder = temporary / part if len(ready) > 1 else temporary
            said = {"format": "pt", **metadata.with_hashes(described, tensors)}
            file = adapterfile.write(folder / adapterfile.PEFT_FILE, tensors, None, said)
            text = json.dumps({**config, "base_model_name_or_path": family.called}, indent=2)
            durable.write_text(folder / adapterfile.PEFT_CONFIG, text)
            size += file.stat().st_size + len(text)
    return draft.written(deed.verb, out, size, "peft", progress)


def _tensors(groups: Sequence[Group]) -> dict[str, Tensor]:
    found = {}
    for layer, group in groups:
        words = dict(group)
        if "lora_up.weight" in group:  # the scale is in the config, so the alpha here is the dim
            plain = {s: t for s, t in group.items() if s != "alpha"}
            words = dialects.rewrite([(layer, plain)], lambda named, _: "x", "diffusers")
            words = {key.removeprefix("x."): tensor for key, tensor in words.items()}
        elif "on_input" in group:
            words = {"ia3_l": _multipliers(layer, group)}
        found |= {f"base_model.model.{layer.name}.{suffix}": tensor
                  for suffix, tensor in words.items() if suffix != "alpha"}
    return found


def _config(groups: Sequence[Group]) -> dict[str, Any]:
    """The adapter_config.json of one part."""
    read = {layer: dialects.identify({suffix: tuple(tensor.shape)
                                      for suffix, tensor in group.items()})
            for layer, group in groups}
    kinds = {kind[0].name if kind else "a LoRA with a sparse rest" for kind in read.values()}
    if len(kinds) > 1 or not kinds <= set(NAMES):
        raise AdapterError(f"PEFT holds one of {', '.join(NAMES)} in a folder, and this adapter is "
                           f"{' and '.join(sorted(kinds))}.", INSTEAD)
    (algo,) = kinds
    if algo == "ia3":
        return _ia3(groups)
    ranks, alphas = {}, {}
    for layer, group in groups:
        kind = read[layer]
        assert kind is not None
        ranks[layer.name] = _rank(group, kind[1])
        alphas[layer.name] = group["alpha"].item() if "alpha" in group and not (
            _both_full(group)) else float(ranks[layer.name])
    r, rank_pattern = _common(ranks)
    alpha, alpha_pattern = _common(alphas)
    config = {"peft_type": NAMES[algo], "r": r, "rank_pattern": rank_pattern,
              "alpha_pattern": alpha_pattern, "target_modules": sorted(ranks),
              "inference_mode": True, "task_type": None}
    own: Mapping[str, Callable[[], dict[str, Any]]] = {
        "lora": lambda: {"lora_alpha": alpha, **_lora(groups)},
        "loha": lambda: {"alpha": alpha, **_loha(groups)},
        "lokr": lambda: {"alpha": alpha, **_lokr(groups, ranks)}}
    return config | own[algo]()


def _ia3(groups: Sequence[Group]) -> dict[str, Any]:
    inputs = sorted(layer.name for layer, group in groups if group["on_input"])
    return {"peft_type": NAMES["ia3"], "target_modules": sorted(layer.name for layer, _ in groups),
            "feedforward_modules": inputs, "fan_in_fan_out": False, "inference_mode": True,
            "task_type": None}


def _multipliers(layer: Layer, group: Mapping[str, Tensor]) -> Tensor:
    """1 + w in fp32, as small steps from 1 are lost in half precision: (1, i) on the input, (o, 1)
    on the output, (1, c, 1, ..) of a convolution. AdapterError where the layer has a bias that PEFT
    would scale as well."""
    on_input = bool(group["on_input"])
    if layer.bias and not on_input:
        raise AdapterError(f"PEFT's (IA)^3 scales the bias of {layer.name} too, and this adapter "
                           "leaves it as it is.", INSTEAD, keys=[layer.name])
    ones = (1,) * len(layer.kernel)
    sides = (1, -1, *ones) if ones or on_input else (-1, 1)
    return (1 + group["weight"].float()).reshape(sides)


def _lora(groups: Sequence[Group]) -> dict[str, Any]:
    dora = {"dora_scale" in group for _, group in groups}
    if len(dora) > 1:
        raise AdapterError("PEFT turns DoRA on for all layers or for none, and this adapter has it "
                           "on some.", INSTEAD)
    return {"use_dora": dora.pop(), "use_rslora": False, "lora_dropout": 0.0,
            "fan_in_fan_out": False, "bias": "none"}


def _loha(groups: Sequence[Group]) -> dict[str, Any]:
    _refuse_dora(groups)
    return {"use_effective_conv2d": _tucker(groups, "hada_t1")}


def _lokr(groups: Sequence[Group], ranks: Mapping[str, int]) -> dict[str, Any]:
    """The one factor from which PEFT makes every layer's blocks."""
    _refuse_dora(groups)
    both = any("lokr_w1_a" in group for _, group in groups)
    tucker = _tucker(groups, "lokr_t2")
    sides = {side for _, group in groups for side in _small(group)}
    for factor in (-1, *sorted(sides)):
        if all(_peft_shapes(layer, factor, ranks[layer.name], both, tucker)
               == {suffix: tuple(t.shape) for suffix, t in group.items() if suffix != "alpha"}
               for layer, group in groups):
            return {"decompose_factor": factor, "decompose_both": both,
                    "use_effective_conv2d": tucker}
    raise AdapterError("PEFT makes all LoKr layers with one factor, and there is none that gives "
                       "this adapter's blocks.", INSTEAD)


def _peft_shapes(layer: Layer, factor: int, r: int, both: bool, tucker: bool) -> dict[str, Shape]:
    """{suffix: shape} of the LoKr that PEFT 0.21 builds for a layer."""
    (out_l, out_k), (in_m, in_n) = (
        (factor, side // factor) if factor > 0 and side % factor == 0
        else factorization(side, factor) for side in (layer.out, layer.inp))
    found: dict[str, Shape] = {}
    if both and r < max(out_l, in_m) / 2:
        found |= {"lokr_w1_a": (out_l, r), "lokr_w1_b": (r, in_m)}
    else:
        found["lokr_w1"] = (out_l, in_m)
    if r >= max(out_k, in_n) / 2:
        found["lokr_w2"] = (out_k, in_n, *layer.kernel)
    elif tucker and layer.is_spatial:
        found |= {"lokr_t2": (r, r, *layer.kernel), "lokr_w2_a": (r, out_k), "lokr_w2_b": (r, in_n)}
    else:
        found |= {"lokr_w2_a": (out_k, r), "lokr_w2_b": (r, layer.fan_in // in_m)}
    return found


def _small(group: Mapping[str, Tensor]) -> tuple[int, int]:
    if "lokr_w1" in group:
        return group["lokr_w1"].shape[0], group["lokr_w1"].shape[1]
    return group["lokr_w1_a"].shape[0], group["lokr_w1_b"].shape[1]


def _both_full(group: Mapping[str, Tensor]) -> bool:
    return {"lokr_w1", "lokr_w2"} <= set(group)


def _rank(group: Mapping[str, Tensor], dim: int) -> int:
    """PEFT keeps LoKr's large block whole from half its longer side on."""
    return max(group["lokr_w2"].shape[:2]) if _both_full(group) else dim


def _tucker(groups: Sequence[Group], suffix: str) -> bool:
    """Are the larger convolutions split? PEFT splits all or none."""
    found = {suffix in group for layer, group in groups if layer.is_spatial}
    if len(found) > 1:
        raise AdapterError("PEFT has Tucker on all convolutions or on none, and this adapter has "
                           "it on some.", INSTEAD)
    return found == {True}


def _refuse_dora(groups: Sequence[Group]) -> None:
    if any("dora_scale" in group for _, group in groups):
        raise AdapterError("PEFT knows DoRA on LoRA only.", INSTEAD)


def _common(values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """(the most frequent value, {path as a pattern: value} of the others)"""
    usual = Counter(values.values()).most_common(1)[0][0]
    return usual, {re.escape(path): value for path, value in values.items() if value != usual}
