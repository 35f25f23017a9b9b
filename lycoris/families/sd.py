"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, a UNet with cross-attention, a KL
autoencoder.

Reads any folder in the diffusers layout; the embedded assets/tiny-sd is an ordinary one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import modelfiles, objectives, original, prompts, tensorfile, unetnames
from ..algorithms import Layer
from ..errors import ModelFileError
from ..known import Known
from . import AS_IT_IS, Chosen, Condition, Family, Model, Report, unheard

# What a part's config must say, and what it then is.
FACTS: Mapping[str, Mapping[str, type]] = {
    "unet": {"in_channels": int, "block_out_channels": list, "sample_size": int},
    "vae": {"latent_channels": int, "block_out_channels": list},
    "text_encoder": {"max_position_embeddings": int, "vocab_size": int}}
OPENCLIP = 1024  # width of 2.x's text encoder
TEXT_LEVEL = "text_model."  # transformers 5 has no such level; files keep it in their names

ATTENTION = r".*\.attn[12]"
SELF_ATTENTION = r".*\.self_attn"
# Where each class of modules is. kohya's UNet has CrossAttention for diffusers' Attention.
BLOCKS = {
    "unet": {
        "Transformer2DModel": r".*\.attentions\.\d+",
        "BasicTransformerBlock": r".*\.transformer_blocks\.\d+",
        "Attention": ATTENTION, "CrossAttention": ATTENTION, "SelfAttention": r".*\.attn1",
        "FeedForward": r".*\.ff", "GEGLU": r".*\.ff\.net\.0",
        "ResnetBlock2D": r".*\.resnets\.\d+",
        "Downsample2D": r".*\.downsamplers\.\d+", "Upsample2D": r".*\.upsamplers\.\d+",
        "UNetMidBlock2DCrossAttn": "mid_block", "TimestepEmbedding": "time_embedding",
        "LayerNorm": r".*\.transformer_blocks\.\d+\.norm\d",
        "GroupNorm": r"conv_norm_out|.*\.attentions\.\d+\.norm|.*\.resnets\.\d+\.norm\d"},
    "text_encoder": {
        "CLIPEncoder": r"(.*\.)?encoder", "CLIPEncoderLayer": r".*\.layers\.\d+",
        "CLIPAttention": SELF_ATTENTION, "CLIPSdpaAttention": SELF_ATTENTION,
        "CLIPFlashAttention2": SELF_ATTENTION, "CLIPMLP": r".*\.mlp",
        "LayerNorm": r".*layer_norm\d?"}}
TRANSFORMERS = ("Transformer2DModel",)
CONVOLUTIONS = ("ResnetBlock2D", "Downsample2D", "Upsample2D")
TEXT_BLOCKS = ("CLIPAttention", "CLIPMLP")
ENDS = ("conv_in", "conv_out")
TIME = ("time_embedding.linear_1", "time_embedding.linear_2")


