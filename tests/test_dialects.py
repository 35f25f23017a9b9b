"""Adapter files as other programs write them: every dialect gives the same picture, errors say what
is wrong, and what we write is what other programs look for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lycoris import algorithms, families, tensorfile
from lycoris.adapterfile import AdapterFile, match
from lycoris.algorithms import Layer
from lycoris.network import LycorisNetwork

Tensors = dict[str, torch.Tensor]

BLOCK = "down_blocks.1.attentions.0"
# {layer: (its name in the original code's UNet, or None in the text encoder)}
LAYERS = {
    f"{BLOCK}.proj_in": "input_blocks.3.1.proj_in",
    f"{BLOCK}.transformer_blocks.0.attn1.to_q":
        "input_blocks.3.1.transformer_blocks.0.attn1.to_q",
    f"{BLOCK}.transformer_blocks.0.attn2.to_out.0":
        "input_blocks.3.1.transformer_blocks.0.attn2.to_out.0",
    "up_blocks.0.resnets.1.conv1": "output_blocks.1.0.in_layers.2",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
    "mid_block.resnets.1.conv2": "middle_block.2.out_layers.3",
    "time_embedding.linear_1": "time_embed.0",
    "encoder.layers.1.self_attn.out_proj": None,
    "encoder.layers.0.mlp.fc1": None,
}


class Base:
    """The small base with what it paints of one input."""

    def __init__(self, folder: Path):
        self.family = families.open_base(folder)
        self.model = self.family.load(torch.device("cpu"), torch.float32)
        self.layers = [layer for layer in self.family.layers if layer.name in LAYERS]
        assert len(self.layers) == len(LAYERS)
        torch.manual_seed(0)
        self.x, self.t = torch.randn(1, 4, 8, 8), torch.tensor([500])
        self.plain = self.output()

    @torch.no_grad()
    def output(self) -> torch.Tensor:
        text = self.model.encode_text(["a ball"])
        return torch.cat([text.flatten(), self.model.predict(self.x, self.t, text).flatten()])

    def under(self, path: Path) -> torch.Tensor:
        """What is painted with the file's adapter on; every layer of it must find its place."""
        file = AdapterFile(path)
        found = match(file, self.family.layers, self.family.aliases, "small")
        assert found.whole, found.text
        assert {a.key for a in found.assignments} == {
            self.family.key(a.layer) for a in found.assignments}, "as we write"
        network = LycorisNetwork.from_file(file, found.assignments, self.model.modules).apply_to()
        after = self.output()
        network.restore()
        return after


@pytest.fixture(scope="module")
def base(small_base: Path) -> Base:
    return Base(small_base)


def written(path: Path, tensors: Mapping[str, torch.Tensor], **metadata: str) -> Path:
    return tensorfile.write(path, {key: t.contiguous() for key, t in tensors.items()}, metadata)


def randoms(layer: Layer, algo: str, dim: int = 2, **options: Any) -> Tensors:
    """{suffix: random tensor} of one layer, with an alpha that is not the dim."""
    entry = algorithms.all_entries()[algo]
    algorithm = entry(dim, 3.0, entry.Options(**options))
    torch.manual_seed(len(layer.name))
    p = {name: 0.2 * torch.randn(shape) for name, shape in algorithm.shapes(layer).items()}
    found = algorithm.to_file(p)
    alpha = algorithm.file_alpha(layer)
    return found | ({} if alpha is None else {"alpha": torch.tensor(alpha)})


def kohya(base: Base, path: Path, groups: Mapping[Layer, Tensors]) -> Path:
    return written(path, {f"{base.family.key(layer)}.{suffix}": tensor
                          for layer, group in groups.items() for suffix, tensor in group.items()})


def dotted(layer: Layer, original: bool = False, level: bool = True) -> str:
    """The layer's path as diffusers or the original code writes it."""
    if layer.part == "unet":
        return LAYERS[layer.name] if original else layer.name
    return ("text_model." if level else "") + layer.name


def underscored(unet: str, text: str, **how: bool) -> Callable[[Layer], str]:
    return lambda layer: (unet if layer.part == "unet" else text) + dotted(
        layer, **how).replace(".", "_")


def plain(unet: str, text: str, **how: bool) -> Callable[[Layer], str]:
    return lambda layer: (unet if layer.part == "unet" else text) + dotted(layer, **how)


def processors(layer: Layer) -> str:
    """diffusers before 0.20: attention layers are named after their processor, without `.0`."""
    name = re.sub(r"\.to_(\w+)(\.0)?$", r".processor.to_\1", dotted(layer))
    return f"{layer.part}." + re.sub(r"self_attn\.([qkv]|out)_proj$", r"self_attn.to_\1", name)


