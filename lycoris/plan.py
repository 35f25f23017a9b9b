"""The plan: everything a run will do that can be known before it, from settings and facts on disk.

The page shows it, plan.json records it, the trainer executes it. No weights are read.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from . import (
    algorithms,
    config,
    devices,
    distances,
    families,
    following,
    knobs,
    metadata,
    optimizers,
    presets,
    promptfile,
    quantised,
    samplers,
    schedules,
    sizes,
    starting,
    surprises,
    swapping,
    thumbnail,
    timesteps,
    weigher,
    weightings,
)
from .assignments import Assignment, assign_family, select
from .data import buckets as bucketing
from .data import captions, epoch, folder, gather, loader
from .data.epoch import Epoch
from .data.folder import Dataset, Picture
from .data.loader import batches_per_epoch
from .errors import ConfigError, LycorisError
from .events import Warned
from .families import Family, check_preset, open_chosen, preset_names
from .presets import Selection
from .registry import pick
from .runs import RunFolder
from .settings import Config, NetworkConfig
from .sizes import Sizes


@dataclass(frozen=True)
class Plan:
    """One run, decided. `dataset` and `buckets` belong together: one bucket for each picture that
    is learned from, and one in `held_buckets` for each that is held out."""

    config: Config
    family: Family
    assignments: tuple[Assignment, ...]
    dataset: Dataset | None
    buckets: tuple[tuple[int, int], ...]
    sizes: Sizes
    warnings: tuple[Warned, ...]
    held_buckets: tuple[tuple[int, int], ...] = ()

    @cached_property
    def presented(self) -> tuple[tuple[int, int], ...]:
        """The bucket of every picture as often as it comes in an epoch."""
        repeats = [p.repeats for p in self.dataset.learned] if self.dataset else []
        return loader.presented(self.buckets, repeats)

    @cached_property
    def epoch(self) -> Epoch:
        """What an epoch is, and how many the run has."""
        return epoch.of(self.dataset, self.buckets, self.config.train)

    @property
    def selection(self) -> Selection:
        """What the preset matched of this model, and what it did not."""
        return select(self.family, self.config.network)

    @property
    def training_bytes(self) -> int:
        """Bytes the adapter itself takes while training: fp32 weights, gradients, optimiser."""
        row = optimizers.ROWS[self.config.optimizer.name]
        return int(self.sizes.parameters * (8 + row.state_bytes))

    def summary(self) -> dict[str, Any]:
        """The plan in plain numbers, for plan.json and for --json."""
        return {
            "name": config.run_name(self.config),
            "algo": self.config.network.algo, "family": self.family.name,
            **self.sizes.summary(),
            "training_bytes": self.training_bytes,
            "pictures": len(self.buckets), **self._parts(),
            "buckets": {f"{w}x{h}": n for (w, h), n in sorted(Counter(self.presented).items())},
            "steps": self.config.train.steps, "batches_per_epoch": self.epoch.batches,
            "smaller_batches": self.epoch.smaller,
            "steps_per_epoch": round(self.epoch.steps_per_epoch, 3),
            "epochs": round(self.epoch.epochs, 3),
            "prompts": [prompt.text for prompt in promptfile.read(self.config.sample)],
            "warnings": [asdict(warning) for warning in self.warnings],
        }

    def _parts(self) -> dict[str, Any]:
        """How many pictures there are of each sort, where there are any."""
        if self.dataset is None:
            return {}
        learned = self.dataset.learned
        found = {"presented": len(self.presented) if len(self.presented) != len(learned) else 0,
                 "regularisation": sum(p.prior for p in learned),
                 "masked": sum(p.mask is not None for p in learned),
                 "held_out": len(self.held_buckets)}
        return {name: count for name, count in found.items() if count}


def make(run: Config, *, family: Family | None = None, dataset: Dataset | None = None,
         need_dataset: bool = True) -> Plan:
    """The plan of a run. Raises a typed error for the first thing that makes it impossible, and a
    ConfigError with all settings that do.

    `family` and `dataset` may be given by a caller that has them open already; without
    `need_dataset` a missing folder leaves the plan without pictures, and the family may be known by
    name alone (an estimate). Where there is no prompt to paint, it has some of the captions.
    """
    check_names(run)
    if family is None:
        family = open_chosen(run.model)
    if dataset is None:
        try:
            dataset = gather.gather(run.dataset)
        except LycorisError:
            if need_dataset:
                raise
    if dataset is not None:
        run = following.with_prompts(run, dataset)
    if need_dataset:  # it is to be trained: what is missing is told before anything is loaded
        optimizers.require(run.optimizer.name)
        quantised.require(run.model.dtype)
    if need_dataset and dataset is not None:
        family.require_files()
        folder.require_trainable(dataset)
    check_base(run, family)
    assignments = tuple(assign_family(family, run.network))
    if need_dataset:
        assignments = starting.placed(run, family, assignments)
    learned, held = (dataset.learned, dataset.held) if dataset else ((), ())
    chosen = buckets_of(run, learned)
    shown = loader.presented(chosen, [p.repeats for p in learned])
    draft = Plan(run, family, assignments, dataset, chosen,
                 sizes.measure(assignments, run.output.dtype,
                               _described(run, family, dataset, shown)), (), buckets_of(run, held))
    return replace(draft, warnings=tuple(_warnings(draft)))


def create(made: Plan, **notes: Any) -> RunFolder:
    """The run folder of a plan, with the complete settings, an own preset, and the plan in it.

    `notes` go into plan.json. Nothing is made where that cannot be: RunError where a run of that
    name exists, DiskError where its drive cannot hold what it will write.
    """
    from . import disk, outlook  # they look at plans

    run = named(made.config)
    folder = RunFolder(Path(run.output.folder).expanduser() / run.output.name)
    disk.require(made, folder.path)
    notes = {**outlook.describe(made), **notes}
    files = {"config.toml": config.dump(run),
             "plan.json": json.dumps({**made.summary(), **notes}, indent=1, ensure_ascii=False)}
    if own := presets.source(run.network.preset):
        files[folder.preset_file.name] = own
    return folder.create(files)


def named(run: Config) -> Config:
    """The same settings with the run's name written out."""
    return replace(run, output=replace(run.output, name=config.run_name(run)))


