"""The app in a process of its own and a real browser before it, for the tests that use both."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import FAILED, ROOT

CHROMIUM = next((path for path in ("/usr/bin/chromium", "/usr/bin/google-chrome",
                                   "/usr/bin/chromium-browser") if Path(path).exists()), None)
NEEDS_BROWSER = [pytest.mark.browser, pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium is installed here")]


class App:
    """app.py in its own process, in a folder of its own."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.start()

    def start(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.log = (self.folder / "app.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "app.py"), "--port", str(port), "--window", "none",
             "--settings", str(self.folder / "settings.toml")], cwd=self.folder, stdout=self.log,
            stderr=self.log, env={**os.environ, "OMP_NUM_THREADS": "2"})
        self.url = f"http://127.0.0.1:{port}/"
        until = time.monotonic() + 120
        while True:
            try:
                self.api("status")
                return
            except OSError:
                assert self.process.poll() is None, (self.folder / "app.log").read_text()
                assert time.monotonic() < until
                time.sleep(0.2)

    def api(self, name: str, **given: Any) -> Any:
        request = urllib.request.Request(f"{self.url}lyco/api/{name}", json.dumps(given).encode(),
                                         {"x-lycogui": "1"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def run(self, name: str) -> dict[str, Any]:
        return next((r for r in self.api("all_runs")["runs"] if r["name"] == name), {})

    def wait(self, ready: Callable[[], object], seconds: float = 400) -> None:
        until = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < until, "it took too long"
            time.sleep(0.2)

    def kill(self) -> None:
        """The app is gone at once; its runs are not."""
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        for process in psutil.process_iter(["cmdline", "cwd"]):
            if process.info["cwd"] == str(self.folder):
                process.kill()


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    folder = tmp_path_factory.mktemp("app")
    shutil.copytree(ROOT / "assets" / "datasets" / "zorb", folder / "zorb")
    made = App(folder)
    yield made
    made.end()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=[
            "--no-sandbox", "--disable-gpu", "--disable-background-networking"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def context(app: App, browser: Any) -> Iterator[Any]:
    """One cache for all pages of a file; what else a browser keeps, the app keeps by page."""
    made = browser.new_context(viewport={"width": 1280, "height": 800})
    made.set_default_timeout(60_000)
    yield made
    made.close()


@pytest.fixture
def page(app: App, context: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A fresh page that fails its test on script errors and on requests to anywhere else; of a test
    that failed there is a picture of it."""
    opened = context.new_page()
    wrong: list[str] = []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda message: message.type == "error" and wrong.append(message.text))
    opened.on("request", lambda request: wrong.append(request.url) if not request.url.startswith(
        ("http://127.0.0.1:", "data:", "blob:")) else None)
    visit(app, opened)
    yield opened
    if request.node.stash.get(FAILED, False) and context.pages:
        shot = app.folder / "failed.png"
        context.pages[-1].screenshot(path=shot)
        print(f"what the browser showed: {shot}")
    for each in context.pages:
        each.close()
    # The app was ended, or the page left while the client read an answer, which it then aborts.
    gone = ("net::ERR_", "network error", "Connection", "status of 422", "AbortError: signal is ab")
    wrong = [text for text in wrong if not any(word in text for word in gone)]
    assert not wrong, wrong


def visit(app: App, page: Any) -> None:
    page.goto(app.url)
    page.wait_for_selector("body[data-ready]")
    page.wait_for_function("document.querySelector('.thumbs, .gallery-root .note .bad') !== null")


def tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).first.click()


def fill(page: Any, path: str, value: str) -> None:
    """Write into a setting's field as a person does, and leave it."""
    field = page.locator(f"[id='{path}'] input, [id='{path}'] textarea").first
    field.fill(value)
    field.press("Tab")


def settled(app: App, path: str, value: str) -> None:
    """Until the app has remembered a setting."""
    file = app.folder / "settings.toml"
    app.wait(lambda: file.exists() and f"{path} = {value}" in file.read_text("utf-8"), 60)


# Every visible text of ours against what is behind it: at least 4.5 to 1 (WCAG 2.1, 1.4.3).
CONTRAST = """() => {
  const parse = c => c.match(/[\\d.]+/g).map(Number).map(
    (v, i) => c.startsWith('color(srgb') && i < 3 ? 255 * v : v);
  const linear = v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
  const solid = c => c.length < 4 || c[3] === 1;
  const behind = e => {
    const layers = [];
    for (; e; e = e.parentElement) {
      layers.push(parse(getComputedStyle(e).backgroundColor));
      if (solid(layers.at(-1))) break;
    }
    let under = solid(layers.at(-1)) ? layers.pop() : [255, 255, 255];
    for (const c of layers.reverse())
      under = [0, 1, 2].map(i => c[i] * c[3] + under[i] * (1 - c[3]));
    return under;
  };
  const bad = [];
  for (const e of document.querySelectorAll('.lyco *, .pane label span, .pane button')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    const style = getComputedStyle(e);
    if (!own || !e.getBoundingClientRect().width || e.disabled) continue;
    if (style.visibility === 'hidden' || style.clip === 'rect(0px, 0px, 0px, 0px)') continue;
    const a = light(parse(style.color)), b = light(behind(e));
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.45)
      bad.push(`${e.textContent.trim().slice(0, 30)} ${ratio.toFixed(2)} ${style.color}`);
  }
  return bad;
}"""


def assert_fits_and_reads(page: Any, name: str) -> None:
    """What is shown is no wider than the window, and its text stands out, by day and by night."""
    page.add_style_tag(content="* { transition: none !important }")  # colours are there at once
    for width, scheme in ((1280, "light"), (1280, "dark"), (1920, "light")):
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function("dark => document.body.classList.contains('dark') === dark",
                               arg=scheme == "dark")
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, f"{name} is {wide} px wide"
        assert page.evaluate(CONTRAST) == [], (name, width, scheme)
