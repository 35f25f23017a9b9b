"""What benchmarks/train_throughput.py makes of its measurements, and that all of it still runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from conftest import ROOT, make_base
from interop.peers import FOLDER, need

sys.path.insert(0, str(ROOT / "benchmarks"))
import random_model
import throughput_worker
import train_throughput as benchmark

SIDE = 64  # of the pictures of the small runs


def measured(steps: list[float], load: float = 2.0) -> benchmark.Result:
    return benchmark.Result({"load": load, "cache": 4.0}, steps, [0.5, 0.1, 0.3], 2**20)


def test_ratios_are_within_a_round() -> None:
    rows = benchmark.report("sd15", {benchmark.OURS: measured([1.0, 2.0, 4.0]),
                                     benchmark.PLAIN: measured([1.5, 3.0, 8.0])}, batch=2)
    assert rows == ["| sd15 | ours | 1.00 | 1.00 | 1 | 2.0 | 2.00 | 0.300 |",
                    "| sd15 | recipe | 0.67 | 1.50 (1.50 to 1.75) | 1 | – | 2.00 | 0.300 |"]


def test_a_processor_gets_the_narrow_model() -> None:
    assert benchmark.parse(["--device", "cpu"]).narrow
    assert not benchmark.parse(["--device", "cuda"]).narrow
    for words in (["--family", "sd9"], ["--rounds", "1"]):
        with pytest.raises(SystemExit):
            benchmark.parse(words)


def test_a_narrow_model_is_the_real_one_with_fewer_channels() -> None:
    whole, narrow = (random_model.configs("sdxl", narrow=each) for each in (False, True))
    assert narrow["unet"]["block_out_channels"] == [80, 160, 320]
    same = {"cross_attention_dim", "down_block_types", "transformer_layers_per_block"}
    assert all(whole["unet"][key] == narrow["unet"][key] for key in same)


def test_the_pictures_have_captions(tmp_path: Path) -> None:
    folder = random_model.pictures(tmp_path / "pictures", 2, 16)
    assert sorted(file.suffix for file in folder.iterdir()) == [".png", ".png", ".txt", ".txt"]


def test_ours_is_built_steps_and_saves(small_base: Path, tmp_path: Path) -> None:
    """As its process does, command by command."""
    base = tmp_path / "base"
    base.symlink_to(small_base, target_is_directory=True)  # its runs go beside it
    shown = random_model.pictures(tmp_path / "pictures", 4, SIDE)
    held: dict[str, throughput_worker.Ours] = {}

    def ask(do: str, **more: object) -> dict[str, object]:
        return throughput_worker.answer({"device": "cpu", "dtype": "fp32", "clock": "cpu"}, held,
                                        {"do": do, **more})

    built = ask("build", kind="ours", base=str(base), pictures=str(shown), side=SIDE, batch=2,
                dim=4, cached=False)
    assert min(built.values()) > 0
    assert ask("steps", count=2)["seconds"] > 0 and ask("memory")["bytes"] > 0
    assert "aten::" in ask("profile", count=1)["table"]
    ask("save", folder=str(tmp_path))
    run = held["it"].session
    assert run.progress.step == 3 and list(run.where.glob("state/*.safetensors"))


@pytest.mark.slow
def test_the_recipe_trains_beside_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in its own process; the script itself refuses where they train other parameters."""
    need("PEFT")
    monkeypatch.setattr(random_model, "make", lambda folder, kind, narrow: make_base(folder))
    options = benchmark.parse(["--device", "cpu", "--rounds", "2", "--steps", "1", "--threads", "1",
                               "--side", str(SIDE), "--peers", str(FOLDER)])
    found = benchmark.measure(tmp_path, "sd15", options)
    assert [name for name, one in found.items() if one.steps and len(one.saves) == 3] == [
        benchmark.OURS, benchmark.CACHED, benchmark.PLAIN]
    assert len(benchmark.report("sd15", found, options.batch)) == 3
