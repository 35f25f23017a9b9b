"""Several folders, repeats, captions as they are drawn, crops, masks, validation, the cache."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lycoris import algorithms, events, plan, tensorfile
from lycoris.data import buckets, folder, gather, store, wording
from lycoris.data.loader import Batches, batches_per_epoch, presented
from lycoris.errors import ConfigError, DatasetError
from lycoris.feed import Batch, Feed
from lycoris.settings import Config, DatasetConfig
from lycoris.trainer import Session
from lycoris.trainer import run as train_run

Settings = Callable[..., Config]


def train(run: Config, where: Path) -> tuple[list[events.Event], dict[str, torch.Tensor]]:
    heard: list[events.Event] = []
    train_run(plan.make(run), where, heard.append, lambda: set())
    return heard, tensorfile.read(where / "one.safetensors", ConfigError)[0]


def prepared(run: Config, where: Path) -> Session:
    session = Session(plan.make(run), where, lambda event: None)
    session.prepare(lambda: set())
    return session


@given(st.lists(st.tuples(st.sampled_from([(8, 8), (16, 8)]), st.integers(1, 4)), min_size=1,
                max_size=12), st.integers(1, 5), st.integers(0, 3))
def test_every_picture_comes_exactly_as_often_as_it_is_repeated(
        pictures: list[tuple[tuple[int, int], int]], size: int, epoch: int) -> None:
    shapes, repeats = [each[0] for each in pictures], [each[1] for each in pictures]
    batches = Batches(shapes, size, 5, repeats)
    assert batches.per_epoch == batches_per_epoch(presented(shapes, repeats), size)
    start = epoch * batches.per_epoch
    shown = [batches.at(start + i) for i in range(batches.per_epoch)]
    assert Counter(i for batch in shown for i in batch) == dict(enumerate(repeats))
    assert all(len({shapes[i] for i in batch}) == 1 and len(batch) <= size for batch in shown)


@given(st.integers(20, 3000), st.integers(20, 3000))
def test_nothing_is_enlarged_where_that_is_off(width: int, height: int) -> None:
    size = buckets.choose((width, height), 512, 16, True, enlarge=False)
    assert size[0] <= max(16, width) and size[1] <= max(16, height)
    assert size[0] * size[1] <= 512 * 512 and not (size[0] % 16 or size[1] % 16)
    whole = buckets.cover((width, height), size, 8)
    assert whole[0] >= size[0] and whole[1] >= size[1]


def test_kohyas_folders(tmp_path: Path, make_pictures: Callable) -> None:
    make_pictures(tmp_path / "10_sks dog", 2)
    make_pictures(tmp_path / "3_cat", 1)
    make_pictures(tmp_path / "0_none", 1)
    make_pictures(tmp_path / "notes", 1)
    (tmp_path / "10_sks dog" / "1.txt").unlink()
    found = folder.scan(tmp_path)
    assert [(p.path.parent.name, p.repeats, p.words) for p in found.pictures] == [
        ("3_cat", 3, "a ball, number 1"), ("10_sks dog", 10, "sks dog"),
        ("10_sks dog", 10, "a ball, number 2")]
    assert "no caption" not in found.problems(8)
    make_pictures(tmp_path, 1)
    assert len(folder.scan(tmp_path)) == 1, "a folder with pictures of its own is that folder"


def test_further_folders_have_what_is_said_of_them(tmp_path: Path,
                                                   make_pictures: Callable) -> None:
    make_pictures(tmp_path / "main", 3)
    make_pictures(tmp_path / "reg" / "2_person", 2)
    (tmp_path / "reg" / "2_person" / "1.txt").unlink()
    found = gather.gather(DatasetConfig(str(tmp_path / "main"), repeats=4, more=(
        {"folder": str(tmp_path / "reg"), "repeats": 3, "weight": 0.5, "regularisation": True},)))
    assert [(p.repeats, p.weight, p.prior) for p in found.learned] == [
        (4, 1.0, False)] * 3 + [(6, 0.5, True)] * 2
    assert found.learned[3].words == "person" and found.folder == tmp_path / "main"


@pytest.mark.parametrize(("entry", "words"), [
    ({"repeats": 2}, "has no folder"), ({"folder": "x", "repeat": 2}, "Did you mean repeats"),
    ({"folder": "x", "repeats": "2"}, "is no int"), ({"folder": "x", "repeats": True}, "is no int"),
    ({"folder": "x", "repeats": 0}, "at least 1"), ({"folder": "x", "weight": -1}, "at least 0")])
def test_an_entry_that_cannot_be_is_named(entry: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=f"entry 1: .*{words}"):
        gather.gather(DatasetConfig(more=(entry,)))


def test_what_is_held_out_depends_on_the_pictures_alone(tmp_path: Path,
                                                        make_pictures: Callable) -> None:
    make_pictures(tmp_path / "a", 10)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    one, two = (gather.gather(DatasetConfig(str(tmp_path / name), validation=0.3))
                for name in "ab")
    assert [p.name for p in one.held] == [p.name for p in two.held] and len(one.held) == 3
    assert {p.name for p in one.held} | {p.name for p in one.learned} == {
        p.name for p in one.pictures}
    lone = gather.gather(replace(DatasetConfig(str(tmp_path / "a")),
                                 validation_folder=str(tmp_path / "b")))
    assert len(lone.learned) == len(lone.held) == 10


def drawn(caption: str, **settings: Any) -> set[str]:
    given = DatasetConfig(**{"caption_dropout": 0.0, **settings})
    return {wording.drawn(caption, given, 1, step, 0) for step in range(80)}


def test_captions_are_as_they_were_where_nothing_is_set() -> None:
    assert drawn("a, b\n {c|d}, b") == {"a, b {c|d}, b"}


def test_tags_move_but_those_that_are_kept() -> None:
    found = drawn("a, b, c, d", shuffle_tags=True, keep_tags=1)
    assert len(found) == 6 and all(text.startswith("a, ") for text in found)
    assert drawn("a, b ||| c, d ||| e", shuffle_tags=True) == {"a, b, c, d, e", "a, b, d, c, e"}
    assert drawn("a ||| b") == {"a, b"}, "the mark itself is never trained"


def test_tags_are_left_out_but_those_that_are_kept() -> None:
    found = drawn("a, b, c", tag_dropout=0.5, keep_tags=1)
    assert found == {"a", "a, b", "a, c", "a, b, c"}
    assert drawn("a, b, c", tag_dropout=1.0) == {""}


def test_wildcards_lines_prefix_and_suffix() -> None:
    assert drawn("a {red|{dark|light} blue} ball\nball", wildcards=True, caption_prefix="sks",
                 caption_suffix="photo") == {
        "sks a red ball photo", "sks a dark blue ball photo", "sks a light blue ball photo",
        "sks ball photo"}
    given = DatasetConfig(wildcards=True, shuffle_tags=True)
    assert wording.plain("b, {c|d}, a\nx", given) == "b, c, a"
    assert drawn("a", caption_dropout=1.0, caption_prefix="sks") == {""}


VARIED = ("dataset.shuffle_tags=true", "dataset.tag_dropout=0.3", "dataset.flip=true",
          "dataset.random_crop=true", "dataset.masks=true", "dataset.repeats=2",
          "dataset.validation=0.2", "train.validate_every=2", "dataset.caption_prefix=sks",
          "dataset.bucket=false")


@pytest.fixture
def wide(tmp_path: Path, make_pictures: Callable) -> Path:
    made = make_pictures(tmp_path / "wide", 5, (80, 48))
    Image.new("L", (80, 48), "black").save(made / "2-masklabel.png")
    return made


@pytest.fixture
def shown(settings: Settings, wide: Path, tmp_path: Path) -> Callable[..., list[tuple]]:
    """shown("path=value", ...): all that two steps of a run put before its model."""

    def train_two(*more: str) -> list[tuple]:
        session = prepared(settings(*VARIED, f"dataset.folder={wide}", "network.text_encoder=false",
                                    "loss.noise_offset=0.1", "network.dim=4", *more),
                           tmp_path / "run")
        batch, predict = session.feed.batch, session.model.predict
        seen: list[tuple] = []

        def batched(step: int, micro: int) -> Batch:
            seen.append((found := batch(step, micro)).texts)
            seen.extend([found.members, found.sizes, found.masks, found.x0])
            return found

        def predicted(x_t: torch.Tensor, t: torch.Tensor, told: dict) -> torch.Tensor:
            seen.extend([x_t.clone(), t.clone(), *told.values()])
            return predict(x_t, t, told)

        session.feed.batch, session.model.predict = batched, predicted
        session.advance()
        session.advance()
        session.network.restore()
        return seen

    return train_two


def same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(one, other, strict=True))


def test_all_algorithms_are_shown_the_same(shown: Callable[..., list[tuple]]) -> None:
    """Pictures, crops, masks, captions, timesteps and noise, to the bit, whatever is trained, of
    any size, however it begins and whatever it drops."""
    one = shown("network.algo=lora")
    assert sum(isinstance(each, torch.Tensor) for each in one) >= 10
    for algo in algorithms.catalogue():
        assert same(one, shown(f"network.algo={algo}")), algo
    assert same(one, shown("network.dim=2", "network.dropout=0.5", "network.train_norm=true"))
    assert not same(one, shown("train.seed=43"))


def test_crops_masks_and_captions_differ_from_step_to_step(settings: Settings, wide: Path,
                                                           tmp_path: Path) -> None:
    session = prepared(settings(*VARIED, f"dataset.folder={wide}"), tmp_path / "run")
    shown = [session.feed.batch(step, 0) for step in range(12)]
    assert len({cut.left for batch in shown for cut in batch.sizes}) > 2, "crops differ"
    assert shown[0].masks.shape == (len(shown[0].members), 1, *shown[0].x0.shape[2:])
    black = {(i, bool(m.any())) for batch in shown
             for i, m in zip(batch.members, batch.masks, strict=True)}
    assert sorted(any_ for _, any_ in black) in ([False, True, True, True], [True] * 4)


def test_a_mirrored_picture_is_the_mirrored_picture(settings: Settings, wide: Path,
                                                    tmp_path: Path) -> None:
    session = prepared(settings("dataset.flip=true", f"dataset.folder={wide}"), tmp_path / "run")
    feed, model = session.feed, session.model
    pixels = folder.fit(folder.decode(feed.pictures[0].path), feed.buckets[0]).flip(2)
    assert torch.allclose(feed.mirrored[0].latents, model.encode_image(pixels[None])[0], atol=1e-5)
    shown = [feed.batch(step, 0) for step in range(20)]
    first = [x for batch in shown for i, x in zip(batch.members, batch.x0, strict=True) if i == 0]
    assert len({tuple(x.flatten().tolist()) for x in first}) == 2, "as it is, and mirrored"


def test_masks_come_from_beside_a_folder_or_the_alpha_channel(tmp_path: Path,
                                                              settings: Settings) -> None:
    home, masks = tmp_path / "home", tmp_path / "masks"
    home.mkdir(), masks.mkdir()
    half = Image.new("L", (32, 32), "black")
    half.paste("white", (0, 0, 16, 32))
    for name in ("beside", "named", "plain"):
        Image.new("RGB", (32, 32), "red").save(home / f"{name}.png")
    half.save(home / "beside-masklabel.png")
    half.save(masks / "named.png")
    clear = Image.new("RGB", (32, 32), "red")
    clear.putalpha(half)
    clear.save(home / "clear.png")
    session = prepared(settings(f"dataset.folder={home}", "dataset.masks=true",
                                f"dataset.mask_folder={masks}"), tmp_path / "run")
    found = {p.path.stem: one.mask for p, one in zip(session.feed.pictures, session.feed.latents,
                                                     strict=True)}
    side = found["plain"].shape[-1]
    assert list(found) == ["beside", "clear", "named", "plain"], "a mask is no picture"
    assert torch.equal(found["plain"], torch.ones(1, side, side))
    for name in ("beside", "clear", "named"):
        assert found[name][..., 0].min() > 0.9 and found[name][..., -1].max() < 0.1, name


def cached(heard: list[events.Event], name: str) -> list[int]:
    return [e.taken for e in heard if isinstance(e, events.Stage) and e.name.startswith(name)]


def test_a_second_run_takes_everything_from_the_cache(settings: Settings, tmp_path: Path) -> None:
    run = settings("network.text_encoder=false", "train.steps=3")
    first, trained = train(run, tmp_path / "first")
    again, same = train(run, tmp_path / "again")
    assert cached(first, "encoding the pictures")[-1] == 0
    assert cached(again, "encoding the pictures")[-1] == 5
    assert all(torch.equal(trained[key], same[key]) for key in trained)
    told = [e for e in again if isinstance(e, events.Cached)][-1]
    kept = store.of(run)
    assert (told.files, told.bytes) == (kept.size().files, kept.size().bytes) == (11, told.bytes)
    none = train(settings("network.text_encoder=false", "train.steps=3", "dataset.cache_limit=0"),
                 tmp_path / "none")
    assert all(torch.equal(trained[key], none[1][key]) for key in trained)
    assert not [e for e in none[0] if isinstance(e, events.Cached)]


def test_what_is_damaged_is_made_anew(settings: Settings, pictures: Path, tmp_path: Path) -> None:
    run = settings("network.text_encoder=false", "train.steps=2")
    _, trained = train(run, tmp_path / "first")
    for number, file in enumerate(sorted(store.of(run).folder.rglob("*.safetensors"))):
        data = bytearray(file.read_bytes())
        data[-3] ^= 255
        file.write_bytes(data if number % 2 else data[:len(data) // 2])
    heard, same = train(run, tmp_path / "again")
    assert cached(heard, "encoding the pictures")[-1] == 0
    assert all(torch.equal(trained[key], same[key]) for key in trained)
    Image.new("RGB", (48, 48), "blue").save(pictures / "1.png")
    heard, other = train(run, tmp_path / "other")
    assert cached(heard, "encoding the pictures")[-1] == 0, "its group is made anew with it"
    assert any(not torch.equal(trained[key], other[key]) for key in trained)


def test_the_cache_keeps_to_its_limit_and_can_be_cleared(tmp_path: Path) -> None:
    import os

    kept = store.Store(tmp_path, 10_000)
    for number in range(5):
        kept.put(f"{number:040x}", {"x": torch.full((1000,), float(number))})
        os.utime(kept._path(f"{number:040x}"), (number, number))
    assert kept.get(f"{0:040x}") is not None, "used, so it goes last"
    assert kept.tidy().bytes <= 10_000
    assert kept.get(f"{0:040x}") is not None and kept.get(f"{1:040x}") is None
    (tmp_path / "mine.txt").write_text("not ours")
    kept.clear()
    assert kept.size().files == 0 and (tmp_path / "mine.txt").exists()


def test_resuming_with_everything_on_is_exact(settings: Settings, wide: Path,
                                              tmp_path: Path) -> None:
    given = (*VARIED, f"dataset.folder={wide}", "network.text_encoder=false")
    heard, whole = train(settings(*given), tmp_path / "whole")
    run = settings(*given)
    count = []

    def asked() -> set[str]:
        count.append(1)
        return {"stop"} if len([e for e in seen if isinstance(e, events.Step)]) == 3 else set()

    seen: list[events.Event] = []
    train_run(plan.make(run), tmp_path / "parts", seen.append, asked)
    shutil.rmtree(store.of(run).folder)
    _, parts = train(run, tmp_path / "parts")
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    looked = [e for e in heard if isinstance(e, events.Validated)]
    assert [e.step for e in looked] == [0, 2, 4, 6] and len(looked[0].timesteps) == 8
    assert looked[0].loss == pytest.approx(sum(looked[0].timesteps.values()) / 8, abs=1e-5)


def test_validating_changes_nothing_of_the_training(settings: Settings, pictures: Path,
                                                    make_pictures: Callable,
                                                    tmp_path: Path) -> None:
    other = make_pictures(tmp_path / "held", 3)
    _, plain = train(settings("network.dropout=0.3"), tmp_path / "plain")
    heard, looked = train(settings("network.dropout=0.3", f"dataset.validation_folder={other}",
                                   "train.validate_every=1"), tmp_path / "looked")
    assert all(torch.equal(plain[key], looked[key]) for key in plain)
    assert len([e for e in heard if isinstance(e, events.Validated)]) == 7


def test_the_plan_counts_repeats_and_remainders(settings: Settings) -> None:
    made = plan.make(settings("dataset.repeats=3", "train.batch_size=4", "train.steps=8"))
    found = made.summary()
    assert (found["pictures"], found["presented"], found["batches_per_epoch"]) == (5, 15, 4)
    assert found["smaller_batches"] == 1 and found["epochs"] == 2
    assert found["buckets"] == {"16x16": 15}


def kohyas(home: Path, make_pictures: Callable) -> list[str]:
    """Settings over img/10_cat and img/3_dog, of three shapes, and regularisation pictures."""
    make_pictures(home / "img" / "10_cat", 3)
    make_pictures(home / "img" / "3_dog", 2, (96, 48))
    make_pictures(home / "reg" / "1_animal", 4, (48, 96))
    return [f"dataset.folder={home / 'img'}", "train.batch_size=4", "dataset.validation=0.2",
            f"dataset.more=[{{folder = '{home / 'reg'}', regularisation = true, weight = 0.5}}]"]


@pytest.mark.parametrize(("more", "steps"), [
    ((), 13), (("dataset.balance=true", "train.accumulate=4"), 6)])
def test_what_is_counted_before_is_what_the_run_does(
        settings: Settings, make_pictures: Callable, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...], steps: int) -> None:
    """Buckets, remainders, repeats, steps and epochs, against the batches and events of a run."""
    run = settings(*kohyas(tmp_path, make_pictures), f"train.steps={steps}", *more)
    counted = plan.make(run).epoch
    given: list[list[tuple[tuple[int, int], str]]] = []
    members = Feed.members

    def spied(feed: Feed, step: int, micro: int) -> list[int]:
        found = members(feed, step, micro)
        given.append([(feed.buckets[i], feed.pictures[i].path.parent.name) for i in found])
        return found

    monkeypatch.setattr(Feed, "members", spied)
    heard, _ = train(run, tmp_path / "run")
    monkeypatch.undo()
    one = given[:counted.batches]
    batches = [(batch[0][0], len(batch)) for batch in one]
    assert {(b.width, b.height): b.batches for b in counted.buckets} == Counter(
        bucket for bucket, _ in batches)
    assert sorted(((b.width, b.height), b.rest) for b in counted.buckets if b.rest) == sorted(
        (bucket, count) for bucket, count in batches if count < 4)
    assert {s.folder.name: s.shown for s in counted.folders if s.kind != "validation"} == Counter(
        name for batch in one for _, name in batch)
    told = [e for e in heard if isinstance(e, events.Step)]
    assert [e.epoch for e in told] == [
        round(e.step / counted.steps_per_epoch, 4) for e in told]
    assert told[-1].epoch == pytest.approx(counted.epochs, abs=1e-4) and counted.epochs > 1


def test_regularisation_is_balanced_to_the_picture(make_pictures: Callable, tmp_path: Path,
                                                   settings: Settings) -> None:
    run = settings(*kohyas(tmp_path, make_pictures))
    warned = [w.text for w in plan.make(run).warnings]
    assert "An epoch shows 4 regularisation pictures and 33 others." in warned
    run = replace(run, dataset=replace(run.dataset, balance=True))
    made = plan.make(run)
    assert not any("regularisation" in w.text for w in made.warnings)
    reg = [p for p in made.dataset.learned if p.prior]
    assert sorted(p.repeats for p in reg) == [8, 8, 8, 9] and {p.weight for p in reg} == {0.5}
    few = replace(run.dataset, more=({**run.dataset.more[0], "repeats": 40},))
    assert [p.repeats for p in gather.gather(few).learned if p.prior].count(8) == 3
    make_pictures(tmp_path / "reg" / "1_animal", 40)
    found = gather.gather(run.dataset)
    shown = [p for p in found.learned if p.prior]
    assert [p.repeats for p in shown] == [1] * 33 and len(found.left_out) == 7
    assert shown == [p for p in gather.gather(run.dataset).learned if p.prior], "always the same"


def test_what_is_left_out_is_said_with_its_reason(make_pictures: Callable,
                                                  tmp_path: Path) -> None:
    home = tmp_path / "home"
    make_pictures(home / "cats", 1)
    with pytest.raises(DatasetError, match=r"no pictures. cats: it is not called 1_cats or 10_"):
        folder.require_trainable(folder.scan(home))
    make_pictures(home / "10_cat", 1)
    Image.new("RGB", (8, 8)).save(home / "10_cat" / "x.gif")
    (home / "notes").mkdir()
    assert [(each.path.name, each.why) for each in gather.gather(
        DatasetConfig(str(home))).left_out] == [
        ("cats", "there are folders with a number beside it; give it as a further folder"),
        ("x.gif", "gif files are not read; save it as png")]
    named = gather.gather(DatasetConfig(str(home), more=({"folder": str(home / "cats")},)))
    assert [each.path.name for each in named.left_out] == ["x.gif"]
    with pytest.raises(DatasetError, match="notes holds no pictures"):
        gather.gather(DatasetConfig(str(home), more=({"folder": str(home / "notes")},)))
    empty = gather.gather(DatasetConfig(str(home / "notes"), validation_folder=str(home / "cats")))
    with pytest.raises(DatasetError, match="notes holds no pictures to learn from"):
        folder.require_trainable(empty)


def test_the_verb_says_what_a_run_will_see(make_pictures: Callable, tmp_path: Path,
                                           settings: Settings,
                                           capsys: pytest.CaptureFixture) -> None:
    import json

    from lycoris.__main__ import main

    run = settings(*(given := kohyas(tmp_path, make_pictures)))
    base = [f"model.base={run.model.base}", "dataset.resolution=16", "dataset.bucket_step=4"]
    assert main(["dataset", *base, *given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = replace(plan.make(run).epoch, steps=found["epoch"]["steps"]).data()
    assert found["epoch"] == json.loads(json.dumps(expected))
    assert len(found["items"]) == found["pictures"] == 9
    assert main(["dataset", *base, *given]) == 0
    told = capsys.readouterr().out
    assert "4 x 1 = 4, regularisation, weight 0.5" in told
    assert "An epoch  37 pictures in 10 batches of 4, 2 of them not full: 10 steps" in told


def test_the_cache_is_told_and_cleared_from_the_command_line(
        tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    import json

    from lycoris.__main__ import main

    kept = store.Store(tmp_path / "kept", 10_000)
    kept.put("0" * 40, {"x": torch.zeros(10)})
    where = f"dataset.cache_folder={tmp_path / 'kept'}"
    assert main(["cache", where, "--clear", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["files"] == 1 and told["cleared"] and kept.size().files == 0
