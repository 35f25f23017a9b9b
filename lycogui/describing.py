"""Settings and layers in words, as the views of the Algorithm tab show them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lycogui.wording import option_label
from lycoris import algorithms, choose, knobs
from lycoris.config import LEAVES
from lycoris.plan import Plan
from lycoris.presets import PARTS
from lycoris.settings import NetworkConfig

# What people call the modules that presets name; a class that is not here is shown by its name.
MODULES = {
    "Transformer2DModel": "attention and feed-forward", "Attention": "attention",
    "ResnetBlock2D": "residual blocks", "Downsample2D": "downsampling",
    "Upsample2D": "upsampling", "conv_in": "the first convolution",
    "conv_out": "the last convolution",
    "time_embedding.linear_1": "the timestep's embedding",
    "time_embedding.linear_2": "the timestep's embedding",
    "CLIPAttention": "attention of the text encoder",
    "CLIPMLP": "feed-forward of the text encoder",
    "to_k": "keys", "to_v": "values", "ff.net.2": "the end of feed-forward",
    "k_proj": "keys of the text encoder", "v_proj": "values of the text encoder",
    "mlp.fc2": "the end of feed-forward of the text encoder",
}
CHOSEN = ("network.algo", "network.dim", "network.alpha", "network.options", "network.weights")


def in_short(network: NetworkConfig, before: NetworkConfig | None = None) -> str:
    """ "dim 8, alpha 4, factor 16": what the algorithm uses of the settings; and what else is
    another than `before`: "layers full"."""
    entry = algorithms.catalogue()[network.algo]
    own = knobs.leaves(entry.Options)
    parts = [f"dim {network.dim}"] * entry.has_dim
    parts += [f"alpha {choose.short(float(f'{network.alpha:.6g}'))}"] * entry.scaled
    for name, value in network.options.items():
        label = own[name].label.lower() if name in own else name
        if value is not False:
            parts.append(label if value is True else f"{label} {value}")
    return ", ".join([*parts, *(_moved(network, before) if before else ())]) or "no dim"


def _moved(network: NetworkConfig, before: NetworkConfig) -> Iterable[str]:
    entry = algorithms.catalogue()[network.algo]
    unused = {"network.conv_alpha"} if not entry.scaled else set()
    for path, leaf in LEAVES.items():
        name = path.removeprefix("network.")
        if name == path or path in CHOSEN or path in unused:
            continue
        value = getattr(network, name)
        if value != getattr(before, name):
            yield f"{leaf.label.lower()} {said_of(path, value)}"


def layers_of(made: Plan) -> dict[str, Any]:
    """Which layers are trained: in a sentence; and in rows what of each part, and which kinds."""
    chosen, sizes = made.selection, made.sizes
    parts = [f"{sizes.parts[part].parameters:,} parameters in {sizes.parts[part].modules:,} layers "
             f"of the {PARTS.get(part, part)}" for part in chosen.offered if part in sizes.parts]
    kinds: dict[str, tuple[int, list[str]]] = {}
    for target, count in chosen.matched.items():
        if count:
            total, names = kinds.get(MODULES.get(target, target), (0, []))
            kinds[MODULES.get(target, target)] = total + count, [*names, target]
    more = ([f"{len(chosen.overrides):,} layers have settings of their own."]
            if chosen.overrides else [])
    return {"said": f"Layers {chosen.said}", "parts": parts, "more": [*more, *chosen.notes],
            "kinds": [[label, count, ", ".join(names)] for label, (count, names) in kinds.items()]}


def said_of(path: str, value: Any) -> str:
    """A setting's value as a person reads it, with its unit."""
    knob = LEAVES[path].knob
    if value is None:
        return knob.none
    if isinstance(value, Mapping):
        own = path == "network.options"
        return ", ".join(f"{option_label(key).lower() if own else key} {said(each)}"
                         for key, each in value.items()) or "none"
    if knob.catalogue == "algorithms" and value in algorithms.catalogue():
        return algorithms.catalogue()[value].label
    return f"{said(value)} {knob.unit}".rstrip()


def said(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{len(value)}" if isinstance(value, tuple) else choose.short(value)


def settings_of(network: NetworkConfig) -> dict[str, str]:
    """{label: value} of a network's settings as a person reads them, for the two beside each
    other."""
    found = {"Algorithm": algorithms.catalogue()[network.algo].label}
    for path, leaf in LEAVES.items():
        head, name = path.split(".")
        if head == "network" and path not in ("network.algo", "network.options"):
            found[leaf.label] = said_of(path, getattr(network, name))
    for name, leaf in knobs.leaves(algorithms.catalogue()[network.algo].Options).items():
        found[leaf.label] = said(network.options.get(name, leaf.default))
    return found


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON takes them; a whole network by its paths."""
    found: dict[str, Any] = {}
    for path, value in values.items():
        if isinstance(value, NetworkConfig):
            found |= {f"{path}.{name}": each for name, each in vars(value).items()}
        else:
            found[path] = value
    return found
