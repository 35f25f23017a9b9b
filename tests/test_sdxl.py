"""SDXL: it reads captions as diffusers does, is told its pictures' sizes, learns and paints."""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import small_models
import torch

from lycoris import config, events, families, objectives, plan, samplers, sampling, tensorfile
from lycoris.errors import AdapterError, ConfigError
from lycoris.families import Chosen

CPU = torch.device("cpu")
TEXTS = ["a zorb on grass", ""]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_models.make(tmp_path_factory.mktemp("models") / "small-xl", "sdxl")


@pytest.fixture
def run(base: Path, settings: Callable[..., config.Config]) -> Callable[..., config.Config]:
    return lambda *own: settings(f"model.base={base}", "network.dim=1", "train.steps=2",
                                 "sample.every=2", *own)


def test_captions_are_read_as_diffusers_reads_them(base: Path) -> None:
    from diffusers import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(base)
    hidden, _, pooled, _ = pipe.encode_prompt(TEXTS, do_classifier_free_guidance=False)
    model = families.open_base(base).load(CPU, torch.float32)
    own = model.encode_text(TEXTS)
    assert torch.equal(own["hidden"], hidden) and torch.equal(own["pooled"], pooled)
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([3, 700])
    sizes = [(48, 40, 2, 0, 16, 16), (16, 16, 0, 0, 16, 16)]
    theirs = pipe.unet(x, t, hidden, added_cond_kwargs={
        "text_embeds": pooled, "time_ids": torch.tensor(sizes)}).sample
    assert torch.equal(model.predict(x, t, model.with_sizes(own, sizes)), theirs)
    other = model.predict(x, t, model.with_sizes(own, [sizes[1]] * 2))
    assert not torch.equal(other[0], theirs[0]) and torch.allclose(other[1], theirs[1], atol=1e-5)


def test_a_picture_is_painted_as_diffusers_paints_it(base: Path) -> None:
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(base)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    model = families.open_base(base).load(CPU, torch.float32)
    how = sampling.Settings(3, 5.0, "DDIM", 16, 16)
    own = next(sampling.paint(model, [sampling.Job(TEXTS[0], 5)], how))
    start = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(5))
    theirs = pipe(TEXTS[0], negative_prompt="", num_inference_steps=3, guidance_scale=5.0,
                  latents=start, height=16, width=16, output_type="pt").images[0]
    mine = torch.tensor(list(own.get_flattened_data()), dtype=torch.float32).view(16, 16, 3) / 255
    assert (mine - theirs.permute(1, 2, 0)).abs().max() < 2 / 255


@pytest.mark.parametrize("text", ["true", "false"])
def test_a_run_learns_in_every_part_and_paints(run: Callable[..., config.Config], text: str,
                                               tmp_path: Path) -> None:
    from lycoris import trainer

    made = plan.make(run(f"network.text_encoder={text}"))
    told: list[events.Event] = []
    where = tmp_path / "run"
    where.mkdir()
    session = trainer.Session(made, where, told.append)
    session.prepare(set)
    assert session.train(set).reason == "done"
    steps = [each.loss for each in told if isinstance(each, events.Step)]
    assert len(steps) == 2 and all(0 < loss < 100 for loss in steps)
    assert len(list((where / "samples").glob("*.png"))) == 2
    tensors, said = tensorfile.read(where / "one.safetensors", AdapterError)
    assert said["ss_base_model_version"] == "sdxl_base_v1-0"
    prefixes = {key.partition("_")[2].partition("_")[0] for key in tensors}
    assert prefixes == ({"unet", "te1", "te2"} if text == "true" else {"unet"})
    for prefix in prefixes:
        ups = [t for key, t in tensors.items() if key.startswith(f"lora_{prefix}")
               and "lora_up" in key]
        assert sum(bool(t.any()) for t in ups) > len(ups) / 2, prefix
    watch = weakref.ref(session.model.modules["unet"])
    del session
    gc.collect()
    assert watch() is None, "the model is released with the run"


def test_zero_terminal_snr_reaches_training_and_samplers(tmp_path: Path) -> None:
    base = small_models.make(tmp_path / "v", "sdxl", "v_prediction", rescale_betas_zero_snr=True)
    family = families.open_base(base)
    assert family.metadata["modelspec.prediction_type"] == "v"
    assert family.metadata["ss_zero_terminal_snr"] == "True"
    model = family.load(CPU, torch.float32)
    assert isinstance(model.objective, objectives.Velocity)
    last = torch.tensor([999])
    x0, n = torch.randn(2, 1, 4, 8, 8)
    assert torch.equal(model.objective.noised(x0, n, last), n)
    assert torch.equal(model.objective.target(x0, n, last), -x0)
    for name in (name for name in samplers.ROWS if not samplers.problem(name)):
        scheduler = samplers.make(name, model.scheduler_config)
        scheduler.set_timesteps(4)
        assert scheduler.timesteps[0] == 999, name
        assert scheduler.alphas_cumprod[-1] < 1e-6, name
    pictures = sampling.paint(model, [sampling.Job("a zorb", 1)], sampling.Settings(
        2, 4.0, "Euler a", 16, 16))
    assert next(pictures).size == (16, 16)


