"""The one shell around every algorithm: scale, dropouts, DoRA, files, norm cap.

An `Adapter` holds one layer's small tensors and says what the layer's weight becomes under them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from .algorithms import Tensors, elements
from .assignments import Assignment
from .effort import TOUCH, Cost
from .paths import Choice, choose
from .products import Sum

Operator = Callable[[Tensor, Tensor], Tensor]
SCALAR, LENGTHS = "scalar", "dora_scale"  # the shell's tensors among the algorithm's
SHRINKS = 30  # a norm that is not linear in the tensors needs more than one


def cost_of(assignment: Assignment) -> Cost:
    """The algorithm's cost under the shell.

    With DoRA on the output the rows' new lengths can multiply the output; they are measured once,
    without a gradient. Any other DoRA needs W + dW. A trained scalar needs what it multiplies.
    """
    layer, extras = assignment.layer, assignment.extras
    cost = assignment.algorithm.cost(layer)
    if assignment.has_scalar:
        cost = replace(cost, kept=cost.kept + layer.out)
    if assignment.dora_shape() is None:
        return cost
    simple = extras.dora_on_output and extras.dora_detach and not assignment.algorithm.around
    if not simple or cost.token is None:
        return Cost(None, cost.build)
    return replace(cost, token=cost.token + 2 * TOUCH * layer.out, kept=cost.kept + layer.out,
                   once=cost.build / 4 + 2 * TOUCH * elements(layer.shape))


def takes_aside(assignment: Assignment, cost: Cost, tokens: int, learning: bool) -> bool:
    """Does the layer's forward go without dW, for so many positions?"""
    if assignment.algorithm.timed:
        return True  # each picture of a batch has a timestep and so a dW of its own
    around = assignment.algorithm.around or assignment.dora_shape() is not None
    if assignment.has_scalar and around:
        return False
    return choose(assignment.layer, cost, tokens, learning).goes_aside


