"""Every setting of a run, once: typed, frozen, with its help and its bounds.

The same declaration makes the form, the TOML file, the command line and the checks. Settings come
in layers, later over earlier: the defaults here, what the base model's folder recommends
(`lycogui.toml` in it), the run's TOML file, and `path=value` overrides.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from . import knobs
from .errors import ConfigError, RunError
from .knobs import Knob

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "assets"
BASE_SETTINGS = "lycogui.toml"
DTYPES = ("fp16", "bf16", "fp32")
# Names that mean something else beside the runs: a contestant, and folders of pictures.
RESERVED_NAMES = ("base", "comparisons", "pictures", "tools", "adapters", "models",
                  "calibrations")
PRESETS = Path("presets")  # the user's own, in the working folder


@dataclass(frozen=True)
class ModelConfig:
    base: Annotated[str, Knob("Folder of the base model, in the diffusers layout.", file=True,
                              label="Base model")] = "assets/tiny-sd"
    family: Annotated[str, Knob("Kind of model; auto reads it from the base's files. The name of "
                                "a known model tells what it would cost, without its files.",
                                label="Sizes for", catalogue="families")] = "auto"
    dtype: Annotated[str, Knob("Precision the frozen base is held in; auto follows "
                               "train.precision.", choices=("auto", *DTYPES),
                               label="Precision of the base")] = "auto"


@dataclass(frozen=True)
class NetworkConfig:
    algo: Annotated[str, Knob("How the change of a weight is written down.", label="Algorithm",
                              catalogue="algorithms")] = "lora"
    preset: Annotated[str, Knob("Which layers are adapted: a preset, one of your own in the folder "
                                "presets, or the path of a .toml file.", label="Layers",
                                catalogue="presets", file=True)] = "attn-mlp"
    dim: Annotated[int, Knob("Rank of each factor.", 1, 1_000_000)] = 16
    alpha: Annotated[float, Knob("The change is scaled by alpha / dim.", 0.01, 1_000_000)] = 8.0
    conv_dim: Annotated[int | None, Knob("Dim of the convolutions larger than 1x1; 0 leaves them "
                                         "out.", 0, 1_000_000, none="same")] = None
    conv_alpha: Annotated[float | None, Knob("Alpha of the convolutions larger than 1x1.", 0.01,
                                             1_000_000, none="same")] = None
    text_encoder: Annotated[bool, Knob("Train the text encoder too.")] = True
    options: Annotated[dict[str, Any], Knob("The algorithm's own settings.")] = field(
        default_factory=dict)
    train_norm: Annotated[bool, Knob("Train the normalisation layers of the chosen blocks "
                                     "too.")] = False
    dora_wd: Annotated[bool, Knob("DoRA: learn each row's length apart from its direction.",
                                  label="DoRA")] = False
    wd_on_output: Annotated[bool, Knob("DoRA: lengths per output row; off: per input "
                                       "column.", label="DoRA on output")] = True
    dora_detach: Annotated[bool, Knob("DoRA: no gradient through the length of W + dW, as in its "
                                      "paper; off: through it, as LyCORIS does.",
                                      label="DoRA norm detached")] = True
    rs_lora: Annotated[bool, Knob("Rank-stabilised scale: alpha / sqrt(dim) instead of "
                                  "alpha / dim.", label="rsLoRA")] = False
    init: Annotated[str, Knob("Start values: default; orthogonal; pissa (LoRA only: begins as the "
                              "weight's leading directions, learns faster, file of twice the dim).",
                              choices=("default", "orthogonal", "pissa"), label="Start")] = (
        "default")
    use_scalar: Annotated[bool, Knob("Learn one scale per layer, starting at zero.",
                                     label="Trained scalar")] = False
    dropout: Annotated[float, Knob("Share of the adapter's outputs dropped while training.",
                                   0, 0.95, 0.05)] = 0.0
    rank_dropout: Annotated[float, Knob("Share of the ranks dropped while training.",
                                        0, 0.95, 0.05)] = 0.0
    module_dropout: Annotated[float, Knob("Chance that a layer's adapter sits out a step.",
                                          0, 0.95, 0.05)] = 0.0
    rules: Annotated[tuple[dict[str, Any], ...], Knob(
        "Exceptions, one a line, the first that matches a layer counts: match = \"*attn2*\", "
        "dim = 4. Also algo, alpha, lr, options, exclude = true.",
        label="Rules for single layers")] = ()


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


@dataclass(frozen=True)
class TrainConfig:
    steps: Annotated[int, Knob("Optimiser steps.", 1, 10_000_000)] = 1500
    batch_size: Annotated[int, Knob("Pictures in one forward pass.", 1, 4096)] = 1
    accumulate: Annotated[int, Knob("Batches added up before one optimiser step.", 1, 4096,
                                    label="Gradient accumulation")] = 1
    seed: Annotated[int, Knob("Fixes order, captions, timesteps and noise; two runs with the same "
                              "seed see the same, whatever their algorithm.", 0, 2**63 - 1)] = 42
    precision: Annotated[str, Knob("Arithmetic of the forward pass; auto: fp32 on a CPU, bf16 "
                                   "where the GPU has it, else fp16.",
                                   choices=("auto", "fp32", "bf16", "fp16"))] = "auto"
    device: Annotated[str, Knob("auto, cpu, cuda, cuda:1, mps.")] = "auto"
    gradient_checkpointing: Annotated[bool, Knob("Compute activations twice instead of keeping "
                                                 "them: less memory, slower.")] = False
    min_snr_gamma: Annotated[float, Knob("Min-SNR weighting of the timesteps (5 is usual); "
                                         "0 is off.", 0, 100, label="Min-SNR gamma")] = 0.0
    noise_offset: Annotated[float, Knob("Adds to the noise one random shift per channel, for very "
                                        "dark and very bright pictures.", 0, 1, 0.01)] = 0.0
    clip_norm: Annotated[float, Knob("Longest allowed gradient; 0 is off.", 0, 1000,
                                     label="Gradient clipping")] = 1.0
    max_norm: Annotated[float, Knob("Longest allowed change of a layer, its Frobenius norm; shrunk "
                                    "after each step. 1 is usual; 0 is off.", 0, 1000,
                                    label="Max norm")] = 0.0
    checkpoint_every: Annotated[int, Knob("Steps between checkpoints; 0: only at the end.",
                                          0, 10_000_000)] = 250
    keep_checkpoints: Annotated[int, Knob("How many of the latest checkpoints stay on disk; "
                                          "0 keeps all.", 0, 10_000)] = 3


@dataclass(frozen=True)
class OptimizerConfig:
    name: Annotated[str, Knob("The optimiser.", label="Optimiser", catalogue="optimizers")] = (
        "AdamW")
    lr: Annotated[float, Knob("Learning rate.", 1e-9, 1000, label="Learning rate")] = 1e-4
    text_encoder_lr: Annotated[float | None, Knob("Learning rate of the text encoder.", 0, 1000,
                                                  none="same")] = None
    plus_ratio: Annotated[float, Knob("LoRA+: how many times faster the factor learns that starts "
                                      "at zero; 16 is usual, 1 is off.", 0.01, 1000,
                                      label="LoRA+ ratio")] = 1.0
    weight_decay: Annotated[float, Knob("Pull of the adapter's weights towards zero.",
                                        0, 10, 0.001)] = 0.01
    schedule: Annotated[str, Knob("Course of the learning rate.", catalogue="schedules")] = "cosine"
    warmup: Annotated[float, Knob("Share of the steps over which the learning rate rises from "
                                  "zero.", 0, 0.9, 0.01)] = 0.05
    args: Annotated[dict[str, Any], Knob("Further arguments of the optimiser.")] = field(
        default_factory=dict)


@dataclass(frozen=True)
class SampleConfig:
    prompts: Annotated[tuple[str, ...], Knob("One prompt a line.")] = ("a zorb on grass",)
    negative: Annotated[str, Knob("What the pictures should not show.",
                                  label="Negative prompt")] = ""
    seeds: Annotated[tuple[int, ...], Knob("Each seed is one starting noise, the same for every "
                                           "contestant.", 0, 2**63 - 1)] = (1, 2)
    steps: Annotated[int, Knob("Denoising steps a picture.", 1, 1000)] = 25
    guidance: Annotated[float, Knob("How strongly the prompt is followed (CFG); 1 is off.", 0, 50,
                                    0.5, label="CFG")] = 7.0
    sampler: Annotated[str, Knob("The sampler.", catalogue="samplers")] = "DPM++ 2M"
    width: Annotated[int | None, Knob("Width of the pictures.", 8, 4096, 8, unit="px",
                                      none="training resolution")] = None
    height: Annotated[int | None, Knob("Height of the pictures.", 8, 4096, 8, unit="px",
                                       none="training resolution")] = None
    every: Annotated[int, Knob("Steps between sample pictures; 0: none.", 0, 10_000_000,
                               label="Sample every")] = 250


@dataclass(frozen=True)
class OutputConfig:
    folder: Annotated[str, Knob("Folder that holds the runs.", file=True)] = "runs"
    name: Annotated[str, Knob("Name of the run and of its adapter; empty: the dataset's and the "
                              "algorithm's.")] = ""
    dtype: Annotated[str, Knob("Precision of the saved adapter.", choices=DTYPES)] = "fp16"
    trigger: Annotated[str, Knob("Words that call what was taught, written into the file for "
                                 "whoever uses it.", label="Trigger words")] = ""
    author: Annotated[str, Knob("Written into the file.")] = ""
    license: Annotated[str, Knob("Written into the file.")] = ""
    description: Annotated[str, Knob("Written into the file.")] = ""
    thumbnail: Annotated[bool, Knob("Put the last sample picture into the file, 24 KiB; some "
                                    "programs show it.")] = False


@dataclass(frozen=True)
class Config:
    """One run. Frozen: change it with knobs.replace."""

    model: ModelConfig = ModelConfig()
    network: NetworkConfig = field(default_factory=NetworkConfig)
    dataset: DatasetConfig = DatasetConfig()
    train: TrainConfig = TrainConfig()
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    sample: SampleConfig = SampleConfig()
    output: OutputConfig = OutputConfig()


LEAVES = knobs.leaves(Config)
# What an entry of network.rules may say, and the setting whose bounds it shares.
RULE_KEYS = {"match": "", "exclude": "", "algo": "network.algo", "dim": "network.dim",
             "alpha": "network.alpha", "lr": "optimizer.text_encoder_lr",
             "options": "network.options"}


def build(values: Mapping[str, Any]) -> Config:
    """A Config from {path: value}; raises ConfigError naming every unknown or impossible
    setting."""
    problems: dict[str, str] = {}
    ready: dict[str, Any] = {}
    for path, value in values.items():
        leaf = LEAVES.get(path)
        if leaf is None:
            problems[path] = knobs.unknown_key(path, LEAVES)
            continue
        try:
            ready[path] = knobs.coerce(leaf, value)
        except ValueError as error:
            problems[path] = f"{path} {error}"
    if "output.name" in ready and (bad := name_problem(ready["output.name"])):
        problems["output.name"] = bad
    if problems:
        raise ConfigError(problems)
    return knobs.replace(Config(), ready)


def load(file: Path | str | None = None, overrides: Iterable[str] = (),
         values: Mapping[str, Any] | None = None) -> Config:
    """The settings of a TOML file (or none) with ``path=value`` overrides over it, and typed
    `values` by their paths over both.

    What the base model's own folder recommends lies between the defaults and the file.
    """
    own = dict(knobs.flatten(read_toml(Path(file)), LEAVES)) if file else {}
    for text in overrides:
        _override(own, text)
    for path, value in (values or {}).items():
        _put(own, path, value)
    base = own.get("model.base", LEAVES["model.base"].default)
    recommended = base_settings(base) if isinstance(base, str) and not known_model(
        own.get("model.family")) else {}
    merged = recommended | own
    for path, leaf in LEAVES.items():  # tables are merged key by key
        if leaf.is_table and path in recommended and isinstance(own.get(path), Mapping):
            merged[path] = {**recommended[path], **own[path]}
    return build(merged)


def target(words: Iterable[str]) -> tuple[Path | None, list[str]]:
    """(the first word if it is a file or folder, the other words: settings)"""
    words = list(words)
    if words and ("=" not in words[0] or Path(words[0]).exists()):
        return Path(words[0]), words[1:]
    return None, words


def settings(words: Iterable[str], values: Mapping[str, Any] | None = None) -> Config:
    """What a command line says: a TOML file or a run folder, and overrides; `values` as for `load`.

    A folder of pictures is taken as the dataset.
    """
    first, others = target(words)
    if first and first.is_dir():
        own = first / "config.toml"
        if own.is_file():
            return load(own, others, values)
        return load(None, [f"dataset.folder={first}", *others], values)
    return load(first, others, values)


def known_model(family: Any) -> bool:
    """Is it the name of a model in assets/models, whose facts count instead of the base's?"""
    return isinstance(family, str) and (ASSETS / "models" / f"{family}.json").is_file()


