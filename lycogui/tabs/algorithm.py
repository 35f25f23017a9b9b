"""The tab Algorithm: what is trained, and what it costs before it is."""

from __future__ import annotations

import html
from dataclasses import replace
from typing import Any

import gradio as gr

from lycogui.form import labelled
from lycogui.guard import shown, tell
from lycogui.page import Page, on
from lycogui.parts import mount
from lycogui.workspace import Workspace
from lycoris import algorithms, choose, knobs, plan
from lycoris.config import LEAVES, Config, NetworkConfig
from lycoris.data.folder import Dataset
from lycoris.errors import ConfigError, LycorisError
from lycoris.families import Family
from lycoris.plan import Plan

PARTS = {"unet": "UNet", "text_encoder": "text encoder",
         "text_encoder_2": "second text encoder"}


def build(page: Page) -> None:
    form = page.form
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=340, elem_classes="pane"):
            form.place("algorithm kind")
            page["about"] = gr.HTML(apply_default_css=False)
            form.place("algorithm")
            page["scale"] = gr.HTML(apply_default_css=False, elem_id="scale-note")
            with gr.Row(elem_classes="conv-row"):
                form.place("algorithm conv")
            form.place("algorithm parts")
            with gr.Accordion("The algorithm's own options", open=False):
                page["options"] = form.place_options()
            with gr.Accordion("More", open=False):
                form.place("algorithm more")
        with gr.Column(scale=4):
            page["plan"] = mount("plan", "<div class='plan-root'></div>", ("equal", "dim"),
                                 elem_id="plan")
    for path, looks in uses(form.start.network.algo).items():
        for name, value in looks.items():
            setattr(form.widgets[path], name, value)


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
        except LycorisError as error:
            return {"problems": list(labelled(error).values())}, gr.skip(), "", gr.skip(), gr.skip()
        workspace.remember(run)
        try:
            shows = card(workspace.plan(run))
        except LycorisError as error:
            return impossible(workspace, run, error), about(run), "", gr.skip(), gr.skip()
        return (shows, about(run), scale_note(run),
                gr.update(placeholder=plan.with_free_name(run).output.name), "")

    @shown
    def equal(values: dict[Any, Any], event: gr.EventData) -> dict[Any, Any]:
        run = form.read(values)
        found = choose.match(run, event.algo, workspace.family(run))
        tell(found.text)
        return form.write(found.run)

    def possible(event: gr.EventData) -> int:
        return event.dim

    def options_of(chosen: str, start: str) -> list[Any]:
        fits = start in algorithms.catalogue()[chosen].starts
        return [*(gr.update(visible=each == chosen) for each in groups),
                *(gr.update(**looks) for looks in uses(chosen).values()),
                gr.skip() if fits else "default"]

    gr.on([widget.change for widget in form.widgets.values()], refresh, inputs=form.inputs,
          outputs=page["shown"], api_visibility="private",
          show_progress="hidden", trigger_mode="always_last")
    start = form.widgets["network.init"]
    on(algo.change, options_of, inputs=[algo, start], outputs=[
        *groups.values(), *(form.widgets[path] for path in uses(algo.value)), start])
    on(page["plan"].equal, equal, inputs=form.inputs, outputs=form.inputs)
    on(page["plan"].dim, possible, outputs=form.widgets["network.dim"])
    page["refresh"] = refresh


def uses(algo: str) -> dict[str, dict[str, Any]]:
    """How the fields look whose meaning depends on the algorithm: {path: settings of its widget}.
    """
    entry = algorithms.catalogue()[algo]
    unused = f"Not used: {entry.label} has none."
    helps = {path: LEAVES[path].knob.help for path in (
        "network.dim", "network.alpha", "network.conv_dim", "network.conv_alpha")}
    if not entry.has_dim:
        helps["network.dim"] = unused
        helps["network.conv_dim"] = "0 leaves out the convolutions larger than 1x1."
    elif not entry.scaled:
        helps["network.dim"] = "Size of its blocks, at most."
    helps["network.alpha"] = "" if entry.scaled else unused
    if not entry.scaled:
        helps["network.conv_alpha"] = unused
    found: dict[str, dict[str, Any]] = {
        path: {"info": text, "interactive": text != unused} for path, text in helps.items()}
    found["network.rs_lora"] = {"interactive": entry.scaled}
    return found


