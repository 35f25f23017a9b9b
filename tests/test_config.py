"""One declaration: TOML and back, overrides, bounds, nearest names, layers."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import pytest
from conftest import TINY_SD
from hypothesis import given
from hypothesis import strategies as st

from lycoris import config, knobs
from lycoris.config import LEAVES
from lycoris.errors import ConfigError, RunError
from lycoris.settings import Config

# Other programs rely on these names.
PROMISED = {
    "model": "base family",
    "network": "algo preset dim alpha conv_dim conv_alpha text_encoder options dora_wd "
               "wd_on_output rs_lora use_scalar dropout rank_dropout module_dropout train_norm",
    "dataset": "folder", "train": "steps batch_size seed checkpoint_every",
    "optimizer": "name lr", "output": "folder name dtype",
}


def test_promised_names_exist() -> None:
    promised = {f"{section}.{name}" for section, names in PROMISED.items()
                for name in names.split()}
    assert promised <= set(LEAVES)


def test_sections_are_the_promised_ones() -> None:
    assert [f.name for f in dataclasses.fields(Config)] == [
        "model", "network", "dataset", "train", "loss", "optimizer", "sample", "output"]


def test_every_setting_has_help() -> None:
    assert all(leaf.knob.help for leaf in LEAVES.values())


def test_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().train.steps = 5  # type: ignore[misc]


TEXT = st.text(st.characters(blacklist_categories=("Cs",)), max_size=30)
VALUES = st.fixed_dictionaries({}, optional={
    "network.dim": st.integers(1, 100_000), "network.alpha": st.floats(0.01, 1000),
    "network.conv_dim": st.none() | st.integers(0, 64), "network.dora_wd": st.booleans(),
    "network.options": st.dictionaries(st.sampled_from(["factor", "use_tucker"]),
                                       st.integers(-1, 9) | st.booleans() | TEXT),
    "sample.prompts": st.lists(TEXT.filter(str.strip), max_size=4).map(tuple),
    "sample.seeds": st.lists(st.integers(0, 2**63 - 1), max_size=4).map(tuple),
    "sample.negative": TEXT, "optimizer.lr": st.floats(1e-9, 1000),
    "dataset.folder": TEXT,
})


@given(VALUES)
def test_toml_round_trip(values: dict) -> None:
    run = knobs.replace(Config(), values)
    read = dict(knobs.flatten(tomllib.loads(config.dump(run)), LEAVES))
    assert config.build(read) == run


def test_overrides_are_typed() -> None:
    run = config.load(None, ["network.dim=32", "network.dora_wd=true", "optimizer.lr=1e-3",
                             "sample.seeds=1,2,3", "network.conv_dim=same",
                             "network.options.use_tucker=true", "optimizer.args.betas=[0.9, 0.95]"])
    assert run.network.dim == 32 and run.network.dora_wd is True
    assert run.optimizer.lr == 0.001 and run.sample.seeds == (1, 2, 3)
    assert run.network.conv_dim is None
    assert run.network.options == {"use_tucker": True}
    assert run.optimizer.args == {"betas": [0.9, 0.95]}


@pytest.mark.parametrize(("override", "path", "words"), [
    ("network.dim=0", "network.dim", "least is 1"),
    ("network.dim=2.5", "network.dim", "whole number"),
    ("network.dim=eight", "network.dim", "number"),
    ("network.dora_wd=yes", "network.dora_wd", "true or false"),
    ("network.dora_wd=1", "network.dora_wd", "true or false"),
    ("optimizer.lr=nan", "optimizer.lr", "finite"),
    ("output.dtype=fp8", "output.dtype", "fp16"),
    ("network.dims=8", "network.dims", "Did you mean network.dim?"),
    ("dim=8", "dim", "Did you mean network.dim?"),
    ("train.step=8", "train.step", "Did you mean train.steps?"),
    ("output.name=a/b", "output.name", "file name"),
    ("output.name=CON", "output.name", "reserved"),
    ("network.options=3", "network.options", "table"),
])
def test_bad_values_are_refused_in_words(override: str, path: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(None, [override])
    assert words in caught.value.problems[path]


@pytest.mark.parametrize("seed", [9007199254740993, 2**63 - 1])
def test_whole_numbers_stay_exact(seed: int) -> None:
    """Not by way of a float, which holds 53 bits."""
    for written in (str(seed), seed):
        assert config.build({"train.seed": written}).train.seed == seed
    assert config.load(None, [f"sample.seeds=1 {seed}"]).sample.seeds == (1, seed)
    assert config.build({"network.dim": "1e3"}).network.dim == 1000
    with pytest.raises(ConfigError, match=f"the most is {2**63 - 1}"):
        config.build({"train.seed": 2**63})
    for path in ("train.seed", "optimizer.lr"):
        with pytest.raises(ConfigError, match=path):
            config.build({path: 10**400})


def test_all_problems_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(None, ["network.dim=0", "train.steps=-1", "nonsense.at_all=1"])
    assert set(caught.value.problems) == {"network.dim", "train.steps", "nonsense.at_all"}


def test_layers_later_over_earlier(tmp_path: Path) -> None:
    """Defaults, what the base recommends, the file, the overrides."""
    recommended = config.load()
    assert recommended.dataset.resolution == 64, "the embedded model's own settings apply"
    file = tmp_path / "run.toml"
    file.write_text("[train]\nsteps = 77\nbatch_size = 3\n[dataset]\nresolution = 32\n")
    run = config.load(file, ["train.batch_size=5"])
    assert (run.train.steps, run.train.batch_size, run.dataset.resolution) == (77, 5, 32)
    other = config.load(None, [f"model.base={tmp_path}"])
    assert other.dataset.resolution == Config().dataset.resolution


def test_a_complete_file_is_not_changed_by_what_the_base_recommends(tmp_path: Path) -> None:
    run = knobs.replace(Config(), {"network.preset": "attn-only", "network.conv_dim": None})
    file = tmp_path / "config.toml"
    file.write_text(config.dump(run), "utf-8")
    assert config.load(file) == run


@pytest.mark.parametrize(("data", "words"), [
    (b"[train\n", "not valid TOML"), (b"\xff\xfe[train]", "not UTF-8")])
def test_unreadable_files(tmp_path: Path, data: bytes, words: str) -> None:
    file = tmp_path / "run.toml"
    file.write_bytes(data)
    with pytest.raises(RunError, match=words):
        config.load(file)


def test_missing_file() -> None:
    with pytest.raises(RunError, match="no settings file"):
        config.load("nowhere.toml")


def test_names_made_from_dataset_and_algorithm() -> None:
    run = config.load(None, ["dataset.folder=/x/My cats!", "network.algo=loha"])
    assert config.run_name(run) == "My-cats-loha"


def test_embedded_settings_are_complete_settings() -> None:
    """What the embedded model recommends names real settings with possible values."""
    assert config.base_settings(str(TINY_SD))
    assert config.load(None, [f"model.base={TINY_SD}"]).train.steps == 300


def test_files_of_earlier_versions_are_read(tmp_path: Path) -> None:
    file = tmp_path / "old.toml"
    file.write_text("[train]\nmin_snr_gamma = 5\nsteps = 7\n", "utf-8")
    run = config.load(file)
    assert run.loss.weighting == "min-snr" and run.loss.snr_gamma == 5 and run.train.steps == 7
