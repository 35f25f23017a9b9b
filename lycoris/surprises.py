"""What settings do that few expect, said before it is trained: each a warning of the plan."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter

import torch

from . import algorithms, knobs, optimizers, presets
from .algorithms import Algorithm, Layer
from .assignments import Assignment, fits, read_rules, select
from .events import Warned
from .families import Family
from .presetfile import OWN
from .presets import Selection
from .settings import Config

LOUD, QUIET = 4.0, 1 / 64  # effective scales outside are told
FLOAT16_MAX = torch.finfo(torch.float16).max


def network(run: Config, family: Family, assignments: Sequence[Assignment]) -> list[Warned]:
    """Of the network's settings on these layers."""
    alike: Counter[tuple] = Counter()
    samples: dict[tuple, Assignment] = {}
    for each in assignments:
        layer = each.layer
        if layer.kind != "norm":
            key = (_settings(each.algorithm), layer.kind, layer.shape, layer.bias)
            samples.setdefault(key, each)
            alike[key] += 1
    groups: dict[tuple, tuple[Algorithm, dict[Layer, int]]] = {}
    for key, each in samples.items():
        groups.setdefault(key[0], (each.algorithm, {}))[1][each.layer] = alike[key]
    chosen = select(family, run.network)
    return [*_preset(run, chosen), *_dropped(run, chosen), *_rules(run, chosen),
            *_unused(run, assignments), *_unread(run, family, assignments), *_rate(run),
            *(warned for algorithm, layers in groups.values()
              for warned in _of(algorithm, layers, run.output.dtype))]


def _settings(algorithm: Algorithm) -> tuple:
    """The same for layers of the same settings, whichever rule they have them from."""
    return (type(algorithm), algorithm.dim, algorithm.alpha, algorithm.options,
            algorithm.rank_stabilised)


def _preset(run: Config, chosen: Selection) -> Iterator[Warned]:
    network = run.network
    if chosen.unmatched:
        yield Warned(f"The preset {network.preset} names what this model does not have: "
                     f"{', '.join(chosen.unmatched)}.", "Nothing is trained there.")
    spatial = sum(layer.is_spatial for layer in chosen.layers)
    if network.conv_dim == 0 and spatial:
        yield Warned(f"network.conv_dim is 0, so {spatial} convolutions that the preset "
                     f"{network.preset} takes are left out.",
                     "Leave conv_dim empty to train them at the same dim.")
    if network.conv_dim and not spatial:
        yield Warned(f"network.conv_dim is {network.conv_dim}, but the preset {network.preset} "
                     "takes no convolution larger than 1x1.", "Choose the preset full for them.")


def _dropped(run: Config, chosen: Selection) -> Iterator[Warned]:
    """Options in a preset of one's own that the algorithm of their layers does not have."""
    if not presets.source(run.network.preset):
        return
    alike: Counter[tuple[str, str]] = Counter()
    for said in chosen.overrides.values():
        entry = algorithms.catalogue()[str(said.get("algo") or run.network.algo)]
        lost = said.keys() - {"algo", *OWN, *knobs.leaves(entry.Options)}
        alike.update((name, entry.label) for name in lost)
    for (name, label), count in sorted(alike.items()):
        yield Warned(f"The preset {chosen.preset} sets {name} for {count} layers, but they "
                     f"are {label}, which has no {name}: it does nothing there.",
                     "Write the algo that it is meant for beside it.")


def _rules(run: Config, chosen: Selection) -> Iterator[Warned]:
    """Rules that decide nothing: their pattern fits no layer, or earlier rules have them all."""
    patterns = [pattern for pattern, _ in read_rules(run.network.rules)]
    first = {next((place for place, pattern in enumerate(patterns) if fits(pattern, layer)), None)
             for layer in chosen.layers} if patterns else set()
    for place, pattern in enumerate(patterns):
        if place in first:
            continue
        taken = any(fits(pattern, layer) for layer in chosen.layers)
        yield Warned(f"Rule {place + 1}, {pattern}, does nothing: " + (
            "earlier rules fit all of its layers." if taken else
            f"it fits no layer that the preset {chosen.preset} takes."),
            "Move it up." if taken else "The layers have names like "
            f"{chosen.layers[0].part}.{chosen.layers[0].name}.")


