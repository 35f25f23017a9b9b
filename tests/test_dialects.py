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
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lycoris
from lycoris import algorithms, dialects, families, tensorfile, unetnames
from lycoris.adapterfile import AdapterFile, match
from lycoris.algorithms import Layer
from lycoris.errors import AdapterError, ConfigError
from lycoris.families.sd import StableDiffusion
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
        return torch.cat([text["hidden"].flatten(),
                          self.model.predict(self.x, self.t, text).flatten()])

    def under(self, path: Path) -> torch.Tensor:
        """What is painted with the file's adapter on; every layer of it must find its place."""
        file = AdapterFile(path)
        found = match(file, self.family.layers, self.family.aliases, "small")
        assert found.whole, found.text
        assert {a.key for a in found.assignments} == {
            self.family.key(a.layer) for a in found.assignments}, "as we write"
        network = LycorisNetwork.from_file(file, found.assignments, self.model.modules).apply_to()
        try:
            return self.output()
        finally:
            network.restore()


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


class Small(nn.Module):
    """A module with each kind of layer, of no known family."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.lin = nn.Linear(12, 16)
        self.inner = nn.ModuleDict({"conv": nn.Conv2d(8, 12, 3, padding=1), "up": nn.Linear(8, 8)})
        self.point = nn.Conv2d(12, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = self.point(torch.tanh(self.inner["conv"](x)))
        told = self.lin(seen.mean((2, 3)).repeat(1, 2)[:, :12])
        return torch.cat([self.inner["up"](told[:, :8]), seen.flatten(1)], 1)


TARGETS = ["lin", "inner.conv", "inner.up", "point"]
PATTERNS = {"alpha_pattern": {"inner.up": 7, "^lin": 5}, "rank_pattern": {"lin": 3}}
PEFT_CONFIGS = {
    "LoRA": ("LoraConfig", {"r": 2, "lora_alpha": 3}),
    "rank-stabilised": ("LoraConfig", {"r": 3, "lora_alpha": 3, "use_rslora": True}),
    "DoRA": ("LoraConfig", {"r": 2, "lora_alpha": 3, "use_dora": True}),
    "patterns": ("LoraConfig", {"r": 2, "lora_alpha": 3, **PATTERNS}),
    "LoHa": ("LoHaConfig", {"r": 2, "alpha": 3, **PATTERNS}),
    "LoHa, Tucker": ("LoHaConfig", {"r": 2, "alpha": 3, "use_effective_conv2d": True}),
    "LoKr": ("LoKrConfig", {"r": 1, "alpha": 3, **PATTERNS}),
    "LoKr, both split": ("LoKrConfig", {"r": 1, "alpha": 3, "decompose_both": True}),
    "LoKr, Tucker": ("LoKrConfig", {"r": 1, "alpha": 3, "use_effective_conv2d": True,
                                    "decompose_factor": 2}),
    "(IA)3": ("IA3Config", {"feedforward_modules": ["lin", "inner.conv", "inner.up", "point"]}),
    "LoKr, both full": ("LoKrConfig", {"r": 64, "alpha": 16, "rank_pattern": {"lin": 48}}),
}


@pytest.mark.parametrize("name", PEFT_CONFIGS)
def test_peft_folders(name: str, tmp_path: Path) -> None:
    """What PEFT itself trained and saved gives the same forward here, from the folder alone."""
    peft = pytest.importorskip("peft")
    kind, settings = PEFT_CONFIGS[name]
    x = torch.randn(2, 8, 5, 5)
    theirs = peft.get_peft_model(Small(), getattr(peft, kind)(target_modules=TARGETS, **settings))
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    root = Small()
    before = root(x)
    network, tensors = lycoris.create_lycoris_from_weights(1.0, tmp_path, root)
    assert len(network) == 4 and all(key.startswith("base_model.model.") for key in tensors)
    network.apply_to().eval()
    assert torch.allclose(root(x), theirs.eval()(x), atol=1e-5)
    assert not torch.allclose(root(x), before, atol=1e-2)
    assert AdapterFile(tmp_path).dialect == "PEFT"
    network.save_weights(tmp_path / "ours.safetensors")
    network.restore()
    again, _ = lycoris.create_lycoris_from_weights(1.0, tmp_path / "ours.safetensors", root)
    again.apply_to().eval()
    assert torch.allclose(root(x), theirs.eval()(x), atol=1e-5), "and once it is saved by us"


def test_peft_ia3_of_outputs(tmp_path: Path) -> None:
    """A convolution's tensor has the same shape on either side, so the config tells."""
    peft = pytest.importorskip("peft")

    def root() -> nn.Module:
        torch.manual_seed(2)
        return nn.Sequential(nn.Conv2d(6, 6, 3, bias=False), nn.Conv2d(6, 6, 1), nn.Flatten(2),
                             nn.Linear(4, 4, bias=False))

    x, plain = torch.randn(2, 6, 4, 4), root()
    theirs = peft.get_peft_model(root(), peft.IA3Config(
        target_modules=["0", "1", "3"], feedforward_modules=["1"]))
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    network, _ = lycoris.create_lycoris_from_weights(1.0, tmp_path, plain)
    assert [a.algorithm.options.train_on_input for a in network] == [False, True, False]
    network.apply_to().eval()
    assert torch.allclose(plain(x), theirs.eval()(x), atol=1e-5)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(AdapterError, match="only adapter_config.json tells"):
        AdapterFile(tmp_path)


