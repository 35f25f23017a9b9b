"""Base models in one file, in the layout of the original code (LDM, and SGM for SDXL).

Every tensor of diffusers' parts has a `Place` in such a file. From the header alone follow which
model it is and the parts' configs: those of the known model of that kind (assets/models), with the
widths and depths that the shapes say.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import known, tensorfile, unetnames
from .errors import ModelFileError
from .tensorfile import Entries

UNET, VAE = "model.diffusion_model.", "first_stage_model."
HEAD = 64  # features of an attention head in CLIP, and in the UNets of SD 2.x and SDXL
# {known model: {text encoder: how its keys begin}}; those that end in model. are OpenCLIP's
TEXTS: Mapping[str, Mapping[str, str]] = {
    "sd15": {"text_encoder": "cond_stage_model.transformer."},
    "sd21": {"text_encoder": "cond_stage_model.model."},
    "sdxl": {"text_encoder": "conditioner.embedders.0.transformer.",
             "text_encoder_2": "conditioner.embedders.1.model."}}
TEXT_LEVEL = "text_model."
TOKENS = "embeddings.token_embedding.weight"
READ_LAYERS = 23  # of SD 2.x's text encoder, which has one more
FUSED = ("q_proj", "k_proj", "v_proj")
IN_LAYER = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj",
            "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
IN_VAE = {"nin_shortcut": "conv_shortcut", "norm_out": "conv_norm_out"}
IN_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v",
                    "proj_out": "to_out.0"}
# Names of the same before diffusers 0.18, which folders of that time have
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
VELOCITY_MARK, ZERO_SNR_MARK = "v_pred", "ztsnr"  # tensors whose being there says it


@dataclass(frozen=True)
class Place:
    """Where a tensor stands: as it is; the `third` of a fused q, k, v; transposed; or as a 1x1
    convolution's weight (o, i, 1, 1) where diffusers has a linear layer's (o, i)."""

    key: str
    third: int | None = None
    form: str = ""  # transposed, spatial

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        if self.form == "transposed":
            return stored[::-1]
        if self.form == "spatial":
            return stored[:2]
        return stored if self.third is None else (stored[0] // 3, *stored[1:])

    def read(self, stored: Tensor) -> Tensor:
        if self.form == "transposed":
            return stored.T.contiguous()
        if self.form == "spatial":
            return stored.reshape(stored.shape[:2])
        return stored if self.third is None else stored.chunk(3)[self.third].contiguous()

    def written(self, tensor: Tensor) -> Tensor:
        """`read` undone; of a fused one, its third."""
        if self.form == "transposed":
            return tensor.T.contiguous()
        return tensor[..., None, None] if self.form == "spatial" else tensor


Places = Mapping[str, Place]  # {diffusers' name of a tensor: its place}


class Part:
    """One part of such a file under diffusers' names, as tensorfile.Lazy is of a part's own."""

    def __init__(self, file: tensorfile.Lazy, places: Places):
        self.file, self.path, self.metadata, self.places = file, file.path, file.metadata, places
        self.entries = {name: (file.entries[place.key][0], place.shape(file.entries[place.key][1]))
                        for name, place in places.items()}

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def __getitem__(self, name: str) -> Tensor:
        return self.places[name].read(self.file[self.places[name].key])


def fused(places: Places) -> dict[str, list[str]]:
    """{key in the file: the names that stand there, in order}"""
    found: dict[str, list[str]] = {}
    for name, place in sorted(places.items(), key=lambda item: item[1].third or 0):
        found.setdefault(place.key, []).append(name)
    return found


def assembled(places: Places, names: Iterable[str], tensor: Callable[[str], Tensor]) -> Tensor:
    """What stands at the key of these names."""
    parts = [places[name].written(tensor(name)) for name in names]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def kind_of(entries: Entries) -> str | None:
    """The known model a file is shaped as; None where it is none of ours."""
    if f"{UNET}input_blocks.0.0.weight" not in entries:
        return None
    for name in ("sdxl", "sd21", "sd15"):
        if all(any(key.startswith(prefix) for key in entries) for prefix in TEXTS[name].values()):
            return name
    return None


def places_of(entries: Entries, kind: str) -> dict[str, Places]:
    """{part: its places} of all parts that are in the file."""
    bare = [key.removeprefix(UNET) for key in entries if key.startswith(UNET)]
    found: dict[str, Places] = {"unet": {
        name: Place(UNET + key) for key, name in unetnames.diffusers_names(bare).items()}}
    if any(key.startswith(VAE) for key in entries):
        found["vae"] = autoencoder(entries, VAE)
    for part, prefix in TEXTS[kind].items():
        made = (open_clip(_count(entries, prefix, r"transformer\.resblocks\.(\d+)\."), prefix)
                if prefix.endswith(".model.") else plain_clip(entries, prefix))
        whole = f"{prefix}text_projection" in entries or _layers(made) > READ_LAYERS
        if kind == "sd21" and whole:  # a last layer that is not read, as in the files of its makers
            last = f"{TEXT_LEVEL}encoder.layers.{_layers(made) - 1}."
            made = {name: place for name, place in made.items()
                    if not name.startswith(last) and name != "text_projection.weight"}
        found[part] = {name: place for name, place in made.items() if place.key in entries}
    return found


def autoencoder(entries: Iterable[str], prefix: str) -> Places:
    """The places of an autoencoder's tensors, from the names in its file."""
    bare = [key.removeprefix(prefix) for key in entries if key.startswith(prefix)]
    modules = _autoencoder_modules(_levels(bare, r"(?:decoder\.up|encoder\.down)\.(\d+)\."))
    found = {}
    for key in bare:
        at = next((module for module in modules if key.startswith(f"{module}.")), "")
        inner, _, leaf = key.removeprefix(at).lstrip(".").rpartition(".")
        attention = "attn_1" in at
        table = IN_VAE_ATTENTION if attention else IN_VAE
        head, _, last = inner.rpartition(".")
        parts = [modules.get(at, ""), head, table.get(last, last), leaf]
        flat = attention and leaf == "weight" and last != "norm"
        if key.startswith(("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")):
            found[".".join(filter(None, parts))] = Place(prefix + key,
                                                         form="spatial" if flat else "")
    return found


