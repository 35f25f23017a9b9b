"""The only binder between the typed config and widgets.

A widget is made for every setting from its type and its knob; handlers take all of them as one
value and get a frozen Config back. Nothing else in the app knows the name of a widget.
"""

from __future__ import annotations

import html
import tomllib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gradio as gr

from lycogui.layout import SECTIONS, Place
from lycogui.parts import mount
from lycoris import algorithms, config, knobs, plan
from lycoris.config import LEAVES
from lycoris.errors import ConfigError, LycorisError
from lycoris.knobs import Leaf
from lycoris.settings import Config

OPTIONS = "network.options"


class Form:
    """All widgets of one page. `place` builds a section where it stands; then `inputs` is whole."""

    def __init__(self, start: Config):
        self.start = start
        self.widgets: dict[str, gr.components.Component] = {}

    @property
    def inputs(self) -> set[gr.components.Component]:
        """Hand this to an event: its handler gets one dict for `read`."""
        return set(self.widgets.values())

    def place(self, section: str) -> None:
        """Build the widgets of a section in the current container."""
        for place in SECTIONS[section]:
            leaf = LEAVES[place.path]
            self.widgets[place.path] = build_widget(leaf, place, knobs.get(self.start, place.path))

    def place_options(self) -> dict[str, gr.Group]:
        """One group of widgets per algorithm for its own options; only the chosen one is seen."""
        groups = {}
        for algo, entry in algorithms.catalogue().items():
            chosen = algo == self.start.network.algo
            with gr.Group(visible=chosen, elem_classes="bare") as groups[algo]:
                own = knobs.leaves(entry.Options)
                for leaf in own.values():
                    held = self.start.network.options if chosen else {}
                    self.widgets[f"{OPTIONS}.{leaf.name}@{algo}"] = build_widget(
                        leaf, Place(leaf.name), held.get(leaf.name, leaf.default),
                        elem_id=f"{OPTIONS}.{algo}.{leaf.name}")
                if not own:
                    gr.HTML(f"<p class='note'>{entry.label} has no settings of its own.</p>")
        return groups

    def read(self, values: Mapping[gr.components.Component, Any]) -> Config:
        """The config that the widgets show; ConfigError lists every bad value."""
        problems: dict[str, str] = {}
        found: dict[str, Any] = {}
        for path, widget in self.widgets.items():
            if path.startswith(f"{OPTIONS}."):
                continue
            try:
                found[path] = from_widget(LEAVES[path], values[widget])
            except ValueError as error:
                problems[path] = f"{path} {error}"
        found[OPTIONS] = self.options(values).get(str(found.get("network.algo")), {})
        try:
            built = config.build({p: v for p, v in found.items() if p not in problems})
        except ConfigError as error:
            raise ConfigError({**problems, **error.problems}) from None
        if problems:
            raise ConfigError(problems)
        return built

    def options(self, values: Mapping[gr.components.Component, Any]) -> dict[str, dict[str, Any]]:
        """{algorithm: its own settings} of all, also of those that are not chosen; what is at its
        default is left out."""
        found: dict[str, dict[str, Any]] = {}
        for algo, name, widget in self._options():
            if values[widget] != self._option_default(algo, name):
                found.setdefault(algo, {})[name] = values[widget]
        return found

    def restore(self, options: Mapping[str, Mapping[str, Any]],
                ) -> dict[gr.components.Component, Any]:
        """Updates that show what `options` once read."""
        return {widget: gr.update(value=options.get(algo, {}).get(
            name, self._option_default(algo, name))) for algo, name, widget in self._options()}

    def _options(self) -> Iterator[tuple[str, str, gr.components.Component]]:
        """(algorithm, name, widget) of every algorithm's own settings."""
        for path, widget in self.widgets.items():
            if path.startswith(f"{OPTIONS}."):
                name, _, algo = path.removeprefix(f"{OPTIONS}.").partition("@")
                yield algo, name, widget

    def write(self, run: Config) -> dict[gr.components.Component, Any]:
        """Updates that make the widgets show a config; other algorithms keep their own settings.
        """
        updates: dict[gr.components.Component, Any] = {
            widget: gr.update(value=run.network.options.get(name, self._option_default(algo, name)))
            for algo, name, widget in self._options() if algo == run.network.algo}
        for path, widget in self.widgets.items():
            if path.startswith(f"{OPTIONS}."):
                continue
            leaf = LEAVES[path]
            fresh = {"choices": _choices(leaf)} if _is_open(leaf) else {}
            updates[widget] = gr.update(value=to_widget(leaf, knobs.get(run, path)), **fresh)
        return updates

    def change(self, run: Config, values: Mapping[str, Any]) -> dict[gr.components.Component, Any]:
        """Updates for these settings of a run only: {path: value}."""
        of = {widget: ".".join(_path(name).split(".")[:2])
              for name, widget in self.widgets.items()}
        return {widget: update for widget, update in self.write(knobs.replace(run, values)).items()
                if of[widget] in values}

    @staticmethod
    def _option_default(algo: str, name: str) -> Any:
        return knobs.leaves(algorithms.catalogue()[algo].Options)[name].default

    def problems(self, values: Mapping[gr.components.Component, Any],
                 extra: Callable[[Config], None] = lambda run: None) -> dict[str, str]:
        """{path: text} of everything that keeps these values from being a plan; empty if nothing.

        The plan checks what single values cannot: names, sides, base, pictures; `extra` may raise
        for more.
        """
        try:
            run = self.read(values)
            plan.make(run)
            extra(run)
        except LycorisError as error:
            return labelled(error)
        return {}

    def validate(self, values: Mapping[gr.components.Component, Any],
                 extra: Callable[[Config], None] = lambda run: None) -> list[Any]:
        """For `validator=`: the problem on each widget that has one, in the order Gradio asks."""
        found = self.problems(values, extra)
        order = sorted(self.widgets.items(), key=lambda item: item[1]._id)
        return [gr.validate(_path(name) not in found, found.get(_path(name), ""))
                for name, _ in order]