def test_peft_adapters_that_are_not_read(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.OFTConfig(target_modules=["lin"], oft_block_size=4)
    peft.get_peft_model(Small(), config).save_pretrained(tmp_path / "a")
    with pytest.raises(AdapterError, match=r"PEFT's OFT, which is not.*LORA, LOHA, LOKR, IA3 are"):
        AdapterFile(tmp_path / "a")
    config = peft.IA3Config(target_modules=["lin"], feedforward_modules=[])
    peft.get_peft_model(Small(), config).save_pretrained(tmp_path / "c")
    with pytest.raises(AdapterError, match=r"scales the bias of lin too"):
        lycoris.create_lycoris_from_weights(1.0, tmp_path / "c", Small())
    config = peft.LoraConfig(r=2, lora_bias=True, target_modules=["lin"])
    peft.get_peft_model(Small(), config).save_pretrained(tmp_path / "b")
    with pytest.raises(AdapterError, match=r"no known algorithm at base_model\.model\.lin.*bias"):
        lycoris.create_lycoris_from_weights(1.0, tmp_path / "b", Small())


@pytest.mark.parametrize(("config", "words"), [
    ("{", "cannot be read"), ("[]", "holds no settings"),
    ('{"r": 2, "lora_alpha": []}', "does not say the scale"),
    ('{"r": 2}', "does not say the scale"),
    ('{"r": 2, "lora_alpha": 1, "alpha_pattern": {"(a+)+b": 2}}', "too involved"),
    ('{"r": 2, "lora_alpha": 1, "alpha_pattern": {"(": 2}}', "does not say the scale"),
    ('{"r": 2, "lora_alpha": 1, "alpha_pattern": 7}', "does not say the scale")])
def test_broken_peft_configs(config: str, words: str, tmp_path: Path) -> None:
    written(tmp_path / "adapter_model.safetensors", {
        "base_model.model.lin.lora_A.weight": torch.randn(2, 12),
        "base_model.model.lin.lora_B.weight": torch.randn(16, 2)})
    assert AdapterFile(tmp_path).kind("base_model.model.lin")[1] == 2, "alpha is dim without one"
    (tmp_path / "adapter_config.json").write_text(config)
    with pytest.raises(AdapterError, match=words):
        AdapterFile(tmp_path)


def test_folders_without_an_adapter(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="holds no adapter: there is no adapter_model"):
        AdapterFile(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(AdapterError, match=r"only adapter_model\.bin, which may run code"):
        AdapterFile(tmp_path)
    written(tmp_path / "pytorch_lora_weights.safetensors", {
        "unet.conv_in.lora_A.weight": torch.randn(2, 12),
        "unet.conv_in.lora_B.weight": torch.randn(16, 2)})
    assert AdapterFile(tmp_path).dialect == "diffusers"


def test_old_rotations(tmp_path: Path) -> None:
    """LyCORIS before 2.1 saved the rotations themselves: W' = blockdiag(R)^T W."""
    layer = Layer("0", "linear", (12, 5))
    torch.manual_seed(2)
    generator = 0.4 * torch.randn(3, 4, 4)
    turned = torch.linalg.matrix_exp(generator - generator.mT)
    weight = torch.randn(12, 5)
    expected = torch.block_diag(*turned).T @ weight - weight
    for dtype, near in ((torch.float32, 1e-5), (torch.float16, 5e-3), (torch.bfloat16, 5e-2)):
        file = AdapterFile(written(tmp_path / "a.safetensors", {
            "lycoris_0.oft_diag": turned.to(dtype), "lycoris_0.alpha": torch.tensor(1e-9)}))
        assert file.kind("lycoris_0")[0].name == "diag-oft"
        assert torch.allclose(dW(file, "lycoris_0", layer, weight), expected, atol=near)
    halfway = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0])).repeat(3, 1, 1)
    for wrong in (turned * 1.1, turned + 0.05 * torch.randn_like(turned), halfway,
                  torch.full_like(turned, float("inf"))):
        path = tmp_path / "b.safetensors"
        file = AdapterFile(written(path, {"lycoris_0.oft_diag": wrong}))
        with pytest.raises(AdapterError, match="no rotation that can be read|not finite"):
            dW(file, "lycoris_0", layer, weight)


