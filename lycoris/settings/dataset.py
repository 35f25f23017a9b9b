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
    balance: Annotated[bool, Knob(
        "Show regularisation pictures as often as the others: they are repeated, or some are "
        "left out.", label="Balance regularisation")] = False
    resolution: Annotated[int, Knob(
        "Pictures are trained at about the area of a square with this side.",
        8, 4096, 8, unit="px")] = 512
    bucket: Annotated[bool, Knob(
        "Keep each picture's shape: those of similar shape are trained together. Off: all are "
        "cropped to squares.", label="Buckets")] = True
    bucket_step: Annotated[int, Knob("Bucket sides are multiples of this.", 1, 512, 8,
                                     unit="px")] = 64
    enlarge: Annotated[bool, Knob("Enlarge pictures that are smaller than their bucket. Off: they "
                                  "get a smaller one.", label="Enlarge small pictures")] = True
    flip: Annotated[bool, Knob("Show every second picture mirrored.", label="Mirror")] = False
    random_crop: Annotated[bool, Knob(
        "Cut a different part out of a picture each time. Off: always its middle.")] = False
    masks: Annotated[bool, Knob(
        "Learn what a mask shows in white. A mask is name-masklabel.png beside name.png, a "
        "picture of the same name in the folder of masks, or else how opaque the picture itself "
        "is.")] = False
    mask_folder: Annotated[str, Knob("Folder of masks.", file=True)] = ""
    caption_dropout: Annotated[float, Knob(
        "How often a picture is shown without its caption: 0.05 is one time in twenty. A little "
        "of it keeps CFG working.", 0, 1, 0.05)] = 0.05
    caption_chunks: Annotated[int, Knob(
        "How long captions may be, in chunks of 75 tokens; the rest is not read. Each chunk "
        "costs time, for short captions too.", 1, 8, label="Chunks of a caption")] = 1
    caption_prefix: Annotated[str, Knob("Put in front of every caption while training.")] = ""
    caption_suffix: Annotated[str, Knob("Put behind every caption while training.")] = ""
    shuffle_tags: Annotated[bool, Knob(
        "Put the tags of a caption (its parts between commas) in a new order each time.")] = False
    keep_tags: Annotated[int, Knob(
        "This many tags at the start of a caption keep their place and are never left out.",
        0, 1000)] = 0
    keep_separator: Annotated[str, Knob(
        "Tags before this mark keep their place and are never left out; so do those after a "
        "second one.")] = "|||"
    tag_dropout: Annotated[float, Knob(
        "Share of a caption's tags that are left out each time.", 0, 1, 0.05)] = 0.0
    wildcards: Annotated[bool, Knob(
        "Take one of {a|b|c} in a caption each time, and one of its lines where it has several. "
        "Off: the lines are joined.")] = False
    validation: Annotated[float, Knob(
        "Share of the pictures that are kept out of training. Where the loss falls and theirs "
        "(val/loss) rises, the run learns by heart.", 0, 0.5, 0.05)] = 0.0
    validation_folder: Annotated[str, Knob(
        "Folder of pictures that are not learned from, only used to measure val/loss.",
        file=True)] = ""
    cache_limit: Annotated[float, Knob(
        "Encoded pictures and captions are kept on disk for later runs, up to this size; what "
        "was unused longest goes first. 0 keeps none.", 0, 100_000, 1, unit="GiB")] = 10.0
    cache_folder: Annotated[str, Knob(
        "Where they are kept; empty: in the folder of the runs.", file=True)] = ""
