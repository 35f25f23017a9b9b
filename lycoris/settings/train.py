"""How long, how fast, on what; and what is kept on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ..knobs import Knob


@dataclass(frozen=True)
class TrainConfig:
    steps: Annotated[int, Knob("Optimiser steps.", 1, 10_000_000)] = 1500
    batch_size: Annotated[int, Knob("Pictures in one forward pass.", 1, 4096)] = 1
    accumulate: Annotated[int, Knob(
        "This many batches make one step: as a larger batch would, without its memory.",
        1, 4096, label="Gradient accumulation")] = 1
    seed: Annotated[int, Knob("Fixes order, captions, timesteps and noise; two runs with the same "
                              "seed see the same, whatever their algorithm.", 0, 2**63 - 1)] = 42
    precision: Annotated[str, Knob(
        "How precisely the run computes; auto: fp32 on a CPU, bf16 where the GPU has it, else "
        "fp16.", choices=("auto", "fp32", "bf16", "fp16"))] = "auto"
    device: Annotated[str, Knob(
        "auto takes the GPU where there is one. Or cpu, cuda, cuda:1 (the second GPU), mps "
        "(Apple).")] = "auto"
    split: Annotated[int, Knob(
        "Each batch is computed in this many parts, one after the other: less memory, slower, "
        "the same result.", 1, 4096, label="Batch in parts")] = 1
    retry_smaller: Annotated[bool, Knob("When memory runs out in training, go on from the last "
                                        "checkpoint with what saves memory and leaves the result "
                                        "the same: gradient checkpointing, batches in parts, "
                                        "block swap.",
                                        label="Retry with less memory")] = False
    gradient_checkpointing: Annotated[bool, Knob(
        "Compute what lies between the layers twice instead of keeping it: less memory, slower, "
        "the same result.")] = False
    compile: Annotated[bool, Knob("Compile the base model's blocks: faster steps after a slow "
                                  "start, for long runs. Needs a C++ compiler; on a GPU Triton.",
                                  label="torch.compile")] = False
    offload: Annotated[bool, Knob("On a GPU, keep what no step needs in the computer's own memory: "
                                  "the autoencoder, and text encoders that do not learn. They come "
                                  "back to paint samples. The same result.",
                                  label="Unused parts off the GPU")] = False
    block_swap: Annotated[float, Knob(
        "On a GPU, share of the model's blocks whose weights wait in the computer's own memory "
        "until their turn: less memory, slower, the same result. Needs gradient checkpointing; "
        "0 is off.", 0, 1, 0.05, label="Block swap")] = 0.0
    fused_backward: Annotated[bool, Knob(
        "Take each weight's step as soon as its gradient is known, so that no gradients are "
        "kept: saves most in native training. Not with gradient clipping or accumulation.",
        label="Fused backward pass")] = False
    clip_norm: Annotated[float, Knob(
        "A step whose gradient is longer than this is shortened to it; 1 is usual, 0 is off.",
        0, 1000, label="Gradient clipping")] = 1.0
    max_norm: Annotated[float, Knob(
        "The most that training may change a layer (the change's norm); what is more is shrunk "
        "after each step. 1 is usual, 0 is off.", 0, 1000, label="Max norm")] = 0.0
    ema: Annotated[float, Knob(
        "Save and paint an average of the adapter over its last steps, which is steadier: 0.999 "
        "is about the last 1,000. 0 is off.", 0, 0.99999, label="Moving average (EMA)")] = 0.0
    checkpoint_every: Annotated[int, Knob("0: only at the end.", 0, 10_000_000, unit="steps")] = 250
    validate_every: Annotated[int, Knob(
        "How often the pictures that are held out are looked at; 0: never.",
        0, 10_000_000, unit="steps")] = 100
    keep_checkpoints: Annotated[int, Knob("How many of the latest checkpoints stay on disk; "
                                          "0 keeps all.", 0, 10_000)] = 3
