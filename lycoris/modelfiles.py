"""The files that a base model is made of, beside its tensors; each error names the part."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from .errors import ModelFileError


@contextmanager
def reading(base: Path, part: str) -> Iterator[None]:
    """What the libraries raise over a broken file, as a ModelFileError that names the part."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError,
            StrictDataclassError) as error:
        raise ModelFileError(f"The base model's {part} in {base} cannot be loaded: {error}.",
                             "Take another copy of the model.") from error


def read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise ModelFileError(f"The base model's {path.parent.name} has no {path}.",
                             "Copy that file from where the model came from.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{path} cannot be read: {error}.", "Copy that file again.") from None


def read_json(path: Path, needed: Mapping[str, type] | None = None) -> dict[str, Any]:
    """A JSON object with what is `needed` in it."""
    try:
        found = json.loads(read_text(path))
    except ValueError as error:
        raise ModelFileError(f"{path} is not valid JSON: {error}.",
                             "Copy that file again.") from None
    if not isinstance(found, dict):
        raise ModelFileError(f"{path} holds no settings but a {type(found).__name__}.",
                             "Copy that file again.")
    lacking = [name for name, kind in (needed or {}).items()
               if not isinstance(found.get(name), kind)]
    if lacking:
        raise ModelFileError(f"{path} does not say {', '.join(lacking)}.",
                             "Copy that file from where the model came from.")
    return found
