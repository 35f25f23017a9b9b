"""The adapter: which algorithm, how large, on which layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from ..knobs import Knob


@dataclass(frozen=True)
class NetworkConfig:
    algo: Annotated[str, Knob("How the change of a weight is written down.", label="Algorithm",
                              catalogue="algorithms")] = "lora"
    preset: Annotated[str, Knob("Which layers are adapted: a preset, one of your own in the folder "
                                "presets, or the path of a .toml file.", label="Layers",
                                catalogue="presets", file=True)] = "attn-mlp"
    dim: Annotated[int, Knob("Rank: how much it can learn; 8 to 32 is usual.", 1, 1_000_000)] = 16
    alpha: Annotated[float, Knob("The change is scaled by alpha / dim.", 0.01, 1_000_000)] = 8.0
    conv_dim: Annotated[int | None, Knob("For convolutions larger than 1x1; 0 leaves them out.",
                                         0, 1_000_000, none="same")] = None
    conv_alpha: Annotated[float | None, Knob("For convolutions larger than 1x1.", 0.01, 1_000_000,
                                             none="same")] = None
    weights: Annotated[str, Knob("Go on from this adapter: a run, or a .safetensors file of the "
                                 "same algorithm, size and layers; empty: start at no change.",
                                 label="Continue from", file=True)] = ""
    text_encoder: Annotated[bool, Knob("Train the text encoder too.")] = True
    options: Annotated[dict[str, Any], Knob("The algorithm's own settings.")] = field(
        default_factory=dict)
    train_norm: Annotated[bool, Knob(
        "Train the normalisation layers of the chosen blocks too; seldom needed.",
        label="Normalisation layers")] = False
    dora_wd: Annotated[bool, Knob(
        "DoRA: learn the length and the direction of weights apart. Nearer to full training, "
        "slower.", label="DoRA")] = False
    wd_on_output: Annotated[bool, Knob(
        "DoRA: one length for each output of a layer; off: one for each input, as A1111 reads "
        "it.", label="DoRA by output row")] = True
    dora_detach: Annotated[bool, Knob(
        "DoRA: hold the lengths still while a step is worked out, as in its paper; off: as "
        "LyCORIS does it.", label="DoRA norm detached")] = True
    rs_lora: Annotated[bool, Knob(
        "Scale by alpha / sqrt(dim) instead of alpha / dim (rank-stabilised), so that a large "
        "dim learns as fast as a small one.", label="rsLoRA")] = False
    init: Annotated[str, Knob(
        "How the adapter begins: default; orthogonal; or pissa (LoRA only), which learns faster "
        "and makes a file of twice the dim.",
        choices=("default", "orthogonal", "pissa"), label="Start values")] = (
        "default")
    use_scalar: Annotated[bool, Knob(
        "Also learn how strong each layer's change is, from zero on; seldom needed.",
        label="Trained scalar")] = False
    dropout: Annotated[float, Knob(
        "Share of the adapter's outputs switched off at random in each step, against learning "
        "by heart.", 0, 0.95, 0.05)] = 0.0
    rank_dropout: Annotated[float, Knob(
        "Share of the adapter's ranks switched off at random in each step.", 0, 0.95, 0.05)] = 0.0
    module_dropout: Annotated[float, Knob(
        "Chance that a layer's adapter is switched off for a step.", 0, 0.95, 0.05)] = 0.0
    rules: Annotated[tuple[dict[str, Any], ...], Knob(
        "Exceptions, one a line, the first that matches a layer counts: match = \"*attn2*\", "
        "dim = 4. Also algo, alpha, lr, options, exclude = true.",
        label="Rules for single layers")] = ()
