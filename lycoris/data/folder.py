"""A dataset folder: which pictures are in it, their captions, and what is wrong with them."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import DatasetError
from . import captions

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
MAX_PIXELS = 64_000_000


@dataclass(frozen=True)
class Picture:
    """One picture: its size as seen (after EXIF rotation) or None where it cannot be read."""

    path: Path
    size: tuple[int, int] | None
    caption: str | None
    problem: str = ""
    caption_problem: str = ""

    @property
    def name(self) -> str:
        return self.path.name


class Cut(NamedTuple):
    """How a picture was cut out, in pixels: as it was, the corner after scaling, what came out."""

    original_height: int
    original_width: int
    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Dataset:
    folder: Path
    pictures: tuple[Picture, ...]

    @cached_property
    def readable(self) -> tuple[Picture, ...]:
        return tuple(p for p in self.pictures if p.size)

    @cached_property
    def tags(self) -> Mapping[str, int]:
        """How often each comma-separated piece of a caption occurs."""
        return Counter(tag.strip() for picture in self.readable
                       for tag in captions.as_prompt(picture.caption or "").split(",")
                       if tag.strip())

    def __len__(self) -> int:
        return len(self.pictures)

    def captions(self) -> list[tuple[Path, str | None]]:
        """(picture, caption) of every picture whose caption can be read and written."""
        return [(p.path, p.caption) for p in self.readable if not p.caption_problem]

    def problems(self, resolution: int) -> dict[str, list[Picture]]:
        """{kind of problem: the pictures that have it}; only kinds that occur."""
        tiny = [p for p in self.readable
                if p.size and p.size[0] * p.size[1] < resolution * resolution]
        kinds = {
            "unreadable": [p for p in self.pictures if p.problem],
            "caption not readable": [p for p in self.pictures if p.caption_problem],
            "no caption": [p for p in self.readable
                           if not (p.caption or "").strip() and not p.caption_problem],
            f"smaller than {resolution} px": tiny,
        }
        return {kind: found for kind, found in kinds.items() if found}


def scan(folder: Path) -> Dataset:
    """All pictures of a folder in natural order; only headers are read.

    Raises DatasetError where the folder does not exist or cannot be read. An empty folder is an
    empty Dataset; `require_trainable` is the one that refuses.
    """
    try:
        with os.scandir(folder) as entries:
            names = [e.name for e in entries
                     if Path(e.name).suffix.lower() in EXTENSIONS and e.is_file()]
    except FileNotFoundError:
        raise DatasetError(f"There is no folder {folder}.",
                           "Choose the folder that holds the pictures.", [folder]) from None
    except NotADirectoryError:
        raise DatasetError(f"{folder} is a file, not a folder.",
                           "Choose the folder that holds the pictures.", [folder]) from None
    except OSError as error:
        raise DatasetError(f"{folder} cannot be read: {error.strerror}.",
                           "Check its permissions.", [folder]) from error
    return Dataset(folder, tuple(look(folder / name) for name in sorted(names, key=_natural)))


def look(path: Path) -> Picture:
    """One picture's facts from its header, and its caption."""
    caption, caption_problem = captions.read(path)
    size, problem = None, ""
    try:
        with _open(path) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            if width * height > MAX_PIXELS:
                problem = f"{width} x {height} is more than {MAX_PIXELS // 10**6} megapixels"
            else:
                size = (height, width) if turned else (width, height)
    except UnidentifiedImageError:
        problem = "not a picture, whatever its name says"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        problem = f"cannot be read: {error}"
    return Picture(path, size, caption, problem, caption_problem)


def require_trainable(dataset: Dataset) -> None:
    """Raise DatasetError, naming every file, where training could not use the folder."""
    if not dataset.pictures:
        raise DatasetError(
            f"{dataset.folder} holds no pictures.",
            f"Put pictures ({', '.join(sorted(EXTENSIONS))}) into it, or choose another folder.",
            [dataset.folder])
    broken = [p for p in dataset.pictures if p.problem or p.caption_problem]
    if broken:
        listed = "; ".join(f"{p.name}: {p.problem or p.caption_problem}" for p in broken[:10])
        more = f"; and {len(broken) - 10} more" if len(broken) > 10 else ""
        raise DatasetError(
            f"{len(broken)} of {len(dataset)} files in {dataset.folder} cannot be used: "
            f"{listed}{more}.", "Repair them or take them out of the folder.",
            [p.path for p in broken])


def decode(path: Path) -> Image.Image:
    """The whole picture in RGB, turned as its EXIF says, transparency on white.

    Raises DatasetError where the data is damaged.
    """
    try:
        with _open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
                clear = upright.convert("RGBA")
                white = Image.new("RGBA", clear.size, "white")
                return Image.alpha_composite(white, clear).convert("RGB")
            return upright.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{path.name} is damaged: {error}.",
                           "Save it again, or take it out of the folder.", [path]) from error


def cut(size: tuple[int, int], bucket: tuple[int, int]) -> Cut:
    """How `fit` cuts a picture of (width, height) for a bucket."""
    width, height = size
    scale = max(bucket[0] / width, bucket[1] / height)
    return Cut(height, width, max(0, round((height * scale - bucket[1]) / 2)),
               max(0, round((width * scale - bucket[0]) / 2)), bucket[1], bucket[0])


def fit(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """(3, h, w) in -1..1: scaled to cover the bucket, the rest cropped evenly."""
    covered = ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    data = torch.frombuffer(bytearray(covered.tobytes()), dtype=torch.uint8)
    return data.view(size[1], size[0], 3).permute(2, 0, 1).float().div_(127.5).sub_(1.0)


def _open(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # look() has its own limit
        return Image.open(path, formats=FORMATS)


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Sort key by which zorb_2 comes before zorb_10."""
    parts: Callable[[str], list[str]] = re.compile(r"(\d+)").split
    return [(0, int(part)) if part.isdigit() else (1, part.casefold()) for part in parts(name)]
