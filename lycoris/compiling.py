"""torch.compile of the denoiser, block by block: what is alike is compiled once and starts sooner.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .errors import ConfigError

FIELD = "train.compile"
COMPILERS = ("c++", "g++", "clang++", "cl")
OFF = "Set train.compile to false; nothing else changes."


def blocks(denoiser: nn.Module) -> list[nn.Module]:
    """The members of its lists of blocks, and what stands between them; not its single layers."""
    found = []
    for child in denoiser.children():
        inner = list(child.children())
        if isinstance(child, nn.ModuleList):
            found += [each for each in inner if list(each.children())]
        elif any(isinstance(each, nn.ModuleList) for each in inner):
            found.append(child)
    return found


def check(device: torch.device) -> None:
    """ConfigError where there is nothing to compile with: PyTorch writes C++ for a CPU, Triton for
    CUDA, which takes a C compiler too."""
    if device.type not in ("cpu", "cuda"):
        raise ConfigError({FIELD: f"train.compile is on, but PyTorch does not compile for "
                                  f"{device.type}. {OFF}"})
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ConfigError({FIELD: "train.compile is on, but Triton is not installed. "
                                  f"{OFF} Or run: pip install triton"})
    named = (os.environ.get("CXX"), os.environ.get("CC")) if device.type == "cuda" else (
        os.environ.get("CXX"),)
    known = (*COMPILERS, "cc", "gcc", "clang") if device.type == "cuda" else COMPILERS
    if not any(shutil.which(name) for name in (*named, *known) if name):
        raise ConfigError({FIELD: f"train.compile is on, but there is no C++ compiler here. {OFF} "
                                  "Or install one, such as g++."})


def compile_blocks(denoiser: nn.Module, device: torch.device, backend: str = "inductor") -> int:
    """From now on the blocks are compiled when they are first called; how many there are.

    ConfigError where that is impossible. Names of modules and parameters stay as they are.
    """
    if backend == "inductor":
        check(device)
    found = blocks(denoiser)
    for block in found:
        block.compile(backend=backend)
    return len(found)


@contextmanager
def telling(on: bool) -> Iterator[None]:
    """What torch.compile raises within, as a ConfigError; `on`: is anything compiled?"""
    if not on:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException  # it takes seconds to import

    try:
        yield
    except TorchDynamoException as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            {FIELD: f"the base model could not be compiled: {said}. {OFF}"}) from error
