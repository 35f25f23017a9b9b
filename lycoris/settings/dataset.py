"""Pictures and captions, and how they are shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ..knobs import Knob


@dataclass(frozen=True)
class DatasetConfig:
    folder: Annotated[str, Knob("Folder of pictures, each with its caption in a .txt file of the "
                                "same name.", file=True)] = "assets/datasets/zorb"
    resolution: Annotated[int, Knob("Side of the square whose area the pictures are trained at.",
                                    8, 4096, 8, unit="px")] = 512
    bucket: Annotated[bool, Knob("Keep each picture's shape: train in buckets of similar aspect "
                                 "ratio. Off: crop to squares.", label="Buckets")] = True
    bucket_step: Annotated[int, Knob("Bucket sides are multiples of this.", 1, 512, 8,
                                     unit="px")] = 64
    caption_dropout: Annotated[float, Knob("Share of the captions left out, so that guidance "
                                           "keeps working.", 0, 1, 0.05)] = 0.05
    caption_chunks: Annotated[int, Knob("Longest caption, in chunks of 75 tokens; what is beyond "
                                        "is not read. Every caption costs as many.", 1, 8,
                                        label="Chunks of a caption")] = 1
