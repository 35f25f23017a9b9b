"""The page: header, base panel, five tabs; and how it is served."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from lycogui import routes, security, theme
from lycogui.form import Form
from lycogui.page import IN_TURN, QUIET, Page, on
from lycogui.parts import mount
from lycogui.tabs import algorithm, base, compare, dataset, tools, train
from lycogui.workspace import Workspace

MARK = """<div id="header"><span class="mark"><svg width="18" height="18" viewBox="0 0 18 18"
aria-hidden="true"><rect x="1" y="1" width="10" height="10" rx="2" fill="var(--a)"/><rect x="7"
y="7" width="10" height="10" rx="2" fill="var(--b)"
fill-opacity=".85"/></svg>lycogui</span></div>"""


def build(workspace: Workspace) -> gr.Blocks:
    """The whole page over one workspace."""
    page = Page(workspace, Form(workspace.config))
    with gr.Blocks(title="lycogui", fill_width=True, analytics_enabled=False,
                   delete_cache=(3600, 86400)) as blocks:
        page["header"] = mount("header", MARK, ("base", "fetched", "ended"),
                               elem_id="header-block")
        base.build(page)
        with gr.Tabs() as page.tabs:
            with gr.Tab("Dataset", id="dataset"):
                dataset.build(page)
            with gr.Tab("Algorithm", id="algorithm"):
                algorithm.build(page)
            with gr.Tab("Train", id="train"):
                train.build(page)
            with gr.Tab("Compare", id="compare") as page["compare tab"]:
                compare.build(page)
            with gr.Tab("Tools", id="tools") as page["tools tab"]:
                tools.build(page)
        for tab in (base, dataset, algorithm, train, compare, tools):
            tab.connect(page)
        # Whatever changes as the page loads comes back as events of its own, so that is little.
        built = page.awake()
        show(built)
        on(blocks.load, lambda: {part: update for part, update in page.awake().items()
                                 if update != built.get(part)} or gr.skip(),
           outputs=page.form.inputs | page["asked"] | page["tools asked"]).then(
            page["refresh"], inputs=page.form.inputs, outputs=page["shown"], **QUIET,
            **IN_TURN).then(None, js="() => { lyco.ready(); }")
    return blocks


def show(updates: Mapping[Any, Any]) -> None:
    """Build these parts as the updates have them."""
    for part, update in updates.items():
        given = update if isinstance(update, dict) else {"value": update}
        for name, value in given.items():
            if name != "__type__":
                setattr(part, name, value)


def launch_settings(workspace: Workspace, names: set[str]) -> dict[str, Any]:
    """What `Blocks.launch` gets besides host and port; `names` may stand in the Host header."""
    return {
        "theme": theme.make(), "css_paths": [theme.CSS], "head": routes.head(),
        "favicon_path": str(theme.ICON), "footer_links": [], "run_history": False,
        "show_error": True, "quiet": True, "max_file_size": "1mb", "ssr_mode": False,
        "enable_monitoring": False, "mcp_server": False, "allowed_paths": [],
        "app_kwargs": {"routes": routes.make(workspace),
                       "middleware": [Middleware(security.Guard, names=names)]},
    }