def _autoencoder_modules(levels: int) -> dict[str, str]:
    """{the original's module: diffusers'}"""
    found = {}
    for level in range(levels):
        for block in range(8):
            found[f"encoder.down.{level}.block.{block}"] = (
                f"encoder.down_blocks.{level}.resnets.{block}")
            found[f"decoder.up.{level}.block.{block}"] = (
                f"decoder.up_blocks.{levels - 1 - level}.resnets.{block}")
        found[f"encoder.down.{level}.downsample"] = f"encoder.down_blocks.{level}.downsamplers.0"
        found[f"decoder.up.{level}.upsample"] = (
            f"decoder.up_blocks.{levels - 1 - level}.upsamplers.0")
    for side in ("encoder", "decoder"):
        found |= {f"{side}.mid.block_1": f"{side}.mid_block.resnets.0",
                  f"{side}.mid.block_2": f"{side}.mid_block.resnets.1",
                  f"{side}.mid.attn_1": f"{side}.mid_block.attentions.0"}
    return found


def written_autoencoder(names: Iterable[str], prefix: str = VAE) -> Places:
    """The places of diffusers' names, as `autoencoder` finds them."""
    names = list(names)
    modules = {own: at for at, own in _autoencoder_modules(
        _levels(names, r"(?:decoder\.up|encoder\.down)_blocks\.(\d+)\.")).items()}
    found = {}
    for name in names:
        own = next((module for module in modules if name.startswith(f"{module}.")), "")
        inner, _, leaf = name.removeprefix(own).lstrip(".").rpartition(".")
        attention = ".attentions." in own
        inner = OLD_ATTENTION.get(inner, inner)
        table = {there: here for here, there in (
            IN_VAE_ATTENTION if attention else IN_VAE).items()}
        if inner not in table:
            head, _, last = inner.rpartition(".")
            inner = ".".join(filter(None, (head, table.get(last, last))))
        else:
            inner = table[inner]
        key = ".".join(filter(None, (modules.get(own, ""), inner, leaf)))
        flat = attention and leaf == "weight" and inner != "norm"
        found[name] = Place(prefix + key, form="spatial" if flat else "")
    return found


