"""The tab Compare: the same prompts and seeds, painted by several contestants."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gradio as gr

from lycogui.guard import shown
from lycogui.page import Page, mount, on
from lycogui.workspace import Workspace, run_id, stamp_name
from lycoris import config, durable, plan
from lycoris.config import Config
from lycoris.contestants import BASE, Contestant, parse, unique
from lycoris.errors import ConfigError


def build(page: Page) -> None:
    form = page.form
    with gr.Column(elem_classes="pane"):
        with gr.Row(equal_height=False, elem_classes="end"):
            page["contestants"] = gr.Dropdown(
                choices(page.workspace), value=defaults(page.workspace), multiselect=True,
                allow_custom_value=True, label="Contestants", scale=3, elem_id="contestants")
            page["weights"] = gr.Textbox(
                label="Weights", placeholder="all 1, or 1, 0.8", scale=1, elem_id="weights")
            form.place("compare")
            page["paint"] = gr.Button("Paint", variant="primary", scale=0, min_width=110,
                                      size="lg", elem_id="paint")
        page["prompts"] = gr.Textbox(
            "\n".join(page.workspace.config.sample.prompts), lines=3, max_lines=10,
            label="Prompts, one a line", elem_id="compare-prompts")
        with gr.Accordion("Sampler, negative prompt, size", open=False), gr.Row():
            form.place("compare more")
    with gr.Column(elem_classes="pane"):
        page["comparison"] = mount("compare", "<div class='compare-root'></div>",
                                   elem_id="comparison")


def connect(page: Page) -> None:
    form, workspace = page.form, page.workspace
    picked = page["contestants"]
    inputs = form.inputs | {picked, page["weights"], page["prompts"]}

    @shown
    def paint(values: dict[Any, Any]) -> str:
        run = form.read(values)
        prompts = [line.strip() for line in values[page["prompts"]].splitlines() if line.strip()]
        takers = with_weights(values[picked], values[page["weights"]])
        return start(workspace, run, tuple(prompts), takers)

    @shown
    def from_run(event: gr.EventData) -> tuple[Any, Any]:
        names = [BASE, *event.names]
        return (gr.update(choices=choices(workspace, names), value=names),
                gr.Tabs(selected="compare"))

    page["painted"] = gr.Textbox(visible=False)
    on(page["paint"].click, paint, inputs=inputs, outputs=page["painted"]).success(
        None, inputs=page["painted"], js="id => { lyco.showComparison(id); return []; }")
    on(page["monitor"].compare, from_run, outputs=[picked, page.tabs])
    on(page["compare tab"].select, lambda now: gr.update(choices=choices(workspace, now)),
       inputs=picked, outputs=picked)


def choices(workspace: Workspace, chosen: list[str] | None = None) -> list[str]:
    """Base, every run that has an adapter, and what is chosen already."""
    names = [run.name for run in workspace.jobs.runs() if run.adapter_file.is_file()]
    return list(dict.fromkeys([BASE, *names, *(chosen or [])]))


def defaults(workspace: Workspace) -> list[str]:
    """Base and the two newest adapters."""
    return choices(workspace)[:3]


def with_weights(names: list[str], weights: str) -> list[str]:
    """The contestants as the command line writes them: name or name:weight."""
    given = [text.strip() for text in (weights or "").replace(";", ",").split(",")]
    given = [text for text in given if text]
    if given and len(given) != len(names):
        raise ConfigError({"": f"there are {len(names)} contestants and {len(given)} weights; give "
                               "one weight for each, or none"})
    return [name if not given or name == BASE else f"{name}:{given[i]}"
            for i, name in enumerate(names)]


def start(workspace: Workspace, run: Config, prompts: tuple[str, ...], names: list[str]) -> str:
    """Check everything, make the comparison's folder and start painting; returns its id."""
    takers = unique([parse(name, workspace.runs_folder) for name in names])
    if len(takers) < 2:
        raise ConfigError({"": "choose at least two contestants; base counts as one"})
    if not (prompts and run.sample.seeds):
        raise ConfigError({"": "write at least one prompt and one seed"})
    made = config.build({**config.to_dict(run), "sample.prompts": prompts})
    plan.check_names(made)
    plan.check_sides(made, workspace.family(made))
    folder = _folder(workspace.comparisons_folder)
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


def _folder(parent: Path) -> Path:
    """A new folder named after the time."""
    name, number = stamp_name(), 1
    while True:
        try:
            return durable.make_folder(parent / (name if number == 1 else f"{name}-{number}"),
                                       new=True)
        except FileExistsError:
            number += 1
