"""Sizes and rates by blocks, the words of kohya's own LoRA, as rules for our layers.

Its lists have an entry for each block of the original UNet: 25 (12 down, the middle, 12 up) for
SD 1.x and 2.x, 23 (embeddings, 9 down, 3 in the middle, 9 up, the output) for SDXL. A rate is that
of the UNet times the block's weight; dim or weight 0 leaves a block alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import words

if TYPE_CHECKING:
    from .kohya import Reading

DIMS = ("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas")
WEIGHTS = ("down_lr_weight", "mid_lr_weight", "up_lr_weight")
NAMES = (*DIMS, *WEIGHTS, "block_lr_zero_threshold")
LENGTHS = {25: False, 23: True}  # {blocks: is it SDXL}
# {is it SDXL: (blocks down and up, in the middle, the first block down that has layers)}
PARTS = {False: (12, 1, 1), True: (9, 3, 2)}
WITHOUT_ATTENTION = {False: ("down_blocks.3", "up_blocks.0"),
                     True: ("down_blocks.0", "up_blocks.2")}
OWN = "networks.lora"
# What the preset full has and kohya's own networks have not.
BEYOND = tuple({"match": f"unet.{name}", "exclude": True} for name in (
    "conv_in", "conv_out", "time_embedding.*", "add_embedding.*"))
Size = tuple[float, float]  # dim, alpha


def rules(module: str | None, said: Mapping[str, Any], found: Reading) -> None:
    """Rules for what network_args say of blocks; what cannot be one is said."""
    said = {name: value for name, value in said.items() if value is not None}
    if not said:
        return
    if module != OWN:
        found.unknown.append(f"{', '.join(said)}: only {OWN} takes sizes and rates by blocks.")
        return
    numbers = {name: _numbers(said[name]) for name in DIMS if name in said}
    wrong = [name for name, values in numbers.items() if values is None]
    lengths = {len(values) for values in numbers.values() if values is not None}
    if wrong or len(lengths) > 1 or not lengths <= set(LENGTHS):
        listed = "; ".join(f"{name}={said[name]}" for name in numbers)
        found.unknown.append(f"{listed}: 25 numbers each for SD 1.x and 2.x, 23 for SDXL, are "
                             "known here.")
        return
    is_xl = LENGTHS[lengths.pop()] if lengths else _is_xl(said)
    weights = None if is_xl is None else _weights(said, is_xl)
    if weights is None:
        listed = "; ".join(f"{name}={said[name]}" for name in WEIGHTS if name in said)
        found.unknown.append(f"{listed}: the lists do not tell of which model's blocks; 12 weights "
                             "down and up are SD 1.x and 2.x, 9 are SDXL.")
        return
    rate = found.settings.get("optimizer.lr")
    if rate is None and any(weight not in (0, 1) for weight in weights):
        found.unknown.append(f"{', '.join(name for name in WEIGHTS if name in said)}: they weigh "
                             "the UNet's rate, and that is not said.")
        weights = [0.0 if weight == 0 else 1.0 for weight in weights]
    made = list(_rules(_sizes(numbers, len(weights), found), weights, found, bool(is_xl)))
    if made:
        found.settings["network.rules"] = (*found.settings.get("network.rules", ()), *made)


def _numbers(value: Any) -> list[float] | None:
    parts = value if isinstance(value, (list, tuple)) else str(value).split(",")
    found = [words.number(part) if str(part).strip() else 0.0 for part in parts]
    return None if None in found else [number for number in found if number is not None]


def _is_xl(said: Mapping[str, Any]) -> bool | None:
    """Read from the lengths; None where they do not tell."""
    sides = [len(values) for name in ("down_lr_weight", "up_lr_weight")
             if (values := _numbers(said.get(name, "x"))) is not None]
    if sides:
        return {12: False, 9: True}.get(max(sides))
    middle = _numbers(said.get("mid_lr_weight", "x"))
    return True if middle and len(middle) == 3 else None


def _weights(said: Mapping[str, Any], is_xl: bool) -> list[float] | None:
    """A weight for each block; None where one is no list and no course."""
    side, middle, _ = PARTS[is_xl]
    least = words.number(said.get("block_lr_zero_threshold")) or 0.0
    found: list[float] = []
    for name, count in zip(WEIGHTS, (side, middle, side), strict=True):
        values = [1.0] * count
        if name in said:
            given = _numbers(said[name]) or _course(str(said[name]), count)
            if given is None:
                return None
            values = [weight if weight > least else 0.0
                      for weight in (given + values)[:count]]
        found += values
    return [1.0, *found, 1.0] if is_xl else found


def _course(text: str, count: int) -> list[float] | None:
    """A course by its name, `sine+.25`: so much is added to each weight."""
    name, _, base = text.partition("+")
    places = [i / max(1, count - 1) for i in range(count)]
    known = {"sine": [math.sin(math.pi * place / 2) for place in places], "linear": places,
             "zeros": [0.0] * count}
    known |= {"cosine": known["sine"][::-1], "reverse_linear": places[::-1]}
    added = words.number(base) if base else 0.0
    if name not in known or added is None:
        return None
    return [weight + added for weight in known[name]]


def _sizes(numbers: Mapping[str, list[float] | None], count: int,
           found: Reading) -> tuple[list[Size], list[Size] | None]:
    """[(dim, alpha)] of each block, and those of its 3x3 convolutions or None without any."""
    def filled(name: str, value: float) -> list[float]:
        return numbers.get(name) or [value] * count

    own = found.settings
    plain = list(zip(filled("block_dims", own.get("network.dim") or 4),
                     filled("block_alphas", own.get("network.alpha") or 1.0), strict=True))
    conv = own.get("network.conv_dim") or 0
    if not conv and "conv_block_dims" not in numbers:
        return plain, None
    return plain, list(zip(filled("conv_block_dims", conv), filled(
        "conv_block_alphas", own.get("network.conv_alpha") or 1.0), strict=True))


def _rules(sizes: tuple[Sequence[Size], Sequence[Size] | None], weights: Sequence[float],
           found: Reading, is_xl: bool) -> Iterator[dict[str, Any]]:
    """One for each kind of layer of a block that is not as all others are."""
    plain, convs = sizes
    own = found.settings
    rate = own.get("optimizer.lr")
    usual = [(own.get("network.dim"), own.get("network.alpha")),
             (own.get("network.conv_dim"), own.get("network.conv_alpha"))]
    for block, weight in enumerate(weights):
        for pattern, spatial in _layers(block, is_xl, convs is not None):
            dim, alpha = (convs if spatial and convs else plain)[block]
            if not dim or not weight:
                yield {"match": pattern, "exclude": True}
                continue
            rule: dict[str, Any] = {"match": pattern, "dim": int(dim), "alpha": float(alpha)}
            if rate is not None and weight != 1:
                rule["lr"] = rate * weight
            if len(rule) > 3 or (dim, alpha) != usual[spatial] or pattern.endswith("conv[12]"):
                yield rule  # the last, since the next would match them too


def _layers(block: int, is_xl: bool, with_convs: bool) -> Iterator[tuple[str, bool]]:
    """(pattern of layers, are they 3x3 convolutions) of a block."""
    side, middle, first = PARTS[is_xl]
    last = first - 1 + side  # of the blocks down
    if last <= block < last + middle:
        places = [f"mid_block.{kind}.{i}" for i in (0, 1) for kind in ("resnets", "attentions")
                  if (kind, i) != ("attentions", 1)]
        names = places if middle == 1 else [places[(0, 1, 2)[block - last]]]
    elif first <= block < last:
        names = _places("down", *divmod(block - first, 3))
    elif last + middle <= block < last + middle + side:
        names = _places("up", *divmod(block - last - middle, 3))
    else:
        names = []
    for name in names:
        if "attentions" in name:
            if not name.startswith(WITHOUT_ATTENTION[is_xl]):
                yield f"unet.{name}.*", False
        elif with_convs and "samplers" in name:
            yield f"unet.{name}.*", True
        elif with_convs:
            yield f"unet.{name}.conv[12]", True
            yield f"unet.{name}.*", False


def _places(way: str, block: int, place: int) -> list[str]:
    found = [f"{way}_blocks.{block}.{kind}.{place}" for kind in ("attentions", "resnets")]
    if way == "up":
        return found + [f"up_blocks.{block}.upsamplers.0"] * (place == 2)
    return found if place < 2 else [f"down_blocks.{block}.downsamplers.0"]
