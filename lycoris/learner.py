"""Who takes the steps: the network's parameters in groups, their optimiser, rates and mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from . import optimizers, schedules
from .errors import ConfigError, RunError
from .network import LycorisNetwork
from .settings import Config, OptimizerConfig


class Average:
    """A moving average of the parameters that learn, in fp32."""

    def __init__(self, named: Mapping[str, Tensor], decay: float):
        self.named, self.decay = named, decay
        self.tensors = {name: p.detach().clone() for name, p in named.items()}

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """After `step` steps: a <- d a + (1 - d) p with d = min(decay, (1 + step) / (10 + step)),
        so that the first ones do not keep the start for long."""
        keep = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.tensors.values()),
                             [p.detach() for p in self.named.values()], 1.0 - keep)


class Learner:
    """`optimizer` over the parameters of the network that learn."""

    def __init__(self, run: Config, network: LycorisNetwork):
        self.run = run
        self.row = optimizers.ROWS[run.optimizer.name]
        self.optimizer = _optimizer(run, network)
        self.named = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.average = Average(self.named, run.train.ema) if run.train.ema else None

    def set_rates(self, step: int) -> float:
        """The rates of the step (counted from 0) to every group; by what they are multiplied."""
        rate = schedules.multiplier(self.run.optimizer, step, self.run.train.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * rate
        return rate

    def rate(self, multiplier: float) -> float:
        """The learning rate that a step was taken with, as far as the optimiser tells."""
        return self.run.optimizer.lr * multiplier * optimizers.distance(self.optimizer)

    def learned(self, step: int) -> None:
        """After the optimiser's `step`-th step."""
        if self.average is not None:
            self.average.follow(step)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Within it the parameters are those to save and to paint: the mean, where one is kept.
        After it they are to the bit what they were."""
        if self.average is None and not self.row.averages:
            yield
            return
        kept = {name: p.detach().clone() for name, p in self.named.items()}
        try:
            if self.average is None:
                self.optimizer.eval()
            else:
                self._put(self.average.tensors)
            yield
        finally:
            if self.average is None:
                self.optimizer.train()
            self._put(kept)

    def tensors(self) -> dict[str, Tensor]:
        """What a state holds besides the network's and the optimiser's."""
        if self.average is None:
            return {}
        return {f"average/{name}": tensor for name, tensor in self.average.tensors.items()}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Take back `tensors`; RunError where they are not there."""
        for name, tensor in self.tensors().items():
            if name not in saved:
                raise RunError("The saved state has no moving average.",
                               "Resume with the run's own config.toml, or start a new run.")
            tensor.copy_(saved[name])

    @torch.no_grad()
    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self.named.items():
            parameter.copy_(tensors[name])


def _plus(settings: OptimizerConfig, part: str) -> float:
    """LoRA+'s ratio in one part of the model."""
    own = settings.text_encoder_plus_ratio
    return settings.plus_ratio if own is None or not part.startswith("text_encoder") else own


def _optimizer(run: Config, network: LycorisNetwork) -> torch.optim.Optimizer:
    """The network's groups at their rates: the layers' own, the part's, or that of all, and LoRA+'s
    multiple of it; what has the rate 0 is left as it is."""
    settings = run.optimizer
    first, second = settings.text_encoder_lr, settings.text_encoder_2_lr
    rates: Mapping[str, float | None] = {
        "text_encoder": first, "text_encoder_2": first if second is None else second}
    groups = []
    for group in network.groups():
        own = (group.rate, rates.get(group.part), settings.lr)
        rate = next(each for each in own if each is not None)
        if rate == 0:
            for parameter in group.parameters:
                parameter.requires_grad_(False)
            continue
        rate *= _plus(settings, group.part) if group.plus else 1.0
        if optimizers.ROWS[settings.name].one_rate:
            rate = settings.lr
        groups.append({"params": group.parameters, "lr": rate, "base_lr": rate})
    if not groups:
        raise ConfigError({"optimizer.lr": "every learning rate is 0, so nothing would learn"})
    return optimizers.make(settings.name, groups, settings.weight_decay, settings.args)
