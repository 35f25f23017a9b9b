"""Which settings make a file of a wanted size.

    match    another algorithm at the size of this one
    budget   every algorithm's largest file under a limit
    curves   how size grows with dim

Searches turn three knobs, and go on to the next only where the one before does not come near: the
dim (alpha keeps its ratio to it), the algorithm's own settings, a preset with more or with fewer of
the same layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from . import algorithms, config, knobs, plan, units, weigher
from .assignments import select
from .data import folder
from .data.folder import Dataset
from .errors import ConfigError, LycorisError
from .families import Family
from .guideline import Column
from .plan import Plan
from .registry import pick
from .settings import Config, NetworkConfig
from .sizes import with_dim
from .weigher import Weight

CLOSE = 0.02  # of the wanted size: near enough to look no further
FAR = 0.1  # of the wanted size: another preset is tried, and it is told
MOST = 512  # the largest dim that is tried: beyond, an adapter holds more than it changes
DIMS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)

Sizings = Callable[[Mapping[str, Any]], bool]


@dataclass(frozen=True)
class Match:
    """The settings whose file comes closest to `wanted` bytes; `changed` beside the ones given.

    Both sizes are without metadata.
    """

    run: Config
    wanted: int
    file_bytes: int
    changed: Mapping[str, Any]

    @property
    def off(self) -> float:
        """How much larger it is than wanted, as a share; negative where it is smaller."""
        return self.file_bytes / self.wanted - 1

    @property
    def far(self) -> bool:
        return abs(self.off) > FAR

    @property
    def text(self) -> str:
        return f"{self.said(self.file_bytes, self.wanted)} Both without metadata."

    def said(self, found: int, wanted: int) -> str:
        """What came of it, in a sentence, with the two sizes as the one who asked counts them."""
        label = algorithms.catalogue()[self.run.network.algo].label
        aim = f"the {units.size(wanted)} that were wanted"
        if self.far:
            times = max(found, wanted) / min(found, wanted)
            return (f"{label} comes no closer than {units.size(found)} to {aim}: {times:.3g} times "
                    f"{'as large' if found > wanted else 'smaller'}.")
        said = f"{label} with {in_words(self.changed, self.run.network.algo)}: {units.size(found)}"
        if found == wanted:
            return f"{said}, as was wanted."
        off = found / wanted - 1
        return f"{said}, {abs(off):.1%} {'more' if off > 0 else 'less'} than {aim}."


@dataclass(frozen=True)
class Fit:
    """An algorithm's largest file under a limit, metadata included; where nothing fits, its
    smallest, and `problem` says so. `run` is None where it is impossible at any size; `plan` is
    that run's. `note` says what keeps a larger one from being tried."""

    algo: str
    run: Config | None
    problem: str = ""
    note: str = ""
    plan: Plan | None = None
    changed: Mapping[str, Any] = field(default_factory=dict)
    parameters: int = 0
    file_bytes: int = 0
    training_bytes: int = 0
    column: Column | None = None

    @property
    def label(self) -> str:
        return algorithms.catalogue()[self.algo].label

    @property
    def rating(self) -> str:
        """Which column of the guideline's table counts."""
        if self.column is not None:
            return f"{self.column.label}" + (f"; {self.column.note}" if self.column.note else "")
        return "between low and high factor: not rated" if algorithms.catalogue()[
            self.algo].guide.columns else "not rated"

    def data(self) -> dict[str, Any]:
        return {"algo": self.algo, "label": self.label, "changed": dict(self.changed),
                "problem": self.problem, "note": self.note, "parameters": self.parameters,
                "file_bytes": self.file_bytes, "training_bytes": self.training_bytes,
                "rating": self.rating,
                "ratings": dict(self.column.ratings) if self.column else None}


@dataclass(frozen=True)
class Point:
    """File size at one dim, without metadata."""

    dim: int
    file_bytes: int
    parameters: int


def match(run: Config, algo: str, family: Family, target: int | None = None,
          only: Sizings | None = None, presets: bool = True) -> Match:
    """The same run with another algorithm, as close as can be to `target` bytes of file without
    metadata; by default the run's own.

    `only` says which of the algorithm's own settings may be taken; without `presets` the layers
    stay the same. ConfigError where the algorithm is impossible on this model, or the run is.
    """
    search = Search(run, family)
    if target is None:
        target = search.weigh(run.network).file_bytes
    start = plan.switched(run.network, algo)
    found = search.best(start, Aim(target, lambda size: abs(size - target), FAR, presets, only))
    if found is None:
        search.weigh(start)  # says why
        raise ConfigError({"network.algo": (
            f"{algorithms.catalogue()[algo].label} has no settings that would do here")})
    network, weight = found
    matched = replace(run, network=network)
    return Match(matched, target, weight.file_bytes, changes(run, matched))


