"""Pictures, captions and buckets in the words of kohya's trainers: arguments, ss_* metadata and the
tables of a dataset config."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import config, words
from .data import captions, folder
from .errors import LycorisError

if TYPE_CHECKING:
    from .kohya import Reading

FLAGS = {  # arguments that mean one of our settings as they stand
    "caption_dropout_rate": "dataset.caption_dropout",
    "bucket_reso_steps": "dataset.bucket_step", "flip_aug": "dataset.flip",
    "random_crop": "dataset.random_crop", "shuffle_caption": "dataset.shuffle_tags",
    "caption_tag_dropout_rate": "dataset.tag_dropout", "enable_wildcard": "dataset.wildcards",
    "caption_prefix": "dataset.caption_prefix", "caption_suffix": "dataset.caption_suffix",
    "validation_split": "dataset.validation"}
FOLDERS = {  # of this machine or of another: taken where they are
    "train_data_dir": "dataset.folder", "vae": "model.vae", "network_weights": "network.weights",
    "sample_prompts": "sample.prompts_file", "pretrained_model_name_or_path": "model.base"}
REGULARISATION, TABLES, FILE = "reg_data_dir", ("datasets", "subsets"), "dataset_config"
KEPT = ("keep_tokens", "keep_tokens_separator")
RESOLUTION = ("resolution", "enable_bucket", "bucket_no_upscale")
BOUNDS = ("min_bucket_reso", "max_bucket_reso")
TOKENS = ("max_token_length",)
ALPHA = ("alpha_mask",)
EXTENSION = ("caption_extension",)
SUBSET = ("image_dir", "num_repeats", "class_tokens", "is_reg", "conditioning_data_dir",
          "metadata_file", *ALPHA, *EXTENSION)  # an entry's own
HUB = re.compile(r"[\w-][\w.-]*/[\w.-]+")
OFF = {  # what says nothing when it is so
    "color_aug": "false", "face_crop_aug_range": "", "caption_dropout_every_n_epochs": "0",
    "token_warmup_min": "1", "token_warmup_step": "0", "secondary_separator": "",
    "caption_separator": ",", "weighted_captions": "false",
    "network_multiplier": "1.0", "lr_scheduler_type": "", "v2": "false", "full_fp16": "false",
    "full_bf16": "false", "fp8_base": "false", "lr_scheduler_args": "[]", "lowram": "false",
    "save_model_as": "safetensors"}
WHY = {
    "color_aug": "pictures are never recoloured here",
    "face_crop_aug_range": "pictures are not cropped around faces here",
    "caption_dropout_every_n_epochs": "captions are left out by their share alone here",
    "token_warmup_step": "a caption has all its tags from the first step here",
    "token_warmup_min": "a caption has all its tags from the first step here",
    "secondary_separator": "every comma divides tags here",
    "caption_separator": "commas divide tags here",
    "weighted_captions": "(word:1.3) weighs in samples alone here",
    "save_every_n_epochs": "counted in steps here: train.checkpoint_every",
    "sample_every_n_epochs": "counted in steps here: sample.every",
    "save_last_n_epochs": "counted in checkpoints here: train.keep_checkpoints",
    "cache_latents": "not needed, latents are always kept",
    "cache_latents_to_disk": "not needed, dataset.cache_limit says how much of them",
    "cache_text_encoder_outputs": "not needed, text embeddings are kept where nothing changes them",
    "xformers": "not needed, attention is PyTorch's own", "sdpa": "not needed, it always is",
    "validation_seed": "which pictures are held out depends on their names here",
    "output_dir": "output.folder says where runs are kept"}


def data_folders(given: Mapping[str, Any], found: Reading) -> None:
    """Paths that are on this machine are taken, the others said."""
    for name, value in given.items():
        if value is None or str(value) == "":
            continue
        path = str(value)
        if name == REGULARISATION and is_here(path):
            found.settings["dataset.more"] = (*found.settings.get("dataset.more", ()), {
                "folder": path, "regularisation": True})
            found.settings["dataset.balance"] = True  # kohya's trainer always does
        elif name in FOLDERS and (is_here(path) or (
                name == "pretrained_model_name_or_path" and HUB.fullmatch(path))):
            found.take(FOLDERS[name], path, name)
        else:
            found.unknown.append(f"{name}={value}: a path of the machine it was written on.")


def is_here(path: str) -> bool:
    """Is there such a file or folder? One of another computer in the network is not asked for."""
    if path.startswith(("\\\\", "//")) or "\0" in path:
        return False
    try:
        return config.find(path).exists()
    except (OSError, ValueError):
        return False


def kept(given: Mapping[str, Any], found: Reading) -> None:
    tokens, separator = (given[name] for name in KEPT)
    if tokens is not None:
        found.take("dataset.keep_tags", tokens, "keep_tokens")
    if separator is not None:
        found.settings["dataset.keep_separator"] = "" if separator == "None" else str(separator)
    if separator and separator != "None" and words.number(tokens):
        found.notes.append("keep_tokens counts here even in a caption with the separator.")


def resolution(given: Mapping[str, Any], found: Reading) -> None:
    """The side of a square; of width and height, in buckets, that of the same area."""
    said = given["resolution"]
    if given["enable_bucket"] is not None:
        found.take("dataset.bucket", given["enable_bucket"], "enable_bucket")
    if str(given["bucket_no_upscale"]).lower() in ("true", "false"):
        found.settings["dataset.enlarge"] = str(given["bucket_no_upscale"]).lower() == "false"
    if said is None or str(said) == "":
        return
    text = str(said).strip("()[] ").replace("x", ",")
    sides = [side.strip() for side in text.split(",") if side.strip()]
    numbers = [words.number(side) for side in sides]
    if len(set(sides)) == 1:
        found.take("dataset.resolution", sides[0], "resolution")
    elif len(sides) == 2 and all(numbers) and found.settings.get("dataset.bucket"):
        side = round(math.sqrt(math.prod(filter(None, numbers))) / 8) * 8
        found.take("dataset.resolution", side, "resolution")
        found.notes.append(f"resolution={said} is the area of {side} px here.")
    else:
        found.unknown.append(f"resolution={said}: one side of a square is known here.")


def bounds(given: Mapping[str, Any], found: Reading) -> None:
    """The shortest and the longest side; ours are those of 1:4 and 4:1 at the same area."""
    side = found.settings.get("dataset.resolution")
    shape = {name: words.number(given[name]) for name in BOUNDS}
    if not found.settings.get("dataset.enlarge", True) or not any(shape.values()):
        return  # there they count for what is enlarged
    low, high = shape.values()
    if side is None or (low or 256) > side / 2 or (high or 1024) < 2 * side:
        listed = "; ".join(f"{name}={given[name]}" for name in BOUNDS if shape[name])
        found.unknown.append(f"{listed}: buckets go from 1:4 to 4:1 of the same area here.")


def tokens(given: Mapping[str, Any], found: Reading) -> None:
    """75, 150 or 225 tokens are 1, 2 or 3 chunks."""
    count = words.number(given["max_token_length"])
    if count and count % 75 == 0:
        found.take("dataset.caption_chunks", int(count) // 75, "max_token_length")
    elif count:
        found.unknown.append(f"max_token_length={given['max_token_length']}: chunks of 75 are "
                             "known here.")


def alpha(given: Mapping[str, Any], found: Reading) -> None:
    if str(given["alpha_mask"]).lower() == "true":
        found.settings["dataset.masks"] = True
        found.settings["loss.unmasked_weight"] = 0.0


def extension(given: Mapping[str, Any], found: Reading) -> None:
    """Which files the captions are in: here it is not a setting, a picture's .txt counts first."""
    said = str(given["caption_extension"] or captions.EXTENSIONS[0])
    if said not in captions.EXTENSIONS:
        found.unknown.append(f"caption_extension={said}: captions are read from "
                             f"{' and '.join(captions.EXTENSIONS)} files here.")
    elif said != captions.EXTENSIONS[0]:
        found.notes.append(f"caption_extension={said}: such a file is read where a picture has no "
                           f"{captions.EXTENSIONS[0]} file.")


