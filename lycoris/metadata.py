"""What an adapter's file says of itself: kohya's ss_* keys, modelspec.*, and our whole config with
the preset of one's own that it names.

The estimate fills the same keys before training, so every value that changes between then and the
end (times, ids, hashes) has a fixed width.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from torch import Tensor

from . import __version__, config, knobs, kohya_loss, tensorfile
from .config import LEAVES
from .data.folder import Dataset, tags_of
from .errors import ConfigError
from .families import Family
from .settings import Config

CONFIG_KEY = "lycogui_config"
PRESET_KEY = "lycogui_preset"  # the text of a preset of one's own
MAX_TAGS = 2000
NOT_SHARED = "output.folder"  # where this machine keeps its runs
PLACES = tuple(path for path, leaf in LEAVES.items() if leaf.knob.file and path != NOT_SHARED)
IN_MORE = ("folder", "mask_folder")  # places in an entry of dataset.more


@dataclass(frozen=True)
class Facts:
    """What only the plan and the run know. Times are seconds since 1970."""

    batches_per_epoch: int
    buckets: Mapping[tuple[int, int], int]
    precision: str
    step: int
    loss: float = 0.0
    thumbnail: str = ""
    preset: str = ""  # the text of a preset of one's own
    started: float = 0.0
    finished: float = 0.0
    session: int = 0


def describe(run: Config, family: Family, dataset: Dataset | None, facts: Facts) -> dict[str, str]:
    """Everything but the hashes, which `with_hashes` adds; all values are strings."""
    network, train, optimizer = run.network, run.train, run.optimizer
    conv_dim = network.dim if network.conv_dim is None else network.conv_dim
    conv_alpha = network.alpha if network.conv_alpha is None else network.conv_alpha
    side = run.dataset.resolution
    epochs = -(-train.steps * train.accumulate // max(1, facts.batches_per_epoch))
    found = {
        **family.metadata,
        "ss_output_name": config.run_name(run),
        "ss_session_id": f"{facts.session:010d}",
        "ss_training_started_at": f"{facts.started:017.6f}",
        "ss_training_finished_at": f"{facts.finished:017.6f}",
        "ss_network_module": "lycoris.kohya",
        "ss_network_dim": str(network.dim),
        "ss_network_alpha": _number(network.alpha),
        "ss_network_args": json.dumps({
            "algo": network.algo, "preset": place(network.preset), "conv_dim": str(conv_dim),
            "conv_alpha": _number(conv_alpha),
            **{name: str(value) for name, value in network.options.items()}}),
        "ss_network_dropout": _number(network.dropout),
        "ss_learning_rate": _number(optimizer.lr),
        "ss_unet_lr": _number(optimizer.lr),
        "ss_text_encoder_lr": _text_encoder_lr(run),
        "ss_optimizer": optimizer.name,
        "ss_lr_scheduler": optimizer.schedule,
        "ss_lr_warmup_steps": str(round(optimizer.warmup * train.steps)),
        "ss_num_train_images": str(sum(facts.buckets.values())),
        "ss_num_batches_per_epoch": str(facts.batches_per_epoch),
        "ss_num_epochs": str(epochs),
        "ss_batch_size_per_device": str(train.batch_size),
        "ss_gradient_accumulation_steps": str(train.accumulate),
        "ss_gradient_checkpointing": str(train.gradient_checkpointing),
        "ss_max_train_steps": str(train.steps),
        "ss_steps": str(facts.step),
        "ss_mixed_precision": {"fp32": "no"}.get(facts.precision, facts.precision),
        "ss_seed": str(train.seed),
        "ss_max_grad_norm": _number(train.clip_norm),
        "ss_clip_skip": (str(run.model.clip_skip)
                         if run.model.clip_skip > 1 and family.clip_skips else "None"),
        "ss_max_token_length": _token_length(run, family),
        **kohya_loss.said(run.loss),
        "ss_caption_dropout_rate": _number(run.dataset.caption_dropout),
        "ss_resolution": str((side, side)),
        "ss_enable_bucket": str(run.dataset.bucket),
        "ss_bucket_info": _bucket_info(facts.buckets),
        "ss_tag_frequency": _tag_frequency(dataset),
        **_modelspec(run, facts),
        "lycogui_version": __version__,
        "lycogui_summary": json.dumps({
            "steps": facts.step, "epochs": epochs,
            "pictures": len(dataset.learned) if dataset else 0,
            "loss": f"{min(facts.loss, 99.0):09.6f}"}),
        CONFIG_KEY: json.dumps(shared(run), ensure_ascii=False),
        **({PRESET_KEY: facts.preset} if facts.preset else {}),
    }
    return found


def with_hashes(found: Mapping[str, str],
                tensors: Mapping[str, Tensor] | None) -> dict[str, str]:
    """Add the hashes other programs look for; zeros of the same width where there is no file yet.

    sshs_model_hash is the sha256 of the data section; sshs_legacy_hash the first 8 digits of the
    sha256 over 64 KiB at 1 MiB of a file that carries the ss_* keys only.
    """
    model, legacy = "0" * 64, "0" * 8
    if tensors is not None:
        ss = {key: value for key, value in found.items() if key.startswith("ss_")}
        start, order = tensorfile.header(tensorfile.entries_of(tensors), ss)
        data, window = hashlib.sha256(), hashlib.sha256()
        place = len(start)
        window.update(start[0x100000:0x110000])
        for name in order:
            chunk = tensorfile.raw_bytes(tensors[name])
            data.update(chunk)
            window.update(chunk[max(0, 0x100000 - place):max(0, 0x110000 - place)])
            place += len(chunk)
        model, legacy = data.hexdigest(), window.hexdigest()[:8]
    return {**found, "sshs_model_hash": model, "sshs_legacy_hash": legacy,
            "modelspec.hash_sha256": f"0x{model}"}


def config_of(found: Mapping[str, str]) -> Config | None:
    """The settings a file was trained with, as far as this version knows them; None without any.

    What another version allowed and this one does not is left at its default.
    """
    try:
        values = json.loads(found[CONFIG_KEY])
    except (KeyError, ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    try:
        return config.build(values)
    except ConfigError as error:
        return config.build({path: value for path, value in values.items()
                             if path not in error.problems})


def shared(run: Config) -> dict[str, Any]:
    """{path: value} of the settings as others may read them: who made it, and how their disk is
    laid out, is nobody's business."""
    found = {path: value for path, value in config.to_dict(run).items() if path != NOT_SHARED}
    found |= {path: place(found[path]) for path in PLACES}
    found["dataset.more"] = [
        {name: place(value) if name in IN_MORE else value for name, value in entry.items()}
        for entry in found["dataset.more"]]
    return found