def labelled(error: LycorisError) -> dict[str, str]:
    """{path: text} of an error, with settings called as they are on the screen."""
    return {path: text.replace(path, LEAVES[path].label, 1) if path in LEAVES else text
            for path, text in error.problems.items()}


def _path(name: str) -> str:
    return name.partition("@")[0]


def build_widget(leaf: Leaf, place: Place, value: Any,
                 elem_id: str = "") -> gr.components.Component:
    """The widget of a setting: by its type, its knob, and where it stands."""
    knob = leaf.knob
    common: dict[str, Any] = {"label": leaf.label + (f", {knob.unit}" if knob.unit else ""),
                              "info": knob.help or None if place.info else None,
                              "elem_id": elem_id or leaf.path}
    choices = [(place.names.get(name, label), name) for label, name in _choices(leaf)]
    if _is_open(leaf):
        return gr.Dropdown(choices, value=value, allow_custom_value=True, **common)
    if choices:
        kind = gr.Radio if place.kind == "radio" else gr.Dropdown
        return kind(choices, value=value, **common)
    if leaf.type is bool:
        return gr.Checkbox(value, **common)
    if leaf.type in (int, float):
        ranged = _is_ranged(leaf, place)
        step = place.step or knob.step or (1 if leaf.type is int else 0.01 if ranged else 0.0001)
        number = gr.Number(to_widget(leaf, value), placeholder=knob.none or None, buttons=[],
                           step=step, elem_classes="ranged" if ranged else None, **common)
        if ranged:
            _range(number, leaf, place, step)
        return number
    lines = place.lines if place.lines > 1 else 1
    return gr.Textbox(to_widget(leaf, value), lines=lines, max_lines=max(lines, 8),
                      placeholder=knob.none or None, **common)


def _choices(leaf: Leaf) -> list[tuple[str, str]]:
    if leaf.knob.choices:
        return [(name, name) for name in leaf.knob.choices]
    if leaf.knob.catalogue == "algorithms":
        return [(entry.label, name) for name, entry in algorithms.catalogue().items()]
    return [(name, name) for name in plan.names().get(leaf.knob.catalogue, ())]


def _is_open(leaf: Leaf) -> bool:
    """A name of a catalogue or a file's path; a person adds to the names while the app runs."""
    return bool(leaf.knob.catalogue) and leaf.knob.file


def _range(number: gr.Number, leaf: Leaf, place: Place, step: float) -> None:
    """A slider under a number, each following the other.

    Not Gradio's, which cuts off what lies beyond its ends and fails every event that brings it.
    """
    low, high = leaf.knob.low or 0, place.high or leaf.knob.high
    bar = mount("range", f"<input type='range' min='{low // step * step:g}' max='{high:g}' "
                f"step='{step:g}' data-low='{low:g}' data-of='{number.elem_id}' "
                f"aria-label='{html.escape(leaf.label)}, slider'>", value=number.value,
                elem_classes="range")
    number.change(None, inputs=number, outputs=bar, js="value => value", show_progress="hidden",
                  show_progress_on=[])


def _is_ranged(leaf: Leaf, place: Place) -> bool:
    bounded = leaf.knob.low is not None and leaf.knob.high is not None
    return not leaf.optional and (place.kind == "slider" or (bounded and not place.kind))


def to_widget(leaf: Leaf, value: Any) -> Any:
    """A setting's value as its widget shows it; text stays as it is.

    A number that may be empty is text then: what is null Gradio shows as 0 in a tab not yet opened.
    """
    if isinstance(value, str):
        return value
    if value is None and leaf.type in (int, float):
        return ""
    if leaf.item_type is str:
        return "\n".join(value)
    if leaf.item_type is dict:
        return "\n".join(config.toml_value(each)[1:-1] for each in value)
    if leaf.item_type is not None:
        return ", ".join(map(str, value))
    if leaf.is_table:
        return "\n".join(f"{key} = {config.toml_value(each)}" for key, each in value.items())
    return value


def from_widget(leaf: Leaf, value: Any) -> Any:
    """A widget's value for knobs.coerce; ValueError says what is wrong with it."""
    if leaf.is_table:
        try:
            return tomllib.loads(value or "")
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"wants lines like betas = [0.9, 0.99]: {error}") from None
    if leaf.item_type is str and isinstance(value, str):
        return tuple(line.strip() for line in value.splitlines() if line.strip())
    return value
