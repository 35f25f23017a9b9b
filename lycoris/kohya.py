"""Configurations in the words of kohya's trainers: arguments, network_args, ss_* metadata.

    --network_module lycoris.kohya --network_dim 16 --network_alpha 8
    --network_args "algo=lokr" "factor=8" "preset=attn-mlp" "conv_dim=4" "dora_wd=True"

Reading is by tables; what they do not know is said, never dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import (
    algorithms,
    knobs,
    kohya_blocks,
    kohya_course,
    kohya_data,
    kohya_loss,
    optimizers,
    words,
)
from .config import LEAVES
from .errors import ConfigError
from .families import preset_names
from .presetfile import IGNORED, RENAMED, SAME_ALGO

MODULE = "lycoris.kohya"
# What is taken where nothing is said, by LyCORIS' create_network and sd-scripts' arguments.
DEFAULTS = {"network.algo": "lora", "network.preset": "full", "network.dim": 4,
            "network.alpha": 1.0}
# kohya's own networks as LyCORIS' settings; with conv_dim they take the convolutions too.
NETWORKS = {"networks.lora": "lora", "networks.dylora": "dylora", "networks.loha": "loha",
            "networks.lokr": "lokr"}
ARGS = {  # network_args
    "algo": "network.algo", "preset": "network.preset", "conv_dim": "network.conv_dim",
    "conv_alpha": "network.conv_alpha", "train_norm": "network.train_norm",
    "dora_wd": "network.dora_wd", "wd_on_output": "network.wd_on_output",
    "rs_lora": "network.rs_lora", "use_scalar": "network.use_scalar",
    "dropout": "network.dropout", "rank_dropout": "network.rank_dropout",
    "module_dropout": "network.module_dropout", "loraplus_lr_ratio": "optimizer.plus_ratio",
    "loraplus_text_encoder_lr_ratio": "optimizer.text_encoder_plus_ratio"}
ALIASES = {**RENAMED, "use_conv_cp": "use_tucker", "unit": "block_size",
           "sig_type": "directions", "conv_lora_dim": "conv_dim"}
FLAGS = {  # arguments that mean one of our settings as they stand
    "network_dim": "network.dim", "network_alpha": "network.alpha",
    "network_dropout": "network.dropout", "max_train_steps": "train.steps",
    "train_batch_size": "train.batch_size", "batch_size_per_device": "train.batch_size",
    "gradient_accumulation_steps": "train.accumulate", "seed": "train.seed",
    "gradient_checkpointing": "train.gradient_checkpointing",
    "lr_scheduler_power": "optimizer.power", "lr_scheduler_num_cycles": "optimizer.cycles",
    "max_grad_norm": "train.clip_norm", "scale_weight_norms": "train.max_norm",
    "sample_every_n_steps": "sample.every",
    "clip_skip": "model.clip_skip", "output_name": "output.name",
    "metadata_author": "output.author", "metadata_license": "output.license",
    "metadata_description": "output.description",
    **kohya_data.FLAGS, **kohya_loss.FLAGS}
PATHS = (*kohya_data.FOLDERS, kohya_data.REGULARISATION, kohya_data.FILE, "output_dir",
         "logging_dir")
# What the trainer takes in a whole run where nothing is said: as we do, and otherwise.
AS_OURS = (*kohya_data.FLAGS.values(), *kohya_loss.FLAGS.values(), "loss.weighting",
           "loss.pyramid_iterations", "dataset.masks", "dataset.keep_tags",
           "dataset.caption_chunks", "dataset.enlarge", "model.clip_skip", "train.max_norm",
           "train.batch_size", "train.accumulate")
OTHERWISE = {"optimizer.lr": 2e-6, "optimizer.text_encoder_lr": 2e-6,
             "optimizer.schedule": "constant", "optimizer.warmup": 0.0, "train.steps": 1600,
             "dataset.caption_dropout": 0.0, "dataset.bucket": False}
DATA = ("train_data_dir", "datasets", "dataset_config")  # of which a whole run names one
PRECISIONS = {"no": "fp32", "float": "fp32"}
NOTHING = ("", "None", "none")
# ({path: value}, what was not understood, what is not quite the same here)
Read = tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]
DYNAMIC = "Dynamic"  # metadata of files whose layers have dims of their own


@dataclass
class Reading:
    """What has been understood so far, and what has not."""

    settings: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what is taken and is not quite the same
    problems: dict[str, str] = field(default_factory=dict)

    def take(self, path: str, value: Any, said: str) -> None:
        """One value for one of our settings; `said` is how the source calls it."""
        leaf = LEAVES[path]
        if str(value) in NOTHING and leaf.type is not str:
            if leaf.optional:
                self.settings[path] = None
            return
        try:
            self.settings[path] = knobs.coerce(leaf, value)
        except ValueError as error:
            self.problems[path] = f"{said} {error}"

    def finished(self) -> Read:
        """ConfigError lists the values that mean nothing."""
        self._names()
        self._options()
        if self.problems:
            raise ConfigError(self.problems)
        return self.settings, tuple(self.unknown), tuple(self.notes)

    def _names(self) -> None:
        for path, known in (("network.algo", tuple(algorithms.catalogue())),
                            ("network.preset", preset_names())):
            name = self.settings.get(path)
            if name is not None and name not in known:
                del self.settings[path]
                self.unknown.append(f"{LEAVES[path].name}={name}: there is none here."
                                    + knobs.nearest(name, known))

    def _options(self) -> None:
        """The algorithm's own settings; those of any where the source names none."""
        algo = self.settings.get("network.algo")
        entries = algorithms.catalogue()
        homes = [entries[algo]] if algo else list(entries.values())
        ready: dict[str, Any] = {}
        for name, value in self.options.items():
            leaf = next((knobs.leaves(home.Options)[name] for home in homes
                         if name in knobs.leaves(home.Options)), None)
            if leaf is None:
                if any(name in knobs.leaves(each.Options) for each in entries.values()):
                    self.unknown.append(f"{name}={value}: {algo} has no such option.")
                else:
                    self.unknown.append(f"{name}={value}: no setting of ours."
                                        + knobs.nearest(name, (*ARGS, *ALIASES)))
                continue
            try:
                if str(value) not in NOTHING:
                    ready[name] = knobs.coerce(leaf, value)
            except ValueError as error:
                self.problems[f"network.options.{name}"] = f"{name} {error}"
        if ready or algo:
            self.settings["network.options"] = ready


