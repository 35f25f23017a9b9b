"""The layers that adapters are put on, made alike by the tests and by the peers' own process.

Only torch is imported here: the peers' process must not see this project's packages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

# {name: (how it is made, shape of its input)}; widths that every algorithm can split.
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(48, 80), (3, 5, 48)),
    "body.plain": (lambda: nn.Linear(48, 80, bias=False), (7, 48)),
    "body.point": (lambda: nn.Conv2d(24, 40, 1), (2, 24, 5, 5)),
    "body.conv_1": (lambda: nn.Conv2d(24, 40, 3, padding=1), (2, 24, 7, 7)),
    "body.strided": (lambda: nn.Conv2d(24, 40, 3, stride=2, padding=1), (2, 24, 8, 8)),
    "body.dilated": (lambda: nn.Conv2d(24, 40, 3, padding=2, dilation=2), (2, 24, 7, 7)),
    "body.grouped": (lambda: nn.Conv2d(24, 40, 3, padding=1, groups=2), (2, 24, 7, 7)),
    "body.row": (lambda: nn.Conv1d(24, 40, 3, padding=1), (2, 24, 9)),
    "body.volume": (lambda: nn.Conv3d(16, 24, 3, padding=1), (1, 16, 4, 4, 4)),
    "group_norm": (lambda: nn.GroupNorm(2, 24), (2, 24, 5)),
    "layer_norm": (lambda: nn.LayerNorm(48), (3, 48)),
}
LINEAR = ("linear", "body.plain")
POINT = (*LINEAR, "body.point")
CONV = ("body.conv_1", "body.strided", "body.dilated", "body.row", "body.volume")
UNGROUPED = (*POINT, *CONV)
ALL = (*UNGROUPED, "body.grouped")
NORMS = ("group_norm", "layer_norm")


def model(names: Iterable[str]) -> nn.Module:
    """The named layers with the same weights wherever and for whichever others it is called."""
    root, body = nn.Module(), nn.Module()
    for name in names:
        torch.manual_seed(list(LAYERS).index(name))
        layer = LAYERS[name][0]()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        parent, _, own = name.rpartition(".")
        setattr(body if parent else root, own, layer)
    if any(True for _ in body.children()):
        root.body = body
    return root


@torch.no_grad()
def outputs(root: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """{layer: its output} for the input that belongs to it."""
    found = {}
    for name in names:
        stream = torch.Generator().manual_seed(100 + list(LAYERS).index(name))
        x = torch.randn(LAYERS[name][1], generator=stream)
        found[name] = root.get_submodule(name)(x)
    return found


@torch.no_grad()
def stir(parameters: Iterable[Tensor], seed: int, by: float = 0.1) -> None:
    """Move every tensor away from its start, as training does, and a scalar far enough to tell."""
    stream = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        move = by * torch.randn(parameter.shape, generator=stream)
        parameter.add_(move if parameter.ndim else 0.7 + move)


@torch.no_grad()
def painted(unet: nn.Module, text_encoder: nn.Module) -> dict[str, Tensor]:
    """What a text encoder makes of some tokens, and a UNet of some noise under that text."""
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    text = text_encoder(torch.arange(20)[None]).last_hidden_state
    return {"text_encoder": text, "unet": unet(noise, torch.tensor([500]), text).sample}