class StableDiffusion(Family):
    name = "sd"
    label = "Stable Diffusion 1.x"
    order = 1
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te"}
    other_prefixes = {
        "unet": ("lycoris", "unet", "diffusion_model", "model_diffusion_model", ""),
        "text_encoder": ("lora_te1", "lycoris", "text_encoder", "clip_l",
                         "text_encoders_clip_l_transformer", "")}
    original_prefixes = unetnames.PREFIXES
    classes = {"UNet2DConditionModel": "unet", "CLIPTextModel": "text_encoder"}
    # {part: how its weight file is called}, and the folders without weights
    stems: ClassVar[Mapping[str, str]] = {
        "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model",
        "text_encoder": "model"}
    others: ClassVar[tuple[str, ...]] = ("tokenizer", "scheduler")
    blocks = BLOCKS
    defaults = {"optimizer.text_encoder_lr": 5e-5}  # beside 1e-4, as kohya's presets have it
    presets = {
        "attn-only": {"enable_conv": False, "unet_target_module": ("Attention",),
                      "text_encoder_target_module": ("CLIPAttention",)},
        "attn-mlp": {"enable_conv": False, "unet_target_module": TRANSFORMERS,
                     "text_encoder_target_module": TEXT_BLOCKS},
        "full-lin": {"enable_conv": False, "unet_target_module": (*TRANSFORMERS, "ResnetBlock2D"),
                     "unet_target_name": TIME, "text_encoder_target_module": TEXT_BLOCKS},
        "full": {"unet_target_module": (*TRANSFORMERS, *CONVOLUTIONS),
                 "unet_target_name": (*ENDS, *TIME), "text_encoder_target_module": TEXT_BLOCKS},
        "unet-only": {"unet_target_module": (*TRANSFORMERS, *CONVOLUTIONS),
                      "unet_target_name": (*ENDS, *TIME)},
        "unet-transformer-only": {"enable_conv": False, "unet_target_module": TRANSFORMERS},
        "unet-convblock-only": {"unet_target_module": CONVOLUTIONS, "unet_target_name": ENDS},
        "ia3": {"enable_conv": False, "unet_target_name": ("to_k", "to_v", "ff.net.2"),
                "text_encoder_target_name": ("k_proj", "v_proj", "mlp.fc2"),
                "name_algo_map": {"ff.net.2": {"train_on_input": True},
                                  "mlp.fc2": {"train_on_input": True}}},
    }

    def __init__(self, base: Path, chosen: Chosen = AS_IT_IS):
        self.base, self.chosen = base, chosen
        self._open()
        configs = {part: self._of(part).config(part, FACTS.get(part, {})) for part in self.stems}
        unet, vae = configs["unet"], configs["vae"]
        if unet["in_channels"] != vae["latent_channels"]:
            raise ModelFileError(
                f"{base} is an inpainting or edit model: its UNet takes "
                f"{unet['in_channels']} channels.", "Choose a text-to-image model.")
        configs["scheduler"] = self.source.schedule()
        self.configs = configs
        self._describe(configs)
        self.layers = tuple(layer for part in self.prefixes for layer in self._layers(part))

    def _describe(self, configs: Mapping[str, Mapping[str, Any]]) -> None:
        """The facts that follow from the parts' configs."""
        unet, vae, text = (configs[part] for part in ("unet", "vae", "text_encoder"))
        self.scheduler_config = self.chosen.schedule(configs["scheduler"])
        self.half_vae = self.chosen.half_vae(vae)
        self.latent_scale = 2 ** (len(vae["block_out_channels"]) - 1)
        self.side_multiple = self.latent_scale * 2 ** (len(unet["block_out_channels"]) - 1)
        velocity = self.scheduler_config.get("prediction_type", "epsilon") == "v_prediction"
        second = unet.get("cross_attention_dim") == OPENCLIP
        side = (96 if velocity else 64) if self.single and second else unet["sample_size"]
        self.resolution = side * self.latent_scale
        self.max_tokens = text["max_position_embeddings"] - 2
        self.vocabulary = text["vocab_size"]
        self.metadata = {
            **self._version(unet, velocity), "ss_sd_model_name": self.called,
            "modelspec.prediction_type": "v" if velocity else "epsilon"}
        if self.scheduler_config.get("rescale_betas_zero_snr"):
            self.metadata["ss_zero_terminal_snr"] = "True"

    def _version(self, unet: Mapping[str, Any], velocity: bool) -> dict[str, str]:
        """What a file says of the kind of its base, and a person; 2.x is known by OpenCLIP's
        width."""
        second = unet.get("cross_attention_dim") == OPENCLIP
        kind = ("v2-768-v" if velocity else "v2-512") if second else "v1"
        self.label = f"Stable Diffusion {1 + second}.x"
        return {"ss_base_model_version": f"sd_v{1 + second}{'_v' * velocity}",
                "ss_v2": str(second), "modelspec.architecture": f"stable-diffusion-{kind}/lora"}

    @classmethod
    def by_name(cls, known: Known, base: Path, chosen: Chosen) -> StableDiffusion:
        found = cls.__new__(cls)
        found.base, found.known = base, known
        found.chosen = Chosen(vae_dtype=chosen.vae_dtype)  # all else is a fact of what is known
        found.configs = known.configs
        found._describe(known.configs)
        found.layers = known.layers
        return found

    @classmethod
    def detect(cls, base: Path) -> bool:
        if base.is_file():
            return cls._shaped(base, ("sd15", "sd21"))
        try:
            index = json.loads((base / "model_index.json").read_text("utf-8"))
        except (OSError, ValueError):
            return False
        return (isinstance(index, dict) and "text_encoder_2" not in index
                and str(index.get("_class_name", "")).startswith("StableDiffusion")
                and "XL" not in str(index["_class_name"]) and "3" not in index["_class_name"])

    @classmethod
    def path_in_file(cls, layer: Layer) -> str:
        if layer.part == "unet":
            return layer.name
        return TEXT_LEVEL + layer.name.removeprefix(TEXT_LEVEL)

    @classmethod
    def other_paths(cls, layers: Sequence[Layer]) -> Mapping[Layer, tuple[str, ...]]:
        unet = {layer.name: layer for layer in layers if layer.part == "unet"}
        return {unet[name]: (ldm,) for name, ldm in unetnames.ldm_names(unet).items()}

    @classmethod
    def paths(cls, layer: Layer) -> tuple[str, ...]:
        if layer.part == "unet":
            return (layer.name,)
        name = layer.name.removeprefix(TEXT_LEVEL)
        return name, TEXT_LEVEL + name

    def load(self, device: torch.device, dtype: torch.dtype,
             report: Report = unheard) -> StableDiffusionModel:
        self.require_files()
        return StableDiffusionModel(self, device, dtype, report)

    def files(self) -> list[Path]:
        return list(dict.fromkeys(self._of(part).file(part)[0] for part in self.stems))

    def require_files(self) -> None:
        super().require_files()
        for part in self.others[:-1]:
            self.source.words(part)

    @property
    def single(self) -> modelfiles.Single | None:
        """The one file, where the base is one."""
        source = getattr(self, "source", None)
        return source if isinstance(source, modelfiles.Single) else None

    @cached_property
    def weights(self) -> Mapping[str, tensorfile.Lazy]:
        super().require_files()
        return {part: self.source.weights(part) for part in self.prefixes}

    def part_weights(self, part: str) -> tensorfile.Lazy:
        """Of any part, the autoencoder included."""
        super().require_files()
        return self._of(part).weights(part)

    @property
    def original_kind(self) -> str:
        """The known model whose keys a file of the original layout would have."""
        second = self.configs["unet"].get("cross_attention_dim") == OPENCLIP
        return "sd21" if second else "sd15"

    def name_in_weights(self, layer: Layer) -> str:
        long = TEXT_LEVEL + layer.name
        return long if f"{long}.weight" in self.weights[layer.part] else layer.name

    def count_tokens(self, captions: Sequence[str]) -> list[int]:
        from tokenizers import Tokenizer

        super().require_files()
        whole, *pieces = (self.source.words("tokenizer") / name for name in modelfiles.WORDS)
        tokenizer = (Tokenizer.from_file(str(whole)) if whole.is_file()
                     else prompts.clip_tokenizer(*pieces))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        encoded = tokenizer.encode_batch(list(captions), add_special_tokens=False)
        return [len(each.ids) for each in encoded]

    def build(self, kind: Any, part: str, dtype: torch.dtype) -> nn.Module:
        """One part as a module of that class, on the CPU."""
        return self._of(part).build(kind, part, dtype)

    def _of(self, part: str) -> Any:
        """Where a part is from."""
        return self.autoencoder if part == "vae" else self.source

    @classmethod
    def _shaped(cls, base: Path, kinds: tuple[str, ...]) -> bool:
        return base.suffix == ".safetensors" and original.kind_of(
            tensorfile.peek(base, ModelFileError)[0]) in kinds

    def _open(self) -> None:
        """Find the parts; ModelFileError names what is missing."""
        base, chosen = self.base, self.chosen
        if base.is_file():
            self.source: Any = modelfiles.Single(base, chosen.tokenizer)
        else:
            self._refuse_missing_parts()
            self.source = modelfiles.Folder(base, self.stems,
                                            {part: base / part for part in self.stems})
        self.autoencoder: Any = self.source
        if chosen.vae:
            said = self.source.config("vae", {})
            self.autoencoder = modelfiles.open_vae(chosen.vae, said)
        for part in self.stems:
            self._of(part).weights(part)
        if base.is_dir():
            self.source.words("tokenizer")

    def _refuse_missing_parts(self) -> None:
        parts = (*self.stems, *self.others)
        missing = [part for part in parts if not (self.base / part).is_dir()]
        if missing:
            raise ModelFileError(
                f"The base model {self.base} has no folder {', '.join(missing)}.",
                f"A diffusers folder of {self.label} holds {', '.join(parts)}; copy the "
                "missing part from where the model came from.")

    def _layers(self, part: str) -> list[Layer]:
        """From the names and shapes in the header alone: (o, i) linear, (o, i, k, k) conv, (c)
        norm."""
        entries = self.source.weights(part).entries
        kinds = {1: "norm", 2: "linear", 4: "conv"}
        found = []
        for key, (_, shape) in entries.items():
            name, _, leaf = key.rpartition(".")
            table = name.endswith(("token_embedding", "position_embedding", "text_projection"))
            if leaf != "weight" or len(shape) not in kinds or table:
                continue
            found.append(Layer(name.removeprefix(TEXT_LEVEL), kinds[len(shape)], tuple(shape),
                               f"{name}.bias" in entries, part))
        return found


