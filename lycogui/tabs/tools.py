"""The tab Tools: what an adapter is, and new ones made out of it."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from lycogui import dialogs, toolbox
from lycogui.guard import shown, tell
from lycogui.layout import Place
from lycogui.page import QUIET, Page, on
from lycogui.panel import Panel
from lycogui.parts import mount
from lycogui.toolbox import TOOLS, VALUES, Task
from lycogui.toolwork import (
    facts,
    for_form,
    free_place,
    from_recipe,
    going_on,
    note,
    prepare,
    settings_of,
    start,
    task_of,
    told,
    usable_base,
    with_chosen,
)
from lycoris import config, contestants, plan
from lycoris.errors import LycorisError

KEPT = "tools"  # the file beside the settings
ABOUT = {
    "inspect": "What is in an adapter: its algorithm, sizes, the strength of every layer, and the "
               "settings it was trained with.",
    "resize": "A smaller LoRA that does nearly the same, and what that costs.",
    "convert": "The same adapter for another program.",
    "merge": "Adapters into the base model, or several into one.",
    "extract": "An adapter out of the difference between the base and a tuned model."}
RULES = {"dim": "fixed dim", "first": "first ranks, as of a DyLoRA",
         "sv_fro": "share of the norm (sv_fro)",
         "sv_cumulative": "share of the singular values (sv_cumulative)",
         "sv_ratio": "ratio to the largest (sv_ratio)", "threshold": "threshold",
         "lossless": "everything (lossless)"}
KEYS = {"keep": "as they are", "kohya": "kohya: A1111, Forge, ComfyUI",
         "lycoris": "LyCORIS wrapper", "diffusers": "diffusers",
         "onetrainer": "OneTrainer", "ai-toolkit": "ai-toolkit, ComfyUI's own names",
         "peft": "PEFT, a folder"}
KEEP = {"keep": "as it is"}
ALGORITHMS = {"lora": "LoRA", "lokr": "LoKr", "full": "Full: the differences themselves", **KEEP}
INTO = {"model": "the base: a whole model", "exact": "one adapter, exactly",
        "lora": "one LoRA, by singular values", "full": "one Full adapter"}
VALUE_HELP = {"sv_fro": "0.99: each layer keeps 99 % of its norm, an error of 14 %.",
              "sv_cumulative": "0.9: the largest that make up 90 % of their sum.",
              "sv_ratio": "20: those above a twentieth of the largest.",
              "threshold": "Those above this number, in every layer."}
CUT = (Place("rule", names=RULES, info=False), Place("dim", "number"), Place("value", "number"))
CONV = (Place("conv_dim", "number"), Place("conv_value", "number"))
DTYPE = Place("dtype", names=KEEP, info=False)
MAIN = {
    "inspect": (),
    "resize": CUT,
    "convert": (Place("dialect", names=KEYS), Place("algo", names=ALGORITHMS), *CUT),
    "merge": (Place("into", names=INTO), *CUT),
    "extract": (Place("algo", names=ALGORITHMS, info=False), *CUT)}
BLOCKS = tuple(Place(name, "number", info=False) for name in toolbox.BLOCKS)
MORE = {
    "inspect": (), "resize": (*CONV, DTYPE), "convert": (*CONV, DTYPE), "merge": (DTYPE,),
    "extract": (*CONV, Place("factor", "number"), Place("sparsity", "number"), Place("preset"),
                Place("min_diff", "number"), DTYPE)}


def build(page: Page) -> None:
    kept = page.workspace.kept(KEPT)
    tool = kept.get("tool", "inspect")
    page["panels"] = {name: Panel(name, kind, kept.get(name, {})) for name, kind in TOOLS.items()}
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=340, elem_classes="pane tools-form"):
            page["tool"] = gr.Radio([(kind.title, name) for name, kind in TOOLS.items()],
                                    value=tool, label="Tool", show_label=False,
                                    container=False, elem_classes="segments", elem_id="tool")
            page["tool about"] = gr.HTML(note(ABOUT[tool]), apply_default_css=False)
            build_sources(page)
            for name in TOOLS:
                if MAIN[name]:
                    build_settings(page, name)
            page["tool go"] = gr.Button("Inspect", variant="primary", size="lg", elem_id="tool-go")
            page["tool note"] = gr.HTML(apply_default_css=False, elem_id="tool-note")
            for name in TOOLS:
                if MORE[name]:
                    with gr.Accordion("More", open=False, elem_classes=f"for-{name}"):
                        page["panels"][name].place(*MORE[name])
        with gr.Column(scale=4):
            page["tool view"] = mount(
                "tools", "<div class='tools-root'></div>",
                ("recipe", "again", "proceed", "inspect", "compare", "base", "done"),
                value={"tool": tool, "id": ""}, elem_id="tool-view")


def build_sources(page: Page) -> None:
    """What a tool works on: one adapter, several, or a tuned model. The style sheet shows what has
    the chosen tool's class `for-..`."""
    page["adapter"] = gr.Dropdown(label="Adapter", allow_custom_value=True, elem_id="tool-adapter",
                                  info="A run, or the path of a .safetensors file.",
                                  elem_classes=["for-inspect", "for-resize", "for-convert"])
    with gr.Column(elem_classes="bare for-merge"):
        page["adapters"] = gr.Dropdown(label="Adapters", multiselect=True, allow_custom_value=True,
                                       elem_id="tool-adapters")
        page["merge weights"] = gr.Textbox(label="Weights", placeholder="all 1, or 1, 0.8",
                                           elem_id="tool-weights")
    with gr.Column(elem_classes="bare for-extract"):
        page["tuned"] = gr.Textbox(label="Tuned model", elem_id="tool-tuned",
                                   placeholder="a .safetensors file, or a folder")
        with gr.Row():
            page["tuned file"] = gr.Button("Choose file", size="md", min_width=120)
            page["tuned folder"] = gr.Button("Choose folder", size="md", min_width=120)
    page["tool facts"] = gr.HTML(apply_default_css=False, elem_id="tool-facts")


