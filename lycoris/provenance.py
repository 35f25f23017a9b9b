"""What an adapter that a tool made says of itself: what its sources said, as far as it is still
true, and what was done to them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from torch import Tensor

from . import __version__, dialects
from .algorithms import Layer
from .families import Family
from .metadata import CONFIG_KEY, config_of
from .settings import Config

MADE = "lycogui_made"  # a tool's verb, its sources and settings, as JSON
SOURCE_CONFIG = "lycogui_source_config"  # the recipe of what it was made from
BASE = "ss_base_model_version"
TAGS = "ss_tag_frequency"
# What is true of one file only: hashes, and the config that PEFT's readers take the scale from.
OWN = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", MADE,
       dialects.DIFFUSERS_CONFIG)

Metadata = Mapping[str, str]
Groups = Sequence[tuple[Layer, Mapping[str, Tensor]]]


@dataclass(frozen=True)
class Deed:
    """What was done: the verb, its settings, and the names of what it was done to.

    `keeps_training` where the tensors are still those that the recipe gave.
    """

    verb: str
    settings: Mapping[str, Any]
    names: Sequence[str] = ()
    keeps_training: bool = False

    @property
    def text(self) -> str:
        said = ", ".join(f"{key} {value}" for key, value in self.settings.items()
                         if value is not None)
        return f"{self.verb} of {', '.join(self.names)}" + (f" ({said})" if said else "")


def describe(title: str, deed: Deed, groups: Groups, sources: Sequence[Metadata],
             family: Family | None) -> dict[str, str]:
    """The metadata of a new file, without hashes; all values are strings."""
    found = {key: value for key, value in _agreed(sources).items() if key not in OWN}
    if not deed.keeps_training:
        if CONFIG_KEY in found:
            found[SOURCE_CONFIG] = found.pop(CONFIG_KEY)
        found |= network_facts(groups)
    names = [layer.name for layer, _ in groups]
    if family is None and BASE not in found and dialects.made_for(names) == "SDXL":
        found[BASE] = "sdxl_base_v1-0"  # a file with metadata and without this counts as SD1
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    comments = [each for each in (found.get("ss_training_comment"), deed.text) if each]
    made = {"verb": deed.verb, "from": list(deed.names), **deed.settings, "lycogui": __version__}
    before = [json.loads(source[MADE]) for source in sources if _is_json(source.get(MADE))]
    if before:
        made["before"] = before
    found = {**({} if family is None else family.metadata), **found,
             "ss_output_name": title, "ss_training_comment": "; ".join(comments),
             "modelspec.sai_model_spec": "1.0.1", "modelspec.implementation": "diffusers",
             "modelspec.title": title, "modelspec.date": now,
             MADE: json.dumps(made, ensure_ascii=False)}
    if len(deed.names) > 1:
        found["modelspec.merged_from"] = ", ".join(deed.names)
    return found


def network_facts(groups: Groups) -> dict[str, str]:
    """ss_network_*: the algorithm, dim and alpha of the tensors; "Dynamic" where they differ from
    layer to layer."""
    kinds: Counter[str] = Counter()
    sizes: dict[bool, set[tuple[int, float]]] = {False: set(), True: set()}
    for layer, group in groups:
        read = dialects.identify({suffix: tuple(tensor.shape) for suffix, tensor in group.items()})
        name = "lora" if read is None else read[0].name  # a LoRA with a sparse rest
        kinds[name] += layer.kind != "norm"
        if read is not None and read[0].scaled and "alpha" in group:
            sizes[layer.is_spatial].add((read[1], group["alpha"].item()))
    main = kinds.most_common(1)[0][0] if kinds else "none"
    plain = sizes[False] or sizes[True]
    args = {"algo": main}
    if sizes[True]:
        args |= {"conv_dim": _one(dim for dim, _ in sizes[True]),
                 "conv_alpha": _one(alpha for _, alpha in sizes[True])}
    only_lora = set(kinds) == {"lora"} and all(
        set(group) <= {"lora_up.weight", "lora_down.weight", "alpha"} for _, group in groups)
    if only_lora:
        args.pop("algo")
    return {"ss_network_module": "networks.lora" if only_lora else "lycoris.kohya",
            "ss_network_dim": _one(dim for dim, _ in plain) if plain else "None",
            "ss_network_alpha": _one(alpha for _, alpha in plain) if plain else "None",
            "ss_network_args": json.dumps(args)}


def made_by(found: Metadata) -> dict[str, Any] | None:
    """What a tool wrote of how it made the file; None for one that was trained."""
    return json.loads(found[MADE]) if _is_json(found.get(MADE)) else None


def source_config(found: Metadata) -> Config | None:
    """The recipe of the adapter that a file was made from."""
    return config_of({CONFIG_KEY: found[SOURCE_CONFIG]}) if SOURCE_CONFIG in found else None


def trigger_words(found: Metadata) -> list[str]:
    """The words that call what was learned: the file's own, else the caption pieces that stand
    under every picture."""
    if said := found.get("modelspec.trigger_phrase", ""):
        return [word.strip() for word in said.split(",") if word.strip()]
    tags = frequent_tags(found)
    try:
        pictures = int(found.get("ss_num_train_images", ""))
    except ValueError:
        return []
    return [tag for tag, count in tags if pictures > 1 and count >= pictures]


def frequent_tags(found: Metadata, most: int = 50) -> list[tuple[str, int]]:
    """[(caption piece, how often)], the most frequent first, over all folders of the data set."""
    counts: Counter[str] = Counter()
    folders = json.loads(found[TAGS]) if _is_json(found.get(TAGS)) else {}
    for tags in folders.values():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if isinstance(count, int):
                counts[tag.strip()] += count
    return counts.most_common(most)


def _agreed(sources: Sequence[Metadata]) -> dict[str, str]:
    """What all sources say alike, and the caption pieces of each."""
    if len(sources) == 1:
        return dict(sources[0])
    found = {key: value for key, value in (sources[0] if sources else {}).items()
             if all(source.get(key) == value for source in sources)}
    tags: dict[str, Any] = {}
    for source in sources:
        tags = (json.loads(source[TAGS]) if _is_json(source.get(TAGS)) else {}) | tags
    return found | ({TAGS: json.dumps(tags, ensure_ascii=False)} if tags else {})


def _one(values: Any) -> str:
    different = set(values)
    return f"{different.pop():g}" if len(different) == 1 else "Dynamic"


def _is_json(text: str | None) -> bool:
    """Is it a JSON object?"""
    try:
        return isinstance(json.loads(text or ""), dict)
    except (ValueError, RecursionError):
        return False
