"""The panel behind the header's first chip: which base model is used."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import gradio as gr

from lycogui import dialogs
from lycogui.guard import shown, tell
from lycogui.page import Page, on
from lycogui.parts import mount
from lycogui.wording import on_screen
from lycoris import config, following
from lycoris.config import LEAVES
from lycoris.errors import LycorisError, NotDownloaded

EMBEDDED = LEAVES["model.base"].default
# Named when they follow the base; the others are counted.
TOLD = ("dataset.resolution", "train.steps", "train.batch_size", "optimizer.lr")


def build(page: Page) -> None:
    with gr.Column(visible=False, elem_classes="pane", elem_id="base-panel") as page["base panel"]:
        with gr.Row(equal_height=False):
            with gr.Column(scale=3):
                page.form.place("base")
            with gr.Column(scale=2):
                page["base facts"] = gr.HTML(apply_default_css=False)
                mount("fetch", "<div class='fetch-root'></div>", elem_id="fetch")
                with gr.Row():
                    page["base file"] = gr.Button("Choose file", size="md", min_width=120)
                    page["base folder"] = gr.Button("Choose folder", size="md", min_width=120)
                with gr.Row():
                    page["base embedded"] = gr.Button("Use the embedded model", size="md",
                                                      min_width=160)
                    page["base settings"] = gr.Button("Take its recommended settings", size="md",
                                                      min_width=200)
                    page["base close"] = gr.Button("Close", size="md", min_width=80)


def connect(page: Page) -> None:
    form, workspace = page.form, page.workspace
    base = form.widgets["model.base"]

    @shown
    def facts(values: dict[Any, Any]) -> str:
        return describe(page, values)

    @shown
    def choose_file(path: str) -> Any:
        return dialogs.choose_file(config.find(path), ".safetensors") or gr.skip()

    @shown
    def choose_folder(path: str) -> Any:
        return dialogs.choose_folder(config.find(path)) or gr.skip()

    @shown
    def recommended(values: dict[Any, Any]) -> dict[Any, Any]:
        run = form.read(values)
        settings = following.recommended(run)
        tell(f"Set as {workspace.base(run).called} wants it: {in_words(settings)}.")
        page.keep(run)
        return form.change(run, settings)

    def follow(values: dict[Any, Any]) -> Any:
        """The user has chosen another base: what was as the last one wanted it follows."""
        try:
            run, left = form.read(values), workspace.follows
            if run.model.base == left:
                return gr.skip()
            settings = following.moved(run, left)
        except LycorisError:  # half a path, or a field in error; the panel and the field say so
            return gr.skip()
        workspace.follow(run.model.base)
        if not settings:
            return gr.skip()
        page.keep(replace(run, model=replace(run.model, base=left)))
        tell(f"{in_words(settings)}: as {workspace.base(run).called} wants it. Your own settings "
             "stay. Undo is on the Algorithm tab.")
        return form.change(run, settings)

    on(page["header"].base, lambda: gr.update(visible=True), outputs=page["base panel"])
    closed = on(page["base close"].click, lambda: gr.update(visible=False),
                outputs=page["base panel"])
    chosen = [on(page["base file"].click, choose_file, inputs=base, outputs=base),
              on(page["base folder"].click, choose_folder, inputs=base, outputs=base),
              on(page["base embedded"].click, lambda: EMBEDDED, outputs=base)]
    # Not whenever it changes: settings that are loaded bring their base with them.
    fetched = page["header"].fetched  # what the base lacked has come
    for event in (base.submit, base.blur, closed.then, fetched, *(each.then for each in chosen)):
        on(event, follow, inputs=form.inputs, outputs=form.inputs, trigger_mode="always_last")
    page["follow"] = follow
    on(page["base settings"].click, recommended, inputs=form.inputs, outputs=form.inputs)
    for event in (base.change, form.widgets["model.family"].change, page["header"].base,
                  fetched):
        on(event, facts, inputs=form.inputs, outputs=page["base facts"],
           trigger_mode="always_last")


def in_words(settings: Mapping[str, Any]) -> str:
    """ "Resolution 512, steps 1500 and 8 more": the ones that matter most first."""
    told = sorted(settings, key=lambda path: TOLD.index(path) if path in TOLD else len(TOLD))
    named = [f"{LEAVES[path].label.lower()} {settings[path]:,}" for path in told if path in TOLD]
    rest = len(settings) - len(named)
    if not named:
        return f"{rest} settings"
    said = ", ".join(named) + (f" and {rest} more" if rest else "")
    return said[0].upper() + said[1:]


def describe(page: Page, values: dict[Any, Any]) -> str:
    """What the chosen base is, or why it cannot be used; escaped."""
    try:
        family = page.workspace.base(page.form.read(values))
        family.require_files()
    except LycorisError as error:
        way = f"Download it here, or {error.otherwise}" if isinstance(
            error, NotDownloaded) else error.fix
        said = (f"<p>{html.escape(on_screen(text))}</p>" for text in (error.message, way))
        return (f"<div class='card bad' role='alert'><b>This base cannot be used</b>"
                f"{''.join(said)}</div>")
    prediction = family.metadata["modelspec.prediction_type"]
    layout = "one file" if family.base.is_file() else "a folder in the diffusers layout"
    return (f"<p class='note'><b>{html.escape(family.called)}</b>, {html.escape(family.label)}, "
            f"{layout}. Made for {family.resolution} px, predicts {html.escape(prediction)}, "
            f"{len(family.layers)} layers, captions of {family.max_tokens} tokens a chunk.</p>")
