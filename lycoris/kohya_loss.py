"""The loss in the words of kohya's trainers: arguments and ss_* metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import words
from .settings import LossConfig

if TYPE_CHECKING:
    from .kohya import Reading

FLAGS = {  # arguments that mean one of our settings as they stand
    "noise_offset": "loss.noise_offset", "adaptive_noise_scale": "loss.adaptive_offset",
    "noise_offset_random_strength": "loss.noise_offset_random",
    "ip_noise_gamma": "loss.input_perturbation", "huber_c": "loss.huber_c",
    "huber_schedule": "loss.huber_schedule", "min_timestep": "loss.timestep_min",
    "max_timestep": "loss.timestep_max", "prior_loss_weight": "loss.prior_weight"}
WEIGHTING = ("min_snr_gamma", "debiased_estimation_loss")
DISTANCES = {"l2": "l2", "l1": "l1", "huber": "huber", "smooth_l1": "smooth-l1"}
LIMITED = ("huber", "smooth_l1")
LOSS_TYPE = ("loss_type", "huber_scale")
PYRAMID = ("multires_noise_iterations", "multires_noise_discount", "noise_offset_type")
MASKED = ("masked_loss",)
OF_THE_BASE = {"zero_terminal_snr": "model.zero_snr to on",
               "v_parameterization": "model.prediction_type to v_prediction"}
# What the metadata calls otherwise than the command line does.
SS_NAMES = {"debiased_estimation": "debiased_estimation_loss"}
NAMES = {ours: theirs for theirs, ours in DISTANCES.items()}


def weighting(given: Mapping[str, Any], found: Reading) -> None:
    gamma, debiased = words.number(given["min_snr_gamma"]), _is_on(
        given["debiased_estimation_loss"])
    if gamma and debiased:
        found.unknown.append("debiased_estimation_loss: one weighting at a time is known here.")
    if gamma:
        found.settings["loss.weighting"] = "min-snr"
        found.take("loss.snr_gamma", given["min_snr_gamma"], "min_snr_gamma")
    else:
        found.settings["loss.weighting"] = "debiased" if debiased else "none"


def distance(given: Mapping[str, Any], found: Reading) -> None:
    name = str(given["loss_type"] or "l2")
    if name in DISTANCES:
        found.settings["loss.distance"] = DISTANCES[name]
        if name in LIMITED:
            found.settings["loss.huber_schedule"] = "snr"  # theirs where nothing is said
    else:
        found.unknown.append(f"loss_type={name}: known are {', '.join(DISTANCES)}.")
    if words.number(given["huber_scale"]) not in (None, 1):
        found.unknown.append(f"huber_scale={given['huber_scale']}: no setting of ours.")


def pyramid(given: Mapping[str, Any], found: Reading) -> None:
    """The graphical front end names what is meant, and writes the numbers of both."""
    kind = str(given["noise_offset_type"] or "Multires").lower()
    if kind == "original":
        found.settings["loss.pyramid_iterations"] = 0
        return
    for name, path in (("multires_noise_iterations", "loss.pyramid_iterations"),
                       ("multires_noise_discount", "loss.pyramid_discount")):
        if given[name] is not None:
            found.take(path, given[name], name)
    if given["noise_offset_type"] is not None and words.number(
            given["multires_noise_iterations"]):
        found.settings["loss.noise_offset"] = 0.0


def masked(given: Mapping[str, Any], found: Reading) -> None:
    if _is_on(given["masked_loss"]):
        found.settings["loss.unmasked_weight"] = 0.0


def of_the_base(given: Mapping[str, Any], found: Reading) -> None:
    for name, setting in OF_THE_BASE.items():
        if _is_on(given[name]):
            found.unknown.append(f"{name}: read from the base's files. Where they are silent, set "
                                 f"{setting}.")


# {names read together: how}
READERS = {WEIGHTING: weighting, LOSS_TYPE: distance, PYRAMID: pyramid, MASKED: masked,
           tuple(OF_THE_BASE): of_the_base}


def said(loss: LossConfig) -> dict[str, str]:
    """The ss_* keys of a run's loss."""
    limited = NAMES[loss.distance] in LIMITED
    return {
        "ss_min_snr_gamma": _or_none(loss.snr_gamma * (loss.weighting == "min-snr")),
        "ss_debiased_estimation": str(loss.weighting == "debiased"),
        "ss_noise_offset": _or_none(loss.noise_offset),
        "ss_noise_offset_random_strength": str(loss.noise_offset_random),
        "ss_adaptive_noise_scale": _or_none(loss.adaptive_offset),
        "ss_multires_noise_iterations": _or_none(loss.pyramid_iterations),
        "ss_multires_noise_discount": _plain(loss.pyramid_discount),
        "ss_ip_noise_gamma": _or_none(loss.input_perturbation),
        "ss_loss_type": NAMES[loss.distance],
        "ss_huber_schedule": loss.huber_schedule if limited else "None",
        "ss_huber_c": _plain(loss.huber_c) if limited else "None",
        "ss_prior_loss_weight": _plain(loss.prior_weight),
    }


def _is_on(value: Any) -> bool:
    return str(value).lower() == "true"


def _or_none(value: float) -> str:
    return _plain(value) if value else "None"


def _plain(value: float) -> str:
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)
