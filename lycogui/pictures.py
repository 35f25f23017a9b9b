"""Pictures for the page: always re-encoded by us, never a user's file as it is."""

from __future__ import annotations

import functools
import io
from pathlib import Path

from PIL import Image

from lycoris.data import folder

THUMB = 256
LARGE = 1024


def thumbnail(path: Path) -> bytes:
    """A picture at most 256 px wide and high, as WebP; cached while the file is unchanged.

    Raises DatasetError where the picture is damaged.
    """
    status = path.stat()
    return _encoded(path, THUMB, status.st_mtime_ns, status.st_size)


def large(path: Path) -> bytes:
    status = path.stat()
    return _encoded(path, LARGE, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=4096)
def _encoded(path: Path, side: int, modified: int, size: int) -> bytes:
    image = folder.decode(path)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=88, method=2)
    return buffer.getvalue()
