"""What a step is judged by: noise, timesteps, and how errors are weighed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ..knobs import Knob


@dataclass(frozen=True)
class LossConfig:
    min_snr_gamma: Annotated[float, Knob("Min-SNR weighting of the timesteps (5 is usual); "
                                         "0 is off.", 0, 100, label="Min-SNR gamma")] = 0.0
    noise_offset: Annotated[float, Knob("Adds to the noise one random shift per channel, for very "
                                        "dark and very bright pictures.", 0, 1, 0.01)] = 0.0
