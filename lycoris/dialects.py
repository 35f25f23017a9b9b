"""The ecosystem's ways to name an adapter's tensors, translated into one, and back.

A file's tensors become groups, one for each layer, whose members have the kohya/LyCORIS suffixes
that `Algorithm.keys` name. What the tensors must go through for that is in `sources`.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import algorithms, sources
from .algorithms import Algorithm, Layer, Shape, elements
from .errors import AdapterError
from .sources import Group, Source
from .tensorfile import Entries

# How other programs end their keys, and what that is here.
ENDINGS = {
    ".alpha": "alpha", ".scale": "scale", ".dora_scale": "dora_scale",
    ".lora_A.weight": "lora_down.weight", ".lora_B.weight": "lora_up.weight",
    ".lora_A.bias": "lora_down.bias", ".lora_B.bias": "lora_up.bias",
    ".lora.down.weight": "lora_down.weight", ".lora.up.weight": "lora_up.weight",
    "_lora.down.weight": "lora_down.weight", "_lora.up.weight": "lora_up.weight",
    ".lora_linear_layer.down.weight": "lora_down.weight",
    ".lora_linear_layer.up.weight": "lora_up.weight",
    ".lora_magnitude_vector": "magnitude", ".lora_magnitude_vector.weight": "magnitude",
    ".oft_R.weight": "oft_R.weight", ".ia3_l": "ia3_l",  # PEFT's own
    ".oft_diag": "oft_diag", **{f".{suffix}": suffix for suffix in sources.SPARSE}}
# PEFT writes the adapter's own name ("default") into the keys of a live model.
_PEFT_NAME = re.compile(
    r"(\.(?:lora_[AB]|lora_magnitude_vector|(?:hada|lokr)_[wt][12](?:_[ab])?))\.(?!weight$|bias$)"
    r"[^.]+(?=$|\.weight$|\.bias$)")
# {who writes so: how its groups' names begin}; the first that fits.
DIALECTS = {
    "lycoris wrapper": r"lycoris_",
    "kohya": r"lora_(unet|te\d?)_",
    "OneTrainer": r"lora_(unet|te\d?|transformer|prior_unet|prior_te)[._]|clip_[lg]\."
                  r"|unet\.(input_blocks|middle_block|output_blocks|time_embed|out|label_emb)\.",
    "diffusers": r"(unet|transformer|text_encoder(_\d)?)\.",
    "PEFT": r"base_model\.model\.",
    "ai-toolkit": r"(diffusion_model|text_encoders)\."}
# {what a file was made for: names that only it has}, as `canonical` spells them.
MODELS = {
    "Stable Cascade": r"lora_prior_",
    "Stable Diffusion 3": r"(.*_)?joint_blocks_\d",
    "Flux": r"(.*_)?(double_blocks|single_blocks|single_transformer_blocks)_\d",
    "SDXL": r"(lora_te2|text_encoder_2|clip_g)_|.*_transformer_blocks_[1-9]"
            r"|(.*_)?(add_embedding|label_emb)_",
    "a diffusion transformer": r"(lora_)?transformer_|(lora_unet|lycoris|diffusion_model)_"
                               r"(transformer_)?(blocks|layers)_\d"}
# {type: name of its alpha}
PEFT_TYPES = {"LORA": "lora_alpha", "LOHA": "alpha", "LOKR": "alpha", "IA3": ""}
DIFFUSERS_CONFIG = "lora_adapter_metadata"  # diffusers' place for PEFT's config
SCALARS = ("alpha", "on_input")
# What an algorithm's arithmetic over shapes raises for sides that nothing has.
MISSHAPEN = (IndexError, KeyError, TypeError, ValueError, ZeroDivisionError)


@dataclass(frozen=True)
class Reading:
    """What a file holds: {name as written: group}, {dialect: its groups}, {key: why it is left
    out}, the keys that are no adapter's, and the groups that are meant for a layer's bias too."""

    groups: Mapping[str, Group]
    dialects: Mapping[str, int]
    ignored: Mapping[str, str]
    unread: tuple[str, ...]
    biased: frozenset[str] = frozenset()


def translate(entries: Entries, metadata: Mapping[str, str],
              config: Mapping[str, Any] | None = None) -> Reading:
    """Sort a file's entries into groups. `config` is the adapter_config.json beside a PEFT file.

    AdapterError where the file could mean two things, or what is not read.
    """
    written, ignored, unread = _sorted_keys(entries)
    if config is None and DIFFUSERS_CONFIG in metadata:
        config = _parsed(metadata[DIFFUSERS_CONFIG])
    _refuse_other_peft(config or {})
    old = _old_gloras(written)
    groups: dict[str, Group] = {}
    counts: dict[str, int] = {}
    biased: set[str] = set()
    for name, group in written.items():
        group = sources.sparse_rests(sources.rotations(sources.lengths(group)))
        group = sources.turned_glora(group) if name in old else group
        if "ia3_l" in group:
            group = sources.factors(group, _is_input(name, group["ia3_l"].shape, config))
            biased |= set() if group["on_input"].tensor({}) else {name}
        group = _with_alpha(name, group, config)
        groups[name] = {
            suffix: source.then(sources.same, ()) if suffix in SCALARS else source
            for suffix, source in group.items()}
        dialect = dialect_of(name)
        counts[dialect] = counts.get(dialect, 0) + 1
    return Reading(groups, counts, ignored, tuple(unread), frozenset(biased))


def dialect_of(name: str) -> str:
    """Who writes groups' names like this one."""
    return next((dialect for dialect, start in DIALECTS.items() if re.match(start, name)),
                "bare paths")


