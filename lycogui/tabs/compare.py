"""The tab Compare: the same prompts and seeds, painted by several contestants."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from lycogui.guard import shown
from lycogui.page import Page, on, with_weights
from lycogui.parts import mount
from lycogui.workspace import Workspace, new_folder, run_id
from lycoris import config, durable, plan, promptfile
from lycoris.contestants import BASE, Contestant, parse, unique
from lycoris.errors import ConfigError, LycorisError
from lycoris.settings import Config

KEPT = "compare"  # the file beside the settings


def build(page: Page) -> None:
    form = page.form
    with gr.Column(elem_classes="pane"):
        with gr.Row(equal_height=False, elem_classes="end"):
            page["contestants"] = gr.Dropdown(
                multiselect=True, allow_custom_value=True, label="Contestants", scale=3,
                elem_id="contestants")
            page["weights"] = gr.Textbox(
                label="Weights", placeholder="all 1, or 1, 0.8", scale=1, elem_id="weights")
            form.place("compare")
            page["paint"] = gr.Button("Paint", variant="primary", scale=0, min_width=110,
                                      size="lg", elem_id="paint")
        page["prompts"] = gr.Textbox(lines=3, max_lines=10, label="Prompts, one a line",
                                     elem_id="compare-prompts")
        with (gr.Accordion("Sampler, negative prompt, size", open=False),
              gr.Row(elem_classes="level")):
            form.place("compare more")
        gr.HTML("<p class='note'>A run paints its samples with the same seed, steps, CFG, sampler, "
                "negative prompt and size.</p>", apply_default_css=False)
    with gr.Column(elem_classes="pane"):
        page["comparison"] = mount("compare", "<div class='compare-root'></div>",
                                   elem_id="comparison")


def connect(page: Page) -> None:
    form, workspace = page.form, page.workspace
    picked, weights, prompts = asked = [page["contestants"], page["weights"], page["prompts"]]
    page["asked"] = set(asked)

    def keep(names: list[str], weights: str, prompts: str) -> None:
        given = {"contestants": names, "weights": weights, "prompts": prompts}
        fresh = untouched(workspace)
        workspace.keep(KEPT, {key: each for key, each in given.items() if each != fresh[key]})

    def recall() -> dict[Any, Any]:
        names, *texts = remembered(workspace)
        return {picked: gr.update(choices=choices(workspace, names), value=names),
                **dict(zip((weights, prompts), texts, strict=True))}

    @shown
    def paint(values: dict[Any, Any]) -> str:
        run = form.read(values)
        lines = [line.strip() for line in values[prompts].splitlines() if line.strip()]
        keep(*(values[part] for part in asked))
        takers = with_weights(values[picked], values[weights])
        return start(workspace, run, tuple(lines), takers)

    @shown
    def from_run(prompts: str, event: gr.EventData) -> tuple[Any, str, Any]:
        names = [BASE, *event.runs]
        keep(names, "", prompts)
        return (gr.update(choices=choices(workspace, names), value=names), "",
                gr.Tabs(selected="compare"))

    def look(now: list[str]) -> Any:
        """Runs may have ended since; who has chosen nothing yet gets the newest."""
        names = now if "contestants" in workspace.kept(KEPT) else untouched(workspace)[
            "contestants"]
        return gr.update(choices=choices(workspace, names), value=names)

    page["painted"] = gr.Textbox(visible=False)
    on(page["paint"].click, paint, inputs=form.inputs | page["asked"],
       outputs=page["painted"]).success(
        None, inputs=page["painted"], js="id => { lyco.showComparison(id); return []; }")
    for part in (page["monitor"], page["tool view"]):
        on(part.compare, from_run, inputs=prompts, outputs=[picked, weights, page.tabs])
    on(page["compare tab"].select, look, inputs=picked, outputs=picked)
    # What the user does only: a change comes from an empty page that is still loading as well.
    on([*(part.input for part in asked), weights.blur, prompts.blur], keep, inputs=asked,
       trigger_mode="always_last")
    page["recall"] = recall


def choices(workspace: Workspace, chosen: Sequence[str] = ()) -> list[tuple[str, str]]:
    """(label, contestant): base, every known adapter, and what is chosen already."""
    found = [(BASE, BASE), *workspace.adapters()]
    known = {value for _, value in found}
    return found + [(each, each) for each in chosen if each not in known]


def untouched(workspace: Workspace) -> dict[str, Any]:
    """What stands on the tab before anything is chosen: base and the two newest adapters, the older
    first (a pair's A before its B), over the prompts of the samples."""
    sample = workspace.config.sample
    try:
        texts = promptfile.plain(sample).prompts
        texts = texts or workspace.plan(workspace.config).config.sample.prompts
    except LycorisError:  # the Train tab says what is wrong with it
        texts = sample.prompts
    base, *newest = [value for _, value in choices(workspace)[:3]]
    return {"contestants": [base, *reversed(newest)], "weights": "",
            "prompts": "\n".join(texts)}


def remembered(workspace: Workspace) -> tuple[list[str], str, str]:
    """Contestants, weights and prompts of last time, without contestants that are gone."""
    kept = untouched(workspace) | workspace.kept(KEPT)
    names = [name for name in kept["contestants"] if _is_there(name, workspace)]
    return names, kept["weights"] if names == kept["contestants"] else "", kept["prompts"]


def _is_there(name: str, workspace: Workspace) -> bool:
    try:
        return bool(parse(name, workspace.runs_folder))
    except LycorisError:
        return False


def start(workspace: Workspace, run: Config, prompts: tuple[str, ...], names: list[str]) -> str:
    """Check everything, make the comparison's folder and start painting; returns its id."""
    takers = unique([parse(name, workspace.runs_folder) for name in names])
    if len(takers) < 2:
        raise ConfigError({"": "choose at least two contestants; base counts as one"})
    if not (prompts and run.sample.seeds):
        raise ConfigError({"": "write at least one prompt and one seed"})
    made = config.build({**config.to_dict(run), "sample.prompts": prompts,
                         "sample.prompts_file": ""})
    made = replace(made, sample=promptfile.plain(made.sample))
    plan.check_names(made)
    plan.check_base(made, workspace.base(made))
    folder = new_folder(workspace.comparisons_folder)
    settings = durable.write_text(folder / "settings.toml", config.dump(made))
    sample = made.sample
    durable.write_text(folder / "request.json", json.dumps({
        "contestants": [taker.name for taker in takers], "prompts": sample.prompts,
        "seeds": sample.seeds, "steps": sample.steps, "guidance": sample.guidance,
        "sampler": sample.sampler}, ensure_ascii=False))
    arguments = ["compare", str(settings), "--out", str(folder)]
    for taker in takers:
        arguments += ["--adapter", _argument(taker)]
    workspace.jobs.launch(folder, arguments)
    return run_id(folder)


def _argument(taker: Contestant) -> str:
    return BASE if taker.path is None else f"{taker.path}:{taker.weight:g}"
