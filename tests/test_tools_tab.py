"""The tab Tools without a browser: its settings and their command lines, its jobs and results."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
import torch
from conftest import ROOT

from lycogui import toolviews, toolwork, views
from lycogui.page import with_weights
from lycogui.panel import Panel
from lycogui.tabs import compare, tools
from lycogui.toolbox import TOOLS, Convert, Extract, Inspect, Merge, Resize, Task
from lycogui.workspace import Workspace, run_id
from lycoris import arguments, config, events, knobs, metadata
from lycoris.adapterfile import write
from lycoris.contestants import Contestant
from lycoris.errors import AdapterError, ConfigError, RunError
from lycoris.runs import RunFolder
from lycoris.settings import Config
from lycoris.settings.model import DTYPES

LAYER = "lora_unet_mid_block_attentions_0_proj_in"


def adapter(path: Path, *, dim: int = 4, layer: str = LAYER, wide: int = 16) -> Path:
    """A LoRA of one layer, as the small base has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write(path, {f"{layer}.lora_up.weight": torch.ones(wide, dim, 1, 1),
                        f"{layer}.lora_down.weight": torch.ones(dim, wide, 1, 1),
                        f"{layer}.alpha": torch.tensor(2.0)}, torch.float16, {})


@pytest.fixture
def trained(workspace: Workspace) -> Path:
    """A run called a with an adapter; the path that the page is given."""
    run = RunFolder(workspace.runs_folder / "a").create({"config.toml": config.dump(config.load())})
    adapter(run.adapter_file)
    return run.path


def task(workspace: Workspace, tool: str, *names: Path, weights: str = "", tuned: str = "") -> Task:
    texts = [str(name) for name in names]
    return toolwork.task_of(workspace, {
        "tool": tool, "adapter": texts[0] if texts else None, "adapters": texts,
        "weights": weights, "tuned": tuned})


def parsed(words: list[str]) -> Any:
    """The command line as the engine reads it; an unknown word ends the test."""
    out = [] if "--out" in words else ["--out", "x.safetensors"]
    return arguments.parse([*words, *out, "--follow", "folder", "--json"], "")


def test_facts_of_an_adapter_are_there_at_once(workspace: Workspace, trained: Path) -> None:
    found = task(workspace, "inspect", trained)
    assert found.names == ["a"] and found.dim == 4 and found.facts[0]["fits"] is True
    said = toolwork.told(found)
    assert "<b>a</b>: LoRA, dim 4, in 1 layers" in said and "warn" not in said
    other = adapter(workspace.adapters_folder / "b<i>.safetensors", layer="lora_unet_elsewhere")
    found = task(workspace, "inspect", other)
    assert found.facts[0]["fits"] is None and found.fitting_base == []
    assert "b&lt;i&gt;" in toolwork.told(found) and "made for another base" in toolwork.told(found)
    adapter(other, dim=2)
    assert task(workspace, "inspect", other).dim == 2, "the file has changed"


def test_what_is_no_adapter_is_said(workspace: Workspace, trained: Path) -> None:
    with pytest.raises(ConfigError, match="base is the base model itself"):
        task(workspace, "inspect", Path("base"))
    with pytest.raises(AdapterError, match="no adapter 'nothing'"):
        task(workspace, "resize", Path("nothing"))
    with pytest.raises(ConfigError, match="2 contestants and 1 weights"):
        task(workspace, "merge", trained, trained, weights="0.5")
    with pytest.raises(ConfigError, match="no folder"):
        task(workspace, "extract", tuned="/nowhere")
    for settings in (Inspect(), Resize(), Convert(algo="lora"), Merge(), Extract()):
        with pytest.raises(ConfigError, match="choose"):
            settings.words(Task(base=ROOT))


