"""Writes assets/activations: what each known base model holds for its backward pass.

    python benchmarks/activations.py [sd15 ...]

The real classes of diffusers and transformers run on the meta device (lycoris/activations.py says
how); no weights are needed, and all tables take about a minute and a half on one core.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lycoris import activations, durable, families, footprint, known

EMBEDDED = "tiny-sd"


def main() -> None:
    every = [EMBEDDED, *known.names()]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="*", help=f"default: all, {', '.join(every)}")
    options = parser.parse_args()
    if unknown := [name for name in options.model if name not in every]:
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(every)}")
    for name in options.model or every:
        began = time.monotonic()
        family = families.open_base(ROOT / "assets" / EMBEDDED,
                                    "auto" if name == EMBEDDED else name)
        table = activations.trace(family)
        path = durable.write_text(ROOT / "assets" / footprint.FOLDER / f"{name}.json",
                                  table.text())
        numbers = table.run(table.learning[0], footprint.MODES[0])
        sys.stdout.write(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB, "
                         f"{numbers.total[1]:,.0f} bytes a position in fp32, "
                         f"{time.monotonic() - began:.0f} s\n")


if __name__ == "__main__":
    main()
