"""A dataset folder: which pictures are in it, their captions, and what is wrong with them."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
UNREAD = frozenset({".gif", ".tif", ".tiff", ".avif", ".jxl", ".heic", ".heif", ".jfif", ".psd"})
LISTED = EXTENSIONS | UNREAD | {*captions.EXTENSIONS[1:]}
MAX_PIXELS = 64_000_000
MASK = "-masklabel"  # ends the name of a picture's mask beside it
SHARED = "sharing a caption file"  # a.png and a.jpg, both of a.txt
REPEATED = re.compile(r"0*([1-9]\d*)_(.+)")  # a folder of kohya's: how often, and what is in it


@dataclass(frozen=True)
class Picture:
    """One picture: its size as seen (after EXIF rotation) or None where it cannot be read."""

    path: Path
    size: tuple[int, int] | None
    caption: str | None
    problem: str = ""
    caption_problem: str = ""
    fallback: str = ""  # the caption where it has none of its own
    repeats: int = 1  # in an epoch
    weight: float = 1.0  # of its loss
    prior: bool = False  # a regularisation picture
    held: bool = False  # for validation, not for learning
    mask: Path | None = None

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def words(self) -> str:
        """What is trained as its caption, as it was written."""
        return self.caption if self.caption and self.caption.strip() else self.fallback


@dataclass(frozen=True)
class LeftOut:
    """A file or a folder that looks as if it were part of the dataset and is not, and why."""

    path: Path
    why: str


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
    left_out: tuple[LeftOut, ...] = ()

    @cached_property
    def readable(self) -> tuple[Picture, ...]:
        return tuple(p for p in self.pictures if p.size)

    @cached_property
    def learned(self) -> tuple[Picture, ...]:
        """The readable pictures that are learned from."""
        return tuple(p for p in self.readable if not p.held and p.repeats)

    @cached_property
    def held(self) -> tuple[Picture, ...]:
        """The readable pictures that are for validation."""
        return tuple(p for p in self.readable if p.held)

    @cached_property
    def folders(self) -> Mapping[Path, tuple[Picture, ...]]:
        """The pictures by the folders they are in."""
        found: dict[Path, list[Picture]] = {}
        for picture in self.pictures:
            found.setdefault(picture.path.parent, []).append(picture)
        return {path: tuple(pictures) for path, pictures in found.items()}

    @cached_property
    def tags(self) -> Mapping[str, int]:
        """How often each comma-separated piece of a caption occurs."""
        return tags_of(self.readable)

    def __len__(self) -> int:
        return len(self.pictures)

    def captions(self) -> list[tuple[Path, str | None]]:
        """(picture, caption) of every picture whose caption can be read and written."""
        return [(p.path, p.caption) for p in self.readable if not p.caption_problem]

    def problems(self, resolution: int) -> dict[str, list[Picture]]:
        """{kind of problem: the pictures that have it}; only kinds that occur."""
        tiny = [p for p in self.readable
                if p.size and p.size[0] * p.size[1] < resolution * resolution]
        named = Counter(p.path.with_suffix("") for p in self.pictures)
        kinds = {
            "unreadable": [p for p in self.pictures if p.problem],
            "caption not readable": [p for p in self.pictures if p.caption_problem],
            "no caption": [p for p in self.readable
                           if not p.words.strip() and not p.caption_problem],
            f"smaller than {resolution} px": tiny,
            SHARED: [p for p in self.pictures if named[p.path.with_suffix("")] > 1],
        }
        return {kind: found for kind, found in kinds.items() if found}


def tags_of(pictures: Sequence[Picture]) -> Mapping[str, int]:
    """How often each comma-separated piece of a caption occurs."""
    return Counter(tag.strip() for picture in pictures
                   for tag in captions.as_prompt(picture.words).split(",") if tag.strip())


def scan(folder: Path) -> Dataset:
    """All pictures of a folder in natural order; only headers are read.

    A folder without pictures of its own whose folders are called as kohya's are, 10_name, holds
    theirs: each ten times an epoch, with the name as the caption of those that have none.

    Raises DatasetError where the folder does not exist or cannot be read. An empty folder is an
    empty Dataset; `require_trainable` is the one that refuses.
    """
    names, folders = _listed(folder)
    kept = [name for name in names if Path(name).suffix.lower() in EXTENSIONS]
    unread = [LeftOut(folder / name, f"{suffix[1:]} files are not read; save it as png")
              for name in names if (suffix := Path(name).suffix.lower()) in UNREAD]
    inner = [] if kept else [name for name in folders if REPEATED.fullmatch(name)]
    unread += [LeftOut(folder / name, f"there are {'pictures' if kept else 'folders with a number'}"
                       " beside it; give it as a further folder" if kept or inner else
                       f"it is not called 1_{name} or 10_{name}, by how often an epoch shows it")
               for name in folders if name not in inner and _holds_pictures(folder / name)]
    if inner:
        parts = [_repeated(folder / name) for name in inner]
        return Dataset(folder, tuple(picture for part in parts for picture in part.pictures),
                       (*unread, *(each for part in parts for each in part.left_out)))
    stems = {Path(name).stem for name in kept}
    unread += [LeftOut(folder / name, "the picture's .txt file is its caption")
               for name in names if Path(name).suffix in captions.EXTENSIONS
               and Path(name).stem in stems and captions.file_of(folder / name).name != name]
    masks = {stem.removesuffix(MASK): folder / name for name in kept
             if (stem := Path(name).stem).endswith(MASK) and stem.removesuffix(MASK) in stems}
    return Dataset(folder, tuple(replace(look(folder / name), mask=masks.get(Path(name).stem))
                                 for name in kept if folder / name not in masks.values()),
                   tuple(unread))


def numbered(folder: Path) -> list[tuple[Path, int, str]]:
    """[(folder, how often, name)] of the folders 10_name that a folder without pictures of its own
    holds; empty where it cannot be read."""
    try:
        names, folders = _listed(folder)
    except DatasetError:
        return []
    if any(Path(name).suffix.lower() in EXTENSIONS for name in names):
        return []
    return [(folder / name, int(found[1]), found[2]) for name in folders
            if (found := REPEATED.fullmatch(name))]


def caption_files(folder: Path) -> list[Path]:
    """Those of its pictures that count; nothing is opened. None where it cannot be read."""
    try:
        names, _ = _listed(folder)
    except DatasetError:
        return []
    files = dict.fromkeys(captions.file_of(folder / name) for name in names
                          if Path(name).suffix.lower() in EXTENSIONS)
    return [file for file in files if file.exists()]


def _listed(folder: Path) -> tuple[list[str], list[str]]:
    """The names of a folder's pictures, of those too that are not read, of captions that are not
    in .txt files, and of its folders."""
    try:
        with os.scandir(folder) as entries:
            names, folders = [], []
            for entry in entries:
                if entry.is_dir():
                    folders += [entry.name] * (not entry.name.startswith("."))
                elif Path(entry.name).suffix.lower() in LISTED and entry.is_file():
                    names.append(entry.name)
    except FileNotFoundError:
        raise DatasetError(f"There is no folder {folder}.",
                           "Choose the folder that holds the pictures.", [folder]) from None
    except NotADirectoryError:
        raise DatasetError(f"{folder} is a file, not a folder.",
                           "Choose the folder that holds the pictures.", [folder]) from None
    except OSError as error:
        raise DatasetError(f"{folder} cannot be read: {error.strerror}.",
                           "Check its permissions.", [folder]) from error
    return sorted(names, key=_natural), sorted(folders, key=_natural)


def _holds_pictures(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(Path(entry.name).suffix.lower() in EXTENSIONS for entry in entries)
    except OSError:
        return False


def _repeated(folder: Path) -> Dataset:
    """A folder called 10_name."""
    named, found = REPEATED.fullmatch(folder.name), scan(folder)
    assert named is not None, folder
    return replace(found, pictures=tuple(
        replace(picture, repeats=int(named[1]), fallback=named[2]) for picture in found.pictures))


def look(path: Path) -> Picture:
    """One picture's facts from its header, and its caption."""
    caption, caption_problem = captions.read(path)
    size, problem = None, ""
    try:
        with _open(path) as image:
            width, height = image.size
            turned = _exif(image, path).get(0x0112, 1) in (5, 6, 7, 8)
            if width * height > MAX_PIXELS:
                problem = f"{width} x {height} is more than {MAX_PIXELS // 10**6} megapixels"
            else:
                size = (height, width) if turned else (width, height)
    except UnidentifiedImageError:
        problem = "not a picture, whatever its name says"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        problem = f"cannot be read: {error}"
    return Picture(path, size, caption, problem, caption_problem)