SUFFIXES = {
    "A and B": {"lora_up.weight": ".lora_B.weight", "lora_down.weight": ".lora_A.weight"},
    "named": {"lora_up.weight": ".lora_B.default.weight",
              "lora_down.weight": ".lora_A.default.weight"},
    "dotted": {"lora_up.weight": ".lora.up.weight", "lora_down.weight": ".lora.down.weight"},
    "joined": {"lora_up.weight": "_lora.up.weight", "lora_down.weight": "_lora.down.weight"},
    "linear layer": {"lora_up.weight": ".lora_linear_layer.up.weight",
                     "lora_down.weight": ".lora_linear_layer.down.weight"},
}
NAMES = {
    "kohya": underscored("lora_unet_", "lora_te_"),
    "original names": underscored("lora_unet_", "lora_te_", original=True),
    "list of one encoder": underscored("lora_unet_", "lora_te1_"),
    "transformers 5": underscored("lora_unet_", "lora_te_", level=False),
    "wrapper": underscored("lycoris_", "lycoris_"),
    "wrapper, transformers 5": underscored("lycoris_", "lycoris_", level=False),
    "diffusers": plain("unet.", "text_encoder."),
    "diffusers, transformers 5": plain("unet.", "text_encoder.", level=False),
    "ai-toolkit": plain("diffusion_model.", "text_encoder.", original=True),
    "ai-toolkit, diffusers names": plain("diffusion_model.", "text_encoder."),
    "ComfyUI": plain("diffusion_model.", "text_encoders.clip_l.transformer.", original=True),
    "OneTrainer": plain("lora_unet.", "lora_te."),
    "OneTrainer, OMI": plain("unet.", "clip_l.", original=True),
    "PEFT": plain("base_model.model.", "base_model.model."),
}
REPORTED = {"original names": "kohya", "list of one encoder": "kohya", "transformers 5": "kohya",
            "wrapper": "lycoris wrapper", "wrapper, transformers 5": "lycoris wrapper",
            "diffusers, transformers 5": "diffusers", "ai-toolkit": "ai-toolkit and diffusers",
            "ai-toolkit, diffusers names": "ai-toolkit and diffusers", "ComfyUI": "ai-toolkit",
            "OneTrainer, OMI": "OneTrainer"}
HELD = [("lora", {}), ("lora", {"use_tucker": True}), ("loha", {}), ("loha", {"use_tucker": True}),
        ("lokr", {"factor": 4}), ("lokr", {"factor": 2, "decompose_both": True}),
        ("lokr", {"factor": 2, "use_tucker": True}), ("lokr", {"full_matrix": True}),
        ("lokr", {"factor": 4, "unbalanced_factorization": True}), ("glora", {}), ("full", {}),
        ("diag-oft", {}), ("ia3", {}), ("ia3", {"train_on_input": True})]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("algo", "options"), HELD, ids=lambda value: str(value))
def test_names_of_every_dialect(base: Base, tmp_path: Path, name: str, algo: str,
                                options: dict[str, Any]) -> None:
    groups = {layer: randoms(layer, algo, **options) for layer in base.layers}
    expected = base.under(kohya(base, tmp_path / "kohya.safetensors", groups))
    assert not torch.allclose(expected, base.plain, atol=1e-3)
    path = written(tmp_path / "other.safetensors", {
        f"{NAMES[name](layer)}.{suffix}": tensor
        for layer, group in groups.items() for suffix, tensor in group.items()})
    assert torch.equal(base.under(path), expected)
    file = AdapterFile(path)
    assert file.dialect == REPORTED.get(name, name)
    assert {file.kind(group)[0].name for group in file.shapes} == {algo}


@pytest.mark.parametrize("suffixes", SUFFIXES)
@pytest.mark.parametrize("name", ["kohya", "diffusers", "ai-toolkit", "OneTrainer", "PEFT"])
def test_suffixes_of_a_lora(base: Base, tmp_path: Path, name: str, suffixes: str) -> None:
    groups = {layer: randoms(layer, "lora") for layer in base.layers}
    expected = base.under(kohya(base, tmp_path / "kohya.safetensors", groups))
    words = SUFFIXES[suffixes] | {"alpha": ".alpha"}
    path = written(tmp_path / "other.safetensors", {
        NAMES[name](layer) + words[suffix]: tensor
        for layer, group in groups.items() for suffix, tensor in group.items()})
    assert torch.equal(base.under(path), expected)


def test_attention_processors_of_old_diffusers(base: Base, tmp_path: Path) -> None:
    layers = [layer for layer in base.layers if "attn" in layer.name]
    assert len(layers) == 3
    groups = {layer: randoms(layer, "lora") for layer in layers}
    for group in groups.values():
        group["alpha"] = torch.tensor(2.0)  # such files have none: alpha is dim
    expected = base.under(kohya(base, tmp_path / "kohya.safetensors", groups))
    path = written(tmp_path / "old.safetensors", {
        processors(layer) + SUFFIXES["joined"][suffix]: tensor
        for layer, group in groups.items() for suffix, tensor in group.items()
        if suffix != "alpha"})
    assert any("processor.to_out_lora.up" in key for key in AdapterFile(path).entries)
    assert any("self_attn.to_out_lora.up" in key for key in AdapterFile(path).entries)
    assert torch.equal(base.under(path), expected)


