"""Starting the app: ports, windows, a second start, the end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from lycogui import dialogs, server
from lycoris.errors import LycorisError
from lycoris.runs import Process


def test_a_used_port_is_passed_over() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert port < server.free_port("127.0.0.1", port) < port + 100


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::", "localhost"])
def test_a_port_is_looked_for_where_it_will_be_used(host: str) -> None:
    try:
        family, _, _, _, where = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        taken = socket.socket(family)
        taken.bind(where)
    except OSError:
        pytest.skip(f"this machine has no {host}")
    with taken:
        taken.listen()
        assert server.free_port(host, taken.getsockname()[1]) > taken.getsockname()[1]


@pytest.mark.parametrize("host", ["203.0.113.7", "no-such-machine.invalid"])
def test_an_address_of_another_machine_is_refused_at_once(host: str) -> None:
    with pytest.raises(SystemExit, match=f"cannot listen on {host}.*address of this machine"):
        server.free_port(host, 7860)


def test_own_names_are_those_of_the_network_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host name leads to 127.0.1.1 on Debian; its capitals never reach the browser."""
    card = [types.SimpleNamespace(family=kind, address=address) for kind, address in (
        (socket.AF_INET, "192.168.1.5"), (socket.AF_INET6, "FE80::1%eth0"), (-1, "00:1a:2b"))]
    monkeypatch.setattr(server.psutil, "net_if_addrs", lambda: {"eth0": card})
    monkeypatch.setattr(server.socket, "gethostname", lambda: "Studio-PC")
    assert server.own_names() == {"studio-pc", "studio-pc.local", "192.168.1.5", "fe80::1"}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would have been opened."""
    seen: list[Any] = []
    monkeypatch.setattr(server.subprocess, "Popen", lambda command, **_: seen.append(command))
    monkeypatch.setattr(server.webbrowser, "open", seen.append)
    return seen


def test_a_window_of_its_own_where_a_browser_can(opened: list[Any],
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_browser", lambda: "/usr/bin/some-browser")
    server.open_window("http://127.0.0.1:7860/", "auto")
    assert opened[0][:2] == ["/usr/bin/some-browser", "--app=http://127.0.0.1:7860/"]
    server.open_window("http://127.0.0.1:7860/", "browser")
    server.open_window("http://127.0.0.1:7860/", "none")
    assert opened[1:] == ["http://127.0.0.1:7860/"]


def test_else_the_default_browser(opened: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_browser", lambda: None)
    server.open_window("http://127.0.0.1:7860/", "auto")
    assert opened == ["http://127.0.0.1:7860/"]


def test_no_window_without_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert server._browser() is None
    with pytest.raises(LycorisError, match="no folder dialog"):
        dialogs.choose_folder(Path("/"))
    with pytest.raises(LycorisError, match="no file dialog"):
        dialogs.choose_file(Path("/"), ".safetensors")


@pytest.mark.skipif(os.name == "nt", reason="the dialog is a script for sh")
def test_a_file_or_a_folder_is_chosen_in_the_systems_dialog(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside what is chosen now; a cancelled dialog chooses nothing."""
    asked, program = tmp_path / "asked.txt", tmp_path / "zenity"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {asked}\necho /models/x; exit $CODE\n')
    program.chmod(0o755)
    monkeypatch.setattr(dialogs.sys, "platform", "linux")
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CODE", "0")
    assert dialogs.choose_file(program, ".safetensors") == "/models/x"
    said = asked.read_text().splitlines()
    assert f"--filename={tmp_path}/" in said and "--file-filter=*.safetensors" in said
    assert dialogs.choose_folder(tmp_path) == "/models/x"
    assert "--directory" in asked.read_text().splitlines()
    monkeypatch.setenv("CODE", "1")
    assert dialogs.choose_file(program, ".safetensors") == ""


def test_a_stale_lock_is_no_running_app(tmp_path: Path) -> None:
    lock = tmp_path / "app.json"
    assert server._running(lock) is None
    me = Process.this()
    for content in ("", "{}", json.dumps({"pid": me.pid, "born": me.born - 999, "url": "http://x/"}),
                    json.dumps({"pid": me.pid, "born": me.born, "url": "http://127.0.0.1:9/"})):
        lock.write_text(content)
        assert server._running(lock) is None


def test_a_second_start_finds_the_first_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "app.py"), "--window", "none", "--port", "7990",
               "--settings", str(tmp_path / "settings.toml")]
    first = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True,
                             env={**os.environ, "GRADIO_SERVER_NAME": "0.0.0.0",
                                  "GRADIO_SHARE": "true"})
    assert first.stdout is not None
    said = first.stdout.readline()
    assert said.startswith("lycogui is at http://127.0.0.1:79")
    url = said.split()[-1]
    second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120,
                            check=False)
    assert second.returncode == 0 and f"open already at {url}" in second.stdout
    first.send_signal(signal.SIGINT)
    until = time.monotonic() + 60
    while first.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
    assert first.returncode == 0 and not (tmp_path / "app.json").exists()


def test_another_lycoris_in_the_way_is_named(tmp_path: Path) -> None:
    """The public package of the same name, installed where Python looks first."""
    other = tmp_path / "lycoris"
    other.mkdir()
    (other / "__init__.py").write_text("__version__ = '4.1.3'\n")
    code = (f"import sys, runpy; sys.path.insert(0, {str(tmp_path)!r}); import lycoris\n"
            f"sys.argv = ['app.py']; runpy.run_path({str(ROOT / 'app.py')!r}, run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Another package called lycoris" in done.stderr
