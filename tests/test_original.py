"""Files in the original layout: the map of their keys, checked against diffusers' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lycoris import known, original


def meta_parts(kind: str) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """({part: its tensors on the meta device}, configs) of the full-size model, under the names of
    diffusers' files."""
    import diffusers
    import transformers

    said = known.configs(kind)
    found = {}
    with torch.device("meta"):
        found["unet"] = diffusers.UNet2DConditionModel.from_config(said["unet"]).state_dict()
        found["vae"] = diffusers.AutoencoderKL.from_config(said["vae"]).state_dict()
        for part in original.TEXTS[kind]:
            name = "CLIPTextModelWithProjection" if part.endswith("2") else "CLIPTextModel"
            made = getattr(transformers, name)(transformers.CLIPTextConfig(**said[part]))
            found[part] = {key if key.startswith(("text_model.", "text_projection"))
                           else f"text_model.{key}": t for key, t in made.state_dict().items()}
    return found, said


def as_written(kind: str, parts: dict[str, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    made: dict[str, torch.Tensor] = {}
    for part, places in original.written(kind, parts).items():
        for key, names in original.fused(places).items():
            made[key] = original.assembled(places, names, parts[part].__getitem__)
    return made


@pytest.mark.parametrize("kind", ["sd15", "sd21", "sdxl"])
def test_full_size_keys_are_what_diffusers_reads(kind: str) -> None:
    """Ours written, read by diffusers' conversion, gives every tensor's name and shape back, and so
    does our reading; the configs follow from the shapes."""
    import transformers
    from diffusers.loaders import single_file_utils as theirs

    parts, said = meta_parts(kind)
    made = as_written(kind, parts)
    read = {"unet": theirs.convert_ldm_unet_checkpoint(made, said["unet"]),
            "vae": theirs.convert_ldm_vae_checkpoint(made, said["vae"])}
    for part, prefix in original.TEXTS[kind].items():
        if prefix.endswith(".model."):
            class Shell:
                config = transformers.CLIPTextConfig(**said[part])
            read[part] = theirs.convert_open_clip_checkpoint(Shell, made, prefix)
        else:
            read[part] = theirs.convert_ldm_clip_checkpoint(made)
    if kind == "sd21":  # their files hold one layer more, and they would read no projection
        last = {key.replace("resblocks.22", "resblocks.23"): tensor
                for key, tensor in made.items() if "resblocks.22." in key}
        made |= last
    entries = {key: ("F32", tuple(tensor.shape)) for key, tensor in made.items()}
    assert original.kind_of(entries) == kind
    places = original.places_of(entries, kind)
    for part, own in parts.items():
        shapes = {name: tuple(t.shape) for name, t in own.items()}
        assert {name: tuple(t.shape) for name, t in read[part].items()} == shapes, part
        assert {name: place.shape(entries[place.key][1])
                for name, place in places[part].items()} == shapes, part
    described = {part: {name: ("F32", place.shape(entries[place.key][1]))
                        for name, place in each.items()} for part, each in places.items()}
    found = original.configs(kind, described, Path("x"), entries, {})
    for part, config in found.items():
        for name, value in said[part].items():
            if part != "scheduler":
                assert config[name] == value, (part, name)
