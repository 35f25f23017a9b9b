"""Makes the screenshots of README and guide: a real run of the story, driven in a browser.

    .venv-tests/bin/python docs/make_pictures.py        (needs Chromium; a few minutes)
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "pictures"
CHROMIUM = next(path for path in ("/usr/bin/chromium", "/usr/bin/google-chrome")
                if Path(path).exists())
SIZE = {"width": 1280, "height": 800}


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        url, app = start(Path(folder))
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            photograph(url, browser)
        finally:
            app.terminate()
            app.wait(30)
            browser.close()


def photograph(url: str, browser: Any) -> None:
    light = visit(url, browser, "light")
    light.locator(".thumbs figure").nth(3).click()
    save(light, "dataset")
    tab(light, "Algorithm")
    light.wait_for_selector(".plan .v")
    save(light, "algorithm")
    tab(light, "Train")
    light.locator("#train-pair").click()
    wait(lambda: run(url, "zorb-loha").get("step", 0) >= 180, 1800)
    save(light, "train")
    dark = visit(url, browser, "dark")
    tab(dark, "Train")
    wait(lambda: run(url, "zorb-loha").get("state") == "done", 1800)
    save(dark, "train-dark")
    light.locator("#monitor").get_by_role("button", name="Compare", exact=True).click()
    light.locator("#paint").click()
    light.get_by_role("link", name="Save grid").wait_for(timeout=600_000)
    save(light, "compare")
    light.get_by_role("tab", name="Wipe").click()
    save(light, "compare-wipe")
    tab(light, "Tools")
    tool(light, "Inspect")
    save(light, "tools")
    light.locator("#tool").get_by_label("Resize", exact=True).check(force=True)
    light.locator("#tool-adapter input").click()
    light.get_by_role("option", name="zorb-lora", exact=True).click()
    light.locator("#tool-facts").click()
    tool(light, "Resize")
    save(light, "tools-resize")


def start(folder: Path) -> tuple[str, subprocess.Popen[bytes]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    app = subprocess.Popen(
        [sys.executable, str(ROOT / "app.py"), "--window", "none", "--port", str(port),
         "--settings", str(folder / "settings.toml")], cwd=folder, env=dict(os.environ))
    url = f"http://127.0.0.1:{port}/"
    wait(lambda: api(url, "status"), 120)
    return url, app


def visit(url: str, browser: Any, scheme: str) -> Any:
    page = browser.new_context(viewport=SIZE, color_scheme=scheme,
                               device_scale_factor=1.5).new_page()
    page.goto(url)
    page.wait_for_selector("body[data-ready]")
    page.wait_for_selector(".thumbs")
    return page


def tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).first.click()


def tool(page: Any, name: str) -> None:
    """Press the tool's button, wait for what it finds, and point at a bar."""
    page.wait_for_timeout(1500)
    page.locator("#tool-go").click()
    page.wait_for_selector(f".tools-root .pane[data-tool={name.lower()}][data-state=done]",
                           timeout=300_000)
    page.locator("canvas.bars").focus()
    for _ in range(30):
        page.keyboard.press("ArrowRight")


def save(page: Any, name: str) -> None:
    page.mouse.move(640, 795)
    page.wait_for_timeout(1500)
    page.screenshot(path=PICTURES / f"{name}.png")
    print(name, flush=True)


def api(url: str, name: str) -> Any:
    request = urllib.request.Request(f"{url}lyco/api/{name}", b"{}", {"x-lycogui": "1"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)
    except OSError:
        return None


def run(url: str, name: str) -> dict[str, Any]:
    return next((r for r in api(url, "all_runs")["runs"] if r["name"] == name), {})


def wait(ready: Callable[[], Any], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > until:
            raise TimeoutError
        time.sleep(0.3)


if __name__ == "__main__":
    main()
