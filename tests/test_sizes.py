"""Exact sizes: against real Stable Diffusion modules, published figures, and the disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import TINY_SD

from lycoris import assignments, config, families, plan, sizes, trainer
from lycoris.algorithms import Layer
from lycoris.errors import ConfigError
from lycoris.families.sd import StableDiffusion
from lycoris.settings import Config, NetworkConfig


@cache
def sd15() -> tuple[Layer, ...]:
    """The layers of Stable Diffusion 1.5: its real modules, built without memory."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
        text = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072,
                                            num_hidden_layers=12, num_attention_heads=12))
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
    assert sum(p.numel() for p in text.parameters()) == 123_060_480
    return (*families.layers_of(unet, "unet"),
            *families.layers_of(text, "text_encoder", lambda n: n.removeprefix("text_model.")))


def measured(network: NetworkConfig, dtype: str = "fp16") -> sizes.Sizes:
    chosen = StableDiffusion.select(sd15(), network.preset)
    found = assignments.assign(chosen, network, StableDiffusion.key)
    return sizes.measure(found, dtype, {})


def test_presets_select_what_the_guideline_meant() -> None:
    def count(preset: str, **settings: bool) -> dict[str, int]:
        network = NetworkConfig(preset=preset, **settings)  # type: ignore[arg-type]
        chosen = StableDiffusion.select(sd15(), preset)
        found = assignments.assign(chosen, network, StableDiffusion.key)
        return dict(Counter(a.layer.part for a in found))

    assert count("attn-only") == {"unet": 128, "text_encoder": 48}
    assert count("attn-mlp") == {"unet": 192, "text_encoder": 72}
    assert count("full") == {"unet": 282, "text_encoder": 72}
    assert count("full", train_norm=True) == {"unet": 282 + 108, "text_encoder": 72}


# Sizes of files that lycoris-lora 4.1.3 wrote for SD1.5 (UNet and CLIP-L): parameters, fp16 bytes.
WRITTEN = [
    ("lora", "attn-mlp", 1, 589_824, 1_289_088), ("lora", "attn-mlp", 8, 4_718_592, 9_547_800),
    ("lora", "attn-only", 32, 8_736_768, 17_549_968),
    ("lora", "attn-mlp", 32, 18_874_368, 37_861_176), ("lora", "full", 32, 39_171_328, 78_488_860),
    ("lora", "attn-mlp", 64, 37_748_736, 75_610_144), ("loha", "full", 4, 9_792_832, 19_820_132),
    ("loha", "attn-only", 16, 8_736_768, 17_598_376),
    ("loha", "attn-mlp", 16, 18_874_368, 37_931_904), ("loha", "full", 16, 39_171_328, 78_580_044),
    ("loha", "attn-mlp", 32, 37_748_736, 75_681_032),
]


@pytest.mark.parametrize(("algo", "preset", "dim", "parameters", "written"), WRITTEN)
def test_bytes_are_those_of_the_reference_package(algo: str, preset: str, dim: int,
                                                  parameters: int, written: int) -> None:
    found = measured(NetworkConfig(algo=algo, preset=preset, dim=dim, alpha=1.0))
    assert (found.parameters, found.file_bytes) == (parameters, written)


def test_fp32_and_bf16() -> None:
    network = NetworkConfig(algo="lora", preset="attn-mlp", dim=8, alpha=1.0)
    assert measured(network, "fp32").file_bytes == 18_986_312
    assert measured(network, "bf16").file_bytes == 9_548_592


def test_dora_adds_one_number_a_row() -> None:
    plain, dora = (measured(NetworkConfig(preset="attn-mlp", dim=16, dora_wd=on))
                   for on in (False, True))
    rows = sum(a.out for a in StableDiffusion.select(sd15(), "attn-mlp") if a.kind != "norm")
    assert dora.parameters - plain.parameters == rows


def test_headers_and_modules_tell_the_same_layers(small_base: Path) -> None:
    """What a base's file headers say is what its loaded modules hold."""
    for base in (small_base, TINY_SD):
        family = families.open_base(base)
        model = family.load(torch.device("cpu"), torch.float32)
        real = {layer for part, module in model.modules.items()
                for layer in families.layers_of(module, part)}
        assert set(family.layers) == real


SETTINGS = [
    (), ("network.algo=loha",), ("network.algo=loha", "network.options.use_tucker=true"),
    ("network.options.use_tucker=true", "network.conv_dim=3"), ("network.conv_dim=0",),
    ("network.dora_wd=true",), ("network.dora_wd=true", "network.wd_on_output=false"),
    ("network.train_norm=true",), ("network.use_scalar=true", "network.rs_lora=true"),
    ("network.text_encoder=false",), ("network.preset=attn-only",), ("network.preset=attn-mlp",),
    ("output.dtype=fp32",), ("output.dtype=bf16", "train.seed=123456789"),
    ("output.name=ünïcode 🙂", 'sample.prompts=["a \\"quoted\\" prompt", "ü"]'),
    ("optimizer.name=AdamW8bit", "train.precision=bf16", "network.dim=7", "network.alpha=3.3"),
    ("train.accumulate=2", "train.batch_size=1", "dataset.bucket=false"),
]


@pytest.mark.parametrize("overrides", SETTINGS, ids=lambda o: " ".join(o) or "defaults")
def test_the_estimate_is_the_file(overrides: tuple[str, ...], tmp_path: Path,
                                  settings: Callable[..., Config]) -> None:
    """Metadata included, byte for byte, for a run that is really trained."""
    made = plan.make(settings("train.steps=2", *overrides))
    where = tmp_path / "run"
    ended = trainer.run(made, where, lambda event: None, lambda: set())
    assert (where / ended.path).stat().st_size == made.sizes.file_bytes_with_metadata


def test_parts_and_kinds_add_up() -> None:
    made = plan.make(config.load(), need_dataset=False)
    for grouped in (made.sizes.parts, made.sizes.kinds):
        assert sum(g.parameters for g in grouped.values()) == made.sizes.parameters
        assert sum(g.modules for g in grouped.values()) == made.sizes.modules


def test_names_that_do_not_exist_are_refused_all_at_once() -> None:
    run = config.load()
    bad = replace(run, network=replace(run.network, algo="lorah", preset="attention"),
                  optimizer=replace(run.optimizer, name="adam"),
                  sample=replace(run.sample, sampler="dpm"))
    with pytest.raises(ConfigError) as caught:
        plan.make(bad, need_dataset=False)
    assert set(caught.value.problems) == {"network.algo", "network.preset", "optimizer.name",
                                          "sample.sampler"}
    assert "lora" in caught.value.problems["network.algo"]


def test_sides_must_fit_the_model() -> None:
    run = config.load(None, ["dataset.bucket_step=16", "sample.width=100", "dataset.resolution=8"])
    with pytest.raises(ConfigError) as caught:
        plan.make(run, need_dataset=False)
    assert "Set it to 96." in caught.value.problems["sample.width"]
    assert "dataset.bucket_step" in caught.value.problems
