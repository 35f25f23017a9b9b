"""Base models: what is recognised, what is refused, and with which words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TINY_SD, make_base

from lycoris import families, objectives
from lycoris.errors import ConfigError, ModelFileError


@pytest.fixture
def base(small_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_base, tmp_path / "base"))


def test_the_embedded_model_is_an_ordinary_one() -> None:
    family = families.open_base(TINY_SD)
    assert family.name == "sd" and family.resolution == 64 and family.side_multiple == 8


def test_facts_from_headers(base: Path) -> None:
    family = families.open_base(base)
    assert (family.resolution, family.latent_scale, family.side_multiple) == (16, 2, 4)
    assert family.metadata["ss_base_model_version"] == "sd_v1"
    assert family.metadata["modelspec.prediction_type"] == "epsilon"


def test_v_prediction_is_read_from_the_scheduler(tmp_path: Path) -> None:
    base = make_base(tmp_path / "v", prediction="v_prediction")
    family = families.open_base(base)
    assert family.metadata["ss_base_model_version"] == "sd_v1_v"
    model = family.load(torch.device("cpu"), torch.float32)
    assert isinstance(model.objective, objectives.Velocity)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_named(base: Path, part: str) -> None:
    shutil.rmtree(base / part)
    with pytest.raises(ModelFileError, match=f"no folder {part}"):
        families.open_base(base)


def test_missing_weights_are_named(base: Path) -> None:
    (base / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelFileError, match="unet has no diffusion_pytorch_model.safetensors"):
        families.open_base(base)


def test_pickles_are_never_read(base: Path) -> None:
    file = base / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(ModelFileError, match="may run code") as caught:
        families.open_base(base)
    assert "safe_serialization" in caught.value.fix


def test_half_precision_variants_are_found(base: Path) -> None:
    for part, stem in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        file = base / part / f"{stem}.safetensors"
        file.rename(base / part / f"{stem}.fp16.safetensors")
    family = families.open_base(base)
    model = family.load(torch.device("cpu"), torch.float32)
    assert model.modules["unet"].conv_in.weight.dtype == torch.float32


def _edit(file: Path, change: Callable[[dict], None]) -> None:
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def test_inpainting_models_are_refused(base: Path) -> None:
    _edit(base / "unet" / "config.json", lambda c: c.update(in_channels=9))
    with pytest.raises(ModelFileError, match="inpainting"):
        families.open_base(base)


def test_unknown_prediction_types_are_refused(base: Path) -> None:
    _edit(base / "scheduler" / "scheduler_config.json",
          lambda c: c.update(prediction_type="sample"))
    with pytest.raises(ModelFileError, match="predicts 'sample'"):
        families.open_base(base).load(torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(("content", "words"), [
    ("{}", "no model of a known family"), ("not json", "no model of a known family"),
    ('{"_class_name": "StableDiffusionXLPipeline", "text_encoder_2": []}', "known family"),
    ('{"_class_name": "StableDiffusion3Pipeline"}', "known family"),
])
def test_other_models_are_refused(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "model_index.json").write_text(content)
    with pytest.raises(ModelFileError, match=words):
        families.open_base(tmp_path)


def test_no_model_at_all(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="There is no base model"):
        families.open_base(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="choose one of sd"):
        families.open_base(tmp_path, "sdxxl")


def test_cut_off_weights_are_refused(base: Path) -> None:
    file = base / "unet" / "diffusion_pytorch_model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:len(data) // 2])
    with pytest.raises(ModelFileError, match="unet"):
        families.open_base(base).load(torch.device("cpu"), torch.float32)
    file.write_bytes(b"\x10")
    with pytest.raises(ModelFileError, match="not a safetensors file"):
        families.open_base(base)


def test_tokens_are_counted_as_the_tokenizer_does() -> None:
    from transformers import CLIPTokenizer

    captions = ["a zorb on grass", "A ZORB,  on   grass!", "", "ünï 🙂 it's 42", "x" * 500]
    tokenizer = CLIPTokenizer.from_pretrained(TINY_SD / "tokenizer")
    theirs = [len(tokenizer(c, add_special_tokens=False).input_ids) for c in captions]
    assert families.open_base(TINY_SD).count_tokens(captions) == theirs


def test_tokens_from_vocab_and_merges(base: Path) -> None:
    """Older folders have vocab.json and merges.txt instead of tokenizer.json."""
    captions = ["a zorb on grass", "A ZORB,  on   grass!", "", "it's 42"]
    whole = families.open_base(base).count_tokens(captions)
    folder = base / "tokenizer"
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    assert families.open_base(base).count_tokens(captions) == whole
    (folder / "merges.txt").unlink()
    with pytest.raises(ModelFileError, match=r"no merges\.txt"):
        families.open_base(base).count_tokens(captions)


@pytest.mark.parametrize("name", list(objectives.OBJECTIVES))
def test_split_inverts_target(name: str) -> None:
    torch.manual_seed(0)
    objective = objectives.make(name, torch.linspace(0.999, 0.01, 1000))
    x0, n = torch.randn(2, 16, 4, 8, 8)
    t = torch.randint(0, 1000, (16,))
    back = objective.split(objective.target(x0, n, t), objective.noised(x0, n, t), t)
    assert torch.allclose(back[0], x0, atol=1e-3) and torch.allclose(back[1], n, atol=1e-3)


@pytest.mark.parametrize("name", list(objectives.OBJECTIVES))
def test_min_snr_weighs_the_loss_of_x0(name: str) -> None:
    """In terms of the error of x0 both objectives are weighed with min(snr, gamma)."""
    objective = objectives.make(name, torch.linspace(0.999, 0.01, 1000))
    t = torch.arange(0, 1000, 50)
    snr = objective.snr(t)
    error = {"epsilon": snr, "v_prediction": snr + 1}[name]  # of the target per error of x0
    weights = objective.min_snr(t, 5.0)
    assert torch.allclose(weights * error, snr.clamp_max(5.0), rtol=1e-4)


def test_noise_offset_shifts_whole_channels() -> None:
    from lycoris import streams

    x0 = torch.zeros(4, 3, 32, 32)
    plain = objectives.noise_like(x0, [streams.generator(1, i) for i in range(4)])
    again = objectives.noise_like(x0[2:], [streams.generator(1, i) for i in (2, 3)])
    assert torch.equal(plain[2:], again), "a sample's noise is its own"
    shifted = objectives.noise_like(x0, [streams.generator(1, i) for i in range(4)], 1.0)
    difference = shifted - plain
    assert difference.flatten(2).std(-1).max() < 1e-5 and difference.abs().mean() > 0.1
