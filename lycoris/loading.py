"""A run's base model, loaded as its settings say."""

from __future__ import annotations

import torch

from . import config, devices, quantised
from .embeddings import Embeddings
from .families import Family, Model, Report, unheard
from .prompts import Reading
from .settings import Config


def load(run: Config, family: Family, device: torch.device, precision: str,
         report: Report = unheard) -> Model:
    """`precision` is that of the forward pass, which model.dtype may follow. EmbeddingError where a
    prompt names one that does not fit, before anything else is done."""
    kind = run.model.dtype
    packed = kind in quantised.KINDS
    model = family.load(torch.device("cpu") if packed else device,
                        devices.base_dtype(kind, precision), report)
    if packed:
        for part in model.modules.values():
            quantised.quantise(part, kind, device)
        model.move(device)
    folder = run.sample.embeddings
    model.reading = Reading(run.dataset.caption_chunks, run.model.clip_skip,
                            Embeddings(config.find(folder)) if folder else None)
    model.check_prompts([run.sample.negative, *run.sample.prompts])
    return model