def lines(found: Reading) -> None:
    """Of a caption's lines that trainer reads the first, and one of them with wildcards."""
    if found.settings.get("dataset.wildcards"):
        return
    named = [found.settings.get("dataset.folder"), *(
        entry["folder"] for entry in found.settings.get("dataset.more", ()))]
    homes = [config.find(path) for path in named if path]
    files = [file for home in homes for place in (
        [inner for inner, *_ in folder.numbered(home)] or [home])
        for file in folder.caption_files(place)]
    count = sum(captions.has_lines(captions.read(file)[0] or "") for file in files)
    if count or not homes:  # those of another machine may have them
        here = f" ({count} in these folders)" if count else ""
        found.notes.append(f"Captions of several lines{here}: that trainer reads the first line, "
                           "here they are joined.")


# {names read together: how}; after the arguments that stand alone
READERS = {KEPT: kept, RESOLUTION: resolution, BOUNDS: bounds, TOKENS: tokens, ALPHA: alpha,
           EXTENSION: extension, (*FOLDERS, REGULARISATION): data_folders}


def is_off(name: str, value: Any) -> bool:
    """Does it say nothing as it is?"""
    return name in OFF and str(value).lower() in (OFF[name], "", "none", "false", "0", "[]")


def unfolded(given: Mapping[str, Any], found: Reading) -> dict[str, Any]:
    """The arguments, with those of the dataset config among them; its folders become ours."""
    left = dict(given)
    if left.get("datasets"):
        left.pop(FILE, None)
    path = left.get(FILE)
    if path and is_here(str(path)):
        try:
            read = config.read_toml(config.find(str(path)))
        except (LycorisError, ValueError) as error:
            found.unknown.append(f"{FILE}={path}: {error}")
            read = {}
        general = read.get("general")
        left |= {**(general if isinstance(general, dict) else {}), "datasets": read.get("datasets")}
        left.pop(FILE)
    tables = left.pop("datasets", None)
    told = isinstance(tables, str)  # by metadata: names instead of paths
    subsets = list(_subsets(_of_metadata(tables) if told else tables))
    if told and subsets:
        found.unknown.append("datasets: metadata do not say where the folders are; repeated "
                             + ", ".join(str(each.get("num_repeats", 1)) for each in subsets)
                             + " times.")
    if tables and "batch_size" in left:
        left["train_batch_size"] = left.pop("batch_size")
    if not subsets:
        if tables and not told:
            found.unknown.append("datasets: no tables of folders.")
        return left
    for name in sorted({name for subset in subsets for name in subset} - {*SUBSET}):
        theirs = "train_batch_size" if name == "batch_size" else name
        value = _common(name, subsets, left.pop(theirs, None), found)
        if value is not None:
            left[theirs] = value
    general = left.pop(*EXTENSION, "")
    for said in sorted({str(subset.get(*EXTENSION, general)) for subset in subsets}):
        extension({"caption_extension": said}, found)
    _folders(subsets, left.pop("num_repeats", 1), str(left.get("masked_loss")).lower() == "true",
             found)
    return left