def place(path: str) -> str:
    """A file or folder as others may read it: from this program's folder, or as it was given where
    that leads on from where one is; else its name alone."""
    text = path.strip()
    parts = re.split(r"[\\/]+", text.rstrip("\\/"))
    if not (PurePosixPath(text).is_absolute() or PureWindowsPath(text).drive
            or parts[0].startswith("~") or ".." in parts):
        return path
    root = config.ROOT.as_posix() + "/"
    own = text.replace("\\", "/")
    return own.removeprefix(root) if own.startswith(root) and ".." not in parts else parts[-1]


def at_home(recorded: Config, run: Config) -> Config:
    """What a file recorded of a run, its places whole again as that run has them here."""
    said, own = shared(recorded), shared(run)
    return knobs.replace(recorded, {path: knobs.get(run, path) for path in (*PLACES, "dataset.more")
                                    if said[path] == own[path]})


def _modelspec(run: Config, facts: Facts) -> dict[str, str]:
    """The modelspec.* keys; what the user does not say is left out."""
    output, side = run.output, run.dataset.resolution
    found = {"modelspec.sai_model_spec": "1.0.1",
             "modelspec.implementation": "diffusers",
             "modelspec.title": config.run_name(run),
             "modelspec.resolution": f"{side}x{side}",
             "modelspec.date": datetime.fromtimestamp(facts.finished, UTC).strftime(
                 "%Y-%m-%dT%H:%M:%S"),
             "modelspec.thumbnail": facts.thumbnail,
             "modelspec.trigger_phrase": output.trigger, "modelspec.author": output.author,
             "modelspec.license": output.license, "modelspec.description": output.description,
             "modelspec.usage_hint": f"Write {output.trigger} in the prompt." if output.trigger
             else ""}
    return {key: value for key, value in found.items() if value}


def _number(value: float) -> str:
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def _token_length(run: Config, family: Family) -> str:
    chunks = run.dataset.caption_chunks
    return str(chunks * family.max_tokens) if chunks > 1 else "None"


def _text_encoder_lr(run: Config) -> str:
    if not run.network.text_encoder:
        return "0"
    own = run.optimizer.text_encoder_lr
    return _number(run.optimizer.lr if own is None else own)


def _bucket_info(buckets: Mapping[tuple[int, int], int]) -> str:
    listed = {str(i): {"resolution": list(shape), "count": count}
              for i, (shape, count) in enumerate(sorted(buckets.items()))}
    return json.dumps({"buckets": listed})


def _tag_frequency(dataset: Dataset | None) -> str:
    """{folder: {tag: count}}, tags being the captions' comma-separated pieces, the most
    frequent."""
    if dataset is None:
        return "{}"
    found = {}
    for path, pictures in (dataset.folders or {dataset.folder: ()}).items():
        counted = tags_of([picture for picture in pictures if picture.size])
        found[path.name] = dict(sorted(counted.items(),
                                       key=lambda item: (-item[1], item[0]))[:MAX_TAGS])
    return json.dumps(found, ensure_ascii=False)
