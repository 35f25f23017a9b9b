"""Where the adapter goes and what its file says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ..knobs import Knob
from .model import DTYPES


@dataclass(frozen=True)
class OutputConfig:
    folder: Annotated[str, Knob("Where runs are kept.", file=True,
                                label="Folder of the runs")] = "runs"
    name: Annotated[str, Knob("Name of the run and of its adapter; empty: the dataset's and the "
                              "algorithm's.")] = ""
    dtype: Annotated[str, Knob("fp16 is read everywhere; fp32 is twice as large.", choices=DTYPES,
                               label="Precision of the file")] = "fp16"
    model: Annotated[str, Knob("Also write the whole model with the adapter in it: one "
                               ".safetensors file in the original layout, or a diffusers folder.",
                               choices=("none", "file", "file without VAE", "folder"),
                               label="Whole model")] = "none"
    trigger: Annotated[str, Knob("Words that call what was taught, written into the file for "
                                 "whoever uses it.", label="Trigger words")] = ""
    author: Annotated[str, Knob("Written into the file.")] = ""
    license: Annotated[str, Knob("Written into the file.")] = ""
    description: Annotated[str, Knob("Written into the file.")] = ""
    thumbnail: Annotated[bool, Knob("Put the last sample picture into the file, 24 KiB; some "
                                    "programs show it.")] = False
