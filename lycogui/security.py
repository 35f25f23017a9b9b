"""Who may talk to the page, and which files it may show.

Gradio answers any Host and lets simple cross-site requests through, so a hostile page could reach a
local app. This guard stands before it: only our own names as Host, only our own pages as Origin.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = frozenset({"127.0.0.1", "localhost"})
FORWARDED = (b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-for", b"forwarded")


class Guard:
    """ASGI middleware: refuses foreign hosts and origins, drops proxy headers, forbids framing."""

    def __init__(self, app: ASGIApp, names: set[str]):
        self.app = app
        self.names = names  # shared with the server, which may add a public name later

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if reason := self.refusal(headers):
            response = PlainTextResponse(reason, status_code=403)
            await response(scope, receive, send)
            return
        scope = {**scope, "headers": [(key, value) for key, value in scope["headers"]
                                      if key not in FORWARDED]}

        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message.setdefault("headers", [])
                message["headers"] += [
                    (b"x-frame-options", b"DENY"), (b"x-content-type-options", b"nosniff"),
                    (b"content-security-policy",
                     b"frame-ancestors 'none'; img-src 'self' data: blob:; object-src 'none'"),
                    (b"referrer-policy", b"no-referrer")]
            await send(message)

        await self.app(scope, receive, sealed)

    def refusal(self, headers: Headers) -> str:
        """Why a request is refused; empty where it is ours."""
        host = headers.get("host", "")
        if _name(host) not in self.names:
            return "This name is not lycogui's: open the address that was printed at the start."
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return "Requests from other pages are refused."
        if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            if headers.get("sec-fetch-mode") == "navigate" and scope_is_read(headers):
                return ""
            return "Requests from other pages are refused."
        return ""


def scope_is_read(headers: Headers) -> bool:
    """A link from elsewhere that only opens the page."""
    return headers.get("sec-fetch-dest") == "document" and "origin" not in headers


def inside(root: Path, relative: str) -> Path | None:
    """`relative` as a file under `root`; None where it leads out of it or is none."""
    path = (root / relative).resolve()
    return path if path.is_relative_to(root.resolve()) and path.is_file() else None


def _name(host: str) -> str:
    """The name in a Host header, in lower case: of name, name:port, [IPv6] or [IPv6]:port; empty
    for any other form."""
    found = re.fullmatch(r"(?:([\w.-]+)|\[([0-9a-f:.]+)\])(:\d{1,5})?", host.lower(), re.ASCII)
    return (found[1] or found[2]) if found else ""
