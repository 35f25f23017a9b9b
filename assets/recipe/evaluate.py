"""Stage `evaluate`: does the model paint what it is asked for, and how well does the VAE see?

The checker reads every picture; drawn pictures of the same scenes give the highest figures that
can be expected of it.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image

from .checker import Checker, load_checker
from .diffusion import load_pipeline
from .draw import grid, paint, sample_object
from .training import write_atomically
from .vae import decode, encode, reconstruction_quality
from .words import CONCEPT, OPENINGS, Scene, is_held_out

KINDS = ("plain", "styles", "held-out")
SAMPLERS = {"DDIM": 15, "DPM++ 2M": 12}
GUIDANCE = 4.0


@dataclass(frozen=True)
class Score:
    """Shares of pictures, in percent, that show what was asked for."""

    object: float
    colour: float
    background: float
    all: float


def scenes_of(kind: str, count: int) -> list[tuple[Scene, str]]:
    """Scenes and captions: plain ones, ones with a style, size or place, held-out pairs."""
    random = Random(f"evaluate {kind}")
    chosen: list[tuple[Scene, str]] = []
    while len(chosen) < count:
        scene = sample_object(random)
        opening = random.choice(OPENINGS) if random.random() < 0.3 else ""
        if is_held_out(scene.colour, scene.thing) != (kind == "held-out"):
            continue
        if kind == "held-out" or scene.is_plain == (kind == "plain"):
            chosen.append((scene, scene.caption(opening)))
    return chosen


def score(checker: Checker, images: list[Image.Image], scenes: Iterable[Scene]) -> Score:
    rows = []
    for reading, scene in zip(checker.read(images), scenes, strict=True):
        row = (
            reading.object == scene.kind,
            reading.colour == scene.colour,
            reading.background == scene.background,
        )
        rows.append((*row, all(row)))
    return Score(*(round(100 * float(share), 1) for share in np.mean(rows, 0)))


def with_sampler(pipeline: Any, sampler: str) -> Any:
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    kind = DDIMScheduler if sampler == "DDIM" else DPMSolverMultistepScheduler
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
    return pipeline


def painted(
    pipeline: Any, captions: list[str], sampler: str = "DDIM", batch: int = 32
) -> list[Image.Image]:
    """Pictures of captions; the noise of a batch is a function of its number."""
    with_sampler(pipeline, sampler)
    images: list[Image.Image] = []
    for start in range(0, len(captions), batch):
        images += pipeline(
            captions[start : start + batch],
            num_inference_steps=SAMPLERS[sampler],
            guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(start),
        ).images
    return images


def evaluate_prompts(
    pipeline: Any, checker: Checker, count: int, folder: Path
) -> dict[str, dict[str, dict[str, float]]]:
    results: dict[str, dict[str, dict[str, float]]] = {}
    for kind in KINDS:
        scenes, captions = map(list, zip(*scenes_of(kind, count), strict=True))
        results[kind] = {"drawn": asdict(score(checker, [paint(s) for s in scenes], scenes))}
        for sampler in SAMPLERS:
            images = painted(pipeline, captions, sampler)
            results[kind][sampler] = asdict(score(checker, images, scenes))
            if sampler == "DDIM":
                grid(images[:48], 8).save(folder / f"{kind}.png", optimize=True)
        for name, figures in results[kind].items():
            print(f"{kind:9} {name:9} {figures}", flush=True)
    return results


def evaluate_unknown_word(pipeline: Any, checker: Checker, count: int) -> dict[str, float]:
    """What the base paints for the concept's name: never the concept."""
    scenes = [scene for scene, _ in scenes_of("plain", count)]
    captions = [Scene(CONCEPT, scene.background).caption() for scene in scenes]
    kinds = [reading.object for reading in checker.read(painted(pipeline, captions))]
    shares = {name: 100 * kinds.count(name) / count for name in ("creature", CONCEPT)}
    print(f"unknown word: {shares}", flush=True)
    return {name: round(share, 1) for name, share in shares.items()}


def evaluate_autoencoder(pipeline: Any, folder: Path, count: int = 256) -> dict[str, float]:
    """Fresh pictures of all kinds through latents and back."""
    random = Random("evaluate autoencoder")
    images = [paint(sample_object(random)) for _ in range(count)]
    pixels = np.stack([np.asarray(image) for image in images])
    quality = reconstruction_quality(pipeline.vae, pixels, count)
    restored = decode(pipeline.vae, encode(pipeline.vae, pixels[:24]))
    rows: list[Image.Image] = []
    for start in range(0, 24, 8):
        rows += images[start : start + 8]
        rows += [Image.fromarray(picture) for picture in restored[start : start + 8]]
    grid(rows, 8).save(folder / "autoencoder.png", optimize=True)
    print(f"autoencoder: {quality} dB", flush=True)
    return {"decibels": quality, "pictures": count}


def folder_size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def evaluate(model: Path, folder: Path, count: int = 96) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    pipeline, checker = load_pipeline(model), load_checker()
    results = {
        "prompts_each": count,
        "guidance": GUIDANCE,
        "steps": SAMPLERS,
        "bytes": folder_size(model),
        "scores": evaluate_prompts(pipeline, checker, count, folder),
        "unknown_word": evaluate_unknown_word(pipeline, checker, count),
        "autoencoder": evaluate_autoencoder(pipeline, folder),
    }
    write_atomically(folder / "results.json", json.dumps(results, indent=2) + "\n")
    return results
