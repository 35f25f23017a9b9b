"""The page without a browser: the form's two ways, the layout, and what the page asks for."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from lycogui import costs, ui, views
from lycogui import pictures as page_pictures
from lycogui.form import Form
from lycogui.layout import SECTIONS
from lycogui.page import Page
from lycogui.tabs import algorithm, compare, dataset
from lycogui.workspace import Workspace
from lycoris import (
    algorithms,
    choose,
    config,
    contestants,
    devices,
    events,
    knobs,
    machine,
    plan,
)
from lycoris.config import LEAVES
from lycoris.errors import AdapterError, ConfigError, DatasetError, RunError
from lycoris.runs import RunFolder
from lycoris.settings import Config


@pytest.fixture(scope="module")
def form() -> Form:
    made = Form(config.load())
    with gr.Blocks():
        for section in SECTIONS:
            made.place(section)
        made.place_options()
    return made


def shown(form: Form, run: Config) -> dict[Any, Any]:
    """What the widgets hold after `write`: what a handler would get."""
    updates = form.write(run)
    return {w: updates[w]["value"] if w in updates else w.value for w in form.widgets.values()}


def test_every_setting_is_placed_exactly_once() -> None:
    placed = [place.path for section in SECTIONS.values() for place in section]
    assert len(placed) == len(set(placed))
    assert set(placed) == set(LEAVES) - {"network.options"}, "options have their own groups"


def test_start_values_round_trip(form: Form) -> None:
    assert form.read({w: w.value for w in form.widgets.values()}) == config.load()


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(dim=st.integers(1, 5000), conv=st.none() | st.integers(0, 64), dora=st.booleans(),
       lr=st.floats(1e-9, 100), algo=st.sampled_from(list(algorithms.catalogue())),
       own=st.booleans(), seeds=st.lists(st.integers(0, 2**40), min_size=1, max_size=4),
       prompts=st.lists(st.text("abc, [\"']é🙂", min_size=1).map(str.strip).filter(
           lambda s: s and not s.startswith("[")), max_size=4))
def test_any_config_round_trips_through_the_widgets(
        form: Form, dim: int, conv: int | None, dora: bool, lr: float, algo: str, own: bool,
        seeds: list[int], prompts: list[str]) -> None:
    leaves = knobs.leaves(algorithms.catalogue()[algo].Options)
    run = knobs.replace(config.load(), {
        "network.dim": dim, "network.conv_dim": conv, "network.dora_wd": dora, "optimizer.lr": lr,
        "network.algo": algo, "network.options": {
            name: not leaf.default for name, leaf in leaves.items() if own and leaf.type is bool},
        "network.rules": ({"match": "*attn2*", "dim": 4, "options": {"factor": 8}},
                          {"match": "conv in", "exclude": True}) if own else (),
        "sample.seeds": tuple(seeds), "sample.prompts": tuple(prompts),
        "optimizer.args": {"betas": [0.9, 0.95]}})
    assert form.read(shown(form, run)) == run


@pytest.mark.parametrize(("path", "value"), [
    ("network.dim", 900), ("network.dim", 1_000_000), ("network.alpha", 0.25),
    ("network.alpha", 0.01), ("network.alpha", 256), ("network.dropout", 0.123)])
def test_the_widgets_hold_every_legal_value(form: Form, path: str, value: float) -> None:
    """Gradio's own check comes before every handler of ours, so it must let them through."""
    widget = form.widgets[path]
    values = shown(form, knobs.replace(config.load(), {path: value}))
    values[widget] = widget.preprocess(values[widget])
    assert knobs.get(form.read(values), path) == value
    values[widget] = widget.preprocess(None)
    assert list(form.problems(values)) == [path], "an emptied field is our error, not Gradio's"


@pytest.mark.parametrize("path", ["network.dim", "train.steps", "network.conv_dim"])
def test_a_fraction_of_a_whole_number_is_refused_and_not_rounded(form: Form, path: str) -> None:
    widget = form.widgets[path]
    values = shown(form, config.load()) | {widget: widget.preprocess(2.5)}
    assert "expects a whole number, got 2.5" in form.problems(values)[path]


