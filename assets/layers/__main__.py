"""python -m assets.layers: writes the table of layers of every model in assets/models.

    {part: {"parameters": all numbers of the part, "layers": [[path, kind, shape, bias], ..]}}

The classes are diffusers' and transformers' own, built from the configs without memory for weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lycoris import durable, known
from lycoris.families import layers_of

TEXT_LEVEL = "text_model."


def modules(configs: Mapping[str, Any]) -> dict[str, nn.Module]:
    """{part: the real module, on the meta device}"""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    makers = {
        "unet": lambda config: UNet2DConditionModel(**config),
        "vae": lambda config: AutoencoderKL(**config),
        "text_encoder": lambda config: CLIPTextModel(CLIPTextConfig(**config)),
        "text_encoder_2": lambda config: CLIPTextModelWithProjection(CLIPTextConfig(**config))}
    with torch.device("meta"):
        return {part: make(configs[part]) for part, make in makers.items() if part in configs}


def table(configs: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for part, module in modules(configs).items():
        layers = [] if part == "vae" else layers_of(
            module, part, lambda name: name.removeprefix(TEXT_LEVEL))
        found[part] = {
            "parameters": sum(each.numel() for each in module.parameters()),
            "layers": [[layer.name, layer.kind, list(layer.shape), layer.bias]
                       for layer in layers if layer.name != "text_projection"]}
    return found


def as_text(tables: Mapping[str, Any]) -> str:
    """JSON with a line for each layer."""
    parts = []
    for part, group in tables.items():
        listed = ",\n  ".join(json.dumps(layer) for layer in group["layers"])
        parts.append(f'"{part}": {{"parameters": {group["parameters"]}, "layers": [\n  {listed}]}}')
    return "{" + ",\n ".join(parts) + "}\n"


def main() -> None:
    for name in known.names():
        durable.write_text(Path(__file__).with_name(f"{name}.json"),
                           as_text(table(known.configs(name))))


if __name__ == "__main__":
    main()
