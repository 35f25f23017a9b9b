"""What a file says of itself: for other programs, for people, and to train again."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from lycoris import (
    compare,
    config,
    contestants,
    families,
    inspect,
    knobs,
    metadata,
    plan,
    presets,
    recipes,
    thumbnail,
    trainer,
)
from lycoris.adapterfile import AdapterFile
from lycoris.errors import ConfigError
from lycoris.runs import RunFolder

Settings = Callable[..., config.Config]


def trained(run: config.Config) -> tuple[plan.Plan, AdapterFile]:
    made = plan.make(plan.named(run))
    folder = plan.create(made)
    trainer.run(made, folder.path, lambda event: None, set)
    return made, AdapterFile(RunFolder(folder.path).adapter_file)


def test_a_trained_file_says_what_it_is(settings: Settings) -> None:
    made, file = trained(settings(
        "output.trigger=a zorb", "output.author=me", "output.license=CC0", "output.thumbnail=true",
        "sample.every=2", "train.steps=3", "network.algo=loha"))
    said = file.metadata
    assert file.path.stat().st_size == made.sizes.file_bytes_with_metadata
    assert said["modelspec.trigger_phrase"] == "a zorb" and "a zorb" in said["modelspec.usage_hint"]
    assert (said["modelspec.author"], said["modelspec.license"]) == ("me", "CC0")
    assert "modelspec.description" not in said, "what is not said is left out"
    for key in ("ss_network_dim", "ss_network_alpha", "ss_network_args", "ss_v2", "ss_steps",
                "ss_base_model_version", "ss_network_module", "ss_tag_frequency",
                "modelspec.architecture", "modelspec.sai_model_spec", "modelspec.date"):
        assert said[key], key
    assert json.loads(said["ss_network_args"])["algo"] == "loha"
    data = file.path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    digest = hashlib.sha256(data[start:]).hexdigest()
    assert said["sshs_model_hash"] == digest and said["modelspec.hash_sha256"] == f"0x{digest}"
    summary = json.loads(said["lycogui_summary"])
    assert summary["steps"] == 3 and float(summary["loss"]) > 0
    assert metadata.config_of(said).network == made.config.network
    picture = base64.b64decode(said["modelspec.thumbnail"].removeprefix(thumbnail.HEAD))
    with Image.open(io.BytesIO(picture)) as image:
        assert image.format == "JPEG" and max(image.size) <= thumbnail.SIDE
        image.load()


def test_no_thumbnail_where_no_sample_is_painted(settings: Settings) -> None:
    made, file = trained(settings("output.thumbnail=true", "sample.every=0", "train.steps=1"))
    assert "modelspec.thumbnail" not in file.metadata
    assert file.path.stat().st_size == made.sizes.file_bytes_with_metadata


@pytest.mark.parametrize("size", [(8, 8), (2000, 900)])
def test_every_picture_makes_a_thumbnail_of_the_same_length(size: tuple[int, int],
                                                            tmp_path: Path) -> None:
    """Also noise, which compresses worst."""
    noise = hashlib.shake_256(b"noise").digest(size[0] * size[1] * 3)
    Image.frombytes("RGB", size, noise).save(tmp_path / "a.png")
    assert len(thumbnail.of(tmp_path / "a.png")) == len(thumbnail.BLANK)


FACE = 'unet_target_name = ["to_k"]\n# mine: "ü"\n'


def test_a_preset_of_ones_own_travels_in_the_file(
        settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To a machine without it, and to one where another has its name; never over that one."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here / "presets", there):
        folder.mkdir(parents=True)
    monkeypatch.chdir(here)
    (here / "presets" / "face.toml").write_text(FACE, "utf-8")
    made, file = trained(settings("network.preset=face", "train.steps=1"))
    assert file.path.stat().st_size == made.sizes.file_bytes_with_metadata
    assert file.metadata[metadata.PRESET_KEY] == inspect.adapter(file.path)["preset"] == FACE
    assert recipes.of_file(file.path).taken_over().settings["network.preset"] == "face"

    monkeypatch.chdir(there)
    recipe = recipes.of_file(file.path)
    assert not (there / "presets").exists(), "only read"
    with pytest.raises(ConfigError, match="there is no 'face'"):
        plan.make(recipe.applied(made.config))
    used = recipe.taken_over()
    assert used.settings["network.preset"] == "face" and "presets" in used.text
    assert (there / "presets" / "face.toml").read_text("utf-8") == FACE
    again = plan.make(used.applied(made.config))
    assert [a.layer for a in again.assignments] == [a.layer for a in made.assignments]
    (there / "presets" / "face.toml").write_text('unet_target_name = ["to_v"]')
    for _ in range(2):
        used = recipes.of_file(file.path).taken_over()
        assert used.settings["network.preset"] == "face-2" and "another one" in used.text
    assert (there / "presets" / "face.toml").read_text() == 'unet_target_name = ["to_v"]'
    assert sorted(presets.own_names()) == ["face", "face-2"]


@pytest.mark.parametrize(("name", "text", "here"), [
    ("full", FACE, "full"), ("../../face", FACE, "face"), ("C:\\x\\face.toml", FACE, "face"),
    ("con", FACE, "preset"), ("face", "unet_target_names = 3", "face"), ("face", "=", "face")])
def test_a_preset_of_anybodys_is_looked_at(name: str, text: str, here: str, tmp_path: Path,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found, said = presets.take_over(name, text, families.built_in_presets())
    written = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.toml")]
    assert found == here and written == [f"presets/{here}.toml"] * (text == FACE and name != "full")
    assert ("cannot be used" in said) == (text != FACE)


@pytest.mark.parametrize(("given", "told"), [
    ("", ""), ("photos/cat", "photos/cat"), ("owner/name", "owner/name"), ("~/me/cat", "cat"),
    ("/home/me/photos/cat/", "cat"), ("../me/cat", "cat"), ("C:\\Users\\Me\\v1.safetensors",
     "v1.safetensors"), ("\\\\server\\me\\cat", "cat"),
    (str(config.ROOT / "assets" / "tiny-sd"), "assets/tiny-sd")])
def test_a_file_tells_names_and_not_where_they_are(given: str, told: str) -> None:
    run = knobs.replace(config.Config(), {
        "dataset.folder": given, "network.preset": given, "output.folder": "/home/me/runs",
        "dataset.more": ({"folder": given, "repeats": 2},)})
    said = metadata.shared(run)
    assert (said["dataset.folder"], said["network.preset"]) == (told, told)
    assert said["dataset.more"] == [{"folder": told, "repeats": 2}]
    assert "output.folder" not in said


def test_in_its_run_folder_an_adapter_is_trained_again_as_it_was(settings: Settings,
                                                                 tmp_path: Path) -> None:
    """Elsewhere its folders are names, and those that are not there are told."""
    made, file = trained(settings("train.steps=2", "train.checkpoint_every=1"))
    places = {path: knobs.get(made.config, path) for path in ("model.base", "dataset.folder")}
    checkpoint = next((file.path.parent / "checkpoints").glob("*.safetensors"))
    for path in (file.path, checkpoint):
        again, _ = contestants.recipe(path)
        recipe = recipes.of_file(path)
        assert {path: knobs.get(again, path) for path in places} == places
        assert {path: recipe.settings[path] for path in places} == places and not recipe.unknown
    moved = file.path.rename(tmp_path / "moved.safetensors")
    assert str(tmp_path) not in str(AdapterFile(moved).metadata)
    recipe = recipes.of_file(moved)
    assert not recipe.settings.keys() & places.keys()
    assert "dataset.folder=pictures: not on this machine." in recipe.text


def test_a_grid_tells_no_more_than_a_file(settings: Settings, tmp_path: Path) -> None:
    made, file = trained(settings("train.steps=1"))
    (tmp_path / "words").mkdir()
    run = settings(f"sample.embeddings={tmp_path / 'words'}")
    takers = [contestants.parse(name, tmp_path) for name in ("base", str(file.path))]
    done = compare.run(run, takers, tmp_path / "grid", lambda event: None, set)
    with Image.open(done.grid) as image:
        assert '"embeddings": "words"' in image.text["lycogui"]
        assert str(tmp_path) not in image.text["lycogui"]