def plain_clip(entries: Iterable[str], prefix: str) -> Places:
    """Of an encoder in transformers' layout; the oldest files have no level text_model."""
    return {TEXT_LEVEL + key.removeprefix(prefix).removeprefix(TEXT_LEVEL): Place(key)
            for key in entries if key.startswith(prefix) and not key.endswith("position_ids")}


def open_clip(layers: int, prefix: str) -> Places:
    """Of an encoder in OpenCLIP's layout with so many layers."""
    found = {TOKENS: Place("token_embedding.weight"),
             "embeddings.position_embedding.weight": Place("positional_embedding"),
             "final_layer_norm.weight": Place("ln_final.weight"),
             "final_layer_norm.bias": Place("ln_final.bias")}
    for layer in range(layers):
        here, there = f"encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        for leaf in ("weight", "bias"):
            found |= {f"{here}{own}.{leaf}": Place(f"{there}{key}.{leaf}")
                      for key, own in IN_LAYER.items()}
            found |= {f"{here}self_attn.{own}.{leaf}": Place(f"{there}attn.in_proj_{leaf}", third)
                      for third, own in enumerate(FUSED)}
    return {**{TEXT_LEVEL + name: Place(prefix + place.key, place.third)
               for name, place in found.items()},
            "text_projection.weight": Place(f"{prefix}text_projection", form="transposed")}


def written(kind: str, names: Mapping[str, Iterable[str]]) -> dict[str, dict[str, Place]]:
    """{part: {its name of a tensor: the place}} for the parts of a model in diffusers' layout."""
    found: dict[str, dict[str, Place]] = {}
    for part, own in names.items():
        own = list(own)
        if part == "unet":
            modules = unetnames.ldm_names({name.rpartition(".")[0] for name in own})
            found[part] = {name: Place(f"{UNET}{modules[name.rpartition('.')[0]]}."
                                       f"{name.rpartition('.')[2]}") for name in own}
        elif part == "vae":
            found[part] = dict(written_autoencoder(own))
        else:
            prefix = TEXTS[kind][part]
            long = {name: name if name.startswith((TEXT_LEVEL, "text_projection"))
                    else TEXT_LEVEL + name for name in own if not name.endswith("position_ids")}
            places = (open_clip(_layers(long.values()), prefix) if prefix.endswith(".model.")
                      else {name: Place(prefix + name) for name in long.values()})
            found[part] = {name: places[whole] for name, whole in long.items() if whole in places}
    return found


def _layers(names: Iterable[str]) -> int:
    return _levels(names, rf"{TEXT_LEVEL}encoder\.layers\.(\d+)\.")


def _levels(names: Iterable[str], pattern: str) -> int:
    found = re.compile(pattern)
    return 1 + max((int(m[1]) for name in names if (m := found.match(name))), default=-1)


def _count(entries: Iterable[str], prefix: str, pattern: str) -> int:
    return _levels((key.removeprefix(prefix) for key in entries if key.startswith(prefix)), pattern)


