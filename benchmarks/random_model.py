"""Base models of the real classes with random weights, by the configs in assets/models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
TOKENIZER = ROOT / "assets" / "tiny-sd" / "tokenizer"
NARROW = 4  # what a narrow model's widths are divided by
CLASSES = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}


def configs(kind: str, *, narrow: bool = False) -> dict[str, Any]:
    """{part: its config}; narrow: a quarter of every channel count of UNet and autoencoder, two
    layers of each text encoder. What the UNet reads of the captions is as wide as ever."""
    found = json.loads((ROOT / "assets" / "models" / f"{kind}.json").read_text("utf-8"))
    if narrow:
        for part in ("unet", "vae"):
            own = found[part]
            own["block_out_channels"] = [width // NARROW for width in own["block_out_channels"]]
            own["norm_num_groups"] = 8
        for part in CLASSES.keys() & found.keys():
            found[part]["num_hidden_layers"] = 2
    return found


def make(folder: Path, kind: str, *, narrow: bool = False,
         dtype: torch.dtype = torch.float32) -> Path:
    """A folder in the diffusers layout: a real model in everything but what it has learned."""
    import diffusers
    import transformers

    torch.manual_seed(1)
    said = configs(kind, narrow=narrow)
    words = transformers.CLIPTokenizer.from_pretrained(TOKENIZER)
    vocabulary = said["text_encoder"]["vocab_size"]  # as many as the real encoder knows
    words.add_tokens([f"unused{number}" for number in range(vocabulary - len(words))])
    index: dict[str, Any] = {
        "_class_name": f"StableDiffusion{'XL' * (kind == 'sdxl')}Pipeline",
        "_diffusers_version": diffusers.__version__, "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"], "scheduler": ["diffusers", "DDIMScheduler"]}
    for part in sorted(CLASSES.keys() & said.keys()):
        suffix = part.removeprefix("text_encoder")
        words.save_pretrained(folder / f"tokenizer{suffix}")
        config = transformers.CLIPTextConfig(**{
            **said[part], "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id,
            "pad_token_id": words.pad_token_id})
        _save(getattr(transformers, CLASSES[part])(config), folder / part, dtype)
        index |= {part: ["transformers", CLASSES[part]],
                  f"tokenizer{suffix}": ["transformers", "CLIPTokenizer"]}
    _save(diffusers.UNet2DConditionModel(**said["unet"]), folder / "unet", dtype)
    _save(diffusers.AutoencoderKL(**said["vae"]), folder / "vae", dtype)
    schedule: Mapping[str, Any] = said["scheduler"]
    diffusers.DDIMScheduler(**schedule).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(index), "utf-8")
    return folder


def _save(module: torch.nn.Module, where: Path, dtype: torch.dtype) -> None:
    module.to(dtype).save_pretrained(where)


def pictures(folder: Path, count: int, side: int) -> Path:
    """Squares of noise with captions."""
    folder.mkdir(parents=True)
    for number in range(count):
        Image.effect_noise((side, side), 40 + number).convert("RGB").save(
            folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(f"noise number {number}\n", "utf-8")
    return folder
