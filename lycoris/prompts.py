"""From texts to what CLIP text encoders make of them: chunks of tokens, and their hidden states.

A chunk is BOS, at most `room` tokens, EOS and padding, together the encoder's own length. Longer
texts are several chunks, encoded one by one; their hidden states follow each other along the
tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import emphasis
from .embeddings import Embeddings


@dataclass(frozen=True)
class Reading:
    """How a model reads. `chunks` are those of every caption; `clip_skip` is the encoder's layer
    whose states are taken, counted from the last, which is 1. Prompts may name `embeddings`."""

    chunks: int = 1
    clip_skip: int = 1
    embeddings: Embeddings | None = None


@dataclass(frozen=True)
class Encoder:
    """A CLIP text encoder with its tokenizer; `length` is of a chunk, both ends included. `key` is
    its name in the files of embeddings."""

    tokenizer: Any
    module: nn.Module  # CLIPTextModel, or that with projection
    length: int
    key: str = "emb_params"

    @property
    def room(self) -> int:
        """Tokens of a chunk between its ends."""
        return self.length - 2


@dataclass(frozen=True, eq=False)
class Token:
    """One place of a chunk, and how much its state counts; `vector` (features) stands for the
    table's row."""

    id: int
    weight: float = 1.0
    vector: Tensor | None = None


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


def read(encoders: Sequence[Encoder], prompts: Sequence[str],
         embeddings: Embeddings | None) -> list[list[list[Chunk]]]:
    """What each encoder reads in each prompt, with weights and embeddings; as many chunks for all
    as the longest needs. EmbeddingError for an embedding that does not fit."""
    found = [[_chunks(encoder, prompt, embeddings) for prompt in prompts] for encoder in encoders]
    most = max(len(chunks) for texts in found for chunks in texts)
    return [[chunks + [()] * (most - len(chunks)) for chunks in texts] for texts in found]


def _chunks(encoder: Encoder, prompt: str, embeddings: Embeddings | None) -> list[Chunk]:
    found: list[Chunk] = []
    for part in emphasis.parse(prompt):
        found.append(())
        for piece in part:
            for group in _groups(encoder, piece, embeddings):
                if len(found[-1]) + len(group) > encoder.room:
                    found.append(())
                found[-1] += group
    return found or [()]


def _groups(encoder: Encoder, piece: emphasis.Piece,
            embeddings: Embeddings | None) -> Iterator[Chunk]:
    """Tokens that stay in one chunk: each alone, and all vectors of an embedding."""
    for part in embeddings.split(piece.text) if embeddings else [piece.text]:
        if isinstance(part, str):
            ids = encoder.tokenizer(part, add_special_tokens=False, verbose=False).input_ids
            yield from ((Token(each, piece.weight),) for each in ids)
        else:
            width = _table(encoder).weight.shape[1]
            vectors = embeddings.vectors(part, encoder.key, width, encoder.room)
            yield tuple(Token(0, piece.weight, vector) for vector in vectors)


def encode(encoder: Encoder, texts: Sequence[Sequence[Chunk]], layer: int = 1, *,
           normed: bool = True) -> Encoded:
    """The states after the `layer`-th layer from the last, through the final layer norm if
    `normed`, and weighed. Every text must be of as many chunks."""
    count, chunks = len(texts[0]), [chunk for text in texts for chunk in text]
    ids = torch.tensor([_padded(encoder, chunk) for chunk in chunks])
    last = layer == 1 and normed
    with _vectors_in_place(encoder, chunks):
        found = encoder.module(ids.to(encoder.module.device), output_hidden_states=not last)
    hidden = found.last_hidden_state if last else found.hidden_states[-layer]
    if normed and not last:
        hidden = _text_model(encoder.module).final_layer_norm(hidden)
    hidden = _weighed(hidden, chunks)
    pooled = getattr(found, "text_embeds", None)
    return Encoded(hidden.reshape(len(texts), count * encoder.length, -1),
                   None if pooled is None else pooled[::count])


def _weighed(hidden: Tensor, chunks: Sequence[Chunk]) -> Tensor:
    """Each state times its token's weight, then each chunk (length, features) brought back to the
    mean that it had: so does AUTOMATIC1111's web UI."""
    if all(token.weight == 1 for chunk in chunks for token in chunk):
        return hidden
    weights = torch.ones(hidden.shape[:2])
    for row, chunk in enumerate(chunks):
        weights[row, 1:1 + len(chunk)] = torch.tensor([token.weight for token in chunk])
    states = hidden.float()
    changed = states * weights.to(states.device)[..., None]
    before, after = (each.mean((1, 2), keepdim=True) for each in (states, changed))
    return (changed * torch.where(after == 0, 1.0, before / after)).to(hidden.dtype)


@contextmanager
def _vectors_in_place(encoder: Encoder, chunks: Sequence[Chunk]) -> Iterator[None]:
    """For one pass the tokens that have vectors are looked up as these."""
    places: Mapping[tuple[int, int], Tensor] = {
        (row, column): token.vector for row, chunk in enumerate(chunks)
        for column, token in enumerate(chunk, 1) if token.vector is not None}
    if not places:
        yield
        return

    def put(table: nn.Module, given: Any, found: Tensor) -> Tensor:
        rows, columns = zip(*places, strict=True)
        found = found.clone()
        found[list(rows), list(columns)] = torch.stack(list(places.values())).to(found)
        return found

    handle = _table(encoder).register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()


def _table(encoder: Encoder) -> nn.Module:
    """The embedding (tokens, features) of its vocabulary."""
    return _text_model(encoder.module).embeddings.token_embedding


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
