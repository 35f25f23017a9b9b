"""The tab Train: start runs, and see every run as its folder tells it."""

from __future__ import annotations

import html
from dataclasses import replace
from typing import Any

import gradio as gr

from lycogui import lesson, pace
from lycogui.guard import shown, tell
from lycogui.page import Page, on
from lycogui.pair import NAMES, Pair
from lycogui.parts import mount
from lycogui.workspace import Workspace
from lycoris import config, plan
from lycoris.errors import ConfigError
from lycoris.settings import Config

FOLDS = {"Sample prompts": "train samples", "Learning rate and regularisation": pace.SECTION,
         "Noise, loss and seed": lesson.SECTION, "Pictures": "train pictures",
         "Captions": "train captions",
         "Memory and precision": "train memory", "Files": "train output"}
LOOK = "() => { lyco.lookAtRuns && lyco.lookAtRuns(); }"


def build(page: Page) -> None:
    form = page.form
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=340, elem_classes="pane train-form"):
            form.place("train")
            mount("epoch", "<div class='epoch-root short'></div>", elem_id="train-epoch")
            page["train"] = gr.Button("Train", variant="primary", size="lg", elem_id="train")
            page["pair"] = gr.Button("Train an A/B pair", size="md", elem_id="train-pair")
            page["train note"] = gr.HTML(apply_default_css=False, elem_id="train-note")
            gr.HTML("<p class='note'>The pair: A and B of the Algorithm tab, LoRA and a LoHa of "
                    "the same size where none is put there, one after the other, on the same "
                    "pictures, captions and noise.</p>", apply_default_css=False)
            for title, section in FOLDS.items():
                with gr.Accordion(title, open=False) as fold:
                    if section == lesson.SECTION:
                        lesson.build(page, fold)
                    elif section == pace.SECTION:
                        pace.build(page, fold)
                    else:
                        form.place(section)
        with gr.Column(scale=4):
            page["monitor"] = mount("monitor", "<div class='monitor-root'></div>",
                                    ("compare", "inspect", "settings", "proceed"),
                                    elem_id="monitor")


def connect(page: Page) -> None:
    form, workspace = page.form, page.workspace
    lesson.connect(page)
    pace.connect(page)
    name = form.widgets["output.name"]

    def marked(values: dict[Any, Any]) -> list[Any]:
        return form.validate(values, _name_taken)

    def note(values: dict[Any, Any]) -> str:
        return problems_card(form.problems(values, _name_taken))

    def note_of_pair(values: dict[Any, Any]) -> str:
        return problems_card(form.problems(values))

    def next_name(run: Config) -> Any:
        return gr.update(placeholder=plan.with_free_name(run).output.name)

    @shown
    def train(values: dict[Any, Any]) -> Any:
        run = form.read(values)
        workspace.remember(run)
        name = workspace.enqueue(plan.with_free_name(run) if not run.output.name else run)
        tell(f"{name} is in the queue.")
        return next_name(run)

    @shown
    def pair(values: dict[Any, Any]) -> Any:
        run = form.read(values)
        workspace.remember(run)
        names = enqueue_pair(workspace, run)
        tell(f"{names[0]} and {names[1]} are in the queue.")
        return next_name(run)

    on(page["train"].click, note, inputs=form.inputs, outputs=page["train note"])
    on(page["train"].click, train, inputs=form.inputs, outputs=name,
       validator=marked).then(None, js=LOOK)
    on(page["pair"].click, note_of_pair, inputs=form.inputs, outputs=page["train note"])
    on(page["pair"].click, pair, inputs=form.inputs, outputs=name,
       validator=form.validate).then(None, js=LOOK)


def problems_card(found: dict[str, str]) -> str:
    """What keeps the run from starting, beside the button: its field may be on another tab."""
    if not found:
        return ""
    listed = "".join(f"<p>{html.escape(text)}</p>" for text in found.values())
    return f"<div class='card warn' role='alert'><b>It cannot start like this</b>{listed}</div>"


def enqueue_pair(workspace: Workspace, run: Config) -> tuple[str, str]:
    """The same run with the networks A and B."""
    both = Pair.of(workspace, run).runs(run)
    alike = both[0].network.algo == both[1].network.algo
    sides = []
    for place, one in enumerate(both):
        bare = replace(one, output=replace(one.output, name=""))
        stem = f"{run.output.name}-{one.network.algo}" if run.output.name else (
            config.run_name(bare))
        sides.append(plan.with_free_name(bare, stem + f"-{NAMES[place]}" * alike))
    names = [side.output.name for side in sides]
    for place, side in enumerate(sides):
        workspace.enqueue(side, pair={"side": NAMES[place], "with": names[1 - place]})
    return names[0], names[1]


def _name_taken(run: Config) -> None:
    if run.output.name and plan.with_free_name(run).output.name != run.output.name:
        raise ConfigError({"output.name": f"there is already a run called {run.output.name}; "
                           "choose another name, or leave it empty for a free one"})
