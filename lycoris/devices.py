"""What this machine computes on: the device, its precision, its memory."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass

import psutil
import torch

from .errors import ConfigError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Facts:
    """A device as a person sees it; memory in bytes. `problem` is what keeps a GPU from use."""

    name: str
    kind: str
    free: int
    total: int
    problem: str = ""


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
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "fp32"


def base_dtype(setting: str, chosen_precision: str) -> torch.dtype:
    """The dtype of the frozen weights; auto follows the precision of the forward pass."""
    return DTYPES[chosen_precision if setting == "auto" else setting]


def look(device: torch.device) -> Facts:
    """Name and memory of the device, for the header."""
    if device.type == "cuda":
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


def peak_memory(device: torch.device) -> int:
    """Most bytes in use so far: on the device where it counts them, else the process's now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss
