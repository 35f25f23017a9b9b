"""How long a run goes, its rate over it, and what is kept and painted on the way, in the words of
kohya's trainers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import promptfile, samplers, schedules, words
from .config import LEAVES

if TYPE_CHECKING:
    from .kohya import Reading

COURSE = ("lr_scheduler", "lr_warmup_steps", "max_train_steps", "max_train_epochs",
          "lr_decay_steps", "lr_scheduler_min_lr_ratio")
CHECKPOINTS = ("save_last_n_steps", "save_every_n_steps")
SAMPLER = ("sample_sampler",)
SAME_SCHEDULE = {"warmup_stable_decay": "wsd", "cosine_with_min_lr": "cosine"}
NOTHING = ("", "None", "none")


def schedule(said: Mapping[str, Any], found: Reading) -> None:
    name = str(said["lr_scheduler"] or "")
    plain = name.removesuffix("_with_warmup").lower()
    plain = SAME_SCHEDULE.get(plain, plain)
    if plain in schedules.SCHEDULES:
        found.settings["optimizer.schedule"] = plain
    elif name not in NOTHING:
        found.unknown.append(f"lr_scheduler={name}: known are {', '.join(schedules.SCHEDULES)}.")
    length(said, found)
    steps = words.number(found.settings.get("train.steps"))
    warmup = words.number(said["lr_warmup_steps"])
    if warmup and name.lower() == "constant":
        found.settings["optimizer.warmup"] = 0.0
        found.notes.append(f"lr_warmup_steps={warmup:g}: that trainer's constant takes no notice.")
    elif warmup is not None:
        share("lr_warmup_steps", warmup, steps, "optimizer.warmup", found)
    floor, decay = said["lr_scheduler_min_lr_ratio"], words.number(said["lr_decay_steps"])
    if plain == "wsd" and name.lower() != "wsd":
        found.notes.append(f"lr_scheduler={name}: it falls in a line here, in half a cosine there.")
    if decay:
        share("lr_decay_steps", decay, steps, "optimizer.decay", found)
    if floor is not None and name.lower() in SAME_SCHEDULE:
        found.take("optimizer.floor", floor, "lr_scheduler_min_lr_ratio")
    elif words.number(floor):
        found.unknown.append(f"lr_scheduler_min_lr_ratio={floor}: in that trainer only "
                             f"{' and '.join(SAME_SCHEDULE)} take notice.")


def length(said: Mapping[str, Any], found: Reading) -> None:
    """Epochs overrule steps there."""
    epochs = words.number(said["max_train_epochs"])
    if epochs:
        found.unknown.append(f"max_train_epochs={epochs:g}: a run is counted in steps here. Set "
                             f"train.steps to {epochs:g} times the steps of an epoch, which its "
                             "plan shows.")
        if words.number(said["max_train_steps"]):
            found.unknown.append(f"max_train_steps={said['max_train_steps']}: overruled by the "
                                 "epochs.")
    elif said["max_train_steps"] is not None:
        found.take("train.steps", said["max_train_steps"], "max_train_steps")


def share(name: str, count: float, steps: float | None, path: str, found: Reading) -> None:
    """Steps, or already a share of them, as a share."""
    if count >= 1 and not steps:
        found.unknown.append(f"{name}={count:g}: a share of the steps here, and how many there are "
                             "is not said.")
    else:
        most = LEAVES[path].knob.high or 1
        found.take(path, count if count < 1 else min(most, count / (steps or 1)), name)


def checkpoints(said: Mapping[str, Any], found: Reading) -> None:
    """There those of the last so many steps stay, and the one before them."""
    last, every = (words.number(said[name]) for name in ("save_last_n_steps",
                                                         "save_every_n_steps"))
    if said["save_every_n_steps"] is not None:
        found.take("train.checkpoint_every", said["save_every_n_steps"], "save_every_n_steps")
    if last is not None and every:
        found.take("train.keep_checkpoints", int(last // every) + 1, "save_last_n_steps")
    elif last:
        found.unknown.append(f"save_last_n_steps={last:g}: how often it saves is not said.")


def sampler(said: Mapping[str, Any], found: Reading) -> None:
    name = str(said["sample_sampler"] or "")
    ours = promptfile.SAMPLERS.get(name.lower())
    if ours and (lacking := samplers.problem(ours)):
        found.unknown.append(f"sample_sampler={name}: {lacking}")
    elif ours:
        found.settings["sample.sampler"] = ours
    elif name not in NOTHING:
        found.unknown.append(f"sample_sampler={name}: known are "
                             f"{', '.join(promptfile.SAMPLERS)}.")


# {names read together: how}
READERS = {COURSE: schedule, CHECKPOINTS: checkpoints, SAMPLER: sampler}
