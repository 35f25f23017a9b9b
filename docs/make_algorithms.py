"""Writes docs/algorithms.md from the algorithms themselves: their docstrings, options and sizes.

    python docs/make_algorithms.py
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lycoris import algorithms, durable, knobs
from lycoris.algorithms import Algorithm, Layer, elements
from lycoris.errors import ConfigError

PAGE = ROOT / "docs" / "algorithms.md"
LAYER = Layer("to_q", "linear", (1280, 1280), bias=False)
HEAD = """# The algorithms

Made by `python docs/make_algorithms.py` from the algorithms' own files; a test holds that it is
up to date.

`o` and `i` are a layer's outputs and inputs (of a convolution: input channels divided by the
groups), `K` the number of positions of its kernel (1 for a linear layer), `r` the dim. Unless it
says otherwise, the change is multiplied with alpha / dim, or with alpha / sqrt(dim) when
rank-stabilised. Everything else is the same for all and exists once: the multiplier, the dropouts,
DoRA, the trained scalar, rules for single layers, the norm cap.

| Algorithm | `network.algo` | Parameters of a layer | 1280 x 1280, dim 16 |
|---|---|---|---|
"""


def page() -> str:
    entries = algorithms.catalogue()
    rows = [f"| [{entry.label}](#{anchor(entry)}) | `{name}` | {entry.size} | {count(entry)} |"
            for name, entry in entries.items()]
    return HEAD + "\n".join(rows) + "\n" + "\n".join(map(section, entries.values()))


def section(entry: type[Algorithm]) -> str:
    text = inspect.getdoc(sys.modules[entry.__module__]) or ""
    parts = [f"## {entry.label}", entry.about, block(text), f"**When.** {entry.advice}",
             f"**Size.** {entry.size} parameters a layer. **In the file:** "
             + ", ".join(f"`{suffix}`" for suffix in suffixes(entry)) + "."]
    options = list(knobs.leaves(entry.Options).values())
    if options:
        parts.append("| `network.options` | default | |\n|---|---|---|\n" + "\n".join(
            f"| `{leaf.name}` | {shown(leaf.default)} | {leaf.knob.help} |" for leaf in options))
    if len(entry.starts) > 1:
        parts.append(f"Starts (`network.init`): {', '.join(entry.starts)}.")
    return "\n" + "\n\n".join(parts) + "\n"


def block(text: str) -> str:
    """A docstring as Markdown: its indented formula stays a code block."""
    return "\n".join(line.rstrip() for line in text.splitlines())


def suffixes(entry: type[Algorithm]) -> list[str]:
    found = [*entry.keys.values()]
    layer = Layer("x", "linear", (64, 64))
    if entry(8).file_alpha(layer) is not None:
        found.append("alpha")
    return found


def count(entry: type[Algorithm]) -> str:
    made = entry(16)
    try:
        shapes = made.shapes(LAYER)
    except ConfigError as error:
        return str(error)
    return f"{sum(elements(s) for n, s in shapes.items() if n not in made.frozen):,}"


def anchor(entry: type[Algorithm]) -> str:
    return "".join(c for c in entry.label.lower() if c.isalnum() or c in "- ").replace(" ", "-")


def shown(value: Any) -> str:
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    durable.write_text(PAGE, page())
    sys.stdout.write(f"{PAGE} written\n")
