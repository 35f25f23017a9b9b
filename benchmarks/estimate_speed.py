"""How long one exact estimate takes: from settings to bytes, with the base's headers read already.

Prints milliseconds for the embedded model and for SD1.5's layers (real modules on the meta device),
and their ratio:

    python benchmarks/estimate_speed.py [--rounds 50]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from lycoris import assignments, families, sizes
from lycoris.algorithms import Layer
from lycoris.config import ASSETS, NetworkConfig
from lycoris.families.sd import StableDiffusion


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=50)
    rounds = parser.parse_args().rounds
    bases = {"tiny-sd": families.open_base(ASSETS / "tiny-sd").layers, "SD1.5": sd15()}
    for algo in ("lora", "loha"):
        found = {name: measure(layers, algo, rounds) for name, layers in bases.items()}
        listed = ", ".join(f"{name} {ms:.2f} ms ({len(bases[name])} layers)"
                           for name, ms in found.items())
        print(f"{algo}: {listed}, ratio {found['SD1.5'] / found['tiny-sd']:.2f}")


def measure(layers: Sequence[Layer], algo: str, rounds: int) -> float:
    """Median milliseconds of one estimate."""
    taken = []
    for number in range(rounds):
        network = NetworkConfig(algo=algo, preset="full", dim=1 + number)
        began = time.perf_counter()
        chosen = StableDiffusion.select(layers, network.preset)
        sizes.measure(assignments.assign(chosen, network, StableDiffusion.key), "fp16", {})
        taken.append(1000 * (time.perf_counter() - began))
    return statistics.median(taken)


def sd15() -> tuple[Layer, ...]:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
        text = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072,
                                            num_hidden_layers=12, num_attention_heads=12))
    return (*families.layers_of(unet, "unet"), *families.layers_of(text, "text_encoder"))


if __name__ == "__main__":
    main()