class StableDiffusionModel(Model):
    """The loaded parts."""

    # {text encoder: (its class, its tokenizer, its name in files of embeddings)}
    texts: ClassVar[Mapping[str, tuple[str, str, str]]] = {
        "text_encoder": ("CLIPTextModel", "tokenizer", "emb_params")}

    def __init__(self, family: StableDiffusion, device: torch.device, dtype: torch.dtype,
                 report: Report = unheard):
        import diffusers
        import transformers

        transformers.utils.logging.disable_progress_bar()
        loading: list[str] = []

        def part(kind: Any, name: str, precision: torch.dtype) -> nn.Module:
            loaded = family.build(kind, name, precision).to(device)
            loading.append(name)
            report(len(loading), len(self.texts) + 2)
            return loaded.requires_grad_(False).eval()

        def encoder(name: str, kind: str, words: str, key: str) -> prompts.Encoder:
            tokenizer = modelfiles.tokenizer(family.source, words, name)
            _refuse_other_vocabulary(len(tokenizer), family, name)
            return prompts.Encoder(tokenizer, part(getattr(transformers, kind), name, dtype),
                                   family.max_tokens + 2, key)

        self.device, self.dtype = device, dtype
        self.encoders = tuple(encoder(name, *each) for name, each in self.texts.items())
        self.text_encoder = self.encoders[0].module
        self.unet = part(diffusers.UNet2DConditionModel, "unet", dtype)
        self.vae = part(diffusers.AutoencoderKL, "vae",
                        dtype if family.half_vae else torch.float32)
        self.scheduler_config = family.scheduler_config
        with modelfiles.reading(family.base, "scheduler"):
            noise = diffusers.DDPMScheduler.from_config(self.scheduler_config)
        self.objective = objectives.make(noise.config.prediction_type, noise.alphas_cumprod)
        self.latent_channels = self.vae.config.latent_channels
        self.latent_scale = family.latent_scale
        self.modules: Mapping[str, nn.Module] = {"unet": self.unet, **{
            name: getattr(each.module, "text_model", each.module)
            for name, each in zip(self.texts, self.encoders, strict=True)}}

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        texts = zip(self.texts, self.encoders, strict=True)
        return {"unet": self.unet, "vae": self.vae,
                **{name: encoder.module for name, encoder in texts}}

    @torch.no_grad()
    def encode_image(self, pictures: Tensor) -> Tensor:
        """(b, 3, h, w) -> (b, c, h / f, w / f): the posterior's mean, so that it is repeatable."""
        self.ready("vae")
        mean = self.vae.encode(pictures.to(self.device, self.vae.dtype)).latent_dist.mean.float()
        shift = self.vae.config.shift_factor or 0.0
        return (mean - shift) * self.vae.config.scaling_factor

    def encode_text(self, captions: Sequence[str]) -> Condition:
        """{"hidden": (b, tokens, features)}, padded to the model's length as it was trained."""
        self.ready(*self.texts)
        return self._encoded([prompts.literal(encoder, captions, self.reading.chunks)
                              for encoder in self.encoders])

    def encode_prompts(self, texts: Sequence[str]) -> Condition:
        self.ready(*self.texts)
        return self._encoded(prompts.read(self.encoders, texts, self.reading.embeddings))

    def check_prompts(self, texts: Sequence[str]) -> None:
        if texts:
            prompts.read(self.encoders, texts, self.reading.embeddings)

    def _encoded(self, read: Sequence[Sequence[Sequence[prompts.Chunk]]]) -> Condition:
        """The condition of the texts as each of the encoders reads them."""
        found = prompts.encode(self.encoders[0], read[0], self.reading.clip_skip)
        return {"hidden": found.hidden}

    def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        hidden = cond["hidden"].to(self.dtype)
        return self.unet(x_t.to(self.dtype), t, hidden, return_dict=False)[0]

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        self.ready("vae")
        shift = self.vae.config.shift_factor or 0.0
        scaled = latents.float() / self.vae.config.scaling_factor + shift
        return self.vae.decode(scaled.to(self.vae.dtype), return_dict=False)[0]

    def train_mode(self, *, checkpointing: bool) -> None:
        if checkpointing:
            self.unet.enable_gradient_checkpointing()
            self.unet.train()  # it recomputes only in training mode, as the text encoders; neither
            for encoder in self.encoders:  # has dropout
                encoder.module.activation_checkpointing_enable({"use_reentrant": False})
                encoder.module.train()

    def eval_mode(self) -> None:
        self.unet.eval()
        for encoder in self.encoders:
            encoder.module.eval()


def _refuse_other_vocabulary(tokens: int, family: StableDiffusion, part: str) -> None:
    """A text encoder's table may have rows to spare, but another's tokens mean nothing to it."""
    if not 0.9 * family.vocabulary <= tokens <= family.vocabulary:
        raise ModelFileError(
            f"The tokenizer of {family.base} knows {tokens:,} tokens, its {_words(part)} "
            f"{family.vocabulary:,}.",
            f"Copy both folders, tokenizer and {part}, from where the model came from.")


def _words(part: str) -> str:
    return part.replace("_", " ")
