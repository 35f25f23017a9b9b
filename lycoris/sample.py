"""The verb sample: paint prompts with the base or with one adapter, one PNG a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from . import contestants, devices, events, loading, plan, promptfile, sampling
from .contestants import Contestant
from .errors import ConfigError, OutOfMemory
from .families import open_chosen
from .settings import Config


@devices.released
def run(run: Config, taker: Contestant, where: Path, emit: Callable[[events.Event], None],
        asked: Callable[[], set[str]]) -> list[Path]:
    """The pictures' paths in `where`, prompts outermost; each PNG carries its recipe."""
    plan.check_names(run)
    jobs = sampling.jobs_of(run.sample)
    if not jobs:
        raise ConfigError({"sample.prompts": "there is nothing to paint; give sample.prompts and "
                                             "sample.seeds"})
    family = open_chosen(run.model)
    plan.check_base(run, family)
    for note in promptfile.notes(run.sample):
        emit(note)
    device = devices.choose(run.train.device)
    precision = devices.precision(run.train.precision, device)
    how = sampling.settings_of(run.sample, run.dataset.resolution, family.side_multiple)
    emit(events.Stage("loading the model", 0, 0))
    written: list[Path] = []
    try:
        model = loading.load(run, family, device, precision)
        network, _ = contestants.load(taker, family, model)
        if network is not None:
            network.apply_to()
        described = contestants.describe(taker, family)
        for index, image in enumerate(sampling.paint(model, jobs, how,
                                                     lambda: "stop" in asked())):
            name = f"{taker.name}-{index:04d}.png"
            written.append(sampling.write_png(where / name, image, sampling.recipe(
                jobs[index], how, family.called, described)))
            emit(events.Sampled(0, index, name, jobs[index].prompt, jobs[index].seed, taker.name))
            emit(events.Stage("painting", index + 1, len(jobs)))
    except torch.OutOfMemoryError as error:
        raise OutOfMemory("painting", ["lower sample.width and sample.height"]) from error
    emit(events.Finished("done" if len(written) == len(jobs) else "stopped", len(written), ""))
    return written
