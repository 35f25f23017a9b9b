"""Stable Diffusion 1.x: one CLIP text encoder, a UNet with cross-attention, a KL autoencoder.

Reads any folder in the diffusers layout; the embedded assets/tiny-sd is an ordinary one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import objectives, tensorfile
from ..algorithms import Layer
from ..errors import ModelFileError
from . import Family, Model

PARTS = ("unet", "text_encoder", "vae", "tokenizer", "scheduler")
WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model",
           "text_encoder": "model"}
TEXT_LEVEL = "text_model."  # transformers 5 has no such level; files keep it in their names

ATTENTION = ("*attentions.*.attn1.*", "*attentions.*.attn2.*")
BLOCKS = ("*resnets.*", "*downsamplers.*", "*upsamplers.*", "conv_in", "conv_out",
          "time_embedding.linear_1", "time_embedding.linear_2")


class StableDiffusion(Family):
    name = "sd"
    label = "Stable Diffusion 1.x"
    order = 1
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te"}
    classes = {"UNet2DConditionModel": "unet", "CLIPTextModel": "text_encoder"}
    presets = {
        "attn-only": {"unet": ATTENTION, "text_encoder": ("*.self_attn.*",)},
        "attn-mlp": {"unet": ("*attentions.*",), "text_encoder": ("*.self_attn.*", "*.mlp.*")},
        "full": {"unet": ("*attentions.*", *BLOCKS),
                 "text_encoder": ("*.self_attn.*", "*.mlp.*")},
    }

    def __init__(self, base: Path):
        self.base = base
        self._refuse_missing_parts()
        unet, vae = self._config("unet"), self._config("vae")
        if unet.get("in_channels") != vae.get("latent_channels"):
            raise ModelFileError(
                f"{base} is an inpainting or edit model: its UNet takes "
                f"{unet.get('in_channels')} channels.", "Choose a text-to-image model.")
        self.scheduler_config = self._config("scheduler", "scheduler_config.json")
        self.latent_scale = 2 ** (len(vae["block_out_channels"]) - 1)
        self.side_multiple = self.latent_scale * 2 ** (len(unet["block_out_channels"]) - 1)
        self.resolution = unet["sample_size"] * self.latent_scale
        self.max_tokens = self._config("text_encoder")["max_position_embeddings"] - 2
        self.layers = (*self._layers("unet"), *self._layers("text_encoder"))
        prediction = self.scheduler_config.get("prediction_type", "epsilon")
        velocity = prediction == "v_prediction"
        self.metadata = {
            "ss_base_model_version": "sd_v1_v" if velocity else "sd_v1",
            "ss_v2": "False", "ss_sd_model_name": base.name,
            "modelspec.architecture": "stable-diffusion-v1/lora",
            "modelspec.prediction_type": "v" if velocity else "epsilon",
        }

    @classmethod
    def detect(cls, base: Path) -> bool:
        try:
            index = json.loads((base / "model_index.json").read_text("utf-8"))
        except (OSError, ValueError):
            return False
        return (isinstance(index, dict) and "text_encoder_2" not in index
                and str(index.get("_class_name", "")).startswith("StableDiffusion")
                and "XL" not in str(index["_class_name"]) and "3" not in index["_class_name"])

    @classmethod
    def key(cls, layer: Layer) -> str:
        name = layer.name
        if layer.part == "text_encoder" and not name.startswith(TEXT_LEVEL):
            name = TEXT_LEVEL + name
        return f"{cls.prefixes[layer.part]}_{name.replace('.', '_')}"

    def load(self, device: torch.device, dtype: torch.dtype) -> StableDiffusionModel:
        return StableDiffusionModel(self, device, dtype)

    def files(self) -> list[Path]:
        return [self._weights(part)[0] for part in WEIGHTS]

    def count_tokens(self, captions: Sequence[str]) -> list[int]:
        from tokenizers import Tokenizer

        folder = self.base / "tokenizer"
        if (folder / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        else:
            tokenizer = _clip_tokenizer(folder)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        encoded = tokenizer.encode_batch(list(captions), add_special_tokens=False)
        return [len(each.ids) for each in encoded]

    def variant(self, part: str) -> str | None:
        """ "fp16" where a folder holds only half-precision files under that name."""
        return self._weights(part)[1]

    def _refuse_missing_parts(self) -> None:
        missing = [part for part in PARTS if not (self.base / part).is_dir()]
        if missing:
            raise ModelFileError(
                f"The base model {self.base} has no folder {', '.join(missing)}.",
                f"A diffusers folder of Stable Diffusion holds {', '.join(PARTS)}; copy the "
                "missing part from where the model came from.")
        for part in WEIGHTS:
            self._weights(part)

    def _weights(self, part: str) -> tuple[Path, str | None]:
        """The part's weight file and its variant."""
        folder, stem = self.base / part, WEIGHTS[part]
        for variant in (None, "fp16"):
            file = folder / f"{stem}{f'.{variant}' if variant else ''}.safetensors"
            if file.is_file():
                return file, variant
        pickled = [f.name for f in folder.iterdir() if f.suffix in (".bin", ".ckpt", ".pt")]
        raise ModelFileError(
            f"The base model's {part} has no {stem}.safetensors in {folder}"
            + (f", only {pickled[0]}, which may run code when read." if pickled else "."),
            "Save the model again with diffusers' save_pretrained(..., safe_serialization=True)."
            if pickled else "Copy that file from where the model came from.")

    def _config(self, part: str, file: str = "config.json") -> dict[str, Any]:
        path = self.base / part / file
        try:
            return json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            raise ModelFileError(f"The base model's {part} has no {path}.",
                                 "Copy that file from where the model came from.") from None
        except ValueError as error:
            raise ModelFileError(f"{path} is not valid JSON: {error}.",
                                 "Copy that file again.") from None

    def _layers(self, part: str) -> list[Layer]:
        """From the names and shapes in the header alone: (o, i) linear, (o, i, k, k) conv, (c)
        norm."""
        entries, _ = tensorfile.peek(self._weights(part)[0], ModelFileError)
        kinds = {1: "norm", 2: "linear", 4: "conv"}
        found = []
        for key, (_, shape) in entries.items():
            name, _, leaf = key.rpartition(".")
            table = name.endswith(("token_embedding", "position_embedding"))
            if leaf != "weight" or len(shape) not in kinds or table:
                continue
            found.append(Layer(name.removeprefix(TEXT_LEVEL), kinds[len(shape)], tuple(shape),
                               f"{name}.bias" in entries, part))
        return found


