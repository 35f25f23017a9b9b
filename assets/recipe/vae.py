"""Stage `vae`: the autoencoder between 64x64 pictures and latents of 4x16x16."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from .fast import autocast, prepare
from .pictures import load_pictures
from .training import Average, Checkpoint, Progress, Schedule, finish, step_generator

CARRIED = 12  # channels of the residual stream that carry the picture at the start


@dataclass(frozen=True)
class VaeSettings:
    steps: int = 16000
    batch: int = 8
    rate: float = 1.6e-3
    widths: tuple[int, ...] = (32, 48, 64)
    noise: float = 0.1  # added to the latents: the decoder learns to forgive small errors
    edges: float = 0.5  # weight of the loss on differences between neighbouring pixels
    divergence: float = 2e-3
    seed: int = 0
    precision: str = "fp32"
    save_every: int = 500


def new_autoencoder(widths: tuple[int, ...]) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
        mid_block_add_attention=False,
    )


@torch.no_grad()
def start_as_thumbnail(autoencoder: Any) -> None:
    """Initial weights that already pass a small, blurred picture through.

    Every colour channel travels as a pair (value, -value) and the constants (1, -1) on the first
    twelve channels of the residual stream, so that group norms keep its scale; what the residual
    blocks add starts near zero.
    """
    for convolution in (autoencoder.encoder.conv_in, autoencoder.decoder.conv_in):
        _spread_colours(convolution)
    for module in autoencoder.modules():
        name = type(module).__name__
        if name == "ResnetBlock2D":
            module.conv2.weight.mul_(0.05)
            module.conv2.bias.zero_()
            if module.conv_shortcut is not None:
                _pass_on(module.conv_shortcut)
        elif name == "Downsample2D":
            _pass_on(module.conv)
            for channel in range(CARRIED):  # the mean of four pixels
                module.conv.weight[channel, channel] = 0
                module.conv.weight[channel, channel, :2, :2] = 0.25
        elif name == "Upsample2D":
            _pass_on(module.conv)
    _gather_colours(autoencoder.encoder.conv_out)
    encoder_out = autoencoder.encoder.conv_out
    encoder_out.weight[3].normal_(0, 0.05)
    encoder_out.weight[4:].mul_(0.1)
    encoder_out.bias[4:] = -5.0  # little variance
    _gather_colours(autoencoder.decoder.conv_out)
    for convolution in (autoencoder.quant_conv, autoencoder.post_quant_conv):
        channels = convolution.weight.shape[0]
        convolution.weight.copy_(torch.eye(channels).view(channels, channels, 1, 1))
        convolution.bias.zero_()


def _quiet(convolution: nn.Conv2d, rows: int) -> None:
    deviation = 0.02 / math.sqrt(convolution.weight.shape[1])
    convolution.weight[:rows].normal_(0, deviation)


def _spread_colours(convolution: nn.Conv2d) -> None:
    _quiet(convolution, CARRIED)
    for colour in range(3):
        convolution.weight[4 * colour, colour, 1, 1] = 1
        convolution.weight[4 * colour + 1, colour, 1, 1] = -1
        convolution.bias[4 * colour : 4 * colour + 4] = torch.tensor([0.0, 0.0, 1.0, -1.0])


def _pass_on(convolution: nn.Conv2d) -> None:
    _quiet(convolution, CARRIED)
    centre = convolution.weight.shape[-1] // 2
    for channel in range(CARRIED):
        convolution.weight[channel, channel, centre, centre] = 1
    convolution.bias[:CARRIED] = 0


def _gather_colours(convolution: nn.Conv2d) -> None:
    _quiet(convolution, 3)
    for colour in range(3):
        convolution.weight[colour, 4 * colour, 1, 1] = 0.9
        convolution.weight[colour, 4 * colour + 1, 1, 1] = -0.9
    convolution.bias.zero_()


def to_tensor(pixels: np.ndarray) -> Tensor:
    """(N, H, W, 3) bytes to (N, 3, H, W) in -1..1."""
    tensor = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2)
    return tensor.float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)


def to_pixels(tensor: Tensor) -> np.ndarray:
    scaled = tensor.float().clamp(-1, 1).add(1).mul(127.5).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def edge_loss(output: Tensor, target: Tensor) -> Tensor:
    difference = output - target
    across = difference[..., 1:] - difference[..., :-1]
    down = difference[..., 1:, :] - difference[..., :-1, :]
    return across.abs().mean() + down.abs().mean()


def vae_loss(autoencoder: Any, pictures: Tensor, settings: VaeSettings, step: int) -> Tensor:
    generator = step_generator(settings.seed + 1, step)
    with autocast(settings.precision):
        posterior = autoencoder.encode(pictures).latent_dist
        mean, deviation = posterior.mean.float(), posterior.std.float()
        spread = (deviation.square() + settings.noise**2).sqrt()
        latents = mean + spread * torch.randn(mean.shape, generator=generator)
        output = autoencoder.decode(latents).sample.float()
    logarithm = posterior.logvar.float()
    divergence = 0.5 * (mean.square() + deviation.square() - 1 - logarithm).mean()
    error = functional.l1_loss(output, pictures) + 0.5 * functional.mse_loss(output, pictures)
    return error + settings.edges * edge_loss(output, pictures) + settings.divergence * divergence


def train_vae(work: Path, out: Path, settings: VaeSettings) -> None:
    pixels, _ = load_pictures(work)
    torch.manual_seed(settings.seed)
    autoencoder = new_autoencoder(settings.widths)
    start_as_thumbnail(autoencoder)
    prepare(autoencoder, settings.precision)
    parameters = list(autoencoder.parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.rate, weight_decay=0, betas=(0.9, 0.99), fused=True
    )
    schedule = Schedule(settings.steps, settings.rate)
    average = Average(parameters, 0.998)
    checkpoint = Checkpoint(work / "vae.pt", {"vae": autoencoder}, optimizer, average)
    start, seconds = checkpoint.load()
    progress = Progress("vae", settings.steps, start, seconds)
    for step in range(start, settings.steps):
        generator = step_generator(settings.seed, step)
        chosen = torch.randint(len(pixels), (settings.batch,), generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * schedule.factor(step)
        loss = vae_loss(autoencoder, to_tensor(pixels[chosen.numpy()]), settings, step)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(step)
        progress.add(step, loss.item(), 100)
        if (step + 1) % settings.save_every == 0 or step + 1 == settings.steps:
            checkpoint.save(step + 1, progress.seconds)
    with average.applied():
        standardise(autoencoder, pixels, settings.noise)
        quality = reconstruction_quality(autoencoder, pixels)
        save_vae(autoencoder, out)
    print(f"vae: {quality:.2f} dB", flush=True)
    finish(work, "vae", steps=settings.steps, seconds=round(progress.seconds), decibels=quality)


@torch.no_grad()
def standardise(autoencoder: Any, pixels: np.ndarray, noise: float, count: int = 2048) -> None:
    """Mean 0 for every latent channel, deviation 1 for all of them together.

    A channel is as wide as it has to be exact: the same error matters as much in each of them.
    The layers next to the latents take all of it, so pictures come out as before.
    """
    posteriors = [autoencoder.encode(to_tensor(p)).latent_dist for p in _batches(pixels[:count])]
    latents = torch.cat([posterior.mean for posterior in posteriors])
    variance = torch.cat([posterior.var for posterior in posteriors]).mean((0, 2, 3))
    mean, unit = latents.mean((0, 2, 3)), (variance + noise**2).sqrt()
    unit *= ((latents - mean.view(1, -1, 1, 1)) / unit.view(1, -1, 1, 1)).std()
    before, after = autoencoder.quant_conv, autoencoder.post_quant_conv
    after.bias.add_(after.weight[:, :, 0, 0] @ mean)
    after.weight.mul_(unit.view(1, -1, 1, 1))
    before.bias[:4].sub_(mean).div_(unit)
    before.weight[:4].div_(unit.view(-1, 1, 1, 1))
    before.bias[4:].sub_(2 * unit.log())
    autoencoder.register_to_config(scaling_factor=1.0)


def _batches(pixels: np.ndarray, size: int = 64) -> list[np.ndarray]:
    return [pixels[start : start + size] for start in range(0, len(pixels), size)]


@torch.no_grad()
def encode(autoencoder: Any, pixels: np.ndarray) -> Tensor:
    """Means of the latents."""
    parts = [autoencoder.encode(to_tensor(part)).latent_dist.mean for part in _batches(pixels)]
    return torch.cat(parts).contiguous()


@torch.no_grad()
def decode(autoencoder: Any, latents: Tensor, batch: int = 64) -> np.ndarray:
    parts = [to_pixels(autoencoder.decode(part).sample) for part in latents.split(batch)]
    return np.concatenate(parts)


def reconstruction_quality(autoencoder: Any, pixels: np.ndarray, count: int = 256) -> float:
    """Peak signal to noise, in dB, of bytes that went through latents and back."""
    pixels = np.asarray(pixels[:count])
    restored = decode(autoencoder, encode(autoencoder, pixels))
    error = np.square(restored.astype(np.float64) - pixels).mean()
    return round(float(10 * np.log10(255**2 / error)), 2)


def save_vae(autoencoder: Any, out: Path) -> None:
    """In half precision, as an ordinary folder of the pipeline."""
    half = new_autoencoder(tuple(autoencoder.config.block_out_channels))
    half.load_state_dict(autoencoder.state_dict())
    half.register_to_config(scaling_factor=1.0)
    half.half().save_pretrained(out / "vae")


def load_vae(out: Path) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(out / "vae").float().eval()
