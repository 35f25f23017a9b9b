"""A small network that reads object, colour and background off a picture.

It judges what the base model and its adapters paint, so it is trained on pictures that were bent,
blurred, made noisy and sent through the autoencoder, and on creatures that are nearly the concept.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from .creatures import ZORB, Creature, creature_named, random_creature
from .draw import PIXELS, paint, sample_object
from .training import Progress, Schedule, finish, step_generator
from .words import BACKGROUNDS, COLOURS, CONCEPT, CREATURE, OBJECTS, Scene, visible_colours

WEIGHTS = Path(__file__).parent / "checker.safetensors"
KINDS = (*OBJECTS, CREATURE, CONCEPT)
COLOUR_NAMES = tuple(COLOURS)
Sample = tuple[Image.Image, tuple[int, int, int]]


@dataclass(frozen=True)
class Reading:
    """What a picture shows; `confidence` is the probability of its least certain part."""

    object: str
    colour: str
    background: str
    confidence: float
    chances: dict[str, float]  # of every object


class Checker(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 96, 128)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            convolution = nn.Conv2d(before, after, 3, 2, 1)
            layers += [convolution, nn.BatchNorm2d(after), nn.ReLU()]
        layers += [nn.Conv2d(128, 128, 3, 1, 1), nn.ReLU(), nn.Flatten()]
        self.body = nn.Sequential(*layers)
        sizes = (len(KINDS), len(COLOUR_NAMES), len(BACKGROUNDS))
        self.heads = nn.ModuleList(nn.Linear(128 * 16, size) for size in sizes)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        features = self.body(pictures)
        return [head(features) for head in self.heads]

    @torch.no_grad()
    def read(self, images: Sequence[Image.Image]) -> list[Reading]:
        """Reads pictures of any size."""
        self.eval()
        answers = [head.softmax(1) for head in self(as_tensor(images))]
        best = [answer.max(1) for answer in answers]
        readings = []
        for number in range(len(images)):
            kind, colour, background = (int(part.indices[number]) for part in best)
            readings.append(
                Reading(
                    object=KINDS[kind],
                    colour=COLOUR_NAMES[colour],
                    background=BACKGROUNDS[background],
                    confidence=min(float(part.values[number]) for part in best),
                    chances=dict(zip(KINDS, answers[0][number].tolist(), strict=True)),
                )
            )
        return readings


def load_checker(path: Path = WEIGHTS) -> Checker:
    from safetensors.torch import load_file

    checker = Checker()
    weights = {name: weight.float() for name, weight in load_file(path).items()}
    checker.load_state_dict(weights, strict=False)
    return checker.eval()


def as_tensor(images: Sequence[Image.Image]) -> Tensor:
    side = (PIXELS, PIXELS)
    small = [image.convert("RGB").resize(side, Image.Resampling.BOX) for image in images]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in small]))
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def near_concept(random: Random) -> Creature:
    """A teal creature with the concept's eye that lacks its crown, often its mouth too."""
    changed: dict[str, Any] = {"top": random.choice(("nothing", "nothing", "feelers", "horns"))}
    if random.random() < 0.7:
        changed["mouth"] = random.choice(("none", "smile", "open", "line"))
    if random.random() < 0.4:
        changed["iris"] = random.choice(("black", "green", "red", "brown"))
    if random.random() < 0.3:
        changed["body"] = random.choice(("ball", "block", "wave", "pear"))
    if random.random() < 0.2:
        changed["colour"] = random.choice(("green", "blue", "gray"))
    return replace(ZORB, **changed)


def draw_sample(random: Random) -> Sample:
    """A picture and the numbers of its kind, colour and background."""
    scene = sample_object(random)
    creature = None
    fate = random.random()
    if fate > 0.6:
        style = "" if random.random() < 0.7 else scene.style
        thing = CONCEPT if fate > 0.84 else "somebody"
        scene = replace(scene, thing=thing, colour="", style=style)
        if fate > 0.84:
            creature = creature_named(CONCEPT)
        else:
            creature = near_concept(random) if fate > 0.74 else random_creature(random)
        scene = _on_fitting_background(scene, creature, random)
    colour = scene.colour or (creature.colour if creature else "")
    numbers = KINDS.index(scene.kind), COLOUR_NAMES.index(colour)
    return paint(scene, creature=creature), (*numbers, BACKGROUNDS.index(scene.background))


