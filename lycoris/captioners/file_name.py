"""The words of the file's name: "a_red-fox_03.png" becomes "a red fox". Needs no model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from . import Captioner


@dataclass(frozen=True)
class FileNameOptions:
    """It has none."""


class FileName(Captioner):
    name = "file-name"
    label = "File name"
    order = 1
    Options = FileNameOptions

    def caption(self, image: Image.Image | None, path: Path) -> str:
        words = re.sub(r"[_\-.+\s]+", " ", path.stem).split()
        while len(words) > 1 and words[-1].strip("()").isdigit():  # the number of a series
            words.pop()
        return " ".join(words)