def _of_metadata(text: str) -> list[Any]:
    try:
        tables = json.loads(text)
    except (ValueError, RecursionError):
        return []
    known = {*FLAGS, *KEPT, *RESOLUTION, *BOUNDS, *OFF, "num_repeats", "is_reg"}

    def settings(table: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in table.items() if name in known}

    return [{**settings(table), "subsets": [
        settings(each) for each in table.get("subsets") or () if isinstance(each, dict)]}
            for table in tables if isinstance(table, dict)] if isinstance(tables, list) else []


def _subsets(tables: Any) -> Iterator[dict[str, Any]]:
    """Each folder with what is said of it and of the dataset around it."""
    for table in tables if isinstance(tables, list) else ():
        if isinstance(table, Mapping):
            above = {name: value for name, value in table.items() if name != "subsets"}
            inner = table.get("subsets")
            for subset in inner if isinstance(inner, list) else ():
                if isinstance(subset, Mapping):
                    yield {**above, **subset}


def _common(name: str, subsets: Sequence[Mapping[str, Any]], general: Any, found: Reading) -> Any:
    """What is said of all folders that teach something new; None where they differ."""
    values = [subset.get(name, general) for subset in subsets if not _is_prior(subset)] or [
        subset.get(name, general) for subset in subsets]
    if any(value != values[0] for value in values):
        found.unknown.append(f"{name} differs between the folders ({', '.join(map(str, values))}): "
                             "one setting is for all of them here.")
        return None
    if any(subset.get(name, general) != values[0] for subset in subsets):
        found.notes.append(f"{name}={values[0]} counts for regularisation pictures too.")
    return values[0]


def _is_prior(subset: Mapping[str, Any]) -> bool:
    return str(subset.get("is_reg")).lower() == "true"


def _folders(subsets: Sequence[Mapping[str, Any]], repeats: Any, masked: bool,
             found: Reading) -> None:
    """The first folder that teaches something new becomes the main one, all others further ones."""
    entries = []
    for subset in subsets:
        path = str(subset.get("image_dir") or "")
        if not path or not is_here(path):
            if path:
                found.unknown.append(f"image_dir={path}: there is no such folder here.")
            continue
        if subset.get("metadata_file"):
            found.unknown.append(f"metadata_file={subset['metadata_file']}: captions are read from "
                                 "files beside the pictures here.")
        entry: dict[str, Any] = {"folder": path}
        count = words.number(subset.get("num_repeats", repeats))
        if count and count > 1:
            entry["repeats"] = int(count)
        if subset.get("class_tokens"):
            entry["caption"] = str(subset["class_tokens"])
        if masked and subset.get("conditioning_data_dir"):
            entry["mask_folder"] = str(subset["conditioning_data_dir"])
        elif subset.get("conditioning_data_dir"):
            found.unknown.append(f"conditioning_data_dir={subset['conditioning_data_dir']}: masks "
                                 "of masked_loss alone are known here.")
        if _is_prior(subset):
            entry["regularisation"] = True
        entries.append(entry)
    main = min((entry for entry in entries if "regularisation" not in entry),
               key=lambda entry: "caption" in entry, default=None)
    if main is None:
        found.unknown += [f"image_dir={entry['folder']}: regularisation pictures beside none to "
                          "learn." for entry in entries]
        return
    if "caption" in main:
        found.unknown.append(f"class_tokens={main['caption']}: the first folder's pictures need "
                             "captions of their own here.")
    found.settings |= {"dataset.folder": main["folder"],
                       "dataset.repeats": main.get("repeats", 1),
                       "dataset.more": tuple(each for each in entries if each is not main)}
    if any(str(subset.get("alpha_mask")).lower() == "true" for subset in subsets):
        alpha({"alpha_mask": True}, found)
    if any("mask_folder" in entry for entry in entries):
        found.settings["dataset.masks"] = True
        found.settings["dataset.mask_folder"] = main.get("mask_folder", "")
    if any("regularisation" in entry for entry in entries):
        found.settings["dataset.balance"] = True  # kohya's trainer always does