def about(run: Config) -> str:
    """What the chosen algorithm is, in a sentence, and when to take it."""
    entry = algorithms.catalogue().get(run.network.algo)
    if entry is None:
        return ""
    return (f"<p class='note'><b>{html.escape(entry.about)}</b></p>"
            f"<p class='note'>{html.escape(entry.advice)}</p>")


def scale_note(run: Config) -> str:
    """What alpha does at this dim, in numbers; empty where there is no alpha."""
    network = run.network
    if not algorithms.catalogue()[network.algo].scaled:
        return ""
    if network.rs_lora:
        text = f"alpha / √dim = {network.alpha / network.dim**0.5:.3g}"
    else:
        text = f"alpha / dim = {network.alpha / network.dim:.3g}"
    return f"<p class='note num'>Effective scale {text}. It moves when dim does.</p>"


def impossible(workspace: Workspace, run: Config, error: LycorisError) -> dict[str, Any]:
    """What the page draws of settings that make no plan: why; and where it is the dim, one that is
    possible, and the other algorithms."""
    found: dict[str, Any] = {"problems": list(labelled(error).values())}
    if set(error.problems) != {"network.dim"}:
        return found
    family = workspace.family(run)
    return {**found, "dim": way_out(run, family), "rows": rows(run, family, None)}


def way_out(run: Config, family: Family) -> int | None:
    """The dim nearest to the one on screen that the algorithm can have on every layer."""
    network = run.network
    dims = algorithms.catalogue()[network.algo].dims(network.dim, network.options) or ()
    for dim in sorted(dims, key=lambda dim: abs(dim - run.network.dim)):
        try:
            plan.file_bytes(run, replace(run.network, dim=dim), family)
        except ConfigError:
            continue
        return dim
    return None


def card(made: Plan) -> dict[str, Any]:
    """The plan as the page draws it."""
    sizes, dataset = made.sizes, made.dataset
    parts = " and ".join(
        f"{group.parameters:,} in {group.modules} layers of the {PARTS.get(part, part)}"
        for part, group in sizes.parts.items())
    return {
        "parameters": sizes.parameters, "layers": sizes.modules,
        "bytes": sizes.file_bytes_with_metadata, "training": made.training_bytes,
        "steps": made.config.train.steps, "epochs": f"{made.epochs:.4g}",
        "pictures": len(dataset.readable) if dataset else 0, "parts": f"{parts}.",
        "notes": [f"{w.text} {w.fix}".strip() for w in made.warnings],
        "rows": rows(made.config, made.family, made.dataset),
    }


def rows(run: Config, family: Family, dataset: Dataset | None) -> list[dict[str, Any]]:
    return [row(run, algo, family, dataset) for algo in algorithms.catalogue()]


def row(run: Config, algo: str, family: Family, dataset: Dataset | None) -> dict[str, Any]:
    """One algorithm at the settings on screen; where it is impossible with them, why."""
    on = algo == run.network.algo
    network = run.network if on else plan.switched(run.network, algo)
    entry = algorithms.catalogue()[algo]
    said = {"algo": algo, "label": entry.label, "on": on, "settings": in_short(network),
            "equal": entry.has_dim and not on}
    try:
        sizes = plan.make(replace(run, network=network), family=family, dataset=dataset,
                          need_dataset=False).sizes
    except ConfigError as error:
        return {**said, "parameters": 0, "bytes": 0, "problem": "; ".join(labelled(error).values())}
    return {**said, "parameters": sizes.parameters, "bytes": sizes.file_bytes_with_metadata}


def in_short(network: NetworkConfig) -> str:
    """ "dim 8, alpha 4, factor 16": what the algorithm uses of the settings."""
    entry = algorithms.catalogue()[network.algo]
    own = knobs.leaves(entry.Options)
    parts = [f"dim {network.dim}"] * entry.has_dim + [f"alpha {network.alpha:g}"] * entry.scaled
    for name, value in network.options.items():
        label = own[name].label.lower() if name in own else name
        if value is not False:
            parts.append(label if value is True else f"{label} {value}")
    return ", ".join(parts) or "no dim"
