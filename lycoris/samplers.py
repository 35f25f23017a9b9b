"""The samplers: diffusers' schedulers by the names people use for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .registry import pick


@dataclass(frozen=True)
class Row:
    name: str
    scheduler: str
    settings: Mapping[str, Any] = field(default_factory=dict)


ROWS = {row.name: row for row in (
    Row("DPM++ 2M", "DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    Row("DPM++ 2M Karras", "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}),
    Row("DDIM", "DDIMScheduler"),
    Row("Euler", "EulerDiscreteScheduler"),
    Row("Euler a", "EulerAncestralDiscreteScheduler"),
    Row("UniPC", "UniPCMultistepScheduler"),
)}


def make(name: str, model_config: Mapping[str, Any]) -> Any:
    """The diffusers scheduler set up for a model's own schedule (betas, prediction type)."""
    import diffusers

    row = pick(ROWS, name, "sample.sampler")
    known = {"timestep_spacing": "trailing" if model_config.get("prediction_type") ==
             "v_prediction" else model_config.get("timestep_spacing", "leading")}
    return getattr(diffusers, row.scheduler).from_config(
        {**model_config, **known}, **row.settings)
