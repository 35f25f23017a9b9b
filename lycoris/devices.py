"""What this machine computes on: the device, its precision, its memory.

The page asks too, and for as long as it lives CUDA would keep some of the card's memory for it. So
an NVIDIA card's facts come from nvidia-smi; only where there is none is PyTorch asked.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar

import psutil
import torch

from .errors import ConfigError

ASKED_EVERY = 5.0  # seconds for which a card's facts are taken as they were
QUERY = ("--query-gpu=name,memory.free,memory.total,compute_cap", "--format=csv,noheader,nounits")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Facts:
    """A device as a person sees it; memory in bytes. `problem` is what keeps a GPU from use."""

    name: str
    kind: str
    free: int
    total: int
    problem: str = ""


class Card(NamedTuple):
    """An NVIDIA card; memory in bytes. Its arithmetic in bf16 begins with capability 8.0."""

    name: str
    free: int
    total: int
    capability: float


def choose(name: str) -> torch.device:
    """The device of a setting ("auto", "cpu", "cuda", "cuda:1", "mps"); ConfigError if absent."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError({"train.device": f"there is no device {name!r}; use auto, cpu, cuda, "
                                           "cuda:1 or mps"}) from None
    absent = ((device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count())
              or (device.type == "mps" and not torch.backends.mps.is_available()))
    if absent:
        raise ConfigError({"train.device": f"train.device is {name}, but PyTorch sees no such "
                                           "device here. Set it to auto."})
    return device


def precision(setting: str, device: torch.device) -> str:
    """fp32, bf16 or fp16; auto takes the best the device has."""
    if setting != "auto":
        return setting
    if device.type == "cuda":
        found = card(device)
        has_bf16 = (found.capability >= 8.0 if found
                    else torch.cuda.is_bf16_supported(including_emulation=False))
        return "bf16" if has_bf16 else "fp16"
    return "fp32"


def base_dtype(setting: str, chosen_precision: str) -> torch.dtype:
    """The dtype of the frozen weights, or of those that are not packed; auto follows the precision
    of the forward pass."""
    return DTYPES.get(setting, DTYPES[chosen_precision])


def look(device: torch.device) -> Facts:
    """Name and memory of the device, for the header."""
    if device.type == "cuda":
        if found := card(device):
            return Facts(found.name, "cuda", found.free, found.total)
        free, total = torch.cuda.mem_get_info(device)
        return Facts(torch.cuda.get_device_name(device), "cuda", free, total)
    memory = psutil.virtual_memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = "Apple GPU" if device.type == "mps" else f"CPU, {cores} cores"
    problem = ""
    if device.type == "cpu" and shutil.which("nvidia-smi") and torch.version.cuda is None:
        problem = ("There is an NVIDIA card, but this PyTorch is built for the CPU only. Close "
                   "lycogui, delete the folder .venv and start it again.")
    return Facts(name, device.type, memory.available, memory.total, problem)


def card(device: torch.device) -> Card | None:
    """What nvidia-smi says of a CUDA device; None where it says nothing."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    place = device.index or 0
    names = [name.strip() for name in visible.split(",")] if visible else []
    name = names[place] if place < len(names) else str(place)
    return _card(name, time.monotonic() // ASKED_EVERY)


@functools.lru_cache(maxsize=8)
def _card(name: str, moment: float) -> Card | None:
    """`moment` is there for the cache: the answer of the last one is asked for again."""
    try:
        said = subprocess.run(
            ["nvidia-smi", "-i", name, *QUERY], capture_output=True, text=True, timeout=10,
            check=True, creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0)).stdout
        label, free, total, capability = said.strip().rsplit(", ", 3)
        return Card(label, int(free) * 2**20, int(total) * 2**20, float(capability))
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def release() -> None:
    """Give back the memory of what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


P, R = ParamSpec("P"), TypeVar("R")


def released(run: Callable[P, R]) -> Callable[P, R]:
    """Give a card's memory back when `run` has ended. A computer's own goes with what holds it."""
    @functools.wraps(run)
    def ending(*given: P.args, **named: P.kwargs) -> R:
        try:
            return run(*given, **named)
        finally:
            if torch.cuda.is_initialized():
                release()

    return ending


def peak_memory(device: torch.device) -> int:
    """Most bytes in use so far: on the device where it counts them, else the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _most_resident()


class Meter:
    """The most memory in use from when it is made: PyTorch's on CUDA, else by how much the process
    grew at its highest over what it was."""

    def __init__(self, device: torch.device):
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = 0
        else:
            _forget_most()
            self._before = psutil.Process().memory_info().rss

    def peak(self) -> int:
        return max(0, peak_memory(self.device) - self._before)


def _most_resident() -> int:
    """The process's highest resident memory; what it is now where the system keeps no record."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text("utf-8", "replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    memory = psutil.Process().memory_info()
    return getattr(memory, "peak_wset", memory.rss)


def _forget_most() -> None:
    """Let the record begin now; Linux alone can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "ascii")
