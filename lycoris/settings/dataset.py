"""Pictures and captions, and how they are shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from ..knobs import Knob


@dataclass(frozen=True)
class DatasetConfig:
    folder: Annotated[str, Knob("Folder of pictures, each with its caption in a .txt or .caption "
                                "file of the same name.", file=True)] = "assets/datasets/zorb"
    repeats: Annotated[int, Knob("How often each of its pictures comes in an epoch.", 1,
                                 100_000)] = 1
    more: Annotated[tuple[dict[str, Any], ...], Knob(
        "Further folders, one a line: folder = \"dogs\", repeats = 2. Also weight (of the loss), "
        "caption (where a picture has none), mask_folder, regularisation = true.",
        label="More folders")] = ()
    balance: Annotated[bool, Knob("Show as many regularisation pictures in an epoch as others: "
                                  "repeated, or only some of them.",
                                  label="Balance regularisation")] = False
    resolution: Annotated[int, Knob("Side of the square whose area the pictures are trained at.",
                                    8, 4096, 8, unit="px")] = 512
    bucket: Annotated[bool, Knob("Keep each picture's shape: train in buckets of similar aspect "
                                 "ratio. Off: crop to squares.", label="Buckets")] = True
    bucket_step: Annotated[int, Knob("Bucket sides are multiples of this.", 1, 512, 8,
                                     unit="px")] = 64
    enlarge: Annotated[bool, Knob("Enlarge pictures that are smaller than their bucket. Off: they "
                                  "get a smaller one.", label="Enlarge small pictures")] = True
    flip: Annotated[bool, Knob("Show every second picture mirrored.", label="Mirror")] = False
    random_crop: Annotated[bool, Knob("Cut another part out of a picture each time. Off: its "
                                      "middle.")] = False
    masks: Annotated[bool, Knob(
        "Learn what a mask shows in white: name-masklabel.png beside name.png, one of the same "
        "name in the folder of masks, or else how opaque the picture is.")] = False
    mask_folder: Annotated[str, Knob("Folder of masks.", file=True)] = ""
    caption_dropout: Annotated[float, Knob("Share of the captions left out, so that guidance "
                                           "keeps working.", 0, 1, 0.05)] = 0.05
    caption_chunks: Annotated[int, Knob("Longest caption, in chunks of 75 tokens; what is beyond "
                                        "is not read. Every caption costs as many.", 1, 8,
                                        label="Chunks of a caption")] = 1
    caption_prefix: Annotated[str, Knob("Put in front of every caption while training.")] = ""
    caption_suffix: Annotated[str, Knob("Put behind every caption while training.")] = ""
    shuffle_tags: Annotated[bool, Knob("Put the comma-separated pieces of a caption in another "
                                       "order each time.")] = False
    keep_tags: Annotated[int, Knob("So many pieces at the beginning are neither moved nor left "
                                   "out.", 0, 1000)] = 0
    keep_separator: Annotated[str, Knob("What stands before this in a caption is neither moved nor "
                                        "left out, nor what stands behind a second one.")] = "|||"
    tag_dropout: Annotated[float, Knob("Share of a caption's pieces left out each time.",
                                       0, 1, 0.05)] = 0.0
    wildcards: Annotated[bool, Knob("Of {a|b|c} in a caption take one each time, and of several "
                                    "lines one. Off: the lines are joined.")] = False
    validation: Annotated[float, Knob("Share of the pictures that are not learned from; the loss "
                                      "on them tells what is merely learned by heart.",
                                      0, 0.5, 0.05)] = 0.0
    validation_folder: Annotated[str, Knob("Folder of pictures to validate on.", file=True)] = ""
    cache_limit: Annotated[float, Knob("Latents and text embeddings are kept on disk for later "
                                       "runs, the longest unused go first; 0 keeps none.", 0,
                                       100_000, 1, unit="GiB")] = 10.0
    cache_folder: Annotated[str, Knob("Folder they are kept in.", file=True)] = ""