def read(given: Mapping[str, Any]) -> Read:
    """What the trainer's arguments {name: value} say.

    What the trainer takes by itself where a network is named and something is not said, is said
    here. ConfigError lists every value that means nothing.
    """
    found = Reading()
    differing = {name for name, value in given.items() if value == DYNAMIC}
    found.unknown += [f"{name} differs from layer to layer." for name in sorted(differing)]
    left = {name: value for name, value in given.items() if name not in differing}
    args = _pairs(left.pop("network_args", ()), found)
    module = left.pop("network_module", None)
    module = None if module is None else str(module)
    is_whole = module is not None and any(left.get(name) for name in DATA)
    left = kohya_data.unfolded(left, found)
    network(module, args, found)
    for reader in READERS.values():
        if any(each in left for each in reader.names):
            reader.read({each: left.pop(each, None) for each in reader.names}, found)
    for name, value in left.items():
        _other(name, value, found)
    if module is not None:
        for path, value in DEFAULTS.items():
            if path not in found.settings and path not in {FLAGS.get(each) for each in differing}:
                found.settings[path] = value
    if is_whole:
        _whole(found, bool(given.get("max_train_epochs")), any(
            given.get(name) for name in ("learning_rate", "text_encoder_lr"))
            or found.settings.get("network.text_encoder") is False)
    kohya_blocks.rules(module, {name: args.get(name) for name in kohya_blocks.NAMES}, found)
    return found.finished()


def _whole(found: Reading, counts_epochs: bool, says_rate: bool) -> None:
    """What a whole run leaves to its trainer; `says_rate` of the text encoder."""
    otherwise = {path: value for path, value in OTHERWISE.items() if path not in found.settings
                 and not (path == "train.steps" and counts_epochs)
                 and not (path == "optimizer.text_encoder_lr" and says_rate)}
    own = {path: LEAVES[path].default for path in AS_OURS if path not in found.settings}
    found.settings |= own | otherwise
    kohya_data.lines(found)
    if otherwise:
        found.notes.append(f"Not said, so as that trainer takes it: {', '.join(otherwise)}.")


