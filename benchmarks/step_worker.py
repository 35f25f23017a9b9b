"""One contender's process for step_cost.py: holds models, and takes a training step when told to.

Reads one JSON command a line from stdin and answers each with one JSON line on stdout; between
commands it sleeps in a read, so that of all workers only one computes at a time.

    build  {name, kind, settings}  -> {layers, trained, memory}   a model with its adapters, warm
    steps  {name, count}           -> {seconds}                   mean of `count` training steps
    profile {name}                 -> {table}                     where one step's time goes
    drop                           -> {}                          forget all models

A step is forward, backward and the optimiser's step over what is trained. The latents ask for a
gradient, in every contender, so the backward pass goes through the whole UNet and a frozen model
costs forward plus input gradient: the floor.

Memory is exact, not sampled. On a CPU the profiler records every allocation and release of tensor
memory from the moment the model is built; the figure is the highest running sum within a warm step,
so it counts weights, optimiser state, gradients, what is saved for backward and every temporary
tensor, and no workspace inside a math library. On CUDA it is torch.cuda.max_memory_allocated.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TextIO

import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

WARM = "a warm step"
Settings = dict[str, Any]
Trained = tuple[int, list[nn.Parameter]]  # layers adapted, tensors to train


def frozen(unet: nn.Module, settings: Settings) -> Trained:
    return 0, []


def native(unet: nn.Module, settings: Settings) -> Trained:
    """Full fine-tuning of the layers that the others adapt."""
    modules = [unet.get_submodule(name) for name in targets(unet)]
    found = [p.requires_grad_() for module in modules for p in module.parameters()]
    for parameter in found:
        parameter.data = parameter.data.float()
    return len(modules), found


def ours(unet: nn.Module, settings: Settings) -> Trained:
    from lycoris import create_lycoris

    network = create_lycoris(unet, preset="attn-mlp", **settings).apply_to()
    return len(network), network.get_trainable_params()


def lycoris_lora(unet: nn.Module, settings: Settings) -> Trained:
    import lycoris
    from lycoris.config import PRESET

    if not hasattr(lycoris, "LycorisNetwork"):
        raise ImportError("the package called lycoris found here is not lycoris-lora")
    # Its own attn-mlp also takes the time embedding, which nobody else adapts.
    PRESET["benchmark"] = {"enable_conv": False, "target_module": ["Transformer2DModel"]}
    network = lycoris.create_lycoris(unet, preset="benchmark", **settings)
    network.apply_to()
    unet.lycoris = network  # its parameters live only as long as the network
    return len(network.loras), [p for lora in network.loras for p in lora.parameters()]


def peft(unet: nn.Module, settings: Settings) -> Trained:
    import peft as package
    from peft.tuners.tuners_utils import BaseTunerLayer

    config = getattr(package, settings.pop("config"))
    package.inject_adapter_in_model(config(target_modules=targets(unet), **settings), unet)
    found = [p for p in unet.parameters() if p.requires_grad]
    for parameter in found:  # as its get_peft_model does; the base may be bf16
        parameter.data = parameter.data.float()
    return sum(isinstance(m, BaseTunerLayer) for m in unet.modules()), found


KINDS: Mapping[str, Callable[[nn.Module, Settings], Trained]] = {
    "frozen": frozen, "native": native, "ours": ours, "lycoris-lora": lycoris_lora, "peft": peft}


def targets(unet: nn.Module) -> list[str]:
    """The linear and 1x1 layers of the transformers: what the preset attn-mlp takes."""
    return [f"{outer}.{name}" for outer, block in unet.named_modules()
            if type(block).__name__ == "Transformer2DModel"
            for name, module in block.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]


class Run:
    """A model with one contender's adapters, its optimiser and a batch."""

    def __init__(self, setup: Settings, kind: str, settings: Settings):
        from diffusers import UNet2DConditionModel

        self.device = torch.device(setup["device"])
        self.clock = time.process_time if setup["clock"] == "cpu" else time.perf_counter
        self.half = setup["dtype"] == "bf16"
        dtype = torch.bfloat16 if self.half else torch.float32
        torch.manual_seed(0)
        self.unet = UNet2DConditionModel(
            block_out_channels=setup["widths"], cross_attention_dim=768).requires_grad_(False)
        self.unet.to(self.device, dtype).train()
        self.layers, self.parameters = KINDS[kind](self.unet, settings)
        self.unet.to(self.device)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, fused=True) if (
            self.parameters) else None
        batch, side = setup["batch"], setup["latents"]
        self.latents = torch.randn(batch, 4, side, side).to(self.device, dtype).requires_grad_()
        self.target = torch.randn(batch, 4, side, side).to(self.device)
        self.text = torch.randn(batch, 77, 768).to(self.device, dtype)
        self.timesteps = torch.linspace(20, 980, batch).long().to(self.device)

    def step(self) -> None:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            found = self.unet(self.latents, self.timesteps, self.text, return_dict=False)[0]
        F.mse_loss(found.float(), self.target).backward()
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.latents.grad = None

    def seconds(self, count: int) -> float:
        self.wait()
        began = self.clock()
        for _ in range(count):
            self.step()
        self.wait()
        return (self.clock() - began) / count

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def build(setup: Settings, kind: str, settings: Settings) -> tuple[Run, int]:
    """(a run that has made two steps, the highest bytes of tensors within the second)."""
    gc.collect()
    if setup["device"] == "cuda":
        before = torch.cuda.memory_allocated()
        run = Run(setup, kind, settings)
        run.step()
        torch.cuda.reset_peak_memory_stats()
        run.step()
        return run, torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run = Run(setup, kind, settings)
        run.step()
        gc.collect()
        with record_function(WARM):
            run.step()
    events = recorded.profiler.kineto_results.events()  # as JSON they would fill the memory
    warm = next(e for e in events if e.name() == WARM)
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    return run, highest(changes, warm.start_ns(), warm.end_ns())


