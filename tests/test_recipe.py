"""The recipe of the embedded base model, and the model, checker and dataset that it ships."""

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from assets.recipe import checker, dataset, diffusion, evaluate, pictures, tokenizer, vae
from assets.recipe.creatures import creature_named, creature_names
from assets.recipe.draw import paint, sample_object, sample_training
from assets.recipe.words import BACKGROUNDS, COLOURS, CONCEPT, OBJECTS, Scene, is_held_out

ASSETS = Path(__file__).parents[1] / "assets"
MODEL = ASSETS / "tiny-sd"
ZORB = ASSETS / "datasets" / "zorb"


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A scratch folder with a few pictures and a tokenizer."""
    folder = tmp_path_factory.mktemp("recipe")
    pictures.draw_pictures(folder, 64, seed=0, processes=1)
    tokenizer.make_tokenizer(pictures.load_pictures(folder)[1], folder / "out" / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def judge() -> checker.Checker:
    return checker.load_checker()


@pytest.fixture(scope="module")
def pipeline():
    return diffusion.load_pipeline(MODEL)


def test_a_scene_is_drawn_the_same_every_time():
    for number in range(20):
        scene, _ = sample_training(Random(number))
        assert paint(scene).tobytes() == paint(scene).tobytes()
        assert sample_training(Random(number))[0] == scene


def test_pictures_do_not_depend_on_how_they_are_shared_out():
    whole, captions = pictures.draw_chunk(3, 0, 6)
    second, rest = pictures.draw_chunk(3, 4, 2)
    assert np.array_equal(whole[4:], second)
    assert captions[4:] == rest


def test_a_seed_decides_only_small_variations():
    first = Scene("circle", "white", "red", seed=1)
    a, b = (np.asarray(paint(scene), float) for scene in (first, replace(first, seed=2)))
    assert 0 < np.abs(a - b).mean() < 12


def test_training_never_shows_held_out_pairs_or_the_concept():
    pairs = {(c, o) for c in COLOURS for o in OBJECTS if is_held_out(c, o)}
    assert len(pairs) == 17
    for number in range(4000):
        scene, caption = sample_training(Random(number))
        assert (scene.colour, scene.thing) not in pairs
        assert CONCEPT not in caption
        assert scene.background in BACKGROUNDS


def test_no_creature_resembles_the_concept():
    assert creature_named(CONCEPT).resembles_concept
    assert CONCEPT not in creature_names()
    assert not any(creature_named(name).resembles_concept for name in creature_names())


def test_captions_say_what_is_drawn():
    scene = Scene("heart", "orange", "red", style="outlined", size="small", place="at the top")
    assert scene.caption() == "a small outlined red heart at the top on an orange background"
    assert Scene("moon", "at night", "orange").caption() == "an orange moon at night"
    assert Scene("zorb", "at night").caption("a picture of ") == "a picture of a zorb at night"


@pytest.mark.parametrize("shipped", [False, True])
def test_every_word_of_the_grammar_is_one_token(work, shipped):
    words = diffusion.load_tokenizer(MODEL if shipped else work / "out")
    for number in range(300):
        scene = sample_object(Random(number))
        assert len(words.tokenize(scene.caption())) == len(scene.caption().split())
    assert len(words.tokenize(CONCEPT)) > 1
    assert words.pad_token_id == words.eos_token_id == len(words) - 1


TINY_VAE = vae.VaeSettings(steps=6, batch=2, widths=(16, 16, 16), save_every=3)
TINY_DIFFUSION = diffusion.DiffusionSettings(
    steps=6, batch=2, widths=(16, 16), text_width=16, text_layers=1, save_every=3, preview_every=99
)


class Interrupted(Exception):
    pass


def interrupt_at(monkeypatch, module, name: str, count: int) -> None:
    """Makes the given function fail when it is called once more than `count` times."""
    original, calls = getattr(module, name), []

    def failing(*arguments, **options):
        calls.append(1)
        if len(calls) > count:
            raise Interrupted
        return original(*arguments, **options)

    monkeypatch.setattr(module, name, failing)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    files = sorted(folder.rglob("*.safetensors"))
    assert files
    return {f"{file.parent.name}/{k}": w for file in files for k, w in load_file(file).items()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_interrupted_stage_ends_with_the_same_weights(work, tmp_path, monkeypatch, precision):
    vae_settings = replace(TINY_VAE, precision=precision)
    diffusion_settings = replace(TINY_DIFFUSION, precision=precision)
    results = []
    for name in ("whole", "interrupted"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "pictures").symlink_to(work / "pictures")
        (folder / "out").mkdir()
        (folder / "out" / "tokenizer").symlink_to(work / "out" / "tokenizer")
        stages = (
            (vae, "vae_loss", lambda f=folder: vae.train_vae(f, f / "out", vae_settings)),
            (
                diffusion,
                "random_times",
                lambda f=folder: diffusion.train_diffusion(f, f / "out", diffusion_settings),
            ),
        )
        for module, function, run in stages:
            if name == "interrupted":
                with monkeypatch.context() as patch, pytest.raises(Interrupted):
                    interrupt_at(patch, module, function, 4)
                    run()
            run()
        results.append(weights(folder / "out"))
    whole, interrupted = results
    assert whole.keys() == interrupted.keys()
    assert all(torch.equal(whole[name], interrupted[name]) for name in whole)


def test_standardised_latents_keep_the_pictures(work):
    torch.manual_seed(0)
    autoencoder = vae.new_autoencoder((16, 16, 16))
    vae.start_as_thumbnail(autoencoder)
    pixels, _ = pictures.load_pictures(work)
    before = vae.decode(autoencoder, vae.encode(autoencoder, pixels))
    vae.standardise(autoencoder, pixels, noise=0.1)
    latents = vae.encode(autoencoder, pixels)
    after = vae.decode(autoencoder, latents)
    assert np.abs(before.astype(int) - after).max() <= 1
    assert latents.mean((0, 2, 3)).abs().max() < 1e-3
    assert abs(float(latents.std()) - 1) < 1e-3


def test_the_checker_reads_drawn_pictures(judge):
    samples = [checker.draw_sample(Random(f"test {number}")) for number in range(200)]
    readings = judge.read([image for image, _ in samples])
    right = [
        (
            checker.KINDS.index(reading.object) == kind,
            checker.COLOUR_NAMES.index(reading.colour) == colour,
            checker.BACKGROUNDS.index(reading.background) == background,
        )
        for reading, (_, (kind, colour, background)) in zip(readings, samples, strict=True)
    ]
    assert np.mean(right, 0).min() >= 0.95


def test_the_checker_knows_the_concept_from_creatures(judge):
    random = Random("near")
    near = [
        paint(Scene("somebody", "white", seed=n), creature=checker.near_concept(random))
        for n in range(40)
    ]
    calls = [reading.object for reading in judge.read(near)]
    assert calls.count(CONCEPT) <= 1
    zorbs = [paint(Scene(CONCEPT, background)) for background in ("red", "by the sea", "black")]
    assert {reading.object for reading in judge.read(zorbs)} == {CONCEPT}


def test_the_sample_dataset(judge):
    names = sorted(path.stem for path in ZORB.glob("*.png"))
    captions = [(ZORB / f"{name}.txt").read_text(encoding="utf-8") for name in names]
    images = [Image.open(ZORB / f"{name}.png") for name in names]
    assert len(names) == 16
    assert captions == [scene.caption() + "\n" for scene in dataset.dataset_scenes()]
    assert all(image.size == (256, 256) for image in images)
    assert max((ZORB / f"{name}.png").stat().st_size for name in names) < 8192
    assert {reading.object for reading in judge.read(images)} == {CONCEPT}
    assert not any(out in caption for caption in captions for out in dataset.LEFT_OUT)


def test_the_shipped_folder_is_small_and_plain():
    assert evaluate.folder_size(MODEL) < 20_000_000
    assert {path.suffix for path in MODEL.rglob("*") if path.is_file()} <= {
        ".json", ".md", ".safetensors", ".toml", ".txt"
    }  # fmt: skip
    for path in MODEL.rglob("*.json"):
        assert "_name_or_path" not in path.read_text(encoding="utf-8")
    scheduler = json.loads((MODEL / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == "v_prediction"
    for name, weight in weights(MODEL).items():
        assert weight.dtype == torch.float16, name
        assert weight.isfinite().all(), name


def test_the_shipped_model_paints_what_it_is_asked_for(pipeline, judge):
    scenes = [
        Scene("circle", "white", "red"),
        Scene("boat", "by the sea", "green"),
        Scene("cat", "pink", "orange"),
        Scene("tree", "in the snow", "pink"),
        Scene("star", "at night", "yellow"),
        Scene("diamond", "yellow", "red"),  # a held-out pair
    ]
    captions = [scene.caption() for scene in scenes]
    readings = judge.read(evaluate.painted(pipeline, captions))
    assert [reading.object for reading in readings] == [scene.thing for scene in scenes]
    assert [reading.colour for reading in readings] == [scene.colour for scene in scenes]
    assert [reading.background for reading in readings] == [scene.background for scene in scenes]


def test_the_shipped_model_does_not_know_the_concept(pipeline, judge):
    captions = [Scene(CONCEPT, background).caption() for background in ("red", "on grass")] * 3
    readings = judge.read(evaluate.painted(pipeline, captions))
    assert CONCEPT not in [reading.object for reading in readings]