def build_settings(page: Page, name: str) -> None:
    panel = page["panels"][name]
    with gr.Column(elem_classes=f"bare for-{name}"):
        panel.place(*MAIN[name])
        if name == "merge":
            with gr.Accordion("Weights of single blocks", open=False):
                with gr.Row():
                    panel.place(*BLOCKS)
                panel.place(Place("block", lines=3))
        panel.place(Place("out", info=False))


def connect(page: Page) -> None:
    panels, tool = page["panels"], page["tool"]
    sources = {"tool": tool, "adapter": page["adapter"], "adapters": page["adapters"],
               "weights": page["merge weights"], "tuned": page["tuned"]}
    inputs = {*sources.values(), *(w for panel in panels.values() for w in panel.widgets.values())}
    page["tools asked"] = inputs

    def keep(values: dict[Any, Any]) -> None:
        page.workspace.keep(KEPT, given(sources, values) | {
            name: panel.raw(values) for name, panel in panels.items()})

    def recall() -> dict[Any, Any]:
        kept = page.workspace.kept(KEPT)
        found: dict[Any, Any] = {}
        for name, panel in panels.items():
            found |= panel.write(kept.get(name, {}))
        one, several = kept.get("adapter"), kept.get("adapters") or []
        known = page.workspace.adapters()
        return found | {
            tool: kept.get("tool", "inspect"), page["tuned"]: kept.get("tuned") or "",
            page["merge weights"]: kept.get("weights") or "",
            page["adapter"]: gr.update(choices=with_chosen(known, [one] if one else []),
                                       value=one or (known[0][1] if known else None)),
            page["adapters"]: gr.update(choices=with_chosen(known, several), value=several)}

    page["recall tools"], page["keep tools"] = recall, keep
    connect_looks(page, sources, inputs)
    connect_start(page, sources, inputs)
    connect_results(page)
    # What the user does only: a change comes from an empty page that is still loading as well.
    on([part.input for part in inputs], keep, inputs=inputs, trigger_mode="always_last")


