"""The fold "Noise, loss and seed": only what means something is seen, and a plot of what it does.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import gradio as gr

from lycogui.form import labelled
from lycogui.page import Page, on
from lycogui.parts import mount
from lycoris import focus
from lycoris.errors import LycorisError

SECTION, PLOTTED = "train noise", "train loss"
SECTIONS = (SECTION, PLOTTED, "train prior")


def build(page: Page, fold: gr.Accordion) -> None:
    """The noise, the loss with its plot, masks and regularisation pictures."""
    form, page["loss fold"] = page.form, fold
    for section in SECTIONS:
        with gr.Column(elem_classes="pairs"):
            form.place(section)
        if section == PLOTTED:
            page["focus"] = mount("focus", "<div class='focus-root'></div>",
                                     elem_id="focus")
    for path, visible in focus.used(form.start.loss).items():
        form.widgets[path].visible = visible


def connect(page: Page) -> None:
    """Fields and plot follow the settings; the plot is first drawn when the fold is opened."""
    form, workspace = page.form, page.workspace
    toggled = list(focus.used(form.start.loss))

    def loss_fields(values: dict[Any, Any]) -> list[Any]:
        try:
            run = form.read(values)
        except LycorisError:
            return [gr.skip()] * len(toggled)
        return [gr.update(visible=visible) for visible in focus.used(run.loss).values()]

    def loss_plot(values: dict[Any, Any]) -> dict[str, Any]:
        try:
            run = form.read(values)
            return asdict(focus.of(run.loss, workspace.family(run)))
        except LycorisError as error:
            return {"problems": list(labelled(error).values())}

    choices = [form.widgets[f"loss.{name}"] for name in (
        "weighting", "distance", "timesteps", "noise_offset", "pyramid_iterations")]
    drawn = [widget for path, widget in form.widgets.items()
             if path.startswith(("loss.", "model."))]
    all_of = {"inputs": form.inputs, "trigger_mode": "always_last"}
    on([widget.change for widget in choices], loss_fields,
       outputs=[form.widgets[path] for path in toggled], **all_of)
    on([page["loss fold"].expand, *(widget.change for widget in drawn)], loss_plot,
       outputs=page["focus"], **all_of)