class StableDiffusionModel(Model):
    """The loaded parts. The autoencoder is held in fp32: in half precision SD's overflows."""

    def __init__(self, family: StableDiffusion, device: torch.device, dtype: torch.dtype):
        import diffusers
        import transformers

        transformers.utils.logging.disable_progress_bar()
        folder = str(family.base)

        def part(kind: Any, name: str, precision: torch.dtype) -> nn.Module:
            try:
                loaded = kind.from_pretrained(
                    folder, subfolder=name, dtype=precision, variant=family.variant(name),
                    use_safetensors=True, local_files_only=True)
            except (OSError, ValueError, RuntimeError) as error:
                raise ModelFileError(f"The base model's {name} in {folder} cannot be loaded: "
                                     f"{error}.", "Take another copy of the model.") from error
            return loaded.to(device).requires_grad_(False).eval()

        self.device, self.dtype = device, dtype
        self.unet = part(diffusers.UNet2DConditionModel, "unet", dtype)
        self.text_encoder = part(transformers.CLIPTextModel, "text_encoder", dtype)
        self.vae = part(diffusers.AutoencoderKL, "vae", torch.float32)
        self.tokenizer = transformers.CLIPTokenizer.from_pretrained(
            folder, subfolder="tokenizer", local_files_only=True)
        self.scheduler_config = family.scheduler_config
        noise = diffusers.DDPMScheduler.from_config(self.scheduler_config)
        self.objective = objectives.make(noise.config.prediction_type, noise.alphas_cumprod)
        self.latent_channels = self.vae.config.latent_channels
        self.latent_scale = family.latent_scale
        self.modules: Mapping[str, nn.Module] = {
            "unet": self.unet,
            "text_encoder": getattr(self.text_encoder, "text_model", self.text_encoder)}

    @torch.no_grad()
    def encode_image(self, pictures: Tensor) -> Tensor:
        """(b, 3, h, w) -> (b, c, h / f, w / f): the posterior's mean, so that it is repeatable."""
        mean = self.vae.encode(pictures.to(self.device, torch.float32)).latent_dist.mean
        shift = self.vae.config.shift_factor or 0.0
        return (mean - shift) * self.vae.config.scaling_factor

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """(b, tokens, features), padded to the model's length as in its own training."""
        ids = self.tokenizer(list(captions), padding="max_length", truncation=True,
                             max_length=self.tokenizer.model_max_length,
                             return_tensors="pt").input_ids
        return self.text_encoder(ids.to(self.device)).last_hidden_state

    def predict(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return self.unet(x_t.to(self.dtype), t, cond.to(self.dtype), return_dict=False)[0]

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        shift = self.vae.config.shift_factor or 0.0
        scaled = latents.float() / self.vae.config.scaling_factor + shift
        return self.vae.decode(scaled, return_dict=False)[0]

    def train_mode(self, *, checkpointing: bool) -> None:
        if checkpointing:
            self.unet.enable_gradient_checkpointing()
            self.text_encoder.activation_checkpointing_enable({"use_reentrant": False})
            self.unet.train()  # both recompute only in training mode; neither has dropout
            self.text_encoder.train()

    def eval_mode(self) -> None:
        self.unet.eval()
        self.text_encoder.eval()


def _clip_tokenizer(folder: Path) -> Any:
    """CLIP's byte-level BPE from vocab.json and merges.txt, for folders without tokenizer.json."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    files = [folder / "vocab.json", folder / "merges.txt"]
    if missing := [f.name for f in files if not f.is_file()]:
        raise ModelFileError(f"The base model's tokenizer has no {' and no '.join(missing)}.",
                             "Copy the tokenizer folder from where the model came from.")
    tokenizer = Tokenizer(models.BPE.from_file(
        *map(str, files), unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    words = (r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]"
             r"|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(words), behavior="removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return tokenizer
