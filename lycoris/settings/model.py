"""The base model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ..knobs import Knob

DTYPES = ("fp16", "bf16", "fp32")
PACKED = ("int8", "nf4")  # bitsandbytes' forms of linear layers


@dataclass(frozen=True)
class ModelConfig:
    base: Annotated[str, Knob("The base model: one .safetensors file of SD 1.x, SD 2.x or SDXL, "
                              "a folder in the diffusers layout, or a name on Hugging Face: "
                              "owner/name.", file=True,
                              label="Base model")] = "assets/tiny-sd"
    family: Annotated[str, Knob("Kind of model; auto reads it from the base's files. The name of "
                                "a known model tells what it would cost, without its files.",
                                label="Sizes for", catalogue="families")] = "auto"
    dtype: Annotated[str, Knob(
        "How precisely the base model is held in memory; auto: as the run computes. int8 and "
        "nf4 hold most of it in 8 or 4 bits, for little memory.",
        choices=("auto", *DTYPES, *PACKED), label="Precision of the base")] = "auto"
    vae: Annotated[str, Knob("Another autoencoder than the base's own: a .safetensors file or a "
                             "folder. Empty for its own.", file=True, label="VAE")] = ""
    vae_dtype: Annotated[str, Knob(
        "auto is fp32, unless the VAE's own files say that half precision is safe. half is for "
        "a VAE made for it, such as SDXL's fp16-fix as a file.",
        choices=("auto", "fp32", "half"), label="Precision of the VAE")] = "auto"
    tokenizer: Annotated[str, Knob(
        "Folder with CLIP's tokenizer, for a base of one file. Empty looks beside the file and in "
        "the Hugging Face cache.", file=True, label="Tokenizer")] = ""
    prediction_type: Annotated[str, Knob(
        "What the model was trained to predict. auto reads it from its files; many v-prediction "
        "models do not say it there, but on their page.",
        choices=("auto", "epsilon", "v_prediction"), label="Predicts")] = "auto"
    zero_snr: Annotated[str, Knob(
        "On for models that were trained to start from pure noise (zero terminal SNR), such as "
        "NoobAI's v-prediction model. auto reads it from the model's files.",
        choices=("auto", "on", "off"), label="Zero terminal SNR")] = "auto"
    clip_skip: Annotated[int, Knob(
        "Which layer of the text encoder is read, counted from the last. Anime models of SD 1.x "
        "want 2; SDXL has its own.", 1, 12, label="Clip skip")] = 1
