"""The tab Algorithm: what is trained, and what it costs before it is."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import gradio as gr

from lycogui import costs, speed
from lycogui import pair as pairs
from lycogui.costs import Asked
from lycogui.describing import in_short
from lycogui.form import OPTIONS, Form, labelled
from lycogui.guard import shown, tell
from lycogui.layout import tab_of
from lycogui.page import IN_TURN, Page, on
from lycogui.parts import mount
from lycogui.wording import on_screen
from lycogui.workspace import Workspace
from lycoris import advice, algorithms, choose, plan, recipes
from lycoris.config import LEAVES
from lycoris.errors import ConfigError, LycorisError
from lycoris.families import Family
from lycoris.settings import Config

KEPT = "algorithm"  # what view is open, and what is set in it
EVENTS = ("look", "equal", "dim", "apply", "undo", "put", "take", "unset", "read", "measure",
          "halt")
Others = list[tuple[Config, dict[str, dict[str, Any]]]]  # every algorithm's own settings, then
COUNTED = "() => { lyco.counted?.(); }"  # nothing new will come: what is shown is still right


def build(page: Page) -> None:
    form = page.form
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=340, elem_classes="pane"):
            form.place("algorithm kind")
            page["about"] = gr.HTML(apply_default_css=False)
            form.place("algorithm")
            page["scale"] = gr.HTML(apply_default_css=False, elem_id="scale-note")
            with gr.Row(elem_classes="level"):
                form.place("algorithm conv")
            form.place("algorithm parts")
            with gr.Accordion("The algorithm's own options", open=False):
                page["options"] = form.place_options()
            with gr.Accordion("More", open=False):
                form.place("algorithm more")
        with gr.Column(scale=4):
            page["plan"] = mount("plan", "<div class='plan-root'></div>", EVENTS, elem_id="plan")
    network = form.start.network
    for path, looks in (uses(network.algo) | dora_looks(network.dora_wd)).items():
        for name, value in looks.items():
            setattr(form.widgets[path], name, value)


def connect(page: Page) -> None:
    form, workspace = page.form, page.workspace
    name = form.widgets["output.name"]
    page["shown"] = [page["plan"], page["about"], page["scale"], name, page["train note"]]

    def refresh(values: dict[Any, Any]) -> tuple[dict[str, Any], Any, str, Any, str]:
        """Every change of a setting: remember it, and show what it means."""
        try:
            run = form.read(values)
        except LycorisError as error:
            return refused(page, error), gr.skip(), "", gr.skip(), gr.skip()
        workspace.remember(run)
        try:
            shows = drawn(page, run)
        except LycorisError as error:
            return impossible(page, run, error), about(run), "", gr.skip(), gr.skip()
        return (shows, about(run), scale_note(run),
                gr.update(placeholder=plan.with_free_name(run).output.name), "")

    on([widget.change for widget in form.widgets.values()], refresh, inputs=form.inputs,
       outputs=page["shown"], trigger_mode="always_last", **IN_TURN).then(
        None, js="() => { lyco.countEpoch?.(); }")
    page["refresh"] = refresh
    connect_options(page)
    connect_views(page)
    connect_changes(page)


def connect_options(page: Page) -> None:
    """Which fields mean something depends on the algorithm."""
    form, groups = page.form, page["options"]
    algo, start = form.widgets["network.algo"], form.widgets["network.init"]

    def options_of(chosen: str, start: str) -> list[Any]:
        fits = start in algorithms.catalogue()[chosen].starts
        return [*(gr.update(visible=each == chosen) for each in groups),
                *(gr.update(**looks) for looks in uses(chosen).values()),
                gr.skip() if fits else "default"]

    on(algo.change, options_of, inputs=[algo, start], outputs=[
        *groups.values(), *(form.widgets[path] for path in uses(algo.value)), start])
    dora = form.widgets["network.dora_wd"]
    on(dora.change, lambda on: [gr.update(**looks) for looks in dora_looks(on).values()],
       inputs=dora, outputs=[form.widgets[path] for path in dora_looks(False)])


def connect_views(page: Page) -> None:
    """What only changes what is seen."""
    form, workspace, view = page.form, page.workspace, page["plan"]

    @shown
    def look(values: dict[Any, Any], event: gr.EventData) -> Any:
        keep_asked(workspace, event.asked)
        try:
            return redrawn(page, form.read(values))
        except LycorisError as error:
            return refused(page, error)

    @shown
    def put(values: dict[Any, Any], event: gr.EventData) -> Any:
        run = form.read(values)
        pairs.put(workspace, event.side, run.network)
        return redrawn(page, run)

    @shown
    def unset(values: dict[Any, Any], event: gr.EventData) -> Any:
        pairs.put(workspace, event.side, None)
        return redrawn(page, form.read(values))

    @shown
    def measure(values: dict[Any, Any]) -> Any:
        run = form.read(values)
        speed.start(workspace, run)
        return redrawn(page, run)

    @shown
    def halt(values: dict[Any, Any]) -> Any:
        speed.stop(workspace)
        return redrawn(page, form.read(values))

    for event, handler in ((view.look, look), (view.put, put), (view.unset, unset),
                           (view.measure, measure), (view.halt, halt)):
        on(event, handler, inputs=form.inputs, outputs=view, **IN_TURN).failure(None, js=COUNTED)


def connect_changes(page: Page) -> None:
    """What puts other settings into the form; each can be undone."""
    form, workspace, view = page.form, page.workspace, page["plan"]
    others: Others = []

    def changing(make: Callable[[Config, gr.EventData], Config]) -> Callable[..., Any]:
        @shown
        def handler(values: dict[Any, Any], event: gr.EventData) -> dict[Any, Any]:
            now = read_or_none(form, values)
            run = now or workspace.config  # a way out of what cannot be read: what was last read
            made = make(run, event)
            if made == now:
                return {view: redrawn(page, run)}
            page.keep(run)
            others[:] = [*((kept, own) for kept, own in others if _holds(page.before, kept)),
                         (run, form.options(values))]
            return page.load(made)
        return handler

    @shown
    def equal(values: dict[Any, Any], event: gr.EventData) -> dict[Any, Any]:
        run = form.read(values)
        found = choose.match(run, event.algo, workspace.family(run))
        if found.far and not getattr(event, "far", False):
            return {view: {**redrawn(page, run), "ask": {
                "algo": event.algo, "text": compared(workspace, run, found),
                "label": algorithms.catalogue()[event.algo].label}}}
        tell(compared(workspace, run, found))
        return changing(lambda *_: found.run)(values, event)

    def applied(run: Config, event: gr.EventData) -> Config:
        keep_asked(workspace, getattr(event, "asked", {}))
        return costs.applied(run, event.values)

    def take(run: Config, event: gr.EventData) -> Config:
        side = pairs.NAMES.index(event.side)
        return pairs.Pair.of(workspace, run).runs(run)[side]

    def read(run: Config, event: gr.EventData) -> Config:
        recipe = recipes.read(event.text).taken_over()
        tell(recipe.text)
        return recipe.applied(run)

    def possible(event: gr.EventData) -> int:
        return event.dim

    answers = form.inputs | {view}
    for event, handler in ((view.equal, equal), (view.apply, changing(applied)),
                           (view.take, changing(take)), (view.read, changing(read)),
                           (view.undo, undoing(page, others))):
        on(event, handler, inputs=form.inputs, outputs=answers, **IN_TURN).failure(None, js=COUNTED)
    on(view.dim, possible, outputs=form.widgets["network.dim"])


def undoing(page: Page, others: Others) -> Callable[..., Any]:
    """Back to the settings before the last click that changed any; what was undone by hand since is
    passed over."""
    @shown
    def undo(values: dict[Any, Any]) -> dict[Any, Any]:
        now, shown_now = read_or_none(page.form, values), page.form.options(values)
        while page.before:
            run = page.before.pop()
            own = next((own for kept, own in others if kept is run), None)
            if run != now or own not in (None, shown_now):
                return page.load(run) | (page.form.restore(own) if own is not None else {})
        return {page["plan"]: redrawn(page, page.form.read(values))}
    return undo


def read_or_none(form: Form, values: Mapping[Any, Any]) -> Config | None:
    """The settings in the form; None where a field holds none."""
    try:
        return form.read(values)
    except ConfigError:
        return None


def _holds(runs: Sequence[Config], one: Config) -> bool:
    return any(run is one for run in runs)


def compared(workspace: Workspace, run: Config, found: choose.Match) -> str:
    """What a match came to, in the sizes that the figures show, metadata included."""
    made = workspace.plan(run)
    return found.said(plan.sizes_with(made, found.run.network).file_bytes_with_metadata,
                      made.sizes.file_bytes_with_metadata)


def keep_asked(workspace: Workspace, asked: Mapping[str, Any]) -> None:
    """The view that is open and what is set in it, for later."""
    kept = {**asdict(Asked.of(workspace.kept(KEPT))), **asked}
    workspace.keep(KEPT, asdict(Asked.of(kept)))


def drawn(page: Page, run: Config) -> dict[str, Any]:
    """The plan and the open view as the page draws them."""
    workspace = page.workspace
    shows = costs.card(workspace, workspace.plan(run), Asked.of(workspace.kept(KEPT)))
    return {**shows, "undo": undone(page)}


def undone(page: Page) -> str:
    """What Undo goes back to; empty where there is nothing."""
    if not page.before:
        return ""
    before = page.before[-1].network
    return f"{algorithms.catalogue()[before.algo].label}, {in_short(before)}"


def redrawn(page: Page, run: Config) -> Any:
    """As `drawn`, for an event that changes no setting: what is impossible stays as it stands."""
    try:
        return drawn(page, run)
    except LycorisError as error:
        return impossible(page, run, error)


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


def dora_looks(on: bool) -> dict[str, dict[str, Any]]:
    """The same for the fields that mean something with DoRA only."""
    return {path: {"interactive": on} for path in ("network.wd_on_output", "network.dora_detach")}


def about(run: Config) -> str:
    """What the chosen algorithm is, in a sentence, and when to take it."""
    entry = algorithms.catalogue().get(run.network.algo)
    if entry is None:
        return ""
    return (f"<p class='note'><b>{html.escape(entry.about)}</b></p>"
            f"<p class='note'>{html.escape(entry.advice)}</p>")


def scale_note(run: Config) -> str:
    """What alpha does at this dim, in numbers; empty where there is no alpha."""
    moved = advice.scale(run.network)
    if moved is None:
        return ""
    others = " and ".join(f"{_plainly(left)} at dim {dim}" for dim, left, _ in moved.moves)
    return (f"<p class='note num'>Effective scale {moved.formula} = {_plainly(moved.value)}. With "
            f"alpha left alone: {others}.</p>")


def _plainly(value: float) -> str:
    """In three digits, and without an exponent."""
    return choose.short(float(f"{value:.3g}"))


def impossible(page: Page, run: Config, error: LycorisError) -> dict[str, Any]:
    """What the page draws of settings that make no plan: why; and where it is the dim, one that is
    possible, and the other algorithms."""
    found, workspace = refused(page, error), page.workspace
    if set(error.problems) != {"network.dim"}:
        return found
    dim = way_out(run, workspace.family(run))
    if dim is None:
        return found
    near = workspace.plan(replace(run, network=replace(run.network, dim=dim)))
    return {**found, "dim": dim} | ({"data": costs.rows(
        replace(near, config=run), possible=False)} if found["view"] == "layers" else {})


def refused(page: Page, error: LycorisError) -> dict[str, Any]:
    """What is wrong, each in a sentence, where its field is, and what to do; and the open view, if
    it is one that needs no plan."""
    asked = Asked.of(page.workspace.kept(KEPT))
    found: dict[str, Any] = {
        "problems": [{"text": on_screen(text), **_place(page, path)}
                     for path, text in labelled(error).items()],
        "undo": undone(page), "view": asked.view,
        "data": costs.without_plan(page.workspace, asked)}
    if isinstance(error, ConfigError) and error.fix:  # the others' problems end with it
        found["fix"] = on_screen(error.fix)
    return found


def _place(page: Page, path: str) -> dict[str, str]:
    """A setting's field by its id, and the tab it is on; nothing where no one setting is to blame.
    """
    if path.startswith(f"{OPTIONS}."):  # of the algorithm that was last read
        algo = page.workspace.config.network.algo
        return {"field": f"{OPTIONS}.{algo}.{path.removeprefix(f'{OPTIONS}.')}",
                "tab": tab_of(OPTIONS)}
    return {"field": path, "tab": tab_of(path)} if path in LEAVES else {"field": "", "tab": ""}


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
