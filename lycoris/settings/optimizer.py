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
    text_encoder_lr: Annotated[float | None, Knob("Learning rate of the text encoder.", 0, 1000,
                                                  none="same")] = None
    text_encoder_2_lr: Annotated[float | None, Knob(
        "Learning rate of SDXL's second text encoder.", 0, 1000,
        label="Second text encoder lr", none="as the first")] = None
    plus_ratio: Annotated[float, Knob("LoRA+: how many times faster the factor learns that starts "
                                      "at zero; 16 is usual, 1 is off.", 0.01, 1000,
                                      label="LoRA+ ratio")] = 1.0
    weight_decay: Annotated[float, Knob("Pull of the adapter's weights towards zero.",
                                        0, 10, 0.001)] = 0.01
    schedule: Annotated[str, Knob("Course of the learning rate.", catalogue="schedules")] = "cosine"
    warmup: Annotated[float, Knob("Share of the steps over which the learning rate rises from "
                                  "zero.", 0, 0.9, 0.01)] = 0.05
    floor: Annotated[float, Knob("The learning rate never falls below this share of itself.",
                                 0, 1, 0.01, label="Lowest rate")] = 0.0
    cycles: Annotated[int, Knob("cosine_with_restarts: how many cosines.", 1, 1000)] = 1
    power: Annotated[float, Knob("polynomial: 1 falls in a line, more falls faster at first.",
                                 0.01, 100)] = 1.0
    decay: Annotated[float, Knob("wsd: share of the steps over which the rate falls at the end.",
                                 0.01, 1, 0.01)] = 0.2
    args: Annotated[dict[str, Any], Knob("Further arguments of the optimiser.")] = field(
        default_factory=dict)
