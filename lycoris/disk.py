"""What a run will write, at the moment when that is most, against what is free."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from . import checkpoint, devices, memory, optimizers, sampling
from .algorithms import elements
from .data import store
from .errors import DiskError
from .plan import Plan

MIB = 2**20
PNG = 2.2  # bytes a pixel: paintings and photographs take 1.3 to 2.2 of the 3 uncompressed
EVENT = 330  # bytes of a step's line in events.jsonl
HEADER = 140  # bytes of one tensor's entry in a file
SPARE = 16 * MIB  # left free: the log, settings, a file system's own blocks


@dataclass(frozen=True)
class Item:
    name: str
    bytes: int


@dataclass(frozen=True)
class Disk:
    """`free` bytes are left on the drive where it goes."""

    items: tuple[Item, ...]
    free: int

    @property
    def bytes(self) -> int:
        return sum(item.bytes for item in self.items)

    @property
    def lacking(self) -> int:
        """Bytes that do not fit; 0 where all do."""
        return max(0, self.bytes + SPARE - self.free)


def predict(plan: Plan, step: int = 0) -> Disk:
    """What the run writes from `step` on, with `keep_checkpoints` of them and one more while it is
    being written; and what the cache gains at most (within its limit)."""
    run = plan.config
    left = max(0, run.train.steps - step)
    adapter = plan.sizes.file_bytes_with_metadata
    every = run.train.checkpoint_every
    count = max(0, -(-left // every) - 1) if every else 0
    keep = run.train.keep_checkpoints
    kept = min(count, keep + 1) if keep else count
    states = min(checkpoint.KEEP + 1, count + 1)
    shared = sampling.settings_of(run.sample, run.dataset.resolution, plan.family.side_multiple)
    painted = [job.how(shared) for job in sampling.while_training(run.sample)]
    times = -(-left // run.sample.every) + (step == 0) if run.sample.every else 0
    area = sum(how.width * how.height for how in painted)
    return Disk((
        Item(f"{kept} checkpoints", kept * adapter),
        Item(f"{states} states to resume from", states * state_bytes(plan)),
        Item("the adapter", adapter),
        Item("the whole model", _model_bytes(plan)),
        Item(f"{times * len(painted)} sample pictures", round(times * area * PNG)),
        Item("events", left * EVENT), Item("the cache", cache_bytes(plan))),
        _free(Path(run.output.folder).expanduser()))


def cache_bytes(plan: Plan) -> int:
    """What is kept of pictures and captions for later runs where nothing is there yet; none on a
    drive of its own, which may fill up without harm."""
    settings = plan.config.dataset
    folder = Path(plan.config.output.folder).expanduser()
    if _device(store.of(plan.config).folder) != _device(folder):
        return 0
    numbers = memory.LATENT_CHANNELS + settings.masks
    latents = sum(4 * numbers * (1 + settings.flip) * memory.positions(plan, size)
                  for size in memory.encoded_sizes(plan))
    latents += sum(4 * numbers * memory.positions(plan, size) for size in plan.held_buckets)
    count = len(plan.buckets) * (1 + settings.flip) + len(plan.held_buckets)
    texts, each = memory.texts_kept(plan, devices.choose(plan.config.train.device).type)
    return min(round(settings.cache_limit * store.GIB),
               latents + texts * each + 2 * HEADER * (count + texts))


def _model_bytes(plan: Plan) -> int:
    """The base's own files again, where the whole model is to be written."""
    if plan.config.output.model == "none" or plan.family.known is not None:
        return 0
    return sum(file.stat().st_size for file in plan.family.files())


def state_bytes(plan: Plan) -> int:
    """One file of the whole state: the adapter in fp32 and the optimiser's."""
    total = 0.0
    for assignment in plan.assignments:
        shapes = dict(assignment.shapes())
        if (dora := assignment.dora_shape()) is not None:
            shapes["dora_scale"] = dora
        for name, shape in shapes.items():
            count = elements(shape)
            total += 4 * count + HEADER
            if name not in assignment.algorithm.frozen:
                total += optimizers.state_bytes(plan.config.optimizer.name, shape)
                total += 3 * HEADER  # its moments and its step
                total += optimizers.table_bytes(plan.config.optimizer.name, shape)
                total += 4 * count + HEADER if plan.config.train.ema else 0
    return round(total)


def require(plan: Plan, where: Path) -> Disk:
    """The prediction for the run in the folder `where`, which may have come some way; DiskError, by
    how much it does not fit and what to lower, where it does not."""
    found = predict(plan, checkpoint.newest(where / "state"))
    there = sum(file.stat().st_size for name in ("state", "checkpoints")
                for file in (where / name).glob("*.safetensors"))  # new ones take their places
    found = Disk(found.items, found.free + there)
    if not found.lacking:
        return found
    largest = max(found.items, key=lambda item: item.bytes)
    raise DiskError(
        f"The run would write {found.bytes / MIB:,.0f} MiB to {where}, where "
        f"{found.free / MIB:,.0f} MiB are free: {found.lacking / MIB:,.0f} MiB too little.",
        f"Free some space, choose another output.folder, or {_lighter(plan)} (most of it: "
        f"{largest.name}, {largest.bytes / MIB:,.0f} MiB).", where, field="output.folder")


def _lighter(plan: Plan) -> str:
    train, sample = plan.config.train, plan.config.sample
    found = []
    if train.keep_checkpoints != 1 and train.checkpoint_every:
        found.append("set train.keep_checkpoints to 1")
    if sample.every:
        found.append("set sample.every higher")
    if plan.config.output.dtype == "fp32":
        found.append("set output.dtype to fp16")
    return " or ".join((*found, "take a smaller network.dim"))


def _free(folder: Path) -> int:
    return shutil.disk_usage(_existing(folder)).free


def _device(folder: Path) -> int:
    """The drive that a folder is on, or will be."""
    return _existing(folder).stat().st_dev


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
