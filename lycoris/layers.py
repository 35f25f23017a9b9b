"""What a layer of a base model is, as far as adapters are concerned: facts, no tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import count

Shape = tuple[int, ...]
_FORMS: dict[tuple[str, str, Shape, bool], int] = {}
_NUMBERS = count()  # no two threads are given the same one


@dataclass(frozen=True)
class Layer:
    """One layer of a base model.

    `shape` is the weight's in torch's order: (out, in) for linear, (out, in / groups, *kernel) for
    conv, (channels,) for norm. `part` says which module of the model it belongs to, `written` its
    path in an adapter file where that is another than its name.
    """

    name: str
    kind: str
    shape: Shape
    bias: bool = True
    part: str = ""
    written: str = ""

    def __hash__(self) -> int:
        return hash((self.part, self.name))  # whole models are looked up by their layers

    @property
    def out(self) -> int:
        return self.shape[0]

    @property
    def inp(self) -> int:
        return self.shape[1]

    @property
    def kernel(self) -> Shape:
        return self.shape[2:]

    @property
    def fan_in(self) -> int:
        """Inputs of one output: in / groups times the kernel's positions."""
        return elements(self.shape[1:])

    @cached_property
    def form(self) -> int:
        """A number that layers share who are alike in all but their names."""
        return _FORMS.setdefault((self.part, self.kind, self.shape, self.bias), next(_NUMBERS))

    @cached_property
    def is_spatial(self) -> bool:
        """A convolution larger than 1x1: it has its own dim and alpha."""
        return any(side != 1 for side in self.kernel)


def elements(shape: Shape) -> int:
    """How many numbers a tensor of this shape holds."""
    return math.prod(shape)
