"""A whole base model with changed weights: a folder in the diffusers layout, or one file in the
original layout. Everything is written tensor by tensor, and all or nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import durable, modelfiles, original, provenance, tensorfile
from .algorithms import Layer
from .assignments import Assignment
from .deltas import Change, Deltas
from .errors import ModelFileError
from .families import Family
from .outfile import KEEP
from .progress import Progress
from .provenance import Deed

WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack")  # files of a part's weights
EMA = "model_ema."  # an average of the old weights, which would be stale
_TORCH: Mapping[str, torch.dtype] = {name: dtype for dtype, name in tensorfile.NAMES.items()}
# {part: (class, its library, model_type)} as a folder's configs name them
CLASSES = {"unet": ("UNet2DConditionModel", "diffusers", ""),
           "vae": ("AutoencoderKL", "diffusers", ""),
           "scheduler": ("DDIMScheduler", "diffusers", ""),
           "text_encoder": ("CLIPTextModel", "transformers", "clip_text_model"),
           "text_encoder_2": ("CLIPTextModelWithProjection", "transformers", "clip_text_model"),
           "tokenizer": ("CLIPTokenizer", "transformers", ""),
           "tokenizer_2": ("CLIPTokenizer", "transformers", "")}


@dataclass(frozen=True)
class Merged:
    """A model that was written; `norm` of a row is that of the layer's whole change."""

    out: Path
    bytes: int
    dtype: str
    files: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]

    @property
    def summary(self) -> str:
        return f"{len(self.rows)} layers changed in {', '.join(self.files)}"

    def data(self) -> dict[str, Any]:
        return {"verb": "merge", "out": str(self.out), "bytes": self.bytes, "dtype": self.dtype,
                "files": list(self.files), "changed": len(self.rows), "summary": self.summary,
                "layers": list(self.rows), "notes": list(self.notes)}


@dataclass(frozen=True)
class Share:
    """One adapter's part in one layer; `weight` is what its change is multiplied with."""

    deltas: Deltas
    assignment: Assignment
    weight: float

    def change(self) -> Change:
        return self.deltas.change(self.assignment)


def of_adapter(path: Path, family: Family) -> dict[Layer, list[Share]]:
    """What one adapter changes, at its full strength."""
    deltas = Deltas(path, family)
    return {each.layer: [Share(deltas, each, 1.0)] for each in deltas.assignments}


