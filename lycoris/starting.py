"""Going on from an adapter: a new run whose adapters begin as the tensors of a file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from . import adapterfile, contestants
from .adapterfile import AdapterFile
from .assignments import Assignment
from .errors import AdapterError, ConfigError
from .families import Family
from .settings import Config

FIELD = "network.weights"


def file_of(run: Config) -> AdapterFile | None:
    """The adapter the run starts from; None where it starts at no change. ConfigError where there
    is no such adapter."""
    text = run.network.weights.strip()
    if not text:
        return None
    try:
        taker = contestants.parse(text, Path(run.output.folder).expanduser())
        if taker.path is None or taker.weight != 1.0:
            raise ConfigError({FIELD: f"{FIELD} is {text!r}; give a run or an adapter file, "
                               "without a weight"})
        return AdapterFile(taker.path)
    except AdapterError as error:
        raise ConfigError({FIELD: f"{FIELD}: {error.message}"}, error.fix) from None


def placed(run: Config, family: Family,
           assignments: Sequence[Assignment]) -> tuple[Assignment, ...]:
    """The run's assignments, each with the name of the file's tensors that it starts from.

    ConfigError where the file is not the same network: a layer too many or too few, another shape,
    another scale.
    """
    file = file_of(run)
    if file is None:
        return tuple(assignments)
    if run.network.init != "default":
        raise ConfigError({"network.init": f"network.init is {run.network.init}, but the start "
                           "comes from network.weights; set it to default"})
    try:
        match = adapterfile.match(file, family.layers, family.aliases, family.called)
    except AdapterError as error:
        raise ConfigError({FIELD: f"{FIELD}: {error.message}"}, error.fix) from None
    names = {found.key: found.source for found in match.assignments}
    found = tuple(each._replace(source=names.get(each.key, "")) for each in assignments)
    missing = [each.key for each in found if not each.source]
    other = [each.key for each in found if each.source and not file.fits(each.source, each)]
    extra = sorted(names.keys() - {each.key for each in found})
    said = [f"{len(keys)} {what}, the first is {keys[0]}" for keys, what in (
        (missing, "layers are not in the file"), (other, "layers have another shape there"),
        (extra, "layers of the file are not trained here")) if keys]
    if not said:
        said = _scales(file, found)
    if said:
        raise ConfigError({FIELD: f"{file.path.name} does not fit these settings: "
                           + "; ".join(said) + f". It holds {contestants.summary(file)} in "
                           f"{len(file.shapes)} layers. Take its algorithm, dim, alpha and layers, "
                           "or leave network.weights empty."})
    return found


def _scales(file: AdapterFile, assignments: Sequence[Assignment]) -> list[str]:
    """A change is scaled by alpha: another one would make another change of the same tensors."""
    for each in assignments:
        ours = each.algorithm.file_alpha(each.layer)
        said = file.group(each.source).get("alpha")
        theirs = float(each.algorithm.dim) if said is None else said.item()  # none: a scale of 1
        if ours is not None and not math.isclose(ours, theirs, rel_tol=2e-3):
            return [f"its alpha is {theirs:g} and here it is {ours:g}, e.g. in {each.key}"]
    return []