@pytest.mark.parametrize(("asked", "action", "words"), [
    (Resize(), "Resize to dim 2", {"rule": "dim", "dim": 2, "value": None, "dtype": "keep"}),
    (Resize(dim=3, conv_dim=1), "Resize to dim 3", {"dim": 3, "conv_dim": 1}),
    (Resize(rule="first", dim=1), "Cut to the first 1 ranks", {"rule": "first", "dim": 1}),
    (Resize(rule="sv_fro", value=0.9), "Resize by 90 % of the norm",
     {"rule": "sv_fro", "value": 0.9, "dim": None}),
    (Resize(rule="sv_ratio", dim=8), "Resize by singular values above 1/20 of the largest",
     {"value": 20.0, "dim": 8}),
    (Convert(algo="lora"), "Convert to LoRA", {"algo": "lora", "rule": "lossless", "dim": None}),
    (Convert(dialect="peft"), "Convert to peft keys", {"dialect": "peft", "algo": "keep"}),
    (Convert(algo="lora", rule="dim", dialect="diffusers"), "Convert to LoRA and to diffusers "
     "keys", {"algo": "lora", "rule": "dim", "dim": 4, "dialect": "diffusers"}),
    (Convert(algo="full"), "Convert to Full", {"algo": "full"}),
])
def test_settings_become_the_command_that_the_engine_knows(
        workspace: Workspace, trained: Path, asked: Any, action: str,
        words: dict[str, Any]) -> None:
    made = task(workspace, type(asked).title.lower(), trained)
    assert asked.action(made) == action
    line, out = toolwork.prepare(workspace, asked, made)
    read = vars(parsed(line))
    assert {name: read[name] for name in words} == words
    assert read["base"] and out is not None and str(out.resolve()) == read["out"]


def test_the_dim_of_an_empty_field(workspace: Workspace, trained: Path) -> None:
    made = task(workspace, "resize", trained)

    def of(*kinds: str, dim: int) -> int | None:
        return Resize().to_dim(replace(made, facts=({"algorithms": kinds, "dim": dim},)))

    assert of("lora", "norm", dim=8) == 4 and of("lora", dim=1) == 1
    assert of("loha", dim=4) == 8, "a LoRA of the same size"
    assert of("lokr", dim=6) == 6 and of("ia3", dim=0) == 8
    assert Resize(rule="sv_fro").to_dim(made) is None and Resize(dim=3).to_dim(made) == 3


def test_merging(workspace: Workspace, trained: Path) -> None:
    other = adapter(workspace.adapters_folder / "b.safetensors", dim=2)
    made = task(workspace, "merge", trained, other, weights="1, 0.5")
    whole = Merge(up=0.5, block=("unet.*.attn2.* = 0.25", "2: text_encoder.*=0"))
    read = parsed(whole.words(made))
    assert read.into == "model" and [w.rpartition(":")[2] for w in read.adapters] == ["1", "0.5"]
    assert read.block == ["unet.*.attn2.*=0.25", "2: text_encoder.*=0", "unet.up_blocks.*=0.5"]
    place = toolwork.free_place(workspace, whole, made)
    assert place == workspace.models_folder / "small+a+b"
    lora = parsed(Merge(into="lora").words(made))
    assert (lora.into, lora.rule, lora.dim) == ("lora", "dim", 6), "the sum of their dims"
    with pytest.raises(ConfigError, match="at least two"):
        Merge(into="exact").words(task(workspace, "merge", trained))
    with pytest.raises(ConfigError, match="is no rule"):
        Merge(block=("unet.up_blocks",)).words(made)


def test_extracting(workspace: Workspace, small_base: Path) -> None:
    made = task(workspace, "extract", tuned=str(small_base))
    read = parsed(Extract().words(made))
    assert (read.algo, read.rule, read.dim, read.sparsity) == ("lora", "dim", None, None)
    assert Extract(dim=8).action(made) == "Extract a LoRA of dim 8"
    read = parsed(Extract(algo="lokr", factor=8, sparsity=0.9, rule="threshold").words(made))
    assert (read.factor, read.value, read.sparsity) == (8, 0.05, None), "sparsity is LoRA's"
    assert parsed(Extract(algo="full", dim=4).words(made)).dim is None
    with pytest.raises(ConfigError, match="cannot be used"):
        Extract().words(replace(made, base=None))


def test_where_it_is_written(workspace: Workspace, trained: Path, tmp_path: Path) -> None:
    made = task(workspace, "resize", trained)

    def place(settings: Any) -> Path | None:
        return toolwork.prepare(workspace, settings, made)[1]

    home = workspace.adapters_folder
    assert place(Resize()) == home / "a-dim2.safetensors"
    adapter(home / "a-dim2.safetensors")
    assert place(Resize()) == home / "a-dim2-2.safetensors", "nothing is written over"
    assert place(Resize(out="mine")) == home / "mine.safetensors"
    assert place(Resize(out=str(tmp_path / "b.safetensors"))) == tmp_path / "b.safetensors"
    assert place(Convert(dialect="peft")) == home / "a-peft"
    with pytest.raises(ConfigError, match="already") as caught:
        place(Resize(out="a-dim2"))
    assert list(caught.value.problems) == ["out"]
    for elsewhere in ("../mine", "mine/", "a/b.safetensors"):
        with pytest.raises(ConfigError, match="neither a name nor a whole path"):
            place(Resize(out=elsewhere))
    assert place(Inspect()) is None
    evil = replace(made, adapters=(Contestant("../../a b", made.adapters[0].path),))
    assert toolwork.free_place(workspace, Resize(), evil) == home / "a-b-dim2.safetensors"