def test_problems_land_on_their_widgets(form: Form) -> None:
    values = shown(form, config.load())
    values[form.widgets["train.steps"]] = 0
    values[form.widgets["optimizer.args"]] = "betas = ["
    values[form.widgets["sample.seeds"]] = "one"
    answers = form.validate(values)
    order = [name for name, _ in sorted(form.widgets.items(), key=lambda item: item[1]._id)]
    bad = {name: a["message"] for name, a in zip(order, answers, strict=True) if not a["is_valid"]}
    assert set(bad) == {"train.steps", "optimizer.args", "sample.seeds"}
    assert "least is 1" in bad["train.steps"]


def test_what_only_the_plan_can_see_lands_on_widgets_too(form: Form, tmp_path: Path) -> None:
    values = shown(form, config.load())
    values[form.widgets["dataset.folder"]] = str(tmp_path)
    assert "holds no pictures" in form.problems(values)["dataset.folder"]
    values[form.widgets["model.base"]] = str(tmp_path / "nowhere")
    assert "no base model" in form.problems(values)["model.base"]


def test_the_page_builds(workspace: Workspace) -> None:
    blocks = ui.build(workspace)
    assert len(blocks.fns) > 15
    public = [fn.api_name for fn in blocks.fns.values()
              if fn.api_visibility == "public" and fn.fn is not None]
    assert not public, "no public API by accident"


def test_the_loss_is_shown_as_it_is_chosen(workspace: Workspace) -> None:
    """Fields without a say are hidden, and the plot is of the settings on screen."""
    handlers = {fn.fn.__name__: fn for fn in ui.build(workspace).fns.values() if fn.fn}

    def answer(name: str, *settings: str) -> Any:
        values = {"loss.weighting": "p2", **dict(text.split("=") for text in settings)}
        given = {widget: values.get(widget.elem_id, widget.value)
                 for widget in handlers[name].inputs}
        return handlers[name].fn(given)

    seen = {widget.elem_id: update["visible"] for widget, update in zip(
        handlers["loss_fields"].outputs, answer("loss_fields"), strict=True)}
    assert seen["loss.p2_gamma"] and seen["loss.p2_k"] and not seen["loss.snr_gamma"]
    drawn = answer("loss_plot")
    assert len(drawn["often"]) == len(drawn["weight"]) and drawn["weight"][0] < drawn["weight"][50]
    assert "choose at most" in answer("loss_plot", "loss.timestep_min=5000")["problems"][0]


def test_settings_survive_a_restart(workspace: Workspace, settings: Callable[..., Config]) -> None:
    run = settings("network.dim=5", "output.name=")
    workspace.remember(run)
    again = Workspace(workspace.settings)
    assert again.config == run
    again.jobs.close()


def test_unusable_settings_are_set_aside(tmp_path: Path) -> None:
    file = tmp_path / "last.toml"
    file.write_text("[network]\ndimension = 3\n")
    made = Workspace(file)
    made.jobs.close()
    assert made.config == config.load()
    assert (tmp_path / "last.unusable.toml").read_text() == "[network]\ndimension = 3\n"


def test_status_names_base_and_device(workspace: Workspace) -> None:
    found = views.status(workspace, {})
    assert found["base"] == {"name": "small", "label": "Stable Diffusion 1.x", "problem": ""}
    assert found["device"]["total"] > 0 and found["job"] is None and found["waiting"] == 0
    assert found["beside"] == []
    workspace.config = knobs.replace(workspace.config, {"model.base": "/nowhere"})
    assert "no base model" in views.status(workspace, {})["base"]["problem"]


