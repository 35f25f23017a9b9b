"""The guideline's table of training time and memory, measured.

    python benchmarks/guideline_table.py [--only "LoKr"] [--steps 20] [--json FILE] [--small]

Stable Diffusion 1.5's UNet and text encoder with random weights, which cost what trained ones do,
at the guideline's setting: 512 x 512, batch 8, AdamW8bit (AdamW where bitsandbytes is missing, and
the last lines say so), the text encoder trained where the preset takes it, base and arithmetic in
bf16. One row after the other in one process; a row's time is the median of its steps after three
warm ones, as a ratio to LoRA attn-mlp 32's, beside the same ratio of the published times. Memory
is torch.cuda.max_memory_allocated, beside it what lycoris.memory predicts and what was published
(the whole card's, of another trainer in fp16: of the same order, not the same thing).

The table needs a CUDA device of 24 GiB. --small runs every row's code on a CPU in a minute, with a
model of a few channels: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
import torch.nn.functional as F
from torch import nn

from lycoris import assignments, config, families, known, memory, optimizers, plan, presets
from lycoris.errors import MissingPackage
from lycoris.network import LycorisNetwork
from lycoris.published import MODEL, ROWS, Row

MIB = 2**20
WARM, REFERENCE = 3, "LoRA attn-mlp 32"
# Hours and MiB as published, in the order of lycoris.published.ROWS.
PUBLISHED = (
    ("4hr", 16410), ("4hr", 16358), ("3hr25min", 15222), ("4hr5min", 15420), ("4hr30min", 17350),
    ("4hr5min", 16168), ("4hr5min", 16348), ("4hr10min", 15960), ("3hr30min", 15244),
    ("4hr10min", 16876), ("5hr40min", 16750), ("4hr10min", 16294), ("3hr50min", 16812),
    ("3hr45min", 16806), ("3hr55min", 16010), ("3hr40min", 16034), ("3hr17min", 15374),
    ("3hr45min", 16116), ("5hr10min", 17916), ("3hr7min", 14954), ("3hr15min", 15912),
    ("3hr50min", 18668), ("5hr20min", 23008), ("4hr47min", 22118))
SMALL = {"unet": {"block_out_channels": [32, 32, 32, 32], "norm_num_groups": 8,
                  "cross_attention_dim": 64, "attention_head_dim": 4},
         "text_encoder": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
                          "num_attention_heads": 4, "projection_dim": 64}}


class Bench:
    """Model, batch and the loop of one training step."""

    def __init__(self, options: argparse.Namespace):
        import diffusers
        import transformers

        configs = {part: dict(found) for part, found in known.find(MODEL).configs.items()}
        if options.small:
            configs = {part: {**found, **SMALL.get(part, {})} for part, found in configs.items()}
        self.small, self.steps = options.small, options.steps
        self.device = torch.device("cpu" if options.small else "cuda")
        dtype = torch.float32 if options.small else torch.bfloat16
        torch.manual_seed(0)
        with self.device:
            self.unet = diffusers.UNet2DConditionModel.from_config(configs["unet"])
            self.text = transformers.CLIPTextModel(
                transformers.CLIPTextConfig(**configs["text_encoder"]))
        for module in (self.unet, self.text):
            nn.Module.to(module, dtype).requires_grad_(False).eval()
        self.parts = {"unet": self.unet,
                      "text_encoder": getattr(self.text, "text_model", self.text)}
        self.batch, side = (2, 16) if options.small else (8, 64)
        self.x = torch.randn(self.batch, 4, side, side).to(self.device, dtype)
        self.target = torch.randn(self.batch, 4, side, side).to(self.device)
        self.ids = torch.randint(1000, (self.batch, 77)).to(self.device)
        self.t = torch.randint(1000, (self.batch,)).to(self.device)

    def layers(self) -> list[Any]:
        return [layer for part, module in self.parts.items()
                for layer in families.layers_of(module, part)]

    def adapter(self, settings: Mapping[str, Any]) -> LycorisNetwork:
        network = config.build({f"network.{name}": value
                                for name, value in settings.items()}).network
        kind = families.catalogue()[known.find(MODEL).family]
        chosen = presets.select(kind, self.layers(), presets.find(network.preset, kind))
        found = assignments.assign(chosen.layers, network, kind.key, chosen.overrides)
        return LycorisNetwork(found, self.parts)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=not self.small):
            cond = self.text(self.ids).last_hidden_state
            predicted = self.unet(self.x, self.t, cond, return_dict=False)[0]
        F.mse_loss(predicted.float(), self.target).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def measure(self, row: Row) -> dict[str, float]:
        """Seconds a step and the most bytes PyTorch allocated."""
        gc.collect()
        if not self.small:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        if row.settings is None:  # the model itself: fp32 masters, as that row was trained
            masters = [p for module in (self.unet, self.text) for p in module.parameters()]
            kept = [p.detach().cpu() for p in masters]
            for parameter in masters:
                parameter.data = parameter.data.float()
                parameter.requires_grad_(True)
            found = self._timed(masters)
            for parameter, data in zip(masters, kept, strict=True):
                parameter.requires_grad_(False)
                parameter.data = data.to(self.device)
            return found
        network = self.adapter(row.settings).apply_to()
        network.train()
        try:
            return self._timed(network.get_trainable_params())
        finally:
            network.restore()

    def _timed(self, parameters: list[nn.Parameter]) -> dict[str, float]:
        optimizer = make_optimizer(parameters)
        seconds = []
        for _ in range(WARM + self.steps):
            self._wait()
            began = time.perf_counter()
            self.step(optimizer)
            self._wait()
            seconds.append(time.perf_counter() - began)
        peak = 0 if self.small else torch.cuda.max_memory_allocated()
        return {"seconds": statistics.median(seconds[WARM:]), "memory": peak}

    def _wait(self) -> None:
        if not self.small:
            torch.cuda.synchronize()


def make_optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return optimizers.make(optimizer_name(), [{"params": parameters, "lr": 1e-4}], 0.01, {})


def optimizer_name() -> str:
    try:
        optimizers.load("AdamW8bit")
    except MissingPackage:
        return "AdamW"
    return "AdamW8bit" if torch.cuda.is_available() else "AdamW"


def predicted(row: Row) -> int | None:
    """lycoris.memory's figure for such a step: without the autoencoder, which is not there."""
    if row.settings is None:
        return None
    values = {f"network.{name}": value for name, value in row.settings.items()}
    run = config.build({**values, "model.family": MODEL, "dataset.resolution": 512,
                        "dataset.bucket": False, "train.batch_size": 8, "sample.every": 0,
                        "optimizer.name": optimizer_name()})
    found = memory.predict(plan.make(run, need_dataset=False), "cuda")
    phase = next(each for each in found.phases if each.name == memory.TRAINING)
    return sum(item.bytes for item in phase.items
               if item.kind != "fixed" and not item.name.startswith("vae"))


