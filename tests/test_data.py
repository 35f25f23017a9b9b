"""Folders of pictures, captions, buckets, batches, and what is said of what cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lycoris import caption, captioners
from lycoris.data import buckets, captions, folder
from lycoris.data.loader import Batches, batches_per_epoch
from lycoris.errors import ConfigError, DatasetError, LycorisError


def test_scan_reads_headers_and_captions_in_natural_order(tmp_path: Path,
                                                          make_pictures: Callable) -> None:
    make_pictures(tmp_path, 11)
    (tmp_path / "notes.md").write_text("not a picture")
    (tmp_path / "folder.png").mkdir()
    dataset = folder.scan(tmp_path)
    assert [p.name for p in dataset.pictures] == [f"{n}.png" for n in range(1, 12)]
    assert dataset.pictures[0].size == (48, 48)
    assert dataset.pictures[2].caption == "a ball, number 3"
    assert dataset.problems(32) == {}
    folder.require_trainable(dataset)


def test_problems_are_listed_by_kind(tmp_path: Path, make_pictures: Callable) -> None:
    make_pictures(tmp_path, 5)
    (tmp_path / "1.txt").unlink()
    (tmp_path / "2.txt").write_text("  \n")
    (tmp_path / "3.txt").write_bytes(b"caf\xe9")
    (tmp_path / "4.png").write_text("this is no picture")
    Image.new("RGB", (10, 10)).save(tmp_path / "6.png")
    (tmp_path / "6.txt").write_text("tiny")
    found = {kind: [p.name for p in pictures]
             for kind, pictures in folder.scan(tmp_path).problems(32).items()}
    assert found == {"unreadable": ["4.png"], "caption not readable": ["3.png"],
                     "no caption": ["1.png", "2.png"], "smaller than 32 px": ["6.png"]}
    Image.new("RGB", (40, 40)).save(tmp_path / "5.jpg")
    Image.new("L", (40, 40)).save(tmp_path / "5-masklabel.png")
    found = folder.scan(tmp_path).problems(32)["sharing a caption file"]
    assert [p.name for p in found] == ["5.jpg", "5.png"]


def test_what_cannot_be_trained_is_refused_by_name(tmp_path: Path,
                                                   make_pictures: Callable) -> None:
    with pytest.raises(DatasetError, match="no folder"):
        folder.scan(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="holds no pictures"):
        folder.require_trainable(folder.scan(tmp_path))
    make_pictures(tmp_path, 3)
    with pytest.raises(DatasetError, match="is a file"):
        folder.scan(tmp_path / "1.png")
    (tmp_path / "2.png").write_text("no picture")
    (tmp_path / "3.txt").write_bytes(b"\xff\xff")
    words = "2 of 3 files.*2.png: not a picture.*3.txt is not UTF-8"
    with pytest.raises(DatasetError, match=words):
        folder.require_trainable(folder.scan(tmp_path))


def test_damage_that_only_decoding_shows(tmp_path: Path, make_pictures: Callable) -> None:
    make_pictures(tmp_path, 1)
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[:len(whole) * 2 // 3])
    with pytest.raises(DatasetError, match=r"1\.png is damaged"):
        folder.decode(tmp_path / "1.png")


def test_bombs_are_refused_unread(tmp_path: Path) -> None:
    for side, words in ((9_000, "megapixels"), (20_000, "bomb")):
        Image.new("1", (side, side)).save(tmp_path / "bomb.png")
        found = folder.look(tmp_path / "bomb.png")
        assert found.size is None and words in found.problem


def test_rotation_and_transparency(tmp_path: Path) -> None:
    image = Image.new("RGB", (30, 20), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert folder.look(tmp_path / "a.jpg").size == (20, 30)
    assert folder.decode(tmp_path / "a.jpg").size == (20, 30)
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "b.png")
    assert folder.decode(tmp_path / "b.png").getpixel((0, 0)) == (255, 255, 255)


def test_a_png_turned_by_its_last_chunk_is_seen_without_decoding_it(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.png", exif=exif)
    data = (tmp_path / "a.png").read_bytes()
    at = data.index(b"eXIf") - 4
    chunk = data[at:at + 12 + int.from_bytes(data[at:at + 4], "big")]
    end = data.index(b"IEND") - 4
    (tmp_path / "b.png").write_bytes(data[:at] + data[at + len(chunk):end] + chunk + data[end:])
    assert folder.decode(tmp_path / "b.png").size == (20, 30)

    def decoded(image: Image.Image) -> None:
        raise AssertionError("the whole picture is decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    assert [p.size for p in folder.scan(tmp_path).pictures] == [(20, 30)] * 2


def test_pictures_of_every_kind_keep_their_colours(tmp_path: Path) -> None:
    """CMYK, 16-bit grey (as picture and as mask), palettes, one bit; of an animation the first."""
    Image.frombytes("I;16", (3, 1), bytes([0, 0, 128, 128, 255, 255])).save(tmp_path / "grey.png")
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    Image.new("P", (8, 8), 0).save(tmp_path / "palette.png")
    Image.new("1", (8, 8), 1).save(tmp_path / "bit.bmp")
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:],
                   lossless=True)
    found = {p.name: folder.decode(p.path) for p in folder.scan(tmp_path).pictures}
    grey = [found["grey.png"].getpixel((x, 0)) for x in range(3)]
    assert grey == [(0, 0, 0), (128, 128, 128), (255, 255, 255)]
    mask = folder.decode_mask(tmp_path / "grey.png")
    assert [mask.getpixel((x, 0)) for x in range(3)] == [0, 128, 255]
    assert {name: image.getpixel((4, 4)) for name, image in found.items() if name[0] != "g"} == {
        "bit.bmp": (255,) * 3, "cmyk.jpg": (255, 0, 0), "moving.webp": (255, 0, 0),
        "palette.png": (0,) * 3}


def test_fit_covers_and_crops_evenly(tmp_path: Path) -> None:
    image = Image.new("RGB", (60, 20), "white")
    image.paste("black", (0, 0, 15, 20))
    pixels = folder.fit(image, (20, 20))
    assert pixels.shape == (3, 20, 20) and pixels.min() > 0.9, "the sides are cropped"
    assert torch.equal(folder.fit(Image.new("RGB", (8, 8), "black"), (4, 8)),
                       -torch.ones(3, 8, 4))


def test_how_a_picture_is_cut_is_told_in_the_pixels_of_the_scaled_one() -> None:
    assert folder.cut((60, 20), (20, 20)) == (20, 60, 0, 20, 20, 20)
    assert folder.cut((100, 400), (50, 100)) == (400, 100, 50, 0, 100, 50)
    assert folder.cut((8, 8), (8, 8)) == (8, 8, 0, 0, 8, 8)


TEXTS = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\r\x00"),
                max_size=60)


@given(TEXTS)
def test_captions_come_back_as_written(text: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        picture = Path(name) / "ünï 🙂.png"
        captions.write(picture, text)
        found, problem = captions.read(picture)
        assert (found, problem) == (text.strip("\n"), "")


def test_captions_of_other_programs(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.with_suffix(".txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert captions.read(picture) == ("one\ntwo", "")
    assert captions.as_prompt("one\n\n two ") == "one two"


def test_a_caption_that_is_not_utf8_is_kept_when_replaced(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.with_suffix(".txt").write_bytes(b"caf\xe9")
    captions.write(picture, "café")
    captions.write(picture, "coffee")
    assert captions.read(picture) == ("coffee", "")
    assert (tmp_path / "a.txt.bak").read_bytes() == b"caf\xe9"


@pytest.mark.parametrize(("before", "after"), [
    ("on grass", "zorb, on grass"), ("zorb", "zorb"), ("zorb, big", "zorb, big"),
    ("zorb on grass", "zorb on grass"), ("zorbs", "zorb, zorbs"), ("", "zorb"), (None, "zorb")])
def test_trigger_words_are_put_once(before: str | None, after: str) -> None:
    change = captions.prepend("zorb")
    assert change(before) == after and change(change(before)) == after


def test_bulk_edits_are_planned_applied_and_reverted(tmp_path: Path,
                                                     make_pictures: Callable) -> None:
    make_pictures(tmp_path, 3)
    (tmp_path / "3.txt").unlink()
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    edits = captions.by_rules(folder.scan(tmp_path).captions(), trigger="orb", find="ball",
                              by="circle")
    assert [e.after for e in edits] == ["orb, a circle, number 1", "orb, a circle, number 2", "orb"]
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before, "nothing written yet"
    captions.apply(edits)
    assert (tmp_path / "1.txt").read_text() == "orb, a circle, number 1\n"
    captions.apply(captions.reverted(edits))
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before
    with pytest.raises(ConfigError, match="nothing to do"):
        captions.by_rules(folder.scan(tmp_path).captions())


def test_edits_of_a_caption_changed_meanwhile_are_all_refused(tmp_path: Path,
                                                              make_pictures: Callable) -> None:
    make_pictures(tmp_path, 2)
    edits = captions.by_rules(folder.scan(tmp_path).captions(), trigger="orb")
    (tmp_path / "2.txt").write_text("somebody else's words")
    with pytest.raises(DatasetError, match=r"changed on disk meanwhile, the first is 2\.txt"):
        captions.apply(edits)
    assert (tmp_path / "1.txt").read_text() == "a ball, number 1\n"


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(8, 512), st.sampled_from([4, 8, 64]))
def test_buckets_keep_area_and_shape(width: int, height: int, resolution: int, step: int) -> None:
    w, h = buckets.choose((width, height), resolution, step, True)
    assert w % step == h % step == 0 and w > 0 and h > 0
    square = max(step, resolution // step * step)
    assert w * h <= max(resolution * resolution, square * square)
    assert buckets.choose((width, height), resolution, step, False) == (square, square)
    if resolution >= 16 * step and 0.5 < width / height < 2:
        assert abs(w / h - width / height) < 0.25 * width / height
        assert w * h > 0.7 * resolution * resolution


def test_a_square_picture_gets_the_square() -> None:
    assert buckets.choose((300, 300), 512, 64, True) == (512, 512)
    assert buckets.choose((3000, 2000), 512, 64, True) == (640, 384)


@given(st.lists(st.sampled_from([(8, 8), (16, 4), (4, 16)]), min_size=1, max_size=40),
       st.integers(1, 9), st.integers(0, 99))
def test_every_picture_once_an_epoch_and_one_bucket_a_batch(shapes: list, size: int,
                                                            seed: int) -> None:
    batches = Batches(shapes, size, seed)
    assert batches.per_epoch == batches_per_epoch(shapes, size)
    for epoch in range(3):
        seen = [batches.at(epoch * batches.per_epoch + n) for n in range(batches.per_epoch)]
        assert sorted(i for batch in seen for i in batch) == list(range(len(shapes)))
        for batch in seen:
            assert len(batch) <= size and len({shapes[i] for i in batch}) == 1
    again = Batches(shapes, size, seed)
    assert again.at(2 * again.per_epoch) == batches.at(2 * batches.per_epoch), "by number alone"


def test_epochs_differ() -> None:
    batches = Batches([(8, 8)] * 20, 20, 1)
    assert batches.at(0) != batches.at(1)
    assert Batches([(8, 8)] * 20, 20, 2).at(0) != batches.at(0)


@pytest.mark.parametrize(("name", "words"), [
    ("a_red-fox_03.png", "a red fox"), ("Cat (2).jpg", "Cat"), ("42.png", "42"),
    ("fox+tail.png", "fox tail"), ("7 dwarfs.png", "7 dwarfs")])
def test_captions_from_file_names(name: str, words: str) -> None:
    assert captioners.catalogue()["file-name"](None).caption(None, Path(name)) == words


@pytest.mark.parametrize(("write", "texts"), [
    ("missing", ["1", "b"]), ("append", ["1", "b, 2"]), ("replace", ["1", "2"])])
def test_captioning_a_folder(tmp_path: Path, make_pictures: Callable, write: str,
                             texts: list[str]) -> None:
    make_pictures(tmp_path, 2)
    (tmp_path / "1.txt").unlink()
    (tmp_path / "2.txt").write_text("b\n")
    made = caption.make("file-name", {})
    edits = caption.run(folder.scan(tmp_path), made, write, dry=True)
    assert not (tmp_path / "1.txt").exists()
    caption.run(folder.scan(tmp_path), made, write)
    assert [p.caption for p in folder.scan(tmp_path).pictures] == texts
    assert len(edits) == {"missing": 1, "append": 2, "replace": 2}[write]


def test_captioning_stops_when_asked(tmp_path: Path, make_pictures: Callable) -> None:
    make_pictures(tmp_path, 4)
    for file in tmp_path.glob("*.txt"):
        file.unlink()
    answers = iter([set(), set(), {"stop"}])
    edits = caption.run(folder.scan(tmp_path), caption.make("file-name", {}), "missing",
                        asked=lambda: next(answers))
    assert len(edits) == len(list(tmp_path.glob("*.txt"))) == 2


def test_captioners_say_what_they_lack(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean blip"):
        caption.make("blipp", {})
    with pytest.raises(LycorisError, match="needs its model"):
        caption.make("blip", {})
    with pytest.raises(LycorisError, match="lacks config.json, model.safetensors"):
        caption.make("blip", {"model": str(tmp_path)})
    with pytest.raises(ConfigError, match="Did you mean model"):
        caption.make("blip", {"modle": "x"})


def test_blip_really_writes_a_caption(tmp_path: Path, make_pictures: Callable) -> None:
    """A BLIP of the real classes with random weights, saved and loaded as a user's folder is."""
    from transformers import (
        BertTokenizer,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessorPil,
        BlipProcessor,
    )

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]", "a", "ball", "red"]
    model_folder = tmp_path / "blip"
    model_folder.mkdir()
    (model_folder / "vocab.txt").write_text("\n".join(words))
    text = {"vocab_size": len(words), "hidden_size": 16, "encoder_hidden_size": 16,
            "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "projection_dim": 8, "bos_token_id": 5, "pad_token_id": 0, "eos_token_id": 3,
            "sep_token_id": 3}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
              "num_attention_heads": 2, "image_size": 32, "patch_size": 16, "projection_dim": 8}
    torch.manual_seed(0)
    BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision)
                                 ).save_pretrained(model_folder)
    BlipProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}),
                  BertTokenizer(str(model_folder / "vocab.txt"))).save_pretrained(model_folder)
    make_pictures(tmp_path / "pictures", 1)
    (tmp_path / "pictures" / "1.txt").unlink()
    made = caption.make("blip", {"model": str(model_folder), "max_tokens": "5"})
    edits = caption.run(folder.scan(tmp_path / "pictures"), made, "missing")
    assert len(edits) == 1 and set((edits[0].after or "").split()) <= set(words)
