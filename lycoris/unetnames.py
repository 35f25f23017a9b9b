"""The two ways to name the layers of a Stable Diffusion UNet: diffusers' and the original code's.

    down_blocks.0.attentions.1.proj_in   diffusers
    input_blocks.2.1.proj_in             the original (LDM, and SGM for SDXL)

The original numbers its blocks through, so a name can only be translated with the whole UNet in
sight: how many residual blocks a level has, and whether a level has attention.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

TOP = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
       "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
       "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
IN_RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0",
             "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1",
             "conv_shortcut": "skip_connection"}
# {dialect with the original's paths: {part: how its names begin}}. OneTrainer's are of the OMI
# convention; ai-toolkit's are ComfyUI's own names of the parts too.
PREFIXES = {
    "onetrainer": {"unet": "unet", "text_encoder": "clip_l", "text_encoder_2": "clip_g"},
    "ai-toolkit": {"unet": "diffusion_model",
                   "text_encoder": "text_encoders.clip_l.transformer",
                   "text_encoder_2": "text_encoders.clip_g.transformer"}}
BLOCK = re.compile(r"((?:down|up)_blocks\.\d+|mid_block)\.(\w+)\.(\d+)\.(.+)")


def ldm_names(names: Iterable[str]) -> dict[str, str]:
    """{diffusers' name: the original's} for all layers of one UNet; names of no known place are
    left out."""
    names = list(names)
    places = _places(names)
    found = {}
    for name in names:
        parts = BLOCK.fullmatch(name)
        if name in TOP:
            found[name] = TOP[name]
        elif parts and (place := places.get((parts[1], parts[2], int(parts[3])))):
            inner = parts[4]
            if parts[2] == "resnets":
                inner = IN_RESNET.get(inner, inner)
            elif parts[2] == "downsamplers":
                inner = "op"
            found[name] = f"{place}.{inner}"
    return found


def _places(names: list[str]) -> dict[tuple[str, str, int], str]:
    """{(block, "resnets" or "attentions" or .., number): where it stands in the original}."""
    counts: dict[tuple[str, str], int] = {}
    for name in names:
        if parts := BLOCK.fullmatch(name):
            at = parts[1], parts[2]
            counts[at] = max(counts.get(at, 0), int(parts[3]) + 1)
    places = {("mid_block", what, n): f"middle_block.{2 * n + (what == 'attentions')}"
              for (block, what), count in counts.items() if block == "mid_block"
              for n in range(count)}
    for side, original, first in (("down_blocks", "input_blocks", 1),
                                  ("up_blocks", "output_blocks", 0)):
        number = first
        for block in sorted({block for block, _ in counts if block.startswith(side)},
                            key=lambda block: int(block.rpartition(".")[2])):
            resnets = counts.get((block, "resnets"), 0)
            attention = (block, "attentions") in counts
            for n in range(resnets):
                places[block, "resnets", n] = f"{original}.{number + n}.0"
                places[block, "attentions", n] = f"{original}.{number + n}.1"
            number += resnets
            if (block, "downsamplers") in counts:  # a step of its own
                places[block, "downsamplers", 0] = f"{original}.{number}.0"
                number += 1
            places[block, "upsamplers", 0] = f"{original}.{number - 1}.{2 if attention else 1}"
    return places


def diffusers_names(keys: Iterable[str]) -> dict[str, str]:
    """{the original's name of a tensor: diffusers'}, the way back; of one whole UNet."""
    keys = list(keys)
    blocks = _blocks(keys)
    top = {original: name for name, original in TOP.items()}
    inner = {original: name for name, original in IN_RESNET.items()}
    found = {}
    for key in keys:
        module, _, leaf = key.rpartition(".")
        if module in top:
            found[key] = f"{top[module]}.{leaf}"
            continue
        parts = key.split(".")
        at = ".".join(parts[:2] if parts[0] == "middle_block" else parts[:3])
        if at not in blocks:
            continue
        rest = module.removeprefix(at).removeprefix(".")
        if ".resnets." in blocks[at]:
            rest = inner.get(rest, rest)
        elif ".downsamplers." in blocks[at]:
            rest = "conv"
        found[key] = f"{blocks[at]}.{rest}.{leaf}"
    return found


def _blocks(keys: list[str]) -> dict[str, str]:
    """{the original's block: diffusers'}; a level ends where the size changes."""
    inside: dict[tuple[str, int, int], set[str]] = {}
    found = {}
    for key in keys:
        side, *parts = key.split(".")
        if side in ("input_blocks", "output_blocks"):
            inside.setdefault((side, int(parts[0]), int(parts[1])), set()).add(parts[2])
        elif side == "middle_block":
            number = int(parts[0])
            found[f"{side}.{number}"] = (f"mid_block.attentions.{number // 2}" if number % 2
                                         else f"mid_block.resnets.{number // 2}")
    for side, own in (("input_blocks", "down_blocks"), ("output_blocks", "up_blocks")):
        level = number = 0
        last = max((block for at, block, _ in inside if at == side), default=-1)
        for block in range(last + 1):
            ended = False
            for place in range(3):
                held = inside.get((side, block, place), set())
                here = f"{side}.{block}.{place}"
                if "in_layers" in held:
                    found[here] = f"{own}.{level}.resnets.{number}"
                elif "proj_in" in held:
                    found[here] = f"{own}.{level}.attentions.{number}"
                elif {"op", "conv"} & held:
                    ended = True
                    found[here] = (f"{own}.{level}.downsamplers.0" if "op" in held
                                   else f"{own}.{level}.upsamplers.0")
            if side == "output_blocks" or block:  # the first holds conv_in alone
                level, number = (level + 1, 0) if ended else (level, number + 1)
    return found
