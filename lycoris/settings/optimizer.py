"""Who takes the steps, and how large they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from ..knobs import Knob


@dataclass(frozen=True)
class OptimizerConfig:
    name: Annotated[str, Knob("The optimiser.", label="Optimiser", catalogue="optimizers")] = (
        "AdamW")
    lr: Annotated[float, Knob("Learning rate.", 1e-9, 1000, label="Learning rate")] = 1e-4
    text_encoder_lr: Annotated[float | None, Knob(
        "The text encoder's own; empty: the same as the learning rate.",
        0, 1000, none="same", label="Text encoder learning rate")] = None
    text_encoder_2_lr: Annotated[float | None, Knob(
        "That of SDXL's second text encoder; empty: the same as the first one's.",
        0, 1000, none="as the first", label="Second encoder learning rate")] = None
    plus_ratio: Annotated[float, Knob(
        "LoRA+: the part of the adapter that starts at zero learns this many times faster. 16 "
        "is usual, 1 is off.", 0.01, 1000, label="LoRA+ ratio")] = 1.0
    text_encoder_plus_ratio: Annotated[float | None, Knob(
        "LoRA+ ratio of the text encoders; empty: the same.",
        0.01, 1000, none="same", label="Text encoder LoRA+ ratio")] = None
    weight_decay: Annotated[float, Knob(
        "Pulls the adapter's weights towards zero, a little in each step; 0 is off.",
        0, 10, 0.001)] = 0.01
    schedule: Annotated[str, Knob(
        "How the learning rate changes over the run.", catalogue="schedules")] = "cosine"
    warmup: Annotated[float, Knob("Share of the steps over which the learning rate rises from "
                                  "zero.", 0, 0.9, 0.01)] = 0.05
    floor: Annotated[float, Knob(
        "The learning rate never falls below this share of its full value.",
        0, 1, 0.01, label="Lowest rate")] = 0.0
    cycles: Annotated[int, Knob(
        "cosine_with_restarts: how many times the rate falls and starts again.",
        1, 1000, label="Restarts")] = 1
    power: Annotated[float, Knob(
        "polynomial: 1 falls in a straight line, more falls faster at first.",
        0.01, 100, label="Power of the polynomial")] = 1.0
    decay: Annotated[float, Knob("wsd: share of the steps over which the rate falls at the end.",
                                 0.01, 1, 0.01, label="Decay at the end")] = 0.2
    args: Annotated[dict[str, Any], Knob(
        "More arguments of the optimiser, one a line: betas = [0.9, 0.99].",
        label="Further arguments")] = field(
        default_factory=dict)