def base_settings(base: str) -> dict[str, Any]:
    """{path: value} that a base model's folder recommends; empty where it says nothing."""
    file = find(base) / BASE_SETTINGS
    return dict(knobs.flatten(read_toml(file), LEAVES)) if file.is_file() else {}


def read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise RunError(f"There is no settings file {file}.",
                       "Give the path of a .toml file or of a run folder.") from None
    except UnicodeDecodeError as error:
        raise RunError(f"{file} is not UTF-8 text ({error.reason} at byte {error.start}).",
                       "Save it again as UTF-8.") from None
    except tomllib.TOMLDecodeError as error:
        raise RunError(f"{file} is not valid TOML: {error}.", "Correct that line.") from None


def dump(config: Config) -> str:
    """The whole config as TOML, defaults included, each setting under its help."""
    lines: list[str] = []
    section = ""
    for path, leaf in LEAVES.items():
        head, name = path.split(".")
        if head != section:
            lines += [""] * bool(lines) + [f"[{head}]"]
            section = head
        value = knobs.get(config, path)
        written = toml_value(leaf.knob.none if value is None else value)
        lines += [f"# {leaf.knob.help}", f"{name} = {written}"]
    return "\n".join(lines) + "\n"


def to_dict(config: Config) -> dict[str, Any]:
    """{path: value} of every setting; None stays None."""
    return {path: knobs.get(config, path) for path in LEAVES}


