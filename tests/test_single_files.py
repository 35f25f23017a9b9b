"""Base models of one file in the original layout."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import small_models
import torch
from conftest import TINY_SD
from small_models import write_single

from lycoris import config, families, merge, modelfiles, original, plan, tensorfile, trainer
from lycoris.errors import ModelFileError
from lycoris.families import Chosen
from lycoris.merge import Merge
from lycoris.progress import Progress

CPU = torch.device("cpu")
TEXTS = ["a zorb on grass", ""]


@pytest.fixture(scope="module", params=["sd15", "sd21", "sdxl"])
def pair(request: pytest.FixtureRequest,
         tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(folder, file) of the same model."""
    where = tmp_path_factory.mktemp(request.param)
    prediction = "v_prediction" if request.param == "sd21" else "epsilon"
    folder = small_models.make(where / "folder", request.param, prediction)
    shutil.copytree(TINY_SD / "tokenizer", where / "tokenizer")
    return folder, write_single(folder, where / "file.safetensors")


def test_folder_and_file_are_the_same_model(pair: tuple[Path, Path]) -> None:
    folder, file = (families.open_base(path) for path in pair)
    assert file.name == folder.name and file.label == folder.label
    assert {*file.layers} == {*folder.layers}
    assert (file.latent_scale, file.side_multiple, file.max_tokens) == (
        folder.latent_scale, folder.side_multiple, folder.max_tokens)
    assert file.count_tokens(TEXTS) == folder.count_tokens(TEXTS)
    for layer in folder.layers:
        assert torch.equal(file.weight(layer), folder.weight(layer)), layer
    one, other = (family.load(CPU, torch.float32) for family in (folder, file))
    assert one.objective.name == other.objective.name
    assert torch.equal(one.objective.alphas_cumprod, other.objective.alphas_cumprod)
    picture = torch.rand(2, 3, 16, 16)
    latents = one.encode_image(picture)
    assert torch.equal(other.encode_image(picture), latents)
    assert torch.equal(other.decode(latents), one.decode(latents))
    told = [model.with_sizes(model.encode_text(TEXTS), [(16,) * 6] * 2) for model in (one, other)]
    assert all(torch.equal(told[1][name], tensor) for name, tensor in told[0].items())
    t = torch.tensor([3, 800])
    assert torch.equal(other.predict(latents, t, told[1]), one.predict(latents, t, told[0]))


def test_a_run_on_one_file(pair: tuple[Path, Path], settings: Callable[..., config.Config],
                           tmp_path: Path) -> None:
    made = plan.make(settings(f"model.base={pair[1]}", "train.steps=2", "network.dim=1"))
    (tmp_path / "run").mkdir()
    assert trainer.run(made, tmp_path / "run", lambda event: None, set).reason == "done"


def test_another_autoencoder(pair: tuple[Path, Path], tmp_path: Path) -> None:
    folder, file = pair
    other = Path(shutil.copytree(folder / "vae", tmp_path / "vae"))
    weights = other / "diffusion_pytorch_model.safetensors"
    tensors, said = tensorfile.read(weights, ModelFileError)
    tensorfile.write(weights, {name: t * 1.01 for name, t in tensors.items()}, said)
    bare = {}
    places = original.written_autoencoder(tensors, "")
    for name, place in places.items():
        bare[place.key] = place.written(tensors[name] * 1.01)
    single = tensorfile.write(tmp_path / "vae.safetensors", bare, {})
    lacking = tensorfile.write(tmp_path / "lacking.safetensors", {
        k: t for k, t in tensorfile.read(file, ModelFileError)[0].items()
        if not k.startswith("first_stage_model")}, {})
    with pytest.raises(ModelFileError, match="holds no vae"):
        families.open_base(lacking)
    picture, found = torch.rand(1, 3, 16, 16), []
    words = folder / "tokenizer"
    for base, vae in ((folder, None), (folder, other), (folder, single), (file, weights.parent),
                      (lacking, single), (file, weights)):
        model = families.open_base(base, chosen=Chosen(vae=vae, tokenizer=words)).load(
            CPU, torch.float32)
        found.append(model.encode_image(picture))
    assert not torch.equal(found[0], found[1])
    assert all(torch.equal(each, found[1]) for each in found[2:])
    with pytest.raises(ModelFileError, match="no autoencoder"):
        families.open_base(folder, chosen=Chosen(
            vae=folder / "unet" / "diffusion_pytorch_model.safetensors"))


