"""Training. `run` is an ordinary function: `emit` and `asked` are its whole outside world."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import (
    adapterfile,
    checkpoint,
    config,
    devices,
    disk,
    durable,
    events,
    machine,
    metadata,
    objectives,
    optimizers,
    relief,
    sampling,
    schedules,
    streams,
    tensorfile,
    thumbnail,
)
from .checkpoint import Progress
from .data import cache, captions
from .data.loader import Batches
from .errors import ConfigError, DiskError, Diverged, OutOfMemory
from .families import Model
from .memory import ENCODING, LOADING, PAINTING
from .network import LycorisNetwork, Norms
from .plan import Plan, facts_of, shows_thumbnail
from .registry import pick

Emit = Callable[[events.Event], None]
Asked = Callable[[], set[str]]
AVERAGE = 0.9  # decay of the loss's moving average
BUILDING = "building the adapter"


def run(plan: Plan, where: Path, emit: Emit, asked: Asked) -> events.Finished:
    """Train the plan in the run folder `where`, from its newest state if it has one.

    `asked()` returns the requests since the last call: "stop", "save", "sample". The final adapter
    is `where`/<name>.safetensors, also after a stop. Raises typed errors; whatever was saved before
    stays.
    """
    session = Session(plan, where, emit)
    try:
        session.prepare(asked)
        return session.train(asked)
    except Halted:
        ended = events.Finished("stopped", 0, "")
        emit(ended)
        return ended
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(session.doing, relief.after_failure(plan, session.doing)) from error


class Halted(Exception):
    """Asked to stop before the first step: there is nothing to save."""


@dataclass
class Session:
    """Everything a run holds while it lasts."""

    plan: Plan
    where: Path
    emit: Emit
    doing: str = LOADING
    progress: Progress = field(default_factory=Progress)

    def prepare(self, asked: Asked) -> None:
        """Load, encode, build, and go back to the newest state."""
        run, emit = self.plan.config, self.emit
        self.device = devices.choose(run.train.device)
        self.precision = devices.precision(run.train.precision, self.device)
        durable.sweep(self.where)
        disk.require(self.plan, self.where)
        emit(events.Stage(LOADING, 0, 0))
        self.model: Model = self.plan.family.load(
            self.device, devices.base_dtype(run.model.dtype, self.precision))
        self.watch = machine.Watch(self.plan, self.device)
        self.doing = ENCODING
        pictures = self.plan.dataset.readable if self.plan.dataset else ()
        self.latents = cache.encode(
            self.model, [p.path for p in pictures], self.plan.buckets,
            lambda done, total: self._report(done, total, asked))
        self.captions = [captions.as_prompt(p.caption or "") for p in pictures]
        self.names = [p.name for p in pictures]
        self.batches = Batches(self.plan.buckets, run.train.batch_size, run.train.seed)
        self.model.train_mode(checkpointing=run.train.gradient_checkpointing)
        self.doing = BUILDING
        self.network = LycorisNetwork(
            self.plan.assignments, self.model.modules, run.train.seed,
            self._now_and_then(asked)).apply_to()
        self.optimizer = _optimizer(self.plan, self.network)
        self.schedule = pick(schedules.SCHEDULES, run.optimizer.schedule, "optimizer.schedule")
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.condition = self._condition()
        self._resume()

    def _report(self, done: int, total: int, asked: Asked) -> None:
        self.emit(events.Stage(self.doing, done, total))
        if "stop" in asked():
            raise Halted

    def _now_and_then(self, asked: Asked) -> Callable[[int, int], None]:
        """`_report` for what is done in a moment on most machines: silent for half a second."""
        last = time.monotonic()

        def report(done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last > 0.5:
                last = time.monotonic()
                self._report(done, total, asked)

        return report

    def train(self, asked: Asked) -> events.Finished:
        """The loop. Requests, samples and checkpoints are seen to between steps."""
        run = self.plan.config
        wanted: set[str] = set()
        if run.sample.every and self.progress.step % run.sample.every == 0 and not self._sampled():
            wanted = self.sample(asked)  # before the first step, or where a stop came between
        while self.progress.step < run.train.steps:
            wanted |= asked()
            if "sample" in wanted:
                wanted |= self.sample(asked)
            if "save" in wanted:
                self.save()
            if "stop" in wanted:
                return self.finish("stopped")
            self.advance()
            wanted = set()
            step, last = self.progress.step, self.progress.step == run.train.steps
            if run.sample.every and (step % run.sample.every == 0 or last):
                wanted = self.sample(asked)
            if run.train.checkpoint_every and step % run.train.checkpoint_every == 0 and not last:
                self.save()
        return self.finish("done")

    def advance(self) -> None:
        """One optimiser step: `accumulate` batches forward and backward, then the update."""
        run, step, began = self.plan.config, self.progress.step, time.perf_counter()
        self.doing = "training"
        self.network.train()
        torch.manual_seed(streams.number(run.train.seed, "dropout", step))
        rate = schedules.multiplier(self.schedule, step, run.train.steps, run.optimizer.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * rate
        loss = 0.0
        for micro in range(run.train.accumulate):
            part = self._loss(step, micro) / run.train.accumulate
            self.scaler.scale(part).backward()
            loss += part.item()
        if not math.isfinite(loss):
            raise self._diverged("loss", loss, step)
        norm = self._clip()
        # A scaler leaves out a step that overflows and halves its scale; at 1 it is not its doing.
        if not math.isfinite(norm) and self.scaler.get_scale() <= 1:
            raise self._diverged("gradient", norm, step)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        norms = (self.network.apply_max_norm_regularization(run.train.max_norm)
                 if run.train.max_norm else Norms())
        average = loss if step == 0 else AVERAGE * self.progress.loss_avg + (1 - AVERAGE) * loss
        self.progress = replace(self.progress, step=step + 1, loss_avg=average)
        self.watch.seconds.append(time.perf_counter() - began)
        self.emit(events.Step(
            step=step + 1,
            epoch=round((step + 1) * run.train.accumulate / self.batches.per_epoch, 4),
            loss=loss, loss_avg=average, lr=run.optimizer.lr * rate, grad_norm=norm,
            capped=norms.capped, norm_mean=norms.mean, norm_max=norms.most,
            sec=round(self.watch.seconds[-1], 5),
            memory=devices.peak_memory(self.device)))

    def _loss(self, step: int, micro: int) -> Tensor:
        """The mean loss of one batch; every draw is a function of (seed, step, place in it)."""
        run, model = self.plan.config, self.model
        members = self.batches.at(step * run.train.accumulate + micro)
        first = micro * run.train.batch_size
        places = [first + i for i in range(len(members))]
        seed = run.train.seed
        x0 = torch.stack([self.latents[i] for i in members]).to(self.device)
        texts = [self._caption(i, step, place) for i, place in zip(members, places, strict=True)]
        t = torch.tensor([streams.number(seed, "timestep", step, place) % model.objective.timesteps
                          for place in places], device=self.device)
        n = objectives.noise_like(
            x0, [streams.generator(seed, "noise", step, place) for place in places],
            run.train.noise_offset)
        with self._arithmetic():
            predicted = model.predict(model.objective.noised(x0, n, t), t, self.condition(texts))
        error = (predicted.float() - model.objective.target(x0, n, t)).square().flatten(1).mean(1)
        if run.train.min_snr_gamma:
            error = error * model.objective.min_snr(t, run.train.min_snr_gamma)
        return error.mean()

    def _caption(self, index: int, step: int, place: int) -> str:
        run = self.plan.config
        dropped = (streams.uniform(run.train.seed, "caption", step, place)
                   < run.dataset.caption_dropout)
        return "" if dropped else self.captions[index]

    def _condition(self) -> Callable[[Sequence[str]], Tensor]:
        """Captions to what the denoiser attends to: live where the text encoder learns, else made
        once for every caption."""
        if any(adapter.layer.part == "text_encoder" for adapter in self.network):
            return self.model.encode_text
        self.doing = "encoding the captions"
        known: dict[str, Tensor] = {}
        with torch.no_grad():
            for text in dict.fromkeys(["", *self.captions]):
                known[text] = self.model.encode_text([text])[0].cpu()
        return lambda texts: torch.stack([known[text] for text in texts]).to(self.device)

    def _arithmetic(self) -> AbstractContextManager:
        """Of the training step alone: under it the autoencoder would not stay in fp32."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, devices.DTYPES[self.precision])

    def _clip(self) -> float:
        """The gradient's norm over the whole adapter, cut to clip_norm where that is set."""
        self.scaler.unscale_(self.optimizer)
        limit = self.plan.config.train.clip_norm or math.inf
        return torch.nn.utils.clip_grad_norm_(self.network.parameters(), limit).item()

    def _diverged(self, what: str, value: float, step: int) -> Diverged:
        """To be raised before the optimiser spreads it."""
        members = [i for micro in range(self.plan.config.train.accumulate)
                   for i in self.batches.at(step * self.plan.config.train.accumulate + micro)]
        return Diverged(step + 1, value, [self.names[i] for i in members], what)

    def _sampled(self) -> bool:
        """Are all samples of this step there?"""
        return all((self.where / _sample_name(self.progress.step, index)).is_file()
                   for index in range(len(self.plan.config.sample.prompts)))

    def sample(self, asked: Asked) -> set[str]:
        """Paint the sample prompts as the adapter stands, as compare would; one seed each.

        Returns what was asked meanwhile; a stop ends the painting.
        """
        run, step, began = self.plan.config, self.progress.step, time.perf_counter()
        heard: set[str] = set()

        def stopped() -> bool:
            heard.update(asked())
            return "stop" in heard

        self.doing = PAINTING
        jobs = [sampling.Job(prompt, run.sample.seeds[0] if run.sample.seeds else 1)
                for prompt in run.sample.prompts]
        how = sampling.settings_of(run.sample, run.dataset.resolution,
                                   self.plan.family.side_multiple)
        self.emit(events.Stage(self.doing, 0, len(jobs)))
        self.network.eval()
        for index, image in enumerate(sampling.paint(self.model, jobs, how, stopped)):
            name = _sample_name(step, index)
            texts = sampling.recipe(jobs[index], how, self.plan.family.base.name,
                                    {"run": config.run_name(run), "step": step})
            sampling.write_png(self.where / name, image, texts)
            self.emit(events.Sampled(step, index, name, jobs[index].prompt, jobs[index].seed))
            self.emit(events.Stage(self.doing, index + 1, len(jobs)))
        if "stop" not in heard:
            self.watch.took("sample", began, len(jobs))
        self.model.train_mode(checkpointing=run.train.gradient_checkpointing)
        return heard

    def save(self) -> None:
        """A checkpoint: the state to resume from, then the adapter file, then the old ones go."""
        self.doing, began = "saving", time.perf_counter()
        self._save_state()
        name = config.run_name(self.plan.config)
        folder = durable.make_folder(self.where / "checkpoints")
        path = folder / f"{name}-{self.progress.step:06d}.safetensors"
        self._save_adapter(path)
        keep = self.plan.config.train.keep_checkpoints
        if keep:
            self._unless_held(checkpoint.prune, folder, name, self.progress.step, keep)
        self.watch.took("checkpoint", began, 1)

    def finish(self, reason: str) -> events.Finished:
        self.doing = "saving"
        if not self.progress.step:
            raise Halted
        self._save_state()
        path = self._save_adapter(self.where / f"{config.run_name(self.plan.config)}.safetensors")
        self._unless_held(self.watch.learn, "run")
        self.emit(self.watch.event())
        ended = events.Finished(reason, self.progress.step, path.name)
        self.emit(ended)
        return ended

    def _save_state(self) -> None:
        folder = durable.make_folder(self.where / "state")
        checkpoint.save(folder, self.network, self.optimizer, self.progress,
                        self.scaler.state_dict())
        self._unless_held(checkpoint.tidy, folder, self.progress.step)

    def _unless_held(self, remove: Callable[..., None], *what: Any) -> None:
        """Superfluous files go; one that another program holds open (Windows) ends no run."""
        try:
            remove(*what)
        except DiskError as error:
            self.emit(events.Warned(error.message, error.fix))

    def _save_adapter(self, path: Path) -> Path:
        run, plan = self.plan.config, self.plan
        dtype = tensorfile.DTYPES[run.output.dtype]
        facts = replace(facts_of(run, plan.buckets), step=self.progress.step,
                        loss=self.progress.loss_avg, started=self.progress.started,
                        finished=time.time(), session=self.progress.session,
                        thumbnail=self._thumbnail())
        tensors = {key: t.to(dtype) for key, t in self.network.file_tensors().items()}
        described = metadata.describe(run, plan.family, plan.dataset, facts)
        adapterfile.write(path, tensors, None, metadata.with_hashes(described, tensors))
        self.emit(events.Saved(self.progress.step, str(path.relative_to(self.where)),
                               path.stat().st_size))
        return path

    def _thumbnail(self) -> str:
        """The newest sample of the first prompt; empty where none is wanted or there."""
        painted = sorted((self.where / "samples").glob("step-*-00.png"))
        return thumbnail.of(painted[-1]) if painted and shows_thumbnail(self.plan.config) else ""

    def _resume(self) -> None:
        """From the newest whole state; a fresh run gets its times and its id here."""
        state, problems = checkpoint.load(self.where / "state")
        before = ("The checkpoint before it is used." if state else
                  "No checkpoint is whole, so the run starts from the beginning.")
        for text in problems:
            self.emit(events.Warned(text, before))
        if state is None:
            now = time.time()
            self.progress = Progress(started=now, session=int(now * 1000) % 10**10)
        else:
            state.restore(self.network, self.optimizer)
            if state.scaler:
                self.scaler.load_state_dict(dict(state.scaler))
            self.progress = state.progress
        self.emit(events.Resumed(self.progress.step))


def _sample_name(step: int, index: int) -> str:
    return f"samples/step-{step:06d}-{index:02d}.png"


def _optimizer(plan: Plan, network: LycorisNetwork) -> torch.optim.Optimizer:
    """The network's groups at their rates: the layers' own, the part's, or that of all, and LoRA+'s
    multiple of it; what has the rate 0 is left as it is."""
    settings = plan.config.optimizer
    rates: Mapping[str, float | None] = {"text_encoder": settings.text_encoder_lr}
    groups = []
    for group in network.groups():
        own = (group.rate, rates.get(group.part), settings.lr)
        rate = next(each for each in own if each is not None)
        if rate == 0:
            for parameter in group.parameters:
                parameter.requires_grad_(False)
            continue
        rate *= settings.plus_ratio if group.plus else 1.0
        groups.append({"params": group.parameters, "lr": rate, "base_lr": rate})
    if not groups:
        raise ConfigError({"optimizer.lr": "every learning rate is 0, so nothing would learn"})
    return optimizers.make(settings.name, groups, settings.weight_decay, settings.args)
