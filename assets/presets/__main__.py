"""python -m assets.presets: writes every preset of this folder from the table below.

A preset is a partial run: model.dtype, dataset, network, loss, optimizer, train and sample, for one
purpose, one kind of model and one size of card (GB as cards are sold: GiB). It never names the base
model, the pictures or the run. Every value stands here once, with where it comes from, in the most
general group that it holds for; a later group overrides an earlier one.

The rule behind the numbers: one purpose on one model is the same run on every card. A step sees
four pictures whatever the card; the card decides only in how many passes, whether activations are
kept, and, on SD 1.5, at which resolution.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from lycoris import durable
from lycoris.config import LEAVES, toml_value

HERE = Path(__file__).parent
FAMILIES = {"sd15": "SD 1.5", "sdxl": "SDXL"}
GUIDELINE = "LyCORIS Guidelines"


class Fact(NamedTuple):
    """One setting and its source; without one it goes on under the source above it."""

    path: str
    value: Any
    source: str = ""


class Purpose(NamedTuple):
    title: str
    about: str


PURPOSES = {
    "person": Purpose("Person", "A real person from some 15 to 40 photos, as exact as possible."),
    "character": Purpose("Character", "A drawn character that shall take other poses, clothes and "
                                      "styles than its pictures."),
    "style": Purpose("Style", "How a set of pictures is drawn, painted or photographed."),
    "object": Purpose("Object", "One thing from a few pictures, in new places."),
}

COMMON = (
    Fact("model.dtype", "auto", "Half precision, as every preset of the field has it on a GPU."),
    Fact("dataset.bucket", True, "kohya's default: buckets, their sides multiples of 64."),
    Fact("dataset.bucket_step", 64),
    Fact("dataset.caption_dropout", 0.05, "kohya LoKr v1.x and AI_characters, ai-toolkit: 0.05."),
    Fact("network.preset", "attn-mlp", f"{GUIDELINE}, extended version 6: attn-mlp in most cases; "
                                       "OneTrainer's presets take the same layers."),
    Fact("loss.weighting", "min-snr", "kohya AI_Now, AI_characters and LoKr v1.x: min-SNR, 5."),
    Fact("loss.snr_gamma", 5.0),
    Fact("optimizer.weight_decay", 0.01, "PyTorch's default for AdamW."),
    Fact("optimizer.schedule", "cosine", "kohya's default: cosine, warm-up 10 %; the presets' "
                                         "range is 5 to 10 %."),
    Fact("optimizer.warmup", 0.05),
    Fact("sample.every", 100, "ai-toolkit: samples and checkpoints together, the last 4 kept."),
    Fact("train.checkpoint_every", 100),
    Fact("train.keep_checkpoints", 4),
    Fact("sample.steps", 25, "This program's defaults."),
    Fact("sample.guidance", 7.0),
)

FAMILY = {
    "sd15": (
        Fact("dataset.resolution", 512, "What SD 1.5 was trained at."),
        Fact("optimizer.name", "AdamW", "kohya loha-sd15, OneTrainer: AdamW."),
        Fact("network.text_encoder", True, "kohya EDG: text encoder at half the UNet's rate."),
    ),
    "sdxl": (
        Fact("dataset.resolution", 1024, "What SDXL was trained at; kohya AI_Now: 1024."),
        Fact("optimizer.name", "AdamW8bit", "kohya malcolmrey, face and AI_characters: AdamW8bit; "
                                            "AdamW's state is half a gigabyte more at dim 32."),
        Fact("network.text_encoder", False, "OneTrainer's SDXL presets leave the text encoders as "
                                            "they are."),
    ),
}

# Adam moves a factor by the rate, whatever the scale, and so the weight by rate x alpha / dim.
SAME_MOVE = ("Twice the rate at half the scale moves the weights as much as 1e-4 at alpha / dim = "
             "1 does: kohya AI_Now (32/32, batch 4) and EDG (64/64, batch 3).")

PURPOSE = {
    "person": (
        Fact("network.algo", "lora", f"{GUIDELINE}, short version 2: LoRA where size is a concern; "
                                     "kohya malcolmrey (SDXL, people): dim 32, alpha 13."),
        Fact("network.dim", 32),
        Fact("network.alpha", 16.0, "alpha / dim = 0.5, as kohya loha-sd15, AI_Now Prodigy and "
                                    "face have it."),
        Fact("optimizer.lr", 2e-4, SAME_MOVE),
        Fact("train.steps", 500, "2,000 pictures seen, of the usual 1,500 to 3,000."),
    ),
    "character": (
        Fact("network.algo", "loha", f"{GUIDELINE}, extended version 2.1: LoHa is better at "
                                     "changing a character's style, and takes less of the style "
                                     "of its pictures. Not for complex characters (2.2): take "
                                     "person for those."),
        Fact("network.dim", 16, f"{GUIDELINE}, table of sizes: LoHa 16 is as large as LoRA 32; "
                                "the usual range is 8 to 16."),
        Fact("network.alpha", 8.0, "alpha / dim = 0.5, as kohya loha-sd15 (32/16)."),
        Fact("train.steps", 600, "2,400 pictures seen, of the usual 1,500 to 3,000."),
    ),
    "style": (
        Fact("network.algo", "lokr", f"{GUIDELINE}, short version 2: for intricate details LoKr "
                                     "with a low factor (4 to 8) and full dimension; kohya LoKr "
                                     "v1.x: factor 6. Factor 8 has the smallest file of these."),
        Fact("network.options", {"factor": 8, "full_matrix": True}),
        Fact("network.dim", 32, "Neither counts at full dimension: the scale is 1 whatever they "
                                "are."),
        Fact("network.alpha", 32.0),
        Fact("dataset.caption_dropout", 0.1, "kohya LoKr v2.0: 0.1; a style is to come without "
                                             "words too."),
        Fact("optimizer.lr", 2e-4, "At a scale of 1; kohya LoKr v1.x: 1e-4, and full matrices are "
                                 "trained at 1e-4 to 3e-4."),
        Fact("train.steps", 750, "3,000 pictures seen, of the usual 1,500 to 3,000: the most, as "
                                 "a style has the most pictures."),
    ),
    "object": (
        Fact("network.algo", "lora", f"{GUIDELINE}, short version 2: LoRA where size is a concern. "
                                     "OneTrainer: dim 16; a small dim learns less of what is "
                                     "around the thing (short version 3)."),
        Fact("network.dim", 16),
        Fact("network.alpha", 8.0, "alpha / dim = 0.5; the usual range is 0.5 to 1."),
        Fact("optimizer.lr", 2e-4, SAME_MOVE),
        Fact("train.steps", 400, "1,600 pictures seen: kohya's default of 1,600 at batch 1."),
    ),
}

HALF_RATE = "Half the UNet's: kohya EDG, 5e-5 beside 1e-4."
BOTH = {
    **{(purpose, "sd15"): (Fact("optimizer.text_encoder_lr", 1e-4, HALF_RATE),)
       for purpose in ("person", "object")},
    ("character", "sd15"): (
        Fact("optimizer.lr", 1e-4, "kohya loha-sd15: 1e-4 with four pictures a step at the same "
                                   "scale."),
        Fact("optimizer.text_encoder_lr", 5e-5, HALF_RATE),
    ),
    ("character", "sdxl"): (
        Fact("optimizer.lr", 5e-4, "The low end of what is published for LoHa on SDXL, 5e-4 to "
                                   "1e-3 (kohya AI_characters: 1e-3 at batch 8, alpha / dim = 1); "
                                   "on SD 1.5 the presets say a tenth. Unsettled: watch the first "
                                   "samples and lower it where they burn."),
    ),
    ("style", "sd15"): (
        Fact("optimizer.text_encoder_lr", 1e-4, HALF_RATE),
        Fact("loss.noise_offset", 0.05, "kohya EDG: 0.05, for very dark and very bright pictures."),
    ),
    ("style", "sdxl"): (
        Fact("loss.noise_offset", 0.0357, "kohya edgLoRAXL: 0.0357. For models that predict v: 0."),
    ),
}

PASSES = {1: "four passes of one picture", 2: "two passes of two pictures",
          4: "one pass of four pictures"}


def memory(batch: int, checkpointing: bool, why: str = "") -> tuple[Fact, ...]:
    kept = "activations computed twice" if checkpointing else "activations kept"
    return (
        Fact("train.batch_size", batch, f"Four pictures a step (OneTrainer, kohya AI_Now: batch "
                                        f"4), in {PASSES[batch]}, {kept}: what this card holds "
                                        f"by the prediction of lycoris/memory.py.{why}"),
        Fact("train.accumulate", 4 // batch),
        Fact("train.gradient_checkpointing", checkpointing),
    )


LARGER = "There is room for more detail than SD 1.5's own 512; kohya LoKr v1.x: 768."
CARD = {
    ("sd15", 8): memory(2, False),
    ("sd15", 12): memory(4, False),
    ("sd15", 16): (*memory(4, False), Fact("dataset.resolution", 640, LARGER)),
    ("sd15", 24): (*memory(4, False), Fact("dataset.resolution", 768, LARGER)),
    ("sdxl", 8): (*memory(2, True), Fact(
        "model.dtype", "nf4", "In half precision SDXL's weights alone are 7 GB: its linear layers "
                              "in 4 bits, as QLoRA has them (Dettmers et al. 2023, arXiv "
                              "2305.14314). The adapter is not rounded.")),
    ("sdxl", 12): memory(2, True),
    ("sdxl", 16): memory(4, True),
    ("sdxl", 24): memory(1, False),
}


def facts(purpose: str, family: str, card: int) -> dict[str, Fact]:
    """{path: fact} of one preset, in the order in which settings are declared."""
    groups = (COMMON, FAMILY[family], PURPOSE[purpose], BOTH.get((purpose, family), ()),
              CARD[family, card])
    found = {fact.path: fact for group in groups for fact in _sourced(group)}
    return {path: found[path] for path in LEAVES if path in found}


def _sourced(group: Iterable[Fact]) -> Iterator[Fact]:
    """Every fact with the source that it stands under."""
    source = ""
    for fact in group:
        source = fact.source or source
        yield fact._replace(source=source)


def text(purpose: str, family: str, card: int) -> str:
    """The file: TOML with every number's source above it."""
    said = PURPOSES[purpose]
    lines = ["# Written by python -m assets.presets, from the table there.", "", "[about]",
             f"title = {toml_value(f'{said.title}, {FAMILIES[family]}, {card} GB')}",
             f"text = {toml_value(said.about)}", f"purpose = {toml_value(purpose)}",
             f"family = {toml_value(family)}", f"memory = {card}"]
    section = source = ""
    for path, fact in facts(purpose, family, card).items():
        head, name = path.split(".")
        if head != section:
            lines += ["", f"[{head}]"]
            section, source = head, ""
        if fact.source != source:
            lines += textwrap.wrap(fact.source, 98, initial_indent="# ", subsequent_indent="# ")
            source = fact.source
        lines.append(f"{name} = {toml_value(fact.value)}")
    return "\n".join(lines) + "\n"


def files() -> dict[str, str]:
    """{name of the file: its text}"""
    return {f"{purpose}-{family}-{card}gb.toml": text(purpose, family, card)
            for purpose, (family, card) in product(PURPOSES, CARD)}


def main() -> None:
    for name, written in files().items():
        durable.write_text(HERE / name, written)


if __name__ == "__main__":
    main()
