"""A configuration as kohya's trainers (sd-scripts) take it: a settings file, and a dataset config
in the same text, since both are TOML.

What they have no words for is named, never dropped.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from . import config, distances, knobs, kohya, kohya_data, kohya_loss, optimizers, promptfile
from .config import LEAVES
from .data import captions, folder, gather
from .errors import ConfigError
from .registry import pick
from .settings import Config

TUCKER = ("use_tucker",)
OFT = ("constraint", "rescaled")
# The reference package's algorithms, and which of our options it takes as network_args.
REFERENCE: Mapping[str, tuple[str, ...]] = {
    "lora": TUCKER, "loha": TUCKER, "full": (), "ia3": (), "glora": (), "tlora": (),
    "lokr": (*TUCKER, "factor", "full_matrix", "decompose_both", "unbalanced_factorization"),
    "dylora": ("block_size",), "diag-oft": OFT, "boft": OFT}
OPTIMIZERS = {"ScheduleFreeAdamW": "AdamWScheduleFree", "ScheduleFreeRAdam": "RAdamScheduleFree",
              "Adafactor": "AdaFactor", "CAME": "pytorch_optimizer.CAME",
              "ADOPT": "pytorch_optimizer.ADOPT"}
NO_OPTIMIZER = ("Muon",)
SCHEDULES = {"wsd": "warmup_stable_decay"}
NO_SCHEDULE = ("rex",)
PRECISIONS = {"fp32": "no"}
FILES = {"fp32": "float"}
SAMPLERS = {ours: theirs for theirs, ours in reversed(promptfile.THEIRS.items())}
CHUNKS = 3  # of 75 tokens at most
PLAIN = ("train.seed", "train.gradient_checkpointing", "output.author", "output.license",
         "output.description", "output.name")
FIRST = """\
# For sd-scripts: save as lycogui.toml, then
# accelerate launch train_network.py --config_file lycogui.toml
# (sdxl_train_network.py for SDXL). It needs LyCORIS: pip install lycoris-lora."""
SECOND = "# Save all from here on as dataset.toml beside it."


class Sheet:
    """What is written, section by section, and which of our settings are said by it."""

    def __init__(self, run: Config):
        self.run = run
        self.sections: dict[str, dict[str, Any]] = {}
        self.said: set[str] = set()
        self.unsaid: set[str] = set()

    def put(self, section: str, values: Mapping[str, Any], *paths: str) -> None:
        """Values, None for what need not be written; `paths` are the settings that they say."""
        kept = {name: value for name, value in values.items() if value is not None}
        self.sections.setdefault(section, {}).update(kept)
        self.said |= set(paths)

    def missing(self) -> tuple[str, ...]:
        """What is not a default and has not been said."""
        return tuple(path for path in LEAVES if path in self.unsaid or (
            path not in self.said and knobs.get(self.run, path) != LEAVES[path].default))


def write(run: Config) -> tuple[str, tuple[str, ...]]:
    """(TOML, the settings that it cannot say); ConfigError for an algorithm that only we have."""
    if run.network.algo not in REFERENCE:
        raise ConfigError({"network.algo": f"kohya's trainers have no {run.network.algo}; they "
                                           f"have {', '.join(REFERENCE)}"})
    pick(distances.ROWS, run.loss.distance, "loss.distance")
    gather.check(run.dataset)
    sheet = Sheet(run)
    options = network(sheet)
    for part in (model, optimizer, course, training, loss):
        part(sheet)
    data(sheet)
    written = list(tables(list(subsets(sheet)), sheet))
    blocks = [f"[{name}]\n{_lines(values)}" for name, values in sheet.sections.items() if values]
    text = "\n".join([FIRST, *blocks[:-1], SECOND, blocks[-1], *written])
    return text, (*options, *sheet.missing())


def network(sheet: Sheet) -> tuple[str, ...]:
    """The options that its network_args do not know."""
    run, own = sheet.run, sheet.run.network
    args: dict[str, Any] = {"algo": own.algo, "preset": own.preset}
    for name, path in kohya.ARGS.items():
        value = knobs.get(run, path)
        if name not in args and value != LEAVES[path].default:
            args[name] = value
    if own.dora_wd:
        args["wd_on_output"] = own.wd_on_output
    # LyCORIS takes decompose_both=False as yes, so what is off is left out.
    known = {name: value for name, value in own.options.items()
             if name in REFERENCE[own.algo] and value is not False}
    words = [f"{name}={_plain(value)}" for name, value in (args | known).items()]
    sheet.put("network_arguments", {
        "network_module": kohya.MODULE, "network_dim": own.dim, "network_alpha": own.alpha,
        "network_args": words, "network_train_unet_only": None if own.text_encoder else True,
        "network_weights": _place(own.weights) or None},
        *kohya.ARGS.values(), "network.dim", "network.alpha", "network.options",
        "network.text_encoder", "network.weights")
    return tuple(f"network.options.{name}" for name in own.options
                 if name not in REFERENCE[own.algo])


