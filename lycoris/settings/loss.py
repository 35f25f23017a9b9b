"""What a step is judged by: noise, timesteps, and how errors are weighed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ..knobs import Knob


@dataclass(frozen=True)
class LossConfig:
    weighting: Annotated[str, Knob(
        "How much an error counts at each timestep, that is, at each amount of noise.",
        catalogue="weightings", label="Loss weighting")] = "none"
    snr_gamma: Annotated[float, Knob(
        "Timesteps with less noise than this signal-to-noise ratio count less; 5 is usual.",
        0.01, 100, label="SNR gamma")] = 5.0
    p2_gamma: Annotated[float, Knob(
        "How strongly P2 lowers what timesteps with little noise count; 1 is usual.",
        0, 10, label="P2 gamma")] = 1.0
    p2_k: Annotated[float, Knob(
        "The signal-to-noise ratio from which P2 lowers it; 1 is usual.",
        0.01, 100, label="P2 k")] = 1.0
    distance: Annotated[str, Knob(
        "How an error is measured. L2 is usual; Huber, smooth L1 and L1 care less about a few "
        "large errors.", catalogue="distances", label="Loss")] = "l2"
    huber_c: Annotated[float, Knob(
        "Errors above this count in proportion, and not squared.", 0.0001, 100)] = 0.1
    huber_schedule: Annotated[str, Knob(
        "Whether that limit is the same at every timestep, or falls with more noise, from 1 "
        "where there is none.", choices=("constant", "exponential", "snr"))] = "constant"
    timesteps: Annotated[str, Knob(
        "Which timesteps are drawn how often. Low ones have little noise and teach detail, high "
        "ones are nearly noise and teach composition.", catalogue="timesteps")] = "uniform"
    logit_mean: Annotated[float, Knob(
        "Which timesteps are drawn most: below 0 those with little noise, above 0 those with "
        "much.", -10, 10)] = 0.0
    logit_std: Annotated[float, Knob(
        "How widely they spread around those that are drawn most; 1 is usual.",
        0.01, 10, label="Logit spread")] = 1.0
    timestep_shift: Annotated[float, Knob(
        "Above 1, timesteps with more noise are drawn more often; 1 changes nothing.",
        0.01, 100)] = 1.0
    timestep_min: Annotated[int, Knob(
        "The lowest timestep that is drawn; 0 has the least noise.",
        0, 100_000, label="Timesteps from")] = 0
    timestep_max: Annotated[int | None, Knob(
        "Only timesteps below this are drawn; a model has 1000.",
        1, 100_000, none="all", label="Timesteps up to")] = None
    noise_offset: Annotated[float, Knob(
        "Makes the noise brighter or darker as a whole, at random, so that very dark and very "
        "bright pictures are learned; 0 is off.", 0, 1, 0.01)] = 0.0
    noise_offset_random: Annotated[bool, Knob(
        "Draws another offset for each picture, between 0 and the noise offset.",
        label="Random noise offset")] = False
    adaptive_offset: Annotated[float, Knob(
        "Adds to the noise offset the more, the further a picture is from medium brightness and "
        "colour; 0 is off.", -10, 10, label="Adaptive noise offset")] = 0.0
    pyramid_iterations: Annotated[int, Knob(
        "Adds coarser noise: this many sizes of grain, each larger than the one before. 6 to 10 "
        "are usual, 0 is off.", 0, 16, label="Pyramid noise")] = 0
    pyramid_discount: Annotated[float, Knob(
        "How strong each size of grain is, as a share of the one before.", 0, 1)] = 0.3
    input_perturbation: Annotated[float, Knob(
        "Shows the model slightly more noise than it is asked to remove, so that it copes "
        "better with its own errors when it paints. 0.1 is usual, 0 is off.", 0, 1, 0.01)] = 0.0
    unmasked_weight: Annotated[float, Knob(
        "How much an error outside of a picture's mask counts; 0 is not at all.", 0, 1, 0.01)] = 0.1
    prior_weight: Annotated[float, Knob(
        "How much an error on a regularisation picture counts, compared with the others.",
        0, 100)] = 1.0
    prior_from_base: Annotated[bool, Knob(
        "Regularisation pictures keep the model close to what the base model makes of them; "
        "what they show is not learned.", label="Base model as regularisation")] = False
