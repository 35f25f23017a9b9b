"""The tab Algorithm: what is trained, and what it costs before it is."""

from __future__ import annotations

import html
from dataclasses import replace
from typing import Any

import gradio as gr

from lycogui.form import labelled
from lycogui.guard import shown
from lycogui.page import Page, on
from lycogui.parts import mount
from lycogui.workspace import Workspace
from lycoris import algorithms, plan
from lycoris.config import Config
from lycoris.errors import LycorisError
from lycoris.plan import Plan

PARTS = {"unet": "UNet", "text_encoder": "text encoder"}


def build(page: Page) -> None:
    form = page.form
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=340, elem_classes="pane"):
            form.place("algorithm kind")
            page["about"] = gr.HTML(apply_default_css=False)
            form.place("algorithm")
            page["scale"] = gr.HTML(apply_default_css=False, elem_id="scale-note")
            with gr.Row():
                form.place("algorithm conv")
            form.place("algorithm parts")
            with gr.Accordion("The algorithm's own options", open=False):
                page["options"] = form.place_options()
            with gr.Accordion("More", open=False):
                form.place("algorithm more")
        with gr.Column(scale=4):
            page["plan"] = mount("plan", "<div class='plan-root'></div>", ("equal",),
                                 elem_id="plan")


def connect(page: Page) -> None:
    form, workspace = page.form, page.workspace
    algo = form.widgets["network.algo"]
    name = form.widgets["output.name"]
    groups = page["options"]

    page["shown"] = [page["plan"], page["about"], page["scale"], name, page["train note"]]

    def refresh(values: dict[Any, Any]) -> tuple[dict[str, Any], Any, str, Any, str]:
        """Every change of a setting: remember it, and show what it means."""
        try:
            run = form.read(values)
            workspace.remember(run)
            made = workspace.plan(run)
            return (card(workspace, made), about(run), scale_note(run),
                    gr.update(placeholder=plan.with_free_name(run).output.name), "")
        except LycorisError as error:
            return {"problems": list(labelled(error).values())}, gr.skip(), "", gr.skip(), gr.skip()

    @shown
    def equal(values: dict[Any, Any], event: gr.EventData) -> dict[Any, Any]:
        run = form.read(values)
        return form.write(plan.match(run, event.algo, workspace.family(run)))

    def options_of(chosen: str) -> list[Any]:
        return [gr.update(visible=each == chosen) for each in groups]

    gr.on([widget.change for widget in form.widgets.values()], refresh, inputs=form.inputs,
          outputs=page["shown"], api_visibility="private",
          show_progress="hidden", trigger_mode="always_last")
    on(algo.change, options_of, inputs=algo, outputs=list(groups.values()))
    on(page["plan"].equal, equal, inputs=form.inputs, outputs=form.inputs)
    page["refresh"] = refresh


def about(run: Config) -> str:
    """What the chosen algorithm is, in a sentence."""
    return f"<p class='note'>{html.escape(algorithms.catalogue()[run.network.algo].about)}</p>"


def scale_note(run: Config) -> str:
    """What alpha does at this dim, in numbers."""
    network = run.network
    if network.rs_lora:
        text = f"alpha / √dim = {network.alpha / network.dim**0.5:.3g}"
    else:
        text = f"alpha / dim = {network.alpha / network.dim:.3g}"
    return f"<p class='note num'>Effective scale {text}. It moves when dim does.</p>"


def card(workspace: Workspace, made: Plan) -> dict[str, Any]:
    """The plan as the page draws it."""
    sizes, dataset = made.sizes, made.dataset
    parts = " and ".join(
        f"{group['parameters']:,} in {group['layers']} layers of the {PARTS.get(part, part)}"
        for part, group in sizes.parts.items())
    return {
        "parameters": sizes.parameters, "layers": sizes.layers,
        "bytes": sizes.file_bytes_with_metadata, "training": made.training_bytes,
        "steps": made.config.train.steps, "epochs": f"{made.epochs:.4g}",
        "pictures": len(dataset.readable) if dataset else 0, "parts": f"{parts}.",
        "notes": [f"{w.text} {w.fix}".strip() for w in made.warnings],
        "rows": [row(made, algo) for algo in algorithms.catalogue()],
    }


def row(made: Plan, algo: str) -> dict[str, Any]:
    """One algorithm at the settings on screen."""
    run, on = made.config, algo == made.config.network.algo
    network = run.network if on else replace(run.network, algo=algo, options={})
    sizes = made.sizes if on else plan.make(
        replace(run, network=network), family=made.family, dataset=made.dataset,
        need_dataset=False).sizes
    return {"algo": algo, "label": algorithms.catalogue()[algo].label, "on": on,
            "settings": f"dim {network.dim}, alpha {network.alpha:g}",
            "parameters": sizes.parameters, "bytes": sizes.file_bytes_with_metadata}
