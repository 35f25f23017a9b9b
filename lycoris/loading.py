"""A run's base model, loaded as its settings say."""

from __future__ import annotations

import torch

from . import devices
from .families import Family, Model
from .prompts import Reading
from .settings import Config


def load(run: Config, family: Family, device: torch.device, precision: str) -> Model:
    """`precision` is that of the forward pass, which model.dtype may follow."""
    model = family.load(device, devices.base_dtype(run.model.dtype, precision))
    model.reading = Reading(run.dataset.caption_chunks, run.model.clip_skip)
    return model