def with_free_name(run: Config, name: str = "") -> Config:
    """The same settings under `name`, or their own, with a number added where it is taken."""
    name = name or config.run_name(run)
    folder = Path(run.output.folder).expanduser()
    free, number = name, 1
    while (folder / free).exists():
        number += 1
        free = f"{name}-{number}"
    return replace(run, output=replace(run.output, name=free))


def _described(run: Config, family: Family, dataset: Dataset | None,
               buckets: Sequence[tuple[int, int]]) -> dict[str, str]:
    """Metadata as long as the file's will be."""
    if not run.output.name:
        run = with_free_name(run)  # the name is in the metadata too
    facts = facts_of(run, buckets)
    return metadata.with_hashes(metadata.describe(run, family, dataset, facts), None)


def sizes_with(made: Plan, network: NetworkConfig) -> Sizes:
    """What the file of a planned run would take with another network; ConfigError where that is
    impossible."""
    run = replace(made.config, network=network)
    return weigher.of(made.family, network).measure(
        network, run.output.dtype, _described(run, made.family, made.dataset, made.presented))


def facts_of(run: Config, buckets: Sequence[tuple[int, int]], **known: Any) -> metadata.Facts:
    """What the metadata says of the data; `known` are times and ids once they are known."""
    return metadata.Facts(
        batches_per_epoch=batches_per_epoch(buckets, run.train.batch_size),
        buckets=Counter(buckets),
        precision=devices.precision(run.train.precision, devices.choose(run.train.device)),
        **{"step": run.train.steps, "preset": presets.source(run.network.preset),
           "thumbnail": thumbnail.BLANK if shows_thumbnail(run) else "", **known})