@pytest.mark.parametrize("name", list(TOOLS))
def test_every_setting_of_a_tool_has_its_widget(name: str) -> None:
    with gr.Blocks():
        panel = Panel(name, TOOLS[name], {})
        places = [*tools.MAIN[name], *tools.MORE[name]]
        if name == "merge":
            places += [*tools.BLOCKS, tools.Place("block")]
        if name != "inspect":
            places.append(tools.Place("out"))
        panel.place(*places)
    assert set(panel.widgets) == set(knobs.leaves(TOOLS[name]))
    shown = {w: update["value"] for w, update in panel.write({}).items()}
    assert panel.read(shown) == TOOLS[name]()
    for place in places:
        assert set(place.names) >= set(panel.leaves[place.path].knob.choices) - {
            *DTYPES} if place.names else True, place.path


def test_a_panel_names_what_is_wrong() -> None:
    with gr.Blocks():
        panel = Panel("resize", Resize, {"dim": 8, "rule": "sv_fro", "gone": 1})
        panel.place(*tools.CUT)
    values = {w: w.value for w in panel.widgets.values()}
    assert panel.read(values) == Resize(rule="sv_fro", dim=8)
    values[panel.widgets["dim"]], values[panel.widgets["value"]] = 0, math.inf
    with pytest.raises(ConfigError) as caught:
        panel.read(values)
    assert caught.value.problems["dim"] == "Dim is 0; the least is 1"
    assert set(caught.value.problems) == {"dim", "value"}
    assert panel.raw(values)["dim"] == 0, "what is wrong is kept as well, for the next reload"


def job(workspace: Workspace, name: str, tool: str = "inspect", **asked: Any) -> RunFolder:
    folder = workspace.tools_folder / name
    folder.mkdir(parents=True)
    (folder / "request.json").write_text(json.dumps({
        "tool": tool, "title": f"{tool} {name}", "at": 1.0, "sources": [], "before": None,
        "whole": False, "words": [], **asked}))
    return workspace.jobs.run(folder)


def finish(run: RunFolder, result: dict[str, Any]) -> str:
    run.append(events.Started(1, 2.0, "", 0))
    (run.path / "result.json").write_text(json.dumps(result))
    run.append(events.Finished("done", 0, "result.json"))
    return run_id(run.path)


def test_a_job_is_followed_by_its_folder(workspace: Workspace) -> None:
    assert views.VIEWS["tool"](workspace, {"tool": "resize"}) == {"id": "", "earlier": []}
    (workspace.tools_folder / "19990101-000000").mkdir(parents=True)  # nothing was asked for there
    run = job(workspace, "20250101-000000", "resize", sources=["/a"], before=9)
    run.append(events.Started(1, 2.0, "", 0))
    run.append(events.Stage("resizing", 3, 7))
    run.append(events.Warned("One layer is left out.", "It has no dim."))
    found = toolviews.tool(workspace, {"tool": "resize"})
    assert found["state"] == "crashed" and found["stage"]["done"] == 3 and found["before"] == 9
    assert found["warnings"] == ["One layer is left out. It has no dim."]
    assert [each["title"] for each in found["earlier"]] == ["resize 20250101-000000"]
    assert toolviews.tool(workspace, {"tool": "merge"})["id"] == ""
    run.append(events.Failed("adapter", "It is broken.", "Take another."))
    assert toolviews.tool(workspace, {"id": found["id"]})["error"]["fix"] == "Take another."


def test_a_result_is_sent_once(workspace: Workspace) -> None:
    name = finish(job(workspace, "1", "resize"), {"verb": "resize", "out": "/nowhere/x", "layers": [
        {"layer": "a", "algorithm": "lora", "dim": 4, "from": "loha, dim 8"},
        {"layer": "b", "algorithm": "norm", "dim": 0, "from": ""}]})
    found = toolviews.tool(workspace, {"tool": "resize"})
    assert found["state"] == "done" and found["result"]["exists"] is False
    assert found["result"]["layers"][0] == {"layer": "a", "algorithm": "LoRA", "dim": 4,
                                            "from": "LoHa, dim 8"}
    assert found["result"]["layers"][1]["algorithm"] == "norm"
    assert "result" not in toolviews.tool(workspace, {"tool": "resize", "have": name})
    json.dumps(found)


