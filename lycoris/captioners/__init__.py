"""The captioners: each a file in this folder that turns a picture into a caption."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image

from ..registry import discover


class Captioner:
    """`kind` is "prose" or "tags". `check` runs before anything is loaded."""

    name: ClassVar[str] = ""
    label: ClassVar[str] = ""
    kind: ClassVar[str] = "prose"
    Options: ClassVar[type]

    def __init__(self, options: Any):
        self.options = options

    def check(self) -> str:
        """Why it cannot run, with the way out; empty when it can."""
        return ""

    def load(self, device: torch.device) -> None:
        """Load what it needs; nothing by default."""

    def caption(self, image: Image.Image | None, path: Path) -> str:
        """The caption of one picture (RGB; None for a captioner that needs only the path)."""
        raise NotImplementedError


def catalogue() -> Mapping[str, type[Captioner]]:
    return discover(__name__)
