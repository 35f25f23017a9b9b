"""Going on with a run under other settings: which may change, and what that means for its rate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from . import config, durable, knobs, schedules
from .errors import ConfigError
from .runs import History, RunFolder
from .settings import Config

RESUMABLE = ("train.steps", "train.checkpoint_every", "train.keep_checkpoints", "train.device",
             "train.precision", "train.gradient_checkpointing", "train.compile", "train.split",
             "train.retry_smaller", "train.offload", "train.block_swap", "train.fused_backward",
             "train.validate_every", "model.dtype", "model.vae_dtype", "optimizer.lr",
             "output.dtype", "sample.", "dataset.cache_limit", "dataset.cache_folder")


def refuse_others(paths: Iterable[str]) -> None:
    """ConfigError for settings with which it would be another run."""
    if other := [path for path in paths if not path.startswith(RESUMABLE)]:
        raise ConfigError({path: f"{path} cannot change within a run; start a new one"
                           for path in other})


def saved_step(history: History) -> int:
    """The step a run would go on from; 0 where nothing is saved."""
    return max((saved.step for saved in history.saves), default=0)


def extend(run: RunFolder, values: Mapping[str, Any]) -> Config:
    """Write other settings {path: value} into the run's config.toml, for when it goes on.

    ConfigError for what cannot change or leaves nothing to do, RunError where a process is at work.
    """
    refuse_others(values)
    before = config.load(run.config_file)
    after = config.load(run.config_file, values=values)
    step, total = saved_step(run.history()), after.train.steps
    if total < step or (total == step and step and after.output.model == "none"):
        raise ConfigError({"train.steps": f"train.steps is {total}, and {step} steps are done; "
                           f"give more than {step} to go on"})
    with run.locked():
        if after != before:
            durable.write_text(run.config_file, config.dump(after))
    return after


def course(run: Config, step: int, values: Mapping[str, Any]) -> str:
    """What happens to the learning rate and to exactness where the run goes on after `step` with
    those settings, in words."""
    after = knobs.replace(run, values)
    old, new, how = run.train.steps, after.train.steps, after.optimizer
    same_rate = run.optimizer.lr == how.lr
    if new == old and same_rate:
        return ("The learning rate goes on where it was: on a CPU the adapter ends with the "
                "tensors of a run that was never interrupted.")
    rate = how.lr * schedules.multiplier(how, min(step, new - 1), new)
    flat = how.schedule == "constant" and not how.warmup
    if flat and same_rate:
        return (f"The learning rate stays {rate:.3g}: on a CPU the adapter ends with the tensors "
                f"of a run that had {new:,} steps from its start.")
    last = max(0, min(step, old) - 1)
    before = run.optimizer.lr * schedules.multiplier(run.optimizer, last, old)
    stretched = "" if new == old or flat else (
        f" Warm-up and the schedule {how.schedule} are shares of all steps, so they now run to "
        f"step {new:,}.")
    return (f"The learning rate was {before:.3g} and goes on with {rate:.3g}.{stretched} The steps "
            "that are done stay as they were: it is not what a run with these settings from its "
            "start would give.")
