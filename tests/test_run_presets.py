"""The presets of whole runs: each loads, fits its card, says where its numbers are from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from assets.presets import __main__ as maker
from lycoris import config, families, knobs, memory, plan, runpresets
from lycoris.__main__ import main
from lycoris.config import ASSETS, LEAVES
from lycoris.errors import ConfigError
from lycoris.settings import Config

GIB = 2**30
SPARE = 0.1
ALL = tuple(runpresets.catalogue())


@pytest.mark.parametrize("name", ALL)
def test_it_fits_its_card_with_a_tenth_to_spare(name: str) -> None:
    one = runpresets.find(name)
    family = families.open_base(ASSETS, one.family)
    run = config.load(None, [f"preset={name}", f"model.family={one.family}"])
    made = plan.make(run, family=family, need_dataset=False)
    made = plan.Plan(**{**vars(made), "dataset": None, "buckets": ()})  # pictures of any shape
    assert memory.predict(made, "cuda").peak <= (1 - SPARE) * one.memory * GIB
    assert not [w.text for w in made.warnings if "scale" in w.text]


def test_every_purpose_has_one_for_every_model_and_card() -> None:
    found = {(one.purpose, one.family, one.memory) for one in runpresets.catalogue().values()}
    assert found == {(purpose, family, card) for purpose in runpresets.PURPOSES
                     for family in ("sd15", "sdxl") for card in (8, 12, 16, 24)}


def test_the_files_are_what_the_table_says() -> None:
    """Run `python -m assets.presets` where they are not."""
    assert maker.files() == {file.name: file.read_text("utf-8")
                             for file in (ASSETS / "presets").glob("*.toml")}


@pytest.mark.parametrize("name", ALL)
def test_every_number_has_its_source(name: str) -> None:
    one = runpresets.find(name)
    for path, fact in maker.facts(one.purpose, one.family, one.memory).items():
        assert fact.source.endswith("."), path
        assert fact.source[:40] in (ASSETS / "presets" / f"{name}.toml").read_text("utf-8"), path


@pytest.mark.parametrize("name", ALL)
def test_it_leaves_alone_what_is_the_users(name: str) -> None:
    values = runpresets.find(name).values
    assert not set(runpresets.KEPT) & set(values)
    assert not {path for path in values if path.startswith("output.")}
    assert {path.split(".")[0] for path in values} == {
        "model", "network", "dataset", "train", "loss", "optimizer", "sample"}


def test_one_purpose_is_the_same_run_on_every_card() -> None:
    """But for how it is done, and for the pictures' side on SD 1.5."""
    how = {"train.batch_size", "train.accumulate", "train.gradient_checkpointing",
           "dataset.resolution", "model.dtype"}
    for purpose, family in {(one.purpose, one.family) for one in runpresets.catalogue().values()}:
        own = [one for one in runpresets.catalogue().values()
               if (one.purpose, one.family) == (purpose, family)]
        rest = [{p: v for p, v in one.values.items() if p not in how} for one in own]
        assert all(each == rest[0] for each in rest)
        assert {v["train.batch_size"] * v["train.accumulate"] for v in (
            one.values for one in own)} == {4}


def test_layers_lie_over_each_other(tmp_path: Path) -> None:
    """Defaults < the base's recommendation < preset < file < overrides."""
    file = tmp_path / "run.toml"
    file.write_text('preset = "person-sd15-8gb"\n[network]\ndim = 4\n[train]\nsteps = 7\n', "utf-8")
    run = config.load(file, ["train.steps=9"])
    assert (run.network.dim, run.train.steps) == (4, 9)
    assert run.dataset.resolution == 512  # the embedded base recommends 64
    assert run.sample.seeds == config.load().sample.seeds
    assert config.load(file, ["preset=person-sdxl-12gb"]).dataset.resolution == 1024


def test_the_preset_of_a_run_stands_whole_in_its_file(tmp_path: Path) -> None:
    run = config.load(None, ["preset=style-sdxl-24gb"])
    file = tmp_path / "config.toml"
    file.write_text(config.dump(run), "utf-8")
    assert config.load(file) == run


def test_options_go_with_the_algorithm_they_are_of() -> None:
    assert config.load(None, ["preset=style-sd15-8gb"]).network.options["factor"] == 8
    assert config.load(None, ["preset=style-sd15-8gb", "network.algo=lora"]).network.options == {}
    kept = config.load(None, ["preset=style-sd15-8gb", "network.options.factor=4"])
    assert kept.network.options == {"factor": 4, "full_matrix": True}
    held = knobs.replace(Config(), {"network.algo": "lokr", "network.options": {"factor": 4},
                                    "optimizer.args": {"betas": [0.9, 0.99]}})
    then = runpresets.applied(held, runpresets.find("person-sd15-8gb"))
    assert then.network.options == then.optimizer.args == {}


def test_what_it_would_change_is_all_it_changes() -> None:
    one = runpresets.find("character-sdxl-16gb")
    found = runpresets.changes(Config(), one)
    assert found["network.algo"] == ("lora", "loha")
    assert all(now != then for now, then in found.values())
    then = runpresets.applied(Config(), one)
    assert {path for path in LEAVES
            if knobs.get(then, path) != knobs.get(Config(), path)} == set(found)
    assert not runpresets.changes(then, one)


def test_a_wrong_name_is_told_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean person-sdxl-12gb"):
        config.load(None, ["preset=person-sdxl-12g"])


@pytest.mark.parametrize(("gib", "size"), [(7.6, 8), (8, 8), (11.6, 12), (15.7, 16), (22.5, 24),
                                           (80, 24), (4, 8)])
def test_a_card_is_known_by_what_its_driver_reports(gib: float, size: int) -> None:
    assert runpresets.card(round(gib * GIB)) == size


def test_the_verb_lists_says_and_compares(capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: str) -> str:
        assert main(["presets", *words]) == 0
        return capsys.readouterr().out

    assert [one["name"] for one in json.loads(said("--json"))["presets"]] == list(ALL)
    whole = said("style-sd15-8gb")
    assert "optimizer.name" in whole
    changed = said("style-sd15-8gb", "--diff", "network.algo=lokr")
    assert "network.algo" not in changed and "dataset.caption_dropout  " in changed
    assert json.loads(said("--json", "preset=style-sd15-8gb"))["changes"]["train.steps"] == {
        "now": 1500, "then": 750}
    assert main(["presets", "style-sd15-9gb"]) == 2
    assert "Did you mean style-sd15-8gb" in capsys.readouterr().err
