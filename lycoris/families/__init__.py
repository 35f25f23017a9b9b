"""The model families: each a file in this folder that says everything about one kind of model.

A `Family` is opened on a base model's files and knows its facts from their headers, without weights
and without diffusers: layers, presets, key names, tokens. `load` gives the `Model` itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import config, hub, known, modelfiles, presets, quantised, tensorfile
from ..algorithms import Layer
from ..chosen import AS_IT_IS, Chosen
from ..errors import ConfigError, ModelFileError
from ..known import Known
from ..objectives import Objective
from ..prompts import Reading
from ..registry import discover, pick
from ..settings import ModelConfig

Report = Callable[[int, int], None]


def unheard(done: int, total: int) -> None:
    """Nobody waits."""


class Family:
    """Facts about one base model of this kind.

    `presets` are tables of presetfile's keys. `blocks` says for each part where the modules of a
    class are, as a regular expression of their whole path: a file's header names no classes.
    """

    name: ClassVar[str] = ""
    label: ClassVar[str] = ""
    prefixes: ClassVar[Mapping[str, str]] = {}  # {part: how its keys begin}
    # {part: how they begin in other programs' files, dots as underscores}; "" for bare paths
    other_prefixes: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    # {dialect with the original code's dotted paths: {part: how they begin}}
    original_prefixes: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    blocks: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    classes: ClassVar[Mapping[str, str]] = {}  # {class name of a bare module: its part}
    # {path: value} that a run on it wants in place of the defaults, beside its size
    defaults: ClassVar[Mapping[str, Any]] = {}
    clip_skips: ClassVar[bool] = True  # False: its text encoders' layer is part of what it is

    base: Path
    layers: tuple[Layer, ...]
    side_multiple: int  # pictures' sides must be multiples of this, in pixels
    latent_scale: int  # pixels of one latent's side
    resolution: int  # the side it was made for, in pixels
    max_tokens: int  # words that one chunk of a caption holds, in tokens
    metadata: Mapping[str, str]  # what an adapter's file says of its base
    scheduler_config: Mapping[str, Any]  # its schedule of noise, by diffusers' names
    configs: Mapping[str, Mapping[str, Any]]  # {part: its config}
    half_vae: bool  # its autoencoder is held as the rest of it, not in fp32
    known: Known | None = None  # set where it is known by name alone and `base` is another model

    def __init__(self, base: Path, chosen: Chosen | None = None):
        """Read the facts; raises ModelFileError where a part is missing or unfit."""
        raise NotImplementedError

    @classmethod
    def by_name(cls, known: Known, base: Path, chosen: Chosen) -> Family:
        """The facts of a known model, without files; `base` is what it is known beside."""
        raise NotImplementedError

    @property
    def called(self) -> str:
        """The name of its files."""
        return hub.called(self.base)

    @property
    def title(self) -> str:
        """What a person calls this base."""
        return self.known.label if self.known else self.called

    def require_files(self) -> None:
        """ModelFileError where there is nothing but the facts."""
        if self.known is not None:
            raise ModelFileError(
                f"model.family is {self.known.name}, but {self.base} is not a model of that "
                "shape. It serves for sizes and costs only.",
                "Set model.family to auto, or choose such a model as the base.")

    @classmethod
    def detect(cls, base: Path) -> bool:
        """Is the model in this folder one of ours?"""
        raise NotImplementedError

    def load(self, device: torch.device, dtype: torch.dtype, report: Report = unheard) -> Model:
        """`report(done, total)` hears of every part that is in memory."""
        raise NotImplementedError

    def count_tokens(self, captions: Sequence[str]) -> list[int]:
        """Tokens of each caption as the text encoder will count them, without the two ends."""
        raise NotImplementedError

    @property
    def text_layers(self) -> int:
        """How many layers the (first) text encoder has."""
        places = (re.search(r"\blayers\.(\d+)\.", layer.name) for layer in self.layers
                  if layer.part == "text_encoder")
        return 1 + max((int(place[1]) for place in places if place), default=0)

    def read_layer(self, part: str, clip_skip: int) -> int:
        """The layer of a text encoder, counted from the last, after which nothing is seen of it."""
        return clip_skip if self.clip_skips and part == "text_encoder" else 1

    @property
    def weights(self) -> Mapping[str, tensorfile.Lazy]:
        """{part: its weight file} of the parts that have layers; no tensor is read yet."""
        raise NotImplementedError

    def name_in_weights(self, layer: Layer) -> str:
        """How the layer's tensors begin in its part's weight file."""
        return layer.name

    def weight(self, layer: Layer) -> Tensor:
        """The base's own weight of one layer, read from its file, as stored."""
        return self.weights[layer.part][f"{self.name_in_weights(layer)}.weight"]

    def bias(self, layer: Layer) -> Tensor | None:
        """As `weight`; None where the layer has none."""
        weights, name = self.weights[layer.part], f"{self.name_in_weights(layer)}.bias"
        return weights[name] if name in weights.entries else None

    def files(self) -> list[Path]:
        """What the model is made of, for its fingerprint."""
        raise NotImplementedError

    @classmethod
    @lru_cache(maxsize=1 << 16)
    def key(cls, layer: Layer, dialect: str = "kohya") -> str:
        """How the layer's tensors begin in an adapter file: lora_unet_<path> (kohya),
        lycoris_<path> (lycoris) or unet.<dotted path> (diffusers)."""
        prefixes = {"kohya": cls.prefixes[layer.part], "lycoris": "lycoris", "diffusers": ""}
        prefix, path = pick(prefixes, dialect, "dialect"), cls.path_in_file(layer)
        return f"{prefix}_{path.replace('.', '_')}" if prefix else f"{layer.part}.{path}"

    @classmethod
    def path_in_file(cls, layer: Layer) -> str:
        """The layer's path within its part as files write it."""
        return layer.name

    @classmethod
    def other_paths(cls, layers: Sequence[Layer]) -> Mapping[Layer, tuple[str, ...]]:
        """The paths that only other programs' code gives to one model's layers."""
        return {}

    @classmethod
    def names(cls, layers: Sequence[Layer]) -> dict[Layer, tuple[str, ...]]:
        """Every name under which each layer of one model may stand in a file, dots as underscores;
        the first is ours."""
        others = cls.other_paths(layers)
        found = {}
        for layer in layers:
            prefixes = (cls.prefixes[layer.part], *cls.other_prefixes.get(layer.part, ()))
            paths = (cls.path_in_file(layer), *cls.paths(layer), *others.get(layer, ()))
            found[layer] = tuple(dict.fromkeys(
                f"{prefix}_{path}".removeprefix("_").replace(".", "_")
                for prefix in prefixes for path in paths))
        return found

    @cached_property
    def _names(self) -> dict[Layer, tuple[str, ...]]:
        return self.names(self.layers)

    def aliases(self, layer: Layer) -> tuple[str, ...]:
        """The names of one of `self.layers`, as `names` gives them."""
        return self._names[layer]

    @classmethod
    def paths(cls, layer: Layer) -> tuple[str, ...]:
        """The paths by which a preset may call the layer."""
        return (layer.name,)

    @classmethod
    def select(cls, layers: Sequence[Layer], preset: str) -> list[Layer]:
        """The layers a preset takes; ConfigError for a name that does not exist or takes none."""
        return list(presets.select(cls, layers, presets.find(preset, cls)).layers)


