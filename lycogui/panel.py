"""The binder of a small settings dataclass, as the form is the run's: its widgets, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from lycogui.form import build_widget, from_widget, to_widget
from lycogui.layout import Place
from lycoris import knobs
from lycoris.errors import ConfigError


class Panel:
    """The widgets of one dataclass of knobs, with their own names under `name`."""

    def __init__(self, name: str, kind: type, held: Mapping[str, Any]):
        self.name, self.kind = name, kind
        self.leaves = knobs.leaves(kind)
        self.held = {key: leaf.default for key, leaf in self.leaves.items()} | {
            key: value for key, value in held.items() if key in self.leaves}
        self.widgets: dict[str, gr.components.Component] = {}

    def place(self, *places: Place) -> None:
        """Build these settings in the current container."""
        for place in places:
            self.widgets[place.path] = build_widget(
                self.leaves[place.path], place, self.held[place.path],
                elem_id=f"{self.name}.{place.path}")

    def read(self, values: Mapping[gr.components.Component, Any]) -> Any:
        """The settings that the widgets show; ConfigError lists every bad value by its name."""
        problems: dict[str, str] = {}
        found: dict[str, Any] = {}
        for name, widget in self.widgets.items():
            leaf = self.leaves[name]
            try:
                found[name] = knobs.coerce(leaf, from_widget(leaf, values[widget]))
            except ValueError as error:
                problems[name] = f"{leaf.label} {error}"
        if problems:
            raise ConfigError(problems)
        return self.kind(**found)

    def raw(self, values: Mapping[gr.components.Component, Any]) -> dict[str, Any]:
        """What stands in the widgets, right or wrong, to be kept."""
        return {name: values[widget] for name, widget in self.widgets.items()}

    def write(self, held: Mapping[str, Any]) -> dict[gr.components.Component, Any]:
        """Updates that show what was kept; the defaults for what was not."""
        found = {}
        for name, widget in self.widgets.items():
            value = held.get(name, self.leaves[name].default)
            found[widget] = gr.update(value=to_widget(self.leaves[name], value))
        return found
