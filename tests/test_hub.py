"""Base models under their names on Hugging Face: in the cache, and from a server that answers as
Hugging Face does."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import TINY_SD
from small_hub import NAME, SHA, Hub, files_of

from lycoris import __main__, config, events, families, hub, modelfiles, plan
from lycoris.errors import DiskError, ModelFileError, NotDownloaded
from lycoris.progress import Progress, Stopped

SECRET = "hf_token_that_is_never_shown"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of Hugging Face, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached(cache: Path, base: Path) -> Path:
    """A model as the cache holds it: files by content, and a snapshot of links to them."""
    home = cache / f"models--{NAME.replace('/', '--')}"
    for file in (file for file in base.rglob("*") if file.is_file()):
        blob = home / "blobs" / hashlib.sha256(str(file).encode()).hexdigest()
        link = home / "snapshots" / SHA / file.relative_to(base)
        for each in (blob, link):
            each.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blob)
        link.symlink_to(blob)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(SHA)
    return home / "snapshots" / SHA


@pytest.fixture
def remote(cache: Path, small_base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The small base with its UNet in two precisions, and what nobody wants."""
    from huggingface_hub import constants

    files = files_of(small_base)
    whole = files["unet/diffusion_pytorch_model.safetensors"]
    files |= {"unet/diffusion_pytorch_model.fp16.safetensors": whole,
              "unet/diffusion_pytorch_model.bin": b"x", "text_encoder/model.ckpt": b"x",
              "pipeline.py": b"x", "README.md": b"x", "safety_checker/model.safetensors": b"x"}
    made = Hub(files)
    for name, value in (("ENDPOINT", made.url), ("HF_HUB_OFFLINE", False),
                        ("HUGGINGFACE_CO_URL_TEMPLATE",
                         made.url + "/{repo_id}/resolve/{revision}/{filename}")):
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    yield made
    made.close()


def test_a_name_is_used_from_the_cache(cache: Path, small_base: Path, tmp_path: Path,
                                       settings: Callable[..., config.Config]) -> None:
    """Without a network, under its own name, the same facts as from its folder."""
    folder = cached(cache, small_base)
    run = settings(f"model.base={NAME}")
    family = families.open_chosen(run.model)
    assert family.base == folder and family.called == NAME
    assert family.layers == families.open_base(small_base).layers
    made = plan.make(run)
    assert made.family.metadata["ss_sd_model_name"] == NAME
    assert __main__.main(["estimate", f"model.base={NAME}", f"output.folder={tmp_path}"]) == 0
    hub.require(run.model, Progress())  # nothing to do