def shows_thumbnail(run: Config) -> bool:
    """Is one wanted, and will there be a sample picture to make it from?"""
    return run.output.thumbnail and bool(run.sample.every and promptfile.read(run.sample))


def file_bytes(run: Config, network: NetworkConfig, family: Family) -> int:
    """Bytes of the adapter without metadata, for another network on the same base."""
    return weigher.of(family, network).weigh(network, run.output.dtype).file_bytes


def switched(network: NetworkConfig, algo: str) -> NetworkConfig:
    """The same network with another algorithm, as far as that one has these settings."""
    entry = pick(algorithms.catalogue(), algo, "network.algo")
    own = {name: value for name, value in network.options.items()
           if name in knobs.leaves(entry.Options)}
    return replace(network, algo=algo, options=own,
                   init=network.init if network.init in entry.starts else "default")


def check_names(run: Config) -> None:
    """Every setting that must name an entry of a catalogue does, and the entries take their own
    settings; all problems at once."""
    catalogues: Mapping[str, Sequence[str]] = names()
    problems: dict[str, str] = {}
    for path, leaf in config.LEAVES.items():
        known = catalogues.get(leaf.knob.catalogue)
        value = knobs.get(run, path)
        if leaf.knob.catalogue == "presets":
            try:
                check_preset(value)
            except ConfigError as error:
                problems |= error.problems
        elif known is not None and value not in known:
            problems[path] = (f"{path}: there is no {value!r}; choose one of {', '.join(known)}."
                              + knobs.nearest(str(value), tuple(known)))
    if "sample.sampler" not in problems and (lacking := samplers.problem(run.sample.sampler)):
        problems["sample.sampler"] = lacking
    if "network.algo" not in problems:
        try:
            algorithms.read_options(run.network.algo, run.network.options)
        except ConfigError as error:
            problems |= error.problems
    if "optimizer.name" not in problems:
        try:
            optimizers.check(run.optimizer.name, run.optimizer.args)
        except ConfigError as error:
            problems |= error.problems
    try:
        timesteps.bounds(run.loss, run.loss.timestep_max or sys.maxsize)
    except ConfigError as error:
        problems |= error.problems
    problems |= optimizers.problems(run) | swapping.problems(run)
    if problems:
        raise ConfigError(problems)


def names() -> dict[str, tuple[str, ...]]:
    """{catalogue: its names}, for checks and for the form's choices."""
    return {
        "algorithms": tuple(algorithms.catalogue()),
        "families": families.names(),
        "presets": preset_names(),
        "optimizers": tuple(optimizers.ROWS),
        "schedules": tuple(schedules.SCHEDULES),
        "samplers": tuple(samplers.ROWS),
        "weightings": tuple(weightings.ROWS),
        "distances": tuple(distances.ROWS),
        "timesteps": tuple(timesteps.ROWS),
    }


def check_base(run: Config, family: Family) -> None:
    """Sides must be multiples of what the model halves, and its text encoder must have the layer
    that is read; ConfigError names each setting that cannot be."""
    unit = family.side_multiple
    sides = {"dataset.bucket_step": run.dataset.bucket_step,
             "sample.width": run.sample.width, "sample.height": run.sample.height}
    problems = promptfile.check_sides(run.sample, unit)
    problems |= {path: f"{path} is {side}; this model needs multiples of {unit} px. "
                      f"Set it to {max(unit, round(side / unit) * unit)}."
                for path, side in sides.items() if side is not None and side % unit}
    if run.dataset.resolution < unit:
        problems["dataset.resolution"] = (
            f"dataset.resolution is {run.dataset.resolution}; the least is {unit} px")
    elif run.dataset.resolution < run.dataset.bucket_step:
        problems["dataset.bucket_step"] = (
            f"dataset.bucket_step is {run.dataset.bucket_step}, more than the resolution "
            f"{run.dataset.resolution}. Set it to {unit}.")
    if family.clip_skips and run.model.clip_skip > family.text_layers:
        problems["model.clip_skip"] = (
            f"model.clip_skip is {run.model.clip_skip}; this model's text encoder has "
            f"{family.text_layers} layers. Set it to 1, or to 2 for most anime models.")
    if problems:
        raise ConfigError(problems)


