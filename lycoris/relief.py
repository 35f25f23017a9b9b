"""Which settings would help a run: to less memory, the cheapest to give up first; to finite
numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from . import families, knobs, optimizers, promptfile, quantised, swapping
from .memory import ENCODING, LOADING, MIB, PAINTING, TRAINING, base_dtype, is_half, predict
from .plan import Plan, buckets_of
from .settings import Config

LEAST = 0.005  # a setting that saves a smaller share of the peak is not worth naming


@dataclass(frozen=True)
class Saving:
    """One change of settings, {path: value}, and what it saves after those before it; `peak` is
    what is left."""

    values: Mapping[str, Any]
    text: str
    bytes: int
    peak: int


def savings(plan: Plan, device: str, *, free: int | None = None, correction: float = 1.0,
            ) -> tuple[list[Saving], int | None]:
    """Settings that would lower the peak, the cheapest to give up first, each on top of those
    before it; and how many of them it takes to fit `free` bytes: 0 where it fits as it is, None
    where all together do not do it."""
    def peak_of(one: Plan) -> int:
        return predict(one, device, correction=correction, frugal=True).peak

    now = peak_of(plan)
    whole = now
    found: list[Saving] = []
    enough = 0 if free is None or now <= free else None
    for make in CHANGES:
        change = make(plan, device)
        if change is None:
            continue
        values, text = change
        changed = changed_plan(plan, values)
        left = peak_of(changed)
        if now - left < LEAST * whole:
            continue
        found.append(Saving(values, text, now - left, left))
        plan, now = changed, left
        if enough is None and free is not None and now <= free:
            enough = len(found)
    return found, enough


def changed_plan(plan: Plan, values: Mapping[str, Any]) -> Plan:
    """The same plan under other settings, as far as memory is concerned."""
    run = knobs.replace(plan.config, dict(values))
    assignments, sizes = plan.assignments, plan.buckets
    if "network.text_encoder" in values and not run.network.text_encoder:
        assignments = tuple(a for a in assignments if not a.layer.part.startswith("text_encoder"))
    if "dataset.resolution" in values and plan.dataset is not None:
        sizes = buckets_of(run, plan.dataset.learned)
    return replace(plan, config=run, assignments=assignments, buckets=sizes)


Change = tuple[dict[str, Any], str] | None


def _checkpointing(plan: Plan, device: str) -> Change:
    if plan.config.train.gradient_checkpointing:
        return None
    return ({"train.gradient_checkpointing": True},
            "Gradient checkpointing: the same result, slower.")


def _offload(plan: Plan, device: str) -> Change:
    if plan.config.train.offload or device == "cpu":
        return None
    return {"train.offload": True}, "The base's parts that no step needs off the GPU."


def _half(plan: Plan, device: str) -> Change:
    run = plan.config
    if device == "cpu" or (base_dtype(run, device) != "fp32" and is_half(run, device)):
        return None
    return ({"train.precision": "auto", "model.dtype": "auto"},
            "The base in half precision, as the device has it.")


def _small_state(plan: Plan, device: str) -> Change:
    name = optimizers.smaller(plan.config.optimizer.name)
    return name and ({"optimizer.name": name, "optimizer.args": {}}, f"The optimiser {name}.")


def _small_batch(plan: Plan, device: str) -> Change:
    train = plan.config.train
    if train.batch_size <= train.split or train.fused_backward:
        return None
    return ({"train.split": train.batch_size},
            "Each batch one picture at a time: the same result, slower.")


def _swap(plan: Plan, device: str) -> Change:
    run, values = plan.config, {"train.gradient_checkpointing": True, "train.block_swap": 1.0}
    possible = not swapping.problems(knobs.replace(run, values))
    if device == "cpu" or run.train.block_swap == 1 or not possible:
        return None
    return values, ("The denoiser's blocks in the computer's memory, each on the GPU while it is "
                    "at work: the same result, slower.")


def _fused(plan: Plan, device: str) -> Change:
    values: dict[str, Any] = {"train.fused_backward": True}
    if plan.config.train.clip_norm:
        values["train.clip_norm"] = 0.0
    run = knobs.replace(plan.config, values)
    if plan.config.train.fused_backward or optimizers.problems(run):
        return None
    clipped = ", and so none is clipped" if len(values) > 1 else ": the same result"
    return values, f"Each parameter's step in the backward pass. No gradients are kept{clipped}."


def _no_text(plan: Plan, device: str) -> Change:
    if not any(a.layer.part.startswith("text_encoder") for a in plan.assignments):
        return None
    return {"network.text_encoder": False}, "The text encoder as it is: captions are read once."


def _packed(plan: Plan, device: str) -> Change:
    run = plan.config
    if run.model.dtype in quantised.KINDS or run.train.block_swap:
        return None
    return {"model.dtype": "nf4"}, ("The base's linear layers in 4 bits: slower, and what it "
                                    "paints changes a little.")


def _lower(plan: Plan, device: str) -> Change:
    side, step = plan.config.dataset.resolution, plan.config.dataset.bucket_step
    lower = max(step, round(side * 0.75) // step * step)
    if lower >= side:
        return None
    return {"dataset.resolution": lower}, f"Pictures at {lower} px: fine details are lost."


def _small_samples(plan: Plan, device: str) -> Change:
    sample = plan.config.sample
    if not (sample.every and promptfile.read(sample)):
        return None
    return {"sample.every": 0}, "No sample pictures while it trains; paint them afterwards."


CHANGES: tuple[Callable[[Plan, str], Change], ...] = (
    _offload, _checkpointing, _half, _small_state, _small_batch, _swap, _fused, _no_text,
    _small_samples, _packed, _lower)


def after_failure(plan: Plan, doing: str, device: str = "cuda") -> list[str]:
    """Settings that take less memory in what was being done, with what each saves by itself, the
    cheapest to give up first.

    What changes what the run is about needs a new one; the rest can be changed on resuming.
    """
    run, found = plan.config, []

    def offer(how: str, values: Mapping[str, Any], doing: str = doing) -> None:
        before, after = (predict(one, device, frugal=True).data()["phases"].get(doing, 0)
                         for one in (plan, changed_plan(plan, values)))
        saved = f" (about {(before - after) / MIB:,.0f} MiB less)" if before > after else ""
        found.append(f"{how} with {' and '.join(written(values))}{saved}")

    lower = _lower(plan, device)
    if doing == PAINTING:
        return ["resume with a lower sample.width and sample.height", "resume with sample.every=0"]
    if doing != ENCODING:
        if run.model.dtype != "auto" or run.train.precision == "fp32":
            offer("resume", {"train.precision": "auto", "model.dtype": "auto"})
        swap = _swap(plan, device)
        if doing == LOADING:
            if swap:
                offer("resume", swap[0], TRAINING)
            return [*found, "close other programs that use the device"]
        if not run.train.gradient_checkpointing:
            offer("resume", {"train.gradient_checkpointing": True}, TRAINING)
        if small := _small_batch(plan, device):
            offer("resume", small[0], TRAINING)
        if swap:
            offer("resume", swap[0], TRAINING)
        if (fused := _fused(plan, device)) and len(fused[0]) == 1:
            offer("resume", fused[0], TRAINING)
        if small := _small_state(plan, device):
            offer("start a new run", {"optimizer.name": small[0]["optimizer.name"]}, TRAINING)
    if lower:
        offer("start a new run", lower[0], ENCODING if doing == ENCODING else TRAINING)
    return found


def after_divergence(run: Config, precision: str, began: str | None) -> list[str]:
    """What may keep a run's numbers finite; `began` is what was not, as lycoris.blame calls it."""
    if began == "latents":
        half = families.open_chosen(run.model).half_vae
        return [*["resume with model.vae_dtype=fp32"] * half,
                "start a new run without these pictures", "with another base model: its "
                "autoencoder makes no finite latents of them"]
    lower = float(f"{run.optimizer.lr / 3:.2g}")
    found = [f"resume with a lower optimizer.lr, such as {lower:g}"]
    if precision == "fp16":
        found.append("resume with train.precision=bf16, whose numbers reach further, or fp32")
    elif precision == "bf16":
        found.append("resume with train.precision=fp32")
    if run.model.dtype == "fp16":
        found.append("resume with model.dtype=bf16 or fp32")
    if not run.train.clip_norm:
        found.append("start a new run with train.clip_norm=1")
    if not run.train.max_norm:
        found.append("start a new run with train.max_norm=1")
    return found


def same_result(run: Config, sharing: int = 1) -> dict[str, Any]:
    """The next change that saves memory in training and leaves its result the same, {path: value};
    none where all are made. So many processes share a batch."""
    train = run.train
    if not train.gradient_checkpointing:
        return {"train.gradient_checkpointing": True}
    if train.split < (own := train.batch_size // sharing) and not train.fused_backward:
        return {"train.split": min(2 * train.split, own)}
    swap = {"train.block_swap": 1.0}
    return {} if train.block_swap == 1 or swapping.problems(knobs.replace(run, swap)) else swap


def written(values: Mapping[str, Any]) -> list[str]:
    """As a command line takes them."""
    return [f"{path}={str(value).lower() if isinstance(value, bool) else value}"
            for path, value in values.items()]
