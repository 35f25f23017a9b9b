"""A run's base model, loaded as its settings say."""

from __future__ import annotations

import torch

from . import config, devices, quantised, swapping
from .embeddings import Embeddings
from .families import Family, Model, Report, unheard
from .prompts import Reading
from .settings import Config


def load(run: Config, family: Family, device: torch.device, precision: str,
         report: Report = unheard) -> Model:
    """`precision` is that of the forward pass, which model.dtype may follow. EmbeddingError where a
    prompt names one that does not fit, before anything else is done."""
    kind = run.model.dtype
    packed, swaps = kind in quantised.KINDS, swapping.happens(run, device.type)
    model = family.load(torch.device("cpu") if packed or swaps else device,
                        devices.base_dtype(kind, precision), report)
    if packed:
        for part in model.modules.values():
            quantised.quantise(part, kind, device)
        model.move(device)
    if swaps:
        part, denoiser = next(iter(model.modules.items()))
        blocks = swapping.sizes(layer for layer in family.layers if layer.part == part)
        waiting = swapping.Swap(denoiser, swapping.chosen(blocks, run.train.block_swap), device)
        with waiting.left_alone():
            model.move(device)
    folder = run.sample.embeddings
    model.reading = Reading(run.dataset.caption_chunks, run.model.clip_skip,
                            Embeddings(config.find(folder)) if folder else None)
    model.check_prompts([run.sample.negative, *run.sample.prompts])
    return model
