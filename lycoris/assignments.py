"""Which layer gets which algorithm at which size: decided once, from facts, for plan and
network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from . import algorithms, knobs, presets
from .algorithms import Algorithm, Cost, Layer, Problem, Shape, elements
from .config import LEAVES, RULE_KEYS
from .errors import ConfigError
from .families import Family, need_layers
from .presets import Preset, Selection
from .registry import pick
from .settings import NetworkConfig

Overrides = Mapping[tuple[str, str], Mapping[str, Any]]  # {(part, layer): what a preset says of it}


@dataclass(frozen=True)
class Extras:
    """What the shell adds to any algorithm; see adapter.Adapter."""

    dora: bool = False
    dora_on_output: bool = True
    dora_detach: bool = True
    use_scalar: bool = False
    dropout: float = 0.0
    rank_dropout: float = 0.0
    module_dropout: float = 0.0


class Assignment(NamedTuple):
    """One layer and the adapter it gets; `key` is how its tensors begin in a file. A tuple, since a
    thousand are made at every move of a slider.

    `rate` is a learning rate of its own; `source` is the name its tensors have in the file they are
    read from, where that is another than the key.
    """

    layer: Layer
    key: str
    algorithm: Algorithm
    extras: Extras = Extras()
    rate: float | None = None
    source: str = ""

    def shapes(self) -> Mapping[str, Shape]:
        """{tensor: shape} of the algorithm's own tensors, as in the file if it came from one."""
        if self.algorithm.fixed is not None:
            return self.algorithm.fixed
        return self.algorithm.shapes(self.layer)

    def dora_shape(self) -> Shape | None:
        """(o, 1, ..) on the output, (1, i, 1, ..) on the input; None without DoRA."""
        if not self.extras.dora or self.layer.kind == "norm":
            return None
        ones = (1,) * len(self.layer.kernel)
        return ((self.layer.out, 1, *ones) if self.extras.dora_on_output
                else (1, self.layer.inp, *ones))

    @property
    def has_scalar(self) -> bool:
        return self.extras.use_scalar and bool(self.algorithm.fold) and self.algorithm.scaled

    @property
    def cost(self) -> Cost:
        return self.algorithm.cost(self.layer)

    def parameters(self) -> int:
        """Trained numbers."""
        shapes = [shape for name, shape in self.shapes().items()
                  if name not in self.algorithm.frozen]
        if (dora := self.dora_shape()) is not None:
            shapes.append(dora)
        return sum(map(elements, shapes)) + self.has_scalar

    def suffix_shapes(self) -> dict[str, Shape]:
        """{suffix: shape} of the layer's tensors in the file."""
        named = self.algorithm.file_shapes(self.shapes())
        if self.algorithm.file_alpha(self.layer) is not None:
            named["alpha"] = ()
        if (dora := self.dora_shape()) is not None:
            named["dora_scale"] = dora
        return named

    def file_shapes(self) -> dict[str, Shape]:
        """{key: shape} of the layer's tensors in the file."""
        return {f"{self.key}.{suffix}": shape for suffix, shape in self.suffix_shapes().items()}


