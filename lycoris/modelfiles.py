"""Where a base model's parts are: in a folder of the diffusers layout, or in one file of the
original layout. Either gives configs, weights, tokenizers and modules; errors name the part.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from . import original, tensorfile
from .errors import ModelFileError, NotDownloaded

PICKLES = (".bin", ".ckpt", ".pt", ".pth")
# Of tensors alone; clones, because tensors that share memory cannot be written.
CONVERT = ("import sys, torch, safetensors.torch as s; d = torch.load(sys.argv[1], "
           "map_location='cpu', weights_only=True); d = d.get('state_dict', d); "
           "s.save_file({k: v.clone().contiguous() for k, v in d.items() "
           "if isinstance(v, torch.Tensor)}, sys.argv[2])")
WORDS = ("tokenizer.json", "vocab.json", "merges.txt")
# Repositories whose tokenizer is CLIP's, as SD 1.x, SD 2.x and SDXL all have it: (name, folder)
CLIP = (("openai/clip-vit-large-patch14", ""),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", "tokenizer/"),
        ("stabilityai/stable-diffusion-xl-base-1.0", "tokenizer/"))


class Folder:
    """The diffusers layout. `stems`: {part: how its weight file is called}."""

    def __init__(self, base: Path, stems: Mapping[str, str], places: Mapping[str, Path]):
        self.base, self.stems, self.places = base, stems, places

    def config(self, part: str, needed: Mapping[str, type]) -> dict[str, Any]:
        return read_json(self.places[part] / "config.json", needed)

    def schedule(self) -> dict[str, Any]:
        return read_json(self.base / "scheduler" / "scheduler_config.json")

    def weights(self, part: str) -> tensorfile.Lazy:
        return tensorfile.Lazy(self.file(part)[0], ModelFileError)

    def file(self, part: str) -> tuple[Path, str | None]:
        """The part's weight file and its variant: "fp16" where there are only half-precision files
        under that name."""
        folder, stem = self.places[part], self.stems[part]
        for variant in (None, "fp16"):
            file = folder / f"{stem}{f'.{variant}' if variant else ''}.safetensors"
            if file.is_file():
                return file, variant
        pickled = [f.name for f in folder.iterdir() if f.suffix in PICKLES]
        raise ModelFileError(
            f"The base model's {part} has no {stem}.safetensors in {folder}"
            + (f", only {pickled[0]}, which may run code when read." if pickled else "."),
            "Save the model again with diffusers' save_pretrained(..., safe_serialization=True)."
            if pickled else "Copy that file from where the model came from.")

    def words(self, part: str) -> Path:
        """The tokenizer's folder: tokenizer.json, or in older folders vocab.json and merges.txt.

        Without them transformers makes an empty tokenizer, for which all captions are the same; and
        for broken ones it raises a bare Exception.
        """
        folder = self.base / part
        found = folder / WORDS[0]
        if found.is_file():
            read_json(found, {"model": dict})
            return folder
        found, merges = (folder / name for name in WORDS[1:])
        if missing := [file.name for file in (found, merges) if not file.is_file()]:
            raise ModelFileError(
                f"The base model's tokenizer has no tokenizer.json, and no "
                f"{' and no '.join(missing)} in its place.",
                "Copy the tokenizer folder from where the model came from.")
        read_json(found)
        read_text(merges)
        return folder

    def padding(self, text_encoder: str) -> int | None:
        """The token to pad with; None for the tokenizer's own."""
        return None

    def build(self, kind: Any, part: str, dtype: torch.dtype) -> nn.Module:
        with reading(self.base, part):
            return kind.from_pretrained(
                str(self.places[part]), dtype=dtype, variant=self.file(part)[1],
                use_safetensors=True, local_files_only=True)


