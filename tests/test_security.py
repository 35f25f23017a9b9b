"""The guard from outside: hosts, origins, paths. Everything hostile is refused before Gradio."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from lycogui import routes, security, views
from lycogui.workspace import Workspace
from lycoris import events
from lycoris.runs import RunFolder

OURS = "http://127.0.0.1:7860"


@pytest.fixture
def client(workspace: Workspace) -> TestClient:
    async def seen(request: object) -> PlainTextResponse:
        return PlainTextResponse(str(dict(request.headers)))  # type: ignore[attr-defined]

    app = Starlette(routes=[*routes.make(workspace), Route("/seen", seen, methods=["GET", "POST"])],
                    middleware=[Middleware(security.Guard, names=set(security.LOOPBACK))])
    return TestClient(app, base_url=OURS, headers={"x-lycogui": "1"})


PATHS = ["/seen", "/lyco/script.js", "/lyco/picture?folder=/&name=etc", "/lyco/run/a/b.png"]
HOSTS = ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "localhost.evil.example",
         "0.0.0.0:7860", "[::1]:7860", "[::1]", "10.0.0.1", "", "127.0.0.1@evil.example",
         "localhost:7860@evil.example", "LOCALHOST.evil"]


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("path", PATHS)
def test_foreign_hosts_are_refused(client: TestClient, host: str, path: str) -> None:
    assert client.get(path, headers={"host": host}).status_code == 403
    assert client.post("/lyco/api/status", headers={"host": host}).status_code == 403


@pytest.mark.parametrize("origin", ["null", "http://evil.example", "http://127.0.0.1:9999",
                                    "http://localhost:3000", "https://127.0.0.1.evil.example",
                                    "file://"])
def test_foreign_origins_are_refused(client: TestClient, origin: str) -> None:
    for path in PATHS:
        assert client.get(path, headers={"origin": origin}).status_code == 403
    assert client.post("/lyco/api/status", headers={"origin": origin}).status_code == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_cross_site_requests_are_refused(client: TestClient, site: str) -> None:
    assert client.get("/seen", headers={"sec-fetch-site": site}).status_code == 403
    assert client.get("/seen", headers={"sec-fetch-site": site, "sec-fetch-mode": "navigate",
                                        "sec-fetch-dest": "iframe"}).status_code == 403
    opened = client.get("/seen", headers={"sec-fetch-site": site, "sec-fetch-mode": "navigate",
                                          "sec-fetch-dest": "document"})
    assert opened.status_code == 200, "a link that only opens the page is fine"


def test_our_own_page_passes(client: TestClient) -> None:
    for headers in ({}, {"origin": OURS}, {"host": "localhost:7860",
                                           "origin": "http://localhost:7860"},
                    {"sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}):
        assert client.get("/seen", headers=headers).status_code == 200


@pytest.mark.parametrize(("name", "host"), [
    ("::1", "[::1]:7860"), ("::1", "[::1]"), ("fd00::2", "[FD00::2]:7860"),
    ("studio-pc", "Studio-PC:7860"), ("my_pc", "my_pc")])
def test_a_name_is_ours_however_it_is_written(name: str, host: str) -> None:
    guard = security.Guard(Starlette(), {name})
    own = {"host": host, "origin": f"http://{host.lower()}"}
    assert guard.refusal(Headers(own)) == ""
    assert guard.refusal(Headers({**own, "origin": "http://evil.example"}))
    assert guard.refusal(Headers({**own, "host": f"x{host}"}))


def test_answers_cannot_be_framed_or_sniffed(client: TestClient) -> None:
    headers = client.get("/seen").headers
    assert headers["x-frame-options"] == "DENY"
    assert headers["x-content-type-options"] == "nosniff"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]


def test_proxy_headers_do_not_get_through(client: TestClient) -> None:
    seen = client.get("/seen", headers={"x-forwarded-host": "evil.example",
                                        "x-forwarded-proto": "https"}).text
    assert "evil" not in seen and "x-forwarded" not in seen


def test_calls_need_our_own_header(workspace: Workspace, client: TestClient) -> None:
    """A form or an image of another page cannot send it without being asked first."""
    assert client.post("/lyco/api/status").status_code == 200
    del client.headers["x-lycogui"]
    assert client.post("/lyco/api/status").status_code == 404
    assert client.post("/lyco/api/nothing", headers={"x-lycogui": "1"}).status_code == 404


def test_errors_come_back_as_data(client: TestClient) -> None:
    answer = client.post("/lyco/api/follow", json={"run": "nothing"})
    assert answer.status_code == 422
    assert "no longer there" in answer.json()["error"]["message"]
    answer = client.post("/lyco/api/follow", json={})
    assert answer.status_code == 500 and answer.json()["error"]["kind"] == "bug"


def test_pictures_only_from_opened_folders(client: TestClient, pictures: Path,
                                           tmp_path: Path) -> None:
    ask = {"folder": str(pictures), "name": "1.png"}
    assert client.get("/lyco/picture", params=ask).status_code == 404, "not opened yet"
    client.post("/lyco/api/gallery", json={})
    answer = client.get("/lyco/picture", params=ask)
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/webp"
    (tmp_path / "secret.png").write_bytes((pictures / "1.png").read_bytes())
    (pictures / "link.png").symlink_to(tmp_path / "secret.png")
    (pictures / "page.html").write_text("<script>alert(1)</script>")
    for name in ("../secret.png", str(tmp_path / "secret.png"), "link.png", "..", "", "nothing.png",
                 "..%2fsecret.png"):
        assert client.get("/lyco/picture", params={**ask, "name": name}).status_code == 404
    assert client.get("/lyco/picture", params={**ask, "name": "page.html"}).status_code == 422
    assert client.get("/lyco/picture", params={"folder": str(tmp_path),
                                               "name": "secret.png"}).status_code == 404


def test_painted_pictures_only_inside_their_run(client: TestClient, workspace: Workspace,
                                                pictures: Path) -> None:
    run = RunFolder(workspace.runs_folder / "a").create({"config.toml": "", "secret.txt": "s"})
    run.append(events.Resumed(0))
    (run.sub("samples") / "x.png").write_bytes((pictures / "1.png").read_bytes())
    base = f"/lyco/run/{views.run_id(run.path)}"
    assert client.get(f"{base}/samples/x.png").status_code == 200
    for path in ("secret.txt", "config.toml", "../a/secret.txt", "samples/../secret.txt",
                 "%2e%2e/%2e%2e/pictures/1.png", "samples"):
        assert client.get(f"{base}/{path}").status_code == 404
    assert client.get("/lyco/run/0123456789abcdef/samples/x.png").status_code == 404


def test_static_files_only_ours(client: TestClient) -> None:
    answer = client.get("/lyco/script.js")
    assert answer.status_code == 200 and "lyco.parts.monitor" in answer.text
    for name in ("static/core.js", "../routes.py", "%2e%2e/routes.py"):
        assert client.get(f"/lyco/{name}").status_code == 404


def test_inside(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("")
    (tmp_path / "ab").mkdir()
    (tmp_path / "ab" / "y").write_text("")
    assert security.inside(tmp_path / "a", "x") == tmp_path / "a" / "x"
    for name in ("../ab/y", "y", ".", "", "../a", str(tmp_path / "ab" / "y")):
        assert security.inside(tmp_path / "a", name) is None
