"""The most memory a run will have in use, predicted from its plan in a moment: item by
item. `lycoris.relief` says which settings would lower it.

On a GPU the bytes are those of the device: what PyTorch allocates, and beside it the fixed cost of
having a CUDA context. On a CPU they are by how much the process grows over what it is with the
libraries loaded. What one's own machine has measured of such runs corrects the sum, as an item of
its own (`lycoris.machine`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import footprint, holding, optimizers, quantised, sampling, swapping
from .algorithms import Layer, Shape, elements
from .assignments import Assignment
from .data import buckets, wording
from .data.cache import GROUP, GROUP_PIXELS
from .footprint import Table, at
from .plan import Plan
from .presets import PARTS
from .settings import Config

MIB = 2**20
CUDA_CONTEXT = 500 * MIB  # kernels and context of a process; no tensor, so PyTorch counts none
# What a CPU process grows by in its first steps whatever the model: code that is loaded when first
# called, oneDNN's kernels and scratch. Measured, benchmarks/memory_check.py.
CPU_LIBRARIES = 45 * MIB
# By how much glibc's heap is larger than a step's tensors, as a share of them: what it frees in the
# middle it keeps. With checkpointing much more is freed. benchmarks/memory_check.py; with --exact,
# which has every large tensor mapped alone, nothing of it is left.
CPU_SPARE = {False: 0.40, True: 1.1}
LOADING, ENCODING = "loading the model", "encoding the pictures"
TRAINING, PAINTING = "training", "painting samples"
VALIDATING = "validating"
UPDATING = "optimiser step"
WIDTHS: Mapping[str, float] = {"fp32": 4, "bf16": 2, "fp16": 2}  # bytes of a weight
LATENT_CHANNELS = 4


@dataclass(frozen=True)
class Item:
    """`kind` is weights, adapter, gradients, optimizer, activations, temporary, cache, fixed or
    correction."""

    kind: str
    name: str
    bytes: int


@dataclass(frozen=True)
class Phase:
    """One part of a run and everything in memory meanwhile."""

    name: str
    items: tuple[Item, ...]

    @property
    def bytes(self) -> int:
        return sum(item.bytes for item in self.items)


@dataclass(frozen=True)
class Memory:
    """The prediction. `missing` says what is not in it, where the base model has no table yet."""

    device: str
    phases: tuple[Phase, ...]
    missing: str = ""

    @property
    def highest(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.bytes)

    @property
    def items(self) -> tuple[Item, ...]:
        """What is in memory at the highest moment."""
        return self.highest.items

    @property
    def peak(self) -> int:
        return self.highest.bytes

    @property
    def counted(self) -> int:
        """The peak as PyTorch, or the process, will count it: on CUDA without the context."""
        context = CUDA_CONTEXT if self.device == "cuda" else 0
        return self.peak - context

    def data(self) -> dict[str, Any]:
        return {"device": self.device, "peak": self.peak, "counted": self.counted,
                "phase": self.highest.name, "missing": self.missing,
                "items": [{"kind": i.kind, "name": i.name, "bytes": i.bytes} for i in self.items],
                "phases": {phase.name: phase.bytes for phase in self.phases}}


def predict(plan: Plan, device: str, *, correction: float = 1.0, frugal: bool = False) -> Memory:
    """The memory of a run on "cuda" or "cpu" (others count as CUDA without its context).

    `correction` is measured / predicted of this machine. `frugal` is the least it can do with:
    where memory is short, pictures are encoded one by one. Without a table of the base model
    activations are left out, and `missing` says so.
    """
    table = footprint.find(plan.family, plan.config.output.folder)
    phases = _phases(plan, device, table, frugal)
    if correction != 1.0:
        phases = [Phase(phase.name, (*phase.items, Item(
            "correction", "this machine's correction",
            round((correction - 1) * _counted(phase)))))
            for phase in phases]
    missing = "" if table else ("This base model has not been traced yet: activations, samples and "
                                "the autoencoder are not counted.")
    return Memory(device, tuple(phases), missing)


def _counted(phase: Phase) -> int:
    return sum(item.bytes for item in phase.items if item.kind != "fixed")


def is_half(run: Config, device: str) -> bool:
    """Does the forward pass run in half precision? "auto" is fp32 on a CPU alone."""
    chosen = run.train.precision
    return device == "cuda" if chosen == "auto" else chosen != "fp32"


def _phases(plan: Plan, device: str, table: Table | None, frugal: bool) -> list[Phase]:
    run = plan.config
    fixed = ([Item("fixed", "CUDA context", CUDA_CONTEXT)] if device == "cuda" else
             [Item("fixed", "libraries at work", CPU_LIBRARIES)] if device == "cpu" else [])
    weights = list(_weights(plan, device, table))
    cache = list(_cache(plan, device))
    adapter = [Item("adapter", "adapter weights", _adapter_bytes(plan.assignments))]
    kept = [4 * elements(shape) for a in plan.assignments for shape in _trained(a)]
    if run.train.ema:
        adapter.append(Item("adapter", "the adapter's moving average", sum(kept)))
    aside = ([Item("temporary", "the adapter as it is trained", sum(kept))]
             if run.train.ema or optimizers.ROWS[run.optimizer.name].averages else [])
    state = Item("optimizer", f"{run.optimizer.name}'s state", _state_bytes(plan))
    base = [*fixed, *weights, *cache]
    gradients = sum(4 * a.parameters() for a in plan.assignments if not run.train.fused_backward)
    update = _update_bytes(plan, device)
    away = {_weights_of(part) for part in resting(plan, device)}
    at_work = [item for item in base if item.name not in away]
    phases = [Phase(UPDATING, (*at_work, *adapter, state,
                                       Item("gradients", "gradients", gradients),
                                       Item("temporary", "the optimiser's step", update)))]
    if table is None:
        return phases
    training = [*_training(plan, device, table)]
    if device == "cpu":
        training.append(Item("fixed", "the allocator's spare", _spare(plan, table)))
    phases.append(Phase(TRAINING, (*at_work, *adapter, state, *training)))
    phases.append(Phase(ENCODING, (*base, Item(
        "temporary", "encoding the pictures", _encoding(plan, table, frugal)))))
    if plan.held_buckets and run.train.validate_every:
        phases.append(Phase(VALIDATING, (*at_work, *adapter, state, Item(
            "temporary", "looking at held-out pictures", _validating(plan, device, table)))))
    if run.sample.every and sampling.while_training(run.sample):
        phases.append(Phase(PAINTING, (*base, *adapter, *aside, state, Item(
            "temporary", "painting a sample", _painting(plan, device, table)))))
    return phases


def resting(plan: Plan, device: str) -> tuple[str, ...]:
    """The parts of the base that are not on the device while it trains. Where one text encoder
    learns, or captions vary, both read each caption anew; packed ones stay."""
    if not plan.config.train.offload or device == "cpu":
        return ()
    texts = tuple(part for part in plan.family.prefixes if part.startswith("text_encoder"))
    stay = (plan.config.model.dtype in quantised.KINDS or wording.varies(plan.config.dataset)
            or any(a.layer.part in texts for a in plan.assignments))
    return ("vae",) if stay else ("vae", *texts)


def largest(plan: Plan) -> tuple[int, int]:
    """(width, height) of the largest bucket; without pictures, of the square that was asked for."""
    settings = plan.config.dataset
    side = max(settings.bucket_step,
               settings.resolution // settings.bucket_step * settings.bucket_step)
    return max(plan.buckets, key=lambda size: size[0] * size[1], default=(side, side))


def encoded_sizes(plan: Plan) -> list[tuple[int, int]]:
    """(width, height) at which each picture is encoded: its bucket's, or what random crops are cut
    out of."""
    if not plan.config.dataset.random_crop or plan.dataset is None:
        return list(plan.buckets)
    return [buckets.cover(p.size, bucket, plan.family.latent_scale)
            for p, bucket in zip(plan.dataset.learned, plan.buckets, strict=True) if p.size]


def positions(plan: Plan, size: tuple[int, int]) -> int:
    """Of the latents of one picture."""
    return (size[0] // plan.family.latent_scale) * (size[1] // plan.family.latent_scale)


def _fullest(plan: Plan) -> int:
    return max(Counter(plan.presented).values(), default=GROUP)


def batch(plan: Plan) -> int:
    """Pictures that are computed at once, at most."""
    train = plan.config.train
    largest = min(train.batch_size, _fullest(plan)) if plan.buckets else train.batch_size
    return -(-largest // train.split)


def step_of(plan: Plan, device: str) -> holding.Step:
    run = plan.config
    return holding.Step(positions(plan, largest(plan)), batch(plan), is_half(run, device),
                        run.train.gradient_checkpointing, run.dataset.caption_chunks,
                        tuple(_packed_layers(plan)), run.train.fused_backward)


def _weights(plan: Plan, device: str, table: Table | None) -> Iterator[Item]:
    """The base by part. The autoencoder is held in fp32, but where it is safe in half."""
    if table is None:
        total: Counter[str] = Counter()
        for layer in plan.family.layers:
            total[layer.part] += elements(layer.shape)
        numbers = dict(total)
    else:
        numbers = {part: table.parameters(part) for part in table.parts}
    width = WIDTHS[base_dtype(plan.config, device)]
    saved = _packing(plan, width)
    waiting, largest = _waiting(plan, device)
    for part, count in numbers.items():
        away = waiting if part == next(iter(plan.family.prefixes)) else 0
        yield Item("weights", _weights_of(part),
                   round((count - away) * (4 if part == "vae" and not plan.family.half_vae
                                           else width) - saved[part]))
    if waiting:
        yield Item("temporary", "a swapped block's weights", round(largest * width))


def _weights_of(part: str) -> str:
    return f"{PARTS.get(part, part)} weights"


def _waiting(plan: Plan, device: str) -> tuple[int, int]:
    """(numbers of the blocks that wait in the computer's memory, those of the largest of them)"""
    if not swapping.happens(plan.config, device):
        return 0, 0
    part = next(iter(plan.family.prefixes))
    blocks = swapping.sizes(layer for layer in plan.family.layers if layer.part == part)
    found = [blocks[name] for name in swapping.chosen(blocks, plan.config.train.block_swap)]
    return sum(found), max(found, default=0)


def _packing(plan: Plan, width: float) -> Counter[str]:
    """{part: bytes that its linear layers in 8 or 4 bits take less than at that width}."""
    saved: Counter[str] = Counter()
    kind = plan.config.model.dtype
    for layer in _packed_layers(plan):
        saved[layer.part] += (elements(layer.shape) * (width - quantised.KINDS[kind])
                              - layer.shape[0] * quantised.ROW_SCALE[kind])
    return saved


def _packed_layers(plan: Plan) -> list[Layer]:
    """The base's layers in 8 or 4 bits."""
    if plan.config.model.dtype not in quantised.KINDS:
        return []
    return [layer for layer in plan.family.layers
            if layer.kind == "linear" and not quantised.KEPT.search(layer.name)]


def base_dtype(run: Config, device: str) -> str:
    """How the frozen weights are held, or those that are not packed."""
    if run.model.dtype in WIDTHS:
        return run.model.dtype
    if run.train.precision != "auto":
        return run.train.precision
    return "bf16" if device == "cuda" else "fp32"


def _adapter_bytes(assignments: Sequence[Assignment]) -> int:
    """fp32 masters, with what is frozen and what is derived from the base."""
    return sum(4 * (sum(map(elements, a.shapes().values()))
                    + elements(a.dora_shape() or (0,)) + a.has_scalar
                    + a.algorithm.constant_numbers(a.layer)) for a in assignments)


def _trained(assignment: Assignment) -> Iterator[Shape]:
    """The shape of each trained tensor."""
    for name, shape in assignment.shapes().items():
        if name not in assignment.algorithm.frozen:
            yield shape
    if (dora := assignment.dora_shape()) is not None:
        yield dora
    if assignment.has_scalar:
        yield (1,)


def _state_bytes(plan: Plan) -> int:
    name = plan.config.optimizer.name
    return round(sum(optimizers.state_bytes(name, shape)
                     for assignment in plan.assignments for shape in _trained(assignment)))


def _update_bytes(plan: Plan, device: str) -> int:
    """torch's optimisers take all tensors together on a GPU, and one after another on a CPU; in the
    backward pass one after another, each with its gradient and what of it is finite."""
    counts = [elements(shape) for assignment in plan.assignments
              for shape in _trained(assignment)]
    most = max(counts, default=0)
    if plan.config.train.fused_backward:
        return 4 * 4 * most
    return 4 * (sum(counts) if device == "cuda" else 2 * most)


def _cache(plan: Plan, device: str) -> Iterator[Item]:
    """Latents and what the captions became are kept in the memory of the process."""
    if device == "cuda" or plan.dataset is None:
        return
    settings = plan.config.dataset
    numbers = LATENT_CHANNELS + settings.masks  # of a position, in fp32
    latents = 4 * numbers * (1 + settings.flip) * sum(
        positions(plan, size) for size in encoded_sizes(plan))
    latents += 4 * LATENT_CHANNELS * sum(positions(plan, size) for size in plan.held_buckets)
    yield Item("cache", "latents of all pictures", latents)
    count, each = texts_kept(plan, device)
    if count:
        yield Item("cache", "what the captions became", count * each)


def texts_kept(plan: Plan, device: str) -> tuple[int, int]:
    """(how many captions are encoded once and kept, bytes of each); none where they vary from step
    to step, or a text encoder learns."""
    settings = plan.config.dataset
    if plan.dataset is None or wording.varies(settings) or any(
            a.layer.part.startswith("text_encoder") for a in plan.assignments):
        return 0, 0
    tokens = (plan.family.max_tokens + 2) * settings.caption_chunks
    return len({"", *(p.words for p in plan.dataset.readable)}), round(
        tokens * _text_width(plan) * WIDTHS[base_dtype(plan.config, device)])


def _text_width(plan: Plan) -> int:
    """Inputs of the layers that read the captions: the widest text encoder's."""
    return max((layer.inp for layer in plan.family.layers
                if layer.name.endswith("attn2.to_k")), default=0)


def _training(plan: Plan, device: str, table: Table) -> Iterator[Item]:
    step = step_of(plan, device)
    found = holding.backward(table, plan.assignments, step)
    yield Item("activations", "activations of the base", round(found.base))
    yield Item("activations", "activations of the adapter", round(found.adapters))
    yield Item("gradients", "gradients by then", round(found.gradients))
    yield Item("temporary", "at work in a step", round(found.passing))
    if step.half and base_dtype(plan.config, device) == "fp32":
        count = sum(table.parameters(part) for part in table.learning[:1])
        yield Item("temporary", "weights cast to half precision", 2 * count)
    if step.packed:  # for the gradient of its input, one after the other
        yield Item("temporary", "a layer out of its 8 or 4 bits",
                   4 * max(elements(layer.shape) for layer in step.packed))


def _spare(plan: Plan, table: Table) -> int:
    """What the heap keeps beside a step's tensors; an output in place of the frozen layer's fits
    where that was."""
    step = step_of(plan, "cpu")
    found = holding.backward(table, plan.assignments, step)
    return round(CPU_SPARE[step.checkpointing] * (found.total - found.outputs))


def _encoding(plan: Plan, table: Table, frugal: bool) -> int:
    """For the group of pictures that takes the most."""
    sizes = Counter((*encoded_sizes(plan), *plan.held_buckets)) or {largest(plan): GROUP}
    groups = ((size, 1 if frugal else max(1, min(GROUP, GROUP_PIXELS // (size[0] * size[1]), n)))
              for size, n in sizes.items())
    return round(max(group * at(table.parts["vae"]["encode"], positions(plan, size))
                     for size, group in groups))


def _validating(plan: Plan, device: str, table: Table) -> int:
    """A batch of what is held out, without gradients."""
    run = plan.config
    ran = table.run(table.learning[0], "half" if is_half(run, device) else "fp32")
    most = -(-run.train.batch_size // run.train.split)
    return round(max(min(most, count) * at(ran.no_gradient, positions(plan, size))
                     for size, count in Counter(plan.held_buckets).items()))


def _painting(plan: Plan, device: str, table: Table) -> int:
    """The denoiser for the largest picture, twice with guidance, or the autoencoder: one after the
    other. Painting has no autocast; its tensors are those of the base's own precision."""
    run = plan.config
    shared = sampling.settings_of(run.sample, run.dataset.resolution, plan.family.side_multiple)
    how = max((job.how(shared) for job in sampling.while_training(run.sample)),
              key=lambda each: each.width * each.height, default=shared)
    places = positions(plan, (how.width, how.height))
    mode = "fp32" if base_dtype(run, device) == "fp32" else "half"
    ran = table.run(table.learning[0], mode)
    denoised = at(ran.no_gradient, places) * (2 if how.guidance > 1 else 1)
    return round(max(denoised, at(table.parts["vae"]["decode"], places)))