def test_the_settings_say_what_the_files_do_not(base: Path) -> None:
    family = families.open_base(base, chosen=Chosen("v_prediction", "on"))
    assert family.scheduler_config["timestep_spacing"] == "trailing"
    model = family.load(CPU, torch.float32)
    assert model.objective.name == "v_prediction" and model.objective.alphas_cumprod[-1] == 0
    assert families.open_base(base).scheduler_config.get("rescale_betas_zero_snr") in (None, False)
    with pytest.raises(ConfigError, match="needs a model that predicts v"):
        families.open_base(base, chosen=Chosen(zero_snr="on"))


def test_a_vae_that_is_safe_in_half_precision_stays_in_it(base: Path, tmp_path: Path) -> None:
    from lycoris import memory

    other = Path(shutil.copytree(base, tmp_path / "safe"))
    file = other / "vae" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"force_upcast": False}))
    safe, plain = (families.open_base(path) for path in (other, base))
    assert safe.load(CPU, torch.bfloat16).vae.dtype == torch.bfloat16
    model = plain.load(CPU, torch.bfloat16)
    assert model.vae.dtype == torch.float32
    picture = torch.rand(1, 3, 16, 16) * 2 - 1
    latents = safe.load(CPU, torch.bfloat16).encode_image(picture)
    assert torch.allclose(latents, model.encode_image(picture), atol=0.02)
    made = plan.make(config.load(None, [f"model.base={base}", "dataset.bucket_step=4",
                                        "model.dtype=bf16"]), need_dataset=False)
    light = dataclasses.replace(made, family=safe)
    assert memory.predict(light, "cuda").peak <= memory.predict(made, "cuda").peak


def test_a_vae_as_a_file_is_not_what_the_bases_own_is(
        base: Path, run: Callable[..., config.Config], tmp_path: Path) -> None:
    """The base's own may be the one that is safe in half precision; SDXL's is not."""
    from lycoris import memory, relief

    safe = Path(shutil.copytree(base, tmp_path / "safe"))
    said = safe / "vae" / "config.json"
    said.write_text(json.dumps(json.loads(said.read_text()) | {"force_upcast": False}))
    file = base / "vae" / "diffusion_pytorch_model.safetensors"
    given = f"model.base={safe}", f"model.vae={file}", "model.dtype=bf16"

    def held(*own: str) -> torch.dtype:
        settings = run(*given, *own).model
        return families.open_chosen(settings).load(CPU, torch.bfloat16).vae.dtype

    assert held() == held("model.vae_dtype=fp32") == torch.float32
    assert held("model.vae=", "model.vae_dtype=fp32") == torch.float32
    assert held("model.vae=") == held("model.vae_dtype=half") == torch.bfloat16
    assert relief.after_divergence(run(*given, "model.vae_dtype=half"), "bf16", "latents")[0] == (
        "resume with model.vae_dtype=fp32")
    assert "vae_dtype" not in str(relief.after_divergence(run(*given), "bf16", "latents"))

    def weights(*own: str) -> int:
        made = plan.make(run("model.family=sdxl", "model.dtype=bf16", "dataset.bucket_step=64",
                             "dataset.resolution=1024", *own), need_dataset=False)
        items = memory.predict(made, "cuda").phases[0].items
        return next(item.bytes for item in items if item.name == "VAE weights")

    assert weights("model.vae_dtype=half") * 2 == weights("model.vae_dtype=fp32") == weights()


def test_memory_counts_both_text_encoders(run: Callable[..., config.Config], base: Path) -> None:
    from lycoris import activations, footprint, memory

    made = plan.make(run())
    footprint.keep(activations.trace(made.family), made.config.output.folder)
    found = memory.predict(made, "cpu")
    names = {item.name: item.bytes for item in found.phases[0].items}
    model = made.family.load(CPU, torch.float32)
    for part, module in (("text encoder", model.encoders[0].module), ("UNet", model.unet),
                         ("second text encoder", model.encoders[1].module), ("VAE", model.vae)):
        assert names[f"{part} weights"] == 4 * sum(p.numel() for p in module.parameters()), part
