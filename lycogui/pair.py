"""A and B: two networks for the same pictures, captions and noise, kept beside the settings.

Until one is put there, A is LoRA and B a LoHa of the same size as what is on screen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from lycogui.workspace import Workspace
from lycoris import choose, config
from lycoris.config import LEAVES
from lycoris.errors import LycorisError
from lycoris.settings import Config, NetworkConfig

KEPT = "pair"
NAMES = ("a", "b")
UNSET = ("lora", "loha")


@dataclass(frozen=True)
class Side:
    """`own`: somebody put it there."""

    network: NetworkConfig
    own: bool


@dataclass(frozen=True)
class Pair:
    sides: tuple[Side, Side]

    @classmethod
    def of(cls, workspace: Workspace, run: Config) -> Pair:
        """The two, where none was put there of the size of what is on screen."""
        kept = workspace.kept(KEPT)
        a, b = (_side(workspace, run, kept.get(name), algo)
                for name, algo in zip(NAMES, UNSET, strict=True))
        return cls((a, b))

    def runs(self, run: Config) -> tuple[Config, Config]:
        """The run on screen with each of the networks."""
        a, b = (replace(run, network=side.network) for side in self.sides)
        return a, b


def put(workspace: Workspace, side: str, network: NetworkConfig | None) -> None:
    """Keep a network as A or B; None takes it away."""
    kept = workspace.kept(KEPT)
    if network is None:
        kept.pop(side, None)
    else:
        kept[side] = {path: value for path, value in config.to_dict(
            Config(network=network)).items() if path.startswith("network.")}
    workspace.keep(KEPT, kept)


def _side(workspace: Workspace, run: Config, kept: dict[str, Any] | None, algo: str) -> Side:
    if kept is not None:
        try:
            known = {path: value for path, value in kept.items() if path in LEAVES}
            return Side(config.build(known).network, True)
        except LycorisError:
            pass  # of another version, with settings that are none here: as if it were not there
    if run.network.algo == algo:
        return Side(run.network, False)
    return Side(choose.match(run, algo, workspace.family(run)).run.network, False)
