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

from lycoris import config, metadata, plan, thumbnail, trainer
from lycoris.adapterfile import AdapterFile
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
