"""One contender's process for train_throughput.py; commands and answers as in step_worker.py.

    build {kind, base, pictures, side, batch, dim, cached} -> {cache, load, trained}
                                    seconds for the pictures' latents, and for all else before the
                                    first step; parameters
    steps {count}   -> {seconds}    mean of `count` training steps, data and logging included
    save  {folder}  -> {seconds}    what is needed to go on later: adapter and optimiser state
    memory          -> {bytes}      the most that was in use since the start
    profile {count} -> {table}      where the time of steps goes

Ours is the trainer's own session. The peer follows the recipe that diffusers documents for LoRA:
UNet2DConditionModel with PEFT's LoraConfig on to_q, to_k, to_v and to_out.0, DDPMScheduler's noise,
the mean squared error, AdamW, gradients clipped at 1, the loss read each step. As documented it
encodes pictures and captions in every step; `cached`, before the first. Libraries are imported
before the clock starts, so that it does not matter who goes first.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from step_worker import Settings, serve
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

TARGETS = ("to_k", "to_q", "to_v", "to_out.0")


class Ours:
    """A run of ours up to its first step."""

    def __init__(self, device: torch.device, half: bool, asked: Settings):
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer

        from lycoris import config, plan, trainer
        from lycoris.data import cache

        assert AutoencoderKL and UNet2DConditionModel and CLIPTextModel and CLIPTokenizer

        out = Path(asked["base"]).parent / "runs"
        run = config.load(None, [
            f"model.base={asked['base']}", f"dataset.folder={asked['pictures']}",
            f"dataset.resolution={asked['side']}", "dataset.caption_dropout=0",
            f"train.batch_size={asked['batch']}", f"train.device={device}", "train.steps=100000",
            f"train.precision={'bf16' if half else 'fp32'}", "network.preset=attn-only",
            f"network.dim={asked['dim']}", f"network.alpha={asked['dim']}",
            "network.text_encoder=false", "optimizer.schedule=constant", "optimizer.warmup=0",
            "sample.every=0", "train.checkpoint_every=0", f"output.folder={out}"])
        made = plan.make(run)
        folder = plan.create(made)  # events go to the disk, as a run's do
        self.session = trainer.Session(made, folder.path, folder.append)
        began = time.perf_counter()
        self.session.prepare(set)
        ready = time.perf_counter()
        # Once more, to have its time; nothing is taken from the store here.
        cache.encode(self.session.model, [
            cache.Wanted(picture.path, bucket)
            for picture, bucket in zip(made.dataset.learned, made.buckets, strict=True)],
            lambda done, total, taken: None)
        self.cache = time.perf_counter() - ready
        self.load = ready - began - self.cache
        self.trained = sum(p.numel() for p in self.session.network.parameters())

    def step(self) -> None:
        self.session.advance()

    def save(self, folder: Path) -> None:
        self.session.save()


class Peer:
    """The documented recipe."""

    def __init__(self, device: torch.device, half: bool, asked: Settings):
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
        from peft import LoraConfig
        from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

        base, dtype = asked["base"], torch.bfloat16 if half else torch.float32
        self.device, self.half, self.side, self.batch = device, half, asked["side"], asked["batch"]
        began = time.perf_counter()
        self.schedule = DDPMScheduler.from_pretrained(base, subfolder="scheduler")
        self.vae = AutoencoderKL.from_pretrained(base, subfolder="vae")
        self.unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
        self.texts = [(CLIPTokenizer.from_pretrained(base, subfolder="tokenizer"),
                       CLIPTextModel.from_pretrained(base, subfolder="text_encoder"))]
        self.xl = (Path(base) / "text_encoder_2").is_dir()
        if self.xl:
            self.texts.append((
                CLIPTokenizer.from_pretrained(base, subfolder="tokenizer_2"),
                CLIPTextModelWithProjection.from_pretrained(base, subfolder="text_encoder_2")))
        for module in (self.vae, self.unet, *(encoder for _, encoder in self.texts)):
            module.requires_grad_(False)
            module.to(device, torch.float32 if module is self.vae else dtype)
        self.unet.add_adapter(LoraConfig(
            r=asked["dim"], lora_alpha=asked["dim"], init_lora_weights="gaussian",
            target_modules=list(TARGETS)))
        self.parameters = [p for p in self.unet.parameters() if p.requires_grad]
        for parameter in self.parameters:
            parameter.data = parameter.data.float()
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, weight_decay=0.01)
        self.unet.train()
        self.trained = sum(p.numel() for p in self.parameters)
        self.pictures = sorted(Path(asked["pictures"]).glob("*.png"))
        self.captions = [p.with_suffix(".txt").read_text("utf-8").strip() for p in self.pictures]
        self.place, self.order = 0, torch.randperm(len(self.pictures))
        self.kept: list[tuple[Tensor, Any]] = []
        self.cache = 0.0
        if asked["cached"]:
            self._keep()
        self.load = time.perf_counter() - began - self.cache

    def _keep(self) -> None:
        """Latents in batches, and captions, of all pictures."""
        began, every = time.perf_counter(), range(len(self.pictures))
        latents = torch.cat([self.latents(list(every[first:first + self.batch]))
                             for first in every[::self.batch]])
        self.cache = time.perf_counter() - began
        self.kept = [(latents[i:i + 1], self.condition([i])) for i in every]

    @torch.no_grad()
    def latents(self, members: list[int]) -> Tensor:
        import numpy
        from PIL import Image

        pixels = torch.stack([torch.from_numpy(numpy.asarray(
            Image.open(self.pictures[i]).convert("RGB").resize((self.side, self.side)))).permute(
                2, 0, 1) for i in members]).float() / 127.5 - 1
        return self.vae.encode(pixels.to(self.device)).latent_dist.sample() * (
            self.vae.config.scaling_factor)

    @torch.no_grad()
    def condition(self, members: list[int]) -> tuple[Tensor, dict[str, Tensor] | None]:
        hidden, pooled = [], None
        for words, encoder in self.texts:
            ids = words([self.captions[i] for i in members], padding="max_length",
                        max_length=encoder.config.max_position_embeddings, truncation=True,
                        return_tensors="pt").input_ids.to(self.device)
            found = encoder(ids, output_hidden_states=True)
            hidden.append(found.hidden_states[-2] if self.xl else found.last_hidden_state)
            pooled = found[0]
        if not self.xl:
            return hidden[0], None
        sizes = torch.tensor([[self.side, self.side, 0, 0, self.side, self.side]] * len(members))
        return torch.cat(hidden, -1), {"text_embeds": pooled, "time_ids": sizes.to(self.device)}

    def _next(self) -> tuple[Tensor, Tensor, dict[str, Tensor] | None]:
        members = [int(self.order[(self.place + k) % len(self.order)]) for k in range(self.batch)]
        self.place += self.batch
        if not self.kept:
            return self.latents(members), *self.condition(members)
        latents, conditions = zip(*(self.kept[i] for i in members), strict=True)
        more = [each[1] for each in conditions]
        return (torch.cat(latents), torch.cat([each[0] for each in conditions]),
                {k: torch.cat([one[k] for one in more]) for k in more[0]} if self.xl else None)

    def step(self) -> None:
        latents, hidden, more = self._next()
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (len(latents),), device=self.device)
        noisy = self.schedule.add_noise(latents, noise, timesteps)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            found = self.unet(noisy, timesteps, hidden, added_cond_kwargs=more,
                              return_dict=False)[0]
        loss = F.mse_loss(found.float(), noise.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        loss.item()

    def save(self, folder: Path) -> None:
        from peft.utils import get_peft_model_state_dict
        from safetensors.torch import save_file

        save_file({name: tensor.contiguous() for name, tensor in get_peft_model_state_dict(
            self.unet).items()}, folder / "lora.safetensors")
        torch.save(self.optimizer.state_dict(), folder / "optimizer.bin")


def answer(setup: Settings, runs: dict[str, Any], command: Settings) -> Settings:
    device = torch.device(setup["device"])
    if command["do"] == "build":
        kind = Ours if command["kind"] == "ours" else Peer
        runs["it"] = it = kind(device, setup["dtype"] == "bf16", command)
        return {"load": it.load, "cache": it.cache, "trained": it.trained}
    it = runs["it"]
    match command["do"]:
        case "steps":
            clock = time.process_time if setup["clock"] == "cpu" else time.perf_counter
            return {"seconds": timed(device, lambda: [it.step() for _ in range(command["count"])],
                                     clock) / command["count"]}
        case "save":
            return {"seconds": timed(device, lambda: it.save(Path(command["folder"])))}
        case "memory":
            return {"bytes": peak(device)}
        case "profile":
            return {"table": profiled(device, it, command["count"])}
    return {}


def timed(device: torch.device, work: Any, clock: Any = time.perf_counter) -> float:
    _wait(device)
    began = clock()
    work()
    _wait(device)
    return clock() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def profiled(device: torch.device, it: Any, count: int) -> str:
    """The operators of some steps, the dearest first. What waits for a GPU is in it by name:
    aten::_local_scalar_dense and cudaStreamSynchronize."""
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=kinds) as recorded:
        seconds = timed(device, lambda: [it.step() for _ in range(count)])
    table = recorded.key_averages()
    within = sum(each.self_cpu_time_total for each in table) / 1e6
    return (f"{count} steps took {seconds:.3f} s; {within:.3f} s within operators, the rest is "
            "Python: batches, events, launching.\n"
            + table.table(sort_by=f"self_{device.type}_time_total", row_limit=20))


if __name__ == "__main__":
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as channel:
        os.dup2(2, 1)  # what libraries print must not land among the answers
        serve(sys.stdin, channel, answer)
