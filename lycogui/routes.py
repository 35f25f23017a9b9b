"""The page's own requests, beside Gradio's: small JSON calls and pictures.

Gradio's events carry the form; everything that is polled or is a list of pictures goes here,
because it must be fast, must not wait in a queue, and must survive a reload. Behind the same Guard.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from lycogui import pictures, security, views
from lycogui.guard import as_data
from lycogui.workspace import Workspace
from lycoris import report
from lycoris.errors import LycorisError

STATIC = Path(__file__).parent / "static"
SCRIPTS = ("core", "chart", "range", "header", "curves", "views", "plan", "gallery", "epoch",
           "plot", "looks", "ended", "monitor", "compare", "bars", "focus", "pace", "tools",
           "fetch", "start")
PREFIX = "/lyco"
Call = Callable[[Workspace, dict[str, Any]], Any]


def make(workspace: Workspace) -> list[Route]:
    """The routes for `launch(app_kwargs={"routes": ...})`."""

    async def call(request: Request) -> Response:
        """POST a JSON object to a view of this name; errors come back as data."""
        view = views.VIEWS.get(request.path_params["name"])
        if view is None or request.headers.get("x-lycogui") != "1":
            return JSONResponse({"error": {"message": "There is no such call."}}, 404)
        try:
            given = json.loads(await request.body() or b"{}")
            return JSONResponse(await run_in_threadpool(view, workspace, given))
        except Exception as error:  # guard.as_data tells the user's mistakes from our bugs
            status = 422 if isinstance(error, LycorisError) else 500
            return JSONResponse({"error": as_data(error)}, status)

    async def picture(request: Request) -> Response:
        """A dataset picture, re-encoded: ?folder=&name=&size=thumb|large."""
        root = Path(request.query_params.get("folder", ""))
        name = request.query_params.get("name", "")
        path = security.inside(root, name) if workspace.may_show(root) else None
        if path is None:
            return Response("There is no such picture.", 404)
        make = pictures.large if request.query_params.get("size") == "large" else pictures.thumbnail
        try:
            data = await run_in_threadpool(make, path)
        except (LycorisError, OSError) as error:
            return Response(str(error), 422)
        return Response(data, media_type="image/webp", headers={"cache-control": "max-age=3600"})

    async def painted(request: Request) -> Response:
        """A PNG that a run or comparison painted: /run/<name>/<path>."""
        root = workspace.painted_root(unquote(request.path_params["run"]))
        path = security.inside(root, request.path_params["path"]) if root else None
        if path is None or path.suffix != ".png":
            return Response("There is no such picture.", 404)
        return FileResponse(path, media_type="image/png",
                            headers={"cache-control": "max-age=3600"})

    async def run_report(request: Request) -> Response:
        """A run, or with ?with= two, as one page that may load nothing: /report/<run>."""
        names = [request.path_params["run"], request.query_params.get("with", "")]
        try:
            text, name = await run_in_threadpool(views.report_of, workspace, names)
        except LycorisError as error:
            return Response(str(error), 404)
        return Response(text, media_type="text/html", headers={
            "content-security-policy": report.POLICY,
            "content-disposition": f"inline; filename*=UTF-8''{quote(name, safe='')}"})

    async def script(request: Request) -> Response:
        return Response(scripts(), media_type="text/javascript",
                        headers={"cache-control": "max-age=31536000, immutable"})

    return [
        Route(f"{PREFIX}/api/{{name}}", call, methods=["POST"]),
        Route(f"{PREFIX}/picture", picture),
        Route(f"{PREFIX}/run/{{run}}/{{path:path}}", painted),
        Route(f"{PREFIX}/report/{{run}}", run_report),
        Route(f"{PREFIX}/script.js", script),
    ]


def scripts() -> str:
    """All our scripts as one: Gradio adds head scripts in no certain order, and these build on
    each other."""
    return "\n".join((STATIC / f"{name}.js").read_text("utf-8") for name in SCRIPTS)


def head() -> str:
    """The script tag for the page's head; the address changes with the script."""
    version = hashlib.blake2b(scripts().encode(), digest_size=6).hexdigest()
    return f'<script src="{PREFIX}/script.js?v={version}"></script>'
