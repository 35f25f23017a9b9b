"""The verbs for choosing, as a person and as a script call them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lycoris import config, units
from lycoris.__main__ import main
from lycoris.errors import ConfigError

Call = Callable[..., tuple[int, Any]]
SD15 = ("model.family=sd15", "network.dim=32")


@pytest.fixture
def lycoris(capfd: pytest.CaptureFixture[str]) -> Call:
    """lycoris("estimate", ...): (exit code, the JSON document on stdout)."""

    def call(*arguments: str) -> tuple[int, Any]:
        capfd.readouterr()
        code = main([*arguments, "--json"])
        return code, json.loads(capfd.readouterr().out)

    return call


def test_match(lycoris: Call) -> None:
    code, found = lycoris("estimate", *SD15, "--match", "loha")
    assert code == 0 and not found["far"] and found["changed"]["network.dim"] == 16
    words = [f"{path}={value}" for path, value in found["changed"].items()]
    _, estimate = lycoris("estimate", *SD15, *words)
    assert estimate["file_bytes"] == found["file_bytes"], "what it says, estimate says"


def test_budget(lycoris: Call) -> None:
    code, found = lycoris("estimate", *SD15, "--budget", "40MiB")
    assert code == 0 and found["limit"] == 40 * 2**20
    fits = {fit["algo"]: fit for fit in found["fits"]}
    assert fits["lora"]["ratings"]["fidelity"] == 2 and fits["glora"]["rating"] == "not rated"
    assert "nothing fits" in fits["full"]["problem"]
    assert fits["lora"]["memory"] > 2**30
    changed = {path for fit in fits.values() for path in fit["changed"]}
    assert all(path.startswith("network.") for path in changed), "and no prompts of the pictures"


def test_budget_says_where_the_guideline_ranks_it(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", *SD15, "--budget", "40MiB"]) == 0
    said = capfd.readouterr().out
    assert "peak memory" in said and "guideline: LoRA: fidelity ●, flexibility ●" in said
    assert "prompts" not in said
    assert main(["estimate", *SD15, "--budget", "40"]) == 2


def test_one_estimate_says_parts_kinds_and_precisions(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", *SD15]) == 0
    said = capfd.readouterr().out
    for text in ("LoRA on Stable Diffusion 1.5", "\n                text encoder ", ", UNet ",
                 "\n                linear ", ", conv 1x1 ", "in fp16, ", "; bf16 ", ", fp32 "):
        assert text in said, text
    assert main(["estimate", "table"]) == 0
    assert "file without metadata" in capfd.readouterr().out


def test_curves(lycoris: Call) -> None:
    code, found = lycoris("estimate", *SD15, "--curves")
    assert code == 0 and {"dim", "file_bytes", "parameters"} == found["lora"][0].keys()


def test_advise(lycoris: Call) -> None:
    code, found = lycoris("advise", "learns-too-much", *SD15)
    assert code == 0 and found["suggestions"][0]["changes"]["network.algo"] == "loha"
    code, found = lycoris("advise", "nonsense", *SD15)
    assert code == 2 and "learns-too-little" in found["error"]["message"]


def test_forms_and_back(lycoris: Call, tmp_path: Path) -> None:
    settings = ("network.algo=lokr", "network.options.factor=4", "network.dim=3")
    run = config.load(None, settings)
    for form in ("toml", "whole", "command", "kohya"):
        code, said = lycoris("estimate", *settings, "--as", form)
        assert code == 0 and said["form"] == form
        file = tmp_path / f"{form}.txt"
        file.write_text(said["text"], "utf-8")
        _, read = lycoris("recipe", str(file))
        assert read["settings"]["network.algo"] == "lokr"
        assert len(read["unknown"]) == (form == "kohya"), "where runs are kept, alone"
        _, again = lycoris("recipe", str(file), "--as", "command")
        assert config.settings(_words(again["text"])).network == run.network


def _words(command: str) -> list[str]:
    import shlex

    return shlex.split(command)[4:]


def test_a_recipe_on_standard_input(lycoris: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("algo=lokr factor=8 x=1"))
    code, found = lycoris("recipe", "-")
    assert code == 0 and found["settings"] == {
        "network.algo": "lokr", "network.options": {"factor": 8}}
    assert len(found["unknown"]) == 1
    monkeypatch.setattr("sys.stdin", io.StringIO("nothing of the kind"))
    code, found = lycoris("recipe", "-")
    assert code == 2 and "no settings" in found["error"]["message"]


def test_people_read_sentences(capfd: pytest.CaptureFixture[str]) -> None:
    for arguments, text in (
            (("estimate", *SD15, "--match", "loha"), "LoHa with dim 16"),
            (("estimate", *SD15, "--budget", "1GiB"), "peak memory"),
            (("estimate", *SD15, "--curves"), "MiB"), (("advise", "small", *SD15), "1. "),
            (("estimate", *SD15, "--as", "kohya"), 'network_module = "lycoris.kohya"')):
        assert main(list(arguments)) == 0
        assert text in capfd.readouterr().out


@pytest.mark.parametrize(("text", "size"), [
    ("40MiB", 41_943_040), ("40 mib", 41_943_040), ("1.5MB", 1_500_000), ("2M", 2 * 2**20),
    ("100B", 100), ("1GB", 10**9), ("3KiB", 3072)])
def test_sizes_in_words(text: str, size: int) -> None:
    assert units.parsed(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-1MiB", "1e3", "40 apples", "1..2", "40"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError):
        units.parsed(text)


def test_a_number_without_a_unit_is_no_size() -> None:
    with pytest.raises(ConfigError) as caught:
        units.parsed("40")
    assert "Write e.g. 40MiB." in str(caught.value)


@pytest.mark.parametrize(("count", "text"), [
    (0, "0 bytes"), (1023, "1,023 bytes"), (38.5 * 2**10, "38.5 KiB"), (1023.96 * 2**20, "1.0 GiB"),
    (-14 * 2**20, "−14.0 MiB"), (157.6 * 2**30, "157.6 GiB")])
def test_sizes_as_they_are_read(count: float, text: str) -> None:
    assert units.size(count) == text


@pytest.mark.parametrize(("seconds", "text"), [
    (12.4, "12 s"), (380, "6 min 20 s"), (7500, "2 h 05 min"), (133 * 3600, "5 d 13 h")])
def test_times_as_they_are_read(seconds: float, text: str) -> None:
    assert units.duration(seconds) == text
