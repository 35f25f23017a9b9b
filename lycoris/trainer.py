"""Training. `run` is an ordinary function: `emit` and `asked` are its whole outside world."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from . import (
    blame,
    compiling,
    conditions,
    devices,
    disk,
    durable,
    events,
    loading,
    machine,
    relief,
    sparing,
    starting,
    stepping,
    streams,
)
from .checkpoint import Progress
from .crew import ALONE, Crew, Halted
from .data import store
from .errors import Diverged, OutOfMemory
from .families import Condition, Model
from .feed import Batch, Feed
from .keeping import Keeper
from .learner import Learner
from .lesson import Lesson
from .memory import ENCODING, LOADING, PAINTING, resting
from .network import LycorisNetwork, Norms
from .plan import Plan
from .showing import Painter
from .sparing import Asked, Emit
from .validating import Validator
from .writing import Writing

Found = TypeVar("Found")
AVERAGE = 0.9  # decay of the loss's moving average
BUILDING = "building the adapter"


@devices.released
def run(plan: Plan, where: Path, emit: Emit, asked: Asked, crew: Crew = ALONE) -> events.Finished:
    """Train the plan in the run folder `where`, from its newest state if it has one; with a crew,
    this process's share of it.

    `asked()` returns the requests since the last call: "stop", "save", "sample", "pause", "resume".
    The final adapter is `where`/<name>.safetensors, also after a stop. Raises typed errors;
    whatever was saved before stays.
    """
    session = Session(plan, where, emit, crew)
    try:
        with crew:
            return session.run(asked)
    except Halted:
        ended = events.Finished("stopped", 0, "")
        emit(ended)
        return ended


@dataclass
class Session:
    """Everything a run holds while it lasts."""

    plan: Plan
    where: Path
    emit: Emit
    crew: Crew = ALONE
    doing: str = LOADING
    progress: Progress = field(default_factory=Progress)
    ahead: dict[tuple[int, int], tuple[Batch, float]] = field(default_factory=dict)
    heard: set[str] = field(default_factory=set)  # asked for while the loop could not see to it

    def run(self, asked: Asked) -> events.Finished:
        try:
            self.prepare(asked)
            with compiling.telling(self.plan.config.train.compile):
                return self.train(asked)
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(self.doing, relief.after_failure(
                self.plan, self.doing, self.device.type)) from error

    def prepare(self, asked: Asked) -> None:
        """Load, encode, build, and go back to the newest state."""
        run, emit = self.plan.config, self.emit
        train = run.train
        self.parts, self.pieces = self.crew.pieces(train.batch_size, train.accumulate, train.split)
        self.crew.alike("the pictures", [
            self.plan.buckets,
            [p.name for p in self.plan.dataset.readable] if self.plan.dataset else []])
        self.device = self.crew.device(devices.choose(train.device), train.device)
        self.precision = devices.precision(run.train.precision, self.device)
        if self.crew.first:
            durable.sweep(self.where)
            disk.require(self.plan, self.where)
        emit(events.Stage(LOADING, 0, 0))
        report = functools.partial(self._report, asked)
        self.model: Model = loading.load(run, self.plan.family, self.device, self.precision, report)
        self.watch = machine.Watch(self.plan, self.device, self.parts)
        self.doing = ENCODING
        self.kept = store.of(run)
        self.feed = Feed(self.plan, self.model, report, self.kept)
        self.model.train_mode(checkpointing=run.train.gradient_checkpointing)
        self.doing = BUILDING
        self.network = LycorisNetwork(
            self.plan.assignments, self.model.modules, run.train.seed,
            self._now_and_then(asked), starting.file_of(run)).apply_to()
        if run.train.compile:
            compiling.compile_blocks(next(iter(self.model.modules.values())), self.device)
        self.crew.same([*self.network.parameters(), *self.network.buffers()])
        self.learner = Learner(run, self.network)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.stepper = stepping.of(run, self.network, self.learner, self.scaler, self.crew)
        self.keeper = Keeper(self.plan, self.where, emit, self.network, self.learner,
                             self.scaler, self.crew)
        self.painter = Painter(self.plan, self.where, emit, self.model, self.network)
        self.lesson = Lesson(run, self.model, self.network, self.precision, self._condition(asked))
        self._tidy()
        self._rest()
        self.validator = Validator(self.plan, emit, self.feed, self.lesson)
        self.progress = self._same_pictures(self.keeper.resume())
        emit(events.Resumed(self.progress.step))

    def _same_pictures(self, progress: Progress) -> Progress:
        """Where the run stands; told where what it learns from has changed since it was saved."""
        if progress.pictures not in ("", self.feed.mark):
            self.emit(events.Warned(
                "The pictures or their captions are not those this run began with: from here on it "
                "is another run.", "Put them back as they were, or start a new run."))
        return replace(progress, pictures=self.feed.mark)

    def _report(self, asked: Asked, done: int, total: int, taken: int = 0) -> None:
        self.emit(events.Stage(self.doing, done, total, taken))
        self.heard |= asked()
        if "stop" in self.heard:
            raise Halted

    def _tidy(self) -> None:
        """Keep the store within its limit, and say how large it is."""
        if self.kept.limit and self.crew.first:
            size = self.kept.tidy()
            self.emit(events.Cached(str(self.kept.folder), size.files, size.bytes))
            if self.kept.problem is not None:
                self.emit(events.Warned("Nothing more is cached. " + self.kept.problem.message,
                                        self.kept.problem.fix))

    def _now_and_then(self, asked: Asked) -> Callable[..., None]:
        """`_report` for what is done in a moment on most machines: silent for half a second, and
        until the end told twice a second."""
        began = last = time.monotonic()

        def report(done: int, total: int, taken: int = 0) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last > 0.5 or (done == total and last > began):
                last = now
                self._report(asked, done, total, taken)

        return report

    def train(self, asked: Asked) -> events.Finished:
        """The loop. Requests, samples and checkpoints are seen to between steps."""
        run = self.plan.config
        wanted = self._wanted(set)
        due = (run.sample.every and self.progress.step % run.sample.every == 0
               and not self.painter.done(self.progress.step))
        if self.crew.meet(due)[0]:
            # before the first step, or where a stop came between
            wanted = (wanted - {"sample"}) | self.sample(asked)
        if self.validator.due(self.progress.step):
            self.validate(asked)
        while self.progress.step < run.train.steps:
            wanted |= self._wanted(asked)
            if "pause" in wanted:
                wanted = self.hold(wanted, asked)
            if "sample" in wanted:
                wanted |= self.sample(asked)
            if "save" in wanted:
                self.save(asked)
            if "stop" in wanted:
                return self.finish("stopped", asked)
            self.advance()
            wanted &= {"pause"}  # heard while it painted
            step, last = self.progress.step, self.progress.step == run.train.steps
            if last:  # before anything else: it may fail
                self.secure(asked)
            elif run.train.checkpoint_every and step % run.train.checkpoint_every == 0:
                self.save(asked)
            if self.validator.due(step):
                self.validate(asked)
            if run.sample.every and (step % run.sample.every == 0 or last):
                wanted |= self.sample(asked)
        return self.finish("done", asked)

    def _wanted(self, asked: Asked) -> set[str]:
        """What is asked of any of the processes, now and since it was last looked at."""
        heard, self.heard = self.heard, set()
        return self.crew.agreed(heard | asked())

    def hold(self, wanted: set[str], asked: Asked) -> set[str]:
        """Between two steps until asked to go on or to stop, painting and saving meanwhile; what is
        still to be seen to."""
        self.emit(events.Paused(self.progress.step))
        while not wanted & {"resume", "stop"}:
            heard: set[str] = set()
            if "sample" in wanted:
                heard = self.sample(asked)
            if "save" in wanted:
                self.save(asked)
            if not heard:
                time.sleep(sparing.HOLD)
            wanted = heard | self._wanted(asked)
        self.emit(events.Continued(self.progress.step))
        return wanted - {"pause", "resume"}

    def advance(self) -> None:
        """One optimiser step: `accumulate` batches, or this process's share of them, forward and
        backward, then the update."""
        run, step, began = self.plan.config, self.progress.step, time.perf_counter()
        self.doing = "training"
        self.network.train()
        rate = self.learner.set_rates(step)
        parts = []
        self.stepper.begin()
        for piece in self.pieces:
            part = self.loss(step, piece) / run.train.accumulate
            self.scaler.scale(part).backward()
            parts.append(part.detach())
        if step + 1 < run.train.steps:  # while a GPU is at work on this one
            self.ahead = {(step + 1, piece): self._made(step + 1, piece) for piece in self.pieces}
        loss, norm = self._settle(parts)
        if not math.isfinite(loss):
            raise self._diverged("loss", loss, step)
        # A scaler leaves out a step that overflows and halves its scale; at 1 it is not its doing.
        if not math.isfinite(norm) and self.scaler.get_scale() <= 1:
            raise self._diverged("gradient", norm, step)
        self.stepper.take()
        norms = (self.network.apply_max_norm_regularization(run.train.max_norm)
                 if run.train.max_norm else Norms())
        self.learner.learned(step + 1)
        average = loss if step == 0 else AVERAGE * self.progress.loss_avg + (1 - AVERAGE) * loss
        self.progress = replace(self.progress, step=step + 1, loss_avg=average)
        self.watch.seconds.append(time.perf_counter() - began)
        self.emit(events.Step(
            step=step + 1,
            epoch=round(self.feed.epoch(step + 1), 4),
            loss=loss, loss_avg=average, lr=self.learner.rate(rate), grad_norm=norm,
            capped=norms.capped, norm_mean=norms.mean, norm_max=norms.most,
            sec=round(self.watch.seconds[-1], 5),
            memory=devices.peak_memory(self.device)))

    def loss(self, step: int, piece: int) -> Tensor:
        """What one piece of a step adds to its batch's mean loss, with its graph."""
        micro, seed = piece // self.parts, self.plan.config.train.seed
        streams.seed_globals(self.device, seed, "dropout", step, *([micro] if micro else []))
        batch, share = self._batch(step, piece)
        return self.lesson.loss(batch) * share

    def _batch(self, step: int, piece: int) -> tuple[Batch, float]:
        return self.ahead.pop((step, piece), None) or self._made(step, piece)

    def _made(self, step: int, piece: int) -> tuple[Batch, float]:
        micro, part = divmod(piece, self.parts)
        return self.feed.batch(step, micro).piece(part, self.parts)

    def _condition(self, asked: Asked) -> Callable[[Sequence[str]], Condition]:
        """Captions to what the denoiser attends to: live where the text encoder learns or the
        captions vary, else made once for each."""
        if any(adapter.layer.part.startswith("text_encoder") for adapter in self.network):
            return self.model.encode_text
        if self.feed.texts is None:
            return conditions.live(self.model)
        self.doing = "encoding the captions"
        return conditions.once(self.model, self.feed.texts, self.kept,
                               self._now_and_then(asked))

    def _settle(self, parts: Sequence[Tensor]) -> tuple[float, float]:
        """(the step's loss, its gradient's norm): of all processes, and cut to clip_norm where that
        is set. Alone, the host waits once for the device."""
        if self.crew.size > 1:
            loss = self.crew.add_up(sum(torch.stack(list(parts)).tolist()),
                                    list(self.network.parameters()))
            return loss, self.stepper.norm().item()
        *losses, norm = torch.stack([*parts, self.stepper.norm().to(parts[0])]).tolist()
        return sum(losses), norm

    def _diverged(self, what: str, value: float, step: int) -> Diverged:
        """To be raised before the optimiser spreads it; says which layer and pictures began it."""
        run = self.plan.config
        found = blame.find(
            self.model.modules, self.network, lambda piece: self._batch(step, piece)[0].x0,
            lambda piece: self.scaler.scale(self.loss(step, piece) / run.train.accumulate),
            self.pieces)
        pictures = self.feed.named(step)
        if found is not None:
            members = self._batch(step, found.piece)[0].members
            shown = [i for row, i in enumerate(members) if row in found.rows] or members
            pictures = [self.feed.names[i] for i in shown]
        told = self.crew.meet(found and (found, pictures))
        found, pictures = next(filter(None, told), (None, pictures))
        return Diverged(step + 1, value, pictures, what, str(found or ""),
                        relief.after_divergence(run, self.precision, found and found.what))

    def sample(self, asked: Asked) -> set[str]:
        """Paint the sample prompts; what was asked meanwhile."""
        self.doing, began = PAINTING, time.perf_counter()
        heard: set[str] = set()
        if self.crew.first:
            self.network.eval()
            with self._spared(), self.learner.shown():
                heard = self.painter.paint(self.progress.step, asked)
                if "stop" not in heard:
                    self.watch.took("sample", began, self.painter.painted)
            self.model.train_mode(checkpointing=self.plan.config.train.gradient_checkpointing)
            self._rest()
        return self.crew.agreed(heard)

    def _rest(self) -> None:
        """What no step needs leaves the device, where that is wanted."""
        self.model.rest(resting(self.plan, self.device.type))

    def validate(self, asked: Asked = set) -> None:
        """The loss on what is held out, of the parameters that would be saved now; the others wait
        for the first at their next meeting."""
        self.doing = "validating"
        if self.crew.first:
            with self._spared(), self.learner.shown():
                self.heard |= self.validator.look(self.progress.step, asked)

    def _spared(self) -> AbstractContextManager[None]:
        """Around what the run can do without. Before the first step a mistake is better told."""
        return sparing.spared(
            self.doing, self.emit,
            lambda: relief.after_failure(self.plan, self.doing, self.device.type),
            strict=not self.progress.step)

    def save(self, asked: Asked = set) -> None:
        self.doing, began = "saving", time.perf_counter()
        self.emit(events.Stage(self.doing, 0, 0))
        if self.crew.first:
            self._written(self.keeper.save, asked)
            self.watch.took("checkpoint", began, 1)

    def secure(self, asked: Asked = set) -> None:
        """What the last step came to, before it is looked at and painted."""
        self.doing = "saving"
        self.emit(events.Stage(self.doing, 0, 0))
        if self.crew.first:
            self._written(self.keeper.save_state, asked)

    def _written(self, write: Callable[[Progress, Writing], Found], asked: Asked,
                 cancels: str = "") -> Found:
        """Write what the run has come to, as soon as the disk has room for it."""
        return sparing.written(
            lambda: write(self.progress, self._writing(asked, cancels)), self.progress.step,
            self.emit, lambda: self.heard | asked())

    def _writing(self, asked: Asked, cancels: str = "") -> Writing:
        return Writing(self.progress.step, self.emit, asked, self.heard, cancels)

    def finish(self, reason: str, asked: Asked = set) -> events.Finished:
        self.doing = "saving"
        if not self.progress.step:
            raise Halted
        self.emit(events.Stage(self.doing, 0, 0))
        name = ""
        if self.crew.first:
            optional = self.keeper.optional
            if reason == "stopped":
                writing = self._writing(asked, optional)
                writing.stopping()
                name = self.keeper.finish(self.progress, writing).name
            else:
                name = self._written(self.keeper.finish, asked, optional).name
            if self.crew.size == 1:  # what it learns is of steps that one process computes
                self.keeper.unless_held(self.watch.learn, "run")
            self.emit(self.watch.event())
        ended = events.Finished(reason, self.progress.step, self.crew.meet(name)[0])
        self.emit(ended)
        return ended
