"""create_lycoris and create_lycoris_from_weights: adapters for a module you already hold.

A UNet2DConditionModel or CLIPTextModel follows its family's presets; any other module takes them in
all its linear and convolution layers (preset "full").
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from . import adapterfile, algorithms, knobs, registry
from .algorithms import Layer
from .assignments import assign
from .config import LEAVES
from .errors import ConfigError
from .families import layers_of, need_layers, part_of
from .network import LycorisNetwork
from .settings import NetworkConfig

SHELL = {leaf.name: leaf for path, leaf in LEAVES.items() if path.startswith("network.")}
TAKEN = ("algo", "preset", "dim", "alpha", "options", "text_encoder")
LINEAR = {"linear_dim": SHELL["dim"], "linear_alpha": SHELL["alpha"]}


def create_lycoris(module: nn.Module, multiplier: float = 1.0, linear_dim: int = 4,
                   linear_alpha: float = 1, algo: str = "lora", preset: str = "full",
                   **options: Any) -> LycorisNetwork:
    """A network over the module's layers, not yet attached: call `apply_to()`.

    `options` are the settings of the [network] section (conv_dim, conv_alpha, dora_wd, rs_lora,
    dropout, ...) and the algorithm's own (use_tucker, ...). An unknown one raises ConfigError.
    """
    own = knobs.leaves(registry.pick(algorithms.catalogue(), algo, "algo").Options)
    shell = {name: leaf for name, leaf in SHELL.items() if name not in TAKEN}
    problems: dict[str, str] = {}
    values: dict[str, Any] = {}
    given = {"linear_dim": linear_dim, "linear_alpha": linear_alpha, **options}
    for name, value in given.items():
        leaf = LINEAR.get(name) or shell.get(name) or own.get(name)
        if leaf is None:
            problems[name] = f"{algo} has no option {name}." + knobs.nearest(name, shell | own)
            continue
        try:
            values[name] = knobs.coerce(leaf, value)
        except ValueError as error:
            problems[name] = f"{name} {error}"
    if problems:
        raise ConfigError(problems)
    network = dataclasses.replace(
        NetworkConfig(algo=algo, preset=preset, dim=values["linear_dim"],
                      alpha=values["linear_alpha"]),
        options={name: value for name, value in values.items() if name in own},
        **{name: value for name, value in values.items() if name in shell})
    chosen = _chosen(module, preset)
    need_layers(chosen, preset)
    found = assign(chosen, network, _key)
    need_layers([a.layer for a in found], preset)
    made = LycorisNetwork(found, {"": module})
    made.names = _names(module, layers_of(module), own_first=True)
    made.set_multiplier(multiplier)
    return made


def create_lycoris_from_weights(
        multiplier: float, file: Path | str,
        module: nn.Module) -> tuple[LycorisNetwork, dict[str, Tensor]]:
    """(network, tensors): the network a file describes, over `module`, with its weights, not yet
    attached, and the file's own tensors by their keys.

    Keys may be in any dialect; those of a whole model's file (lora_unet_, unet., ...) are found
    where the module is of a known family. AdapterError where nothing fits.
    """
    opened = adapterfile.AdapterFile(file)
    layers = layers_of(module)
    names = _names(module, layers, own_first="lycoris wrapper" in opened.reading.dialects)
    found = adapterfile.match(opened, layers, names.__getitem__, type(module).__name__)
    network = LycorisNetwork.from_file(opened, found.assignments, {"": module})
    network.names = names
    network.set_multiplier(multiplier)
    return network.requires_grad_(True), opened.tensors


def _key(layer: Layer) -> str:
    return f"lycoris_{layer.name.replace('.', '_')}"


def _names(module: nn.Module, layers: list[Layer],
           own_first: bool) -> dict[Layer, tuple[str, ...]]:
    """Every name of each layer in a file; the first is ours: lycoris_<path>, or the family's."""
    own = {layer: (_key(layer), layer.name.replace(".", "_")) for layer in layers}
    home = part_of(module)
    if home is None:
        return own
    kind, part = home
    placed = {dataclasses.replace(layer, part=part): layer for layer in layers}
    family = {placed[layer]: names for layer, names in kind.names(list(placed)).items()}
    return {layer: (*own[layer], *family[layer]) if own_first else (*family[layer], *own[layer])
            for layer in layers}


def _chosen(module: nn.Module, preset: str) -> list[Layer]:
    layers = layers_of(module)
    home = part_of(module)
    if home is None:
        if preset != "full":
            raise ConfigError({"preset": f"{type(module).__name__} is of no known family, so only "
                                         "the preset full (every layer) has a meaning"})
        return layers
    kind, part = home
    named = [dataclasses.replace(layer, part=part) for layer in layers]
    wanted = {layer.name for layer in kind.select(named, preset)}
    return [layer for layer in layers if layer.name in wanted]