def _other(name: str, value: Any, found: Reading) -> None:
    """An argument that stands alone."""
    said = name if value is True else f"{name}={value}"
    if name in FLAGS:
        found.take(FLAGS[name], value, name)
    elif name in PATHS:
        found.unknown.append(f"{said}: a path of the machine it was written on.")
    elif not kohya_data.is_off(name, value):
        found.unknown.append(f"{said}: {kohya_data.WHY.get(name, 'no setting of ours')}.")


def network(module: str | None, args: Mapping[str, Any], found: Reading) -> None:
    """The kind of network and its network_args."""
    args = {ALIASES.get(name, name): value for name, value in args.items()}
    if "loraplus_unet_lr_ratio" in args:  # ours are that of all and that of the text encoders
        args.setdefault("loraplus_text_encoder_lr_ratio", args.get("loraplus_lr_ratio", 1))
        args["loraplus_lr_ratio"] = args.pop("loraplus_unet_lr_ratio")
    if module is not None and module not in (MODULE, "lycoris", *NETWORKS):
        found.unknown.append(f"network_module={module}: only {MODULE} and "
                             f"{', '.join(NETWORKS)} mean something here.")
    if module in NETWORKS:
        conv = str(args.get("conv_dim", "0")) not in (*NOTHING, "0") or "conv_block_dims" in args
        args = {"algo": NETWORKS[module], "preset": "full" if conv else "attn-mlp",
                **({"conv_dim": 0, "conv_alpha": 1} if conv else {}), **args}
        if conv and args["preset"] == "full":
            found.settings["network.rules"] = kohya_blocks.BEYOND
    if str(args.get("dora_wd", "")).lower() == "true" and "wd_on_output" not in args:
        found.unknown.append("wd_on_output is not said, and its default differs between versions "
                             "of LyCORIS.")
    if str(args.get("decompose_both")).lower() == "false":
        found.notes.append("decompose_both=False: off here; some versions of LyCORIS take any text "
                           "as yes.")
    for name, value in args.items():
        if name == "algo":
            value = SAME_ALGO.get(str(value).lower(), str(value).lower())
        if name in ARGS:
            found.take(ARGS[name], value, name)
        elif name in IGNORED:
            found.unknown.append(f"{name}={value}: not needed, {IGNORED[name]}.")
        elif name not in kohya_blocks.NAMES:
            found.options[name] = value


@dataclass(frozen=True)
class Reader:
    """Arguments that are read together."""

    names: tuple[str, ...]
    read: Callable[[Mapping[str, Any], Reading], None]


def _rates(said: Mapping[str, Any], found: Reading) -> None:
    """kohya has one rate for all and one for each part; ours are the UNet's and the text
    encoder's."""
    rates = {}
    second = None
    for name, value in said.items():
        value = words.literal(value) if str(value).startswith("[") else value
        values = [str(each) for each in (value if isinstance(value, (list, tuple)) else [value])
                  if str(each) not in NOTHING]
        if name == "text_encoder_lr" and len(values) == 2 and len(set(values)) == 2:
            second = values.pop()
        if len(set(values)) > 1:
            found.unknown.append(f"{name}={value}: one rate, or one for each of two text encoders, "
                                 "is known here.")
        elif values:
            rates[name] = values[0]
    common = rates.get("learning_rate")
    unet, text = rates.get("unet_lr", common), rates.get("text_encoder_lr", common)
    if unet is not None:
        found.take("optimizer.lr", unet, "learning_rate")
    if text is not None and words.number(text) == 0:
        found.settings["network.text_encoder"] = False
    elif text is not None and words.number(text) != words.number(unet):
        found.take("optimizer.text_encoder_lr", text, "text_encoder_lr")
    if second is not None:
        found.take("optimizer.text_encoder_2_lr", second, "text_encoder_lr")


