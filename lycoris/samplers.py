"""The samplers: diffusers' schedulers by the names people use for them."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .registry import pick

ZERO_SNR = "rescale_betas_zero_snr"
LEAST = 2.0 ** -24  # what diffusers' own samplers take for a signal of 0, to divide by it


@dataclass(frozen=True)
class Row:
    """`needs` is a package that diffusers wants for it and does not bring."""

    name: str
    scheduler: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    needs: str = ""


ROWS = {row.name: row for row in (
    Row("DPM++ 2M", "DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    Row("DPM++ 2M Karras", "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}),
    Row("DPM++ 2S", "DPMSolverSinglestepScheduler",
        {"algorithm_type": "dpmsolver++", "lower_order_final": True}),
    Row("DPM2", "KDPM2DiscreteScheduler"),
    Row("DPM2 a", "KDPM2AncestralDiscreteScheduler"),
    Row("DDIM", "DDIMScheduler"),
    Row("Euler", "EulerDiscreteScheduler"),
    Row("Euler a", "EulerAncestralDiscreteScheduler"),
    Row("Heun", "HeunDiscreteScheduler"),
    Row("LMS", "LMSDiscreteScheduler", needs="scipy"),
    Row("PNDM", "PNDMScheduler", {"skip_prk_steps": True}),
    Row("UniPC", "UniPCMultistepScheduler"),
)}


def problem(name: str) -> str:
    """Why a sampler that is there cannot be used now; nothing is imported."""
    needs = ROWS[name].needs
    if not needs or importlib.util.find_spec(needs) is not None:
        return ""
    return f"{name} needs the package {needs}. Run: pip install {needs}, or choose another sampler."


def make(name: str, model_config: Mapping[str, Any]) -> Any:
    """The diffusers scheduler set up for a model's own schedule (betas, prediction type)."""
    import diffusers

    row = pick(ROWS, name, "sample.sampler")
    kind = getattr(diffusers, row.scheduler)
    known = {"clip_sample": model_config.get("clip_sample", False),  # latents are not in -1..1
             "timestep_spacing": "trailing" if model_config.get("prediction_type") ==
             "v_prediction" else model_config.get("timestep_spacing", "leading")}
    if model_config.get(ZERO_SNR) and ZERO_SNR not in inspect.signature(kind.__init__).parameters:
        known["trained_betas"] = _rescaled(model_config)
    return kind.from_config({**model_config, **known}, **row.settings)


def _rescaled(model_config: Mapping[str, Any]) -> list[float]:
    """The betas that end in noise alone, for a scheduler that cannot make them itself."""
    import diffusers

    kept = diffusers.DDPMScheduler.from_config(model_config).alphas_cumprod.double()
    kept[-1] = LEAST
    return [1 - kept[0].item(), *(1 - kept[1:] / kept[:-1]).tolist()]
