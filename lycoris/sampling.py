"""Painting: prompts and seeds in, pictures out, one at a time so that each depends on nothing else.

The starting noise is drawn on the CPU from the seed alone, so every adapter and the base begin a
(prompt, seed) cell from the very same noise.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from . import durable, samplers
from .families import Condition, Model
from .settings import SampleConfig

RECIPE = "lycogui"  # the PNG text that holds the whole recipe as JSON


@dataclass(frozen=True)
class Job:
    """One picture to paint."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class Settings:
    """How to paint; sides in pixels."""

    steps: int
    guidance: float
    sampler: str
    width: int
    height: int
    negative: str = ""


def settings_of(sample: SampleConfig, resolution: int, multiple: int) -> Settings:
    """The settings of a config; sides left open are the training resolution."""
    side = max(multiple, resolution // multiple * multiple)
    return Settings(sample.steps, sample.guidance, sample.sampler, sample.width or side,
                    sample.height or side, sample.negative)


def jobs_of(sample: SampleConfig) -> list[Job]:
    """Every prompt with every seed, prompts outermost."""
    return [Job(prompt, seed) for prompt in sample.prompts for seed in sample.seeds]


@torch.no_grad()
def paint(model: Model, jobs: Sequence[Job], settings: Settings,
          stopped: Callable[[], bool] = lambda: False) -> Iterator[Image.Image]:
    """The pictures in order, each as soon as it is done; ends early when `stopped` says so."""
    model.eval_mode()
    scheduler = samplers.make(settings.sampler, model.scheduler_config)
    cond: dict[str, Condition] = {}
    for job in jobs:
        if job.prompt not in cond:
            cond = {job.prompt: model.encode_prompts([settings.negative, job.prompt])}
        latents = _denoise(model, scheduler, cond[job.prompt], job.seed, settings, stopped)
        if latents is None:
            return
        yield to_image(model.decode(latents)[0])


def _denoise(model: Model, scheduler: Any, cond: Condition, seed: int, settings: Settings,
             stopped: Callable[[], bool]) -> Tensor | None:
    """One picture's latents; `cond` is of two texts: negative, positive. None if stopped."""
    stream = torch.Generator().manual_seed(seed)
    scale = model.latent_scale
    whole = (settings.height, settings.width, 0, 0, settings.height, settings.width)
    cond = model.with_sizes(cond, [whole, whole])
    latents = torch.randn((1, model.latent_channels, settings.height // scale,
                           settings.width // scale), generator=stream).to(model.device)
    scheduler.set_timesteps(settings.steps, device=model.device)
    latents = latents * scheduler.init_noise_sigma
    guided = settings.guidance > 1
    positive = {name: tensor[1:] for name, tensor in cond.items()}
    takes_generator = "generator" in scheduler.step.__code__.co_varnames
    extra = {"generator": stream} if takes_generator else {}
    for t in scheduler.timesteps:
        if stopped():
            return None
        x = scheduler.scale_model_input(latents, t)
        if guided:
            without, told = model.predict(torch.cat([x, x]), t.expand(2), cond).chunk(2)
            predicted = without + settings.guidance * (told - without)
        else:
            predicted = model.predict(x, t.expand(1), positive)
        latents = scheduler.step(predicted.float(), t, latents, **extra, return_dict=False)[0]
    return latents


def to_image(pixels: Tensor) -> Image.Image:
    """(3, h, w) in -1..1 -> a picture."""
    data = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(data.permute(1, 2, 0).cpu().numpy())


def recipe(job: Job, settings: Settings, base: str,
           adapter: Mapping[str, Any] | None = None) -> dict[str, str]:
    """The PNG texts that reproduce a picture: ours as JSON, and the line other programs show."""
    whole = {"prompt": job.prompt, "negative": settings.negative, "seed": job.seed,
             "steps": settings.steps, "sampler": settings.sampler, "cfg": settings.guidance,
             "width": settings.width, "height": settings.height, "base": base,
             "adapter": dict(adapter) if adapter else None}
    negative = f"\nNegative prompt: {settings.negative}" if settings.negative else ""
    line = (f"{job.prompt}{negative}\nSteps: {settings.steps}, Sampler: {settings.sampler}, "
            f"CFG scale: {settings.guidance:g}, Seed: {job.seed}, "
            f"Size: {settings.width}x{settings.height}, Model: {base}")
    return {"parameters": line, RECIPE: json.dumps(whole, ensure_ascii=False)}


def write_png(path: Path, image: Image.Image, texts: Mapping[str, str]) -> Path:
    """Write a PNG durably with its texts inside."""
    info = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        info.add_itxt(key, text) if not text.isascii() else info.add_text(key, text)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return durable.write_bytes(path, buffer.getvalue())
