"""Parts of the page that our own scripts draw, as Gradio components."""

from __future__ import annotations

from typing import Any

import gradio as gr


def mount(name: str, markup: str, events: tuple[str, ...] = (), **settings: Any) -> gr.HTML:
    """A part of the page drawn by our own script `lyco.parts.<name>` into the given markup.

    `events` are the names it may trigger; each becomes a listener of the component. None may be
    called "load": Gradio fires that by itself, without data, whenever a page opens.
    """
    assert "load" not in events
    listed = "".join(f" /* '{event}' */" for event in events)
    start = (f"const start = () => window.lyco ? lyco.start('{name}', {{element, props, trigger, "
             "watch}) : setTimeout(start, 20); start();")  # the script may come after the page
    return gr.HTML(html_template=markup, apply_default_css=False, js_on_load=start + listed,
                   **settings)
