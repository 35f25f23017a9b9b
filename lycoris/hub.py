"""Base models under their names on Hugging Face, "owner/name": in the user's cache, from where they
are used without a network, or brought there when asked for.

Only weights as .safetensors, configs and tokenizers are looked at: nothing that could run code. The
token of `hf auth login` is the library's business; it is in no message here.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import config, durable, events
from .errors import DiskError, LycorisError, ModelFileError, NotDownloaded
from .modelfiles import CLIP, PICKLES, WORDS, read_json
from .progress import EVERY, Progress
from .settings import ModelConfig

os.environ.setdefault("HF_HUB_DISABLE_XET", "1")  # its downloads cannot be stopped midway

NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
INDEX = "model_index.json"
# {part: how its weight file is called} of the parts that are read, and the parts without weights
WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model",
           "text_encoder": "model", "text_encoder_2": "model"}
TOKENIZERS = ("tokenizer", "tokenizer_2")
TOKENIZER_FILES = (*WORDS, "tokenizer_config.json", "special_tokens_map.json")
SCHEDULE = "scheduler/scheduler_config.json"
TIMEOUT = 15  # seconds that Hugging Face may take to say what a model has
MIB, SPARE = 2**20, 64 * 2**20


def is_name(base: Path) -> bool:
    """May this be meant as a name on Hugging Face, and as no file or folder?"""
    return (bool(NAME.fullmatch(base.as_posix())) and not base.exists()
            and not base.parent.exists() and base.suffix not in (".safetensors", *PICKLES))


def found(base: Path) -> Path:
    """The cached folder of what is named on Hugging Face; `base` itself where it is none."""
    return snapshot(base.as_posix()) or base if is_name(base) else base


def called(base: Path) -> str:
    """What a person calls a base model: its name on Hugging Face, or that of its file or folder."""
    home = base.parent.parent.name
    if base.parent.name == "snapshots" and home.startswith("models--"):
        return home.removeprefix("models--").replace("--", "/")
    return base.name


def snapshot(name: str) -> Path | None:
    """The folder of a whole model in the cache; no network."""
    folder = _cached(name)
    return None if folder is None or lacking(folder) else folder


def _cached(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        index = try_to_load_from_cache(name, INDEX)
    except HFValidationError:
        return None
    return Path(index).parent if isinstance(index, str) else None


def lacking(folder: Path) -> list[str]:
    """The parts that a model's own index names and that are not there whole."""
    def here(*names: str) -> bool:
        return all((folder / name).is_file() for name in names)

    named = [part for part, kind in read_json(folder / INDEX).items()
             if isinstance(kind, list) and kind[:1] != [None]]
    absent = [part for part in named if part in WEIGHTS and not (
        here(f"{part}/config.json") and any(here(each) for each in weight_files(part)))]
    absent += [part for part in named if part in TOKENIZERS and not (
        here(f"{part}/{WORDS[0]}") or here(*(f"{part}/{name}" for name in WORDS[1:])))]
    return absent + ["scheduler"] * ("scheduler" in named and not here(SCHEDULE))


def weight_files(part: str) -> tuple[str, str]:
    """Its weights as they are, and in half precision."""
    stem = f"{part}/{WEIGHTS[part]}"
    return f"{stem}.safetensors", f"{stem}.fp16.safetensors"


def absent(base: Path) -> ModelFileError:
    """Why a base that is no file or folder cannot be used: NotDownloaded for a name on Hugging
    Face."""
    from huggingface_hub import constants

    if not is_name(base):
        return ModelFileError(
            f"There is no base model at {base}.",
            "Choose a model's .safetensors file, or its folder in the diffusers layout; "
            "assets/tiny-sd is built in.")
    name = base.as_posix()
    folder = _cached(name)
    without = f" whole: no {', '.join(lacking(folder))}" if folder else ""
    return NotDownloaded(
        f"{name} is not in the Hugging Face cache ({constants.HF_HUB_CACHE}){without}.",
        name, "choose a folder or a file of your own by its path.")


@dataclass(frozen=True)
class Offer:
    """What Hugging Face has of a model: `files` are the ones that are needed, {path: bytes}, and
    `missing` those of them that the cache has not; `free` bytes are left where that is."""

    name: str
    revision: str
    files: Mapping[str, int]
    missing: Mapping[str, int]
    cache: Path
    free: int

    @property
    def bytes(self) -> int:
        return sum(self.missing.values())


def look(name: str, half: bool = True) -> Offer:
    """Ask Hugging Face what a model has. Of weights in several precisions it is that which the
    cache has, then the `half` one or the whole one. Of CLIP itself, only the tokenizer.

    Raises ModelFileError where it is not there, not to be had or not usable.
    """
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    with _asking(name):
        said = HfApi().model_info(name, files_metadata=True, timeout=TIMEOUT)
    sizes = {each.rfilename: each.size or 0 for each in said.siblings or ()}

    def has(path: str) -> bool:
        return isinstance(try_to_load_from_cache(name, path, revision=said.sha), str)

    if name == CLIP[0][0]:
        wanted = [path for path in TOKENIZER_FILES if path in sizes]
    else:
        wanted = _wanted(name, sizes, half, has)
    cache = Path(constants.HF_HUB_CACHE)
    return Offer(name, str(said.sha), {path: sizes[path] for path in wanted},
                 {path: sizes[path] for path in wanted if not has(path)}, cache,
                 shutil.disk_usage(durable.make_folder(cache)).free)