def model(sheet: Sheet) -> None:
    own = sheet.run.model
    sheet.put("model_arguments", {
        "pretrained_model_name_or_path": _place(own.base), "vae": _place(own.vae) or None,
        "no_half_vae": True if own.vae_dtype == "fp32" else None,
        "clip_skip": own.clip_skip if own.clip_skip > 1 else None,
        "v_parameterization": True if own.prediction_type == "v_prediction" else None,
        "zero_terminal_snr": True if own.zero_snr == "on" else None},
        "model.base", "model.vae", "model.clip_skip", "model.prediction_type", "model.zero_snr",
        *["model.vae_dtype"] * (own.vae_dtype != "half"))


def optimizer(sheet: Sheet) -> None:
    own, row = sheet.run.optimizer, pick(
        optimizers.ROWS, sheet.run.optimizer.name, "optimizer.name")
    values: dict[str, Any] = {"learning_rate": own.lr, "unet_lr": own.lr, "text_encoder_lr": (
        own.lr if own.text_encoder_lr is None else own.text_encoder_lr)}
    if not sheet.run.network.text_encoder:
        del values["text_encoder_lr"]
    theirs = {ours: name for name, ours in kohya.SAME_ARGUMENT.get(row.name, {}).items()}
    args = {"weight_decay": own.weight_decay, **row.given, **own.args}
    words = [f"{theirs.get(name, name)}={value!r}" for name, value in args.items()]
    if row.name in NO_OPTIMIZER:
        sheet.unsaid |= {"optimizer.name", "optimizer.weight_decay", "optimizer.args"}
    else:
        values |= {"optimizer_type": OPTIMIZERS.get(row.name, row.name), "optimizer_args": words}
    sheet.put("optimizer_arguments", values, "optimizer.lr", "optimizer.text_encoder_lr",
              "optimizer.name", "optimizer.weight_decay",
              "optimizer.args")


def course(sheet: Sheet) -> None:
    """The rate over the run."""
    own, steps = sheet.run.optimizer, sheet.run.train.steps
    name, floor = SCHEDULES.get(own.schedule, own.schedule), None
    if own.schedule == "constant":
        name = "constant_with_warmup" if own.warmup else "constant"
    elif own.schedule == "wsd" or (own.schedule == "cosine" and own.floor):
        floor = own.floor
        name = "cosine_with_min_lr" if own.schedule == "cosine" else name
    elif own.floor:
        sheet.unsaid.add("optimizer.floor")
    values = {"lr_scheduler": name, "lr_warmup_steps": own.warmup or 0,
              "lr_scheduler_min_lr_ratio": floor,
              "lr_scheduler_num_cycles": own.cycles if "restarts" in name else None,
              "lr_scheduler_power": own.power if name == "polynomial" else None}
    if own.schedule == "wsd":
        values["lr_decay_steps"] = own.decay if own.decay < 1 else steps
    if own.schedule in NO_SCHEDULE:
        sheet.unsaid |= {"optimizer.schedule", "optimizer.warmup"}
        values = {}
    sheet.put("scheduler_arguments", values, "optimizer.schedule", "optimizer.warmup",
              "optimizer.floor", "optimizer.cycles", "optimizer.power", "optimizer.decay")


def training(sheet: Sheet) -> None:
    own, sample, output = sheet.run.train, sheet.run.sample, sheet.run.output
    every, kept = own.checkpoint_every, own.keep_checkpoints
    chunks = sheet.run.dataset.caption_chunks
    flags = {theirs: knobs.get(sheet.run, ours) or None for theirs, ours in kohya.FLAGS.items()
             if ours in PLAIN}
    sheet.put("training_arguments", {
        "dataset_config": "dataset.toml", "output_dir": _place(output.folder), **flags,
        "seed": own.seed, "max_train_steps": own.steps,
        "gradient_accumulation_steps": own.accumulate, "max_grad_norm": own.clip_norm,
        "scale_weight_norms": own.max_norm or None,
        "mixed_precision": (None if own.precision == "auto"
                            else PRECISIONS.get(own.precision, own.precision)),
        "save_precision": FILES.get(output.dtype, output.dtype),
        "save_model_as": "safetensors", "save_every_n_steps": every or None,
        "save_last_n_steps": (kept - 1) * every if every and kept else None,
        "max_token_length": 75 * chunks if 1 < chunks <= CHUNKS else None,
        "sample_every_n_steps": sample.every or None,
        "sample_sampler": SAMPLERS.get(sample.sampler),
        "sample_prompts": _place(sample.prompts_file) or None},
        *PLAIN, "train.steps", "train.accumulate", "train.clip_norm", "train.max_norm",
        "train.precision", "output.dtype", "output.folder", "train.checkpoint_every",
        "train.keep_checkpoints", "sample.every", "sample.prompts_file", "dataset.caption_chunks")
    if sample.sampler in SAMPLERS:
        sheet.said.add("sample.sampler")
    if chunks > CHUNKS:
        sheet.unsaid.add("dataset.caption_chunks")