def test_the_epoch_is_counted_and_follows_settings_and_files(workspace: Workspace, pictures: Path,
                                                             tmp_path: Path) -> None:
    found = views.epoch(workspace, {})
    assert (found["shown"], found["batches"], found["smaller"], found["epochs"]) == (5, 3, 1, 2)
    assert [(b["shown"], b["batches"], b["rest"]) for b in found["buckets"]] == [(5, 3, 1)]
    assert found["painted"] == ["a ball"] and found["every"] == 0
    run = workspace.config
    (pictures / "6.gif").write_bytes(b"GIF")
    workspace.remember(knobs.replace(run, {"dataset.repeats": 2}))
    found = views.epoch(workspace, {})
    assert (found["shown"], found["batches"]) == (10, 5)
    assert [each["names"] for each in found["left_out"]] == [["6.gif"]]
    workspace.remember(knobs.replace(run, {"dataset.folder": str(tmp_path / "none")}))
    assert "There is no folder" in views.epoch(workspace, {})["problem"]


def test_gallery_lists_pictures_and_problems(workspace: Workspace, pictures: Path) -> None:
    (pictures / "2.txt").unlink()
    (pictures / "3.png").write_text("no picture")
    found = views.gallery(workspace, {})
    assert [item["name"] for item in found["items"]] == [f"{n}.png" for n in range(1, 6)]
    assert found["problems"] == {"unreadable": ["3.png"], "no caption": ["2.png"]}
    assert found["items"][1]["flags"] == ["no caption"] and found["items"][0]["tokens"] > 3
    assert "items" not in views.gallery(workspace, {"version": found["version"]})
    (pictures / "2.txt").write_text("now")
    again = views.gallery(workspace, {"version": found["version"]})
    assert again["problems"] == {"unreadable": ["3.png"]}


def test_captions_longer_than_the_text_encoder_reads(workspace: Workspace, pictures: Path) -> None:
    (pictures / "1.txt").write_text("ball " * 200)
    found = views.gallery(workspace, {})
    assert found["problems"][f"longer than {found['limit']} tokens"] == ["1.png"]


def test_saving_a_caption(workspace: Workspace, pictures: Path) -> None:
    views.gallery(workspace, {})
    given = {"folder": str(pictures), "name": "1.png", "text": "a new one",
             "before": "a ball, number 1"}
    assert views.save_caption(workspace, given)["caption"] == "a new one"
    assert (pictures / "1.txt").read_text() == "a new one\n"
    again = views.save_caption(workspace, given)
    assert again["caption"] == "a new one" and again["tokens"] > 2, "twice is no conflict"


