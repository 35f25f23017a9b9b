"""What the tabs of one page share: the form, the workspace, and the few components others reach."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from lycogui.form import Form
from lycogui.workspace import Workspace
from lycoris.contestants import BASE
from lycoris.errors import ConfigError
from lycoris.settings import Config

UNDONE = 30  # steps back


@dataclass
class Page:
    """Tabs `build` their widgets first and `connect` events when every widget exists."""

    workspace: Workspace
    form: Form
    tabs: gr.Tabs | None = None
    parts: dict[str, Any] = field(default_factory=dict)
    before: list[Config] = field(default_factory=list)  # what Undo goes back to, in order

    def __getitem__(self, name: str) -> Any:
        return self.parts[name]

    def __setitem__(self, name: str, component: Any) -> None:
        self.parts[name] = component

    def keep(self, run: Config) -> None:
        """These settings are about to be replaced; Undo on the Algorithm tab brings them back."""
        self.before[:] = [*self.before, run][-UNDONE:]

    def awake(self) -> dict[Any, Any]:
        """Updates that show what was set last time."""
        return (self.form.write(self.workspace.config) | self["recall"]()
                | self["recall tools"]())

    def load(self, run: Config) -> dict[Any, Any]:
        """Updates that show settings from elsewhere as they are, their base's included."""
        if run.model.base != self.workspace.config.model.base:
            self.workspace.follow(run.model.base)
        return self.form.write(run)


# Not part of a public API, and no progress drawn. With `show_progress_on` at its default Gradio
# still looks for every output in its tree of components, several times for each event of any kind.
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden",
                         "show_progress_on": []}


# For events that draw the plan: one after the other, so that none overtakes a later one.
IN_TURN: dict[str, Any] = {"concurrency_id": "plan", "concurrency_limit": 1}


def on(event: Callable[..., Any] | Sequence[Callable[..., Any]], handler: Callable[..., Any] | None,
       **settings: Any) -> Any:
    """An event of this app, or several with one handler."""
    if isinstance(event, Sequence):
        return gr.on(event, handler, **{**QUIET, **settings})
    return event(handler, **{**QUIET, **settings})


def with_weights(names: list[str], weights: str) -> list[str]:
    """The contestants as the command line writes them: name or name:weight."""
    given = [text.strip() for text in (weights or "").replace(";", ",").split(",")]
    given = [text for text in given if text]
    if given and len(given) != len(names):
        raise ConfigError({"": f"there are {len(names)} contestants and {len(given)} weights; give "
                               "one weight for each, or none"})
    for text in given:
        try:
            float(text)
        except ValueError:
            raise ConfigError({"": f"the weight {text!r} is no number; write 1, or 0.8"}) from None
    return [name if not given or name == BASE else f"{name}:{given[i]}"
            for i, name in enumerate(names)]
