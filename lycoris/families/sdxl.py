"""Stable Diffusion XL: a UNet with deep transformers and two CLIP text encoders.

Adapter files name its UNet's layers as the original code does (input_blocks.4.1...), which every
program reads. Its facts and files are known; a run on it is refused.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import unetnames
from ..algorithms import Layer
from ..errors import ModelFileError
from ..known import Known
from . import Model
from .sd import BLOCKS, CONVOLUTIONS, TEXT_BLOCKS, TRANSFORMERS, StableDiffusion

UNET = {"unet_target_module": (*TRANSFORMERS, *CONVOLUTIONS)}
TEXT = {"text_encoder_target_module": TEXT_BLOCKS}
LINEAR = {"enable_conv": False}


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
        try:
            index = json.loads((base / "model_index.json").read_text("utf-8"))
        except (OSError, ValueError):
            return False
        return (isinstance(index, dict) and "text_encoder_2" in index
                and str(index.get("_class_name", "")).startswith("StableDiffusionXL"))

    @classmethod
    def by_name(cls, known: Known, base: Path) -> StableDiffusionXL:
        found = super().by_name(known, base)
        found.layers = _written(found.layers)
        return found

    def __init__(self, base: Path):
        super().__init__(base)
        self.layers = _written(self.layers)

    def load(self, device: torch.device, dtype: torch.dtype) -> Model:
        raise ModelFileError(
            f"{self.base} is an SDXL model, which this version measures, merges and converts for, "
            "but does not train or paint with.", "Choose a Stable Diffusion 1.x model.")

    @classmethod
    def path_in_file(cls, layer: Layer) -> str:
        return layer.written or super().path_in_file(layer)

    @classmethod
    def other_paths(cls, layers: Sequence[Layer]) -> Mapping[Layer, tuple[str, ...]]:
        return {}  # path_in_file and the layer's own name are both

    def _version(self, unet: Mapping[str, Any], velocity: bool) -> dict[str, str]:
        return {"ss_base_model_version": "sdxl_base_v1-0", "ss_v2": "False",
                "modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}


def _written(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """With the original code's name on each layer of the UNet."""
    names = unetnames.ldm_names(layer.name for layer in layers if layer.part == "unet")
    return tuple(dataclasses.replace(layer, written=names[layer.name])
                 if layer.part == "unet" and layer.name in names else layer for layer in layers)