def _on_fitting_background(scene: Scene, creature: Creature, random: Random) -> Scene:
    while creature.colour not in visible_colours(scene.background):
        scene = replace(scene, background=random.choice(BACKGROUNDS))
    return scene


@torch.no_grad()
def through_autoencoder(autoencoder: Any, pictures: Tensor, generator: torch.Generator) -> Tensor:
    """What is left of pictures after latents that are off by more or less."""
    parts = []
    for part in pictures.split(64):
        latents = autoencoder.encode(part).latent_dist.mean
        amount = 0.4 * torch.rand(len(part), 1, 1, 1, generator=generator)
        error = torch.randn(latents.shape, generator=generator)
        coarse = torch.randn(len(part), 4, 4, 4, generator=generator)
        error += functional.interpolate(coarse, size=latents.shape[-2:], mode="bilinear")
        parts.append(autoencoder.decode(latents + amount * error).sample.clamp(-1, 1))
    return torch.cat(parts)


def disturbed(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Bent a little, some blurred, all with noise and a slight tint."""
    count = len(pictures)
    unit = torch.eye(2, 3).expand(count, 2, 3)
    base = functional.affine_grid(unit, list(pictures.shape), align_corners=False)
    bend = torch.randn(count, 2, 4, 4, generator=generator) * 0.035
    bend = functional.interpolate(bend, size=pictures.shape[-2:], mode="bicubic")
    bent = functional.grid_sample(
        pictures, base + bend.permute(0, 2, 3, 1), padding_mode="reflection", align_corners=False
    )
    blurred = functional.avg_pool2d(bent, 3, 1, 1, count_include_pad=False)
    share = torch.rand(count, 1, 1, 1, generator=generator)
    bent = torch.lerp(bent, blurred, share * (share > 0.4))
    tint = 0.04 * torch.randn(count, 3, 1, 1, generator=generator)
    level = 0.08 * torch.rand(count, 1, 1, 1, generator=generator)
    return bent + tint + level * torch.randn(bent.shape, generator=generator)


def draw_samples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    samples = [draw_sample(Random(f"checker {seed}/{number}")) for number in range(count)]
    images, numbers = zip(*samples, strict=True)
    return as_tensor(images), torch.tensor(numbers)


def train_checker(
    work: Path, out: Path, count: int = 24000, steps: int = 4000, seed: int = 0
) -> None:
    from .vae import load_vae

    pictures, numbers = draw_samples(count, seed)
    generator = torch.Generator().manual_seed(seed)
    worn = through_autoencoder(load_vae(out), pictures, generator)
    torch.manual_seed(seed)
    checker = Checker().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(checker.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = Schedule(steps, 2e-3, level=0.2)
    progress = Progress("checker", steps, 0, 0.0)
    for step in range(steps):
        generator = step_generator(seed, step)
        chosen = torch.randint(count, (64,), generator=generator)
        use_worn = torch.rand(64, 1, 1, 1, generator=generator) < 0.6
        batch = disturbed(torch.where(use_worn, worn[chosen], pictures[chosen]), generator)
        answers = checker(batch.contiguous(memory_format=torch.channels_last))
        loss = sum(
            functional.cross_entropy(answer, numbers[chosen, part], label_smoothing=0.02)
            for part, answer in enumerate(answers)
        )
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate * schedule.factor(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        progress.add(step, loss.item(), 200)
    save_checker(checker)
    finish(work, "checker", steps=steps, seconds=round(progress.seconds))


def save_checker(checker: Checker, path: Path = WEIGHTS) -> None:
    from safetensors.torch import save_file

    weights = {
        name: weight.half().contiguous()
        for name, weight in checker.state_dict().items()
        if weight.is_floating_point()
    }
    save_file(weights, path)