def test_the_latest_job_of_a_tool_unless_one_is_named(workspace: Workspace) -> None:
    names = [finish(job(workspace, f"{n}", tool), {}) for n, tool in (
        (1, "inspect"), (2, "resize"), (3, "inspect"))]
    assert toolviews.tool(workspace, {"tool": "inspect"})["id"] == names[2]
    assert toolviews.tool(workspace, {"tool": "inspect", "id": names[0]})["id"] == names[0]
    assert [e["id"] for e in toolviews.tool(workspace, {})["earlier"]] == names[::-1]
    with pytest.raises(RunError, match="no longer there"):
        toolviews.cancel_tool(workspace, {"id": "nothing"})
    toolviews.cancel_tool(workspace, {"id": names[0]})
    assert toolviews.find(workspace, names[0]).requests() == {"stop"}


def test_a_recipe_goes_back_into_the_form(workspace: Workspace,
                                          settings: Callable[..., Config]) -> None:
    run = settings("network.algo=loha", "network.dim=3", "network.options.use_tucker=true",
                   "dataset.folder=/not/here", "output.name=other", "output.folder=/elsewhere",
                   'sample.prompts=["a", "b"]')
    written = json.loads(json.dumps(asdict(run)))
    del written["output"]["folder"]
    written["network"]["of_a_later_version"] = 1
    name = finish(job(workspace, "1"), {"settings": written, "rows": []})
    found, _ = toolwork.from_recipe(workspace, name)
    assert found == replace(run, output=replace(run.output, folder=str(workspace.runs_folder)))
    assert toolwork.for_form(found)[0] == found
    said = toolwork.for_form(found)[1]
    assert "/not/here does not exist here" in said and "name is left empty" not in said
    rows = {row["path"]: row for row in toolviews.tool(workspace, {"id": name})["result"]["recipe"]}
    assert rows["dataset.folder"]["missing"] and not rows["model.base"]["missing"]
    assert rows["network.dim"] == {"path": "network.dim", "label": "Dim", "value": "3",
                                   "changed": True, "missing": False}
    assert not rows["train.seed"]["changed"] and "output.folder" not in rows
    RunFolder(workspace.runs_folder / "other").create({"config.toml": ""})
    found, said = toolwork.for_form(toolwork.from_recipe(workspace, name)[0])
    assert found.output.name == "" and "name is left empty" in said
    silent = finish(job(workspace, "2"), {"settings": None, "source_settings": None})
    with pytest.raises(AdapterError, match="does not say how it was trained"):
        toolwork.from_recipe(workspace, silent)
    source = finish(job(workspace, "3"), {"settings": None, "source_settings": written})
    assert toolwork.from_recipe(workspace, source)[0].network == run.network
    assert toolviews.tool(workspace, {"id": source})["result"]["recipe_of_source"] is True