def highest(changes: Iterable[tuple[int, int]], begin: int, end: int) -> int:
    """The highest running sum of (when, bytes), in the order they came, from begin to end."""
    total = top = 0
    for when, change in changes:
        total += change
        if begin <= when <= end:
            top = max(top, total)
    return top


def profiled(run: Run) -> str:
    """The operators of one step with the shapes they got, the dearest first."""
    activities = [ProfilerActivity.CPU]
    if run.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    run.step()
    with profile(activities=activities, record_shapes=True) as recorded:
        run.step()
        run.wait()
    order = f"self_{run.device.type}_time_total"
    whole = recorded.key_averages().table(sort_by=order, row_limit=25)
    shaped = recorded.key_averages(group_by_input_shape=True)
    return f"{whole}\n{shaped.table(sort_by=order, row_limit=40, max_shapes_column_width=70)}"


def answer(setup: Settings, runs: dict[str, Run], command: Settings) -> Settings:
    match command["do"]:
        case "build":
            run, memory = build(setup, command["kind"], command["settings"])
            runs[command["name"]] = run
            return {"layers": run.layers, "memory": memory,
                    "trained": sum(p.numel() for p in run.parameters)}
        case "steps":
            return {"seconds": runs[command["name"]].seconds(command["count"])}
        case "profile":
            return {"table": profiled(runs[command["name"]])}
        case "drop":
            runs.clear()
            gc.collect()
    return {}


Answer = Callable[[Settings, dict[str, Any], Settings], Settings]


def serve(commands: TextIO, answers: TextIO, answer: Answer = answer) -> None:
    setup: Settings = json.loads(commands.readline())
    if setup["threads"]:
        torch.set_num_threads(setup["threads"])
    if setup["source"]:
        sys.path.insert(0, setup["source"])
    runs: dict[str, Any] = {}
    for line in commands:
        try:
            found = answer(setup, runs, json.loads(line))
        except Exception as error:  # a peer may fail in any way; the table says how
            found = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(found) + "\n")
        answers.flush()


if __name__ == "__main__":
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as channel:
        os.dup2(2, 1)  # what libraries print must not land among the answers
        serve(sys.stdin, channel)
