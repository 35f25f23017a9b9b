"""What benchmarks/train_throughput.py makes of its measurements, and the models it measures on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import random_model
import train_throughput as benchmark


def measured(steps: list[float], load: float = 2.0) -> benchmark.Result:
    return benchmark.Result({"load": load, "cache": 4.0}, steps, [0.5, 0.1, 0.3], 2**20)


def test_ratios_are_within_a_round() -> None:
    rows = benchmark.report("sd15", {benchmark.OURS: measured([1.0, 2.0, 4.0]),
                                     benchmark.PLAIN: measured([1.5, 3.0, 8.0])}, batch=2)
    assert rows == ["| sd15 | ours | 1.00 | 1.00 | 1 | 2.0 | 2.00 | 0.300 |",
                    "| sd15 | recipe | 0.67 | 1.50 | 1 | – | 2.00 | 0.300 |"]


def test_a_processor_gets_the_narrow_model() -> None:
    assert benchmark.parse(["--device", "cpu"]).narrow
    assert not benchmark.parse(["--device", "cuda"]).narrow
    with pytest.raises(SystemExit):
        benchmark.parse(["--family", "sd9"])


def test_a_narrow_model_is_the_real_one_with_fewer_channels() -> None:
    whole, narrow = (random_model.configs("sdxl", narrow=each) for each in (False, True))
    assert narrow["unet"]["block_out_channels"] == [80, 160, 320]
    same = {"cross_attention_dim", "down_block_types", "transformer_layers_per_block"}
    assert all(whole["unet"][key] == narrow["unet"][key] for key in same)


def test_the_pictures_have_captions(tmp_path: Path) -> None:
    folder = random_model.pictures(tmp_path / "pictures", 2, 16)
    assert sorted(file.suffix for file in folder.iterdir()) == [".png", ".png", ".txt", ".txt"]
