"""A server that answers for one repository as Hugging Face does."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

NAME, SHA = "someone/small-sd", "c" * 40
LARGE = 2**18  # bytes


class Hub:
    """`refuse` is the answer to all, {path: content} its files. Until `open` is set, of a large
    file only the first half comes."""

    def __init__(self, files: dict[str, bytes]):
        self.files, self.asked = files, []
        self.refuse: tuple[int, str] | None = None
        self.open = threading.Event()
        self.open.set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, call: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(call.path).path)
        self.asked.append((call.command, path))
        headers = {"X-Repo-Commit": SHA, "Content-Type": "application/json"}
        status, body = 200, b"{}"
        api, file = f"/api/models/{NAME}", path.partition(f"/resolve/{SHA}/")[2] or path.partition(
            "/resolve/main/")[2]
        if self.refuse:
            status, headers["X-Error-Code"] = self.refuse
        elif path == api:
            body = json.dumps({"id": NAME, "sha": SHA, "siblings": [
                {"rfilename": name, "size": len(data)} for name, data in self.files.items()]
            }).encode()
        elif path.startswith(f"/{NAME}/resolve/") and file in self.files:
            body = self.files[file]
            headers["ETag"] = f'"{hashlib.sha256(body).hexdigest()}"'
        else:
            status, headers["X-Error-Code"] = 404, "RepoNotFound"
        call.send_response(status)
        for key, value in headers.items():
            call.send_header(key, value)
        call.send_header("Content-Length", str(len(body)))
        call.end_headers()
        if call.command == "GET":
            half = len(body) // 2 if file and len(body) > LARGE else 0
            call.wfile.write(body[:half])
            if half:
                call.wfile.flush()
                self.open.wait(60)
            call.wfile.write(body[half:])

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def files_of(base: Path) -> dict[str, bytes]:
    """{path: content} of a model's folder."""
    return {file.relative_to(base).as_posix(): file.read_bytes()
            for file in base.rglob("*") if file.is_file()}
