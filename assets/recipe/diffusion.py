"""Stage `diffusion`: the UNet and the text encoder, trained together from nothing."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from .fast import autocast, prepare
from .pictures import load_pictures
from .tokenizer import MAX_TOKENS
from .training import (
    Average,
    Checkpoint,
    Progress,
    Schedule,
    finish,
    step_generator,
    write_atomically,
)
from .vae import encode, load_vae

PREVIEW_PROMPTS = (
    "a red circle on a white background", "a big yellow star at night",
    "a striped orange cat on a pink background", "a small blue house on grass",
    "a purple fish by the sea", "an outlined orange heart on a black background",
    "a dotted red mushroom in the desert", "a teal boat by the sea",
    "a white moon on the left at night", "a pink tree in the snow",
    "a brown diamond on the right on a teal background", "a black cat on an orange background",
    "a red diamond on a yellow background", "a pink fish on a white background",
    "a yellow house on grass", "a white boat at night",
    "a zorb on grass", "a striped blick on a purple background",
)  # fmt: skip


@dataclass(frozen=True)
class DiffusionSettings:
    steps: int = 16000
    batch: int = 32
    rate: float = 1e-3
    text_rate: float = 6e-4
    widths: tuple[int, int] = (96, 112)
    text_width: int = 128
    text_layers: int = 3
    dropped: float = 0.1  # share of the captions that are left empty
    seed: int = 0
    precision: str = "fp32"
    save_every: int = 500
    preview_every: int = 2500


def new_scheduler() -> Any:
    """Velocity prediction, and hardly any signal left at the last step: backgrounds are flat."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="linear",
        beta_start=1e-4,
        beta_end=0.02,
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


def new_unet(widths: tuple[int, int], text_width: int) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=widths,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=text_width,
        attention_head_dim=4,  # in diffusers, the number of heads
        norm_num_groups=16,
    )


def new_text_encoder(tokenizer: Any, settings: DiffusionSettings) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.text_width,
            intermediate_size=4 * settings.text_width,
            projection_dim=settings.text_width,
            num_hidden_layers=settings.text_layers,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def load_tokenizer(out: Path) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(out / "tokenizer")


@torch.no_grad()
def start_quietly(unet: Any, text_encoder: Any) -> None:
    """Words far apart from the first step on; every residual block starts as (nearly) nothing."""
    for name, module in text_encoder.named_modules():
        if name.endswith("token_embedding"):
            module.weight.normal_(0, 0.3)
        elif name.endswith("position_embedding"):
            module.weight.normal_(0, 0.1)
    unet.conv_out.weight.zero_()
    for name, module in unet.named_modules():
        if type(module).__name__ == "ResnetBlock2D":
            module.conv2.weight.zero_()
        elif name.endswith("proj_out"):
            module.weight.mul_(0.1)


def tokenized(tokenizer: Any, captions: list[str]) -> Tensor:
    options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    return tokenizer(captions, max_length=MAX_TOKENS, **options).input_ids


def latents_of(work: Path, out: Path) -> np.ndarray:
    """All pictures as latents, computed once."""
    path = work / "latents.npy"
    if not path.exists():
        pixels, _ = load_pictures(work)
        autoencoder = prepare(load_vae(out), "fp32")
        latents = np.empty((len(pixels), 4, 16, 16), np.float16)
        for start in range(0, len(pixels), 1000):
            latents[start : start + 1000] = encode(autoencoder, pixels[start : start + 1000])
            print(f"latents {start + 1000}/{len(pixels)}", end="\r", flush=True)
        temporary = work / "latents.tmp.npy"
        np.save(temporary, latents)
        temporary.replace(path)
    return np.load(path)


def random_times(count: int, generator: torch.Generator) -> Tensor:
    """Half of them from the middle, where shapes and colours are decided."""
    anywhere = torch.randint(0, 1000, (count,), generator=generator)
    middle = torch.randint(80, 650, (count,), generator=generator)
    return torch.where(torch.rand(count, generator=generator) < 0.5, middle, anywhere)


class DiffusionTrainer:
    """The models, their averages and one step of training."""

    def __init__(self, work: Path, out: Path, settings: DiffusionSettings) -> None:
        self.out, self.settings = out, settings
        self.latents = latents_of(work, out)
        self.tokenizer = load_tokenizer(out)
        self.tokens = tokenized(self.tokenizer, load_pictures(work)[1])
        self.empty = tokenized(self.tokenizer, [""])
        torch.manual_seed(settings.seed)
        self.unet = new_unet(settings.widths, settings.text_width)
        self.text_encoder = new_text_encoder(self.tokenizer, settings)
        start_quietly(self.unet, self.text_encoder)
        prepare(self.unet, settings.precision).train()
        self.text_encoder.train()
        groups = [(self.unet, settings.rate), (self.text_encoder, settings.text_rate)]
        self.optimizer = torch.optim.AdamW(
            [{"params": list(model.parameters()), "peak": rate} for model, rate in groups],
            weight_decay=1e-3,
            betas=(0.9, 0.99),
            fused=True,
        )
        self.parameters = [p for model, _ in groups for p in model.parameters()]
        self.average = Average(self.parameters, 0.9995)
        self.schedule = Schedule(settings.steps, settings.rate, warmup=200, level=0.35)
        models = {"unet": self.unet, "text_encoder": self.text_encoder}
        path = work / "diffusion.pt"
        self.checkpoint = Checkpoint(path, models, self.optimizer, self.average)
        signal = new_scheduler().alphas_cumprod
        self.signal, self.noise = signal.sqrt(), (1 - signal).sqrt()

    def loss(self, step: int) -> Tensor:
        count = self.settings.batch
        generator = step_generator(self.settings.seed, step)
        chosen = torch.randint(len(self.latents), (count,), generator=generator)
        clean = torch.from_numpy(self.latents[chosen.numpy()]).float()
        is_dropped = torch.rand(count, 1, generator=generator) < self.settings.dropped
        tokens = torch.where(is_dropped, self.empty, self.tokens[chosen])
        times = random_times(count, generator)
        noise = torch.randn(clean.shape, generator=generator)
        return self.velocity_error(clean, noise, tokens, times).mean()

    def velocity_error(self, clean: Tensor, noise: Tensor, tokens: Tensor, times: Tensor) -> Tensor:
        """Mean squared error of each picture of the batch."""
        signal, spread = (a[times].view(-1, 1, 1, 1) for a in (self.signal, self.noise))
        noisy = (signal * clean + spread * noise).contiguous(memory_format=torch.channels_last)
        with autocast(self.settings.precision):
            states = self.text_encoder(tokens).last_hidden_state
            output = self.unet(noisy, times, states, return_dict=False)[0]
        target = signal * noise - spread * clean
        return functional.mse_loss(output.float(), target, reduction="none").mean((1, 2, 3))

    def step(self, step: int) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * self.schedule.factor(step)
        loss = self.loss(step)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update(step)
        return loss.item()

    def save_pipeline(self, folder: Path) -> None:
        """The averaged weights in half precision, as an ordinary pipeline."""
        with self.average.applied():
            unet = new_unet(self.settings.widths, self.settings.text_width)
            unet.load_state_dict(self.unet.state_dict())
            text_encoder = new_text_encoder(self.tokenizer, self.settings)
            text_encoder.load_state_dict(self.text_encoder.state_dict())
        save_pipeline(unet, text_encoder, self.out, folder)


def save_pipeline(unet: Any, text_encoder: Any, out: Path, folder: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        vae=load_vae(out),
        text_encoder=text_encoder,
        tokenizer=load_tokenizer(out),
        unet=unet,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=torch.float16).save_pretrained(folder)
    for path in [folder / "model_index.json", *folder.glob("*/config.json")]:
        config = json.loads(path.read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)
        write_atomically(path, json.dumps(config, indent=2, sort_keys=True) + "\n")
    _name_text_weights(folder / "text_encoder" / "model.safetensors")


def _name_text_weights(path: Path) -> None:
    """Gives the text encoder's weights the names that Stable Diffusion checkpoints have."""
    from safetensors.torch import load_file, save_file

    prefix = "text_model."
    weights = {prefix + name.removeprefix(prefix): w for name, w in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


def load_pipeline(folder: Path) -> Any:
    """In float32, for a CPU, without a progress bar."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def preview(folder: Path, picture: Path) -> None:
    from .draw import grid

    generator = torch.Generator().manual_seed(7)
    pictures = load_pipeline(folder)(
        list(PREVIEW_PROMPTS), num_inference_steps=15, guidance_scale=4.0, generator=generator
    ).images
    picture.parent.mkdir(parents=True, exist_ok=True)
    grid(pictures, 6).save(picture)


def train_diffusion(work: Path, out: Path, settings: DiffusionSettings) -> None:
    trainer = DiffusionTrainer(work, out, settings)
    start, seconds = trainer.checkpoint.load()
    progress = Progress("diffusion", settings.steps, start, seconds)
    for step in range(start, settings.steps):
        progress.add(step, trainer.step(step), 100)
        done = step + 1
        if done % settings.save_every == 0 or done == settings.steps:
            trainer.checkpoint.save(done, progress.seconds)
        if done % settings.preview_every == 0:
            trainer.save_pipeline(work / "preview")
            preview(work / "preview", work / "previews" / f"{done:06d}.png")
    trainer.save_pipeline(out)
    facts = {"steps": settings.steps, "batch": settings.batch}
    finish(work, "diffusion", seconds=round(progress.seconds), **facts)