def connect_looks(page: Page, sources: Mapping[str, Any], inputs: set[Any]) -> None:
    """What is seen depends on the tool, on its rule, and on the adapters that are chosen."""
    workspace, panels, tool = page.workspace, page["panels"], page["tool"]
    adapter, adapters = page["adapter"], page["adapters"]
    cuts = [panels[name].widgets[part] for name in TOOLS for part in ("rule", "dim", "value")
            if part in panels[name].widgets]
    outs = [panels[name].widgets["out"] for name in TOOLS if "out" in panels[name].widgets]

    def choose(name: str, now: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        return note(ABOUT[name]), now if now.get("tool") == name else {"tool": name, "id": ""}

    def look(values: dict[Any, Any]) -> dict[Any, Any]:
        name = values[tool]
        found: dict[Any, Any] = {}
        for each, panel in panels.items():
            found |= cut_looks(each, panel, values)
        try:
            task = task_of(workspace, given(sources, values))
            said = told(task)
        except LycorisError as error:
            task = Task(base=usable_base(workspace))
            said = "".join(note(text, "bad") for text in error.problems.values())
        try:
            settings = panels[name].read(values)
            ready = task.adapters or task.tuned
            action = settings.action(task) if ready else settings.title
            if ready and (out := free_place(workspace, settings, task)):
                found[panels[name].widgets["out"]] = gr.update(placeholder=out.name)
            if ready and name == "resize" and (dim := settings.to_dim(task)):
                found[panels[name].widgets["dim"]]["placeholder"] = str(dim)
        except LycorisError:
            action = TOOLS[name].title
        return found | {page["tool facts"]: said, page["tool go"]: gr.update(value=action)}

    def fresh(one: str | None, several: list[str] | None) -> list[Any]:
        known = workspace.adapters()
        one = one or (known[0][1] if known else None)
        return [gr.update(choices=with_chosen(known, [one] if one else []), value=one),
                gr.update(choices=with_chosen(known, several or []))]

    @shown
    def choose_file(path: str) -> Any:
        return dialogs.choose_file(config.find(path), ".safetensors") or gr.skip()

    @shown
    def choose_folder(path: str) -> Any:
        return dialogs.choose_folder(config.find(path)) or gr.skip()

    on(tool.change, choose, inputs=[tool, page["tool view"]],
       outputs=[page["tool about"], page["tool view"]])
    shown_by = [page["tool go"], page["tool facts"], *cuts, *outs]
    on([part.change for part in inputs], look, inputs=inputs, outputs=shown_by,
       trigger_mode="always_last")
    on(page["tool view"].done, look, inputs=inputs, outputs=shown_by)  # a name is taken by now
    for event in (page["tools tab"].select, page["tool view"].done):
        on(event, fresh, inputs=[adapter, adapters], outputs=[adapter, adapters])
    tuned = page["tuned"]
    on(page["tuned file"].click, choose_file, inputs=tuned, outputs=tuned)
    on(page["tuned folder"].click, choose_folder, inputs=tuned, outputs=tuned)


def connect_start(page: Page, sources: Mapping[str, Any], inputs: set[Any]) -> None:
    workspace, panels, tool = page.workspace, page["panels"], page["tool"]
    ordered = sorted(inputs, key=lambda part: part._id)

    def problems(values: dict[Any, Any]) -> dict[str, str]:
        try:
            prepare(workspace, panels[values[tool]].read(values),
                    task_of(workspace, given(sources, values)))
        except LycorisError as error:
            return error.problems
        return {}

    def marked(values: dict[Any, Any]) -> list[Any]:
        found = problems(values)
        names = {part: name for name, part in {**sources, **panels[values[tool]].widgets}.items()}
        return [gr.validate(names.get(part) not in found, found.get(names.get(part, ""), ""))
                for part in ordered]

    def said(values: dict[Any, Any]) -> str:
        found = problems(values)
        listed = "".join(f"<p>{html.escape(text)}</p>" for text in found.values())
        return (f"<div class='card warn' role='alert'><b>It cannot start like this</b>{listed}"
                "</div>") if found else ""

    @shown
    def go(values: dict[Any, Any]) -> dict[str, str]:
        name = values[tool]
        page["keep tools"](values)  # an adapter that a button brought was no input
        task = task_of(workspace, given(sources, values))
        return {"tool": name, "id": start(workspace, panels[name].read(values), task)}

    @shown
    def inspect(event: gr.EventData) -> list[Any]:
        taker = contestants.parse(event.adapter, workspace.runs_folder)
        task = Task((taker,), (facts(workspace, taker.path),), usable_base(workspace))
        name = start(workspace, toolbox.Inspect(), task)
        return ["inspect", gr.update(choices=with_chosen(workspace.adapters(), [event.adapter]),
                                     value=event.adapter), {"tool": "inspect", "id": name},
                gr.Tabs(selected="tools")]

    on(page["tool go"].click, said, inputs=inputs, outputs=page["tool note"])
    on(page["tool go"].click, go, inputs=inputs, outputs=page["tool view"], validator=marked)
    for event in (page["tool view"].inspect, page["monitor"].inspect):
        on(event, inspect, outputs=[tool, page["adapter"], page["tool view"], page.tabs])


def connect_results(page: Page) -> None:
    """What a result leads to: its settings in the form, a new run, another base."""
    form, workspace = page.form, page.workspace

    @shown
    def load(event: gr.EventData) -> dict[Any, Any]:
        run, kept = from_recipe(workspace, event.id)
        run, said = for_form(run)
        tell(f"{said} {kept}".strip())
        return page.load(run)

    @shown
    def again(event: gr.EventData) -> dict[Any, Any]:
        run, kept = from_recipe(workspace, event.id)
        name = workspace.enqueue(plan.with_free_name(run))
        tell(f"{name} is in the queue. {kept}".strip())
        return page.load(for_form(run)[0]) | {page.tabs: gr.Tabs(selected="train")}

    @shown
    def load_run(event: gr.EventData) -> dict[Any, Any]:
        run, said = for_form(settings_of(workspace, event.run))
        tell(said)
        return page.load(run)

    @shown
    def proceed(event: gr.EventData) -> dict[Any, Any]:
        run, said = going_on(workspace, event.adapter)
        tell(said)
        return page.load(run) | {page.tabs: gr.Tabs(selected="train")}

    @shown
    def use(event: gr.EventData) -> str:
        tell(f"{Path(event.folder).name} is the base model now.")
        return event.folder

    view = page["tool view"]
    on(view.recipe, load, outputs=form.inputs)
    on(view.again, again, outputs=form.inputs | {page.tabs})
    on(page["monitor"].settings, load_run, outputs=form.inputs)
    for event in (view.proceed, page["monitor"].proceed):
        on(event, proceed, outputs=form.inputs | {page.tabs})
    on(view.base, use, outputs=form.widgets["model.base"]).then(
        page["follow"], inputs=form.inputs, outputs=form.inputs, **QUIET)


def given(sources: Mapping[str, Any], values: Mapping[Any, Any]) -> dict[str, Any]:
    return {name: values[part] for name, part in sources.items()}


def cut_looks(tool: str, panel: Panel, values: Mapping[Any, Any]) -> dict[Any, Any]:
    """Rule, dim and value are seen where they mean something."""
    widgets = panel.widgets
    if "rule" not in widgets:
        return {}
    used = {"convert": lambda: values[widgets["algo"]] == "lora",
            "merge": lambda: values[widgets["into"]] == "lora",
            "extract": lambda: values[widgets["algo"]] != "full"}.get(tool, lambda: True)()
    rule = values[widgets["rule"]]
    by_value = rule in VALUES
    return {
        widgets["rule"]: gr.update(visible=seen(used)),
        widgets["dim"]: gr.update(visible=seen(used and rule != "lossless"), label=(
            "At most dim" if by_value else "Dim"), placeholder=(
            "any" if by_value else panel.leaves["dim"].knob.none), info=(
            "Empty: as many as it takes." if by_value else panel.leaves["dim"].knob.help)),
        widgets["value"]: gr.update(
            visible=seen(used and by_value), info=VALUE_HELP.get(rule),
            placeholder=f"{VALUES[rule]:g}" if by_value else None)}


def seen(here: bool) -> bool | str:
    """For `visible`: what is away stays in the page, because an empty number that Gradio makes anew
    comes back as 0."""
    return True if here else "hidden"