def _wanted(name: str, sizes: Mapping[str, int], half: bool,
            has: Callable[[str], bool]) -> list[str]:
    """Which of the files make up a model that can be trained."""
    if INDEX not in sizes or "unet/config.json" not in sizes:
        singles = [path for path in sizes if path.endswith(".safetensors") and "/" not in path]
        if singles and INDEX not in sizes:
            raise ModelFileError(
                f"{name} is no folder in the diffusers layout, but has {', '.join(singles)}.",
                f"hf download {name} {singles[0]} --local-dir models - then choose "
                f"models/{singles[0]}.")
        raise ModelFileError(f"{name} is no Stable Diffusion model in the diffusers layout.",
                             "Choose another model; README.md says which are trained.")
    found = [path for path in (INDEX, SCHEDULE) if path in sizes]
    found += [path for part in TOKENIZERS for each in TOKENIZER_FILES
              if (path := f"{part}/{each}") in sizes]
    for part in WEIGHTS:
        if f"{part}/config.json" not in sizes:
            continue
        choices = [path for path in weight_files(part) if path in sizes]
        if not choices:
            raise ModelFileError(
                f"{name} has its {part} not as one .safetensors file; weights in other files may "
                "run code when read, and are not downloaded.",
                "Choose another copy of the model.")
        choices.sort(key=lambda path: (not has(path), (".fp16." in path) != half))
        found += [f"{part}/config.json", choices[0]]
    return found


def fetch(offer: Offer, progress: Progress) -> dict[str, Any]:
    """Bring into the cache what it lacks, small files first; what has come whole stays there when
    it is stopped or fails. Raises ModelFileError, DiskError, Stopped."""
    from huggingface_hub import hf_hub_download

    if offer.bytes + SPARE > offer.free:
        raise DiskError(
            f"{offer.name} takes {offer.bytes / MIB:,.0f} MiB, and {offer.free / MIB:,.0f} MiB are "
            f"free where {offer.cache} is.",
            "Free some space, or set HF_HOME to a folder on another disk.", offer.cache)
    meter = _meter(offer, progress)
    with _asking(offer.name, offer.cache):
        for path in sorted(offer.missing, key=offer.missing.__getitem__):
            progress.check()
            hf_hub_download(offer.name, path, revision=offer.revision, tqdm_class=meter)
        # the cache's word for which revision is meant, once all of it is there
        first = INDEX if INDEX in offer.files else next(iter(offer.files))
        here = hf_hub_download(offer.name, first, tqdm_class=meter)
    return {"name": offer.name, "folder": str(Path(here).parent), "files": len(offer.missing),
            "bytes": offer.bytes}


def require(model: ModelConfig, progress: Progress) -> None:
    """Download the base where it is named on Hugging Face and not in the cache."""
    base = config.find(model.base)
    if is_name(base) and snapshot(base.as_posix()) is None:
        fetch(look(base.as_posix(), model.dtype != "fp32"), progress)


def _meter(offer: Offer, progress: Progress) -> type:
    """What the library tells of its bytes, as stages in MiB; raises Stopped in its place."""
    from tqdm import tqdm

    name, whole = f"downloading MiB of {offer.name}", round(offer.bytes / MIB)
    progress.emit(events.Stage(name, 0, whole))
    done, told = 0, time.monotonic()

    class Meter(tqdm):
        def __init__(self, *arguments: Any, **named: Any):
            super().__init__(*arguments, **{**named, "disable": True})

        def update(self, n: float | None = 1) -> None:
            nonlocal done, told
            done += int(n or 0)
            progress.check()
            if time.monotonic() - told >= EVERY or done >= offer.bytes:
                told = time.monotonic()
                progress.emit(events.Stage(name, min(round(done / MIB), whole), whole))

    return Meter


@contextmanager
def _asking(name: str, cache: Path | None = None) -> Iterator[None]:
    """What the library raises, in words; never its own text, which may hold addresses with keys."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise ModelFileError(
            f"{name} is gated: its owner asks everyone to accept terms first.",
            f"Accept them on https://huggingface.co/{name}, log in once with `hf auth login`, and "
            "try again.") from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise ModelFileError(
            f"Hugging Face knows no model {name}, or it is private.",
            "Check the name; for a private one log in once with `hf auth login`.") from None
    except errors.OfflineModeIsEnabled:
        raise ModelFileError(
            f"{name} cannot be downloaded: HF_HUB_OFFLINE is set.",
            "Take it out of the environment, or copy the model here and choose it by its path."
        ) from None
    except errors.HfHubHTTPError as error:
        raise ModelFileError(
            f"Hugging Face answered {error.response.status_code} when asked for {name}.",
            "Try again later; what has come whole is kept.") from None
    except (OSError, errors.HTTPError) as error:
        raise _unreached(error, name, cache) from None


def _unreached(error: Exception, name: str, cache: Path | None) -> LycorisError:
    if cache is not None and isinstance(error, OSError) and isinstance(error.errno, int):
        return durable.disk_error(error, cache)
    return ModelFileError(
        f"Hugging Face cannot be reached, or the connection to it broke ({type(error).__name__}).",
        f"Check the network and try again: what has come whole is kept. Without one, copy {name} "
        "here and choose it by its path.")