def loss(sheet: Sheet) -> None:
    own, masks = sheet.run.loss, sheet.run.dataset.masks
    limited = kohya_loss.NAMES[own.distance] in kohya_loss.LIMITED
    values = {theirs: knobs.get(sheet.run, ours) for theirs, ours in kohya_loss.FLAGS.items()
              if knobs.get(sheet.run, ours) != LEAVES[ours].default}
    for name in ("huber_c", "huber_schedule"):
        values[name] = getattr(own, name) if limited else None
    if own.weighting not in ("none", "min-snr", "debiased"):
        sheet.unsaid.add("loss.weighting")
    if masks and own.unmasked_weight:
        sheet.unsaid.add("loss.unmasked_weight")
    sheet.put("loss_arguments", {
        **values, "loss_type": kohya_loss.NAMES[own.distance],
        "min_snr_gamma": own.snr_gamma if own.weighting == "min-snr" else None,
        "debiased_estimation_loss": True if own.weighting == "debiased" else None,
        "multires_noise_iterations": own.pyramid_iterations or None,
        "multires_noise_discount": own.pyramid_discount if own.pyramid_iterations else None,
        "masked_loss": True if masks else None},
        *kohya_loss.FLAGS.values(), "loss.weighting", "loss.snr_gamma", "loss.distance",
        "loss.pyramid_iterations", "loss.pyramid_discount", "loss.unmasked_weight",
        "dataset.masks")


def data(sheet: Sheet) -> None:
    """What holds for all folders."""
    own = sheet.run.dataset
    flags = {theirs: knobs.get(sheet.run, ours) for theirs, ours in kohya_data.FLAGS.items()}
    sheet.put("general", {
        **{name: value for name, value in flags.items() if value not in ("", 0.0)},
        "caption_extension": captions.EXTENSIONS[0], "keep_tokens": own.keep_tags,
        "keep_tokens_separator": own.keep_separator, "enable_bucket": own.bucket,
        "resolution": own.resolution, "bucket_no_upscale": not own.enlarge,
        "min_bucket_reso": own.resolution // 2, "max_bucket_reso": 2 * own.resolution,
        "batch_size": sheet.run.train.batch_size},
        *kohya_data.FLAGS.values(), "dataset.keep_tags", "dataset.keep_separator",
        "dataset.bucket", "dataset.resolution", "dataset.enlarge", "train.batch_size")


def subsets(sheet: Sheet) -> Iterator[dict[str, Any]]:
    """Each folder; those of kohya's 10_name layout one by one, since the trainer then takes no
    notice of their names."""
    own = sheet.run.dataset
    sheet.said |= {"dataset.folder", "dataset.repeats", "dataset.more", "dataset.mask_folder",
                   "dataset.balance"}
    priors = any(each.get("regularisation") for each in own.more)
    if priors and not own.balance:  # it always does
        sheet.unsaid.add("dataset.balance")
    main = {"folder": own.folder, "repeats": own.repeats, "mask_folder": own.mask_folder}
    for entry in (main, *own.more):
        if entry.get("weight", 1) != 1:
            sheet.unsaid.add("dataset.more")
        path, repeats = config.find(str(entry["folder"])), entry.get("repeats", 1)
        for place, times, name in folder.numbered(path) or [(path, 1, "")]:
            values: dict[str, Any] = {"image_dir": _place(str(place)),
                                      "num_repeats": repeats * times}
            is_prior = bool(entry.get("regularisation"))
            masks = own.masks and entry.get("mask_folder")
            if masks and (is_prior or entry.get("caption", name)):
                sheet.unsaid.add("dataset.more")  # they know no such folder with masks
            kinds = {file.suffix for file in folder.caption_files(place)}
            if len(kinds) == 1 and kinds != {captions.EXTENSIONS[0]}:
                values["caption_extension"] = kinds.pop()
            if is_prior:
                values["is_reg"] = True
            if masks and not is_prior:
                yield values | {"conditioning_data_dir": _place(entry["mask_folder"])}
                continue
            if caption := entry.get("caption", name):
                values["class_tokens"] = caption
            if own.masks:
                values["alpha_mask"] = True
            yield values


def tables(found: list[dict[str, Any]], sheet: Sheet) -> Iterator[str]:
    """The datasets: those with folders of masks, which must have nothing else, apart from others.
    """
    for _, group in itertools.groupby(found, lambda each: "conditioning_data_dir" in each):
        inner = list(group)
        if all("is_reg" in each for each in inner):
            sheet.unsaid.add("dataset.more")  # they are not shown beside none to learn
        yield "[[datasets]]\n" + "".join(
            f"\n[[datasets.subsets]]\n{_lines(each)}" for each in inner)


def _place(path: str) -> str:
    """A path that holds in any folder, where there is such a file here."""
    found = config.find(path) if path else Path()
    return str(found.absolute()) if path and found.exists() else path


def _lines(values: Mapping[str, Any]) -> str:
    return "".join(f"{name} = {config.toml_value(value)}\n" for name, value in values.items())


def _plain(value: Any) -> str:
    if isinstance(value, float) and value == int(value):
        return str(int(value))
    return str(value)