@pytest.mark.parametrize(("marks", "metadata", "velocity", "zero"), [
    ({}, {}, "epsilon", False),
    ({"v_pred": torch.zeros(0)}, {}, "v_prediction", False),
    ({"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, {}, "v_prediction", True),
    ({}, {"modelspec.prediction_type": "v"}, "v_prediction", False),
    ({}, {"modelspec.predict_key": "epsilon"}, "epsilon", False)])
def test_what_the_header_says_of_the_objective(
        tmp_path: Path, marks: dict, metadata: dict, velocity: str, zero: bool) -> None:
    folder = small_models.make(tmp_path / "xl", "sdxl")
    file = write_single(folder, tmp_path / "m.safetensors", extra=marks, metadata=metadata)
    said = families.open_base(file).scheduler_config
    assert said["prediction_type"] == velocity
    assert bool(said.get("rescale_betas_zero_snr")) is zero


def test_the_tokenizer_is_looked_for_and_asked_for(
        pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelfiles, "cached_words", list)
    file = Path(shutil.copy(pair[1], tmp_path / "alone.safetensors"))
    family = families.open_base(file)  # facts need none
    for ask in (family.require_files, lambda: family.load(CPU, torch.float32),
                lambda: family.count_tokens(TEXTS)):
        with pytest.raises(ModelFileError, match="no tokenizer") as caught:
            ask()
        assert "lycoris download openai/clip-vit-large-patch14" in caught.value.fix
    with pytest.raises(ModelFileError, match="nowhere has none"):
        families.open_base(file, chosen=Chosen(tokenizer=tmp_path / "nowhere")).require_files()
    for chosen in (TINY_SD, TINY_SD / "tokenizer"):
        families.open_base(file, chosen=Chosen(tokenizer=chosen)).require_files()
    monkeypatch.setattr(modelfiles, "cached_words", lambda: [TINY_SD / "tokenizer"])
    family.require_files()


def test_the_tokenizer_in_the_hugging_face_cache(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    home = tmp_path / "models--openai--clip-vit-large-patch14"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("abc")
    shutil.copytree(TINY_SD / "tokenizer", home / "snapshots" / "abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert home / "snapshots" / "abc" in modelfiles.cached_words()


def test_what_is_no_base_model_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    def told(tensors: dict, name: str = "x.safetensors") -> ModelFileError:
        file = tensorfile.write(tmp_path / name, tensors, {})
        with pytest.raises(ModelFileError) as caught:
            families.open_base(file)
        return caught.value

    whole, _ = tensorfile.read(pair[1], ModelFileError)
    zeros = torch.zeros(2, 2)
    assert "pickle" in told(whole, "model.ckpt").message
    assert "is an adapter" in told({"lora_unet_x.lora_up.weight": zeros}).message
    assert "no Stable Diffusion model" in told({"double_blocks.0.weight": zeros}).message
    unet = {key: t for key, t in whole.items() if key.startswith("model.")}
    assert "without its text encoder" in told(unet).message
    assert "refiner" in told(unet | {"conditioner.embedders.0.model.ln_final.bias": zeros}).message
    first = f"{original.UNET}input_blocks.0.0.weight"
    assert "inpainting" in told(whole | {first: torch.zeros(32, 9, 3, 3)}).message


@pytest.mark.parametrize("nested", [True, False])
def test_the_command_that_is_told_converts_a_pickle(pair: tuple[Path, Path], tmp_path: Path,
                                                    nested: bool) -> None:
    """Of a path with spaces, of tensors that share memory or lie crosswise in it."""
    whole, _ = tensorfile.read(pair[1], ModelFileError)
    first, second = sorted(key for key in whole if key.endswith("norm1.weight"))[:2]
    shared = torch.cat([whole[first], whole[second]])
    whole |= {first: shared[:len(whole[first])], second: shared[len(whole[first]):]}
    crossed = next(key for key, tensor in whole.items() if tensor.ndim == 2)
    whole[crossed] = whole[crossed].t().contiguous().t()
    file = tmp_path / "my model's" / "v 1.ckpt"
    file.parent.mkdir()
    torch.save({"state_dict": whole, "epoch": 3} if nested else whole, file)
    command = refused(file).fix.splitlines()[-1]
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    made = file.with_suffix(".safetensors")
    tensors, _ = tensorfile.read(made, ModelFileError)
    assert all(torch.equal(tensors[key], tensor) for key, tensor in whole.items())
    assert families.open_base(made).layers == families.open_base(pair[1]).layers
    assert refused(file).fix == f"Choose {made}."


def test_that_command_runs_nothing_of_a_pickle(tmp_path: Path) -> None:
    file = tmp_path / "v1.ckpt"
    torch.save({"state_dict": {"x": torch.zeros(2)}, "callbacks": {Callback: {}}}, file)
    done = subprocess.run(refused(file).fix.splitlines()[-1], shell=True, capture_output=True,
                          text=True, check=False)
    assert done.returncode and "Unsupported global" in done.stderr
    assert "classes of pytorch-lightning" in refused(file).fix
    assert not file.with_suffix(".safetensors").exists()


class Callback:
    """As pytorch-lightning leaves in its checkpoints."""


def refused(file: Path) -> ModelFileError:
    with pytest.raises(ModelFileError, match="pickle") as caught:
        families.open_base(file)
    return caught.value


def _adapter(base: Path, settings: Callable[..., config.Config], where: Path) -> Path:
    made = plan.make(settings(f"model.base={base}", "train.steps=1", "network.dim=1",
                              "optimizer.lr=0.1", "output.dtype=fp32", "network.algo=loha"))
    where.mkdir()
    trainer.run(made, where, lambda event: None, set)
    return where / "one.safetensors"


def test_a_whole_model_in_either_layout(pair: tuple[Path, Path], tmp_path: Path,
                                        settings: Callable[..., config.Config]) -> None:
    """From folder or file into folder or file: the same tensors, and the plain model's where
    nothing changed."""
    adapter = _adapter(pair[0], settings, tmp_path / "run")
    found = []
    shutil.copytree(TINY_SD / "tokenizer", tmp_path / "tokenizer")
    for number, base in enumerate(pair):
        for ending in ("", ".safetensors"):
            out = tmp_path / f"made{number}{ending}"
            ended = merge.run(Merge(((adapter, 0.5),), str(out), "model", base), Progress())
            assert ended.rows and ended.bytes
            found.append(families.open_base(out))
    plain = families.open_base(pair[0])
    for part in plain.stems:
        weights = [family.part_weights(part) for family in (*found, plain)]
        changed = 0
        for name in weights[0].entries:
            same = [each[name] if name in each else each[f"text_model.{name}"]
                    for each in weights]
            assert all(torch.equal(tensor, same[0]) for tensor in same[:-1]), (part, name)
            changed += not torch.equal(same[0], same[-1])
        assert (changed > 0) == (part != "vae")
    assert {family.scheduler_config["prediction_type"] for family in found} == {
        plain.scheduler_config["prediction_type"]}
    entries, said = tensorfile.peek(found[3].base, ModelFileError)
    before, _ = tensorfile.peek(pair[1], ModelFileError)
    assert {*before} - {*entries} == {"model_ema.decay"} and not {*entries} - {*before}
    assert "lora" not in said["modelspec.architecture"]
    models = [family.load(CPU, torch.float32) for family in found]
    texts = [model.encode_text(TEXTS)["hidden"] for model in models]
    assert all(torch.equal(text, texts[0]) for text in texts[1:])


def test_a_whole_model_without_its_autoencoder(pair: tuple[Path, Path], tmp_path: Path,
                                               settings: Callable[..., config.Config]) -> None:
    adapter = _adapter(pair[0], settings, tmp_path / "run")
    for number, base in enumerate(pair):
        out = tmp_path / f"made{number}.safetensors"
        merge.run(Merge(((adapter, 1.0),), str(out), "model", base, no_vae=True, dtype="fp16"),
                  Progress())
        with pytest.raises(ModelFileError, match="holds no vae"):
            families.open_base(out)
        found = families.open_base(out, chosen=Chosen(vae=pair[0]))
        assert {dtype for dtype, _ in found.part_weights("unet").entries.values()} == {"F16"}


@pytest.mark.parametrize(("wanted", "name"), [
    ("file", "one-model.safetensors"), ("file without VAE", "one-model.safetensors"),
    ("folder", "one-model")])
def test_a_run_leaves_the_whole_model(pair: tuple[Path, Path], tmp_path: Path, wanted: str,
                                      name: str, settings: Callable[..., config.Config]) -> None:
    """It is the base with the adapter's file merged into it."""
    base = pair[wanted == "folder"]
    made = plan.make(settings(f"model.base={base}", "train.steps=1", "network.algo=full",
                              "output.dtype=fp32", f"output.model={wanted}"))
    where = tmp_path / "run"
    where.mkdir()
    trainer.run(made, where, lambda event: None, set)
    trained = families.open_base(where / name, chosen=Chosen(vae=pair[0]))
    merge.run(Merge(((where / "one.safetensors", 1.0),), str(tmp_path / "m"), "model", base),
              Progress())
    merged = families.open_base(tmp_path / "m")
    for layer in merged.layers:
        assert torch.equal(trained.weight(layer), merged.weight(layer)), layer
