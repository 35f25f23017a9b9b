"""Textual-inversion embeddings: vectors in the place of a word's tokens, learnt for one concept.

A file holds one matrix (vectors, width) for each text encoder: emb_params for that of SD 1.x and
2.x, clip_l and clip_g for SDXL's two. A prompt calls it by the file's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from torch import Tensor

from . import tensorfile
from .errors import EmbeddingError

READ = ".safetensors"
PICKLED = (".pt", ".bin", ".pth")


class Embeddings:
    """Those in one folder, and below it."""

    def __init__(self, folder: Path):
        """EmbeddingError where there is no such folder."""
        self.folder = folder
        if not folder.is_dir():
            raise EmbeddingError(f"There is no folder of embeddings {folder}.",
                                 "Choose the folder that holds them, or leave it empty.")

    @cached_property
    def _files(self) -> dict[str, Path]:
        """{name in lower case: file}; one that can be read hides others of its name."""
        files = sorted(self.folder.rglob("*"), key=lambda file: (file.suffix == READ, file))
        return {file.stem.lower(): file for file in files if file.suffix in (READ, *PICKLED)}

    @cached_property
    def _names(self) -> re.Pattern[str] | None:
        """Whole words alone, the longest first."""
        names = sorted(self._files, key=len, reverse=True)
        return re.compile(rf"(?<!\w)({'|'.join(map(re.escape, names))})(?!\w)",
                          re.IGNORECASE) if names else None

    def split(self, text: str) -> Iterator[str | Path]:
        """The text with the files of those that it names in their places."""
        if self._names is None:
            yield text
            return
        for place, part in enumerate(self._names.split(text)):
            if place % 2:
                yield self._files[part.lower()]
            elif part.strip():
                yield part

    def vectors(self, file: Path, key: str, width: int, room: int) -> Tensor:
        """(n, width) for the encoder whose key it is; EmbeddingError for another model's, and for
        more than `room` vectors."""
        if file.suffix != READ:
            raise EmbeddingError(
                f"The embedding {file.name} is a pickle, which may run code when read.",
                "Save it as .safetensors where it can be trusted; or take its name out of the "
                "prompts.")
        stored = tensorfile.Lazy(file, EmbeddingError)
        shapes = {name: shape for name, (_, shape) in stored.entries.items()}
        if key not in shapes and len(shapes) == 1 and key == "emb_params":
            key = next(iter(shapes))  # diffusers names the matrix as the token
        shape = shapes.get(key, ())
        if len(shape) not in (1, 2) or shape[-1] != width:
            held = ", ".join(f"{name} {'x'.join(map(str, each))}" for name, each in shapes.items())
            raise EmbeddingError(
                f"The embedding {file.name} is of another kind of model: it holds {held}; this "
                f"base needs {key} of width {width}.",
                "Take its name out of the prompts, or one made for this base.")
        vectors = stored[key].float().reshape(-1, width)
        if not 0 < len(vectors) <= room:
            raise EmbeddingError(f"The embedding {file.name} has {len(vectors)} vectors, a chunk "
                                 f"of the prompt {room} places.", "Take another one.")
        return vectors