def old_glora(group: Tensors) -> Tensors:
    return {"a1.weight": group["a2.weight"], "a2.weight": group["a1.weight"],
            "b1.weight": group["b2.weight"], "b2.weight": group["b1.weight"],
            "alpha": group["alpha"]}


def test_both_orientations_of_glora(base: Base, tmp_path: Path) -> None:
    """dW = b2 b1 + W a2 a1 in old files; square layers are read too."""
    layers = [layer for layer in base.layers if not layer.is_spatial]
    assert any(layer.out == layer.inp for layer in layers)
    groups = {layer: randoms(layer, "glora") for layer in layers}
    new = base.under(kohya(base, tmp_path / "new.safetensors", groups))
    path = kohya(base, tmp_path / "old.safetensors",
                 {layer: old_glora(group) for layer, group in groups.items()})
    assert torch.equal(base.under(path), new)


def test_a_square_glora_follows_the_others_or_is_ambiguous(tmp_path: Path) -> None:
    square = randoms(Layer("a", "linear", (4, 4)), "glora", dim=4)
    wide = randoms(Layer("b", "linear", (6, 4)), "glora")

    def file(*groups: Tensors) -> AdapterFile:
        return AdapterFile(written(tmp_path / "a.safetensors", {
            f"lycoris_{number}.{suffix}": tensor for number, group in enumerate(groups)
            for suffix, tensor in group.items()}))

    for turned, others in ((square, wide), (old_glora(square), old_glora(wide))):
        assert torch.equal(file(turned, others).group("lycoris_0")["a1.weight"],
                           square["a1.weight"])
    for groups in ((square,), (square, wide, old_glora(wide))):
        with pytest.raises(AdapterError, match="lycoris_0 could be a GLoRA of the old orientation"):
            file(*groups)


def test_dora_on_either_axis(base: Base, tmp_path: Path) -> None:
    """dora_scale (o, 1, ..) or (o) is on the output, (1, i, 1, ..) on the input."""
    for layer in base.layers:
        weight, name = torch.randn(layer.shape), base.family.key(layer)
        group, ones = randoms(layer, "lora"), (1,) * len(layer.kernel)
        plain = dW(AdapterFile(kohya(base, tmp_path / "a.safetensors", {layer: group})), name,
                   layer, weight) + weight
        others = tuple(range(2, 2 + len(ones)))
        for axis, shape in ((0, (layer.out, 1, *ones)), (0, (layer.out,)),
                            (1, (1, layer.inp, *ones))):
            scale = torch.rand(shape) + 0.5
            norm = torch.linalg.vector_norm(plain, dim=(1 - axis, *others), keepdim=True)
            path = kohya(base, tmp_path / "a.safetensors",
                         {layer: group | {"dora_scale": scale}})
            expected = plain * scale.reshape(norm.shape) / norm - weight
            assert torch.allclose(dW(AdapterFile(path), name, layer, weight), expected, atol=1e-4)
        path = kohya(base, tmp_path / "b.safetensors",
                     {layer: group | {"dora_scale": torch.ones(layer.out + 1, 1)}})
        assert AdapterFile(path).assignment(name, layer) is None, "no axis of this layer"


@pytest.mark.parametrize("tucker", [False, True])
def test_sparse_rests_of_the_extractor(base: Base, tmp_path: Path, tucker: bool) -> None:
    for layer in base.layers:
        group = randoms(layer, "lora", use_tucker=tucker)
        name, weight = base.family.key(layer), torch.randn(layer.shape)
        low = dW(AdapterFile(kohya(base, tmp_path / "a.safetensors", {layer: group})), name, layer,
                 weight)
        rest = torch.randn(layer.shape).flatten(1)
        rest = (rest * (rest.abs() > 1.5)).to_sparse().coalesce()
        more = {"bias_indices": rest.indices().to(torch.int16), "bias_values": rest.values(),
                "bias_size": torch.tensor(rest.shape, dtype=torch.int16)}
        file = AdapterFile(kohya(base, tmp_path / "b.safetensors", {layer: group | more}))
        expected = low + 1.5 * rest.to_dense().reshape(layer.shape)
        assert torch.allclose(dW(file, name, layer, weight), expected, atol=1e-5)
        assert file.shapes[name] == {"diff": layer.shape if layer.is_spatial else (
            layer.out, layer.inp, *layer.kernel)}


