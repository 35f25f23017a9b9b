"""Pictures painted on the way and for comparisons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ..knobs import Knob


@dataclass(frozen=True)
class SampleConfig:
    prompts: Annotated[tuple[str, ...], Knob(
        "One prompt a line; (word:1.3) makes a word count more. While training a line may end "
        "in settings of its own: --w 512 --h 768 --d 7 (seed) --s 30 (steps) --l 5 (CFG) --n "
        "negative --ss euler_a. Empty: captions of the first pictures.")] = ()
    prompts_file: Annotated[str, Knob("A file of more prompts for the samples while training: "
                                      ".txt with such lines, or .toml or .json as sd-scripts "
                                      "reads them.", file=True, label="Prompt file")] = ""
    negative: Annotated[str, Knob("What the pictures should not show.",
                                  label="Negative prompt")] = ""
    seeds: Annotated[tuple[int, ...], Knob("Each seed is one starting noise, the same for every "
                                           "contestant.", 0, 2**63 - 1)] = (1, 2)
    steps: Annotated[int, Knob("Denoising steps a picture.", 1, 1000,
                               label="Sampling steps")] = 25
    guidance: Annotated[float, Knob("How strongly the prompt is followed (CFG); 1 is off.", 0, 50,
                                    0.5, label="CFG")] = 7.0
    sampler: Annotated[str, Knob("How noise becomes a picture; training does not depend on it.",
                                 catalogue="samplers")] = "DPM++ 2M"
    width: Annotated[int | None, Knob("Width of the pictures.", 8, 4096, 8, unit="px",
                                      none="training resolution")] = None
    height: Annotated[int | None, Knob("Height of the pictures.", 8, 4096, 8, unit="px",
                                       none="training resolution")] = None
    embeddings: Annotated[str, Knob("Folder of textual-inversion embeddings (.safetensors); a "
                                    "prompt calls one by its file's name.", file=True)] = ""
    every: Annotated[int, Knob("0: no pictures.", 0, 10_000_000, unit="steps",
                               label="Sample every")] = 250