@dataclass
class Whole:
    """A base with the adapters' changes in its weights, on its way to the disk. `dtype` is keep,
    fp16, bf16 or fp32."""

    family: Family
    shares: Mapping[Layer, Sequence[Share]]
    dtype: str
    deed: Deed
    progress: Progress
    rows: list[dict[str, Any]] = field(default_factory=list)

    def write_folder(self, out: Path, *, replace: bool = False) -> Merged:
        """In the diffusers layout, in place of a folder there where it is to `replace` it;
        ModelFileError where a part is not to be written."""
        parts = {layer.part for layer in self.shares}
        self._refuse_unwritable(parts)
        single = self.family.base.is_file()
        if single:
            self.family.require_files()  # its tokenizer goes along
            parts = {*parts, *self.family.configs} - {"scheduler"}
        files = []
        with durable.whole_folder(out, replace=replace) as temporary:
            for part in sorted(parts):
                files.append(self._part(part, temporary))
            if single:
                self._describe(temporary)
            else:
                self._others(parts, temporary)
            size = sum(file.stat().st_size for file in temporary.rglob("*") if file.is_file())
            self.progress.check()
        return self._done(out, size, files)

    def write_file(self, out: Path, *, with_vae: bool = True) -> Merged:
        """One file in the original layout."""
        self._refuse_unwritable({layer.part for layer in self.shares})
        family = self.family
        parts = {part: family.part_weights(part) for part in family.configs
                 if part != "scheduler" and (with_vae or part != "vae")}
        places = (family.single.places if family.single else original.written(
            family.original_kind, {part: weights.entries for part, weights in parts.items()}))
        read = {part: self._reader(part, weights) for part, weights in parts.items()}
        entries: dict[str, tuple[str, tuple[int, ...]]] = {}
        makers: dict[str, Callable[[], Tensor]] = {}
        for part, weights in parts.items():
            own = places[part] if part in places and all(
                name in weights for name in places[part]) else original.written_autoencoder(
                    weights.entries)
            for key, names in original.fused(own).items():
                stored = [weights.entries[name] for name in names]
                entries[key] = (self._dtype(stored[0][0]), _shape(own, names, stored))
                makers[key] = _maker(own, names, read[part])
        if family.single:
            whole = family.single.whole
            dropped = (EMA,) if with_vae else (EMA, original.VAE)
            for key, (dtype, shape) in whole.entries.items():
                if key not in entries and not key.startswith(dropped):
                    entries[key] = (self._dtype(dtype), shape)
                    makers[key] = lambda key=key: whole[key]
        self._mark(entries, makers)
        steps = self.progress.over(tensorfile.header(entries, {})[1], "writing the model")

        def make(name: str) -> Tensor:
            assert next(steps) == name
            return makers[name]().to(_TORCH[entries[name][0]])

        found = family.single.whole.metadata if family.single else {}
        tensorfile.stream(out, entries, make, self._metadata({**found, **self._spec()}))
        next(steps, None)
        return self._done(out, out.stat().st_size, [out.name])

    def _done(self, out: Path, size: int, files: Sequence[str]) -> Merged:
        return Merged(out, size, self.dtype, tuple(files), tuple(self.rows),
                      tuple(self.progress.notes))

    def _mark(self, entries: dict[str, Any], makers: dict[str, Callable[[], Tensor]]) -> None:
        """The empty tensors by which SDXL's v-prediction models are known."""
        if self.family.original_kind == "sdxl":
            said = self.family.scheduler_config
            marks = {original.VELOCITY_MARK: said.get("prediction_type") == "v_prediction",
                     original.ZERO_SNR_MARK: bool(said.get("rescale_betas_zero_snr"))}
            for name in (name for name, wanted in marks.items() if wanted):
                entries[name], makers[name] = ("F32", (0,)), lambda: torch.zeros(0)

    def _spec(self) -> dict[str, str]:
        said = self.family.metadata
        return {"modelspec.sai_model_spec": "1.0.1",
                "modelspec.architecture": said["modelspec.architecture"].removesuffix("/lora"),
                "modelspec.prediction_type": said["modelspec.prediction_type"]}

    def _reader(self, part: str, weights: Any) -> Callable[[str], Tensor]:
        """Its tensors by their names, changed where they are."""
        own = {self.family.name_in_weights(layer): layer for layer in self.shares
               if layer.part == part}

        def read(name: str) -> Tensor:
            stem, _, leaf = name.rpartition(".")
            tensor = weights[name]
            if stem in own and leaf in ("weight", "bias"):
                return self._changed(own[stem], leaf, tensor)
            return tensor

        return read

    def _part(self, part: str, folder: Path) -> str:
        """Write one part's weights tensor by tensor; returns the file's path in the folder."""
        weights = self.family.part_weights(part)
        read = self._reader(part, weights)
        entries = {name: (self._dtype(dtype), shape)
                   for name, (dtype, shape) in weights.entries.items()}
        steps = self.progress.over(tensorfile.header(entries, {})[1], f"writing {part}")

        def make(name: str) -> Tensor:
            assert next(steps) == name
            return read(name).to(_TORCH[entries[name][0]])

        if self.family.base.is_file():
            path = Path(part) / f"{self.family.stems[part]}.safetensors"
            durable.make_folder(folder / part)
            found: Mapping[str, str] = {}
        else:
            path, found = weights.path.relative_to(self.family.base), weights.metadata
        if self.dtype not in (KEEP, "fp16"):
            path = path.with_name(path.name.replace(".fp16.", "."))
        tensorfile.stream(folder / path, entries, make, self._metadata(found))
        next(steps, None)  # the last event
        return path.as_posix()

    def _describe(self, folder: Path) -> None:
        """Everything beside the weights, for a base of one file."""
        family = self.family
        xl = "text_encoder_2" in family.configs
        index: dict[str, Any] = {
            "_class_name": f"StableDiffusion{'XL' * xl}Pipeline", "_diffusers_version": "0.31.0"}
        parts = {**family.configs, "scheduler": family.scheduler_config}
        for part, config in parts.items():
            name, library, kind = CLASSES[part]
            index[part] = [library, name]
            said = {"model_type": kind, "architectures": [name]} if kind else {"_class_name": name}
            file = "scheduler_config.json" if part == "scheduler" else "config.json"
            durable.make_folder(folder / part)
            durable.write_text(folder / part / file, json.dumps({**said, **config}, indent=1))
        for part, text in (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")):
            if text in parts:
                index[part] = [CLASSES[part][1], CLASSES[part][0]]
                modelfiles.tokenizer(family.source, part, text).save_pretrained(folder / part)
        if not xl:
            index |= {"safety_checker": [None, None], "feature_extractor": [None, None],
                      "requires_safety_checker": False}
        durable.write_text(folder / "model_index.json", json.dumps(index, indent=1))

    def _changed(self, layer: Layer, leaf: str, tensor: Tensor) -> Tensor:
        """W' or b' in fp32, computed as the attached layer does."""
        before = tensor.float()
        after = before
        for share in self.shares[layer]:
            change = share.change()
            if leaf == "weight":
                after = change.onto(after, share.weight)
            elif (shift := change.bias(share.weight)) is not None:
                after = after + shift
        if leaf == "weight":
            self.rows.append({
                "layer": f"{layer.part}.{layer.name}",
                "adapters": [share.deltas.name for share in self.shares[layer]],
                "weights": [share.weight for share in self.shares[layer]],
                "norm": (after - before).double().norm().item()})
        return after

    def _dtype(self, stored: str) -> str:
        """The name of what a tensor of that type becomes: integers stay."""
        asked = tensorfile.DTYPES.get(self.dtype)
        floating = _TORCH[stored].is_floating_point
        return stored if asked is None or not floating else tensorfile.NAMES[asked]

    def _metadata(self, found: Mapping[str, str]) -> dict[str, str]:
        deed = self.deed
        made = {"verb": deed.verb, "from": list(deed.names), **deed.settings}
        names = ", ".join([self.family.called, *deed.names])
        return {"format": "pt", **found, "modelspec.merged_from": names,
                provenance.MADE: json.dumps(made, ensure_ascii=False)}

    def _others(self, parts: set[str], folder: Path) -> None:
        """Copy what does not change; other weights of changed parts would be stale beside them."""
        base = self.family.base
        homes = {self.family.weights[part].path.parent for part in parts}
        files = [file for file in _files(base)
                 if not (file.parent in {*homes, base} and _holds_weights(file))]
        for file in self.progress.over(files, "copying"):
            durable.copy(file, folder / file.relative_to(base))

    def _refuse_unwritable(self, parts: set[str]) -> None:
        for part in parts:
            weights = self.family.weights[part]
            strange = {dtype for dtype, _ in weights.entries.values()} - set(_TORCH)
            if strange:
                raise ModelFileError(
                    f"{weights.path} holds numbers of the type {', '.join(sorted(strange))}, in "
                    "which a small change would be lost.",
                    "Merge into the model in fp32, bf16 or fp16.")


def _maker(places: original.Places, names: Sequence[str],
           read: Callable[[str], Tensor]) -> Callable[[], Tensor]:
    return lambda: original.assembled(places, names, read)


def _shape(places: original.Places, names: Sequence[str],
           stored: Sequence[tuple[str, tuple[int, ...]]]) -> tuple[int, ...]:
    """Of what stands at the key of these names."""
    with torch.device("meta"):
        return tuple(original.assembled(
            places, names, dict(zip(names, (torch.empty(shape) for _, shape in stored),
                                    strict=True)).__getitem__).shape)


def _files(base: Path) -> Iterator[Path]:
    for file in sorted(base.rglob("*")):
        inner = file.relative_to(base).parts
        if file.is_file() and not any(part.startswith(".") for part in inner):
            yield file


def _holds_weights(file: Path) -> bool:
    return file.suffix in WEIGHTS or file.name.endswith(".index.json")