def test_dylora_files_are_loras(base: Base, tmp_path: Path) -> None:
    """Upstream's DyLoRA keeps `up` flat beside a `down` with a kernel."""
    groups = {layer: randoms(layer, "lora") for layer in base.layers}
    flat = {layer: group | {"lora_up.weight": group["lora_up.weight"].flatten(1),
                            "alpha": torch.tensor(3)} for layer, group in groups.items()}
    assert torch.equal(base.under(kohya(base, tmp_path / "a.safetensors", flat)),
                       base.under(kohya(base, tmp_path / "b.safetensors", groups)))


def test_a_dylora_cut_to_its_first_ranks(base: Base, tmp_path: Path) -> None:
    """A1111's dyn: the first ranks at the whole file's scale."""
    layer = base.layers[0]
    group, name = randoms(layer, "lora", dim=6), base.family.key(layer)
    path = kohya(base, tmp_path / "a.safetensors", {layer: group})
    weight = torch.randn(layer.shape)
    up, down = group["lora_up.weight"].flatten(1), group["lora_down.weight"].flatten(1)
    for ranks, kept in ((2, 2), (6, 6), (99, 6), (None, 6)):
        file = AdapterFile(path, ranks=ranks)
        assert file.kind(name)[1] == kept
        expected = (up[:, :kept] @ down[:kept] * 3.0 / 6).view(layer.shape)
        assert torch.allclose(dW(file, name, layer, weight), expected, atol=1e-5)


def test_textual_inversions_are_left_out(base: Base, tmp_path: Path) -> None:
    group = {base.layers[0]: randoms(base.layers[0], "lora")}
    path = kohya(base, tmp_path / "a.safetensors", group)
    tensors, _ = tensorfile.read(path, AdapterError)
    expected = base.under(path)
    key = "bundle_emb.cat.string_to_param.*"
    path = written(tmp_path / "b.safetensors", tensors | {key: torch.randn(1, 16)})
    assert torch.equal(base.under(path), expected)
    file = AdapterFile(path)
    found = match(file, base.family.layers, base.family.aliases, "small")
    assert "textual inversion" in found.ignored[key] and f"the first is {key}" in found.text


def lora(name: str, out: int = 4, inp: int = 4, dim: int = 2) -> Tensors:
    return {f"{name}.lora_up.weight": torch.randn(out, dim),
            f"{name}.lora_down.weight": torch.randn(dim, inp)}


def test_missing_tensors_are_named(base: Base, tmp_path: Path) -> None:
    key = base.family.key(base.layers[0])
    for drop, words in (
            ("lora_down.weight", r"lacks lora_down.weight \(lora_A.weight\) of"),
            ("lora_up.weight", r"lacks lora_up.weight \(lora_B.weight\) of"),
            ("hada_w2_b", "lacks hada_w2_b of"), ("hada_w1_a", "lacks hada_w1_a of"),
            ("hada_w1_a hada_w2_b", "lacks hada_w1_a and hada_w2_b of"),
            ("lokr_w1", "lacks lokr_w1 of"), ("lokr_w2_b", "lacks lokr_w2_b of"),
            ("a2.weight", "lacks a2.weight of"), ("weight", "lacks weight of")):
        algo = {"lo": "lora", "ha": "loha", "a2": "glora", "we": "ia3"}[drop[:2]]
        algo, options = ("lokr", {"factor": 2}) if "lokr" in drop else (algo, {})
        groups = {layer: randoms(layer, algo, **options) for layer in base.layers}
        for suffix in drop.split():
            groups[base.layers[0]].pop(suffix)
        path = kohya(base, tmp_path / "a.safetensors", groups)
        with pytest.raises(AdapterError, match=words + f" {key}: there is only") as caught:
            base.under(path)
        assert caught.value.keys == (key,)
    path = written(tmp_path / "b.safetensors", {f"{key}.alpha": torch.tensor(1.0)})
    with pytest.raises(AdapterError, match="nothing but its alpha"):
        base.under(path)


@pytest.mark.parametrize(("name", "kind"), [
    ("lora_unet_double_blocks_0_img_attn_qkv", "Flux"),
    ("transformer.single_transformer_blocks.3.attn.to_q", "Flux"),
    ("lora_unet_joint_blocks_0_x_block_attn_qkv", "Stable Diffusion 3"),
    ("lora_transformer_blocks_0_attn", "a diffusion transformer"),
    ("diffusion_model.blocks.0.self_attn.q", "a diffusion transformer"),
    ("lora_prior_unet_down_blocks_0_1_attention", "Stable Cascade"),
    ("lora_te2_text_model_encoder_layers_0_mlp_fc1", "SDXL"),
    ("unet.down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q", "SDXL"),
    ("lora_unet_nowhere", "")])