def budget(run: Config, family: Family, limit: int,
           dataset: Dataset | None = None) -> list[Fit]:
    """Each algorithm's best configuration under `limit` bytes, metadata included.

    `dataset` may be given by a caller that has it open: its captions are in the metadata.
    """
    if limit <= 0:
        raise ConfigError({"": f"a budget of {limit} bytes holds no file; give e.g. 40MiB"})
    if dataset is None:
        try:
            dataset = folder.scan(config.find(run.dataset.folder))
        except LycorisError:
            dataset = None
    search, extra, fits = Search(run, family), 0, []
    for algo in algorithms.catalogue():
        fit, extra = _fit(search, algo, limit, extra, dataset)
        fits.append(fit)
    return fits


def curves(run: Config, family: Family) -> dict[str, list[Point]]:
    """{algorithm: its sizes over dim} with the run's other settings; what is impossible is left
    out, and what has no dim has the same size at both ends."""
    search, found = Search(run, family), {}
    for algo, entry in algorithms.catalogue().items():
        start = plan.switched(run.network, algo)
        dims = sorted({*DIMS, run.network.dim}) if entry.has_dim else (DIMS[0], DIMS[-1])
        weighed = [(dim, search.possible(with_dim(start, dim))) for dim in dims]
        found[algo] = [Point(dim, weight.file_bytes, weight.parameters)
                       for dim, weight in weighed if weight is not None]
    return found


def column_of(network: NetworkConfig, family: Family) -> Column | None:
    """The column of the guideline's table that counts for these settings; None: not rated."""
    entry = pick(algorithms.catalogue(), network.algo, "network.algo")
    widths = [layer.out for layer in select(family, network).layers if layer.kind != "norm"]
    return entry.guide.column(network.options, widths)


def changes(before: Config, after: Config) -> dict[str, Any]:
    """{path: value} of `after` where it differs from `before`."""
    return {path: knobs.get(after, path) for path in config.LEAVES
            if knobs.get(after, path) != knobs.get(before, path)}


def in_words(changed: Mapping[str, Any], algo: str) -> str:
    """ "dim 8, alpha 4, factor 16": what that algorithm uses of the changes."""
    entry = algorithms.catalogue()[algo]
    unused = {"network.algo"}
    if not entry.scaled:
        unused |= {"network.alpha", "network.conv_alpha"}
    if not entry.has_dim:
        unused |= {"network.dim", "network.conv_dim"}
    own, said = knobs.leaves(entry.Options), []
    for path, value in changed.items():
        if path == "network.options":
            said += [own[name].label.lower() + ("" if each is True else f" {short(each)}")
                     for name, each in value.items()
                     if name in own and each != own[name].default]
        elif path not in unused:
            said.append(f"{config.LEAVES[path].label.lower()} {short(value)}")
    return ", ".join(said) or "the same settings"


def beside(family: Family, network: NetworkConfig) -> list[tuple[str, int]]:
    """(preset, layers more) of the family's presets that take more, or fewer, of the same layers;
    first those of the same parts, then the nearest. Of those with settings for single layers only
    the one that was made for the algorithm counts."""
    now = select(family, network)
    here = {layer for layer in now.layers if layer.kind != "norm"}
    own = algorithms.catalogue()[network.algo].guide.preset
    found = []
    for name in type(family).presets:
        try:
            chosen = select(family, replace(network, preset=name))
        except ConfigError:
            continue
        there = {layer for layer in chosen.layers if layer.kind != "norm"}
        if (there < here or there > here) and (not chosen.overrides or name == own):
            same_parts = chosen.counts.keys() == now.counts.keys()
            found.append((not same_parts, abs(len(there) - len(here)), name,
                          len(there) - len(here)))
    return [(name, more) for *_, name, more in sorted(found)]


@dataclass(frozen=True)
class Aim:
    """A wanted size: the `loss` of a file's bytes is least at the best, infinite where it will not
    do. Other `presets` are tried where the loss is above `far`, a share of the target. `only` says
    which of the algorithm's own settings may be taken."""

    target: int
    loss: Callable[[int], float]
    far: float = math.inf
    presets: bool = True
    only: Sizings | None = None


