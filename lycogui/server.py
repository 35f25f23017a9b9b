"""Serving the page: one app per settings folder, a free port, a window, a clean end."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
import webbrowser
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from lycogui import security
from lycoris import durable
from lycoris.runs import Process

log = logging.getLogger("lycogui")
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # and where this machine itself finds it
BROWSERS = {
    "linux": ("google-chrome", "google-chrome-stable", "chromium", "chromium-browser",
              "microsoft-edge", "brave-browser"),
    "win32": (r"%ProgramFiles%\Google\Chrome\Application\chrome.exe",
              r"%ProgramFiles(x86)%\Google\Chrome\Application\chrome.exe",
              r"%LocalAppData%\Google\Chrome\Application\chrome.exe",
              r"%ProgramFiles(x86)%\Microsoft\Edge\Application\msedge.exe",
              r"%ProgramFiles%\Microsoft\Edge\Application\msedge.exe"),
    "darwin": ("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
               "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
               "/Applications/Chromium.app/Contents/MacOS/Chromium"),
}


def serve(host: str, port: int, settings: Path, *, share: bool, window: str) -> int:
    """Build and serve until the process is told to end. Returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.ERROR)
    from lycogui.workspace import Workspace

    lock = settings.with_name("app.json")
    if other := _running(lock):
        print(f"lycogui is open already at {other}", flush=True)
        open_window(other, window)
        return 0
    workspace = Workspace(settings)
    from lycogui import ui

    blocks = ui.build(workspace)
    host = host.strip("[]").lower()
    chosen = free_port(host, port)
    names = {*security.LOOPBACK, host, *(own_names() if host in EVERYWHERE else ())}
    _, _, public = blocks.launch(server_name=_in_address(host), server_port=chosen, share=share,
                                 prevent_thread_lock=True,
                                 **ui.launch_settings(workspace, names))
    url = f"http://{_in_address(EVERYWHERE.get(host, host))}:{chosen}/"
    if public:
        names.add(urlsplit(public).hostname or "")
    me = Process.this()
    durable.write_text(lock, json.dumps({"pid": me.pid, "born": me.born, "url": url}))
    print(f"lycogui is at {url}", flush=True)
    if public:
        print(f"and, for anyone who has this address, at {public}", flush=True)
    print("Ctrl+C ends it; runs that are going on go on.", flush=True)
    open_window(url, window)
    ended = threading.Event()
    for name in ("SIGINT", "SIGTERM"):
        signal.signal(getattr(signal, name), lambda *_: ended.set())
    while not ended.wait(0.5):
        pass
    workspace.jobs.close()
    durable.remove(lock)
    blocks.close(verbose=False)
    return 0


def free_port(host: str, first: int) -> int:
    """The first free port from `first` on; a used one is most likely another program's."""
    for port in range(first, first + 100):
        try:
            family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(where)
                return port
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise SystemExit(f"lycogui cannot listen on {host}: {error.strerror}. Give --host "
                                 "an address of this machine.") from None
    raise SystemExit(f"No free port between {first} and {first + 99}; choose one with --port.")


def open_window(url: str, how: str) -> None:
    """A window of its own in an installed browser's app mode, else the default browser."""
    if how == "none":
        return
    if how == "auto" and (browser := _browser()):
        profile = Path.home() / ".cache" / "lycogui-window"
        subprocess.Popen([browser, f"--app={url}", f"--user-data-dir={profile}",
                          "--window-size=1280,860", "--no-first-run"],
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                         start_new_session=True)
        return
    webbrowser.open(url)


def _browser() -> str | None:
    """A Chromium-like browser, where there is a screen to show it on."""
    if sys.platform == "linux" and not (
            os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return None
    for name in BROWSERS.get(sys.platform, ()):
        path = shutil.which(os.path.expandvars(name))
        if path:
            return path
    return None


def _running(lock: Path) -> str | None:
    """The address of a lycogui that already serves these settings."""
    try:
        held = json.loads(lock.read_text())
        if not Process(held["pid"], held["born"]).alive:
            return None
        request = urllib.request.Request(f"{held['url']}lyco/api/status", data=b"{}",
                                         headers={"x-lycogui": "1"})
        with urllib.request.urlopen(request, timeout=3):
            return held["url"]
    except (OSError, ValueError, KeyError):
        return None


def own_names() -> set[str]:
    """This machine's own names and addresses, for people who open it to their network on purpose.

    Read from the network cards: the host name often leads to a loopback address only.
    """
    name = socket.gethostname().lower()
    cards = [each for card in psutil.net_if_addrs().values() for each in card]
    return {name, f"{name.partition('.')[0]}.local",
            *(each.address.partition("%")[0].lower() for each in cards
              if each.family in (socket.AF_INET, socket.AF_INET6))}


def _in_address(host: str) -> str:
    """A host as it stands in an address: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host