def buckets_of(run: Config, pictures: Sequence[Picture]) -> tuple[tuple[int, int], ...]:
    """One bucket a picture."""
    settings = run.dataset
    return tuple(bucketing.choose(p.size, settings.resolution, settings.bucket_step,
                                  settings.bucket, settings.enlarge)
                 for p in pictures if p.size)


def _of_balance(plan: Plan) -> list[Warned]:
    """Regularisation pictures that are shown more or less often than the others; masks that belong
    to no picture."""
    assert plan.dataset is not None
    settings, learned, found = plan.config.dataset, plan.dataset.learned, []
    prior = sum(p.repeats for p in learned if p.prior)
    new = plan.epoch.shown - prior
    if 0 < prior != new and not settings.balance:
        found.append(Warned(f"An epoch shows {prior} regularisation pictures and {new} others.",
                            "dataset.balance shows as many of both."))
    if settings.masks and settings.mask_folder and not any(p.mask for p in learned):
        found.append(Warned(f"No picture has a mask of its name in {settings.mask_folder}.",
                            "Call each mask as its picture: cat.png for cat.jpg."))
    return found


def _warnings(plan: Plan) -> list[Warned]:
    """What a person would want to know before pressing Train, and nothing that needs no thought."""
    run, found = plan.config, []
    train = run.train
    if plan.dataset is not None:
        problems = plan.dataset.problems(run.dataset.resolution)
        if bare := problems.get("no caption"):
            found.append(Warned(f"{len(bare)} of {len(plan.dataset)} pictures have no caption.",
                                "They are trained with an empty one; write it on the Dataset tab."))
        if shared := problems.get(folder.SHARED):
            found.append(Warned(
                f"{shared[0].name} and {shared[1].name} have the same caption file, "
                f"{captions.file_of(shared[0].path).name}"
                + f"; so have others, {len(shared)} in all" * (len(shared) > 2) + ".",
                "Give one of them another name and a caption of its own."))
        tiny = problems.get(f"smaller than {run.dataset.resolution} px")
        if tiny and run.dataset.enlarge:
            found.append(Warned(
                f"{len(tiny)} pictures are smaller than {run.dataset.resolution} px and are "
                "enlarged.", "Use larger ones, or lower dataset.resolution."))
        found += _of_balance(plan)
        fullest = max(Counter(plan.presented).values(), default=0)
        if train.batch_size > fullest > 0:
            found.append(Warned(
                f"The batch size is {train.batch_size}, but no bucket holds more than {fullest} "
                "pictures, so batches are smaller.", "Lower train.batch_size, or raise "
                "train.accumulate."))
    found += surprises.network(run, plan.family, plan.assignments)
    found += optimizers.warnings(run)
    found += promptfile.notes(run.sample)
    if run.model.clip_skip > 1 and not plan.family.clip_skips:
        found.append(Warned(
            f"model.clip_skip is {run.model.clip_skip}, but which layers of its text encoders "
            f"{plan.family.label} reads is part of the model: it does nothing.", "Set it to 1."))
    if not 1 / 1.5 <= run.dataset.resolution / plan.family.resolution <= 2:
        found.append(Warned(
            f"The base model was made for {plan.family.resolution} px, dataset.resolution is "
            f"{run.dataset.resolution}.", f"Set it to {plan.family.resolution}."))
    return found
