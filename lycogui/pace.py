"""The fold "Learning rate and regularisation": the course's own settings, and how the rate goes."""

from __future__ import annotations

from typing import Any

import gradio as gr

from lycogui.form import labelled
from lycogui.page import Page, on
from lycogui.parts import mount
from lycoris import optimizers, schedules
from lycoris.errors import LycorisError
from lycoris.settings import Config

SECTION, OTHERS = "train rate", "train parts"


def build(page: Page, fold: gr.Accordion) -> None:
    """The course, its plot, and the rest."""
    form, page["rate fold"] = page.form, fold
    with gr.Column(elem_classes="pairs"):
        form.place(SECTION)
    page["pace"] = mount("pace", "<div class='pace-root'></div>", elem_id="pace")
    with gr.Column(elem_classes="pairs"):
        form.place(OTHERS)
    for name, visible in used(form.start.optimizer.schedule).items():
        form.widgets[name].visible = visible


def used(schedule: str) -> dict[str, bool]:
    """{setting: does this course ask for it?} of those that only some do."""
    return {f"optimizer.{name}": schedule in courses for name, courses in schedules.USED.items()}


def drawn(run: Config) -> dict[str, Any]:
    """The rates over the steps: {steps, points: [[step, multiplier]], lines: [[name, rate]], unit,
    note}; `unit` is what the rates are multiples of, where they are."""
    own, row = run.optimizer, optimizers.ROWS[run.optimizer.name]
    text = own.lr if own.text_encoder_lr is None else own.text_encoder_lr
    second = text if own.text_encoder_2_lr is None else own.text_encoder_2_lr
    lines: dict[str, float] = {"Learning rate": own.lr}
    if run.network.text_encoder and not row.one_rate:
        lines |= {"Text encoder": text} if text != own.lr else {}
        lines |= {"Second text encoder": second} if second not in (own.lr, text) else {}
    return {"steps": run.train.steps, "lines": list(lines.items()),
            "note": f"{row.name}. {row.note}", "points": schedules.curve(own, run.train.steps),
            "unit": "" if row.times else f" times what {row.name} finds"}


def connect(page: Page) -> None:
    """Fields and plot follow the settings; the plot is first drawn when the fold is opened."""
    form = page.form
    course = form.widgets["optimizer.schedule"]
    toggled = [form.widgets[name] for name in used("")]

    def plot(values: dict[Any, Any]) -> dict[str, Any]:
        try:
            return drawn(form.read(values))
        except LycorisError as error:
            return {"problems": list(labelled(error).values())}

    on(course.change, lambda name: [gr.update(visible=visible) for visible in used(name).values()],
       inputs=course, outputs=toggled)
    followed = [widget for path, widget in form.widgets.items()
                if path.startswith("optimizer.") and path != "optimizer.args"]
    on([page["rate fold"].expand, form.widgets["train.steps"].change,
        form.widgets["network.text_encoder"].change, *(widget.change for widget in followed)],
       plot, inputs=form.inputs, outputs=page["pace"], trigger_mode="always_last")