@dataclass(frozen=True)
class Rule:
    """What one entry of network.rules, or a preset, says of the layers it matches."""

    exclude: bool = False
    algo: str | None = None
    dim: int | None = None
    alpha: float | None = None
    lr: float | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Assigner:
    """Makes algorithms from the network's settings and its rules, each combination once."""

    def __init__(self, network: NetworkConfig, overrides: Overrides | None = None):
        self.network = network
        self.extras = Extras(
            dora=network.dora_wd, dora_on_output=network.wd_on_output,
            dora_detach=network.dora_detach, use_scalar=network.use_scalar,
            dropout=network.dropout, rank_dropout=network.rank_dropout,
            module_dropout=network.module_dropout)
        self.rules = read_rules(network.rules)
        self.overrides = overrides or {}
        self.plain = Rule()
        self.norm: Algorithm | None = (
            algorithms.all_entries()["norm"]() if network.train_norm else None)
        self._made: dict[tuple[int, bool], Algorithm | None] = {}
        self._said: dict[tuple, Rule] = {}  # kept, since _made knows rules by their identity

    def rule(self, layer: Layer) -> Rule:
        """The first rule that matches, else what the preset says, else none."""
        for pattern, rule in self.rules:
            if fits(pattern, layer):
                return rule
        said = self.overrides.get((layer.part, layer.name))
        return self.plain if said is None else self._preset_rule(said)

    def _preset_rule(self, said: Mapping[str, Any]) -> Rule:
        """A preset's word on a layer; options of another algorithm than the layer's do not count.
        """
        algo = str(said.get("algo") or self.network.algo)
        own = knobs.leaves(pick(algorithms.catalogue(), algo, "network.preset").Options)
        key = (algo, *sorted((str(k), repr(v)) for k, v in said.items()))
        if key not in self._said:
            self._said[key] = Rule(
                algo=said.get("algo"), dim=said.get("dim"), alpha=said.get("alpha"),
                options={name: value for name, value in said.items() if name in own})
        return self._said[key]

    def algorithm(self, layer: Layer, rule: Rule) -> Algorithm | None:
        """None for a layer that is left alone."""
        if layer.kind == "norm":
            return self.norm
        key = (id(rule), layer.is_spatial)
        if key not in self._made:
            self._made[key] = self._make(rule, layer.is_spatial)
        made = self._made[key]
        return made if made is not None and layer.kind in made.kinds else None

    def decide(self, layer: Layer, rule: Rule) -> tuple[Algorithm | None, bool]:
        """(the layer's algorithm or None, is it possible there?)."""
        algorithm = None if rule.exclude else self.algorithm(layer, rule)
        return algorithm, algorithm is None or self._problem(algorithm, [layer]) is None

    def _problem(self, algorithm: Algorithm, layers: Sequence[Layer]) -> Problem | None:
        if algorithm.timed and self.extras.dora:
            return Problem(f"{algorithm.label} has another change at each timestep, so DoRA has no "
                           "one weight to measure; turn DoRA off", "dora_wd")
        return algorithm.problem(layers)

    def why(self, impossible: Sequence[tuple[Algorithm, Rule, Layer]]) -> dict[str, str]:
        """{setting: what is wrong with it}, all layers that have their dim from there taken
        together, so that what it tells to do serves them all."""
        groups: dict[tuple, list[tuple[Algorithm, Layer]]] = {}
        for algorithm, rule, layer in impossible:
            key = self._source(rule, layer), type(algorithm), algorithm.dim
            groups.setdefault(key, []).append((algorithm, layer))
        found: dict[str, str] = {}
        for (source, *_), alike in groups.items():
            algorithm, layer = alike[0]
            problem = self._problem(algorithm, [other for _, other in alike])
            assert problem is not None, "it has just been impossible"
            path, text = f"network.{problem.setting}", problem.text
            if problem.setting == "dim":
                path, own = source, source in ("network.dim", "network.conv_dim")
                text = f"{path if own else f'dim of {layer.name}'} is {algorithm.dim}: {text}"
            found.setdefault(path, text)
        return found

    def _source(self, rule: Rule, layer: Layer) -> str:
        """The setting that a layer's dim comes from."""
        if rule.dim is not None:
            return "network.rules" if any(rule is own for _, own in self.rules) else (
                "network.preset")
        spatial = layer.is_spatial and self.network.conv_dim is not None
        return "network.conv_dim" if spatial else "network.dim"

    def _make(self, rule: Rule, spatial: bool) -> Algorithm | None:
        network = self.network
        dim, alpha = network.dim, network.alpha
        if spatial:
            dim = dim if network.conv_dim is None else network.conv_dim
            alpha = alpha if network.conv_alpha is None else network.conv_alpha
        if rule.dim is not None:  # the strength at the start stays what it is elsewhere
            dim, alpha = rule.dim, alpha * rule.dim / dim if dim else float(rule.dim)
        alpha = alpha if rule.alpha is None else rule.alpha
        if not dim:
            return None
        algo = rule.algo or network.algo
        kind = pick(algorithms.catalogue(), algo, "network.algo")
        if network.init not in kind.starts and rule.algo is None:
            raise ConfigError({"network.init": f"{kind.label} has no start {network.init}; it has "
                                               f"{', '.join(kind.starts)}"})
        start = network.init if network.init in kind.starts else "default"
        if start == "pissa" and network.use_scalar:
            raise ConfigError({"network.use_scalar": "with PiSSA nothing would move: the scalar "
                               "starts at 0 and so does the change. Turn one of them off"})
        shared = network.options if rule.algo in (None, network.algo) else {}
        options = algorithms.read_options(algo, {**shared, **rule.options})
        return kind(dim, alpha, options, network.rs_lora, start)


