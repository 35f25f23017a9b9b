"""What a batch teaches: noise is added, the model predicts, its error is weighed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from . import devices, objectives, streams
from .families import Condition, Model
from .feed import Batch
from .settings import Config


class Lesson:
    """The loss of a batch. Every draw is a function of (seed, step, place in the step)."""

    def __init__(self, run: Config, model: Model, precision: str,
                 condition: Callable[[Sequence[str]], Condition]):
        self.run, self.model, self.precision, self.condition = run, model, precision, condition

    def loss(self, batch: Batch) -> Tensor:
        """The mean over the batch, with its graph."""
        model, seed = self.model, self.run.train.seed
        x0 = batch.x0.to(model.device)
        t = torch.tensor([streams.number(seed, "timestep", batch.step, place)
                          % model.objective.timesteps for place in batch.places],
                         device=model.device)
        n = objectives.noise_like(
            x0, [streams.generator(seed, "noise", batch.step, place) for place in batch.places],
            self.run.loss.noise_offset)
        with self._arithmetic():
            predicted = model.predict(model.objective.noised(x0, n, t), t,
                                      self.condition(batch.texts))
        error = (predicted.float() - model.objective.target(x0, n, t)).square().flatten(1).mean(1)
        if self.run.loss.min_snr_gamma:
            error = error * model.objective.min_snr(t, self.run.loss.min_snr_gamma)
        return error.mean()

    def _arithmetic(self) -> AbstractContextManager:
        """Of the training step alone: under it the autoencoder would not stay in fp32."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.model.device.type, devices.DTYPES[self.precision])
