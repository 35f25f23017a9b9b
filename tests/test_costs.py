"""The views of the Algorithm tab, and the two networks A and B."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from lycogui import costs, describing, pair, speed
from lycogui.costs import Asked
from lycogui.tabs import algorithm, train
from lycogui.workspace import Workspace
from lycoris import advice, algorithms, choose, config, events, knobs, plan, runpresets, units
from lycoris.errors import ConfigError
from lycoris.runs import RunFolder
from lycoris.settings import Config


def shown(workspace: Workspace, view: str, run: Config | None = None, **asked: Any) -> Any:
    made = workspace.plan(run or workspace.config)
    found = costs.card(workspace, made, Asked(view, **asked))
    json.dumps(found)
    assert found["view"] == view
    return found["data"]


@pytest.mark.parametrize("view", costs.VIEWS)
@pytest.mark.parametrize("family", ["auto", "sdxl"])
def test_every_view_is_plain_data_for_every_model(workspace: Workspace, view: str,
                                                  family: str) -> None:
    run = knobs.replace(workspace.config, {"model.family": family, "network.dim": 4})
    assert shown(workspace, view, run, goal="small")


def test_what_was_kept_of_another_version_is_forgotten() -> None:
    assert Asked.of({"view": "gone", "budget": 3}) == Asked()
    assert Asked.of({"view": "budget", "budget": "2.5", "other": 1}) == Asked("budget", budget=2.5)


def test_curves_go_through_the_dim_on_screen(workspace: Workspace) -> None:
    run = knobs.replace(workspace.config, {"network.dim": 5})
    lines = {line["algo"]: line for line in shown(workspace, "dims", run)["lines"]}
    sizes = {dim: size for dim, size, _ in lines["lora"]["points"]}
    assert sizes[5] == workspace.plan(run).sizes.file_bytes
    assert lines["full"]["fixed"] and not lines["lora"]["fixed"]


def test_what_fits_can_be_used(workspace: Workspace) -> None:
    found = shown(workspace, "budget", budget=0.05)
    limit = 0.05 * 2**20
    for fit in found["fits"]:
        if fit["problem"]:
            continue
        run = costs.applied(workspace.config, fit["changed"])
        assert workspace.plan(run).sizes.file_bytes_with_metadata == fit["file_bytes"] <= limit
        assert fit["memory"] == costs.predicted(workspace, workspace.plan(run)).peak
    assert sum(not fit["problem"] for fit in found["fits"]) >= 3


def test_what_fits_follows_the_file_on_screen_until_a_limit_is_set(workspace: Workspace) -> None:
    run = knobs.replace(workspace.config, {"network.dim": 5})
    found = shown(workspace, "budget", run)
    assert found["own"] and 0 <= found["limit"] * 2**20 - found["bytes"] < 0.02 * 2**20
    assert not shown(workspace, "budget", run, budget=2.5)["own"]
    assert Asked.of({"view": "budget", "budget": -5}).budget == 0, "the page refuses it in words"


def test_other_layers_are_named_where_a_size_needs_them(workspace: Workspace) -> None:
    """Native training has one size on each preset alone."""
    fits = {fit["algo"]: fit for fit in shown(workspace, "budget", budget=0.08)["fits"]}
    moved = [fit for fit in fits.values() if "network.preset" in fit["changed"]]
    assert moved and all(f"layers {fit['changed']['network.preset']}" in fit["settings"]
                         for fit in moved)
    assert all("layers" not in fit["settings"] for fit in fits.values() if fit not in moved)


def test_numbers_are_written_out(workspace: Workspace) -> None:
    network = knobs.replace(workspace.config, {"network.alpha": 70_000.0}).network
    assert "alpha 70000" in describing.in_short(network)
    assert describing.said_of("dataset.resolution", 64) == "64 px"
    assert describing.said_of("sample.every", 50) == "50 steps"
    assert describing.said_of("network.algo", "lora") == "LoRA"


def test_a_match_far_off_is_told_in_the_sizes_of_the_screen(workspace: Workspace) -> None:
    run = knobs.replace(workspace.config, {"network.dim": 64})
    found = choose.match(run, "ia3", workspace.family(run))
    made = workspace.plan(run)
    told = algorithm.compared(workspace, run, found)
    assert found.far and units.size(made.sizes.file_bytes_with_metadata) in told


def test_the_memory_adds_up_and_what_lowers_it_does(workspace: Workspace) -> None:
    found = shown(workspace, "needs")
    assert sum(item["bytes"] for item in found["items"]) == found["peak"]
    for saving in found["savings"][:1]:
        lowered = workspace.plan(costs.applied(workspace.config, saving["values"]))
        assert shown(workspace, "needs", lowered.config)["peak"] <= saving["peak"] * 1.01


@pytest.mark.parametrize("goal", advice.GOALS)
def test_advice_can_be_applied(workspace: Workspace, goal: str) -> None:
    for each in shown(workspace, "advice", goal=goal)["suggestions"]:
        run = costs.applied(workspace.config, each["changes"])
        assert run != workspace.config
        assert workspace.plan(run).sizes.file_bytes_with_metadata == each["file_bytes"]


def test_what_a_view_may_not_set() -> None:
    with pytest.raises(ConfigError, match="no setting"):
        costs.applied(config.load(), {"network.dmi": 3})


def test_the_pair_is_lora_and_a_loha_until_one_is_put_there(workspace: Workspace) -> None:
    run = workspace.config
    a, b = pair.Pair.of(workspace, run).runs(run)
    assert (a.network.algo, b.network.algo) == ("lora", "loha")
    other = knobs.replace(run, {"network.algo": "lokr", "network.options": {"factor": 4},
                                "network.rules": ({"match": "*", "dim": 3},)})
    pair.put(workspace, "b", other.network)
    sides = pair.Pair.of(workspace, run).sides
    assert (sides[0].own, sides[1].own) == (False, True)
    assert sides[1].network == other.network
    found = shown(workspace, "pair")
    assert found["sides"][1]["values"]["Algorithm"] == algorithms.catalogue()["lokr"].label
    assert found["sides"][1]["values"]["Factor"] == "4"
    pair.put(workspace, "b", None)
    assert pair.Pair.of(workspace, run).sides[1].network == b.network


def test_unequal_sizes_are_told(workspace: Workspace) -> None:
    assert "fair comparison" in shown(workspace, "pair")["note"]
    pair.put(workspace, "b", knobs.replace(workspace.config, {"network.dim": 16}).network)
    assert "times the smaller" in shown(workspace, "pair")["note"]


def test_the_train_tab_starts_these_two(workspace: Workspace) -> None:
    workspace.jobs.close()
    run = workspace.config
    for side, dim in (("a", 2), ("b", 3)):
        pair.put(workspace, side, knobs.replace(run, {"network.dim": dim}).network)
    names = train.enqueue_pair(workspace, run)
    dims = [config.load(workspace.runs_folder / name / "config.toml").network.dim
            for name in names]
    assert dims == [2, 3] and names[0].endswith("-a") and names[1].endswith("-b")


def test_a_known_model_is_shown_at_its_own_size(workspace: Workspace,
                                                settings: Callable[..., Config]) -> None:
    run = settings("model.family=sdxl")
    assert workspace.plan(run).config.dataset.resolution == 1024
    assert workspace.base(run).known is None and workspace.family(run).known is not None
    assert plan.make(knobs.replace(run, {"model.family": "auto"})).family.known is None


def test_presets_for_the_base_come_first_and_apply_what_they_show(workspace: Workspace) -> None:
    run = knobs.replace(workspace.config, {"model.family": "sdxl"})
    workspace.remember(run)
    found = shown(workspace, "presets", run, preset="person-sdxl-12gb")
    assert found["base"] and all("sdxl" in one["name"] for one in found["presets"] if one["own"])
    assert [one["own"] for one in found["presets"]] == sorted(
        (one["own"] for one in found["presets"]), reverse=True)
    then = costs.applied(run, found["values"])
    assert then == runpresets.applied(run, runpresets.find("person-sdxl-12gb"))
    assert ["Dim", str(run.network.dim), "32"] in found["changes"]
    assert {"Steps", "Sampling steps"} <= {name for name, *_ in found["changes"]}
    workspace.remember(then)
    assert not shown(workspace, "presets", then, preset="person-sdxl-12gb")["changes"]


def test_the_embedded_base_is_none_of_those_that_presets_are_for(workspace: Workspace) -> None:
    found = shown(workspace, "presets", preset="gone")
    assert not found["base"] and "changes" not in found
    assert not any(one["own"] or one["fits"] for one in found["presets"])


def test_a_calibration_that_was_stopped_leaves_no_folder(workspace: Workspace) -> None:
    folder = workspace.runs_folder / speed.FOLDER / "20260101-000000"
    folder.mkdir(parents=True)
    (folder / "settings.toml").write_text("")
    RunFolder(folder).append(events.Finished("stopped", 0, ""))
    assert speed.calibration(workspace, {})["state"] == "stopped"
    assert not folder.parent.exists()
    assert speed.calibration(workspace, {}) == {"state": "none"}
