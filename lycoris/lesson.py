"""What a batch teaches: noise is added, the model predicts, its error is weighed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from . import devices, distances, noises, streams, timesteps, weightings
from .families import Condition, Model
from .feed import Batch
from .network import LycorisNetwork
from .settings import Config

VALIDATION_SEED = 0  # not the run's, so that runs of any seed are measured alike


class Lesson:
    """The loss of a batch. Every draw is a function of (seed, step, place in the step)."""

    def __init__(self, run: Config, model: Model, network: LycorisNetwork, precision: str,
                 condition: Callable[[Sequence[str]], Condition]):
        """ConfigError where the model has no timestep in the range that is asked for."""
        self.run, self.model, self.network = run, model, network
        self.precision, self.condition = precision, condition
        timesteps.bounds(run.loss, model.objective.timesteps)

    def loss(self, batch: Batch) -> Tensor:
        """The mean over the batch, with its graph."""
        model, settings, seed = self.model, self.run.loss, self.run.train.seed
        objective, x0 = model.objective, batch.x0.to(model.device)
        t = torch.tensor(timesteps.draw(settings, objective.timesteps, seed, batch.step,
                                        batch.places), device=model.device)
        n, added = noises.draw(x0, settings, seed, batch.step, batch.places)
        x_t, target = objective.noised(x0, added, t), objective.target(x0, n, t)
        with self._arithmetic():
            if settings.prior_from_base and any(batch.prior):
                target = self._as_the_base(batch, x_t, t, target)
            predicted = model.predict(x_t, t, self._told(batch))
        error = self._averaged(batch, distances.between(predicted.float(), target, objective, t,
                                                        settings))
        weight = weightings.weigh(objective, t, settings)
        if weight is not None:
            error = error * weight
        counts = [weight * (settings.prior_weight if prior else 1.0)
                  for weight, prior in zip(batch.weights, batch.prior, strict=True)]
        if any(count != 1 for count in counts):
            error = error * torch.tensor(counts, device=error.device)
        return error.mean()

    @torch.no_grad()
    def validation(self, batch: Batch, at: Sequence[int]) -> Tensor:
        """The squared error of each picture at each of these timesteps, (len(at), b), on the CPU.

        White noise, fixed by (member, timestep); no dropout and no weighting: comparable over the
        steps of a run and between runs, whatever they are trained with.
        """
        objective, x0 = self.model.objective, batch.x0.to(self.model.device)
        found = []
        with self._as_used(), self._arithmetic():
            told = self._told(batch)
            for timestep in at:
                t = torch.full((len(x0),), timestep, device=x0.device)
                n = noises.noise_like(x0, [
                    streams.generator(VALIDATION_SEED, "validation", member, timestep)
                    for member in batch.members])
                predicted = self.model.predict(objective.noised(x0, n, t), t, told)
                error = (predicted.float() - objective.target(x0, n, t)).square()
                found.append(self._averaged(batch, error))
        return torch.stack(found).cpu()

    def _told(self, batch: Batch) -> Condition:
        return self.model.with_sizes(self.condition(batch.texts), batch.sizes)

    @torch.no_grad()
    def _as_the_base(self, batch: Batch, x_t: Tensor, t: Tensor, target: Tensor) -> Tensor:
        """The target, where a regularisation picture's is what the base predicts by itself (prior
        preservation without pictures of a class; cf. Ruiz et al. 2023, arXiv 2208.12242)."""
        chosen = [i for i, prior in enumerate(batch.prior) if prior]
        self.network.set_multiplier(0.0)
        try:
            told = {name: tensor[chosen] for name, tensor in self._told(batch).items()}
            predicted = self.model.predict(x_t[chosen], t[chosen], told)
        finally:
            self.network.set_multiplier(1.0)
        target = target.clone()
        target[chosen] = predicted.to(target.dtype)
        return target

    def _averaged(self, batch: Batch, error: Tensor) -> Tensor:
        """Each picture's mean over what its mask lets count, (b,): a small subject counts as much
        as a large one."""
        if batch.masks is None:
            return error.flatten(1).mean(1)
        outside = self.run.loss.unmasked_weight
        share = outside + (1 - outside) * batch.masks.to(error.device, error.dtype)
        share = share.expand_as(error).flatten(1)
        tiny = torch.finfo(share.dtype).tiny  # a mask of nothing: a loss of nothing
        return (error.flatten(1) * share).sum(1) / share.sum(1).clamp_min(tiny)

    @contextmanager
    def _as_used(self) -> Iterator[None]:
        """The network as it samples, without dropout."""
        training = self.network.training
        self.network.eval()
        try:
            yield
        finally:
            self.network.train(training)

    def _arithmetic(self) -> AbstractContextManager:
        """Of the training step alone: under it the autoencoder would not stay in fp32."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.model.device.type, devices.DTYPES[self.precision])
