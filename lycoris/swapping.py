"""Block swap: frozen weights of the denoiser that wait in the computer's memory and are on the
device only while their block is at work.

A block's weights are copied when it is called, as tensors of their own. After the call the module
holds those in the computer's memory again; the copies live as long as the backward pass needs them,
which under gradient checkpointing is while the block is computed again. Nothing is ever copied
back, and what is computed is the same to the bit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from . import quantised
from .algorithms import Layer, elements
from .settings import Config

FIELD = "train.block_swap"
# What gradient checkpointing computes again as one, and so what can come and go as one: all of a
# UNet's blocks but the first in its middle, which diffusers always keeps.
BLOCK = re.compile(r"^(?!mid_block\.resnets\.0\.)(.*\.(?:resnets|transformer_blocks)\.\d+)\.")
Home = tuple[nn.Module, str, nn.Parameter]  # a module's weight of that name, where it waits
OFF = f"Set {FIELD} to 0"


def problems(run: Config) -> dict[str, str]:
    """{path: text} of settings under which nothing would be saved, or nothing could be moved."""
    train = run.train
    if not train.block_swap:
        return {}
    if not train.gradient_checkpointing:
        return {FIELD: f"{FIELD} is {train.block_swap:g}, but without train.gradient_checkpointing "
                       f"the backward pass keeps all weights on the device. Turn that on, or "
                       f"{OFF[0].lower()}{OFF[1:]}."}
    if run.model.dtype in quantised.KINDS:
        return {FIELD: f"{FIELD} is {train.block_swap:g}, but weights of {run.model.dtype} stay "
                       f"where they were packed. {OFF}, or hold the base in bf16."}
    if train.compile:
        return {FIELD: f"{FIELD} is {train.block_swap:g}, but compiled blocks keep their weights. "
                       f"{OFF}, or turn train.compile off."}
    return {}


def happens(run: Config, device: str) -> bool:
    """Is there anything to gain? On a CPU all is in the computer's memory anyway."""
    return device != "cpu" and run.train.block_swap > 0


def sizes(layers: Iterable[Layer]) -> dict[str, int]:
    """{block: its numbers} of a denoiser's layers."""
    found: dict[str, int] = {}
    for layer in layers:
        if place := BLOCK.match(layer.name):
            count = elements(layer.shape) + layer.bias * layer.shape[0]
            found[place[1]] = found.get(place[1], 0) + count
    return found


def chosen(blocks: Mapping[str, int], share: float) -> list[str]:
    """The blocks that wait: the largest, until they hold that share of all blocks' numbers."""
    left, found = share * sum(blocks.values()), []
    for name in sorted(blocks, key=lambda name: (-blocks[name], name)):
        if left <= 0:
            break
        found.append(name)
        left -= blocks[name]
    return found


def place_of(module: nn.Module) -> torch.device:
    """The device on which a layer computes, wherever its weight waits."""
    return getattr(module.weight, "works_on", module.weight.device)


class Swap:
    """Blocks whose weights are in the computer's memory from now on."""

    def __init__(self, root: nn.Module, names: Sequence[str], device: torch.device):
        """`device` is where the blocks of `root` of these names compute."""
        self.device = device
        self.homes: list[Home] = []
        for name in names:
            block = root.get_submodule(name)
            homes = [(module, key, self._home(weight)) for module in block.modules()
                     for key, weight in module.named_parameters(recurse=False)]
            rest(homes)
            self.homes += homes
            block.register_forward_pre_hook(lambda *_, homes=homes: self._fetch(homes))
            # also where checkpointing breaks off, having computed again what it needs
            block.register_forward_hook(lambda *_, homes=homes: rest(homes), always_call=True)

    @contextmanager
    def left_alone(self) -> Iterator[None]:
        """Within it the model can be moved; what waits stays where it is."""
        for module, key, _ in self.homes:
            module._parameters[key] = None
        try:
            yield
        finally:
            rest(self.homes)

    def _home(self, weight: Tensor) -> nn.Parameter:
        waiting = weight.detach().to("cpu")
        if self.device.type == "cuda":
            waiting = waiting.pin_memory()  # so that the host need not wait for the copy
        home = nn.Parameter(waiting, requires_grad=False)
        home.works_on = self.device  # type: ignore[attr-defined]
        return home

    def _fetch(self, homes: Sequence[Home]) -> None:
        for module, key, home in homes:
            copied = home.detach().to(self.device, non_blocking=True, copy=True)
            module._parameters[key] = nn.Parameter(copied, requires_grad=False)


def rest(homes: Sequence[Home]) -> None:
    """The modules hold what is in the computer's memory; a copy goes when nobody needs it."""
    for module, key, home in homes:
        module._parameters[key] = home
