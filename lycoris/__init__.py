"""The engine of lycogui: LyCORIS adapters on Stable Diffusion models. No UI, no prints, no globals.

    import lycoris
    network = lycoris.create_lycoris(unet, 1.0, linear_dim=16, linear_alpha=8, algo="loha")
    network.apply_to()

Names are imported when first used, so that `import lycoris` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "create_lycoris": "wrapper",
    "create_lycoris_from_weights": "wrapper",
    "LycorisNetwork": "network",
    "Config": "config",
    "LycorisError": "errors",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