def test_the_sample_itself_is_never_written(workspace: Workspace, tmp_path: Path,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first changed caption goes into a copy beside the runs, which is the dataset then."""
    sample = tmp_path / "assets" / "datasets" / "zorb"
    shutil.copytree(ROOT / "assets" / "datasets" / "zorb", sample)
    monkeypatch.setattr(config, "ASSETS", tmp_path / "assets")
    workspace.config = knobs.replace(workspace.config, {"dataset.folder": str(sample)})
    views.gallery(workspace, {})
    before = (sample / "zorb_01.txt").read_text()
    given = {"folder": str(sample), "name": "zorb_01.png", "before": before.strip()}
    assert views.save_caption(workspace, given | {"text": before.strip()})["folder"] == str(sample)
    mine = Path(views.save_caption(workspace, given | {"text": "mine"})["folder"])
    assert mine == workspace.runs_folder.parent / "datasets" / "zorb"
    assert (sample / "zorb_01.txt").read_text() == before != (mine / "zorb_01.txt").read_text()
    found = views.gallery(workspace, {})
    assert found["folder"] == str(mine) and found["items"][0]["caption"] == "mine"
    assert len(found["items"]) == 16


def test_the_dataset_needs_no_base_model(workspace: Workspace, pictures: Path) -> None:
    whole = views.gallery(workspace, {})
    workspace.config = knobs.replace(workspace.config, {"model.base": "/nowhere"})
    found = views.gallery(workspace, {"version": whole["version"]})
    assert [item["caption"] for item in found["items"]] == [i["caption"] for i in whole["items"]]
    assert found["limit"] is None and {item["tokens"] for item in found["items"]} == {None}
    given = {"folder": str(pictures), "name": "1.png", "text": "mine", "before": "a ball, number 1"}
    assert views.save_caption(workspace, given) == {
        "caption": "mine", "folder": str(pictures), "tokens": None}


def test_a_caption_changed_elsewhere_is_not_overwritten(workspace: Workspace,
                                                        pictures: Path) -> None:
    (pictures / "1.txt").write_text("from another program")
    views.gallery(workspace, {})
    answer = views.save_caption(workspace, {"folder": str(pictures), "name": "1.png",
                                            "text": "mine", "before": "a ball, number 1"})
    assert answer == {"conflict": "from another program"}
    assert (pictures / "1.txt").read_text() == "from another program"


def test_captions_only_of_pictures_in_an_opened_folder(workspace: Workspace, pictures: Path,
                                                       tmp_path: Path) -> None:
    (tmp_path / "other.png").write_bytes(b"")
    views.gallery(workspace, {})
    for home, name in ((pictures, "../other.png"), (pictures, "/etc/passwd"), (pictures, "9.png"),
                       (pictures, ""), (tmp_path, "other.png")):
        with pytest.raises(DatasetError, match="no longer in"):
            views.save_caption(workspace, {"folder": str(home), "name": name, "text": "x",
                                           "before": ""})
    assert not (tmp_path / "other.txt").exists()


def _trained(folder: Path, name: str, steps: int, resumes: tuple[int, ...] = ()) -> RunFolder:
    run = RunFolder(folder / name).create({
        "config.toml": config.dump(config.load()), "plan.json": json.dumps({"steps": 100})})
    run.append(events.Started(1, 2.0, "CPU", 100))
    run.append(events.Resumed(0))
    for number in range(1, steps + 1):
        run.append(events.Step(number, 0.1, 1 / number, 1 / number, 1e-3, 0.1, 0.5, 10**9))
        if number in resumes:
            run.append(events.Resumed(number - 1))
    return run


def test_following_a_run_by_cursor(workspace: Workspace) -> None:
    run = _trained(workspace.runs_folder, "a", 5)
    name = views.run_id(run.path)
    first = views.follow(workspace, {"run": name})
    assert [p[0] for p in first["points"]] == [1, 2, 3, 4, 5] and first["state"] == "crashed"
    assert first["total"] == 100 and first["left"] == pytest.approx(95 * 0.5)
    cursor = {"run": name, "steps": first["seen"], "resumes": first["resumes"]}
    assert views.follow(workspace, cursor)["points"] == []
    run.append(events.Step(6, 0.1, 0.5, 0.5, 1e-3, 0.1, 0.5, 1))
    assert [p[0] for p in views.follow(workspace, cursor)["points"]] == [6]
    run.append(events.Resumed(3))
    again = views.follow(workspace, cursor)
    assert again["reset"] and [p[0] for p in again["points"]] == [1, 2, 3]
    with pytest.raises(RunError, match="no longer there"):
        views.follow(workspace, {"run": "nothing"})


@pytest.mark.parametrize(("algo", "said"), [("lora", "LoRA 8, full"), ("full", "Full, full")])
def test_a_run_in_a_few_words(workspace: Workspace, algo: str, said: str) -> None:
    run = RunFolder(workspace.runs_folder / "a").create({"config.toml": config.dump(
        config.load(None, [f"network.algo={algo}", "network.dim=8", "network.preset=full"]))})
    assert views.follow(workspace, {"run": views.run_id(run.path)})["about"] == said


def test_the_total_is_that_of_the_last_start(workspace: Workspace) -> None:
    run = _trained(workspace.runs_folder, "a", 5)
    run.append(events.Started(1, 2.0, "CPU", 250))
    run.append(events.Resumed(5))
    assert views.all_runs(workspace, {})["runs"][0]["total"] == 250, "plan.json still says 100"


def test_the_first_and_the_last_look_at_what_is_held_out(workspace: Workspace) -> None:
    run = _trained(workspace.runs_folder, "a", 5)
    given = {"run": views.run_id(run.path)}
    assert views.follow(workspace, given)["looks"] == []
    for step, loss in ((0, 0.5), (2, 0.4), (4, float("nan"))):
        run.append(events.Validated(step, loss, {"62": loss}))
    told = views.follow(workspace, given)
    assert told["looks"] == [{"step": 0, "loss": 0.5, "timesteps": {"62": 0.5}},
                             {"step": 4, "loss": None, "timesteps": {"62": None}}]
    assert told["validations"] == [[0, 0.5], [2, 0.4], [4, None]] and told["validation"] is None
    json.dumps(told, allow_nan=False)


@pytest.mark.parametrize(("shown", "said"), [
    ({}, (200, 150)), ({"device": "cpu", "peak": 180, "counted": 180}, (180, 150)),
    ({"device": "cuda", "peak": 700, "counted": 180}, (700, 670))])
def test_the_memory_that_was_predicted_is_the_one_that_was_shown(
        workspace: Workspace, shown: dict[str, Any], said: tuple[int, int]) -> None:
    """Before the run, with what earlier ones had taught and with a card's context."""
    run = _trained(workspace.runs_folder, "a", 5)
    (run.path / "plan.json").write_text(json.dumps({"memory": shown}))
    run.append(events.Measured(200, 150, 2.0))
    found = views.follow(workspace, {"run": views.run_id(run.path)})
    assert tuple(found["measured"].values()) == said
    assert found["on_card"] == (shown.get("device") == "cuda")


def test_a_picture_painted_anew_has_another_address(workspace: Workspace) -> None:
    run = _trained(workspace.runs_folder, "a", 5)
    run.append(events.Sampled(5, 0, "samples/x.png", "a ball", 1))
    file = run.sub("samples") / "x.png"
    urls = set()
    for second in (1, 2):
        file.write_bytes(b"")
        os.utime(file, (second, second))
        urls |= {s["url"] for s in views.follow(workspace, {"run": views.run_id(run.path)})[
            "samples"]}
    assert len(urls) == 2


def test_long_histories_are_thinned_but_keep_their_extremes() -> None:
    steps = [events.Step(n, 0, float(n % 97), 0.0, 0, 0, 0, 0) for n in range(1, 20_001)]
    steps[7777] = events.Step(7778, 0, 500.0, 0.0, 0, 0, 0, 0)
    found = views.thinned(steps, 3000)
    assert len(found) <= 3003 and found[-1].step == 20_000
    assert max(s.loss for s in found) == 500.0 and min(s.loss for s in found) == 0.0
    assert [s.step for s in found] == sorted({s.step for s in found})
    assert views.thinned(steps[:100], 3000) == steps[:100]


def test_asking_a_run(workspace: Workspace) -> None:
    run = _trained(workspace.runs_folder, "a", 2)
    given = {"run": views.run_id(run.path)}
    with pytest.raises(RunError, match="not running"):
        views.ask(workspace, {**given, "what": "save"})
    with pytest.raises(RunError, match="no request"):
        views.ask(workspace, {**given, "what": "start"})
    workspace.jobs.close()
    views.ask(workspace, {**given, "what": "resume"})
    assert views.all_runs(workspace, {})["queue"] == [given["run"]]
    assert views.ask(workspace, {**given, "what": "withdraw"})["state"] == "crashed"


def test_a_stop_while_files_are_written_is_shown_and_can_leave_out_the_model(
        workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _trained(workspace.runs_folder, "a", 2)
    given = {"run": views.run_id(run.path)}
    run.append(events.Stopping(2, "the whole model"))
    assert views.follow(workspace, given)["stopping"] is None, "its process is gone"
    monkeypatch.setattr(RunFolder, "state", lambda self: "running")
    assert views.follow(workspace, given)["stopping"]["cancels"] == "the whole model"
    views.ask(workspace, {**given, "what": "cancel"})
    assert "cancel" in run.requests()


def test_the_plan_card(workspace: Workspace) -> None:
    found = costs.card(workspace, workspace.plan(workspace.config), costs.Asked())
    assert found["bytes"] == plan.make(workspace.config).sizes.file_bytes_with_metadata
    assert found["trained"]["said"] == (
        "Layers “full”: all 83 of the UNet and all 12 of the text encoder.")
    assert ["residual blocks", 29, "ResnetBlock2D"] in found["trained"]["kinds"]
    assert found["trained"]["parts"][0].endswith(" parameters in 83 layers of the UNet")
    rows = {row["algo"]: row for row in found["data"]}
    assert list(rows) == list(algorithms.catalogue())
    assert [row["on"] for row in rows.values()].count(True) == 1
    assert rows["lora"]["settings"] == "dim 2, alpha 2" and rows["full"]["settings"] == "no dim"
    assert rows["loha"]["equal"] and not rows["lora"]["equal"]
    assert rows["dylora"]["problem"] == (
        "Dim is 2: DyLoRA's must be a multiple of its block size, 4; set it to 4, or change the "
        "block size")
    assert "problem" not in rows["loha"] and rows["loha"]["bytes"] == plan.make(knobs.replace(
        workspace.config, {"network.algo": "loha"})).sizes.file_bytes_with_metadata
    json.dumps(found)


def test_memory_says_what_it_rests_on(workspace: Workspace) -> None:
    made = workspace.plan(workspace.config)
    before = costs.peak(workspace, made)
    assert "no run on this base has been measured" in before["known"]
    machine.learn_memory(made, devices.look(workspace.device).name, 100, 120)
    after = costs.peak(workspace, made)
    assert after["peak"] > before["peak"]
    assert "corrected by one run" in after["known"] and "1.20" in after["known"]
    assert costs.needs(workspace, made, costs.Asked())["known"] == after["known"]


def test_an_impossible_dim_has_a_way_out(workspace: Workspace,
                                         settings: Callable[..., Config]) -> None:
    run = settings("network.algo=dylora", "network.dim=7")
    workspace.remember(run)
    with pytest.raises(ConfigError) as caught:
        workspace.plan(run)
    page = Page(workspace, Form(run))
    found = algorithm.impossible(page, run, caught.value)
    assert found["dim"] == 8 and [(each["field"], each["tab"]) for each in found["problems"]] == [
        ("network.dim", "Algorithm")]
    assert [row["algo"] for row in found["data"] if "problem" in row and row["on"]] == ["dylora"]
    workspace.plan(knobs.replace(run, {"network.dim": found["dim"]}))
    other = ConfigError({"network.rules": "nonsense"})
    assert algorithm.impossible(page, run, other) == {
        "problems": [{"text": "nonsense", "field": "network.rules", "tab": "Algorithm"}],
        "undo": "", "view": "layers", "data": None}


@pytest.mark.parametrize(("problem", "tab"), [
    ("train.batch_size", "Train"), ("dataset.folder", "Dataset"), ("sample.steps", "Compare"),
    ("network.options", "Algorithm"), ("model.base", ""), ("dataset.resolution", "Train")])
def test_what_cannot_be_used_leads_to_its_field(workspace: Workspace, problem: str,
                                                tab: str) -> None:
    page = Page(workspace, Form(workspace.config))
    found = algorithm.refused(page, ConfigError({problem: f"{problem} is wrong"}))
    assert found["problems"][0]["field"] == problem and found["problems"][0]["tab"] == tab
    assert problem not in found["problems"][0]["text"], "by its label"


def test_views_that_need_no_plan_are_there_without_one(workspace: Workspace) -> None:
    page = Page(workspace, Form(workspace.config))
    page.keep(workspace.config)
    for view, data in (("presets", "presets"), ("share", "form")):
        workspace.keep(algorithm.KEPT, {"view": view})
        found = algorithm.refused(page, ConfigError({"network.dim": "network.dim is empty"}))
        assert data in found["data"] and found["view"] == view and found["undo"]
        json.dumps(found)


def test_undo_brings_back_the_options_of_every_algorithm(form: Form) -> None:
    """LoKr's factor was changed while LoRA was on screen, by a match that is undone."""
    values = shown(form, config.load())
    before = form.options(values)
    factor = form.widgets["network.options.factor@lokr"]
    values |= {factor: 6}
    assert form.options(values) == {**before, "lokr": {"factor": 6}}
    assert form.restore(before)[factor]["value"] == factor.value


@pytest.mark.parametrize(("algo", "off"), [
    ("lora", set()), ("diag-oft", {"network.alpha", "network.conv_alpha", "network.rs_lora"}),
    ("full", {"network.dim", "network.alpha", "network.conv_alpha", "network.rs_lora"})])
def test_fields_that_an_algorithm_lacks_are_off(algo: str, off: set[str]) -> None:
    looks = algorithm.uses(algo)
    assert {path for path, each in looks.items() if not each["interactive"]} == off
    assert looks.keys() == algorithm.uses("lora").keys(), "what one turns off, another turns on"
    assert not looks.keys() & algorithm.dora_looks(True).keys(), "these follow DoRA alone"


def test_a_match_that_is_far_off_is_told(workspace: Workspace,
                                         settings: Callable[..., Config]) -> None:
    run = settings("network.dim=64")
    far = choose.match(run, "ia3", workspace.family(run))
    assert "(IA)³ comes no closer" in far.text
    near = choose.match(run, "loha", workspace.family(run))
    assert not near.far


def test_rules_that_mean_nothing_are_marked(form: Form) -> None:
    values = shown(form, config.load())
    values[form.widgets["network.rules"]] = 'match = "*", dims = 4'
    assert list(form.problems(values)) == ["network.rules"]
    values[form.widgets["network.rules"]] = "match = *"
    assert "wants lines like" in form.problems(values)["network.rules"]
    values[form.widgets["network.rules"]] = 'match = "*attn2*", dim = 4'
    assert not form.problems(values)


def test_weights_of_contestants() -> None:
    assert compare.with_weights(["base", "a", "b"], "") == ["base", "a", "b"]
    assert compare.with_weights(["base", "a", "b"], "1, 0.5, 2") == ["base", "a:0.5", "b:2"]
    with pytest.raises(ConfigError, match="3 contestants and 2 weights"):
        compare.with_weights(["base", "a", "b"], "1, 2")


@pytest.mark.parametrize(("prompts", "names", "kind", "words"), [
    (("a",), ["base"], ConfigError, "at least two"),
    ((), ["base", "base"], ConfigError, "at least one prompt"),
    (("a",), ["base", "nothing"], AdapterError, "no adapter 'nothing'"),
])
def test_what_cannot_be_compared_is_said_at_once(workspace: Workspace, prompts: tuple,
                                                 names: list[str], kind: type, words: str) -> None:
    with pytest.raises(kind, match=words):
        compare.start(workspace, workspace.config, prompts, names)
    assert not workspace.comparisons_folder.exists()


def _adapter(folder: Path, name: str) -> str:
    """A run with something that could be an adapter; the path that the page is given."""
    run = _trained(folder, name, 1)
    run.adapter_file.write_bytes(b"x")
    return str(run.path)


def test_contestants_are_runs_of_every_known_folder(workspace: Workspace, tmp_path: Path,
                                                    settings: Callable[..., Config]) -> None:
    here = _adapter(workspace.runs_folder, "docs")
    there = _adapter(tmp_path / "other", "docs")
    workspace.remember(settings(f"output.folder={tmp_path / 'other'}"))
    found = {value: label for label, value in compare.choices(workspace, ["mine:0.5"])}
    assert found == {"base": "base", "mine:0.5": "mine:0.5", here: f"docs in {Path(here).parent}",
                     there: f"docs in {tmp_path / 'other'}"}
    for path in (here, there):
        taker = contestants.parse(path, workspace.runs_folder)
        assert taker == contestants.Contestant("docs", Path(path) / "docs.safetensors")


def test_names_lead_to_runs_before_they_lead_elsewhere(workspace: Workspace) -> None:
    """There is a folder docs beside the program."""
    path = Path(_adapter(workspace.runs_folder, "docs"))
    assert contestants.parse("docs", path.parent).path == path / "docs.safetensors"
    odd = contestants.unique([contestants.parse("base", path.parent),
                              contestants.Contestant("base", path)])
    assert [each.name for each in odd] == ["base", "base at 1"]
    for weight in ("nan", "inf", "-inf", "heavy"):
        with pytest.raises(ConfigError, match="is no weight"):
            contestants.parse(f"docs:{weight}", path.parent)


@pytest.mark.parametrize("name", ["base", "Comparisons", "pictures"])
def test_a_run_cannot_take_a_name_with_another_meaning(name: str) -> None:
    with pytest.raises(ConfigError, match="meaning of its own"):
        config.load(None, [f"output.name={name}"])


def test_compare_is_remembered(workspace: Workspace) -> None:
    assert compare.remembered(workspace) == (["base"], "", "a ball")
    runs = [_adapter(workspace.runs_folder, name) for name in ("a", "b", "c")]
    for age, path in enumerate(reversed(runs)):
        os.utime(Path(path, "config.toml"), (100 - age, 100 - age))
    assert compare.remembered(workspace)[0] == ["base", *runs[1:]], "the newest two, A before B"
    asked = {"contestants": [runs[0], "b:0.5"], "weights": "1, 0.8", "prompts": "a dog\na cat"}
    workspace.keep("compare", asked)
    again = Workspace(workspace.settings)
    again.jobs.close()
    assert compare.remembered(again) == tuple(asked.values())
    Path(runs[0], "a.safetensors").unlink()
    assert compare.remembered(again) == (["b:0.5"], "", "a dog\na cat"), "one is gone"


def test_previews_escape_what_people_write(tmp_path: Path) -> None:
    from lycoris.data.captions import Edit

    evil = "<img src=x onerror=alert(1)>"
    text = dataset.listed([Edit(tmp_path / f"{evil}.png", evil, evil + "!")])
    assert "<img" not in text and "&lt;img" in text and "1 caption would change" in text


def test_pictures_are_re_encoded_and_small(tmp_path: Path) -> None:
    Image.new("RGB", (2000, 1000), "red").save(tmp_path / "a.png")
    for data, side in ((page_pictures.thumbnail(tmp_path / "a.png"), 256),
                       (page_pictures.large(tmp_path / "a.png"), 1024)):
        assert data[8:12] == b"WEBP"
        (tmp_path / "out.webp").write_bytes(data)
        assert Image.open(tmp_path / "out.webp").size == (side, side // 2)


def test_no_markup_is_made_from_strings_in_the_scripts() -> None:
    """Captions and file names reach the page as text, and nothing comes from outside."""
    for file in (ROOT / "lycogui" / "static").glob("*.js"):
        text = file.read_text("utf-8")
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(",
                     "http://", "https://"):
            assert word not in text, f"{file.name} has {word}"
    assert "url(" not in (ROOT / "assets" / "theme.css").read_text("utf-8")


def test_a_preset_that_takes_nothing_says_what_there_is(
        workspace: Workspace, settings: Callable[..., Config], tmp_path: Path) -> None:
    file = tmp_path / "odd.toml"
    file.write_text('unet_target_module = ["ResnetBlock3D"]', "utf-8")
    run = settings(f"network.preset={file}")
    with pytest.raises(ConfigError) as caught:
        workspace.plan(run)
    found = algorithm.impossible(Page(workspace, Form(run)), run, caught.value)
    assert [each["text"] for each in found["problems"]] == [
        "Layers: the preset odd takes no layer of this model: nothing matched ResnetBlock3D."]
    assert "has the classes Transformer2DModel, " in found["fix"]
