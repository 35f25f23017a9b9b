"""lycoris-lora builds networks of every kind over the embedded model, here and now, and the files
it writes are as long as we said beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peers
import pytest
from test_interop_sizes import as_they_write

from lycoris import assignments, config, families, sizes, tensorfile
from lycoris.config import LEAVES
from lycoris.families import Family
from lycoris.settings import NetworkConfig

peers.need("lycoris-lora")

BASE = peers.ROOT / "assets" / "tiny-sd"
PRESETS = ("attn-only", "attn-mlp", "full-lin", "full", "unet-only", "unet-transformer-only",
           "unet-convblock-only")
FULL = 100_000
TUCKER, DORA = {"use_tucker": True}, {"dora_wd": True}
# (algorithm, dim, its options): with every preset; boft and diag-oft at sizes they can have here.
KINDS: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("lora", 4, {}), ("lora", 3, TUCKER), ("lora", 4, DORA),
    ("lora", 4, {**DORA, "wd_on_output": False}), ("lora", 2, {"use_scalar": True}),
    ("lora", 4, {"rs_lora": True}), ("lora", 4, {"train_norm": True}),
    ("loha", 4, {}), ("loha", 3, TUCKER), ("loha", 2, {**DORA, "use_scalar": True}),
    ("lokr", 4, {"factor": -1}), ("lokr", 4, {"factor": 4}), ("lokr", FULL, {"factor": 8}),
    ("lokr", 2, {"factor": 8, "decompose_both": True}), ("lokr", 4, {"factor": 4, **TUCKER}),
    ("lokr", 4, {"factor": 4, "unbalanced_factorization": True}), ("lokr", FULL, {
        "factor": 4, **DORA}), ("lokr", 2, {"factor": 4, "full_matrix": True}),
    ("dylora", 4, {"block_size": 2}), ("glora", 4, {}), ("full", 1, {}),
    ("full", 1, {"train_norm": True}), ("diag-oft", 8, {}), ("diag-oft", 4, {"rescaled": True}),
    ("boft", 16, {}), ("boft", 16, {"rescaled": True}), ("ia3", 1, {}))
CASES = [(preset, *kind) for preset in PRESETS for kind in KINDS] + [("ia3", "ia3", 1, {})]


def name_of(case: tuple[str, str, int, dict[str, Any]]) -> str:
    preset, algo, dim, options = case
    return "-".join([preset, algo, str(dim), *(f"{k}={v}" for k, v in options.items())])


@pytest.fixture(scope="module")
def family() -> Family:
    return families.open_base(BASE)


def presets_file(folder: Path, name: str, family: Family) -> Path:
    """The preset in the reference package's own words."""
    file = folder / f"{name}.toml"
    said = {"enable_conv": True, "unet_target_module": (), "unet_target_name": (),
            "text_encoder_target_module": (), "text_encoder_target_name": (),
            **type(family).presets[name]}
    if name == "ia3":  # its patterns are matched from a path's start on
        for key in ("unet_target_name", "text_encoder_target_name"):
            said[key] = tuple(f".*{each}" for each in said[key])
        said["name_algo_map"] = {f".*{key}": value for key, value in said["name_algo_map"].items()}
    lines = [f"{key} = {config.toml_value(value)}" for key, value in said.items()]
    file.write_text("\n".join(lines), "utf-8")
    return file


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, family: Family) -> peers.Answers:
    folder = tmp_path_factory.mktemp("built")
    files = {name: presets_file(folder, name, family) for name in (*PRESETS, "ia3")}
    jobs = {}
    for case in CASES:
        preset, algo, dim, options = case
        jobs[name_of(case)] = {
            "do": "write_sizes", "base": str(BASE), "file": "one.safetensors", "settings": {
                "network_dim": dim, "network_alpha": 1, "algo": algo, "conv_dim": dim,
                "conv_alpha": 1, "preset": str(files[preset]), **options}}
    return peers.ask(folder, jobs)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_the_file_is_as_long_as_we_said(case: tuple[str, str, int, dict[str, Any]],
                                        answers: peers.Answers, family: Family) -> None:
    preset, algo, dim, options = case
    shell = {name: value for name, value in options.items() if f"network.{name}" in LEAVES}
    own = {name: value for name, value in options.items() if name not in shell}
    found = assignments.assign_family(family, NetworkConfig(
        algo=algo, preset=preset, dim=dim, alpha=1.0, options=own, **shell))
    entries = as_they_write(algo, sizes.entries_of(found, "fp16"))
    (built,) = answers.of(name_of(case)).values()
    assert [len(found), sum(a.parameters() for a in found), len(entries),
            tensorfile.size(entries, {})] == built.tolist()
