"""Captions to what the denoiser attends to: made once where the texts stay the same, else live.

Once made, they are kept in the store for later runs, each under its text and all that its meaning
depends on. Texts that vary from step to step (shuffled tags, wildcards) are too many to be kept:
they are encoded when their step comes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .data import fingerprint, store
from .data.store import Store
from .families import Condition, Model, moved, together

Encode = Callable[[Sequence[str]], Condition]


def once(model: Model, texts: Sequence[str], kept: Store,
         report: Callable[[int, int, int], None]) -> Encode:
    """For these texts alone; `report(done, of, taken from the store)`."""
    known: dict[str, Condition] = {}
    meaning = fingerprint.of_texts(model) if kept.limit else ""
    taken = 0
    for number, text in enumerate(texts, 1):
        name = store.key("text", meaning, text)
        found: Condition | None = kept.get(name)
        taken += found is not None
        if found is None:
            with torch.no_grad():
                found = moved(model.encode_text([text]), torch.device("cpu"))
            kept.put(name, _own(found))
        known[text] = found
        report(number, len(texts), taken)
    return lambda batch: moved(together([known[text] for text in batch]), model.device)


def live(model: Model) -> Encode:
    """For any text, by an encoder that does not learn."""

    def encode(texts: Sequence[str]) -> Condition:
        with torch.no_grad():
            return model.encode_text(texts)

    return encode


def _own(condition: Condition) -> dict[str, Tensor]:
    """As it can be written: no tensor a view of a larger one."""
    return {name: tensor.contiguous() for name, tensor in condition.items()}
