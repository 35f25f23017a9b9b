"""What a base model holds for its backward pass, counted without weights and without arithmetic.

The real classes run on torch's meta device, where tensors have shapes and no numbers. Every tensor
that autograd saves is counted once, in the order of the forward pass, so that what lies behind the
first adapted layer is known for any choice of layers. Counts are linear in the number of latent
positions: the attention of the trace is the kernel that saves its inputs and its output, as those
of CUDA and of the CPU do, and no table of scores. They are written as (per picture, per position).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import tracing
from .errors import ModelFileError
from .families import Family, layers_of
from .footprint import FORMAT, MODES, Table, fingerprint

META = torch.device("meta")
UNETS, TEXTS = "unet", ("text_encoder", "text_encoder_2")


@dataclass(frozen=True)
class Raw:
    """What one size gave; the numbers are bytes and positions of one picture."""

    positions: int
    layers: tuple[tuple[str, dict[str, float], int | str, int], ...]
    segments: tuple[tuple[float, ...], ...]
    numbers: Mapping[str, float]


@dataclass(frozen=True)
class Part:
    """A module on the meta device and how it is called at a number of latent rows and columns."""

    module: nn.Module
    call: Callable[[int, int], Tensor]
    part: str
    constant: bool = False  # does it not depend on the picture's size?

    @property
    def tensors(self) -> list[Tensor]:
        return [*self.module.parameters(), *self.module.buffers()]

    def checkpoint(self, func: Callable[..., Any]) -> None:
        """Call `func` in the place of torch's checkpoint, until `plain`."""
        self.module.train()
        self.module._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=func)

    def plain(self) -> None:
        self.module._set_gradient_checkpointing(enable=False)
        self.module.eval()


def _measure(part: Part, rows: int, columns: int, half: bool) -> Raw:
    tape = tracing.Tape()
    tape.ignored = {tape.storage(tensor) for tensor in part.tensors}
    hooks = tape.follow({part.module.get_submodule(layer.name): layer
                         for layer in layers_of(part.module, part.part)})
    part.checkpoint(tape.segment)
    with torch.autograd.graph.saved_tensors_hooks(tape.pack, lambda t: t), tracing.Arithmetic(half):
        part.call(rows, columns)
    for hook in hooks:
        hook.remove()
    part.plain()
    layers, segments, total = tracing.read(tape, half)
    del tape
    numbers = {"total": total}
    numbers["transient"] = _peak(part, rows, columns, half) - total
    part.checkpoint(functools.partial(_again, half))
    again = _peak(part, rows, columns, half)
    part.plain()
    numbers["transient_checkpointed"] = again - checkpointed(segments, total)
    with torch.no_grad():
        numbers["no_gradient"] = _peak(part, rows, columns, half)
    return Raw(rows * columns, tuple(layers), tuple(segments), numbers)


def _again(half: bool, call: Callable[..., Any], *args: Any) -> Any:
    """torch's checkpoint; a backward pass leaves all modes, so the second time enters its own."""
    return checkpoint(call, *args, use_reentrant=False,
                      context_fn=lambda: (nullcontext(), tracing.Arithmetic(half)))


def checkpointed(segments: Sequence[Sequence[float]], total: float) -> float:
    """The most bytes held at once where each segment (at, full, held, own) keeps its inputs only
    and is computed again when its turn comes."""
    dropped = most = 0.0
    for at, full, held, own in segments:
        most = max(most, at - dropped + held + own)
        dropped += full - held
    return max(most, total - dropped)


def _peak(part: Part, rows: int, columns: int, half: bool) -> float:
    with tracing.Meter(part.tensors) as meter, tracing.Arithmetic(half):
        found = part.call(rows, columns)
        if found.requires_grad:
            loss = found.float().square().mean()
            del found
            loss.backward()
    return meter.most / tracing.BATCH


def _lines(values: Sequence[tuple[int, float]]) -> list[float]:
    """[a, b] with a + b x through the first and the last of [(x, y)]; whole numbers stay whole."""
    (x0, y0), (x1, y1) = values[0], values[-1]
    slope = (y1 - y0) / (x1 - x0) if x1 != x0 else 0.0
    return [_short(y1 - slope * x1), _short(slope)]


def _short(value: float) -> float:
    rounded = round(value, 3)
    return int(rounded) if rounded == int(rounded) else rounded


def _joined(raws: Sequence[Raw]) -> dict[str, Any]:
    """Several sizes of one part as lines."""
    def line(get: Callable[[Raw], float]) -> list[float]:
        return _lines([(raw.positions, get(raw)) for raw in raws])

    def spot(place: int) -> list[Any]:
        name, _, source, result = raws[0].layers[place]
        own = [line(lambda raw, key=key: raw.layers[place][1][key])
               for key in ("positions", "fed", "before")]
        return [name, *own, source, result]

    def segment(place: int) -> list[list[float]]:
        return [line(lambda raw, k=k: raw.segments[place][k]) for k in range(4)]

    layers = [spot(place) for place in range(len(raws[0].layers))]
    segments = [segment(place) for place in range(len(raws[0].segments))]
    return {"layers": layers, "segments": segments,
            **{name: line(lambda raw, name=name: raw.numbers[name]) for name in raws[0].numbers}}


