"""Base models of the real classes with few random weights, shaped as SD 1.5, SD 2.1 and SDXL are.

What a single file cannot say (heads, groups of the norms, activations) is as in the real ones, so
widths are multiples of 32 and a head of SD 2.1's and SDXL's has 64 of them at most.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from conftest import TINY_SD

from lycoris import families, original, tensorfile

WIDTHS = [32, 64]
ATTENTION, PLAIN = "CrossAttn{}Block2D", "{}Block2D"
SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
            "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
            "timestep_spacing": "leading"}
# {kind: (its UNet's own, levels with attention, text encoders as (class, width, layers, own))}
KINDS: dict[str, Any] = {
    "sd15": ({"attention_head_dim": 8}, (True, False),
             [("CLIPTextModel", 32, 3, {"hidden_act": "quick_gelu", "pad_token_id": 964})]),
    "sd21": ({"attention_head_dim": [1, 1], "use_linear_projection": True}, (True, False),
             [("CLIPTextModel", 1024, 1, {"hidden_act": "gelu", "pad_token_id": 0})]),
    "sdxl": ({"attention_head_dim": [1, 1], "use_linear_projection": True,
              "transformer_layers_per_block": [1, 2], "addition_embed_type": "text_time",
              "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 64 + 6 * 8},
             (False, True),
             [("CLIPTextModel", 32, 3, {"hidden_act": "quick_gelu", "pad_token_id": 964}),
              ("CLIPTextModelWithProjection", 64, 3,
               {"hidden_act": "gelu", "pad_token_id": 0, "projection_dim": 64})])}


def make(folder: Path, kind: str, prediction: str = "epsilon", levels: int = 2,
         **schedule: Any) -> Path:
    """A diffusers folder; a latent has 2 ** (levels - 1) pixels a side."""
    import diffusers
    import transformers

    torch.manual_seed(11)
    own, attention, texts = KINDS[kind]
    tokens = transformers.CLIPTokenizer.from_pretrained(TINY_SD / "tokenizer")
    index: dict[str, Any] = {
        "_class_name": f"StableDiffusion{'XL' * (kind == 'sdxl')}Pipeline",
        "_diffusers_version": "0.42.1", "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"], "scheduler": ["diffusers", "DDIMScheduler"]}
    for number, (name, width, layers, more) in enumerate(texts):
        suffix = f"_{number + 1}" if number else ""
        words = folder / f"tokenizer{suffix}"
        shutil.copytree(TINY_SD / "tokenizer", words)
        if more["pad_token_id"] == 0:
            _pad_with_first(words, tokens)
        getattr(transformers, name)(transformers.CLIPTextConfig(
            vocab_size=len(tokens), hidden_size=width, intermediate_size=2 * width,
            num_hidden_layers=layers, num_attention_heads=max(1, width // 64),
            max_position_embeddings=tokens.model_max_length, bos_token_id=tokens.bos_token_id,
            eos_token_id=tokens.eos_token_id, **more,
        )).save_pretrained(folder / f"text_encoder{suffix}")
        index |= {f"text_encoder{suffix}": ["transformers", name],
                  f"tokenizer{suffix}": ["transformers", "CLIPTokenizer"]}
    downs = [(ATTENTION if each else PLAIN).format("Down") for each in attention]
    ups = [(ATTENTION if each else PLAIN).format("Up") for each in reversed(attention)]
    diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=WIDTHS,
        layers_per_block=1, down_block_types=downs, up_block_types=ups,
        cross_attention_dim=sum(width for _, width, _, _ in texts),
        **own).save_pretrained(folder / "unet")
    diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=[32] * (levels - 2) + WIDTHS, layers_per_block=1, latent_channels=4,
        scaling_factor=0.13025 if kind == "sdxl" else 0.18215).save_pretrained(folder / "vae")
    diffusers.DDIMScheduler(prediction_type=prediction, **SCHEDULE,
                            **schedule).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def _pad_with_first(folder: Path, tokens: Any) -> None:
    """As OpenCLIP's encoders are padded: with the vocabulary's first word, "!"."""
    file = folder / "tokenizer_config.json"
    said = json.loads(file.read_text())
    said["pad_token"] = tokens.convert_ids_to_tokens(0)
    file.write_text(json.dumps(said))


def write_single(folder: Path, file: Path, *, extra: dict[str, torch.Tensor] | None = None,
                 without: str = "-", metadata: dict[str, str] | None = None) -> Path:
    """A diffusers folder as one file."""
    family = families.open_base(folder)
    weights = {part: family.source.weights(part) for part in family.stems}
    kind = "sdxl" if family.name == "sdxl" else (
        "sd21" if "2.x" in family.label else "sd15")
    made: dict[str, torch.Tensor] = {}
    for part, places in original.written(kind, {p: w.entries for p, w in weights.items()}).items():
        for key, names in original.fused(places).items():
            made[key] = original.assembled(places, names, weights[part].__getitem__)
    if kind == "sd21":  # as in the real ones: a last layer that is not read, and a projection
        made |= {key.replace("resblocks.0", "resblocks.1"): tensor + 1
                 for key, tensor in made.items() if "resblocks.0." in key}
        made["cond_stage_model.model.text_projection"] = torch.zeros(4, 4)
    made["model_ema.decay"] = torch.zeros(())
    kept = {key: t for key, t in (made | (extra or {})).items() if not key.startswith(without)}
    return tensorfile.write(file, kept, metadata or {})