class Search:
    """Networks on one base."""

    def __init__(self, run: Config, family: Family):
        self.run, self.family = run, family

    def weigh(self, network: NetworkConfig) -> Weight:
        """ConfigError where the network is impossible."""
        return weigher.of(self.family, network).weigh(network, self.run.output.dtype)

    def possible(self, network: NetworkConfig) -> Weight | None:
        try:
            return self.weigh(network)
        except ConfigError:
            return None

    def best(self, start: NetworkConfig, aim: Aim) -> tuple[NetworkConfig, Weight] | None:
        """The network with the least loss, its layers changed only where it must be far else."""
        own = self._sizings(start, aim)
        found = self._least(own, aim)
        if aim.presets and (found is None or found[0] > aim.far * aim.target):
            other = self._least(self._elsewhere(own), aim)
            if other and (found is None or other[0] <= aim.far * aim.target):
                found = other
        return found and found[1:]

    def smallest(self, start: NetworkConfig) -> tuple[NetworkConfig, Weight] | None:
        """The least file of all."""
        aim = Aim(1, float)
        own = self._sizings(start, aim)
        found = self._least([*own, *self._elsewhere(own)], aim)
        return found and found[1:]

    def _least(self, networks: Iterable[NetworkConfig],
               aim: Aim) -> tuple[float, NetworkConfig, Weight] | None:
        """(loss, network, weight); the first one that is CLOSE ends the search."""
        found: tuple[float, NetworkConfig, Weight] | None = None
        for network in networks:
            for each, weight in self._around(network, aim.target):
                loss = aim.loss(weight.file_bytes)
                if loss < (math.inf if found is None else found[0]):
                    found = loss, each, weight
            if found and found[0] <= CLOSE * aim.target:
                break
        return found

    def _sizings(self, start: NetworkConfig, aim: Aim) -> list[NetworkConfig]:
        entry = algorithms.catalogue()[start.algo]
        return [replace(start, options=dict(options)) for options in entry.sizings(start.options)
                if aim.only is None or aim.only(options)]

    def _elsewhere(self, networks: Sequence[NetworkConfig]) -> list[NetworkConfig]:
        """The same on more layers and on fewer."""
        return [replace(network, preset=name)
                for name, _ in (beside(self.family, networks[0]) if networks else ())
                for network in networks]

    def _around(self, network: NetworkConfig, target: int,
                ) -> Iterator[tuple[NetworkConfig, Weight]]:
        """The network at the dims whose files lie around the target."""
        dims = algorithms.catalogue()[network.algo].dims(network.dim, network.options)
        if dims is None:
            dims = self._crossing(network, target)
        for dim in dims:
            each = with_dim(network, dim)
            if (weight := self.possible(each)) is not None:
                yield each, weight

    def _crossing(self, network: NetworkConfig, target: int) -> list[int]:
        """The dims to both sides of the target; what is impossible counts as too large."""
        def below(dim: int) -> bool:
            weight = self.possible(with_dim(network, dim))
            return weight is not None and weight.file_bytes < target

        low, high = 1, 1
        while high < MOST and below(high):
            low, high = high, min(MOST, high * 2)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if below(middle) else (low, middle)
        return sorted({low, high})


def _fit(search: Search, algo: str, limit: int, extra: int,
         dataset: Dataset | None) -> tuple[Fit, int]:
    """(the fit, what its metadata takes); `extra` is what another algorithm's did."""
    run, family = search.run, search.family
    start = plan.switched(run.network, algo)
    while True:
        room = limit - extra

        def loss(size: int, room: int = room) -> float:
            return room - size if size <= room else math.inf

        found = search.best(start, Aim(max(1, room), loss))
        fits = found is not None
        found = found or search.smallest(start)
        if found is None:
            return Fit(algo, None, _why(search, start)), extra
        made = plan.make(replace(run, network=found[0]), family=family, dataset=dataset,
                         need_dataset=False)
        whole = made.sizes.file_bytes_with_metadata
        extra = whole - made.sizes.file_bytes
        if not fits or whole <= limit:
            break
    problem = "" if whole <= limit else f"nothing fits: its smallest file is {units.size(whole)}"
    widths = [a.layer.out for a in made.assignments if a.layer.kind != "norm"]
    column = algorithms.catalogue()[algo].guide.column(found[0].options, widths)
    after = replace(run, network=found[0])
    return Fit(algo, after, problem, _ended(found[0]), made, changes(run, after),
               made.sizes.parameters, whole, made.training_bytes, column), extra


def _ended(network: NetworkConfig) -> str:
    """What is told where the largest dim that is tried is no limit of the algorithm's own."""
    free = algorithms.catalogue()[network.algo].dims(network.dim, network.options) is None
    return f"no dim above {MOST} is tried" if free and network.dim == MOST else ""


def _why(search: Search, network: NetworkConfig) -> str:
    try:
        search.weigh(network)
    except ConfigError as error:
        return str(error)
    return "its settings leave nothing to choose from"


def short(value: Any) -> str:
    """A value as a person writes it: no 1e+06 for a million."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:g}" if abs(value) < 1e6 else f"{value:.0f}"
