"""Which way a layer's forward takes: dW built and added to W, or the factors applied to x directly.

Both give the same numbers. What they cost is counted in multiply-adds of one step, from shapes
alone; the cheaper one is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

from .algorithms import TOUCH, Cost, Layer


@dataclass(frozen=True)
class Choice:
    """`aside` without dW, in multiply-adds; None where there is no such way."""

    aside: float | None
    dense: float

    @property
    def goes_aside(self) -> bool:
        return self.aside is not None and self.aside < self.dense

    @property
    def why(self) -> str:
        """ "applies the factors: 12.3 M multiply-adds a step, building dW takes 45.6 M"."""
        built = f"{self.dense / 1e6:.3g} M"
        if self.aside is None:
            return f"builds dW, the only way: {built} multiply-adds a step"
        direct = f"{self.aside / 1e6:.3g} M"
        if self.goes_aside:
            return f"applies the factors: {direct} multiply-adds a step, building dW takes {built}"
        return f"builds dW: {built} multiply-adds a step, applying the factors takes {direct}"


def choose(layer: Layer, cost: Cost, tokens: int, learning: bool) -> Choice:
    """For a layer that sees so many positions a pass. While learning, a step is the forward pass,
    the gradient of the input and those of the factors; else the forward pass alone.

    Over the frozen layer's own work, W + dW costs the gradient of the whole weight, `tokens` times
    out x in; the factors cost their products for each position, and the sum of the two outputs.
    """
    size = layer.out * layer.fan_in
    if learning:
        dense = tokens * size + cost.build + 5 * TOUCH * size
    else:
        dense = cost.build / 4 + 3 * TOUCH * size
    aside = None
    if cost.token is not None:
        token = cost.token if learning else cost.token / 3
        aside = tokens * (token + TOUCH * layer.out / 2) + cost.once
    return Choice(aside, dense)
