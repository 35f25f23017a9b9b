"""Where each setting stands: section by section, with what presentation adds to its knob.

Every setting of the config is placed exactly once (a test holds it); nothing about a setting itself
is said here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Place:
    """One setting on the screen. `kind` overrides the widget that its type would get; `high` is
    the slider's end, which a larger value moves; every legal value can be typed. `names` are what
    its choices are called on the screen, where that is not their own name."""

    path: str
    kind: str = ""
    high: float | None = None
    step: float | None = None
    lines: int = 1
    info: bool = True  # show the knob's help under the label
    names: Mapping[str, str] = field(default_factory=dict)


WEIGHTINGS = {"min-snr": "min-SNR", "soft-min-snr": "soft min-SNR",
              "debiased": "debiased estimation", "p2": "P2"}
DISTANCES = {"l2": "L2, squared", "l1": "L1, absolute", "huber": "Huber",
             "smooth-l1": "smooth L1"}
TIMESTEPS = {"uniform": "all alike", "cosmap": "the middle, cosmap", "detail": "detail: low ones",
             "composition": "composition: high"}

TABS = {"folder": "Dataset", "algorithm": "Algorithm", "train": "Train", "compare": "Compare"}

SECTIONS: dict[str, tuple[Place, ...]] = {
    "base": (Place("model.base"), Place("model.dtype"),
             Place("model.vae"), Place("model.vae_dtype"), Place("model.tokenizer"),
             Place("model.prediction_type"), Place("model.zero_snr")),
    "folder": (Place("dataset.folder", info=False),),
    "folder more": (
        Place("dataset.repeats", "number"), Place("dataset.more", lines=3),
        Place("dataset.balance"),
        Place("dataset.masks"), Place("dataset.mask_folder"), Place("dataset.validation"),
        Place("dataset.validation_folder"), Place("train.validate_every", "number"),
    ),
    "algorithm kind": (Place("network.algo", "radio", info=False),),
    "algorithm": (
        Place("model.family", names={"auto": "the base model", "sd": "sd: SD 1.x or 2.x",
                                     "sd15": "SD 1.5, without its files",
                                     "sd21": "SD 2.1, without its files",
                                     "sdxl": "SDXL, without its files"}, info=False),
        Place("network.preset", info=False),
        Place("network.dim", "slider", high=128),
        Place("network.alpha", "slider", high=128, step=0.5, info=False),
    ),
    "algorithm conv": (Place("network.conv_dim"), Place("network.conv_alpha")),
    "algorithm parts": (Place("network.text_encoder"),),
    "algorithm more": (
        Place("network.train_norm"), Place("network.dora_wd"), Place("network.wd_on_output"),
        Place("network.dora_detach"), Place("network.rs_lora"), Place("network.init"),
        Place("network.use_scalar"), Place("network.dropout"),
        Place("network.rank_dropout"), Place("network.module_dropout"),
        Place("network.rules", lines=3), Place("output.dtype"),
    ),
    "train": (
        Place("output.name", info=False), Place("train.steps", "number", info=False),
        Place("train.batch_size", "number", info=False),
        Place("optimizer.lr", "number", info=False), Place("optimizer.name", info=False),
        Place("sample.every", "number"), Place("train.checkpoint_every", "number"),
    ),
    "train samples": (Place("sample.prompts", lines=4), Place("sample.prompts_file")),
    "train rate": (
        Place("optimizer.schedule"), Place("optimizer.warmup", "number"),
        Place("optimizer.floor", "number"), Place("optimizer.cycles", "number"),
        Place("optimizer.power", "number"), Place("optimizer.decay", "number"),
    ),
    "train parts": (
        Place("optimizer.text_encoder_lr"), Place("optimizer.text_encoder_2_lr"),
        Place("optimizer.plus_ratio", "number"),
        Place("optimizer.text_encoder_plus_ratio", "number"),
        Place("optimizer.weight_decay", "number"), Place("train.clip_norm", "number"),
        Place("train.max_norm", "number"), Place("train.ema", "number"),
        Place("optimizer.args", lines=2),
    ),
    "train noise": (
        Place("train.seed", "number"), Place("loss.noise_offset", "number"),
        Place("loss.adaptive_offset", "number"), Place("loss.noise_offset_random"),
        Place("loss.pyramid_iterations", "number"), Place("loss.pyramid_discount", "number"),
        Place("loss.input_perturbation", "number"),
    ),
    "train loss": (
        Place("loss.distance", names=DISTANCES), Place("loss.huber_c", "number"),
        Place("loss.huber_schedule"),
        Place("loss.weighting", names=WEIGHTINGS), Place("loss.snr_gamma", "number"),
        Place("loss.p2_gamma", "number"), Place("loss.p2_k", "number"),
        Place("loss.timesteps", names=TIMESTEPS), Place("loss.logit_mean", "number"),
        Place("loss.logit_std", "number"), Place("loss.timestep_shift", "number"),
        Place("loss.timestep_min", "number"), Place("loss.timestep_max", "number"),
    ),
    "train prior": (
        Place("loss.unmasked_weight", "number"), Place("loss.prior_weight", "number"),
        Place("loss.prior_from_base"),
    ),
    "train pictures": (
        Place("dataset.resolution", "number"), Place("dataset.bucket_step", "number"),
        Place("dataset.bucket"), Place("dataset.enlarge"), Place("dataset.flip"),
        Place("dataset.random_crop"),
    ),
    "train captions": (
        Place("dataset.caption_dropout"), Place("dataset.shuffle_tags"),
        Place("dataset.keep_tags", "number"), Place("dataset.keep_separator"),
        Place("dataset.tag_dropout"), Place("dataset.wildcards"), Place("dataset.caption_prefix"),
        Place("dataset.caption_suffix"), Place("dataset.caption_chunks", "number"),
        Place("model.clip_skip", "number"),
    ),
    "train memory": (
        Place("train.accumulate", "number"), Place("train.split", "number"),
        Place("train.gradient_checkpointing"), Place("train.retry_smaller"),
        Place("train.compile"), Place("train.offload"), Place("train.block_swap"),
        Place("train.fused_backward"),
        Place("train.precision"), Place("train.device"),
    ),
    "train output": (
        Place("network.weights"),
        Place("output.folder"), Place("train.keep_checkpoints", "number"),
        Place("dataset.cache_limit", "number"), Place("dataset.cache_folder"),
        Place("output.trigger"), Place("output.author", info=False),
        Place("output.license", info=False), Place("output.description", lines=2, info=False),
        Place("output.thumbnail"), Place("output.model"),
    ),
    "compare": (
        Place("sample.seeds", info=False), Place("sample.steps", "number", info=False),
        Place("sample.guidance", "number", info=False),
    ),
    "compare more": (
        Place("sample.sampler"), Place("sample.negative"), Place("sample.width"),
        Place("sample.height"), Place("sample.embeddings"),
    ),
}


def tab_of(path: str) -> str:
    """The tab where a setting stands; empty for those of the base model's panel, above the tabs."""
    if path == "network.options":  # each algorithm's own, beside its other settings
        return TABS["algorithm"]
    section = next(name for name, places in SECTIONS.items()
                   if any(place.path == path for place in places))
    return TABS.get(section.partition(" ")[0], "")
