"""What one training step holds for its backward pass, for any choice of layers and algorithms.

From a base model's table and the assignments alone: the frozen model saves from the first adapted
layer on, every adapted layer saves its input and what its algorithm keeps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from .adapter import cost_of, takes_aside
from .algorithms import Layer, elements
from .assignments import Assignment
from .footprint import TEXT_LEVEL, Line, Pass, Spot, Table, at

DENSE = 5  # full-size matrices in use at once where dW is built, its gradient among them


@dataclass(frozen=True)
class Step:
    """How a step is computed: `positions` of the latents of one picture, `half` under autocast.
    Captions are `chunks` times as long as the trace's; `packed` are the base's linear layers in 8
    or 4 bits; `fused`: each parameter's gradient goes as soon as it is there."""

    positions: int
    batch: int
    half: bool
    checkpointing: bool
    chunks: int = 1
    packed: tuple[Layer, ...] = ()
    fused: bool = False

    @property
    def width(self) -> int:
        """Bytes of a number in the forward pass."""
        return 2 if self.half else 4


@dataclass(frozen=True)
class Held:
    """What one adapted layer holds: `saved` bytes besides the frozen model's, `gradient` bytes
    once its backward pass is done, `passing` while that runs. `output` of what is saved takes the
    place of the frozen layer's output."""

    spot: Spot
    saved: float
    gradient: float
    passing: float
    output: float = 0.0


@dataclass(frozen=True)
class Backward:
    """`base` and `adapters`: bytes saved at the end of the forward pass, of the frozen model and
    of the adapters, as far as they are there at the highest moment; `gradients` and `passing`: of
    that moment. `outputs` of the adapters' are outputs of their layers."""

    base: float
    adapters: float
    gradients: float
    passing: float
    outputs: float = 0.0

    @property
    def total(self) -> float:
        return self.base + self.adapters + self.gradients + self.passing


def backward(table: Table, assignments: Sequence[Assignment], step: Step) -> Backward:
    """The highest moment of forward and backward pass over all parts."""
    return max(moments(table, assignments, step), key=lambda each: each.total)


def moments(table: Table, assignments: Sequence[Assignment], step: Step) -> list[Backward]:
    """The end of the forward pass, then moments of the backward pass over all parts."""
    mode = "half" if step.half else "fp32"
    groups: dict[str, list[Assignment]] = {}
    for assignment in assignments:
        groups.setdefault(assignment.layer.part, []).append(assignment)
    denoiser, *texts = table.learning
    learning = [part for part in texts if part in groups]
    runs = []
    for part in (*learning, denoiser):  # in the order of the forward pass
        ran, own = table.run(part, mode), step
        if part == denoiser:
            ran = _reading(ran, step.chunks)
        else:  # each chunk is a text of its own
            own = replace(step, batch=step.batch * step.chunks)
        ran = _packed(ran, [layer for layer in step.packed if layer.part == part], step)
        held = held_by(ran, groups.get(part, ()), own)
        start = _start(ran, held, own, bool(learning) and part == denoiser)
        runs.append((ran, held, start, own))
    found: list[Backward] = []
    base = adapters = outputs = 0.0
    for place, run in enumerate(runs):
        later = sum(each.gradient for _, held, *_ in runs[place + 1:] for each in held)
        own = _moments(*run)
        found = [*(replace(each, base=each.base + base, adapters=each.adapters + adapters,
                           gradients=each.gradients + later, outputs=each.outputs + outputs)
                   for each in own), *found]
        base, adapters = base + own[0].base, adapters + own[0].adapters
        outputs += own[0].outputs
    return found


def _reading(ran: Pass, chunks: int) -> Pass:
    """The denoiser's pass with captions so many times as long. Of them it keeps keys and values:
    all that grows from the layers that read the text to the one after them and has nothing to do
    with the picture's size."""
    if chunks == 1:
        return ran
    more: dict[str, Line] = {}
    spots = dict(ran.spots)
    began: float | None = None
    last = ""
    for name, spot in ran.spots.items():
        if _reads_text(spot):
            began = spot.before[0] if began is None else began
            spots[name] = replace(spot, positions=(spot.positions[0] * chunks, 0.0),
                                  fed=(spot.fed[0] * chunks, 0.0))
        elif began is not None:
            more[last] = ((spot.before[0] - began) * (chunks - 1), 0.0)
            began = None
        last = name
    return replace(ran, spots=spots).grown(more)


def _reads_text(spot: Spot) -> bool:
    return not spot.positions[1] and spot.positions[0] > 1


def _packed(ran: Pass, layers: Iterable[Layer], step: Step) -> Pass:
    """The pass with layers in 8 or 4 bits. Under autocast they return what they are given: where
    that is fp32, so is what is kept of the gate that follows."""
    named = {layer.name.removeprefix(TEXT_LEVEL) for layer in layers}
    if not (named and step.half):
        return ran
    more: dict[str, Line] = {}
    for (name, spot), (after, then) in pairwise(ran.spots.items()):
        gated = {name, after} <= named and isinstance(then.source, int)
        if gated and spot.source == "cast":
            more[name] = then.before[0] - spot.before[0], then.before[1] - spot.before[1]
    return ran.grown(more)


