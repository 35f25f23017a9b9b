"""When the optimiser's step is taken: once all gradients are there, or, with train.fused_backward,
each parameter's as soon as the backward pass has its gradient, which is let go at once."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .crew import Crew
from .errors import ConfigError
from .learner import Learner
from .network import LycorisNetwork
from .optimizers import FUSED
from .settings import Config


class AtOnce:
    """A step over all parameters after the backward pass."""

    def __init__(self, run: Config, network: LycorisNetwork, learner: Learner,
                 scaler: torch.amp.GradScaler):
        self.limit = run.train.clip_norm or math.inf
        self.network, self.optimizer, self.scaler = network, learner.optimizer, scaler

    def begin(self) -> None:
        """Before the first backward pass of a step."""

    def norm(self) -> Tensor:
        """The gradient's norm over the whole adapter, before it is cut to clip_norm."""
        self.scaler.unscale_(self.optimizer)
        return torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.limit)

    def take(self) -> None:
        """The step, now that its numbers are known to be finite."""
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)


class InBackward:
    """Steps of single parameters within the backward pass (cf. LOMO, arXiv 2306.09782).

    The optimiser is shown one parameter at a time. What its groups count (steps, means of rates)
    goes on once a step, as if it had seen all of them. From the first gradient on that is not
    finite parameters see zeros in its place, so that what began it can still be found.
    """

    def __init__(self, run: Config, network: LycorisNetwork, learner: Learner,
                 scaler: torch.amp.GradScaler):
        """ConfigError for fp16, which train.precision = auto may have come to."""
        if scaler.is_enabled():
            raise ConfigError({"train.precision": "this device computes in fp16, which needs the "
                               f"whole gradient, and with {FUSED} there is none. Turn the fused "
                               "backward pass off, or choose fp32."})
        self.optimizer = learner.optimizer
        self.norms: list[Tensor] = []
        self.sound: Tensor | None = None
        self.counted: dict[int, dict[str, Any]] = {}  # {place of a group: what it says after}
        self.stepping = False
        for place, group in enumerate(self.optimizer.param_groups):
            for parameter in group["params"]:
                parameter.register_post_accumulate_grad_hook(
                    lambda p, place=place: self._step(p, place))

    def begin(self) -> None:
        self.norms, self.sound, self.stepping = [], None, True

    def norm(self) -> Tensor:
        """The norm of all gradients there were."""
        self.stepping = False
        return torch.linalg.vector_norm(torch.stack(self.norms))

    def take(self) -> None:
        """All is done but what the groups count."""
        for place, said in self.counted.items():
            self.optimizer.param_groups[place].update(said)
        self.counted = {}

    @torch.no_grad()
    def _step(self, parameter: nn.Parameter, place: int) -> None:
        if not self.stepping:
            return
        gradient = parameter.grad
        assert gradient is not None
        norm = torch.linalg.vector_norm(gradient)
        self.norms.append(norm)
        finite = torch.isfinite(norm)
        self.sound = finite if self.sound is None else self.sound & finite
        parameter.grad = torch.where(self.sound, gradient, 0)
        groups = self.optimizer.param_groups
        own = {**groups[place], "params": [parameter]}
        self.optimizer.param_groups = [own]
        try:
            self.optimizer.step()
        finally:
            self.optimizer.param_groups = groups
        parameter.grad = None
        self.counted[place] = {name: value for name, value in own.items() if name != "params"}


def of(run: Config, network: LycorisNetwork, learner: Learner, scaler: torch.amp.GradScaler,
       crew: Crew) -> AtOnce | InBackward:
    """Who takes a run's steps; ConfigError where several processes would have to share gradients
    that are gone."""
    if not run.train.fused_backward:
        return AtOnce(run, network, learner, scaler)
    if crew.size > 1:
        raise ConfigError({FUSED: f"{FUSED} lets gradients go before {crew.size} processes could "
                                  "add theirs up. Turn it off, or train with one process."})
    return InBackward(run, network, learner, scaler)