class Single:
    """One file of the original layout; where its tokenizer is from is looked for when asked."""

    def __init__(self, base: Path, tokenizer: Path | None):
        self.base, self.tokenizer = base, tokenizer
        self.whole = tensorfile.Lazy(base, ModelFileError)
        kind = original.kind_of(self.whole.entries)
        if kind is None:
            raise refused(base, self.whole.entries)
        self.kind = kind
        self.places = original.places_of(self.whole.entries, kind)
        self.parts = {part: original.Part(self.whole, places)
                      for part, places in self.places.items()}
        self.configs = original.configs(
            kind, {name: part.entries for name, part in self.parts.items()}, base,
            self.whole.entries, self.whole.metadata)

    def config(self, part: str, needed: Mapping[str, type]) -> dict[str, Any]:
        return self.configs[part]

    def schedule(self) -> dict[str, Any]:
        return self.configs["scheduler"]

    def weights(self, part: str) -> original.Part:
        if part not in self.parts:
            raise ModelFileError(f"{self.base} holds no {part}.",
                                 "Choose one with model.vae." if part == "vae" else
                                 "Take a file that holds the whole model.")
        return self.parts[part]

    def file(self, part: str) -> tuple[Path, str | None]:
        return self.weights(part).path, None

    def words(self, part: str) -> Path:
        """A folder with CLIP's tokenizer: the chosen one, one beside the file, or the user's cache
        of Hugging Face."""
        near = self.base.parent
        chosen = self.tokenizer
        places = ([chosen / part, chosen / "tokenizer", chosen] if chosen else
                  [near / part, near / "tokenizer"])
        for folder in [*places, *cached_words()]:
            if (folder / WORDS[0]).is_file() or all((folder / n).is_file() for n in WORDS[1:]):
                return folder
        where = (f"{chosen} has none" if chosen else
                 f"none is in {near / 'tokenizer'} or the Hugging Face cache")
        raise NotDownloaded(
            f"{self.base.name} holds no tokenizer, as no single file does, and {where}.",
            CLIP[0][0], "copy the folder tokenizer of any Stable Diffusion model in the diffusers "
            "layout beside the file, or say where it is in model.tokenizer.")

    def padding(self, text_encoder: str) -> int:
        return self.configs[text_encoder]["pad_token_id"]

    def build(self, kind: Any, part: str, dtype: torch.dtype) -> nn.Module:
        return built(kind, self.configs[part], self.weights(part), dtype, self.base)


def tokenizer(source: Folder | Single, part: str, text_encoder: str) -> Any:
    """The tokenizer of one text encoder, with that one's padding."""
    import transformers

    with reading(source.base, part):
        found = transformers.CLIPTokenizer.from_pretrained(
            str(source.words(part)), local_files_only=True)
    if (padding := source.padding(text_encoder)) is not None:
        found.pad_token = found.convert_ids_to_tokens(padding)
    return found


def built(kind: Any, config: Mapping[str, Any], weights: tensorfile.Lazy | original.Part,
          dtype: torch.dtype, base: Path) -> nn.Module:
    """A part made from its config without weights, and filled tensor by tensor."""
    import transformers

    with reading(base, kind.__name__), torch.device("meta"):
        if issubclass(kind, transformers.PreTrainedModel):
            module = kind(kind.config_class(**config))
        else:
            module = kind.from_config(dict(config))
    state = {}
    for name in module.state_dict():
        stored = next((each for each in (name, original.TEXT_LEVEL + name) if each in weights),
                      None)
        if stored is None:
            raise ModelFileError(f"{base} lacks {name} of {kind.__name__}.",
                                 "Take another copy of the model.")
        state[name] = weights[stored].to(dtype)
    with reading(base, kind.__name__):
        module.load_state_dict(state, assign=True)
    for name, buffer in module.named_buffers():
        if buffer.is_meta:  # not in any file: CLIP's position_ids, 0, 1, 2, ...
            owner = module.get_submodule(name.rpartition(".")[0])
            setattr(owner, name.rpartition(".")[2],
                    torch.arange(buffer.shape[-1]).expand(buffer.shape))
    return module


