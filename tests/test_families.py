"""Base models: what is recognised, what is refused, and with which words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TINY_SD, make_base

from lycoris import families, objectives, weightings
from lycoris.errors import ConfigError, ModelFileError
from lycoris.families import sd
from lycoris.settings.loss import LossConfig


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
    ('{"_class_name": "StableDiffusionXLPipeline", "text_encoder_2": []}', "has no folder unet"),
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


FILES = ("unet/config.json", "unet/diffusion_pytorch_model.safetensors", "vae/config.json",
         "vae/diffusion_pytorch_model.safetensors", "text_encoder/config.json",
         "text_encoder/model.safetensors", "tokenizer/tokenizer.json",
         "tokenizer/tokenizer_config.json", "scheduler/scheduler_config.json")


@pytest.mark.parametrize("name", FILES)
def test_cut_off_files_are_refused(base: Path, name: str) -> None:
    """Every file of the model, cut in half, is an error that names its part, not a bug."""
    data = (base / name).read_bytes()
    (base / name).write_bytes(data[:len(data) // 2])
    if name.endswith(".safetensors"):  # told as soon as it is chosen
        with pytest.raises(ModelFileError, match="is cut off"):
            families.open_base(base)
    with pytest.raises(ModelFileError, match=name.partition("/")[0]) as caught:
        families.open_base(base).load(torch.device("cpu"), torch.float32)
    assert "copy" in caught.value.fix.lower()
    (base / name).write_bytes(b"\x10")
    with pytest.raises(ModelFileError):
        families.open_base(base).load(torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(("part", "fact"), [
    (part, fact) for part, facts in sd.FACTS.items() for fact in facts])
def test_configs_that_lack_a_fact_are_refused(base: Path, part: str, fact: str) -> None:
    _edit(base / part / "config.json", lambda c: c.pop(fact))
    with pytest.raises(ModelFileError, match=rf"{part}.config\.json does not say {fact}"):
        families.open_base(base)
    _edit(base / part / "config.json", lambda c: c.update({fact: "many"}))
    with pytest.raises(ModelFileError, match=f"does not say {fact}"):
        families.open_base(base)
    (base / part / "config.json").write_text("[]")
    with pytest.raises(ModelFileError, match="no settings but a list"):
        families.open_base(base)


@pytest.mark.parametrize(("name", "content"), [
    ("scheduler/scheduler_config.json", '{"beta_schedule": "steep"}'),
    ("tokenizer/tokenizer.json", "{}"), ("text_encoder/config.json", "hidden_size"),
    ("unet/config.json", "down_block_types")])
def test_nonsense_in_a_config_is_refused(base: Path, name: str, content: str) -> None:
    if content.startswith("{"):
        (base / name).write_text(content)
    else:
        _edit(base / name, lambda c: c.update({content: 17}))
    with pytest.raises(ModelFileError, match=name.partition("/")[0]):
        families.open_base(base).load(torch.device("cpu"), torch.float32)


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
    encoded = _ids(base, captions)
    (folder / "tokenizer_config.json").unlink()
    assert torch.equal(_ids(base, captions), encoded), "the length is the text encoder's"
    assert not torch.equal(encoded[0], encoded[2])
    (folder / "merges.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelFileError, match=r"merges\.txt cannot be read"):
        families.open_base(base)
    (folder / "merges.txt").unlink()
    with pytest.raises(ModelFileError, match=r"no tokenizer\.json, and no merges\.txt"):
        families.open_base(base)


def _ids(base: Path, captions: list[str]) -> torch.Tensor:
    """What the text encoder is given for some captions."""
    model = families.open_base(base).load(torch.device("cpu"), torch.float32)
    given: list[torch.Tensor] = []
    model.modules["text_encoder"].register_forward_pre_hook(
        lambda module, args, kwargs: given.append(args[0] if args else kwargs["input_ids"]),
        with_kwargs=True)
    model.encode_text(captions)
    return given[0]


def test_a_tokenizer_without_its_words_is_refused(base: Path) -> None:
    """transformers would make an empty one, and every caption would be the same."""
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (base / "tokenizer" / name).unlink()
    with pytest.raises(ModelFileError, match=r"no vocab\.json and no merges\.txt"):
        families.open_base(base)


@pytest.mark.parametrize("rows", [945, 49_408])
def test_a_tokenizer_of_another_model_is_refused(base: Path, rows: int) -> None:
    _edit(base / "text_encoder" / "config.json", lambda c: c.update(vocab_size=rows))
    with pytest.raises(ModelFileError, match=f"knows 965 tokens, its text encoder {rows:,}"):
        families.open_base(base).load(torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("name", list(objectives.OBJECTIVES))
def test_samplers_take_a_perfect_prediction_back_to_the_picture(name: str) -> None:
    """What training asks for is what sampling takes the prediction for."""
    from diffusers import DDIMScheduler

    torch.manual_seed(0)
    sampler = DDIMScheduler(prediction_type=name, clip_sample=False)
    sampler.set_timesteps(1000)
    objective = objectives.make(name, sampler.alphas_cumprod)
    x0, n = torch.randn(2, 1, 4, 8, 8)
    for t in (1, 300, 900):
        at = torch.tensor([t])
        back = sampler.step(objective.target(x0, n, at), t, objective.noised(x0, n, at))
        assert torch.allclose(back.pred_original_sample, x0, atol=1e-3)


@pytest.mark.parametrize("name", list(objectives.OBJECTIVES))
def test_min_snr_weighs_the_loss_of_x0(name: str) -> None:
    """In terms of the error of x0 both objectives are weighed with min(snr, gamma)."""
    objective = objectives.make(name, torch.linspace(0.999, 0.01, 1000))
    t = torch.arange(0, 1000, 50)
    snr = objective.snr(t)
    error = {"epsilon": snr, "v_prediction": snr + 1}[name]  # of the target per error of x0
    weights = weightings.weigh(objective, t, LossConfig(weighting="min-snr"))
    assert weights is not None
    assert torch.allclose(weights * error, snr.clamp_max(5.0), rtol=1e-4)
