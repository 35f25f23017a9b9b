"""What the results of a model's encoders depend on, as one hash each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import tensorfile
from ..families import Model


def of_pictures(model: Model) -> str:
    """A hash of all that `encode_image` depends on, the kind of device included."""
    vae: Any = model.vae  # type: ignore[attr-defined]
    facts = (getattr(vae.config, name, None) for name in ("scaling_factor", "shift_factor"))
    return _hash(model.device, [vae], facts)


def of_texts(model: Model) -> str:
    """A hash of all that `encode_text` depends on beside the text."""
    encoders: Sequence[Any] = model.encoders  # type: ignore[attr-defined]
    words = (sorted(each.tokenizer.get_vocab().items()) for each in encoders)
    return _hash(model.device, [each.module for each in encoders],
                 [type(model).__name__, model.reading.chunks, model.reading.clip_skip, *words])


def _hash(device: torch.device, parts: Sequence[nn.Module], facts: Iterable[Any]) -> str:
    found = hashlib.blake2b(repr([device.type, *facts]).encode(), digest_size=16)
    for part in parts:
        for name, tensor in part.state_dict().items():
            if isinstance(tensor, Tensor):
                found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                found.update(tensorfile.raw_bytes(tensor))
    return found.hexdigest()
