"""Painting: prompts and seeds in, pictures out, one at a time so that each depends on nothing else.

The starting noise is drawn on the CPU from the seed alone, so every adapter and the base begin a
(prompt, seed) cell from the very same noise.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from . import durable, promptfile, samplers
from .families import Condition, Model
from .settings import SampleConfig

RECIPE = "lycogui"  # the PNG text that holds the whole recipe as JSON


@dataclass(frozen=True)
class Job:
    """One picture to paint; `own` are the fields of Settings that it has for itself."""

    prompt: str
    seed: int
    own: Mapping[str, Any] = field(default_factory=dict)

    def how(self, settings: Settings) -> Settings:
        return replace(settings, **self.own)


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
    """Every prompt with every seed, or with its own, prompts outermost."""
    return [Job(prompt.text, seed, prompt.own) for prompt in promptfile.read(sample)
            for seed in (sample.seeds if prompt.seed is None else (prompt.seed,))]


def while_training(sample: SampleConfig) -> list[Job]:
    """Every prompt once, with its own seed or the first."""
    first = sample.seeds[0] if sample.seeds else 1
    return [Job(prompt.text, first if prompt.seed is None else prompt.seed, prompt.own)
            for prompt in promptfile.read(sample)]


@torch.no_grad()
def paint(model: Model, jobs: Sequence[Job], settings: Settings,
          stopped: Callable[[], bool] = lambda: False) -> Iterator[Image.Image]:
    """The pictures in order, each as soon as it is done; ends early when `stopped` says so."""
    model.eval_mode()
    schedulers: dict[str, Any] = {}
    cond: dict[tuple[str, str], Condition] = {}
    for job in jobs:
        how = job.how(settings)
        if how.sampler not in schedulers:
            schedulers[how.sampler] = samplers.make(how.sampler, model.scheduler_config)
        texts = (how.negative, job.prompt)
        if texts not in cond:
            cond = {texts: model.encode_prompts(list(texts))}
        latents = _denoise(model, schedulers[how.sampler], cond[texts], job.seed, how, stopped)
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
    if hasattr(scheduler, "set_begin_index"):  # it would look for the first timestep, which Karras'
        scheduler.set_begin_index(0)  # sigmas of a model of zero terminal SNR have several times
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
    settings = job.how(settings)
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
