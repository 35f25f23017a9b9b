"""The models known by name: their tables are the real modules', and all that is asked of them is
asked without weights."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_SD
from hypothesis import given
from hypothesis import strategies as st

from assets.layers import __main__ as maker
from lycoris import assignments, config, families, known, plan, sizes, tensorfile
from lycoris.__main__ import main
from lycoris.config import ASSETS
from lycoris.errors import ConfigError, ModelFileError
from lycoris.settings import NetworkConfig
from lycoris.settings.model import DTYPES

COUNTS = {  # layers of (the UNet, the text encoders), as the reference package counts them
    "sd15": {"attn-only": (128, 48), "attn-mlp": (192, 72), "full-lin": (230, 72),
             "full": (282, 72), "unet-convblock-only": (88, 0), "ia3": (80, 36)},
    "sdxl": {"attn-only": (560, 176), "attn-mlp": (722, 264), "full-lin": (750, 264),
             "full": (788, 264), "unet-convblock-only": (66, 0), "ia3": (350, 132)}}


@pytest.mark.parametrize("name", known.names())
def test_tables_are_the_real_modules(name: str) -> None:
    """Run `python -m assets.layers` where they are not."""
    assert (ASSETS / "layers" / f"{name}.json").read_text("utf-8") == maker.as_text(
        maker.table(known.configs(name)))


def test_totals_are_the_published_ones() -> None:
    assert known.find("sd15").parameters == {
        "unet": 859_520_964, "text_encoder": 123_060_480, "vae": 83_653_863}
    assert known.find("sdxl").parameters == {
        "unet": 2_567_463_684, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840,
        "vae": 83_653_863}


@pytest.mark.parametrize(("name", "preset"),
                         [(name, preset) for name, found in COUNTS.items() for preset in found])
def test_presets_select_what_the_guideline_meant(name: str, preset: str) -> None:
    base = families.open_base(ASSETS, name)
    found = assignments.assign_family(base, NetworkConfig(preset=preset))
    counted = Counter(a.layer.part == "unet" for a in found)
    assert (counted[True], counted[False]) == COUNTS[name][preset]


def test_sdxl_writes_the_original_names() -> None:
    found = {a.key for a in assignments.assign_family(
        families.open_base(ASSETS, "sdxl"), NetworkConfig(preset="full"))}
    assert {"lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
            "lora_unet_middle_block_1_proj_in", "lora_unet_output_blocks_8_0_skip_connection",
            "lora_te1_text_model_encoder_layers_0_mlp_fc1",
            "lora_te2_text_model_encoder_layers_31_self_attn_q_proj"} <= found


def test_a_base_of_that_shape_is_opened_and_another_is_not_trained(
        settings: Callable[..., config.Config], monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = families.open_base(TINY_SD)
    monkeypatch.setattr(known, "find", lambda name: known.Known(
        name, "Tiny", "sd", {}, {}, tiny.layers))
    assert families.open_base(TINY_SD, "sd15").known is None
    monkeypatch.undo()
    run = settings("model.family=sd15", "dataset.bucket_step=8")
    with pytest.raises(ModelFileError, match="sd15, but .* is not a model of that shape"):
        plan.make(run)
    with pytest.raises(ModelFileError, match="not a model of that shape"):
        families.open_base(TINY_SD, "sd15").weight(tiny.layers[0])


def test_what_the_base_recommends_is_not_meant_for_another_model() -> None:
    assert config.load(None, ["model.family=sd15"]).network.dim == 16
    assert config.load().network.dim == 8, "assets/tiny-sd/lycogui.toml"


@given(st.lists(st.tuples(
    st.text("abcz_019", min_size=1, max_size=12),
    st.lists(st.integers(1, 3000), max_size=4).map(tuple)), min_size=1, max_size=30),
    st.sampled_from(["F16", "BF16", "F32"]), st.dictionaries(st.text(), st.text(), max_size=3))
def test_a_header_that_is_counted_is_as_long_as_the_one_written(
        tensors: list[tuple[str, tuple[int, ...]]], dtype: str, metadata: dict[str, str]) -> None:
    entries = {name: (dtype, shape) for name, shape in tensors}
    order = sorted(entries)
    lengths = sum(len(n) + len(tensorfile.shape_text(entries[n][1])) for n in order)
    counts = [tensorfile.elements(entries[n][1]) for n in order]
    assert tensorfile.header_sizes(
        lengths, counts, dtype, tensorfile.metadata_length(metadata)) == (
        len(tensorfile.header(entries, {})[0]), len(tensorfile.header(entries, metadata)[0]))


@pytest.mark.parametrize("algo", plan.names()["algorithms"])
@pytest.mark.parametrize("preset", ["full", "ia3"])
def test_measuring_by_shapes_is_measuring_the_file(algo: str, preset: str) -> None:
    """Layers are looked at shape by shape; a file is written tensor by tensor."""
    network = NetworkConfig(algo=algo, preset=preset, dim=16, train_norm=True,
                            dora_wd=algo != "tlora")
    found = assignments.assign_family(families.open_base(ASSETS, "sd21"), network)
    told = {"a": "\"quoted\" ü"}
    for dtype in DTYPES:
        entries = sizes.entries_of(found, dtype)
        measured = sizes.measure(found, dtype, told)
        assert (measured.file_bytes, measured.file_bytes_with_metadata, measured.tensors) == (
            tensorfile.size(entries, {}), tensorfile.size(entries, told), len(entries))
        assert measured.parameters == sum(a.parameters() for a in found)
        assert measured.every == sizes.measure(found, "fp16", told).every


def test_the_estimate_says_every_dtype(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model.family=sd15", "network.algo=loha", "network.preset=attn-mlp",
             "network.dim=16", "network.alpha=8", "--json"]
    assert main(["estimate", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["modules"], found["parameters"], found["tensors"], found["file_bytes"]) == (
        264, 18_874_368, 1_320, 37_931_904)
    assert found["parts"]["unet"]["modules"] == 192
    assert found["kinds"]["linear"]["modules"] + found["kinds"]["conv 1x1"]["modules"] == 264
    for dtype in DTYPES:
        assert main(["estimate", *words, f"output.dtype={dtype}"]) == 0
        alone = json.loads(capsys.readouterr().out)
        for name in ("tensor_bytes", "file_bytes", "file_bytes_with_metadata"):
            assert alone[name] == found["dtypes"][dtype][name]


@pytest.fixture
def batch(capsys: pytest.CaptureFixture[str],
          monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    def run(lines: str, *words: str) -> list[dict[str, Any]]:
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        assert main(["estimate", "--batch", "-", "--json", *words]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def test_a_batch_answers_line_by_line(batch: Callable[..., list[dict[str, Any]]]) -> None:
    lines = [{"network.dim": 8}, {"network.algo": "lokr", "network.options.factor": 4},
             {"network.algo": "lokr", "network.options": {"factor": 4}},
             {"network.algo": "boft", "network.dim": 4}, {"network.dmi": 4},
             {"network.algo": "dylora", "network.dim": 6}, [1], {"network.dim": 8}]
    found = batch("\n".join(map(json.dumps, lines)) + "\nnot json\n\n", "model.family=sd15")
    assert [("error" in each) for each in found] == [
        False, False, False, True, True, True, True, False, True, True], "one for each line"
    assert "empty" in found[9]["error"]["message"]
    assert found[0] == found[7] and found[1] == found[2]
    assert "power of two" in found[3]["error"]["message"]
    assert "Did you mean network.dim?" in found[4]["error"]["message"]
    assert "block size" in found[5]["error"]["message"]


def test_a_batch_counts_pictures_as_one_estimate_does(
        batch: Callable[..., list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]) -> None:
    lines = [{}, {"dataset.repeats": 3}, {"dataset.validation": 0.25}]
    for values, found in zip(lines, batch("\n".join(map(json.dumps, lines))), strict=True):
        assert main(["estimate", *(f"{path}={value}" for path, value in values.items()),
                     "--json"]) == 0
        alone = json.loads(capsys.readouterr().out)
        assert found["pictures"] == alone["pictures"]
        assert found["batches_per_epoch"] == alone["batches_per_epoch"]


def test_a_batch_of_a_file_and_of_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "many.jsonl"
    file.write_text('{"network.dim": 4}\n', "utf-8")
    assert main(["estimate", "--batch", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["modules"] > 0
    assert main(["estimate", "--batch", str(tmp_path / "none")]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_the_guidelines_table(capsys: pytest.CaptureFixture[str]) -> None:
    """24 rows; where a figure differs from the printed one, the row says why."""
    assert main(["estimate", "table", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert len(rows) == 24
    for row in rows[:-1]:
        assert (row["as_published"] == row["published"]) == (not row["note"]), row["row"]
    by_name = {row["row"]: row for row in rows}
    assert by_name["LoKr attn-mlp full [8]"]["file_bytes"] == 11_137_168
    assert by_name["IA3"]["file_bytes"] == 340_904
    assert by_name["Full (db)"]["parameters"] == 1_066_235_307


def test_unknown_family_is_said_with_its_names() -> None:
    with pytest.raises(ConfigError, match="sd15"):
        plan.make(config.load(None, ["model.family=sd16"]), need_dataset=False)
    assert families.names()[0] == "auto"
