"""Our estimate of an adapter for Stable Diffusion 1.5 or SDXL is what lycoris-lora 4.1.3 wrote.

sizes.json holds networks that it built with alpha 1 over the model's UNet and CLIPs: layers that
got an adapter, trained numbers, tensors and bytes of the fp16 file without metadata, and how the
SHA-1 of its sorted keys with their shapes begins. `settings` are its network arguments; a preset is
one of the guideline's, or a table of its keys.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from lycoris import assignments, families, presetfile, presets, sizes, tensorfile
from lycoris.config import ASSETS, LEAVES
from lycoris.settings import NetworkConfig

ROWS = json.loads(Path(__file__).with_name("sizes.json").read_text("utf-8"))
# GLoRA's Tucker form is never made, and T-LoRA's start is not in their file, wherever it is from.
NONE = {"glora": ("use_tucker",), "tlora": ("use_data_init",)}
OURS = {"tlora": {"directions": "principal", "store_start": False}}


def assigned(row: dict[str, Any]) -> list[assignments.Assignment]:
    given = {name: value for name, value in row.get("settings", {}).items()
             if name not in NONE.get(row["algo"], ())}
    shell = {name: value for name, value in given.items() if f"network.{name}" in LEAVES}
    options = {name: value for name, value in given.items() if name not in shell}
    network = NetworkConfig(algo=row["algo"], dim=row["dim"], alpha=1.0,
                            conv_dim=row.get("conv_dim"),
                            options={**options, **OURS.get(row["algo"], {})}, **shell)
    family = families.open_base(ASSETS, row.get("model", "sd15"))
    preset = (presets.find(row["preset"], type(family)) if isinstance(row["preset"], str)
              else presetfile.parse("mine", row["preset"]))
    own = [layer for layer in family.layers
           if layer.part == "unet" or row.get("text_encoder", True)]
    chosen = presets.select(type(family), own, preset)
    return assignments.assign(chosen.layers, network, family.key, chosen.overrides)


def as_they_write(algo: str, entries: tensorfile.Entries) -> tensorfile.Entries:
    """Without what we do otherwise: T-LoRA's schedule is in the file, DyLoRA's up has its 1s."""
    up = "lora_up.weight"
    return {key: (dtype, shape[:2] if algo == "dylora" and key.endswith(up) else shape)
            for key, (dtype, shape) in entries.items() if not key.endswith(".rank_schedule")}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['id']}-{row['algo']}-{row['dim']}")
def test_the_estimate_is_the_file_they_wrote(row: dict[str, Any]) -> None:
    found = assigned(row)
    entries = as_they_write(row["algo"], sizes.entries_of(found, "fp16"))
    measured = sizes.measure(found, "fp16", {})
    if entries == sizes.entries_of(found, "fp16"):
        assert measured.file_bytes == row["bytes"]
    assert (len(found), measured.parameters, len(entries), tensorfile.size(entries, {})) == (
        row["modules"], row["parameters"], row["tensors"], row["bytes"])
    listed = json.dumps([(key, list(entries[key][1])) for key in sorted(entries)])
    assert hashlib.sha1(listed.encode()).hexdigest().startswith(row["keys"])