def test_a_preset_comes_with_its_recipe(workspace: Workspace, settings: Callable[..., Config],
                                        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = 'unet_target_name = ["to_k"]'
    written = json.loads(json.dumps(asdict(settings("network.preset=face.toml"))))
    name = finish(job(workspace, "1"), {"settings": written, "preset": text, "rows": []})
    assert "preset" not in toolviews.tool(workspace, {"id": name})["result"]
    found, said = toolwork.from_recipe(workspace, name)
    assert found.network.preset == "face" and said.startswith("Its preset of layers is face")
    assert (tmp_path / "presets" / "face.toml").read_text() == text
    assert workspace.enqueue(found) == "one"


def test_a_run_of_ones_own_is_trained_again_where_it_was(
        workspace: Workspace, settings: Callable[..., Config], tmp_path: Path) -> None:
    """Its adapter tells no whole paths, its folder does."""
    run = settings()
    made = RunFolder(tmp_path / "elsewhere" / "one").create({"config.toml": config.dump(run)})
    told = json.loads(json.dumps(asdict(config.build(metadata.shared(run)))))
    for file, whole in ((made.adapter_file, True), (tmp_path / "one.safetensors", False)):
        name = finish(job(workspace, f"{whole}"), {"settings": told, "file": str(file), "rows": []})
        found, _ = toolwork.from_recipe(workspace, name)
        assert (found.dataset, found.model) == (run.dataset, run.model) if whole else (
            found.dataset.folder == "pictures" and "does not exist" in toolwork.for_form(found)[1])


def test_made_adapters_are_known_like_runs(workspace: Workspace, trained: Path) -> None:
    made = adapter(workspace.adapters_folder / "small.safetensors")
    (workspace.adapters_folder / "empty").mkdir()
    (workspace.adapters_folder / "notes.txt").write_text("mine")
    assert dict(workspace.adapters()) == {"small": str(made), "a": str(trained)}
    assert ("small", str(made)) in compare.choices(workspace)
    adapter(workspace.adapters_folder / "a.safetensors")
    assert {label for label, _ in workspace.adapters()} == {
        "small", f"a in {trained.parent}", f"a in {workspace.adapters_folder}"}
    assert with_weights(["base", str(made)], "1, 0.5") == ["base", f"{made}:0.5"]


def test_made_adapters_of_a_relative_folder_are_known_by_their_whole_path(
        workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the results of tools name them: else a button brings a path where a name should be."""
    made = adapter(workspace.adapters_folder / "small.safetensors")
    monkeypatch.chdir(workspace.runs_folder.parent)
    workspace.remember(knobs.replace(workspace.config, {"output.folder": "runs"}))
    assert ("small", str(made.resolve())) in workspace.adapters()


@pytest.mark.parametrize(("algo", "told"), [("dylora", "DyLoRA"), ("lora", None)])
def test_what_an_adapter_was_trained_as_is_told_where_its_tensors_do_not(
        workspace: Workspace, settings: Callable[..., Config], algo: str, told: str | None) -> None:
    written = json.loads(json.dumps(asdict(settings(f"network.algo={algo}"))))
    finish(job(workspace, "1"), {"settings": written, "summary": "LoRA, dim 2", "rows": []})
    shown = toolviews.tool(workspace, {"tool": "inspect"})["result"]
    assert shown.get("trained_as") == told


def test_the_fields_of_a_rule() -> None:
    with gr.Blocks():
        panel = Panel("convert", Convert, {})
        panel.place(*tools.MAIN["convert"])
    widgets, values = panel.widgets, {w: w.value for w in panel.widgets.values()}

    def shown(**changes: str) -> dict[str, bool]:
        looks = tools.cut_looks("convert", panel, {**values, **{
            widgets[name]: value for name, value in changes.items()}})
        return {name: looks[widgets[name]]["visible"] is True for name in ("rule", "dim", "value")}

    assert shown() == {"rule": False, "dim": False, "value": False}
    assert shown(algo="lora") == {"rule": True, "dim": False, "value": False}, "lossless"
    assert shown(algo="lora", rule="dim") == {"rule": True, "dim": True, "value": False}
    assert shown(algo="lora", rule="sv_fro") == {"rule": True, "dim": True, "value": True}


def test_a_job_runs_in_its_own_process(workspace: Workspace, trained: Path) -> None:
    """The real command: what it writes is what the page shows."""
    name = toolwork.start(workspace, Resize(), task(workspace, "resize", trained))
    again = toolwork.start(workspace, Resize(), task(workspace, "resize", trained))
    assert again == name, "a second press while it is going on"
    for _ in range(600):
        if (found := toolviews.tool(workspace, {"id": name}))["state"] in ("done", "failed"):
            break
        time.sleep(0.1)
    assert found["state"] == "done", found
    result = found["result"]
    assert result["out"] == str((workspace.adapters_folder / "a-dim2.safetensors").resolve())
    assert Path(result["out"]).stat().st_size == result["bytes"] and result["error"] < 1e-2
    assert found["before"] == (trained / "a.safetensors").stat().st_size
    assert found["sources"] == [str(trained)], "as Compare names it"


def test_an_adapter_can_be_looked_at_without_a_base(workspace: Workspace, trained: Path) -> None:
    workspace.config = knobs.replace(workspace.config, {"model.base": "/nowhere"})
    made = task(workspace, "inspect", trained)
    assert made.base is None and "warn" not in toolwork.told(made)
    assert "--base" not in Inspect().words(made) and "--base" not in Resize().words(made)
    with pytest.raises(ConfigError, match="base model in the header cannot be used"):
        Convert(dialect="diffusers").words(made)
