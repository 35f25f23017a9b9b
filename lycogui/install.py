"""Makes the environment and starts lycogui; run by launch.sh and launch.bat with any Python.

Only the standard library is used here. PyTorch is chosen for this machine: with an NVIDIA card the
build its driver can run, from PyTorch's own index; where that index cannot be reached, the default
one.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TORCH = "torch==2.13.0"
TORCH_RANGE = "torch>=2.10,<3"
INDEX = "https://download.pytorch.org/whl"
REACH_SECONDS = 6
BUILDS = ((13, 0, "cu130"), (12, 8, "cu128"), (12, 6, "cu126"))  # newest first: driver at least
OLDEST_FOR_NEW_BUILDS = 7.5  # compute capability; older cards are in cu126 only
PYTHONS = (3, 11), (3, 14)


def main() -> int:
    options, rest = _options()
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        print(f"This is Python {platform.python_version()}; lycogui needs 3.11 to 3.14.")
        return 1
    python = environment(Path(options.env))
    if not install(python, [ROOT / "requirements.txt", *map(Path, options.also)]):
        return 1
    if options.only_install:
        return 0
    if rest[:1] == ["demo"]:
        command = [str(python), "-m", "lycoris", *rest]
    else:
        command = [str(python), str(ROOT / "app.py"), *rest]
    os.chdir(ROOT)
    if os.name == "nt":
        return subprocess.run(command, check=False).returncode
    os.execv(command[0], command)


def environment(folder: Path) -> Path:
    """The Python of the virtual environment, made if it is not there."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        print(f"Making the environment {folder} with Python {platform.python_version()}.")
        try:
            venv.create(folder, with_pip=True, clear=folder.exists())
        except subprocess.CalledProcessError:
            sys.exit("Python's venv module could not make it. On Debian and Ubuntu, run: "
                     "sudo apt install python3-venv")
    return python


def install(python: Path, requirements: list[Path]) -> bool:
    """Install what is missing; quick when nothing has changed since the last time."""
    stamp = python.parents[1] / "lycogui-installed.txt"
    build = torch_build()
    wanted = hashlib.sha256("\n".join(
        [TORCH, build, *(file.read_text("utf-8") for file in requirements)]).encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return True
    print(f"Installing what lycogui needs ({describe(build)}). "
          "This takes a while the first time.", flush=True)
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check"]
    if not install_torch(pip, build):
        return False
    files = [part for file in requirements for part in ("-r", str(file))]
    if subprocess.run([*pip, "-q", *files], check=False).returncode:
        print("The packages could not be installed; the lines above say why. Start again once "
              "that is mended.")
        return False
    stamp.write_text(wanted)
    return True


def install_torch(pip: list[str], build: str) -> bool:
    """PyTorch of the build from its own index, else from the default one."""
    index = f"{INDEX}/{build}"
    if build and reachable(f"{index}/torch/"):
        for wanted in (TORCH, TORCH_RANGE):
            if not subprocess.run([*pip, wanted, "--index-url", index], check=False).returncode:
                return True
    elif build:
        print("PyTorch's own index cannot be reached; taking the default build.", flush=True)
    if subprocess.run([*pip, TORCH], check=False).returncode:
        print("PyTorch could not be installed; the lines above say why.")
        return False
    return True


def torch_build() -> str:
    """cu130, cu128, cu126 or cpu; empty where the default index has the right one (macOS)."""
    if sys.platform == "darwin":
        return ""
    said = _nvidia_smi()
    capabilities = _nvidia_smi("--query-gpu=compute_cap", "--format=csv,noheader")
    return build_for(said, capabilities)


def build_for(said: str, capabilities: str) -> str:
    """The build for what nvidia-smi says of driver and cards; cpu without either."""
    found = re.search(r"CUDA Version:\s*(\d+)\.(\d+)", said)
    if not found:
        return "cpu"
    driver = int(found[1]), int(found[2])
    cards = [float(text) for text in re.findall(r"\d+\.\d+", capabilities)]
    old = bool(cards) and min(cards) < OLDEST_FOR_NEW_BUILDS
    for major, minor, build in BUILDS:
        if driver >= (major, minor) and not (old and build != "cu126"):
            return build
    print(f"The NVIDIA driver is too old for today's PyTorch (it runs CUDA {driver[0]}.{driver[1]}"
          ", 12.6 is needed). Update the driver, delete the environment folder and start again; "
          "until then lycogui runs on the CPU.")
    return "cpu"


def describe(build: str) -> str:
    return {"": "PyTorch for this Mac", "cpu": "PyTorch for the CPU"}.get(
        build, f"PyTorch for NVIDIA, {build}")


def reachable(url: str) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"),
                                    timeout=REACH_SECONDS):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500 and error.code not in (401, 403)
    except (OSError, ValueError):
        return False


def _nvidia_smi(*arguments: str) -> str:
    program = shutil.which("nvidia-smi")
    if not program:
        return ""
    try:
        return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=20,
                              check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _options() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--env", default=str(ROOT / ".venv"))
    parser.add_argument("--also", action="append", default=[])
    parser.add_argument("--only-install", action="store_true")
    return parser.parse_known_args()


if __name__ == "__main__":
    sys.exit(main())
