"""From texts to what CLIP text encoders make of them: chunks of tokens, and their hidden states.

A chunk is BOS, at most `room` tokens, EOS and padding, together the encoder's own length. Longer
texts are several chunks, encoded one by one; their hidden states follow each other along the
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Reading:
    """How a model reads. `chunks` are those of every caption; `clip_skip` is the encoder's layer
    whose states are taken, counted from the last, which is 1."""

    chunks: int = 1
    clip_skip: int = 1


@dataclass(frozen=True)
class Encoder:
    """A CLIP text encoder with its tokenizer; `length` is of a chunk, both ends included."""

    tokenizer: Any
    module: nn.Module  # CLIPTextModel, or that with projection
    length: int

    @property
    def room(self) -> int:
        """Tokens of a chunk between its ends."""
        return self.length - 2


@dataclass(frozen=True)
class Token:
    id: int


Chunk = tuple[Token, ...]  # without ends and padding


@dataclass(frozen=True)
class Encoded:
    """`hidden` (b, chunks * length, features); `pooled` (b, features) of the first chunks' EOS,
    where the encoder has a projection for it."""

    hidden: Tensor
    pooled: Tensor | None


def literal(encoder: Encoder, texts: Sequence[str], chunks: int) -> list[list[Chunk]]:
    """`chunks` chunks of each text as it stands; what does not fit is cut off."""
    found = encoder.tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids
    room = encoder.room
    return [[tuple(map(Token, ids[start:start + room]))
             for start in range(0, chunks * room, room)] for ids in found]


def encode(encoder: Encoder, texts: Sequence[Sequence[Chunk]], layer: int = 1, *,
           normed: bool = True) -> Encoded:
    """The states after the `layer`-th layer from the last, through the final layer norm if
    `normed`. Every text must be of as many chunks."""
    count = len(texts[0])
    ids = torch.tensor([_padded(encoder, chunk) for text in texts for chunk in text])
    last = layer == 1 and normed
    found = encoder.module(ids.to(encoder.module.device), output_hidden_states=not last)
    hidden = found.last_hidden_state if last else found.hidden_states[-layer]
    if normed and not last:
        hidden = _text_model(encoder.module).final_layer_norm(hidden)
    pooled = getattr(found, "text_embeds", None)
    return Encoded(hidden.reshape(len(texts), count * encoder.length, -1),
                   None if pooled is None else pooled[::count])


def _text_model(module: nn.Module) -> nn.Module:
    return getattr(module, "text_model", module)


def _padded(encoder: Encoder, chunk: Chunk) -> list[int]:
    tokenizer = encoder.tokenizer
    ids = [tokenizer.bos_token_id, *(token.id for token in chunk), tokenizer.eos_token_id]
    return ids + [tokenizer.pad_token_id] * (encoder.length - len(ids))


def clip_tokenizer(vocabulary: Path, merges: Path) -> Any:
    """CLIP's byte-level BPE from vocab.json and merges.txt, for folders without tokenizer.json."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.BPE.from_file(
        str(vocabulary), str(merges), unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    words = (r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]"
             r"|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(words), behavior="removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return tokenizer
