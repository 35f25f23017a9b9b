"""What settings follow from: the base model, for those it knows better than the defaults; and the
pictures, for what is painted where nobody has said it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from . import config, families, knobs, promptfile
from .config import LEAVES
from .data import wording
from .data.folder import Dataset
from .errors import LycorisError
from .families import Family
from .settings import Config, ModelConfig

STEP = 64  # px, of the sides of buckets, where the model does not ask for more
PROMPTS = "sample.prompts"
PAINTED = 2  # captions that are painted where no prompt is given
_SIGNS = re.compile(r"([()\[\]\\])")


def size_of(family: Family) -> dict[str, Any]:
    """{path: value} of the size of pictures a model was made for."""
    return {"dataset.resolution": family.resolution,
            "dataset.bucket_step": max(min(STEP, family.resolution), family.side_multiple)}


def recommended(run: Config) -> dict[str, Any]:
    """{path: value} that the base model wants in place of the defaults: what its own folder says,
    else the size it was made for and what its family wants. Raises ModelFileError where it cannot
    be opened."""
    said = config.base_settings(run.model.base, run.dataset.folder)
    if not said:
        family = families.open_chosen(run.model)
        return {**size_of(family), **family.defaults}
    return {path: knobs.coerce(LEAVES[path], value) for path, value in said.items()}


def moved(run: Config, left: str) -> dict[str, Any]:
    """{path: value} of what changes in a run whose base was `left` until now: all that still is as
    that one wanted it goes where the new one wants it. What a person has set stays.

    Raises ModelFileError where the new base cannot be opened.
    """
    try:
        old = recommended(replace(run, model=ModelConfig(base=left)))
    except LycorisError:  # it may be gone: the defaults were all there was
        old = {}
    new = recommended(replace(run, model=replace(run.model, family="auto")))
    return {path: wanted for path in {**old, **new}
            if knobs.get(run, path) == _wanted(old, path)
            and (wanted := _wanted(new, path)) != knobs.get(run, path)}


def _wanted(said: Mapping[str, Any], path: str) -> Any:
    return said.get(path, LEAVES[path].default)


def for_others(run: Config) -> dict[str, Any]:
    """{path: value} of what changes in a run that was given pictures of one's own: prompts that are
    about those its base comes with go, and captions are painted."""
    own = config.base_settings(run.model.base).get(PROMPTS)
    left = config.base_settings(run.model.base, run.dataset.folder).get(PROMPTS)
    return {PROMPTS: ()} if own and not left and run.sample.prompts == tuple(own) else {}


def with_prompts(run: Config, dataset: Dataset) -> Config:
    """The run with something to paint where nobody has said what: captions of its first pictures,
    for what they say is what it learns; without any its trigger words, or its folder's name."""
    if promptfile.read(run.sample):
        return run
    said = dict.fromkeys(_prompt(wording.plain(picture.words, run.dataset))
                         for picture in dataset.learned if not picture.prior)
    prompts = tuple(filter(None, said))[:PAINTED] or (
        _prompt(run.output.trigger.strip()) or config.find(run.dataset.folder).resolve().name,)
    return replace(run, sample=replace(run.sample, prompts=prompts))


def _prompt(caption: str) -> str:
    """A caption as a prompt: captions are taken literally, in a prompt brackets weigh; "--" begins
    options, and "#" a remark."""
    return _SIGNS.sub(r"\\\1", re.sub(r"(^|\s)--(?=[A-Za-z])", r"\1- ", caption).lstrip("# "))
