"""What a step is judged by: noise, timesteps, and how errors are weighed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ..knobs import Knob


@dataclass(frozen=True)
class LossConfig:
    weighting: Annotated[str, Knob(
        "How much an error counts at each timestep.", catalogue="weightings",
        label="Loss weighting")] = "none"
    snr_gamma: Annotated[float, Knob(
        "Above this signal-to-noise ratio clean timesteps gain no more weight; 5 is usual.",
        0.01, 100, label="SNR gamma")] = 5.0
    p2_gamma: Annotated[float, Knob("How strongly P2 lowers clean timesteps; 1 is usual.", 0, 10,
                                    label="P2 gamma")] = 1.0
    p2_k: Annotated[float, Knob("The signal-to-noise ratio from which P2 lowers them.", 0.01, 100,
                                label="P2 k")] = 1.0
    distance: Annotated[str, Knob("How an error is measured; Huber ones care less about outliers.",
                                  catalogue="distances", label="Loss")] = "l2"
    huber_c: Annotated[float, Knob("Errors larger than this count linearly.", 0.0001, 100)] = 0.1
    huber_schedule: Annotated[str, Knob(
        "How that limit falls from 1 at the clean end of the timesteps.",
        choices=("constant", "exponential", "snr"))] = "constant"
    timesteps: Annotated[str, Knob(
        "Which timesteps are drawn how often. Low ones are nearly clean and teach detail, high "
        "ones are nearly noise and teach composition.", catalogue="timesteps")] = "uniform"
    logit_mean: Annotated[float, Knob("Below 0 towards the clean end, above 0 towards noise.",
                                      -10, 10)] = 0.0
    logit_std: Annotated[float, Knob("How far around its middle; 1 is usual.", 0.01, 10,
                                     label="Logit spread")] = 1.0
    timestep_shift: Annotated[float, Knob("Above 1 moves all of it towards noise; 1 is off.",
                                          0.01, 100)] = 1.0
    timestep_min: Annotated[int, Knob("The first timestep that is drawn.", 0, 100_000,
                                      label="Timesteps from")] = 0
    timestep_max: Annotated[int | None, Knob("The first that is not; 1000 of 1000 are all.", 1,
                                             100_000, none="all", label="Timesteps up to")] = None
    noise_offset: Annotated[float, Knob("Adds to the noise one random shift per channel, for very "
                                        "dark and very bright pictures.", 0, 1, 0.01)] = 0.0
    noise_offset_random: Annotated[bool, Knob("Draws each picture's offset between 0 and that.",
                                              label="Random noise offset")] = False
    adaptive_offset: Annotated[float, Knob(
        "More offset for each channel by how far its mean is from 0, times this.", -10, 10,
        label="Adaptive noise offset")] = 0.0
    pyramid_iterations: Annotated[int, Knob("Adds noise of ever larger grain, so often; 6 to 10 "
                                            "are usual, 0 is off.", 0, 16,
                                            label="Pyramid noise")] = 0
    pyramid_discount: Annotated[float, Knob("How strong each grain is beside the one before.",
                                            0, 1)] = 0.3
    input_perturbation: Annotated[float, Knob(
        "More noise in what the model sees than it is asked for, against its own errors in "
        "sampling; 0.1 is usual.", 0, 1, 0.01)] = 0.0
    unmasked_weight: Annotated[float, Knob("How much an error outside of a picture's mask counts.",
                                           0, 1, 0.01)] = 0.1
    prior_weight: Annotated[float, Knob("How much regularisation pictures count.",
                                        0, 100)] = 1.0
    prior_from_base: Annotated[bool, Knob(
        "Regularisation pictures teach what the base model predicts for them, not what they show.",
        label="Base model as regularisation")] = False
