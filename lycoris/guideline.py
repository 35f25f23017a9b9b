"""The guideline's summary table, as data: which algorithm is good at what.

Its authors trained hundreds of adapters of Stable Diffusion 1 and call the table "to be taken with
a grain of salt": it holds for files of about the same size that are otherwise trained alike (Yeh et
al. 2023, arXiv 2309.14859, and the LyCORIS package's guideline). Each algorithm has its columns in
its own file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ASPECTS: Mapping[str, str] = {
    "fidelity": "Fidelity", "flexibility": "Flexibility", "diversity": "Diversity",
    "size": "Size", "speed_linear": "Speed, linear layers", "speed_conv": "Speed, convolutions"}
SYMBOLS = "▲●◉★"  # from the least to the best
CAVEAT = ("The guideline's table is to be taken with a grain of salt: it holds for files of about "
          "the same size that are otherwise trained alike, and was made with Stable Diffusion 1.")


@dataclass(frozen=True)
class Column:
    """One column: an algorithm, or one way to set it.

    `ratings` are 1 to 4 for each aspect, 4 the best; for size the best is the smallest. `options`
    lead to it, `note` is its footnote.
    """

    label: str
    ratings: Mapping[str, int]
    options: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    side: str = ""  # which settings it counts for, where the algorithm has several columns

    @property
    def symbols(self) -> dict[str, str]:
        """{aspect: ▲ ● ◉ or ★}"""
        return {aspect: SYMBOLS[rating - 1] for aspect, rating in self.ratings.items()}


@dataclass(frozen=True)
class Guide:
    """What is said of one algorithm: its columns, the lowest and highest learning rate it is
    trained with where LoRA's do not serve, and the preset that was made for it.

    `side` tells the columns apart, from the algorithm's options and the layers' outputs.
    """

    columns: tuple[Column, ...] = ()
    rates: tuple[float, float] | None = None
    preset: str = ""
    side: Callable[[Mapping[str, Any], Sequence[int]], str] = lambda options, widths: ""

    def column(self, options: Mapping[str, Any], widths: Sequence[int]) -> Column | None:
        """The column that counts for layers with so many outputs; None: it is not rated."""
        side = self.side(options, widths)
        return next((each for each in self.columns if each.side == side), None)


def column(label: str, symbols: str, **more: Any) -> Column:
    """A column from its six symbols, in the order of ASPECTS."""
    ratings = {aspect: SYMBOLS.index(symbol) + 1
               for aspect, symbol in zip(ASPECTS, symbols, strict=True)}
    return Column(label, ratings, **more)