def canonical(name: str) -> str:
    """A group's name as `Family.aliases` spells names: dots as underscores, without what PEFT puts
    before the path and old diffusers' attention processors put into it."""
    name = name.removeprefix("base_model.model.").replace(".processor.to_", ".to_")
    name = re.sub(r"\.self_attn\.to_([qkv]|out)$", r".self_attn.\1_proj", name)
    return re.sub(r"\.to_out$", ".to_out.0", name).replace(".", "_")


def made_for(names: Iterable[str]) -> str:
    """The kind of model that groups of these names are for; empty where nothing tells."""
    spelled = [canonical(name) for name in names]
    return next((model for model, pattern in MODELS.items()
                 if any(re.match(pattern, name) for name in spelled)), "")


def identify(found: Mapping[str, Shape]) -> tuple[type[Algorithm], int, Any] | None:
    """(algorithm, dim, options) of one group's {suffix: shape}; None where it is nobody's."""
    own = {suffix: shape for suffix, shape in found.items()
           if suffix not in ("alpha", "dora_scale")}
    for entry in algorithms.all_entries().values():
        try:
            read = entry.read(own) if own else None
        except MISSHAPEN:
            continue
        if read is not None and read[0] > 0:
            return entry, *read
    return None


def lacking(found: Mapping[str, Shape]) -> tuple[str, ...]:
    """The fewest suffixes, at most three, with which the group would be an algorithm's; those that
    are named like ones it has come first (lokr_w2_b beside lokr_w2_a)."""
    own = set(found) - {"alpha", "dora_scale"}

    def stranger(key: str) -> int:
        return -max(len([*itertools.takewhile(lambda pair: pair[0] == pair[1],
                                              zip(key, other, strict=False))]) for other in own)

    for count in (1, 2, 3):
        for entry in algorithms.all_entries().values():
            keys = list(entry.keys.values())
            if not own or not own <= set(keys):
                continue
            absent = sorted((key for key in keys if key not in own), key=stranger)
            for more in itertools.combinations(absent, count):
                if any(identify({**found, **dict.fromkeys(more, (1,) * sides)})
                       for sides in (2, 3, 4)):
                    return more
    return ()


def _sorted_keys(entries: Entries) -> tuple[dict[str, Group], dict[str, str], list[str]]:
    """({name: group as written}, {ignored key: why}, unread keys)."""
    own = {f".{suffix}": suffix for entry in algorithms.all_entries().values()
           for suffix in entry.keys.values()}
    endings = sorted((ENDINGS | own).items(), key=lambda item: -len(item[0]))
    groups: dict[str, dict[str, Source]] = {}
    ignored: dict[str, str] = {}
    unread: list[str] = []
    for key, (_, shape) in entries.items():
        if key.startswith("bundle_emb."):
            ignored[key] = "a textual inversion, which is no adapter"
        elif (split := _split(key, endings)) is None:
            unread.append(key)
        else:
            name, suffix = split
            group = groups.setdefault(name, {})
            if suffix in group:
                raise AdapterError(
                    f"{name} has two tensors that could be its {suffix}: {group[suffix].keys[0]} "
                    f"and {key}.", "Remove the one that is not meant.",
                    keys=[group[suffix].keys[0], key])
            group[suffix] = Source((key,), tuple(shape))
    for name in [name for name, group in groups.items()
                 if "weight" in group and "on_input" not in group]:  # a model's layer, not (IA)^3
        unread.extend(source.keys[0] for source in groups.pop(name).values())
    return groups, ignored, unread


