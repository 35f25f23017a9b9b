"""The tab Train: start runs, and see every run as its folder tells it."""

from __future__ import annotations

import html
import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gradio as gr

from lycogui import lesson, pace
from lycogui.form import Form
from lycogui.guard import shown, tell
from lycogui.page import IN_TURN, Page, on
from lycogui.pair import NAMES, Pair
from lycogui.parts import mount
from lycogui.wording import on_screen
from lycogui.workspace import Workspace
from lycoris import algorithms, config, plan
from lycoris.errors import ConfigError, LycorisError
from lycoris.plan import Plan
from lycoris.settings import Config

FOLDS = {"Sample prompts": "train samples", "Learning rate and regularisation": pace.SECTION,
         "Noise, loss and seed": lesson.SECTION, "Pictures": "train pictures",
         "Captions": "train captions",
         "Memory and precision": "train memory", "Files": "train output"}
PAINTED_AS = ("<p class='note'>They are painted with the sampling steps, CFG, sampler, negative "
              "prompt and size that stand on the Compare tab, and with its first seed.</p>")
LOOK = "() => { lyco.lookAtRuns && lyco.lookAtRuns(); }"


def build(page: Page) -> None:
    form = page.form
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=340, elem_classes="pane train-form"):
            form.place("train")
            mount("epoch", "<div class='epoch-root short'></div>", elem_id="train-epoch")
            page["start"] = mount("start", "<div class='start-root'></div>", ("clear",),
                                  value=form.start.network.weights, elem_id="start")
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
                    if section == "train samples":
                        gr.HTML(PAINTED_AS, apply_default_css=False)
        with gr.Column(scale=4):
            page["monitor"] = mount("monitor", "<div class='monitor-root'></div>",
                                    ("compare", "inspect", "settings", "proceed"),
                                    elem_id="monitor")


def connect(page: Page) -> None:
    form, workspace = page.form, page.workspace
    lesson.connect(page)
    pace.connect(page)
    name, weights = form.widgets["output.name"], form.widgets["network.weights"]

    def possible(run: Config) -> None:
        _name_taken(run)
        workspace.ready(run)

    def pair_possible(run: Config) -> None:
        ready_pair(workspace, run)

    def note(values: dict[Any, Any]) -> str:
        return problems_card(form.problems(values, possible))

    def note_of_pair(values: dict[Any, Any]) -> str:
        return problems_card(form.problems(values, pair_possible))

    def marked(values: dict[Any, Any]) -> list[Any]:
        return marks(form, values, possible)

    def marked_pair(values: dict[Any, Any]) -> list[Any]:
        return marks(form, values, pair_possible)

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
        return gr.update(placeholder=plan.with_free_name(run).output.name)

    on(page["header"].ended, lambda values: page["refresh"](values)[0], inputs=form.inputs,
       outputs=page["plan"], trigger_mode="always_last", **IN_TURN)
    on(weights.change, None, inputs=weights, outputs=page["start"], js="value => value")
    on(page["start"].clear, lambda: "", outputs=weights)
    on(page["train"].click, note, inputs=form.inputs, outputs=page["train note"])
    on(page["train"].click, train, inputs=form.inputs, outputs=name,
       validator=marked).then(None, js=LOOK)
    on(page["pair"].click, note_of_pair, inputs=form.inputs, outputs=page["train note"])
    on(page["pair"].click, pair, inputs=form.inputs, outputs=name,
       validator=marked_pair).then(None, js=LOOK)


def marks(form: Form, values: dict[Any, Any], extra: Callable[[Config], None]) -> list[Any]:
    """What is wrong, on its fields; on the base only that it is, for the panel around that field
    says why, and so does the card beside the button."""
    def worded(path: str, mark: dict[str, Any]) -> dict[str, Any]:
        if mark["is_valid"]:
            return mark
        brief = path == "model.base"
        return gr.validate(False, "No run can start on it." if brief else on_screen(
            mark["message"]))

    order = sorted(form.widgets, key=lambda path: form.widgets[path]._id)
    return list(map(worded, order, form.validate(values, extra)))


def next_name(run: Config) -> Any:
    """What the name's field shows once this run is in the queue: a name that the next one may have,
    counted up from this one's, or left to us as it was."""
    if not run.output.name:
        return gr.update(placeholder=plan.with_free_name(run).output.name)
    return gr.update(value=_counted_up(run))


def _counted_up(run: Config) -> str:
    """ "cat-3" after "cat-2", "cat-2" after "cat", or the next that is free."""
    stem, number = re.fullmatch(r"(.+?)(?:-(\d+))?", run.output.name, re.DOTALL).groups()
    return next(name for count in itertools.count(int(number or 1) + 1)
                if _is_free(run, name := f"{stem}-{count}"))


def problems_card(found: dict[str, str]) -> str:
    """What keeps the run from starting, beside the button: its field may be on another tab."""
    if not found:
        return ""
    listed = "".join(f"<p>{html.escape(on_screen(text))}</p>" for text in found.values())
    return f"<div class='card warn' role='alert'><b>It cannot start like this</b>{listed}</div>"


def enqueue_pair(workspace: Workspace, run: Config) -> tuple[str, str]:
    """The same run with the networks A and B, both or none."""
    a, b = (made.config for made in ready_pair(workspace, run))
    names = a.output.name, b.output.name
    for place, side in enumerate((a, b)):
        workspace.enqueue(side, pair={"side": NAMES[place], "with": names[1 - place]})
    return names


def ready_pair(workspace: Workspace, run: Config) -> list[Plan]:
    """The plans of A and B; ConfigError says which of them cannot be, and why."""
    plans, problems = [], {}
    for name, side in zip(NAMES, _sides(workspace, run), strict=True):
        try:
            plans.append(workspace.ready(side))
        except LycorisError as error:
            label = algorithms.catalogue()[side.network.algo].label
            for path, text in error.problems.items():
                said = f"{name.upper()} of the pair, {label}: {text}"
                problems[path] = f"{problems[path]} {said}" if path in problems else said
    if problems:
        raise ConfigError(problems)
    return plans


def _sides(workspace: Workspace, run: Config) -> tuple[Config, Config]:
    """The run with A's and with B's network; their names have the same number where one is taken.
    """
    bare = replace(run, output=replace(run.output, name=""))
    a, b = Pair.of(workspace, run).runs(bare)
    alike = a.network.algo == b.network.algo
    stems = [(f"{run.output.name}-{side.network.algo}" if run.output.name
              else config.run_name(side)) + f"-{name}" * alike
             for name, side in zip(NAMES, (a, b), strict=True)]
    number = next(number for number in itertools.count(1)
                  if all(_is_free(run, _numbered(stem, number)) for stem in stems))
    a, b = (replace(side, output=replace(side.output, name=_numbered(stem, number)))
            for stem, side in zip(stems, (a, b), strict=True))
    return a, b


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"


def _is_free(run: Config, name: str) -> bool:
    return plan.with_free_name(run, name).output.name == name


def _name_taken(run: Config) -> None:
    if run.output.name and not _is_free(run, run.output.name):
        raise ConfigError({"output.name": f"There is already a run called {run.output.name}; "
                           f"{_counted_up(run)} is free, or leave the name empty"})