def _unused(run: Config, assignments: Sequence[Assignment]) -> Iterator[Warned]:
    network = run.network
    entry = algorithms.catalogue()[network.algo]
    if network.rank_dropout and not entry.drops_ranks():
        yield Warned(f"{entry.label} has no ranks, so network.rank_dropout does nothing.",
                     "Use network.dropout or network.module_dropout.")
    if network.rs_lora and not entry.scaled:
        yield Warned(f"{entry.label} has no alpha, so network.rs_lora does nothing.", "")
    if network.options.get("use_tucker") and not any(a.layer.is_spatial for a in assignments):
        yield Warned(f"The preset {network.preset} takes no convolution larger than 1x1, so the "
                     "Tucker decomposition does nothing.", "Choose the preset full for them.")
    for name in ("plus_ratio", "text_encoder_plus_ratio"):
        if getattr(run.optimizer, name) not in (None, 1) and not entry.plus:
            yield Warned(f"LoRA+ knows no faster half of {entry.label}, so optimizer.{name} does "
                         "nothing.", "")
    if network.train_norm and not any(a.layer.kind == "norm" for a in assignments):
        yield Warned(f"The preset {network.preset} takes no normalisation layer, so "
                     "network.train_norm does nothing.", "")


def _unread(run: Config, family: Family, assignments: Sequence[Assignment]) -> Iterator[Warned]:
    """They stay in the file, as in other trainers' files, so that its layers are those of the
    preset whatever layer is read."""
    places = {}
    for layer in family.layers:
        if layer.part.startswith("text_encoder") and (
                place := re.search(r"\blayers\.(\d+)\.", layer.name)):
            places[layer] = int(place[1])
    counts = {layer.part: place + 1 for layer, place in sorted(places.items(), key=itemgetter(1))}
    unread = {layer for layer, place in places.items() if place > counts[layer.part] - (
        family.read_layer(layer.part, run.model.clip_skip))}
    found = [a.layer for a in assignments if a.layer in unread]
    if not found or run.optimizer.text_encoder_lr == 0:
        return
    blocks = dict.fromkeys(re.sub(r"(\blayers\.\d+)\..*", r"\1.*", f"{layer.part}.{layer.name}")
                           for layer in found)
    yield Warned(f"{len(found)} of {len(assignments)} layers of the adapter come after the layer "
                 "of the text encoder that is read: they learn nothing, and change nothing in the "
                 "file.", "To leave them out, exclude them in network.rules: match = "
                 f"{' and '.join(blocks)}.")


def _rate(run: Config) -> Iterator[Warned]:
    entry = algorithms.catalogue()[run.network.algo]
    if entry.guide.rates is None or run.optimizer.name not in optimizers.ROWS:
        return
    row = optimizers.ROWS[run.optimizer.name]
    if row.times is None:
        return
    low, high = (rate * row.times for rate in entry.guide.rates)
    lr = run.optimizer.lr
    if not low / 10 <= lr <= high * 10:
        yield Warned(f"optimizer.lr is {lr:g}; {entry.label} is usually trained with {low:g} to "
                     f"{high:g} by {row.name}.", f"Set it to {min(max(lr, low), high):g}.")


def _of(algorithm: Algorithm, layers: Mapping[Layer, int], dtype: str) -> Iterator[Warned]:
    """Of one algorithm at one dim and alpha on its layers."""
    for text, fix in algorithm.surprises(layers):
        yield Warned(text, fix)
    scales = {algorithm.scale(layer) for layer in layers}
    if (loud := max(scales)) > LOUD:
        yield Warned(f"network.alpha is {algorithm.alpha:g} with dim {algorithm.dim}: every change "
                     f"is scaled by {loud:.3g}.", f"Set alpha to {algorithm.dim} or less.")
    if (quiet := min(scales)) < QUIET:
        root = "the root of dim" if algorithm.rank_stabilised else "dim"
        yield Warned(f"network.alpha is {algorithm.alpha:g} with dim {algorithm.dim}: every change "
                     f"is scaled by {quiet:.3g}, so little is learned at usual rates.",
                     f"Set alpha nearer to {root}, or raise the learning rate.")
    stored = max((algorithm.file_alpha(layer) or 0.0 for layer in layers), default=0.0)
    if dtype == "fp16" and stored > FLOAT16_MAX:
        yield Warned(f"alpha is {stored:g} in the file, more than fp16 can hold "
                     f"({FLOAT16_MAX:g}): it would be read as infinite.",
                     "Lower alpha and dim, or set output.dtype to bf16 or fp32.")
    larger = sum(count for layer, count in layers.items()
                 if _own(algorithm, layer) > layer.out * layer.fan_in)
    if 2 * larger > sum(layers.values()) and algorithm.has_dim:
        yield Warned(f"At dim {algorithm.dim} {algorithm.label} holds more numbers than the layer "
                     f"itself on {larger} of {sum(layers.values())} layers.",
                     "Lower the dim, or choose Full, which is smaller there.")


def _own(algorithm: Algorithm, layer: Layer) -> int:
    shapes: Mapping[str, tuple[int, ...]] = algorithm.shapes(layer)
    return sum(algorithms.elements(shape) for name, shape in shapes.items()
               if name not in algorithm.frozen)