def open_vae(path: Path, config: Mapping[str, Any]) -> Folder | Autoencoder:
    """Another autoencoder: a folder that is one or has one, or a file; `config` is of the base's
    own, with what shapes do not say."""
    if path.suffix in PICKLES:
        raise pickled(path)
    if path.is_dir():
        inner = path / "vae" if (path / "vae").is_dir() else path
        return Folder(path, {"vae": "diffusion_pytorch_model"}, {"vae": inner})
    return Autoencoder(path, config)


class Autoencoder:
    """A VAE's own file, under the original's names, with a prefix or without, or diffusers'."""

    def __init__(self, path: Path, config: Mapping[str, Any]):
        self.base, file = path, tensorfile.Lazy(path, ModelFileError)
        prefix = next((each for each in (original.VAE, "vae.", "")
                       if f"{each}decoder.conv_in.weight" in file.entries), None)
        if prefix is None:
            raise ModelFileError(f"{path} is no autoencoder of Stable Diffusion.",
                                 "Choose a VAE as model.vae: a folder or a .safetensors file.")
        own = any(name.startswith(f"{prefix}encoder.down_blocks.") for name in file.entries)
        self.part = original.Part(file, {
            name.removeprefix(prefix): original.Place(name) for name in file.entries
            if name.startswith(prefix)} if own else original.autoencoder(file.entries, prefix))
        # whether the base's own is safe in half precision says nothing of this one
        self.said = {**config, "force_upcast": True,
                     **original.autoencoder_config(self.part.entries)}

    def config(self, part: str, needed: Mapping[str, type]) -> dict[str, Any]:
        return self.said

    def weights(self, part: str) -> original.Part:
        return self.part

    def file(self, part: str) -> tuple[Path, str | None]:
        return self.part.path, None

    def build(self, kind: Any, part: str, dtype: torch.dtype) -> nn.Module:
        return built(kind, self.said, self.part, dtype, self.base)


def pickled(path: Path) -> ModelFileError:
    """With the command that converts it, from this very environment, as any shell takes it."""
    out = path.with_suffix(".safetensors").absolute()
    python, given, made = map(_quoted, (sys.executable, str(path.absolute()), str(out)))
    fix = f"Choose {out}." if out.is_file() else (
        "Take the model's .safetensors, or write one with the command below. It runs nothing that "
        "is in the file: one with more than tensors in it, such as classes of pytorch-lightning, "
        "it refuses, and that takes another program, which you trust to run them.\n"
        f'{python} -c "{CONVERT}" {given} {made}')
    return ModelFileError(
        f"{path.name} is a pickle, which may run code when read; only .safetensors are read.", fix)


def _quoted(text: str) -> str:
    return subprocess.list2cmdline([text]) if os.name == "nt" else shlex.quote(text)


def refused(base: Path, entries: tensorfile.Entries) -> ModelFileError:
    """Why a file is no base model of ours."""
    if any(".lora_" in key or ".hada_" in key or ".lokr_" in key for key in entries):
        return ModelFileError(f"{base.name} is an adapter, not a base model.",
                              "Choose the model that it was trained on.")
    if f"{original.UNET}input_blocks.0.0.weight" not in entries:
        return ModelFileError(
            f"{base.name} is no Stable Diffusion model in the original layout.",
            "Choose a checkpoint of SD 1.x, SD 2.x or SDXL, or a folder in the diffusers layout.")
    if any(key.startswith("conditioner.embedders.0.model.") for key in entries):
        return ModelFileError(f"{base.name} is SDXL's refiner, which is not trained.",
                              "Choose the SDXL base model.")
    return ModelFileError(f"{base.name} holds a UNet without its text encoder.",
                          "Take a file that holds the whole model.")


def cached_words() -> Sequence[Path]:
    """Folders of CLIP's tokenizer in the user's cache of Hugging Face; no network."""
    from huggingface_hub import try_to_load_from_cache

    found = []
    for repository, folder in CLIP:
        for name in (WORDS[0], WORDS[1]):
            path = try_to_load_from_cache(repository, folder + name)
            if isinstance(path, str):
                found.append(Path(path).parent)
    return found


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