def minutes(text: str) -> int:
    hours, rest = re.fullmatch(r"(\d+)hr(?:(\d+)min)?", text).groups()
    return 60 * int(hours) + int(rest or 0)


def report(found: Mapping[str, Mapping[str, float]], say: Callable[[str], None]) -> None:
    times = {row.name: minutes(said[0]) for row, said in zip(ROWS, PUBLISHED, strict=True)}
    memories = {row.name: said[1] for row, said in zip(ROWS, PUBLISHED, strict=True)}
    base = found.get(REFERENCE) or next(iter(found.values()))
    base_name = REFERENCE if REFERENCE in found else next(iter(found))
    say(f"\nTime as a ratio to {base_name}; memory in MiB.\n")
    say("| row | time | published | memory | predicted | published |\n|---|---|---|---|---|---|")
    for name, each in found.items():
        guess = each["predicted"]
        say(f"| {name} | {each['seconds'] / base['seconds']:.2f} | "
            f"{times[name] / times[base_name]:.2f} | {each['memory'] / MIB:,.0f} | "
            f"{'–' if guess is None else f'{guess / MIB:,.0f}'} | {memories[name]:,} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    parser.add_argument("--steps", type=int, default=20, help="steps that are timed")
    parser.add_argument("--json", help="write every figure to this file")
    parser.add_argument("--small", action="store_true", help="a smoke run on a CPU")
    options = parser.parse_args()
    if not options.small and not torch.cuda.is_available():
        raise SystemExit("The table is measured on a CUDA device, and PyTorch sees none here; "
                         "--small runs the code on a CPU.")
    bench = Bench(options)
    found: dict[str, dict[str, Any]] = {}
    for row in ROWS:
        if options.only in row.name:
            found[row.name] = {**bench.measure(row), "predicted": predicted(row)}
            sys.stdout.write(f"{row.name}: {found[row.name]['seconds']:.3f} s a step\n")
            sys.stdout.flush()
    if not found:
        raise SystemExit(f"No row has {options.only!r} in its name.")
    report(found, lambda text: sys.stdout.write(text + "\n"))
    device = "CPU, small model" if options.small else torch.cuda.get_device_name()
    sys.stdout.write(f"\n{device}; batch {bench.batch}, {optimizer_name()}, torch "
                     f"{torch.__version__}, {options.steps} steps a row.\n")
    if options.json:
        Path(options.json).write_text(json.dumps({"device": device, "rows": found}, indent=1),
                                      "utf-8")


if __name__ == "__main__":
    main()
