"""A small picture inside an adapter's file, as modelspec.thumbnail wants it: a JPEG data URI.

It always takes the same room, so that the file's size is known before there is a picture: the
quality is chosen so that it fits, and the rest filled with zeros, which readers skip.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

SIDE = 256  # pixels
ROOM = 18 * 1024  # bytes of the JPEG, a multiple of 3 so that base64 needs no padding
HEAD = "data:image/jpeg;base64,"
BLANK = HEAD + "A" * (ROOM * 4 // 3)  # stands for it in an estimate


def of(picture: Path) -> str:
    """The picture as a data URI of the fixed length; OSError where it cannot be read."""
    with Image.open(picture) as image:
        small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    for quality in range(90, 4, -5):
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=quality)
        if len(buffer.getvalue()) <= ROOM:
            break
    data = buffer.getvalue().ljust(ROOM, b"\0")
    return HEAD + base64.b64encode(data).decode("ascii")