def trace(family: Family, progress: Callable[[int, int], None] = lambda done, total: None) -> Table:
    """The table of a base model; ModelFileError where its configs build no model of its layers.

    Takes seconds to a minute, imports diffusers, reads no weights.
    """
    configs = configs_of(family)
    parts = _parts(configs)
    found: dict[str, Any] = {}
    steps = len(parts) * len(MODES) + 2
    unit = 2 ** (len(configs[UNETS]["block_out_channels"]) - 1)
    done = 0
    for part in parts:
        numbers = sum(p.numel() for p in part.module.parameters())
        found[part.part] = {"parameters": numbers, "modes": {}}
        for mode in MODES:
            progress(done, steps)
            half = mode == "half"
            nn.Module.to(part.module, torch.bfloat16 if half else torch.float32)
            sides = ((unit, unit),) if part.constant else (
                (4 * unit, 4 * unit), (4 * unit, 8 * unit), (8 * unit, 8 * unit))
            raws = [_measure(part, *each, half) for each in sides]
            found[part.part]["modes"][mode] = _joined(raws)
            done += 1
    found["vae"] = _vae(configs["vae"], unit, lambda more: progress(done + more, steps))
    table = Table(FORMAT, fingerprint(family), family.name, found)
    known = {layer.name for layer in family.layers if layer.part == UNETS}
    traced = {row[0] for row in found[UNETS]["modes"]["fp32"]["layers"]}
    if known - traced:
        raise ModelFileError(
            f"The configs of {family.base} build a model without {len(known - traced)} of its "
            f"layers, e.g. {min(known - traced)}.", "Take another copy of the model.")
    return table


def configs_of(family: Family) -> dict[str, dict[str, Any]]:
    """{part: its config} as diffusers and transformers read them."""
    return {part: dict(family.configs[part]) for part in (UNETS, *TEXTS, "vae")
            if part in family.configs}


def _parts(configs: Mapping[str, Mapping[str, Any]]) -> list[Part]:
    """The denoiser and the text encoders on the meta device, and how each is called."""
    import diffusers
    import transformers

    with META:
        unet = diffusers.UNet2DConditionModel.from_config(dict(configs[UNETS]))
        texts = {}
        for name in TEXTS:
            if name in configs:
                kind = (transformers.CLIPTextModelWithProjection if name != TEXTS[0]
                        else transformers.CLIPTextModel)
                own = {k: v for k, v in configs[name].items() if k != "dtype"}
                texts[name] = kind(transformers.CLIPTextConfig(**own))
    tokens = configs[TEXTS[0]]["max_position_embeddings"]
    width = unet.config.cross_attention_dim
    parts = [_unet(unet.requires_grad_(False), tokens, width)]
    return parts + [_text(model.requires_grad_(False), name, tokens)
                    for name, model in texts.items()]


def _unet(unet: Any, tokens: int, width: int) -> Part:
    def call(rows: int, columns: int) -> Tensor:
        dtype = next(unet.parameters()).dtype
        x = torch.empty(tracing.BATCH, unet.config.in_channels, rows, columns, device=META,
                        dtype=dtype)
        text = torch.empty(tracing.BATCH, tokens, width, device=META, dtype=dtype)
        more = {}
        if unet.config.addition_embed_type == "text_time":
            pooled = (unet.config.projection_class_embeddings_input_dim
                      - 6 * unet.config.addition_time_embed_dim)
            more["added_cond_kwargs"] = {
                "text_embeds": torch.empty(tracing.BATCH, pooled, device=META, dtype=dtype),
                "time_ids": torch.empty(tracing.BATCH, 6, device=META)}
        t = torch.empty(tracing.BATCH, device=META, dtype=torch.int64)
        return unet(x.requires_grad_(torch.is_grad_enabled()), t, text, return_dict=False,
                    **more)[0]

    return Part(unet, call, UNETS)


def _text(model: Any, name: str, tokens: int) -> Part:
    embedding = model.get_input_embeddings()

    def call(rows: int, columns: int) -> Tensor:
        def learn(_: nn.Module, args: Any, out: Tensor) -> Tensor:
            return out.requires_grad_(torch.is_grad_enabled())

        hook = embedding.register_forward_hook(learn)
        found = model(torch.zeros(tracing.BATCH, tokens, device=META, dtype=torch.int64))
        hook.remove()
        return found.last_hidden_state

    return Part(model, call, name, constant=True)


def _vae(config: Mapping[str, Any], unit: int, told: Callable[[int], None]) -> dict[str, Any]:
    """The autoencoder works in fp32 and without gradients: what it has in use at most."""
    import diffusers

    with META:
        vae = diffusers.AutoencoderKL.from_config(dict(config)).requires_grad_(False).eval()
    part = Part(vae, vae.decode, "vae")
    scale = 2 ** (len(config["block_out_channels"]) - 1)
    peaks: dict[str, list[tuple[int, float]]] = {"encode": [], "decode": []}
    for done, (rows, columns) in enumerate(((4 * unit, 8 * unit), (8 * unit, 8 * unit))):
        told(done)
        for name in peaks:
            with tracing.Meter(part.tensors) as meter, tracing.Arithmetic(False), torch.no_grad():
                if name == "encode":
                    vae.encode(torch.empty(tracing.BATCH, 3, rows * scale, columns * scale,
                                           device=META))
                else:
                    vae.decode(torch.empty(tracing.BATCH, vae.config.latent_channels, rows, columns,
                                           device=META))
            peaks[name].append((rows * columns, meter.most / tracing.BATCH))
    return {"parameters": sum(p.numel() for p in vae.parameters()),
            **{name: _lines(values) for name, values in peaks.items()}}