def _exif(image: Image.Image, path: Path) -> Image.Exif:
    """The EXIF data of a picture that is open. Of a PNG Pillow would decode all of it, since the
    chunk may come last; here the chunks are walked (PNG specification, 11.3.2)."""
    if image.format == "PNG" and "exif" not in image.info:
        with path.open("rb") as file:
            file.seek(8)
            while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
                length = int.from_bytes(head[:4], "big")
                if head[4:] == b"eXIf":
                    image.info["exif"] = b"Exif\0\0" + file.read(length)
                    break
                file.seek(length + 4, os.SEEK_CUR)
        return Image.Image.getexif(image)
    return image.getexif()


def require_pictures(dataset: Dataset) -> None:
    """Raise DatasetError where there is none to learn from."""
    if dataset.pictures and (dataset.learned or not dataset.readable):
        return
    why = "".join(f" {each.path.name}: {each.why}." for each in dataset.left_out[:10])
    raise DatasetError(
        f"{dataset.folder} holds no pictures{' to learn from' * bool(dataset.pictures)}.{why}",
        f"Put pictures ({', '.join(sorted(EXTENSIONS))}) into it, or choose another folder.",
        [dataset.folder])


def require_trainable(dataset: Dataset) -> None:
    """Raise DatasetError, naming every file, where training could not use the folder."""
    require_pictures(dataset)
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
    with _decoding(path), _open(path) as image:
        upright = _eight_bits(ImageOps.exif_transpose(image))
        if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
            clear = upright.convert("RGBA")
            white = Image.new("RGBA", clear.size, "white")
            return Image.alpha_composite(white, clear).convert("RGB")
        return upright.convert("RGB")