def held_by(ran: Pass, assignments: Iterable[Assignment], step: Step) -> list[Held]:
    """Each adapted layer in the order of the forward pass."""
    found: list[tuple[Spot, Assignment]] = []
    for assignment in assignments:
        spot = ran.spots.get(assignment.layer.name.removeprefix(TEXT_LEVEL))
        if spot is not None:
            found.append((spot, assignment))
    order = {id(spot): place for place, spot in enumerate(ran.spots.values())}
    found.sort(key=lambda pair: order[id(pair[0])])
    shared: set[int] = set()
    return [_held(spot, assignment, step, shared) for spot, assignment in found]


def _held(spot: Spot, assignment: Assignment, step: Step, shared: set[int]) -> Held:
    layer, extras = assignment.layer, assignment.extras
    own = 4.0 * assignment.parameters()
    gradient, leaving = (0.0, own) if step.fused else (own, 0.0)
    if layer.kind == "norm":
        return Held(spot, 0.0, gradient, leaving)
    tokens = round(at(spot.positions, step.positions) * step.batch)
    cost, size = cost_of(assignment), elements(layer.shape)
    aside = cost.token is not None and takes_aside(assignment, cost, tokens, learning=True)
    if extras.dropout and (assignment.algorithm.around or assignment.dora_shape() is not None):
        aside = False  # its own output must be had alone
    kept, made, keeps_input = (cost.kept, cost.made, cost.keeps_input) if aside else (0, 0, True)
    if extras.dropout:
        kept, made = kept + layer.out, made + (0 if aside else size)
    if step.half and aside:
        made = max(made, sum(map(elements, assignment.shapes().values())))
    output = layer.out if aside and cost.keeps_output and not spot.keeps_output else 0
    kept += output
    saved = (kept * tokens + made) * step.width
    saved += _input(spot, assignment, step, shared, aside) if keeps_input or layer.kernel else 0
    passing = 0.0 if aside else DENSE * size * 4.0
    return Held(spot, saved, gradient, passing + leaving, output * tokens * step.width)


def _input(spot: Spot, assignment: Assignment, step: Step, shared: set[int],
           aside: bool) -> float:
    """Bytes of the layer's input that nobody else holds."""
    layer = assignment.layer
    size = at(spot.fed, step.positions) * step.batch * layer.inp * step.width
    if spot.source == "saved":
        return 0.0
    if spot.source == "cast":  # a convolution has made its own copy; the factors make another
        return 0.0 if layer.kernel and not aside else size
    assert isinstance(spot.source, int)
    if layer.kernel or spot.source in shared:
        return 0.0
    shared.add(spot.source)
    return size


def _start(ran: Pass, held: Sequence[Held], step: Step, text_learns: bool) -> float:
    """Bytes of the table that lie before everything that learns."""
    starts = []
    side = [spot for spot in ran.spots.values() if not spot.positions[1]]
    growing = ran.total[1] > 0
    for each in held:
        begin = at(each.spot.before, step.positions)
        if growing and not begin and not each.spot.positions[1]:  # the time's branch joins later
            begin = min((at(spot.before, step.positions) for spot in side
                         if at(spot.before, step.positions)), default=0.0)
        starts.append(begin)
    if text_learns:
        starts += [at(spot.before, step.positions) for spot in side if _reads_text(spot)][:1]
    return min(starts, default=at(ran.total, step.positions))


def _passing(ran: Pass, step: Step) -> float:
    line = ran.transient_checkpointed if step.checkpointing else ran.transient
    return max(0.0, at(line, step.positions)) * step.batch


def _moments(ran: Pass, held: Sequence[Held], start: float, step: Step) -> list[Backward]:
    """The end of the forward pass first, then each layer's backward pass or, with checkpointing,
    each segment's."""
    if step.checkpointing and ran.segments:
        return _checkpointed(ran, held, start, step)
    passing = _passing(ran, step)
    total = at(ran.total, step.positions)
    found = [Backward((total - start) * step.batch, sum(each.saved for each in held), 0.0,
                      passing, sum(each.output for each in held))]
    done = 0.0
    left = sum(each.saved for each in held)
    for each in reversed(held):
        base = max(0.0, at(each.spot.before, step.positions) - start) * step.batch
        found.append(Backward(base, left, done, passing + each.passing))
        done, left = done + each.gradient, left - each.saved
    return found


def _checkpointed(ran: Pass, held: Sequence[Held], start: float, step: Step) -> list[Backward]:
    """With every segment's inputs kept in the place of what it saves."""
    passing, positions = _passing(ran, step), step.positions
    segments = [tuple(at(line, positions) for line in segment) for segment in ran.segments]
    inside: Mapping[int, list[Held]] = {place: [] for place in range(len(segments))}
    outside: list[Held] = []
    for each in held:
        begin = at(each.spot.before, positions)
        place = next((place for place, (first, full, _, _) in enumerate(segments)
                      if first <= begin < first + full), None)
        (outside if place is None else inside[place]).append(each)
    total = at(ran.total, positions)
    dropped, found, done = 0.0, [], sum(each.gradient for each in held)
    for place, (first, full, kept, own) in enumerate(segments):
        if first + full <= start:
            continue
        share = 1.0 if start <= first else 1 - (start - first) / full
        base = max(0.0, first - start) - dropped + kept + own * share
        own_held = inside[place]
        done -= sum(each.gradient for each in own_held)
        before = sum(each.saved for each in outside if at(each.spot.before, positions) <= first)
        found.append(Backward(
            base * step.batch, before + sum(each.saved for each in own_held), max(0.0, done),
            passing + max((each.passing for each in own_held), default=0.0)))
        dropped += full * share - kept
    end = Backward((total - start - dropped) * step.batch, sum(each.saved for each in outside),
                   0.0, passing)
    return [end, *found]