def test_diffusers_metadata_holds_the_alpha(base: Base, tmp_path: Path) -> None:
    """diffusers writes PEFT's config of each part into the file's metadata."""
    groups = {layer: randoms(layer, "lora") for layer in base.layers}
    for layer, group in groups.items():
        group["alpha"] = torch.tensor(
            8.0 if "to_q" in layer.name else 3.0 if layer.part == "unet" else 5 * 2**0.5)
    expected = base.under(kohya(base, tmp_path / "kohya.safetensors", groups))
    config = {"unet.r": 2, "unet.lora_alpha": 3, "unet.peft_type": "LORA",
              "unet.alpha_pattern": {"attn1.to_q": 8}, "text_encoder.r": 2,
              "text_encoder.lora_alpha": 5, "text_encoder.use_rslora": True}
    path = written(tmp_path / "other.safetensors", {
        NAMES["diffusers"](layer) + SUFFIXES["A and B"][suffix]: tensor
        for layer, group in groups.items() for suffix, tensor in group.items()
        if suffix != "alpha"}, lora_adapter_metadata=json.dumps(config))
    assert torch.allclose(base.under(path), expected, atol=1e-6)


def test_one_shape_or_another(base: Base, tmp_path: Path) -> None:
    """Flat 1x1 convolutions (kohya's own networks), an alpha with a side, no alpha, fp16."""
    for algo, options in (("lora", {}), ("loha", {}), ("lokr", {"full_matrix": True}),
                          ("lokr", {"factor": 2})):
        groups = {layer: randoms(layer, algo, **options) for layer in base.layers}
        for group in groups.values():
            group["alpha"] = torch.tensor(2.0)
        expected = base.under(kohya(base, tmp_path / "a.safetensors", groups))
        flat = {layer: {suffix: tensor.flatten(1) if tensor.ndim > 2 and not layer.is_spatial
                        else tensor for suffix, tensor in group.items()}
                for layer, group in groups.items()}
        assert torch.equal(base.under(kohya(base, tmp_path / "b.safetensors", flat)), expected)
        sided = {layer: group | {"alpha": group["alpha"].reshape(1)}
                 for layer, group in groups.items()}
        assert torch.equal(base.under(kohya(base, tmp_path / "c.safetensors", sided)), expected)
        bare = {layer: {suffix: tensor for suffix, tensor in group.items() if suffix != "alpha"}
                for layer, group in groups.items()}
        assert torch.equal(base.under(kohya(base, tmp_path / "d.safetensors", bare)), expected)
        half = {layer: {suffix: tensor.half() for suffix, tensor in group.items()}
                for layer, group in groups.items()}
        assert torch.allclose(base.under(kohya(base, tmp_path / "e.safetensors", half)), expected,
                              atol=0.02)


@pytest.mark.parametrize(("algo", "options"), [
    ("lora", {}), ("loha", {}), ("lokr", {"factor": 2}), ("lokr", {"full_matrix": True}),
    ("glora", {}), ("full", {})], ids=str)
def test_scale_instead_of_alpha(base: Base, algo: str, options: dict, tmp_path: Path) -> None:
    """A1111's `scale` multiplies dW, whatever the algorithm; an alpha beside it is not read."""
    linear = [layer for layer in base.layers if layer.kind == "linear" and layer.part == "unet"]
    groups = {layer: randoms(layer, algo, **options) for layer in linear}
    for group in groups.values():
        group.pop("diff_b", None)  # a bias is not scaled
    whole = AdapterFile(kohya(base, tmp_path / "a.safetensors", groups))
    scaled = AdapterFile(kohya(base, tmp_path / "b.safetensors", {
        layer: group | {"scale": torch.tensor(0.25), "alpha": torch.tensor(17.0)}
        for layer, group in groups.items()}))
    for layer in linear:
        name, weight = base.family.key(layer), torch.randn(layer.shape)
        once = dW(whole, name, layer, weight)
        factor = 1.0 if "alpha" not in groups[layer] or options.get("full_matrix") else 3.0 / 2
        assert torch.allclose(dW(scaled, name, layer, weight), once * 0.25 / factor, atol=1e-5)


def dW(file: AdapterFile, name: str, layer: Layer, weight: torch.Tensor) -> torch.Tensor:
    """What the file adds to one layer's weight, without the shell."""
    found = file.assignment(name, layer)
    assert found is not None
    network = LycorisNetwork.from_file(file, [found], {layer.part: _holder(layer, weight)})
    changed, _ = next(iter(network)).changed(weight, None, 1.0)
    return (changed - weight).detach()


def _holder(layer: Layer, weight: torch.Tensor) -> nn.Module:
    """A module in which the layer's path leads to a module with this weight."""
    root = leaf = nn.Module()
    for name in layer.name.split("."):
        leaf.add_module(name, nn.Module())
        leaf = leaf.get_submodule(name)
    leaf.weight = nn.Parameter(weight)
    return root
