"""What follows the base model, and what is painted where nobody has said it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import small_models

from lycoris import config, following, knobs, plan, promptfile, prompts, sampling
from lycoris.errors import ModelFileError
from lycoris.settings import Config, ModelConfig

Settings = Callable[..., Config]
EMBEDDED = Config().model.base


@pytest.fixture(scope="module")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(small_models.make(tmp_path_factory.mktemp("base") / "sd15", "sd15"))


def test_what_was_the_old_bases_wish_is_the_new_ones(sd15: str) -> None:
    embedded = config.load()
    run = replace(embedded, model=ModelConfig(base=sd15))
    changed = following.moved(run, EMBEDDED)
    moved = knobs.replace(run, changed)
    assert moved == config.build({"model.base": sd15, **following.recommended(run)})
    assert (moved.dataset.resolution, moved.dataset.bucket_step) == (16, 16), "as its UNet says"
    assert moved.train.steps == Config().train.steps and moved.sample.prompts == ()
    back = replace(moved, model=ModelConfig())
    assert knobs.replace(back, following.moved(back, sd15)) == embedded


def test_what_a_person_has_set_stays(sd15: str) -> None:
    run = knobs.replace(config.load(), {"train.steps": 77, "optimizer.lr": 2e-5,
                                        "sample.prompts": ("mine",), "model.base": sd15})
    changed = following.moved(run, EMBEDDED)
    assert not changed.keys() & {"train.steps", "optimizer.lr", "sample.prompts"}
    assert changed["train.batch_size"] == 1


def test_a_base_that_is_gone_wanted_the_defaults_and_a_new_one_must_be_there(
        sd15: str, tmp_path: Path) -> None:
    run = config.build({"model.base": sd15, "train.steps": 300})
    assert following.moved(run, str(tmp_path / "gone")) == {
        "dataset.resolution": 16, "dataset.bucket_step": 16, "optimizer.text_encoder_lr": 5e-5}
    with pytest.raises(ModelFileError, match="no base model"):
        following.moved(config.build({"model.base": str(tmp_path / "gone")}), sd15)


def test_without_a_prompt_captions_are_painted(settings: Settings, pictures: Path) -> None:
    (pictures / "1.txt").write_text("# a (red) ball --w 8 \\o/, [big]\n")
    (pictures / "2.txt").unlink()
    made = plan.make(settings("sample.prompts=[]", "dataset.caption_prefix=tok"))
    first, second = promptfile.read(made.config.sample)
    assert second.text == "tok" and first.own == {}
    pieces = [piece for part in prompts.emphasis.parse(first.text) for piece in part]
    assert {piece.weight for piece in pieces} == {1.0}
    assert "".join(piece.text for piece in pieces) == "tok # a (red) ball - w 8 \\o/, [big]"
    assert plan.make(settings("sample.prompts=[]")).config.sample.prompts[-1] == (
        "a ball, number 3"), "no caption, no prompt"
    named = plan.make(settings("sample.prompts=[]", f"sample.prompts_file={pictures / '3.txt'}"))
    assert named.config.sample.prompts == ()


@pytest.mark.parametrize(("words", "painted"), [
    ((), "pictures"), (("output.trigger= zrb",), "zrb"),
    (('sample.prompts=["# later"]',), "pictures"),
    (("sample.prompts_file={pictures}/none.txt",), "pictures")])
def test_there_is_always_something_to_paint(settings: Settings, pictures: Path,
                                            words: tuple[str, ...], painted: str) -> None:
    """Neither prompts nor captions: the trigger, or the folder's name; and the plan says which."""
    for caption in pictures.glob("*.txt"):
        caption.unlink()
    (pictures / "none.txt").write_text("# nothing yet\n")
    words = tuple(word.format(pictures=pictures) for word in words)
    made = plan.make(settings("sample.prompts=[]", *words))
    assert [job.prompt for job in sampling.while_training(made.config.sample)] == [painted]
    assert made.summary()["prompts"] == [painted]


def test_prompts_about_other_pictures_go(pictures: Path, tmp_path: Path) -> None:
    """The embedded base's are about its own sample, wherever a copy of that lies."""
    own = config.load()
    assert own.sample.prompts and not following.for_others(own)
    copy = knobs.replace(own, {"dataset.folder": str(tmp_path / "zorb")})
    assert not following.for_others(copy)
    mine = knobs.replace(own, {"dataset.folder": str(pictures)})
    assert following.for_others(mine) == {"sample.prompts": ()}
    said = knobs.replace(mine, {"sample.prompts": ("a ball",)})
    assert not following.for_others(said), "somebody has set them"
    assert config.load(None, [f"dataset.folder={pictures}"]).sample.prompts == ()
    assert "sample.prompts" not in following.recommended(mine)
