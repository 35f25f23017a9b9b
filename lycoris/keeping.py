"""What a run leaves on disk while it trains: states to resume from, checkpoints, the adapter."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from . import (
    adapterfile,
    checkpoint,
    config,
    durable,
    events,
    metadata,
    modelout,
    outfile,
    relief,
    tensorfile,
    thumbnail,
)
from .checkpoint import Progress, State
from .crew import ALONE, Crew
from .errors import DiskError, Diverged
from .learner import Learner
from .network import LycorisNetwork
from .plan import Plan, facts_of, shows_thumbnail
from .progress import Progress as Told
from .progress import Stopped
from .provenance import Deed
from .runs import RunFolder
from .writing import Writing


@dataclass
class Keeper:
    """Writes into the run folder `where` what the run has come to."""

    plan: Plan
    where: Path
    emit: Callable[[events.Event], None]
    network: LycorisNetwork
    learner: Learner
    scaler: torch.amp.GradScaler
    crew: Crew = ALONE
    kept: int = 0  # the step whose state this process has written last

    def save(self, progress: Progress, writing: Writing) -> None:
        """A checkpoint: the state to resume from, then the adapter file, then the old ones go."""
        self.save_state(progress, writing)
        name = config.run_name(self.plan.config)
        folder = durable.make_folder(self.where / "checkpoints")
        self._save_adapter(folder / f"{name}-{progress.step:06d}.safetensors", progress, writing)
        keep = self.plan.config.train.keep_checkpoints
        if keep:
            self.unless_held(checkpoint.prune, folder, name, progress.step, keep)

    @property
    def optional(self) -> str:
        """What a run may end without, in words; empty where there is nothing."""
        return "" if self.plan.config.output.model == "none" else "the whole model"

    def finish(self, progress: Progress, writing: Writing) -> Path:
        """The last state, unless it was written just now, the adapter under the run's own name, and
        the whole model where one is asked for."""
        if progress.step != self.kept:
            self.save_state(progress, writing)
        name = config.run_name(self.plan.config)
        path = self._save_adapter(self.where / f"{name}.safetensors", progress, writing)
        if self.optional:
            try:
                self._save_model(path, progress, writing)
            except Stopped:
                self.emit(events.Warned(
                    "The whole model was left out, as you asked; one that was there before is "
                    "still there.", "Continue the run to write it."))
        return path

    def _save_model(self, adapter: Path, progress: Progress, writing: Writing) -> None:
        """The whole model as that adapter file makes it; one of the same run, before it was
        extended, is there until then."""
        wanted, family = self.plan.config.output.model, self.plan.family
        whole = modelout.Whole(family, modelout.of_adapter(adapter, family), outfile.KEEP,
                               Deed("train", {}, [adapter.stem]),
                               Told(self.emit, writing.cancelled))
        out = self.where / f"{adapter.stem}-model"
        if wanted == "folder":
            made = whole.write_folder(out, replace=True)
        else:
            made = whole.write_file(out.with_name(f"{out.name}.safetensors"),
                                    with_vae=wanted == "file")
        self.emit(events.Saved(progress.step, str(made.out.relative_to(self.where)), made.bytes))

    def resume(self) -> Progress:
        """From the newest whole state; a fresh run gets its times and its id here."""
        state, problems = (checkpoint.load(self.where / "state") if self.crew.first
                           else (None, []))
        before = ("The checkpoint before it is used." if state else
                  "No checkpoint is whole, so the run starts from the beginning.")
        for text in problems:
            self.emit(events.Warned(text, before))
        if self.crew.size > 1:
            state = self._shared(state)
        if state is None:
            now = time.time()
            return Progress(started=now, session=int(now * 1000) % 10**10)
        state.restore(self.network, self.learner.optimizer)
        self.learner.restore(state.tensors)
        if state.scaler:
            self.scaler.load_state_dict(dict(state.scaler))
        return state.progress

    def _shared(self, state: State | None) -> State | None:
        """The first process's state, for all of them."""
        plain = self.crew.meet(state and replace(state, tensors={}))[0]
        tensors = self.crew.given(state.tensors if state else None)
        return plain and replace(plain, tensors=tensors)

    def unless_held(self, remove: Callable[..., None], *what: Any) -> None:
        """Superfluous files go; one that another program holds open (Windows) ends no run."""
        try:
            remove(*what)
        except DiskError as error:
            self.emit(events.Warned(error.message, error.fix))

    def save_state(self, progress: Progress, writing: Writing) -> None:
        """What the run goes on from. Raises Diverged where a step has made numbers that are not
        finite: the states before it are good, this one would not be."""
        run = self.plan.config
        precision = "fp16" if self.scaler.is_enabled() else run.train.precision
        if broken := self.network.not_finite():
            raise Diverged(progress.step, math.nan, what="adapter", began=broken,
                           changes=relief.after_divergence(run, precision, None))
        folder = durable.make_folder(self.where / "state")
        checkpoint.save(folder, self.network, self.learner.optimizer, progress,
                        self.scaler.state_dict(), self.learner.tensors(), writing)
        self.kept = progress.step
        self.unless_held(checkpoint.tidy, folder, progress.step)

    def _save_adapter(self, path: Path, progress: Progress, writing: Writing) -> Path:
        run, plan = self.plan.config, self.plan
        dtype = tensorfile.DTYPES[run.output.dtype]
        facts = facts_of(run, plan.presented)
        if (own := RunFolder(self.where).preset_file).is_file():  # as the run began with it
            facts = replace(facts, preset=own.read_text("utf-8"))
        facts = replace(facts, step=progress.step,
                        loss=progress.loss_avg, started=progress.started,
                        finished=time.time(), session=progress.session,
                        thumbnail=self._thumbnail())
        with self.learner.shown():
            tensors = {key: t.to(dtype, copy=True)
                       for key, t in self.network.file_tensors().items()}
        described = metadata.describe(run, plan.family, plan.dataset, facts)
        adapterfile.write(path, tensors, None, metadata.with_hashes(described, tensors),
                          writing.over("saving the adapter", len(tensors)))
        self.emit(events.Saved(progress.step, str(path.relative_to(self.where)),
                               path.stat().st_size))
        return path

    def _thumbnail(self) -> str:
        """The newest sample of the first prompt; empty where none is wanted or there."""
        painted = sorted((self.where / "samples").glob("step-*-00.png"))
        return thumbnail.of(painted[-1]) if painted and shows_thumbnail(self.plan.config) else ""