def _optimizer(said: Mapping[str, Any], found: Reading) -> None:
    name, _, inner = str(said["optimizer_type"] or "").partition("(")
    if str(said["use_8bit_adam"]).lower() == "true":
        name = "AdamW8bit"
    name = name.rpartition(".")[2]  # metadata has the class' whole path
    name = SAME_OPTIMIZER.get(name.lower(), name)
    row = next((row for row in optimizers.ROWS if row.lower() == name.lower()), None)
    if row:
        found.settings["optimizer.name"] = row
        if row in UNDECAYED:
            found.settings["optimizer.weight_decay"] = 0.0
    elif name not in NOTHING:
        found.unknown.append(f"optimizer_type={name}: known are {', '.join(optimizers.ROWS)}.")
    inside = re.split(r",(?![^(]*\))", inner.removesuffix(")"))
    given = said["optimizer_args"] or [part for part in inside if "=" in part]
    args = {}
    for key, value in _pairs(given, found).items():
        if key == "weight_decay":
            found.take("optimizer.weight_decay", value, key)
        elif row and str(optimizers.ROWS[row].given.get(key)) == str(value):
            continue  # as ours is made anyway
        elif key in NOT_NEEDED.get(row or "", ()):
            found.unknown.append(f"{key}={value}: not needed.")
        else:
            args[SAME_ARGUMENT.get(row or "", {}).get(key, key)] = words.literal(value)
    if args:
        found.settings["optimizer.args"] = args


# What kohya's trainers call otherwise.
SAME_OPTIMIZER = {"adamwschedulefree": "ScheduleFreeAdamW", "pagedadamw": "PagedAdamW32bit",
                  "radamschedulefree": "ScheduleFreeRAdam", "adopt": "ADOPT"}
SAME_ARGUMENT = {"Prodigy": {"decouple": "weight_decouple",
                             "use_bias_correction": "bias_correction"}}
NOT_NEEDED = {"Prodigy": ("slice_p", "fsdp_in_use"), "Adafactor": ("warmup_init",)}
# What have no weight decay where none is said; ours is that of the others.
UNDECAYED = ("Lion", "Lion8bit", "Adafactor", "CAME", "Prodigy", "ADOPT", "ScheduleFreeAdamW",
             "ScheduleFreeRAdam")


def _precision(said: Mapping[str, Any], found: Reading) -> None:
    for name, path in (("mixed_precision", "train.precision"), ("save_precision", "output.dtype")):
        if (value := said[name]) is not None:
            found.take(path, PRECISIONS.get(str(value), value), name)


def _vae(said: Mapping[str, Any], found: Reading) -> None:
    if str(said["no_half_vae"]).lower() == "true":
        found.settings["model.vae_dtype"] = "fp32"


def _parts(said: Mapping[str, Any], found: Reading) -> None:
    if str(said["network_train_text_encoder_only"]).lower() == "true":
        found.unknown.append("network_train_text_encoder_only: the UNet is always trained here.")
    elif str(said["network_train_unet_only"]).lower() == "true":
        found.settings["network.text_encoder"] = False


READERS = {reader.names[0]: reader for reader in (
    Reader(("learning_rate", "unet_lr", "text_encoder_lr"), _rates),
    Reader(("optimizer_type", "optimizer_args", "use_8bit_adam"), _optimizer),
    *(Reader(names, read) for names, read in kohya_course.READERS.items()),
    Reader(("mixed_precision", "save_precision"), _precision),
    Reader(("no_half_vae",), _vae),
    Reader(("network_train_unet_only", "network_train_text_encoder_only"), _parts),
    *(Reader(names, read) for names, read in kohya_data.READERS.items()),
    *(Reader(names, read) for names, read in kohya_loss.READERS.items()))}
KNOWN = {"network_module", "network_args", "datasets", *FLAGS, *PATHS,
         *(name for reader in READERS.values() for name in reader.names)}


# What the metadata calls otherwise than the command line does.
SS_NAMES = {"optimizer": "optimizer_type", **kohya_loss.SS_NAMES}
SS_READ = (*FLAGS, *KNOWN, *SS_NAMES)


def from_metadata(found: Mapping[str, str]) -> dict[str, Any]:
    """{argument: value} of a file's ss_* keys, without those that only report."""
    given: dict[str, Any] = {}
    for key, value in found.items():
        name = key.removeprefix("ss_")
        if key.startswith("ss_") and name in SS_READ and name not in PATHS and (
                value not in NOTHING):
            given[SS_NAMES.get(name, name)] = value
    if "network_args" in given:
        try:
            given["network_args"] = json.loads(given["network_args"])
        except (ValueError, RecursionError):
            given["network_args"] = str(given["network_args"])
    return given


def _pairs(given: Any, found: Reading) -> dict[str, Any]:
    """{name: value} of `name=value` texts, of one text that holds several, or of a mapping."""
    pairs, others = words.pairs(given)
    found.unknown += [f"{word}: no name=value." for word in others]
    return pairs
