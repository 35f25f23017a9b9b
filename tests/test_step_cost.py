"""What benchmarks/step_cost.py makes of its measurements; the measuring itself is no test."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.step_cost import (
    CASES,
    MIB,
    Entry,
    Result,
    as_json,
    cells,
    entries,
    goals,
    joined,
    parse,
    remarks,
    report,
)
from benchmarks.step_worker import highest


def measured(kind: str, mode: str, over: list[float], mib: float) -> Result:
    return Result(Entry(kind, mode, {}), layers=192, memory=int(mib * MIB), over=over,
                  seconds=[2 * ratio for ratio in over])


FLOOR = measured("frozen", "", [1.0, 1.0, 1.0], 0)
PEER = measured("lycoris-lora", "bypass", [1.30, 1.34, 1.36], 100)
SLOW = measured("lycoris-lora", "rebuild", [1.70, 1.74, 1.76], 90)


@pytest.mark.parametrize(("own", "verdicts"), [
    (measured("ours", "", [1.10, 1.14, 1.12], 90), ["reached", "reached", "reached"]),
    (measured("ours", "", [1.20, 1.36, 1.38], 91), ["**not reached**", "level", "**not reached**"]),
    (measured("ours", "", [1.40, 1.44, 1.46], 80), ["**not reached**", "**not reached**",
                                                   "reached"])])
def test_goals_are_held_against_the_fastest_and_the_leanest(own: Result,
                                                            verdicts: list[str]) -> None:
    rows = list(goals(CASES["lora"], [FLOOR, own, PEER, SLOW], cpu=True))
    assert [row.split("|")[-2].strip() for row in rows] == verdicts
    assert "bypass" in rows[1] and "rebuild" in rows[2]


def test_on_a_gpu_there_is_no_limit_to_the_floor() -> None:
    own = measured("ours", "", [9.0, 9.0], 0)
    assert not list(goals(CASES["lora"], [FLOOR, own], cpu=False))


def test_unequal_work_is_shown_and_not_a_peer() -> None:
    peft = measured("peft", "", [1.0, 1.0, 1.0], 0)
    own = measured("ours", "", [1.2, 1.2, 1.2], 50)
    results = [FLOOR, own, PEER, peft]
    assert "1.00, +0" in cells(CASES["boft"], results)
    assert all("peft" not in row for row in goals(CASES["boft"], results, cpu=True))
    assert any("not counted" in said for said in remarks(CASES["boft"], results))


def test_what_failed_is_left_out_in_words() -> None:
    broken = Result(Entry("ours", "", {}), problem="ConfigError: there is no algorithm boft\nmore")
    results = [FLOOR, broken, PEER]
    assert cells(CASES["boft"], results).count("–") == 3
    assert not list(goals(CASES["boft"], results, cpu=True))
    assert any("no algorithm boft" in said for said in remarks(CASES["boft"], results))


def test_other_numbers_of_layers_are_told() -> None:
    other = measured("ours", "", [1.0, 1.0], 0)
    other.layers = 194
    assert any("194" in said for said in remarks(CASES["lora"], [FLOOR, other, PEER]))


def test_a_missing_peer_has_no_entries() -> None:
    assert {e.kind for e in entries(CASES["lora"], ())} == {"frozen", "native", "ours"}
    modes = [e.mode for e in entries(CASES["lora"], ("lycoris-lora",)) if e.kind == "lycoris-lora"]
    assert modes == ["rebuild", "bypass"]


def test_memory_is_the_highest_sum_within_the_warm_step() -> None:
    changes = [(1, 100), (2, 900), (3, -900), (11, 50), (12, 30), (13, -60), (21, 5000)]
    assert highest(changes, 10, 18) == 180


def test_pieces_make_the_table_of_one_run(tmp_path: Path) -> None:
    """Of two files, with what was lost in one of them."""
    own = measured("ours", "", [1.1, 1.2, 1.3], 50)
    whole = parse(["--rounds", "3"])
    whole.lost["boft"] = "peft's process ended by itself (-9; a full memory)"
    found = {"lora": [FLOOR, own, PEER], "dora": [FLOOR, own]}
    files = []
    for name, rows in found.items():
        options = parse(["--rounds", "3"])
        options.lost = dict(whole.lost) if name == "dora" else {}
        files.append(tmp_path / name)
        files[-1].write_text(as_json({name: rows}, options))
    options, again = parse(["--join", *map(str, files)]), {}
    joined(options, again)
    assert report(again, options) == report(found, whole)
    assert "boft: not measured" in report(again, options)