def test_adapters_of_another_model_are_told(base: Base, tmp_path: Path, name: str,
                                            kind: str) -> None:
    path = written(tmp_path / "a.safetensors", lora(name))
    with pytest.raises(AdapterError, match="made for another base than small: matched 0") as caught:
        base.under(path)
    assert (f"an adapter for {kind}." in caught.value.message) == bool(kind)


def test_names_that_could_be_two_layers(base: Base, tmp_path: Path) -> None:
    layers = [Layer("a.b_c", "linear", (4, 4)), Layer("a_b.c", "linear", (4, 4))]
    file = AdapterFile(written(tmp_path / "a.safetensors", lora("lycoris_a_b_c")))
    with pytest.raises(AdapterError, match=r"lycoris_a_b_c could be a\.b_c or a_b\.c"):
        match(file, layers, lambda layer: ["lycoris_" + layer.name.replace(".", "_")], "two")
    first = base.family.key(base.layers[0])
    second = NAMES["diffusers"](base.layers[0])
    path = written(tmp_path / "b.safetensors", lora(first) | lora(second))
    with pytest.raises(AdapterError, match=f"{first} and {re.escape(second)} are both"):
        base.under(path)
    path = written(tmp_path / "c.safetensors",
                   lora("unet.x") | {"unet.x.lora_A.weight": torch.randn(2, 4)})
    with pytest.raises(AdapterError, match="two tensors that could be its lora_down.weight"):
        AdapterFile(path)


def test_a_model_is_no_adapter(base: Base, tmp_path: Path) -> None:
    """A whole model's layers are never taken for (IA)^3's `weight`; strays beside an adapter are
    counted."""
    weights = base.family.base / "unet" / "diffusion_pytorch_model.safetensors"
    with pytest.raises(AdapterError, match="holds no adapter: none of its"):
        AdapterFile(weights)
    layer = base.layers[0]
    group = kohya(base, tmp_path / "a.safetensors", {layer: randoms(layer, "lora")})
    tensors, _ = tensorfile.read(group, AdapterError)
    file = AdapterFile(written(tmp_path / "b.safetensors", tensors | {
        "conv_in.weight": torch.randn(2), "conv_in.bias": torch.randn(2)}))
    found = match(file, base.family.layers, base.family.aliases, "small")
    assert set(found.unread) == {"conv_in.weight", "conv_in.bias"} and not found.whole
    assert "2 tensors are no adapter's" in found.text


# --- what other programs look for: their published rules, as tables

# A1111 (extensions-builtin/Lora): a key is split at its first dot; the name becomes the original
# model's through these rules, {pattern: where}, else it stays as it is.
A1111_NAMES: list[tuple[str, Callable[..., str]]] = [
    (r"lora_unet_conv_in", lambda: "input_blocks_0_0"),
    (r"lora_unet_conv_out", lambda: "out_2"),
    (r"lora_unet_time_embedding_linear_(\d+)", lambda n: f"time_embed_{2 * n - 2}"),
    (r"lora_unet_down_blocks_(\d+)_attentions_(\d+)_(.+)",
     lambda a, b, inner: f"input_blocks_{1 + 3 * a + b}_1_{inner}"),
    (r"lora_unet_down_blocks_(\d+)_resnets_(\d+)_(.+)",
     lambda a, b, inner: f"input_blocks_{1 + 3 * a + b}_0_{A1111_RESNET[inner]}"),
    (r"lora_unet_up_blocks_(\d+)_attentions_(\d+)_(.+)",
     lambda a, b, inner: f"output_blocks_{3 * a + b}_1_{inner}"),
    (r"lora_unet_up_blocks_(\d+)_resnets_(\d+)_(.+)",
     lambda a, b, inner: f"output_blocks_{3 * a + b}_0_{A1111_RESNET[inner]}"),
    (r"lora_unet_mid_block_attentions_(\d+)_(.+)", lambda b, inner: f"middle_block_1_{inner}"),
    (r"lora_unet_mid_block_resnets_(\d+)_(.+)",
     lambda b, inner: f"middle_block_{2 * b}_{A1111_RESNET[inner]}"),
    (r"lora_unet_down_blocks_(\d+)_downsamplers_0_conv",
     lambda a: f"input_blocks_{3 + 3 * a}_0_op"),
    (r"lora_unet_up_blocks_(\d+)_upsamplers_0_conv",
     lambda a: f"output_blocks_{2 + 3 * a}_{2 if a else 1}_conv"),
]
A1111_RESNET = {"conv1": "in_layers_2", "conv2": "out_layers_3", "norm1": "in_layers_0",
                "norm2": "out_layers_0", "time_emb_proj": "emb_layers_1",
                "conv_shortcut": "skip_connection"}
