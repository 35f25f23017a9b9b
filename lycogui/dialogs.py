"""The system's own dialogs for a folder or a file, in a process of their own so that they can never
hang the page."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from lycoris.errors import LycorisError

TIMEOUT = 600  # seconds a forgotten dialog may stay open
TKINTER = """
import sys, tkinter
from tkinter import filedialog
title, start, ending = sys.argv[1:]
root = tkinter.Tk(); root.withdraw(); root.attributes("-topmost", True)
print(filedialog.askopenfilename(title=title, initialdir=start, filetypes=[(ending, "*" + ending)])
      if ending else
      filedialog.askdirectory(title=title, initialdir=start, mustexist=True), end="")
"""


def choose_folder(start: Path) -> str:
    """The folder the user chose; empty where they cancelled.

    Raises LycorisError where this system has no dialog to show.
    """
    return _chosen(start, "")


def choose_file(start: Path, ending: str) -> str:
    """As `choose_folder`, a file whose name has that ending, e.g. ".safetensors"."""
    return _chosen(start, ending)


def _chosen(start: Path, ending: str) -> str:
    what = "file" if ending else "folder"
    near = next((place for place in (start, start.parent) if place.is_dir()), Path.home())
    for command in _commands(near, ending, f"Choose a {ending or what}"):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT,
                                  check=False)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            return done.stdout.strip()
        if not done.stderr.strip():  # zenity and osascript say nothing when cancelled
            return ""
    raise LycorisError(f"This system has no {what} dialog to show.",
                       f"Type or paste the {what}'s path instead.")


def _commands(start: Path, ending: str, title: str) -> list[list[str]]:
    if sys.platform == "darwin":
        what = f'file of type {{"{ending[1:]}"}}' if ending else "folder"
        script = (f'POSIX path of (choose {what} with prompt "{title}" '
                  f'default location POSIX file "{start}")')
        return [["osascript", "-e", script]]
    found: list[list[str]] = []
    if sys.platform.startswith("linux"):
        if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            return []
        kind = [f"--file-filter=*{ending}"] if ending else ["--directory"]
        if shutil.which("zenity"):
            found.append(["zenity", "--file-selection", *kind, f"--title={title}",
                          f"--filename={start}/"])
        if shutil.which("kdialog"):
            found.append(["kdialog", "--getopenfilename", str(start), f"*{ending}"] if ending
                         else ["kdialog", "--getexistingdirectory", str(start)])
    found.append([sys.executable, "-c", TKINTER, title, str(start), ending])
    return found
