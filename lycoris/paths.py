"""Which way a layer's forward takes: dW built and added to W, or the factors applied to x directly.

Both give the same numbers. What they cost is counted in multiply-adds of one step, from shapes
alone; the cheaper one is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

from .algorithms import Layer
from .effort import TOUCH, Cost


@dataclass(frozen=True)
class Choice:
    """`aside` without dW, in multiply-adds, `anew` with W' but not its gradient; None where there
    is no such way. One that can go anew can go aside."""

    aside: float | None
    dense: float
    anew: float | None = None

    @property
    def goes_aside(self) -> bool:
        return self.aside is not None and min(self.aside, self.anew or self.aside) < self.dense

    @property
    def goes_anew(self) -> bool:
        return self.aside is not None and self.anew is not None and self.anew < self.aside

    @property
    def why(self) -> str:
        """ "applies the factors: 12.3 M multiply-adds a step, building dW takes 45.6 M"."""
        built = f"{self.dense / 1e6:.3g} M"
        if self.aside is None:
            return f"builds dW, the only way: {built} multiply-adds a step"
        if self.goes_aside and self.goes_anew:
            return (f"makes W' anew: {self.anew / 1e6:.3g} M multiply-adds a step, changing the "
                    f"output takes {self.aside / 1e6:.3g} M, the gradient of dW {built}")
        direct = f"{self.aside / 1e6:.3g} M"
        if self.goes_aside:
            return f"applies the factors: {direct} multiply-adds a step, building dW takes {built}"
        return f"builds dW: {built} multiply-adds a step, applying the factors takes {direct}"


def choose(layer: Layer, cost: Cost, tokens: int, learning: bool) -> Choice:
    """For a layer that sees so many positions a pass. While learning, a step is the forward pass,
    the gradient of the input and those of the factors; else the forward pass alone.

    Over the frozen layer's own work, W + dW costs the gradient of the whole weight, `tokens` times
    out x in; the factors cost their products for each position, and the sum of the two outputs.
    Between the two lies W' without its gradient.
    """
    size = layer.out * layer.fan_in
    if learning:
        dense = tokens * size + cost.build + 5 * TOUCH * size
    else:
        dense = cost.build / 4 + 3 * TOUCH * size
    aside = anew = None
    if cost.token is not None:
        token = cost.token if learning else cost.token / 3
        aside = tokens * (token + TOUCH * layer.out / 2) + cost.once
    if cost.anew is not None:
        each, once = cost.anew
        anew = tokens * each + once if learning else once / 2
    return Choice(aside, dense, anew)