def configs(kind: str, parts: Mapping[str, Entries], file: Path, entries: Entries,
            metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """{part: its config in diffusers' and transformers' words} with "scheduler".

    `parts` are the entries of each under diffusers' names. ModelFileError where it is another model
    after all.
    """
    said = {part: dict(config) for part, config in known.configs(kind).items()
            if isinstance(config, dict)}
    try:
        said["unet"] |= _unet(kind, parts["unet"], parts)
        if "vae" in parts:
            said["vae"] |= autoencoder_config(parts["vae"])
        for part in TEXTS[kind]:
            said[part] |= _text(said[part], parts[part])
    except (KeyError, IndexError) as error:
        raise ModelFileError(f"{file} lacks {error}, which a model of its kind has.",
                             "Take another copy of the model.") from None
    velocity = predicts_velocity(entries, metadata)
    if velocity is not None:
        said["scheduler"]["prediction_type"] = "v_prediction" if velocity else "epsilon"
    if ZERO_SNR_MARK in entries:
        said["scheduler"]["rescale_betas_zero_snr"] = True
    return said


def predicts_velocity(entries: Entries, metadata: Mapping[str, str]) -> bool | None:
    """What a file says of it: by a mark, by modelspec (1.0, prediction_type; before, predict_key;
    the architectures of SD 2.x); None where it is silent."""
    if VELOCITY_MARK in entries:
        return True
    for name in ("modelspec.prediction_type", "modelspec.predict_key"):
        if text := metadata.get(name, ""):
            return text.startswith("v")
    architecture = metadata.get("modelspec.architecture", "")
    return "-768-v" in architecture if "-v2-" in architecture else None


def _unet(kind: str, entries: Entries, parts: Mapping[str, Entries]) -> dict[str, Any]:
    def shape(name: str) -> tuple[int, ...]:
        return entries[f"{name}.weight"][1]

    levels = _levels(entries, r"down_blocks\.(\d+)\.")
    widths = [shape(f"down_blocks.{level}.resnets.0.conv1")[0] for level in range(levels)]
    depths, downs = [], []
    for level in range(levels):
        blocks = rf"down_blocks\.{level}\.attentions\.0\.transformer_blocks\.(\d+)\."
        depth = _levels(entries, blocks)
        downs.append("CrossAttnDownBlock2D" if depth else "DownBlock2D")
        depths.append(depth or 1)
    depths[-1] = _levels(entries, r"mid_block\.attentions\.0\.transformer_blocks\.(\d+)\.")
    first = "mid_block.attentions.0.transformer_blocks.0."
    found = {
        "in_channels": shape("conv_in")[1], "out_channels": shape("conv_out")[0],
        "block_out_channels": widths, "down_block_types": downs,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(downs)],
        "layers_per_block": _levels(entries, r"down_blocks\.0\.resnets\.(\d+)\."),
        "cross_attention_dim": shape(f"{first}attn2.to_k")[1],
        "use_linear_projection": len(shape("mid_block.attentions.0.proj_in")) == 2}
    if kind != "sd15":
        found["attention_head_dim"] = [max(1, width // HEAD) for width in widths]
    if kind == "sdxl":
        told = shape("add_embedding.linear_1")[1]
        pooled = parts["text_encoder_2"]["text_projection.weight"][1][0]
        found |= {"transformer_layers_per_block": depths,
                  "projection_class_embeddings_input_dim": told,
                  "addition_time_embed_dim": (told - pooled) // 6}
    return found


def autoencoder_config(entries: Entries) -> dict[str, Any]:
    levels = _levels(entries, r"encoder\.down_blocks\.(\d+)\.")
    widths = [entries[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"][1][0]
              for level in range(levels)]
    return {"block_out_channels": widths, "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "latent_channels": entries["decoder.conv_in.weight"][1][1],
            "layers_per_block": _levels(entries, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
            "mid_block_add_attention": any(".attentions." in name for name in entries)}


def _text(said: Mapping[str, Any], entries: Entries) -> dict[str, Any]:
    words, width = entries[TEXT_LEVEL + TOKENS][1]
    found = {
        "vocab_size": words, "hidden_size": width,
        "intermediate_size": entries[f"{TEXT_LEVEL}encoder.layers.0.mlp.fc1.weight"][1][0],
        "num_hidden_layers": _layers(entries), "num_attention_heads": max(1, width // HEAD),
        "max_position_embeddings":
            entries[f"{TEXT_LEVEL}embeddings.position_embedding.weight"][1][0],
        "bos_token_id": words - 2, "eos_token_id": words - 1,
        "pad_token_id": words - 1 if said["pad_token_id"] else 0}
    if (projection := entries.get("text_projection.weight")) is not None:
        found["projection_dim"] = projection[1][0]
    return found
