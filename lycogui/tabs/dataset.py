"""The tab Dataset: a folder, its pictures, their captions."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import gradio as gr

from lycogui import dialogs
from lycogui.guard import shown, tell
from lycogui.page import Page, on
from lycogui.parts import mount
from lycogui.workspace import Workspace
from lycoris import captioners, config, following
from lycoris.data import captions
from lycoris.data.captions import Edit
from lycoris.errors import LycorisError

SHOWN = 40  # edits listed in a preview


def build(page: Page) -> None:
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, elem_classes="pane"):
            with gr.Row(elem_classes="folder-row"):
                page.form.place("folder")
                page["folder choose"] = gr.Button("Choose folder", size="md", min_width=120,
                                                  scale=0)
            with gr.Accordion("More folders, masks, validation", open=False, elem_id="folder-more"):
                page.form.place("folder more")
            page["epoch"] = mount("epoch", "<div class='epoch-root'></div>", elem_id="epoch")
            page["gallery"] = mount("gallery", "<div class='gallery-root'></div>")
        with gr.Column(scale=2, elem_classes="pane"):
            page["editor"] = mount("editor", "<div class='editor-root'></div>")
            with gr.Accordion("All captions", open=False, elem_id="all-captions"):
                page["trigger"] = gr.Textbox(
                    label="Trigger word", elem_id="bulk-trigger",
                    info="Put in front of every caption that does not begin with it.")
                with gr.Row():
                    page["find"] = gr.Textbox(label="Find", elem_id="bulk-find")
                    page["replace"] = gr.Textbox(label="Replace with", elem_id="bulk-replace")
                page["preview"] = gr.HTML(apply_default_css=False, elem_id="bulk-preview")
                with gr.Row():
                    page["apply"] = gr.Button("Change captions", size="md", min_width=120)
                    page["revert"] = gr.Button("Undo the last change", size="md", min_width=140)
            with gr.Accordion("Caption from file names", open=False):
                page["names preview"] = gr.HTML(
                    "<p class='note'>Writes the words of each file's name as its caption, for "
                    "pictures that have none: red-fox_03.png becomes “red fox”.</p>",
                    apply_default_css=False)
                page["names apply"] = gr.Button("Write the missing captions", size="md")
            page["last edits"] = gr.State([])


def connect(page: Page) -> None:
    form, workspace = page.form, page.workspace
    folder = form.widgets["dataset.folder"]
    fields = [page["trigger"], page["find"], page["replace"]]

    def planned(trigger: str, find: str, replace: str) -> list[Edit]:
        dataset = workspace.dataset(workspace.config)
        return captions.by_rules(dataset.captions(), trigger=trigger.strip(), find=find,
                                 by=replace)

    def preview(trigger: str, find: str, replace: str) -> str:
        if not (trigger.strip() or find):
            return ""
        try:
            return listed(planned(trigger, find, replace))
        except LycorisError as error:
            return f"<p class='note bad'>{html.escape(str(error))}</p>"

    @shown
    def apply(trigger: str, find: str, replace: str) -> tuple[list[Edit], str, Any]:
        here = writable(workspace)
        edits = planned(trigger, find, replace)
        captions.apply(edits)
        tell(f"{_captions(edits)} changed.")
        return edits, preview(trigger, find, replace), here

    @shown
    def revert(edits: list[Edit]) -> list[Edit]:
        if not edits:
            raise LycorisError("There is no change to undo.")
        same = [edit for edit in edits if captions.read(edit.picture)[0] == edit.after]
        captions.apply(captions.reverted(same))
        others = len(edits) - len(same)
        tell(f"{_captions(same)} {'is as it was' if len(same) == 1 else 'are as they were'}." + (
            f" {others} had been changed since and stayed." if others else ""))
        return []

    @shown
    def from_names() -> tuple[list[Edit], Any]:
        here = writable(workspace)
        captioner = captioners.catalogue()["file-name"](None)
        edits = [Edit(path, before, captioner.caption(None, path))
                 for path, before in workspace.dataset(workspace.config).captions()
                 if not (before or "").strip()]
        captions.apply(edits)
        tell(f"{_captions(edits)} written.")
        return edits, here

    connect_folder(page, folder)
    on([field.change for field in fields], preview, inputs=fields, outputs=page["preview"],
       trigger_mode="always_last")
    refresh = "() => { lyco.dataset.load(); }"
    on(page["apply"].click, apply, inputs=fields,
       outputs=[page["last edits"], page["preview"], folder]).then(None, js=refresh)
    on(page["revert"].click, revert, inputs=page["last edits"],
       outputs=page["last edits"]).then(None, js=refresh)
    on(page["names apply"].click, from_names,
       outputs=[page["last edits"], folder]).then(None, js=refresh)


def connect_folder(page: Page, folder: Any) -> None:
    """The folder, chosen or typed; prompts that are about other pictures go."""
    form = page.form

    def follow(values: dict[Any, Any]) -> Any:
        try:
            run = form.read(values)
        except LycorisError:  # a field in error says so itself
            return gr.skip()
        changed = following.for_others(run)
        if not changed:
            return gr.skip()
        tell("Samples will be painted of these pictures' captions. Prompts of your own go into "
             "Sample prompts on the Train tab.")
        return form.change(run, changed)

    chosen = on(page["folder choose"].click, choose, inputs=folder, outputs=folder)
    for event in (folder.submit, folder.blur, chosen.then):
        on(event, follow, inputs=form.inputs, outputs=form.widgets[following.PROMPTS],
           trigger_mode="always_last")


@shown
def choose(path: str) -> Any:
    return dialogs.choose_folder(config.find(path)) or gr.skip()


def writable(workspace: Workspace) -> Any:
    """The captions may be written from now on; what the folder's field shows then."""
    home = config.find(workspace.config.dataset.folder)
    mine = workspace.writable(home)
    return gr.skip() if mine == home else str(mine)


def listed(edits: Sequence[Edit]) -> str:
    """A table of what would change; every text is escaped."""
    if not edits:
        return "<p class='note'>No caption would change.</p>"
    rows = "".join(
        f"<tr><td>{html.escape(edit.picture.name)}</td>"
        f"<td><del>{html.escape(edit.before or '(none)')}</del><br>"
        f"<ins>{html.escape(edit.after or '')}</ins></td></tr>" for edit in edits[:SHOWN])
    more = f"<p class='note'>and {len(edits) - SHOWN} more</p>" if len(edits) > SHOWN else ""
    return (f"<p class='note'><b>{_captions(edits)} would change:</b></p>"
            f"<table class='algos edits'>{rows}</table>{more}")


def _captions(edits: Sequence[Edit]) -> str:
    return "1 caption" if len(edits) == 1 else f"{len(edits)} captions"