class Adapter(nn.Module):
    """One layer's adapter. `p` are the algorithm's tensors, in fp32."""

    def __init__(self, assignment: Assignment):
        super().__init__()
        self.assignment = assignment
        self.layer, self.algorithm = assignment.layer, assignment.algorithm
        self.extras = assignment.extras
        self.multiplier = 1.0
        self.clock: Tensor | None = None  # the timesteps (b,) of this pass
        frozen = self.algorithm.frozen
        self.p = nn.ParameterDict({
            name: nn.Parameter(torch.empty(shape), requires_grad=name not in frozen)
            for name, shape in assignment.shapes().items()})
        self.scalar = nn.Parameter(torch.zeros(())) if assignment.has_scalar else None
        shape = assignment.dora_shape()
        self.dora_scale = None if shape is None else nn.Parameter(torch.empty(shape))
        self._derived: tuple[str, ...] = ()
        self.origin: Tensor | None = None  # W, where a tensor holds W + dW
        self.size = elements(self.layer.shape)
        self.cost = cost_of(assignment)

    @property
    def around(self) -> bool:
        """Without dW it works on the layer's output, or input, as a whole."""
        return self.algorithm.around or self.dora_scale is not None

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.p.values())).dtype

    @property
    def place(self) -> torch.device:
        """Where it computes; the base's weight may wait elsewhere."""
        return next(iter(self.p.values())).device

    @torch.no_grad()
    def derive(self, weight: Tensor) -> None:
        """Make what the algorithm takes from the base's weight, fp32 on the CPU, once."""
        made = self.algorithm.constants(self.layer, weight)
        for name, tensor in made.items():
            self.register_buffer(f"derived_{name}", tensor.contiguous(), persistent=False)
        self._derived = tuple(made)

    @torch.no_grad()
    def init(self, weight: Tensor) -> None:
        """Start values: no change of the layer. `weight` is the base's, fp32 on the CPU."""
        self.algorithm.init(self.tensors(), self.layer, weight, from_zero=self.scalar is None)
        if self.scalar is not None:
            self.scalar.zero_()
        if self.dora_scale is not None:
            self.dora_scale.copy_(self._lengths(weight))

    def absorb(self, weight: Tensor) -> None:
        """Hold W + dW in place of a dW of full size: native training, with nothing to add up at
        each step. `weight` is the base's own tensor."""
        if self.algorithm.whole and self.dora_scale is None:
            with torch.no_grad():
                self.p[self.algorithm.whole].add_(weight.to(self.place))
            self.origin = weight

    @torch.no_grad()
    def release(self) -> None:
        """Hold dW again."""
        if self.origin is not None:
            self.p[self.algorithm.whole].sub_(self.origin.to(self.place))
            self.origin = None

    @property
    def holds_all(self) -> bool:
        """Is the layer's weight one of its own tensors, at the strength it is used with?"""
        return self.origin is not None and self.multiplier == 1.0

    def _apart(self, p: Tensors) -> Tensors:
        """The tensors with dW where they hold W + dW."""
        if self.origin is None:
            return p
        whole = self.algorithm.whole
        return {**p, whole: p[whole] - self.origin.to(p[whole])}

    def unfreeze(self) -> None:
        """Let everything learn that is to be learned."""
        self.requires_grad_(True)
        for name in self.algorithm.frozen & set(self.p):
            self.p[name].requires_grad_(False)

    def tensors(self) -> dict[str, Tensor]:
        """The algorithm's tensors with what it derived from the base."""
        found: dict[str, Tensor] = dict(self.p.items())
        for name in self._derived:
            found[name] = getattr(self, f"derived_{name}")
        return found

    def all_tensors(self) -> dict[str, Tensor]:
        """`tensors` and the shell's own two."""
        own = {SCALAR: self.scalar, LENGTHS: self.dora_scale}
        return self.tensors() | {name: t for name, t in own.items() if t is not None}

    def seen(self) -> dict[str, Tensor]:
        """All tensors as this pass sees them: while training a part of the ranks, or a random share
        of them silenced and the rest made up for it."""
        p = self.all_tensors()
        if self.clock is not None:
            p["t"] = self.clock
        if self.training:
            p = self.algorithm.thin(p)
            if self.extras.rank_dropout:
                p = self.algorithm.drop_ranks(p, self.extras.rank_dropout)
        return p

    def scaled_delta(self, weight: Tensor, multiplier: float = 1.0,
                     p: Tensors | None = None) -> Tensor:
        """multiplier * scale * dW in the layer's shape and the adapter's dtype, without DoRA."""
        p = self._apart(self.all_tensors() if p is None else p)
        algorithm = self.algorithm
        factor = algorithm.scale(self.layer) * (multiplier if algorithm.linear else 1.0)
        whole = SCALAR not in p and factor == 1.0
        small = [name for name in algorithm.fold if name in p]
        if not whole and small and p[small[0]].numel() < self.size:
            times = factor * p[SCALAR] if SCALAR in p else factor  # on a factor, not on all of dW
            p, whole = {**p, **{name: p[name] * times for name in small}}, True
        if algorithm.linear:
            delta = algorithm.delta(p, self.layer, weight)
        else:
            delta = algorithm.delta(p, self.layer, weight, multiplier)
        if whole:
            return delta
        return delta * (factor * p[SCALAR] if SCALAR in p else factor)

    def changed(self, weight: Tensor, bias: Tensor | None, multiplier: float,
                onto: Tensor | None = None,
                p: Tensors | None = None) -> tuple[Tensor, Tensor | None]:
        """(W', b') of the layer under this adapter at the given strength.

        With DoRA (Liu et al. 2024, arXiv 2402.09353, eq. 5) the rows of W + dW get the learned
        lengths; unless asked for, the gradient does not flow through their own length (sec. 4.3).
        The multiplier goes from W to that result, so 0 is the base. `onto` is what the change is
        added to where it is not W itself: a weight that other adapters have changed.
        """
        p = self.seen() if p is None else p
        weight = weight.to(self.dtype)
        onto = weight if onto is None else onto
        with torch.autocast(weight.device.type, enabled=False):  # dW is made in full precision
            if self.origin is not None and onto is weight and multiplier == 1.0:
                changed = p[self.algorithm.whole]
            elif LENGTHS not in p:
                changed = self._onto(onto, multiplier, p)
                if changed is None:
                    changed = onto + self.scaled_delta(weight, multiplier, p)
            else:
                full = weight + self.scaled_delta(weight, 1.0, p)
                own = full.detach() if self.extras.dora_detach else full
                full = full * (p[LENGTHS] / self._lengths(own))
                changed = full if onto is weight and multiplier == 1.0 else torch.add(
                    onto, full - weight, alpha=multiplier)
        shift = self.algorithm.bias(p)
        if shift is not None and bias is not None:
            bias = bias.to(shift.dtype) + multiplier * shift
        return changed, bias

    def _onto(self, onto: Tensor, multiplier: float, p: Tensors) -> Tensor | None:
        """onto + multiplier * scale * dW as one operation, where the algorithm has one."""
        if SCALAR in p or torch.compiler.is_compiling():
            return None
        found = self.algorithm.change(p)
        if found is None:
            return None
        kind, parts = found
        factor = multiplier * self.algorithm.scale(self.layer)
        matrix = onto.flatten(1)
        if torch.is_grad_enabled():
            return Sum.apply(matrix, factor, kind, *parts).view(onto.shape)
        return kind.build(matrix, factor, parts, keep=False)[0].view(onto.shape)

    def change(self, weight: Tensor, multiplier: float, p: Tensors | None = None) -> Tensor:
        """W' - W at the given strength."""
        p = self.seen() if p is None else p
        if LENGTHS in p:
            zero = torch.zeros_like(weight, dtype=self.dtype)
            return self.changed(weight, None, multiplier, zero, p)[0]
        with torch.autocast(weight.device.type, enabled=False):
            return self.scaled_delta(weight.to(self.dtype), multiplier, p)

    def _lengths(self, weight: Tensor) -> Tensor:
        """Norms of the rows (on the output) or of the columns (on the input), never zero."""
        axis = 0 if self.extras.dora_on_output else 1
        others = [d for d in range(weight.ndim) if d != axis]
        lengths = torch.linalg.vector_norm(weight, dim=others, keepdim=True)
        return lengths.clamp_min(torch.finfo(weight.dtype).tiny)

    def sits_out(self) -> bool:
        """Does the layer go without this adapter in this forward pass?"""
        if self.multiplier == 0.0:
            return True
        share = self.extras.module_dropout
        return bool(share) and self.training and torch.rand(()).item() < share

    def choice(self, tokens: int, learning: bool) -> Choice:
        """The way this layer's forward takes for so many positions."""
        return choose(self.layer, self.cost, tokens, learning)

    def goes_aside(self, tokens: int, learning: bool) -> bool:
        if self.dora_scale is not None and self.multiplier != 1.0:
            return False
        return takes_aside(self.assignment, self.cost, tokens, learning)

    def factor(self) -> float:
        return self.multiplier * self.algorithm.scale(self.layer)

    def aside(self, p: Tensors, x: Tensor, op: Operator, y: Tensor | None) -> Tensor:
        """y + multiplier * scale * dW x from the factors."""
        if SCALAR not in p:
            return self.algorithm.aside(p, x, self.layer, op, self.factor(), y)
        change = self.algorithm.aside(p, x, self.layer, op, self.factor(), None) * p[SCALAR]
        return change if y is None else y.add_(change.to(y.dtype))

    @torch.no_grad()
    def row_lengths(self, p: Tensors, weight: Tensor) -> Tensor:
        """(o) lengths of the rows of W + dW, without a gradient."""
        weight, scale = weight.to(self.dtype), self.algorithm.scale(self.layer)
        with torch.autocast(weight.device.type, enabled=False):
            squares = self.algorithm.squared_rows(p, self.layer, weight, scale)
            if squares is None:
                lengths = self._lengths(weight + self.scaled_delta(weight, 1.0, p)).flatten()
            else:
                lengths = squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()
        return lengths

    @torch.no_grad()
    def file_tensors(self) -> dict[str, Tensor]:
        """{key: tensor} for a file, the trained scalar folded in."""
        p = {name: t.detach() for name, t in self._apart(self.tensors()).items()}
        if self.scalar is not None:
            for name in self.algorithm.fold:
                if name in p:
                    p[name] = p[name] * self.scalar
        found = self.algorithm.to_file(p)
        alpha = self.algorithm.file_alpha(self.layer)
        if alpha is not None:
            found["alpha"] = torch.tensor(alpha)
        if self.dora_scale is not None:
            found["dora_scale"] = self.dora_scale.detach()
        return {f"{self.assignment.key}.{suffix}": value for suffix, value in found.items()}

    @torch.no_grad()
    def load_tensors(self, found: Mapping[str, Tensor]) -> None:
        """Take over {suffix: tensor} as read from a file, its alpha with them."""
        origin = self.origin
        self.release()
        self.algorithm = self.algorithm.with_facts(found)
        self.algorithm.take(self.p, found)
        if self.scalar is not None:
            self.scalar.fill_(1.0)
        if self.dora_scale is not None:
            self.dora_scale.copy_(found["dora_scale"].reshape(self.dora_scale.shape))
        if origin is not None:
            self.absorb(origin)

    @torch.no_grad()
    def norm(self, weight: Tensor) -> Tensor:
        """The Frobenius norm of the scaled dW, all ranks counted."""
        if self.algorithm.needs_weight:
            weight = weight.to(self.dtype)
        return self.scaled_delta(weight).norm()

    @torch.no_grad()
    def cap_norm(self, weight: Tensor, norm: float, limit: float) -> float:
        """Shrink the adapter until its norm, now `norm`, is at most `limit`; returns the norm."""
        for _ in range(SHRINKS):
            if norm <= limit * (1 + 1e-5):
                break
            p = self._apart(self.tensors())
            self.algorithm.shrink(p, limit / norm)
            if self.origin is not None:
                whole = self.algorithm.whole
                self.p[whole].copy_(self.origin.to(self.place) + p[whole])
            norm = self.norm(weight).item()
        return norm
