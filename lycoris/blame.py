"""Where a step stopped being finite: it is computed once more, watched layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .network import LycorisNetwork


@dataclass(frozen=True)
class Blame:
    """The first thing that was not finite: `what` of the layer called `layer`, in a piece of the
    step; `rows` are the places within it of the pictures that show it, all where none is named."""

    what: str
    layer: str
    piece: int
    rows: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"the {self.what} of {self.layer}" if self.layer else f"the {self.what}"


def find(modules: Mapping[str, nn.Module], network: LycorisNetwork,
         latents: Callable[[int], Tensor], loss: Callable[[int], Tensor],
         pieces: Iterable[int]) -> Blame | None:
    """Go through the pieces of a step again: its latents (b, c, h, w), then every layer's output in
    the order of the forward pass, then gradients in that of the backward pass. None where all is
    finite. The gradients of the network are lost."""
    for piece in pieces:
        if rows := _rows(latents(piece)):
            return Blame("latents", "", piece, rows)
        network.zero_grad(set_to_none=True)
        watched = _Watched(modules)
        try:
            value = loss(piece)
            found = watched.forward
            if found is None and not torch.isfinite(value).item():
                found = ("loss", "", ())
            if found is None:
                value.backward()
                found = watched.first_gradient(network)
        finally:
            watched.end()
        if found is not None:
            what, layer, rows = found
            return Blame(what, layer, piece, rows)
    return None


Found = tuple[str, str, tuple[int, ...]]


@dataclass
class _Watched:
    """Hooks on every layer: the first output that is not finite, and the layers as the backward
    pass comes to them, each with the rows of its slope that are not."""

    modules: Mapping[str, nn.Module]
    forward: Found | None = None
    backward: list[tuple[nn.Module, tuple[int, ...]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.names = {module: f"{part} {name}" for part, root in self.modules.items()
                      for name, module in root.named_modules() if not any(module.children())}
        self._hooks = [module.register_forward_hook(self._look, with_kwargs=True)
                       for module in self.names]

    def _look(self, module: nn.Module, given: tuple[Any, ...], named: dict[str, Any],
              output: Any) -> None:
        if not (isinstance(output, Tensor) and output.is_floating_point()):
            return
        if self.forward is None and (rows := _rows(output)):
            came = [each for each in (*given, *named.values()) if isinstance(each, Tensor)]
            what = "input" if any(map(_rows, came)) else "output"
            self.forward = (what, self.names[module], rows)
        if output.requires_grad:
            output.register_hook(lambda slope: self.backward.append((module, _rows(slope))))

    def first_gradient(self, network: LycorisNetwork) -> Found | None:
        adapters = network.targets
        for module, rows in self.backward:
            if rows:
                return "gradient", self.names[module], rows
            if module in adapters and any(
                    p.grad is not None and _rows(p.grad) for p in adapters[module].parameters()):
                return "adapter's gradient", self.names[module], ()
        return None

    def end(self) -> None:
        for hook in self._hooks:
            hook.remove()


def _rows(tensor: Tensor) -> tuple[int, ...]:
    """The places along the first dimension where something is not finite."""
    if not tensor.is_floating_point():
        return ()
    finite = torch.isfinite(tensor.detach()).reshape(max(1, len(tensor) if tensor.ndim else 1), -1)
    return tuple(torch.nonzero(~finite.all(1)).flatten().tolist())