A1111_TEXT = r"lora_te_text_model_encoder_layers_(\d+)_(self_attn_(q|k|v|out)_proj|mlp_fc[12])"
# {algorithm: sets of suffixes that must all be there, one set of which is enough}
A1111_NEEDS = {
    "lora": [{"lora_up.weight", "lora_down.weight"}],
    "dylora": [{"lora_up.weight", "lora_down.weight"}],
    "loha": [{"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}],
    "ia3": [{"weight", "on_input"}], "diag-oft": [{"oft_blocks"}], "boft": [{"oft_blocks"}],
    "lokr": [small | large for small in ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"})
             for large in ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"})],
    "full": [{"diff"}], "norm": [{"w_norm", "b_norm"}],
    "glora": [{"a1.weight", "a2.weight", "b1.weight", "b2.weight", "alpha"}]}
A1111_EXTRA = {"alpha", "dora_scale", "lora_mid.weight", "hada_t1", "hada_t2", "lokr_t2", "rescale",
               "diff_b"}
# ComfyUI (comfy/lora.py, comfy/weight_adapter): every suffix it loads, by adapter.
COMFY_KNOWS = {
    "lora": {"lora_up.weight", "lora_down.weight", "lora_mid.weight"},
    "dylora": {"lora_up.weight", "lora_down.weight"},
    "loha": {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"},
    "lokr": {"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"},
    "glora": {"a1.weight", "a2.weight", "b1.weight", "b2.weight"},
    "diag-oft": {"oft_blocks", "rescale"}, "boft": {"oft_blocks", "rescale"},
    "norm": {"w_norm", "b_norm"}, "full": {"diff", "diff_b"}}
COMFY_EXTRA = {"alpha", "dora_scale"}
VARIANTS = {
    "lora": [{}, {"use_tucker": True}], "loha": [{}, {"use_tucker": True}], "dylora": [{}],
    "lokr": [{"factor": 2}, {"factor": 2, "decompose_both": True}, {"full_matrix": True},
             {"factor": 2, "use_tucker": True}],
    "glora": [{}], "ia3": [{}, {"train_on_input": True}], "full": [{}],
    "diag-oft": [{"constraint": 0.1, "rescaled": True}], "boft": [{"rescaled": True}]}


@pytest.fixture(scope="module")
def sd15() -> list[Layer]:
    """Every layer of Stable Diffusion 1.5's UNet and text encoder, without weights."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
        text = CLIPTextModel(CLIPTextConfig(num_hidden_layers=12))
    return [*families.layers_of(unet, "unet"), *families.layers_of(
        text, "text_encoder", lambda name: name.removeprefix("text_model."))]


def a1111_place(name: str) -> str | None:
    """Where A1111 puts an `lora_unet_` name in the original model; None where no rule fits."""
    for pattern, place in A1111_NAMES:
        if found := re.fullmatch(pattern, name):
            return place(*(int(part) if part.isdecimal() else part for part in found.groups()))
    return None


def test_names_in_the_original_unet(sd15: list[Layer]) -> None:
    """Our map agrees with A1111's rules on the whole of SD1.5, name by name."""
    unet = [layer for layer in sd15 if layer.part == "unet"]
    ldm = unetnames.ldm_names(layer.name for layer in unet)
    assert len(unet) == len(ldm) == len(set(ldm.values())) == 391
    assert sum(layer.kind != "norm" for layer in unet) == 282, "as the full preset counts"
    for layer in unet:
        place = a1111_place(StableDiffusion.key(layer))
        if layer.name == "conv_norm_out":  # A1111 has no rule for it
            assert place is None and ldm[layer.name] == "out.0"
        else:
            assert place == ldm[layer.name].replace(".", "_")
    names = StableDiffusion.names(sd15)
    every = [name for aliases in names.values() for name in aliases]
    assert len(names) == len(sd15) and len(every) == len(set(every)), "no name is of two layers"


@pytest.mark.parametrize("layers_per_block", [1, 2, 3])
def test_original_names_follow_the_structure(layers_per_block: int) -> None:
    """diffusers' own converter brings our names back, for other sizes of a UNet too."""
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(32, 64, 64), layers_per_block=layers_per_block,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16)
    names = [layer.name for layer in families.layers_of(unet)]
    ldm = unetnames.ldm_names(names)
    assert set(ldm) == set(names)
    original = {f"model.diffusion_model.{ldm[name]}.weight": torch.tensor(number)
                for number, name in enumerate(names)}
    back = convert_ldm_unet_checkpoint(dict(original) | {
        key.replace(".weight", ".bias"): value for key, value in original.items()},
        dict(unet.config))
    for number, name in enumerate(names):
        assert back[f"{name}.weight"] == number


def selected(layers: list[Layer], algo: str) -> list[Layer]:
    entry = algorithms.all_entries()[algo]
    return [layer for layer in StableDiffusion.select(layers, "full")
            if layer.kind in entry.kinds or algo == "norm"]


@pytest.mark.parametrize(("algo", "options"), [
    (algo, options) for algo, variants in VARIANTS.items() for options in variants], ids=str)
def test_what_we_write_is_what_other_programs_read(sd15: list[Layer], algo: str,
                                                   options: dict[str, Any]) -> None:
    entry = algorithms.all_entries()[algo]
    algorithm = entry(16, 8.0, entry.Options(**options))
    layers = selected(sd15, algo)
    assert len(layers) == 282 + 72
    for layer in layers:
        suffixes = set(algorithm.file_shapes(algorithm.shapes(layer)))
        suffixes |= set() if algorithm.file_alpha(layer) is None else {"alpha"}
        name = StableDiffusion.key(layer)
        assert "." not in name
        needs = next((need for need in A1111_NEEDS[algo] if need <= suffixes), None)
        assert needs is not None and suffixes <= needs | A1111_EXTRA, "A1111"
        if layer.part == "unet":
            assert a1111_place(name) and re.fullmatch(r"lora_unet_\w+", name)
        else:
            assert re.fullmatch(A1111_TEXT, name), "ComfyUI knows these too"
        if algo in COMFY_KNOWS:
            assert suffixes <= COMFY_KNOWS[algo] | COMFY_EXTRA, "ComfyUI"
            if layer.part == "unet":
                assert StableDiffusion.key(layer, "lycoris") == name.replace("lora_unet", "lycoris")


def test_norms_as_other_programs_read_them(sd15: list[Layer]) -> None:
    entry = algorithms.all_entries()["norm"]
    norms = [layer for layer in sd15 if layer.kind == "norm" and layer.part == "unet"
             and layer.name != "conv_norm_out"]
    assert len(norms) > 100
    for layer in norms:
        assert set(entry().shapes(layer)) == {"weight", "bias"} and a1111_place(
            StableDiffusion.key(layer))
    assert set(entry.keys.values()) == {"w_norm", "b_norm"} == COMFY_KNOWS["norm"]


def test_only_these_are_known_to_no_other_program() -> None:
    """What the tables above do not name must be converted before another program reads it."""
    assert set(algorithms.all_entries()) - set(A1111_NEEDS) == {"tlora", "svdiff"}


# --- writing other dialects


def rewritten(base: Base, groups: Mapping[Layer, Tensors], dialect: str, path: Path) -> Path:
    return written(path, dialects.rewrite(groups.items(), base.family.key, dialect))


def test_keys_of_every_dialect(base: Base) -> None:
    unet, text = base.layers[0], base.layers[-1]
    assert text.part == "text_encoder"
    keys = {dialect: (base.family.key(unet, dialect), base.family.key(text, dialect))
            for dialect in ("kohya", "lycoris", "diffusers")}
    path, inner = unet.name.replace(".", "_"), text.name.replace(".", "_")
    assert keys == {
        "kohya": (f"lora_unet_{path}", f"lora_te_text_model_{inner}"),
        "lycoris": (f"lycoris_{path}", f"lycoris_text_model_{inner}"),
        "diffusers": (f"unet.{unet.name}", f"text_encoder.text_model.{text.name}")}
    with pytest.raises(ConfigError, match="no 'kohia'.*Did you mean kohya"):
        base.family.key(unet, "kohia")


@pytest.mark.parametrize("dialect", ["kohya", "lycoris", "diffusers"])
@pytest.mark.parametrize("options", [{}, {"use_tucker": True}, {"dora": True}], ids=str)
def test_a_lora_in_every_dialect(base: Base, tmp_path: Path, dialect: str,
                                 options: dict[str, bool]) -> None:
    dora = options.get("dora")
    groups = {layer: randoms(layer, "lora", **({} if dora else options)) for layer in base.layers}
    for layer, group in groups.items():
        if dora:
            group["dora_scale"] = 0.5 + torch.rand(layer.out, 1, *(1 for _ in layer.kernel))
    expected = base.under(kohya(base, tmp_path / "a.safetensors", groups))
    path = rewritten(base, groups, dialect, tmp_path / "b.safetensors")
    assert torch.allclose(base.under(path), expected, atol=1e-5)
    assert AdapterFile(path).dialect == {"lycoris": "lycoris wrapper"}.get(dialect, dialect)


def test_an_alpha_is_always_written(base: Base) -> None:
    layer = base.layers[0]
    group = randoms(layer, "loha", dim=3)
    del group["alpha"]
    tensors = dialects.rewrite({layer: group}.items(), base.family.key, "kohya")
    assert tensors[f"{base.family.key(layer)}.alpha"].item() == 3


def test_what_diffusers_keys_cannot_say(base: Base, tmp_path: Path) -> None:
    layer = base.layers[0]
    loha = randoms(layer, "loha")
    on_input = randoms(layer, "lora") | {"dora_scale": torch.ones(1, layer.inp, 1, 1)}
    for group in (loha, on_input):
        with pytest.raises(AdapterError, match="1 layers cannot be written in diffusers' keys"):
            dialects.rewrite({layer: group}.items(), base.family.key, "diffusers")


@pytest.mark.parametrize("dora", [False, True])
def test_diffusers_reads_its_own_keys_from_us(base: Base, tmp_path: Path, small_base: Path,
                                              dora: bool) -> None:
    pytest.importorskip("peft", reason="diffusers reads LoRA files through peft")
    from diffusers import StableDiffusionPipeline

    groups = {layer: randoms(layer, "lora", dim=1 + number % 3)
              for number, layer in enumerate(base.layers)}
    for layer, group in groups.items():
        if dora:
            group["dora_scale"] = 0.5 + torch.rand(layer.out, 1, *(1 for _ in layer.kernel))
    path = rewritten(base, groups, "diffusers", tmp_path / "a.safetensors")
    pipe = StableDiffusionPipeline.from_pretrained(small_base, safety_checker=None)
    pipe.load_lora_weights(str(tmp_path), weight_name=path.name)
    ids = pipe.tokenizer(["a ball"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        text = pipe.text_encoder(ids).last_hidden_state
        seen = pipe.unet(base.x, base.t, text, return_dict=False)[0]
    theirs = torch.cat([text.flatten(), seen.flatten()])
    assert torch.allclose(theirs, base.under(path), atol=1e-5)
    assert not torch.allclose(theirs, base.plain, atol=1e-3)


SUFFIX_LIST = sorted({suffix for entry in algorithms.all_entries().values()
                      for suffix in entry.keys.values()} | {
    "alpha", "scale", "dora_scale", "oft_diag", "lora_A.weight", "lora_B.weight",
    "lora_magnitude_vector", "bias_indices", "bias_values", "bias_size", "something"})
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 4, 8]), max_size=5).map(tuple)
ODD = [("linear", (8, 4)), ("linear", (4, 4)), ("conv", (8, 4, 1, 1)), ("conv", (4, 4, 3, 3)),
       ("norm", (8,))]


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.sampled_from(["", *algorithms.all_entries()]), st.sampled_from(ODD),
       st.dictionaries(st.sampled_from(SUFFIX_LIST), SHAPES, min_size=1, max_size=3),
       st.sets(st.sampled_from(SUFFIX_LIST), max_size=2))
def test_odd_shapes_are_refused_or_read(tmp_path_factory: pytest.TempPathFactory, algo: str,
                                        of: tuple[str, tuple[int, ...]],
                                        others: dict[str, tuple[int, ...]],
                                        less: set[str]) -> None:
    """Whatever a file holds, also what was an adapter before some tensors became others: an
    adapter that can be merged, or a typed error."""
    layer = Layer("0", *of)
    group: dict[str, tuple[int, ...]] = {}
    entry = algorithms.all_entries().get(algo)
    if entry is not None and layer.kind in entry.kinds:
        group = dict(entry(2).file_shapes(entry(2).shapes(layer)))
    shapes = {suffix: sides for suffix, sides in (group | others).items() if suffix not in less}
    path = tmp_path_factory.mktemp("odd") / "a.safetensors"
    written(path, {f"lycoris_0.{suffix}": torch.full(sides, 0.5)
                   for suffix, sides in shapes.items()})
    try:
        file = AdapterFile(path)
        found = match(file, [layer], lambda layer: ["lycoris_0"], "odd")
        if found.assignments:
            weight = torch.randn(layer.shape)
            network = LycorisNetwork.from_file(file, found.assignments,
                                               {"": _holder(layer, weight)})
            next(iter(network)).changed(weight, torch.randn(layer.out), 1.0)
    except AdapterError:
        pass
