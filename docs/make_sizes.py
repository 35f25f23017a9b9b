"""Writes docs/sizes.md: the guideline's table of sizes beside what is built here.

    python docs/make_sizes.py
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lycoris import durable, published

PAGE = ROOT / "docs" / "sizes.md"
HEAD = """# The guideline's table of sizes

Made by `python docs/make_sizes.py`; `python -m lycoris estimate table` prints the same; a test
holds that it is up to date.

The LyCORIS guideline trained 24 adapters of Stable Diffusion 1.5 and printed the sizes of their
files. Here each row is made from its settings, without weights, by the code that trains: parameters
and bytes are exact. To stand beside the printed sizes they are shown as the guideline's were: in
powers of 1,024, rounded up, with the 390 KiB of metadata that its files carried.

"""
TAIL = """
`[n]` is LoKr's factor, `full` as a dim its full dimension. The bytes are those of lycoris-lora
4.1.3's own files; tests hold 80 of its files for SD1.5 and SDXL, and 190 networks that it builds
while they run. Two kinds differ by a few bytes, on purpose: DyLoRA's `lora_up` of a convolution
keeps its sides of 1, without which that package's own loader and diffusers refuse the file, and
T-LoRA's schedule is in the file, without which it cannot be painted with.

SDXL's layers are named as the original code does, and the presets leave out the four single layers
at the ends of the UNet and in its time embedding, as they do for such files.
"""


def page() -> str:
    return HEAD + "\n".join(published.lines()) + "\n" + TAIL


if __name__ == "__main__":
    durable.write_text(PAGE, page())