# What the denoiser attends to beside the picture, batch first each: e.g. the text encoder's hidden
# states (b, tokens, features). The names are the family's own.
Condition = Mapping[str, Tensor]


def together(conditions: Sequence[Condition]) -> Condition:
    """One batch of several."""
    return {name: torch.cat([each[name] for each in conditions]) for name in conditions[0]}


def moved(condition: Condition, device: torch.device) -> Condition:
    return {name: tensor.to(device) for name, tensor in condition.items()}


class Model:
    """A loaded base model. Pictures are (b, 3, h, w) in -1..1."""

    latent_scale: int  # pixels of one latent's side

    modules: Mapping[str, nn.Module]  # {part: module in which the layers' names are paths}
    objective: Objective
    scheduler_config: Mapping[str, Any]
    device: torch.device
    latent_channels: int
    reading: Reading = Reading()

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        """{part: the whole of it}, with what has no adapters."""
        raise NotImplementedError

    def move(self, device: torch.device) -> None:
        """All of it, to stay there."""
        for part in self.parts.values():
            part.to(device)
        self.device = device

    def rest(self, names: Sequence[str]) -> None:
        """These parts wait in the CPU's memory until they are asked for."""
        for name in names:
            self.parts[name].to("cpu")

    def ready(self, *names: str) -> None:
        """These parts are where the model is."""
        for part in (self.parts[name] for name in names):
            if next(part.parameters()).device.type != self.device.type:
                part.to(self.device)

    def encode_image(self, pictures: Tensor) -> Tensor:
        raise NotImplementedError

    def encode_text(self, captions: Sequence[str]) -> Condition:
        """Of captions, taken literally; as many chunks each as `reading` says."""
        raise NotImplementedError

    def encode_prompts(self, texts: Sequence[str]) -> Condition:
        """Of prompts to paint, with weights and embeddings where the family knows them; as many
        chunks for all as the longest needs."""
        return self.encode_text(texts)

    def check_prompts(self, texts: Sequence[str]) -> None:
        """EmbeddingError where a prompt names what cannot be used."""

    def with_sizes(self, condition: Condition, sizes: Sequence[Sequence[int]]) -> Condition:
        """With how each picture was cut out, for a model that is told: original height and width,
        the crop's top and left, height and width of what came out, in pixels."""
        return condition

    def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """One call of the denoiser."""
        raise NotImplementedError

    def decode(self, latents: Tensor) -> Tensor:
        raise NotImplementedError

    def train_mode(self, *, checkpointing: bool) -> None:
        """Freeze all weights and prepare for gradients through the model."""
        raise NotImplementedError

    def eval_mode(self) -> None:
        raise NotImplementedError