def opacity(path: Path) -> Image.Image:
    """How opaque each pixel is, as a grey picture; white all over where nothing is transparent."""
    with _decoding(path), _open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGBA").getchannel("A")


def decode_mask(path: Path) -> Image.Image:
    """A mask as a grey picture, turned as its EXIF says; where it is transparent it is black."""
    with _decoding(path), _open(path) as image:
        upright = _eight_bits(ImageOps.exif_transpose(image)).convert("RGBA")
        black = Image.new("RGBA", upright.size, "black")
        return Image.alpha_composite(black, upright).convert("L")


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grey picture of 16 bits a pixel, which Pillow would cut off at white, with 8."""
    if not image.mode.startswith("I"):
        return image
    grey = image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")
    grey.info.pop("transparency", None)  # a grey of the 16 bits
    return grey


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """What Pillow raises over damaged data, as a DatasetError."""
    try:
        yield
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


def fit_mask(mask: Image.Image, size: tuple[int, int]) -> Tensor:
    """(1, h, w) in 0..1, scaled and cropped as `fit` does it."""
    covered = ImageOps.fit(mask, size, Image.Resampling.BILINEAR)
    data = torch.frombuffer(bytearray(covered.tobytes()), dtype=torch.uint8)
    return data.view(1, size[1], size[0]).float().div_(255)


def _open(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # look() has its own limit
        return Image.open(path, formats=FORMATS)


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Sort key by which zorb_2 comes before zorb_10."""
    parts: Callable[[str], list[str]] = re.compile(r"(\d+)").split
    return [(0, int(part)) if part.isdigit() else (1, part.casefold()) for part in parts(name)]