def fits(pattern: str, layer: Layer) -> bool:
    """Is a rule of this pattern for the layer? By its name, with or without its part."""
    full = f"{layer.part}.{layer.name}"
    return fnmatchcase(layer.name, pattern) or fnmatchcase(full, pattern)


def read_rules(rules: Sequence[Mapping[str, Any]]) -> list[tuple[str, Rule]]:
    """[(pattern, rule)]; ConfigError lists every entry that means nothing."""
    problems: dict[str, str] = {}
    found = []
    for number, entry in enumerate(rules, 1):
        where = f"network.rules {number}"
        values: dict[str, Any] = {}
        for name, value in entry.items():
            if name not in RULE_KEYS:
                problems[f"{where} {name}"] = (
                    f"rule {number}: there is no {name} in a rule." + (
                        knobs.nearest(name, tuple(RULE_KEYS))
                        or f" It has {', '.join(RULE_KEYS)}."))
                continue
            leaf = LEAVES.get(RULE_KEYS[name])
            try:
                if leaf is None:
                    kind = bool if name == "exclude" else str
                    if not isinstance(value, kind):
                        raise ValueError(f"is {value!r}")
                values[name] = value if leaf is None else knobs.coerce(leaf, value)
            except ValueError as error:
                problems[f"{where} {name}"] = f"rule {number}: {name} {error}"
        if not isinstance(values.get("match"), str) or not values["match"]:
            problems[f"{where} match"] = (f"rule {number} says no match: the pattern of the layers "
                                          'it is for, e.g. match = "*attn2*"')
        else:
            found.append((values.pop("match"), Rule(**values)))
    if problems:
        raise ConfigError({"network.rules": "; ".join(problems.values())})
    return found


def assign(layers: Iterable[Layer], network: NetworkConfig, key: Callable[[Layer], str],
           overrides: Overrides | None = None) -> list[Assignment]:
    """Each of the given layers with its adapter; norms only with train_norm.

    Convolutions larger than 1x1 follow conv_dim and conv_alpha; conv_dim 0 leaves them out. Raises
    ConfigError where the algorithm is impossible on a layer.
    """
    assigner = Assigner(network, overrides)
    alike = not (assigner.rules or assigner.overrides)
    rule, extras = assigner.plain, assigner.extras
    decided: dict[tuple[int, int], tuple[Algorithm | None, bool]] = {}  # by rule and form
    found: list[Assignment] = []
    impossible: list[tuple[Algorithm, Rule, Layer]] = []
    for layer in layers:
        if not alike:
            rule = assigner.rule(layer)
        place = id(rule), layer.form
        if (decision := decided.get(place)) is None:
            decision = decided[place] = assigner.decide(layer, rule)
        algorithm, possible = decision
        if algorithm is None:
            continue
        if not possible:
            impossible.append((algorithm, rule, layer))
            continue
        found.append(Assignment(layer, key(layer), algorithm, extras, rule.lr))
    if impossible:
        raise ConfigError(assigner.why(impossible))
    return found


def assign_family(family: Family, network: NetworkConfig) -> list[Assignment]:
    """The assignments a run on this base model trains; ConfigError where nothing would be."""
    chosen = select(family, network)
    found = assign(chosen.layers, network, family.key, chosen.overrides)
    need_layers(found, network.preset)
    return found


# {an opened base model: {(are text encoders to learn?, preset): what that takes}}
_SELECTED: WeakKeyDictionary[Family, dict[tuple[bool, Preset], Selection]] = WeakKeyDictionary()


def select(family: Family, network: NetworkConfig) -> Selection:
    """What the preset takes of the parts that are to learn."""
    kind, kept = type(family), _SELECTED.setdefault(family, {})
    key = network.text_encoder, presets.find(network.preset, kind)
    if key not in kept:
        layers = tuple(layer for layer in family.layers
                       if network.text_encoder or not layer.part.startswith("text_encoder"))
        kept[key] = presets.select(kind, layers, key[1])
    return kept[key]