def catalogue() -> Mapping[str, type[Family]]:
    return discover(__name__)


def built_in_presets() -> tuple[str, ...]:
    """Every preset of every family, each once, in their order."""
    return tuple(dict.fromkeys(p for family in catalogue().values() for p in family.presets))


def preset_names() -> tuple[str, ...]:
    """Those, and the user's own."""
    return tuple(dict.fromkeys((*built_in_presets(), *presets.own_names())))


def check_preset(name: str) -> None:
    """ConfigError unless it is a preset of some family, or one's own that can be used."""
    if all(name not in family.presets for family in catalogue().values()):
        presets.own(name, preset_names())


def names() -> tuple[str, ...]:
    """What model.family may be: auto, a family, or a model that is known by name."""
    return tuple(dict.fromkeys(("auto", *catalogue(), *known.names())))


def open_chosen(model: ModelConfig) -> Family:
    """`open_base` as the settings of a run say it."""
    def place(path: str) -> Path | None:
        return config.find(path) if path else None

    return open_base(config.find(model.base), model.family, Chosen(
        model.prediction_type, model.zero_snr, place(model.vae), place(model.tokenizer),
        model.vae_dtype))


def open_base(base: Path, family: str = "auto", chosen: Chosen = AS_IT_IS) -> Family:
    """The base model at `base`, or in the Hugging Face cache under that name; raises ModelFileError
    where it is missing or of no known family.

    Where `family` is a known model's name and `base` is no model of its shape, only the facts: for
    what is asked before there is a model.
    """
    base = hub.found(base)
    if family in known.names():
        found = known.find(family)
        kind = catalogue()[found.family]
        if base.suffix not in modelfiles.PICKLES and base.exists() and kind.detect(base):
            opened = kind(base, chosen)
            if _outline(opened.layers) == _outline(found.layers):
                return opened
        return kind.by_name(found, base, chosen)
    if not base.exists():
        raise hub.absent(base)
    if base.suffix in modelfiles.PICKLES:
        raise modelfiles.pickled(base)
    if family != "auto":
        return pick(catalogue(), family, "model.family")(base, chosen)
    for kind in catalogue().values():
        if kind.detect(base):
            return kind(base, chosen)
    if base.is_file():
        raise modelfiles.refused(base, tensorfile.peek(base, ModelFileError)[0])
    raise ModelFileError(
        f"{base} is no model of a known family ({', '.join(catalogue())}).",
        "Choose the folder that holds model_index.json; or a model of one "
        ".safetensors file in the original layout.")


def _outline(layers: Sequence[Layer]) -> set[tuple[str, str, tuple[int, ...]]]:
    return {(layer.part, layer.name, layer.shape) for layer in layers}


def part_of(module: nn.Module) -> tuple[type[Family], str] | None:
    """The family and part a bare module belongs to, by its class; None for anything else."""
    for kind in catalogue().values():
        part = kind.classes.get(type(module).__name__)
        if part:
            return kind, part
    return None


def layers_of(module: nn.Module, part: str = "",
              rename: Callable[[str], str] = str) -> list[Layer]:
    """The layers of a real module that an adapter could take: linear, conv and affine norms."""
    found = []
    for name, child in module.named_modules():
        weight = getattr(child, "weight", None)
        if isinstance(child, nn.Linear):
            kind = "linear"
        elif isinstance(child, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            kind = "conv"
        elif isinstance(child, (nn.LayerNorm, nn.GroupNorm)) and weight is not None:
            kind = "norm"
        else:
            continue
        found.append(Layer(rename(name), kind, quantised.shape_of(child),
                           getattr(child, "bias", None) is not None, part))
    return found


def need_layers(found: Sequence[Any], preset: str) -> None:
    if not found:
        raise ConfigError({"network.preset": f"the preset {preset} matches no layer of this model"})
