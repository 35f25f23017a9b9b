"""Stable Diffusion XL: a UNet with deep transformers and two CLIP text encoders.

Adapter files name its UNet's layers as the original code does (input_blocks.4.1...), which every
program reads.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import prompts, unetnames
from ..algorithms import Layer
from ..known import Known
from . import AS_IT_IS, Chosen, Condition, Report, unheard
from .sd import (
    BLOCKS,
    CONVOLUTIONS,
    TEXT_BLOCKS,
    TRANSFORMERS,
    StableDiffusion,
    StableDiffusionModel,
)

UNET = {"unet_target_module": (*TRANSFORMERS, *CONVOLUTIONS)}
TEXT = {"text_encoder_target_module": TEXT_BLOCKS}
LINEAR = {"enable_conv": False}
READ_LAYER = 2  # of both text encoders, counted from the last


class StableDiffusionXL(StableDiffusion):
    name = "sdxl"
    label = "SDXL"
    order = 2
    clip_skips = False
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
    other_prefixes = {
        "unet": StableDiffusion.other_prefixes["unet"],
        "text_encoder": ("text_encoder", "clip_l", "text_encoders_clip_l_transformer"),
        "text_encoder_2": ("text_encoder_2", "clip_g", "text_encoders_clip_g_transformer")}
    classes = {"CLIPTextModelWithProjection": "text_encoder_2"}
    stems = {**StableDiffusion.stems, "text_encoder_2": "model"}
    others = ("tokenizer", "tokenizer_2", "scheduler")
    blocks = {**BLOCKS, "text_encoder_2": BLOCKS["text_encoder"]}
    defaults = {"network.text_encoder": False}  # OneTrainer's presets leave both as they are
    # As SD's, but for the single layers at its ends and in its time embedding: no list of the
    # guideline's names them by their names here.
    presets = {
        "attn-only": StableDiffusion.presets["attn-only"],
        "attn-mlp": StableDiffusion.presets["attn-mlp"],
        "full-lin": {**LINEAR, **TEXT,
                     "unet_target_module": (*TRANSFORMERS, "ResnetBlock2D")},
        "full": {**UNET, **TEXT},
        "unet-only": UNET,
        "unet-transformer-only": StableDiffusion.presets["unet-transformer-only"],
        "unet-convblock-only": {"unet_target_module": CONVOLUTIONS},
        "ia3": StableDiffusion.presets["ia3"],
    }

    @classmethod
    def detect(cls, base: Path) -> bool:
        if base.is_file():
            return cls._shaped(base, ("sdxl",))
        try:
            index = json.loads((base / "model_index.json").read_text("utf-8"))
        except (OSError, ValueError):
            return False
        return (isinstance(index, dict) and "text_encoder_2" in index
                and str(index.get("_class_name", "")).startswith("StableDiffusionXL"))

    @classmethod
    def by_name(cls, known: Known, base: Path, chosen: Chosen) -> StableDiffusionXL:
        found = super().by_name(known, base, chosen)
        found.layers = _written(found.layers)
        return found

    def __init__(self, base: Path, chosen: Chosen = AS_IT_IS):
        super().__init__(base, chosen)
        self.layers = _written(self.layers)

    def load(self, device: torch.device, dtype: torch.dtype,
             report: Report = unheard) -> StableDiffusionXLModel:
        self.require_files()
        return StableDiffusionXLModel(self, device, dtype, report)

    def read_layer(self, part: str, clip_skip: int) -> int:
        return READ_LAYER if part == "text_encoder" else 1  # the second's last states are pooled

    @property
    def original_kind(self) -> str:
        return "sdxl"

    @classmethod
    def path_in_file(cls, layer: Layer) -> str:
        return layer.written or super().path_in_file(layer)

    @classmethod
    def other_paths(cls, layers: Sequence[Layer]) -> Mapping[Layer, tuple[str, ...]]:
        return {}  # path_in_file and the layer's own name are both

    def _version(self, unet: Mapping[str, Any], velocity: bool) -> dict[str, str]:
        return {"ss_base_model_version": "sdxl_base_v1-0", "ss_v2": "False",
                "modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}


class StableDiffusionXLModel(StableDiffusionModel):
    """Both text encoders are read at the last layer but one, without its norm (Podell et al. 2023,
    arXiv 2307.01952, sec. 2.1); the picture's size and cut are told as in sec. 2.2."""

    texts = {"text_encoder": ("CLIPTextModel", "tokenizer", "clip_l"),
             "text_encoder_2": ("CLIPTextModelWithProjection", "tokenizer_2", "clip_g")}

    def _encoded(self, read: Sequence[Sequence[Sequence[prompts.Chunk]]]) -> Condition:
        """{"hidden": (b, tokens, features of both), "pooled": (b, features of the second)}"""
        first, second = (prompts.encode(encoder, texts, READ_LAYER, normed=False)
                         for encoder, texts in zip(self.encoders, read, strict=True))
        assert second.pooled is not None
        return {"hidden": torch.cat([first.hidden, second.hidden], -1), "pooled": second.pooled}

    def with_sizes(self, condition: Condition, sizes: Sequence[Sequence[int]]) -> Condition:
        """And {"time_ids": (b, 6)}."""
        return {**condition, "time_ids": torch.tensor(sizes, dtype=torch.float32,
                                                      device=self.device)}

    def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        added = {"text_embeds": cond["pooled"].to(self.dtype), "time_ids": cond["time_ids"]}
        return self.unet(x_t.to(self.dtype), t, cond["hidden"].to(self.dtype),
                         added_cond_kwargs=added, return_dict=False)[0]


def _written(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """With the original code's name on each layer of the UNet."""
    names = unetnames.ldm_names(layer.name for layer in layers if layer.part == "unet")
    return tuple(dataclasses.replace(layer, written=names[layer.name])
                 if layer.part == "unet" and layer.name in names else layer for layer in layers)
