"""A base whose linear layers are packed in 8 or 4 bits: what is packed, what it costs, that it
learns and paints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("bitsandbytes")

from lycoris import (
    activations,
    config,
    contestants,
    events,
    holding,
    loading,
    memory,
    plan,
    presets,
    quantised,
    tracing,
    trainer,
)
from lycoris.families import Model

CPU = torch.device("cpu")


def _loaded(run: config.Config) -> Model:
    return loading.load(run, plan.make(run).family, CPU, "fp32")


def _bytes(root: nn.Module) -> int:
    """What its tensors take, bitsandbytes' scales included."""
    total = sum(t.numel() * t.element_size() for t in (*root.parameters(), *root.buffers()))
    for module in root.modules():
        if type(module).__name__ == "Linear8bitLt":
            scale = module.state.SCB if module.weight.SCB is None else module.weight.SCB
            total += scale.numel() * scale.element_size()
        elif type(module).__name__ == "LinearNF4":
            state = module.weight.quant_state
            total += state.absmax.numel() * state.absmax.element_size()
            total += state.state2.absmax.numel() * state.state2.absmax.element_size()
    return total


@pytest.mark.parametrize("kind", list(quantised.KINDS))
def test_what_is_packed(settings: Callable[..., config.Config], kind: str) -> None:
    model = _loaded(settings(f"model.dtype={kind}"))
    found = Counter(type(module).__name__ for part in model.modules.values()
                    for module in part.modules())
    assert found["Linear8bitLt" if kind == "int8" else "LinearNF4"] > 20
    plain = [name for part in model.modules.values() for name, module in part.named_modules()
             if type(module) is nn.Linear]
    assert plain and all(quantised.KEPT.search(name) for name in plain)
    assert model.unet.conv_in.weight.dtype == model.vae.dtype == torch.float32
    assert not any(p.requires_grad for part in model.parts.values() for p in part.parameters())


@pytest.mark.parametrize(("kind", "near"), [("int8", 0.05), ("nf4", 0.35)])
def test_it_predicts_about_what_the_whole_one_does(settings: Callable[..., config.Config],
                                                   kind: str, near: float) -> None:
    whole, packed = _loaded(settings()), _loaded(settings(f"model.dtype={kind}"))
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([10, 700])
    with torch.no_grad():
        first, second = (model.predict(x, t, model.encode_text(["a zorb", "grass"]))
                         for model in (whole, packed))
    assert 0 < (first - second).norm() / first.norm() < near


@pytest.mark.parametrize("kind", list(quantised.KINDS))
def test_the_prediction_of_memory_knows_its_bytes(settings: Callable[..., config.Config],
                                                  kind: str) -> None:
    run = settings(f"model.dtype={kind}")
    made, whole = plan.make(run), plan.make(settings())
    model, plain = _loaded(run), _loaded(settings())
    for part in ("unet", "text_encoder"):
        name = f"{presets.PARTS[part]} weights"
        told, before = (next(i.bytes for i in memory.predict(each, "cpu").items if i.name == name)
                        for each in (made, whole))
        assert before - told == pytest.approx(
            _bytes(plain.parts[part]) - _bytes(model.parts[part]), rel=0.01)


@pytest.mark.parametrize("algo", ["lora", "lokr", "diag-oft"])
@pytest.mark.parametrize("kind", list(quantised.KINDS))
def test_an_adapter_learns_and_paints_on_it(settings: Callable[..., config.Config], kind: str,
                                            algo: str, tmp_path: Path) -> None:
    """Pictures between the steps change nothing; the file is that of any run."""
    made = [plan.make(settings(f"model.dtype={kind}", f"network.algo={algo}", "train.steps=4",
                               f"sample.every={every}", "dataset.caption_dropout=0"))
            for every in (0, 2)]
    steps = []
    for place, each in enumerate(made):
        heard: list[events.Event] = []
        where = tmp_path / str(place)
        where.mkdir()
        ended = trainer.run(each, where, heard.append, set)
        steps.append([(e.loss, e.grad_norm) for e in heard if isinstance(e, events.Step)])
    assert steps[0] == steps[1] and all(norm > 0 for _, norm in steps[0])
    assert list((tmp_path / "1" / "samples").glob("*.png"))
    model = _loaded(settings())
    network, match = contestants.load(contestants.Contestant("x", where / ended.path),
                                      made[0].family, model)
    assert match.whole and len(network) == len(made[0].assignments)


def test_sdxl_is_packed_with_both_its_text_encoders(tmp_path: Path) -> None:
    """And each reads its own matrix of an embedding."""
    from small_models import make

    from lycoris import families, tensorfile

    base = make(tmp_path / "xl", "sdxl")
    family = families.open_base(base)
    model = family.load(CPU, torch.float32)
    widths = [encoder.module.config.hidden_size for encoder in model.encoders]
    tensorfile.write(tmp_path / "ball.safetensors", {
        name: torch.randn(2, width) for name, width in zip(("clip_l", "clip_g"), widths,
                                                           strict=True)}, {})
    run = config.load(None, [f"model.base={base}", "model.dtype=nf4",
                             f"sample.embeddings={tmp_path}", 'sample.prompts=["a (ball:1.2)"]'])
    packed = loading.load(run, family, CPU, "fp32")
    for part in packed.modules.values():
        assert any(type(module).__name__ == "LinearNF4" for module in part.modules())
    with torch.no_grad():
        told = packed.encode_prompts(["a (ball:1.2)"])
        cond = packed.with_sizes(told, [(16, 16, 0, 0, 16, 16)])
        out = packed.predict(torch.randn(1, 4, 8, 8), torch.tensor([5]), cond)
    assert told["hidden"].shape[2] == sum(widths) and out.isfinite().all()
    assert not torch.equal(told["hidden"], packed.encode_text(["a ball"])["hidden"])


@pytest.mark.parametrize("checkpointing", ["false", "true"])
@pytest.mark.parametrize("kind", list(quantised.KINDS))
def test_what_a_step_holds_is_predicted(settings: Callable[..., config.Config], kind: str,
                                        checkpointing: str, tmp_path: Path) -> None:
    """All that lives is counted: what an operation keeps past autograd's books, as bitsandbytes'
    own int8 layers keep their inputs, also through checkpointing."""
    made = plan.make(settings(f"model.dtype={kind}", "network.algo=lora", "network.preset=attn-mlp",
                              "dataset.resolution=64", "dataset.bucket=false",
                              f"train.gradient_checkpointing={checkpointing}"))
    table = activations.trace(made.family)
    session = trainer.Session(made, tmp_path / "at", lambda event: None)
    session.prepare(set)
    session.network.train()
    with tracing.Meter() as meter:
        loss = session.loss(0, 0)
    end = holding.moments(table, made.assignments, memory.step_of(made, "cpu"))[0]
    told = end.base + end.adapters
    assert loss.requires_grad
    assert meter.now < told if checkpointing == "true" else told == pytest.approx(
        meter.now, rel=0.05)