def _split(key: str, endings: list[tuple[str, str]]) -> tuple[str, str] | None:
    """(name, suffix) of a key; None where it is not named like an adapter's."""
    plain = _PEFT_NAME.sub(r"\1", key)
    for ending, suffix in endings:
        if plain.endswith(ending) and plain != ending:
            return plain.removesuffix(ending), suffix
    name, dot, suffix = plain.partition(".")
    ours = name.startswith(("lora_", "lycoris_"))
    return (name, suffix) if dot and (ours or ("." not in suffix and suffix != "bias")) else None


def _old_gloras(groups: Mapping[str, Group]) -> set[str]:
    """The names of the groups in GLoRA's old orientation; one that does not tell follows the
    others."""
    gloras = {name: sources.is_old_glora(group) for name, group in groups.items()
              if {"a1.weight", "b1.weight"} <= set(group)}
    told = {old for old in gloras.values() if old is not None}
    silent = [name for name, old in gloras.items() if old is None]
    if silent and len(told) != 1:
        raise AdapterError(
            f"{silent[0]} could be a GLoRA of the old orientation (a1 is r x i) or of the new (a1 "
            "is i x r): its rank is as large as the layer, and no other layer tells.",
            "Save it again with a dim below the layers' sizes, or convert it with the program that "
            "made it.", keys=silent)
    return {name for name, old in gloras.items() if (old if old is not None else True in told)}


def _with_alpha(name: str, group: Group, config: Mapping[str, Any] | None) -> Group:
    """The group with the alpha that gives the scale which A1111's `scale` or PEFT's config says."""
    if "scale" in group:
        factor = group["scale"]
    elif config is None or "alpha" in group:
        return group
    else:
        factor = None
    own = {suffix: source for suffix, source in group.items() if suffix not in ("scale", "alpha")}
    read = identify({suffix: source.shape for suffix, source in own.items()})
    if read is None:
        return own
    kind, dim, _ = read
    divided = kind.scaled and not {"lokr_w1", "lokr_w2"} <= set(own)
    if factor is None:
        value = _peft_scale(name, config or {}, dim if divided else None)
        if value is None:
            return own
        factor = sources.constant(value)
    if divided:
        return {**own, "alpha": factor.then(lambda scale: scale.float() * dim)}
    folded = next((kind.keys[fold] for fold in kind.fold if kind.keys[fold] in own), None)
    if folded is None:
        return own
    parts = {"tensor": own[folded], "scale": factor}
    return {**own, folded: sources.joined(
        parts, lambda p: p["tensor"].float() * p["scale"].float(), own[folded].shape)}


def _peft_scale(name: str, config: Mapping[str, Any], dim: int | None) -> float | None:
    """alpha / r, or alpha / sqrt(r), for one layer as PEFT's config says; r is the config's where
    the tensors have no rank. None where the config is of another part."""
    path = name.removeprefix("base_model.model.")
    component, _, inner = path.partition(".")
    if f"{component}.r" in config:  # diffusers packs one config for each part
        start = f"{component}."
        config = {key.removeprefix(start): value for key, value in config.items()
                  if key.startswith(start)}
        path = inner
    elif "r" not in config:
        return None
    try:
        own = config[PEFT_TYPES[config.get("peft_type", "LORA")]]
        alpha = float(_for_layer(config.get("alpha_pattern"), path, own))
        r = float(dim or _for_layer(config.get("rank_pattern"), path, config["r"]))
        return alpha / (r**0.5 if config.get("use_rslora") else r)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError,
            re.error) as problem:
        raise AdapterError(f"The PEFT config does not say the scale of {path}: {problem!r}.",
                           "Copy adapter_config.json again from where the adapter "
                           "came from.") from None


def _is_input(name: str, shape: Shape, config: Mapping[str, Any] | None) -> bool:
    """Does PEFT's (IA)^3 scale the layer's inputs? Of a linear layer the shape says it, (1, i) or
    (o, 1), else the config's feedforward_modules."""
    if len(shape) == 2 and max(shape) > 1:
        return shape[0] == 1
    said = (config or {}).get("feedforward_modules")
    if not isinstance(said, (str, list)):
        raise AdapterError(f"{name} is an (IA)^3 of its inputs or of its outputs; only "
                           "adapter_config.json tells.", "Put it beside the file again.",
                           keys=[name])
    path = name.removeprefix("base_model.model.")
    if isinstance(said, str):
        return _for_layer({said: True}, path, False)
    return any(path.endswith(str(each)) for each in said)


def _refuse_other_peft(config: Mapping[str, Any]) -> None:
    for name, kind in config.items():
        if name.rpartition(".")[2] == "peft_type" and kind not in PEFT_TYPES:
            raise AdapterError(
                f"This is PEFT's {kind}, which is not read.",
                f"Of PEFT's adapters {', '.join(PEFT_TYPES)} are read; convert it to LoRA with "
                "PEFT's convert_to_lora.")


