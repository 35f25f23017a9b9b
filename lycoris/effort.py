"""What an adapter costs a training step on one layer, in multiply-adds and in numbers held."""

from __future__ import annotations

from dataclasses import dataclass

# Reading and writing one number of a full-size temporary takes about as long as so many
# multiply-adds of a large matrix product (benchmarks/step_cost.py).
TOUCH = 40.0


@dataclass(frozen=True)
class Cost:
    """Multiply-adds of one training step on one layer, for the choice between two ways.

    `token`: for each position of the input when dW x is computed without dW (forward, gradient of
    the input, gradients of the factors); None where there is no such way; `once` is what that way
    takes besides. `build`: once, to make dW from its factors, again in the backward pass, and to
    bring dW's gradient to them. `anew`: (for each position, once) where W' is made in both passes
    and the gradients come from the layer's output instead of W's; None where there is no such way.

    And the numbers that the way without dW holds for its backward pass: `kept` for each position of
    the output, `made` once, besides the tensors themselves; `keeps_input`: the layer's input too,
    `keeps_output` its output.
    """

    token: float | None
    build: float
    once: float = 0.0
    anew: tuple[float, float] | None = None
    kept: float = 0.0
    made: float = 0.0
    keeps_input: bool = True
    keeps_output: bool = False


def folds(out: int, fan_in: int, rank: int, tokens: int) -> bool:
    """Is it less work to add two thin factors to W in both passes than to add what they make of x
    to the output, and its like to the gradient of x, at so many positions? Not in half precision,
    where a small change of W is lost in its steps."""
    made = 2 * out * fan_in * (rank + TOUCH / 2)
    return made < tokens * (out + fan_in) * (rank + TOUCH / 6)
