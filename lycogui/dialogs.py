"""The system's own folder dialog, in a process of its own so that it can never hang the page."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from lycoris.errors import LycorisError

TITLE = "Choose a folder"
TIMEOUT = 600  # seconds a forgotten dialog may stay open
TKINTER = """
import sys, tkinter
from tkinter import filedialog
root = tkinter.Tk(); root.withdraw(); root.attributes("-topmost", True)
print(filedialog.askdirectory(title=sys.argv[1], initialdir=sys.argv[2], mustexist=True), end="")
"""


def choose_folder(start: Path) -> str:
    """The folder the user chose; empty where they cancelled.

    Raises LycorisError where this system has no dialog to show.
    """
    start = start if start.is_dir() else Path.home()
    for command in _commands(start):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT,
                                  check=False)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            return done.stdout.strip()
        if not done.stderr.strip():  # zenity and osascript say nothing when cancelled
            return ""
    raise LycorisError("This system has no folder dialog to show.",
                       "Type or paste the folder's path instead.")


def _commands(start: Path) -> list[list[str]]:
    if sys.platform == "darwin":
        script = (f'POSIX path of (choose folder with prompt "{TITLE}" '
                  f'default location POSIX file "{start}")')
        return [["osascript", "-e", script]]
    found: list[list[str]] = []
    if sys.platform.startswith("linux"):
        if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            return []
        if shutil.which("zenity"):
            found.append(["zenity", "--file-selection", "--directory", f"--title={TITLE}",
                          f"--filename={start}/"])
        if shutil.which("kdialog"):
            found.append(["kdialog", "--getexistingdirectory", str(start)])
    found.append([sys.executable, "-c", TKINTER, TITLE, str(start)])
    return found