def find(path: str) -> Path:
    """A path as the user means it: as it stands, else from the program's own folder."""
    given = Path(path).expanduser()
    if given.is_absolute() or given.exists() or not (ROOT / given).exists():
        return given
    return ROOT / given


def run_name(config: Config) -> str:
    """The run's name; made from the dataset and the algorithm where none is given."""
    if config.output.name:
        return config.output.name
    stem = re.sub(r"[^\w.-]+", "-", find(config.dataset.folder).name).strip("-.") or "run"
    return f"{stem[:60]}-{config.network.algo}"


def name_problem(name: str) -> str:
    """Why `name` cannot be a folder's name on every system, or an empty string."""
    if not name:
        return ""
    if re.search(r'[<>:"/\\|?*\x00-\x1f]', name):
        return f"output.name {name!r} has a character that cannot stand in a file name"
    if name != name.strip(" .") or len(name) > 100:
        return "output.name must be at most 100 characters and not start or end with a dot or space"
    if re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?", name):
        return f"output.name {name!r} is a reserved name on Windows"
    if name.casefold() in RESERVED_NAMES:
        return f"output.name {name!r} has a meaning of its own here; choose another name"
    return ""


def _override(values: dict[str, Any], text: str) -> None:
    path, equals, value = text.partition("=")
    path = path.strip()
    if not equals:
        raise ConfigError({"": f"{text!r} is no setting; write path=value, e.g. network.dim=8"})
    _put(values, path, parse_value(value) if _table_of(path) else value)


def _put(values: dict[str, Any], path: str, value: Any) -> None:
    """Set one setting; path may lead into an open table, as network.options.factor does."""
    if table := _table_of(path):
        values[table] = {**values.get(table, {}), path.rpartition(".")[2]: value}
    else:
        values[path] = value


def _table_of(path: str) -> str:
    table = path.rpartition(".")[0]
    return table if table in LEAVES and LEAVES[table].is_table else ""


def parse_value(text: str) -> Any:
    """An open table's value from a command line: TOML where it is TOML, else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def toml_value(value: Any) -> str:
    """One value as TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_toml_key(str(k))} = {toml_value(v)}" for k, v in value.items())
        return f"{{{inner}}}"
    return "[" + ", ".join(toml_value(item) for item in value) + "]"


def _toml_key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml_value(name)