def _for_layer(patterns: Any, path: str, default: Any) -> Any:
    """PEFT's rule: the first pattern that is the path, or its end from a dot on.

    Patterns that could take forever to match (a repeated group, many wildcards) are not tried.
    """
    for pattern, value in (patterns or {}).items():
        if re.search(r"\)[*+{]", pattern) or len(re.findall(r"[*+{]", pattern)) > 3:
            raise ValueError(f"the pattern {pattern!r} is too involved")
        if re.match(rf"(.*\.)?({pattern})$", path):
            return value
    return default


def _parsed(text: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise AdapterError(f"The file's {DIFFUSERS_CONFIG} is no JSON object.",
                           "Take another copy of the file.")
    return found


# --- writing


def dora_on_output(shape: Shape, layer: Layer) -> bool | None:
    """Which axis a dora_scale of this shape is on: (o, 1, ..) or (o) the output, (1, i, 1, ..) or
    (i) the input; None where it is neither."""
    if elements(shape) == layer.out and (len(shape) < 2 or shape[0] == layer.out):
        return True
    own = elements(shape) == layer.inp if len(shape) and layer.kind != "norm" else False
    return False if own and shape[0] in (1, layer.inp) else None


def rewrite(groups: Iterable[tuple[Layer, Mapping[str, Tensor]]],
            key: Callable[[Layer, str], str], dialect: str) -> dict[str, Tensor]:
    """{key: tensor} of a file in another dialect; `key` is a Family's. AdapterError for what that
    dialect has no words for."""
    found: dict[str, Tensor] = {}
    unsaid: list[str] = []
    for layer, group in groups:
        name = key(layer, dialect)
        words = WORDS.get(dialect, _kohya)(layer, group)
        if words is None:
            unsaid.append(name)
        found.update({f"{name}.{suffix}": tensor for suffix, tensor in (words or {}).items()})
    if unsaid:
        raise AdapterError(
            f"{len(unsaid)} layers cannot be written in diffusers' keys, which know only LoRA, and "
            f"DoRA on the output; the first is {unsaid[0]}.",
            "Convert the adapter to LoRA first, or write kohya's keys.", keys=unsaid)
    return found


def _kohya(layer: Layer, group: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The group itself; with the alpha without which some readers fail (dim, where there was none
    and it counts)."""
    read = identify({suffix: tuple(tensor.shape) for suffix, tensor in group.items()})
    if read is None or not read[0].scaled or "alpha" in group:
        return dict(group)
    return {**group, "alpha": torch.tensor(float(read[1]))}


def _diffusers(layer: Layer, group: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """LoRA alone, with DoRA's lengths in PEFT's words; None for anything else."""
    dora = group.get("dora_scale")
    axis = True if dora is None else dora_on_output(tuple(dora.shape), layer)
    found = _folded(layer, group) if axis else None
    if found is not None and dora is not None:
        # With .weight both of diffusers' ways take it, PEFT's for the UNet, transformers' for text.
        found["lora_magnitude_vector.weight"] = dora.reshape(
            (1, layer.out, *(1 for _ in layer.kernel)) if layer.kernel else (layer.out,))
    return found


def _toolkit(layer: Layer, group: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """LoRA as lora_A and lora_B, every other algorithm in its own words."""
    found = _folded(layer, group)
    if found is None:
        return _kohya(layer, group)
    return found | {suffix: t for suffix, t in group.items() if suffix == "dora_scale"}


def _folded(layer: Layer, group: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """lora_A and lora_B with the scale worked into lora_B, where every reader finds it: diffusers
    refuses a file with an alpha under these names, and other programs ignore its metadata. None
    where it is no LoRA."""
    read = identify({suffix: tuple(tensor.shape) for suffix, tensor in group.items()})
    if read is None or "lora_up.weight" not in group:
        return None
    up, r = group["lora_up.weight"], read[1]
    ones = (1,) * len(layer.kernel)
    scale = group["alpha"].item() / r if "alpha" in group else 1.0
    return {"lora_A.weight": sources.conv_down(group).to(up.dtype).reshape(r, *layer.shape[1:]),
            "lora_B.weight": (up.float() * scale).to(up.dtype).reshape(layer.out, r, *ones)}


# {dialect: how it words a group}; the others as kohya.
WORDS: Mapping[str, Callable[[Layer, Mapping[str, Tensor]], dict[str, Tensor] | None]] = {
    "diffusers": _diffusers, "ai-toolkit": _toolkit}
