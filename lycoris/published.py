"""The guideline's table of sizes: each row's settings for Stable Diffusion 1.5, and what it says.

Its files carried about 390 KiB of metadata, and their sizes are rounded up as `ls -lh` does. Where
our figure is another, `why` says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import families, known, sizes
from .assignments import assign_family
from .config import ASSETS, build

MODEL = "sd15"
METADATA = 399_500  # bytes; fitted to the rows, what was in it is not known
UNITS = "BKMGT"
FULL_DIM = 100_000  # how the guideline asks for LoKr's full dimension
THEN = ("the guideline's runs left out four single layers (conv_in, conv_out and the two of the "
        "time embedding) that the preset full takes")


@dataclass(frozen=True)
class Row:
    """One row. `settings` are the network's, by their names; None for the model itself."""

    name: str
    said: str
    settings: Mapping[str, Any] | None
    why: str = ""


def _row(algo: str, preset: str, dim: int, said: str, why: str = "", **options: Any) -> Row:
    labels = {"lora": "LoRA", "loha": "LoHa", "lokr": "LoKr", "full": "Full"}
    size = "full" if dim == FULL_DIM else str(dim)
    shown = [labels[algo], preset, *([size] if algo != "full" else []),
             *(f"[{value}]" for value in options.values())]
    return Row(" ".join(shown), said, {"algo": algo, "preset": preset, "dim": dim, "alpha": 1.0,
                                       "options": options}, why)


ROWS = (
    _row("lora", "attn-mlp", 1, "1.7M"), _row("lora", "attn-mlp", 8, "9.5M"),
    _row("lora", "attn-only", 32, "18M"), _row("lora", "attn-mlp", 32, "37M"),
    _row("lora", "full", 32, "75M", THEN), _row("lora", "attn-mlp", 64, "73M"),
    Row("LoRA (kohya) 64", "73M", {"algo": "lora", "preset": "attn-mlp", "dim": 64, "alpha": 1.0}),
    _row("loha", "full", 4, "9.6M", "twice as large as built; attn-mlp at dim 4 is what lands on "
         "9.6M, so the preset is probably a slip"),
    _row("loha", "attn-only", 16, "18M"), _row("loha", "attn-mlp", 16, "37M"),
    _row("loha", "full", 16, "75M", THEN), _row("loha", "attn-mlp", 32, "73M"),
    _row("lokr", "attn-mlp", 1, "940K", factor=-1),
    _row("lokr", "attn-mlp", FULL_DIM, "1.6M", factor=-1),
    _row("lokr", "attn-mlp", 8, "2.8M", factor=4),
    _row("lokr", "attn-mlp", FULL_DIM, "12M", factor=8),
    _row("lokr", "attn-only", FULL_DIM, "15M", factor=4),
    _row("lokr", "attn-mlp", FULL_DIM, "43M", factor=4),
    _row("lokr", "full", FULL_DIM, "113M", THEN, factor=4),
    Row("IA3", "596K", {"algo": "ia3", "preset": "ia3", "dim": 1},
        "then the input side was never on: ff.net.2 and mlp.fc2 learned output scales"),
    _row("full", "attn-only", 1, "233M"), _row("full", "attn-mlp", 1, "673M"),
    _row("full", "full", 1, "1.8G"),
    Row("Full (db)", "2G", None, "the whole model with its autoencoder; its header depends on the "
        "layout and is left out"),
)


def table() -> list[dict[str, Any]]:
    """Every row with our figures: parameters, exact bytes without metadata, and the size as the
    guideline would have printed it."""
    base = families.open_base(ASSETS, MODEL)
    found = []
    for row in ROWS:
        if row.settings is None:
            parameters = sum(known.find(MODEL).parameters.values())
            count = 2 * parameters
        else:
            network = build({f"network.{name}": value
                             for name, value in row.settings.items()}).network
            measured = sizes.measure(assign_family(base, network), "fp16", {})
            parameters, count = measured.parameters, measured.file_bytes
        found.append({"row": row.name, "published": row.said, "parameters": parameters,
                      "file_bytes": count, "as_published": rounded_up(count + METADATA),
                      "note": row.why})
    return found


def rounded_up(count: int) -> str:
    """Bytes as `ls -lh` prints them: in powers of 1,024, up, with one digit below ten."""
    power = 0
    value = float(count)
    while value >= 1024:
        value /= 1024
        power += 1
    if value < 10 and power:
        value = math.ceil(value * 10) / 10
        return f"{value:.1f}{UNITS[power]}" if value < 10 else f"10{UNITS[power]}"
    return f"{math.ceil(value)}{UNITS[power] if power else ''}"


def lines() -> list[str]:
    """The table in Markdown."""
    head = ["| row | published | ours, printed alike | parameters | fp16 file without metadata | |",
            "|---|---|---|---|---|---|"]
    return head + [
        f"| {r['row']} | {r['published']} | {r['as_published']} | {r['parameters']:,} | "
        f"{r['file_bytes']:,} bytes ({r['file_bytes'] / 2**20:.2f} MiB) | {r['note']} |"
        for r in table()]