def test_what_is_not_in_the_cache_is_said(cache: Path, small_base: Path) -> None:
    with pytest.raises(NotDownloaded, match="is not in the Hugging Face cache") as caught:
        families.open_base(Path(NAME))
    assert caught.value.name == NAME and f"lycoris download {NAME}" in caught.value.fix
    folder = cached(cache, small_base)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(
        folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(NotDownloaded, match="no unet"):
        families.open_base(Path(NAME))
    assert families.open_base(Path(NAME), "sd15").known, "its sizes are known without files"
    for text in ("nowhere/model.safetensors", "/no/where", "a/b/c", "x"):
        with pytest.raises(ModelFileError) as other:
            families.open_base(Path(text))
        assert not isinstance(other.value, NotDownloaded)


def test_only_what_is_needed_is_downloaded(remote: Hub, cache: Path, small_base: Path) -> None:
    heard: list[events.Event] = []
    offer = hub.look(NAME)
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in offer.files
    assert "text_encoder/model.safetensors" in offer.files
    whole = hub.look(NAME, half=False)
    assert "unet/diffusion_pytorch_model.safetensors" in whole.files
    assert not any(path.endswith((".bin", ".ckpt", ".py", ".md")) or "safety" in path
                   for path in offer.files)
    assert offer.bytes == sum(len(remote.files[path]) for path in offer.files)
    said = hub.fetch(offer, Progress(heard.append))
    folder = hub.snapshot(NAME)
    assert folder and said["folder"] == str(folder) and said["bytes"] == offer.bytes
    assert {file.relative_to(folder).as_posix() for file in folder.rglob("*")
            if file.is_file()} == set(offer.files)
    assert families.open_base(Path(NAME)).layers == families.open_base(small_base).layers
    stages = [each for each in heard if isinstance(each, events.Stage)]
    assert stages and NAME in stages[-1].name and stages[-1].done == stages[-1].total
    assert not hub.look(NAME, half=False).missing, "what is there counts, in either precision"


def test_the_commands_download_what_they_are_given(
        remote: Hub, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sample", f"model.base={NAME}", "sample.steps=1", "sample.seeds=1",
             "dataset.resolution=16", "dataset.bucket_step=4", 'sample.prompts=["a ball"]',
             "train.device=cpu", "--out", str(tmp_path / "out")]
    assert __main__.main(words) == 0
    assert list((tmp_path / "out").glob("*.png"))
    remote.asked.clear()
    assert __main__.main(words) == 0
    assert not remote.asked, "what is in the cache is used without a network"
    shutil.rmtree(cache)
    followed = tmp_path / "followed"
    assert __main__.main(["download", NAME, "--follow", str(followed)]) == 0
    assert NAME in capsys.readouterr().out
    assert json.loads((followed / "result.json").read_text())["name"] == NAME


def test_a_download_stops_and_goes_on(remote: Hub) -> None:
    """Stopped before the last file: no model yet; what had come is not asked for again."""
    offer, heard = hub.look(NAME), []
    largest = max(offer.missing, key=offer.missing.__getitem__)

    def asked() -> set[str]:
        gets = [path for method, path in remote.asked if method == "GET"]
        return {"stop"} if any(path.endswith(largest) for path in gets) else set()

    with pytest.raises(Stopped):
        hub.fetch(offer, Progress(heard.append, asked))
    assert hub.snapshot(NAME) is None
    rest = hub.look(NAME)
    assert list(rest.missing) == [largest]
    remote.asked.clear()
    hub.fetch(rest, Progress())
    assert hub.snapshot(NAME)
    gets = {path.partition(f"{SHA}/")[2] for method, path in remote.asked
            if method == "GET" and SHA in path}
    assert gets == {largest}


@pytest.mark.parametrize(("refuse", "name", "said"), [
    ((401, "RepoNotFound"), NAME, "knows no model"),
    ((403, "GatedRepo"), NAME, "is gated"),
    ((500, ""), NAME, "answered 500"),
    (None, "someone/other", "knows no model")])
def test_what_hugging_face_refuses_is_said_in_words(
        remote: Hub, refuse: tuple[int, str] | None, name: str, said: str) -> None:
    remote.refuse = refuse
    with pytest.raises(ModelFileError, match=said) as caught:
        hub.look(name)
    assert caught.value.fix and SECRET not in str(caught.value)


def test_no_network_no_room_and_no_use_are_said_in_words(
        remote: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    offer = hub.look(NAME)
    with pytest.raises(DiskError, match="MiB are free"):
        hub.fetch(hub.Offer(**{**vars(offer), "free": 1000}), Progress())
    del remote.files["vae/diffusion_pytorch_model.safetensors"]
    with pytest.raises(ModelFileError, match="its vae not as one .safetensors"):
        hub.look(NAME)
    del remote.files[hub.INDEX]
    remote.files |= {"model-v5.safetensors": b"x"}
    with pytest.raises(ModelFileError, match=r"model-v5\.safetensors") as caught:
        hub.look(NAME)
    assert f"hf download {NAME} model-v5.safetensors" in caught.value.fix
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelFileError, match="HF_HUB_OFFLINE is set"):
        hub.look(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelFileError, match="cannot be reached"):
        hub.look(NAME)


def test_the_tokenizer_of_single_files_is_downloaded_too(
        remote: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "CLIP", ((NAME, ""),))
    monkeypatch.setattr(modelfiles, "CLIP", ((NAME, ""),))
    remote.files |= {name: (TINY_SD / "tokenizer" / name).read_bytes()
                     for name in ("tokenizer.json",)} | {"model.safetensors": b"x"}
    offer = hub.look(NAME)
    assert set(offer.files) == {"tokenizer.json"}
    assert modelfiles.cached_words() == []
    folder = hub.fetch(offer, Progress())["folder"]
    assert modelfiles.cached_words() == [Path(folder)]
