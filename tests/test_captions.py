"""Captions in files of other names, and what is told of them where the base is not whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from small_models import write_single

from lycogui import views
from lycogui.workspace import Workspace
from lycoris import modelfiles, recipes
from lycoris.__main__ import main
from lycoris.data import captions, folder
from lycoris.settings import Config


@pytest.fixture
def mixed(pictures: Path) -> Path:
    """1 has a .caption alone, 2 has both, 3 has neither, the others a .txt."""
    (pictures / "1.txt").rename(pictures / "1.caption")
    (pictures / "2.caption").write_text("another", "utf-8")
    (pictures / "3.txt").unlink()
    (pictures / "stray.caption").write_text("of no picture", "utf-8")
    return pictures


def test_a_caption_file_is_read_where_there_is_no_txt(mixed: Path) -> None:
    found = folder.scan(mixed)
    assert [p.caption for p in found.pictures[:3]] == ["a ball, number 1", "a ball, number 2", None]
    assert found.problems(8) == {"no caption": [found.pictures[2]]}
    assert [(each.path.name, each.why) for each in found.left_out] == [
        ("2.caption", "the picture's .txt file is its caption")]


def test_it_is_saved_where_it_came_from(mixed: Path) -> None:
    for name in ("1", "2", "3"):
        captions.write(mixed / f"{name}.png", "new")
    found = {file.name: file.read_text("utf-8") for file in mixed.iterdir()
             if file.suffix != ".png" and file.name[0] in "123"}
    assert found == {"1.caption": "new\n", "2.txt": "new\n", "2.caption": "another",
                     "3.txt": "new\n"}
    (mixed / "1.caption").write_bytes("café".encode("latin-1"))
    assert "1.caption is not UTF-8" in folder.scan(mixed).pictures[0].caption_problem
    captions.write(mixed / "1.png", "tea")
    assert (mixed / "1.caption.bak").read_bytes() == "café".encode("latin-1")
    assert captions.read(mixed / "1.png") == ("tea", "")


def test_the_change_of_all_captions_and_its_undo(mixed: Path) -> None:
    before = {file.name: file.read_bytes() for file in mixed.iterdir() if file.suffix != ".png"}
    edits = captions.by_rules(folder.scan(mixed).captions(), trigger="orb")
    captions.apply(edits)
    assert (mixed / "1.caption").read_text() == "orb, a ball, number 1\n"
    assert (mixed / "3.txt").read_text() == "orb\n" and not (mixed / "1.txt").exists()
    captions.apply(captions.reverted(edits))
    assert before == {file.name: file.read_bytes() for file in mixed.iterdir()
                      if file.suffix != ".png"}


def test_the_page_shows_edits_and_names_the_file(workspace: Workspace, mixed: Path) -> None:
    first = views.gallery(workspace, {})["items"][0]
    assert (first["caption"], first["caption_file"]) == ("a ball, number 1", "1.caption")
    told = views.save_caption(workspace, {"folder": str(mixed), "name": "1.png",
                                          "text": "a new one", "before": "a ball, number 1"})
    assert told["caption"] == "a new one"
    assert (mixed / "1.caption").read_text() == "a new one\n" and not (mixed / "1.txt").exists()
    assert [each["names"] for each in views.epoch(workspace, {})["left_out"]] == [["2.caption"]]


def _recipe(home: Path, said: str = "") -> recipes.Recipe:
    return recipes.read('network_module = "networks.lora"\n'
                        f"train_data_dir = {json.dumps(str(home))}\n{said}\n")


def test_kohyas_recipes_tell_of_captions_that_are_read_otherwise(mixed: Path) -> None:
    assert "several lines" not in _recipe(mixed).text
    (mixed / "4.txt").write_text("one\n\n two\n", "utf-8")
    (mixed / "2.caption").write_text("not\nused", "utf-8")
    assert "Captions of several lines (1 in these folders): that trainer" in _recipe(mixed).text
    assert "several lines" not in _recipe(mixed, "enable_wildcard = true").text
    assert "Captions of several lines: that" in _recipe(mixed / "none").text, "it cannot be known"
    assert "no .txt file" in _recipe(mixed, 'caption_extension = ".caption"').text
    assert not _recipe(mixed, 'caption_extension = ".txt"').unknown
    assert "read from .txt and .caption" in _recipe(mixed, 'caption_extension = ".tags"').text


def test_a_folder_of_caption_files_is_written_for_kohya(mixed: Path,
                                                        settings: Callable[..., Config]) -> None:
    for file in mixed.glob("*.txt"):
        file.unlink()
    text = recipes.write(settings(), "kohya").text
    assert text.count('caption_extension = ".caption"') == 1
    assert "no .txt file" in recipes.read(text).text


def test_the_verb_counts_without_a_tokenizer(
        small_base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(modelfiles, "cached_words", list)
    whole = shutil.copytree(small_base, tmp_path / "base")
    file = write_single(whole, tmp_path / "alone.safetensors")
    given = [f"dataset.folder={pictures}", f"model.base={file}", "dataset.resolution=16",
             "dataset.bucket_step=4"]
    assert main(["dataset", *given]) == 0
    told = capsys.readouterr().out
    assert "5 in" in told and "An epoch" in told
    assert "Tokens" in told and "not counted. alone.safetensors holds no tokenizer" in told
    assert "lycoris download openai/clip-vit-large-patch14" in told
    assert main(["dataset", *given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["tokens"] for each in found["items"]] == [None] * 5
    assert "no tokenizer" in found["tokens_unknown"] and found["epoch"]["shown"] == 5
    assert main(["dataset", *given[:1], f"model.base={tmp_path / 'none'}", "--json"]) == 0
    assert "no base model" in json.loads(capsys.readouterr().out)["tokens_unknown"]
    assert main(["dataset", *given, f"model.base={whole}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert all(each["tokens"] for each in found["items"]) and not found["tokens_unknown"]
