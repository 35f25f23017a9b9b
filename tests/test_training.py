"""The engine: what a step draws, what it learns, what it saves, and how it ends."""

from __future__ import annotations

import gc
import math
import re
import shutil
import subprocess
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nursery import same
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from lycoris import (
    checkpoint,
    compare,
    config,
    contestants,
    devices,
    events,
    loading,
    optimizers,
    plan,
    sample,
    sampling,
    schedules,
    sparing,
    trainer,
)
from lycoris.data import cache
from lycoris.errors import (
    AdapterError,
    ConfigError,
    DatasetError,
    DiskError,
    Diverged,
    MissingPackage,
    OutOfMemory,
    RunError,
)
from lycoris.families import sd
from lycoris.resuming import RESUMABLE
from lycoris.settings import Config, OptimizerConfig
from lycoris.trainer import Session

Settings = Callable[..., Config]


def train(run: Config, asked: Callable[[], set[str]] = lambda: set(),
          where: Path | None = None, after: int | None = None, wanted: str = "stop",
          ) -> tuple[list[events.Event], Path, events.Finished]:
    """Run to the end in-process; (events, folder, how it ended). `wanted` is asked for once, after
    so many steps."""
    seen: list[events.Event] = []
    folder = where or Path(run.output.folder) / config.run_name(run)
    said: list[str] = []

    def also_asked() -> set[str]:
        if after is not None and not said and len(of(seen, events.Step)) == after:
            said.append(wanted)
            return {wanted}
        return asked()

    ended = trainer.run(plan.make(run), folder, seen.append, also_asked)
    return seen, folder, ended


def train_asking(run: Config, step: int, what: list[set[str]]
                 ) -> tuple[list[events.Event], Path, events.Finished]:
    """As `train`, with these requests one after the other from that step on."""
    seen: list[events.Event] = []
    left = iter(what)
    folder = Path(run.output.folder) / config.run_name(run)
    ended = trainer.run(plan.make(run), folder, seen.append, lambda: next(left, set()) if any(
        isinstance(each, events.Step) and each.step == step for each in seen) else set())
    return seen, folder, ended


def of(seen: list[events.Event], kind: type) -> list[Any]:
    return [event for event in seen if isinstance(event, kind)]


def test_a_run_leaves_what_it_says(settings: Settings) -> None:
    seen, folder, ended = train(settings("sample.every=3"))
    assert ended == events.Finished("done", 6, "one.safetensors")
    assert [s.step for s in of(seen, events.Step)] == [1, 2, 3, 4, 5, 6]
    assert [s.path for s in of(seen, events.Saved)] == [
        "checkpoints/one-000002.safetensors", "checkpoints/one-000004.safetensors",
        "one.safetensors"]
    assert [s.step for s in of(seen, events.Sampled)] == [0, 3, 6]
    for event in (*of(seen, events.Saved), *of(seen, events.Sampled)):
        assert (folder / event.path).is_file()
    for step in of(seen, events.Step):
        assert all(math.isfinite(v) for v in (step.loss, step.loss_avg, step.lr, step.grad_norm))
        assert step.sec > 0 and step.memory > 0
    assert of(seen, events.Step)[-1].epoch == 2.0  # 5 pictures, batches of 2: 3 a round
    assert seen[-1] == ended


@pytest.mark.parametrize("algo", ["lora", "loha"])
def test_training_learns(settings: Settings, algo: str) -> None:
    """The loss on the same draws is lower after training than before."""
    run = settings(f"network.algo={algo}", "train.steps=40", "train.batch_size=5",
                   "optimizer.lr=0.02", "optimizer.schedule=constant", "dataset.caption_dropout=0",
                   "train.checkpoint_every=0")
    session = Session(plan.make(run), Path(run.output.folder) / "one", lambda event: None)
    session.prepare(lambda: set())

    def loss() -> float:
        with torch.no_grad():
            return sum(session.loss(1000 + i, 0).item() for i in range(8)) / 8

    before = loss()
    session.train(lambda: set())
    session.network.eval()
    assert loss() < before - 0.01


def test_keep_checkpoints(settings: Settings) -> None:
    _, folder, _ = train(settings("train.steps=9", "train.checkpoint_every=2",
                                  "train.keep_checkpoints=2"))
    assert sorted(f.name for f in (folder / "checkpoints").iterdir()) == [
        "one-000006.safetensors", "one-000008.safetensors"]
    assert len(checkpoint.found(folder / "state")) == checkpoint.KEEP


def _streams(run: Config, steps: int = 4) -> list[Any]:
    """What the denoiser is shown in the first steps: latents, noise, timesteps, captions."""
    session = Session(plan.make(run), Path(run.output.folder) / "one", lambda event: None)
    session.prepare(lambda: set())
    shown: list[Any] = []
    predict = session.model.predict
    condition = session.lesson.condition

    def spy(x_t: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        shown.append((x_t.clone(), t.clone()))
        return predict(x_t, t, cond)

    def spied(texts: list[str]) -> torch.Tensor:
        shown.append(tuple(texts))
        return condition(texts)

    session.model.predict, session.lesson.condition = spy, spied  # type: ignore[method-assign]
    for _ in range(steps):
        session.advance()
    session.network.restore()
    return shown


def _equal(a: list[Any], b: list[Any]) -> bool:
    def one(x: Any, y: Any) -> bool:
        if isinstance(x, torch.Tensor):
            return torch.equal(x, y)
        if isinstance(x, tuple):
            return len(x) == len(y) and all(map(one, x, y))
        return bool(x == y)

    return len(a) == len(b) and all(map(one, a, b))


def test_an_adapter_names_the_preset_it_was_trained_with(settings: Settings, tmp_path: Path,
                                                         ) -> None:
    """One's own preset is edited while its run goes on."""
    preset = tmp_path / "mine.toml"
    preset.write_text(text := 'unet_target_name = ["to_k"]', "utf-8")
    made = plan.make(settings(f"network.preset={preset}", "train.steps=2"))
    folder = plan.create(made)

    def edited() -> set[str]:
        preset.write_text('unet_target_name = ["to_v"]', "utf-8")
        return set()

    ended = trainer.run(made, folder.path, lambda event: None, edited)
    with safe_open(folder.path / ended.path, "pt") as file:
        assert file.metadata()["lycogui_preset"] == text
        assert all("to_k" in key for key in file.keys())  # noqa: SIM118


def test_all_algorithms_see_the_same(settings: Settings) -> None:
    """A controlled comparison: same pictures, captions, timesteps and noise for every network."""
    base = ("dataset.caption_dropout=0.5",)
    first = _streams(settings(*base))
    for other in (("network.algo=loha", "network.dim=1"), ("network.dim=7", "network.dropout=0.3"),
                  ("network.preset=attn-only", "network.text_encoder=false"),
                  ("network.module_dropout=0.4", "network.dora_wd=true", "optimizer.lr=0.1")):
        assert _equal(first, _streams(settings(*base, *other))), other
    assert not _equal(first, _streams(settings(*base, "train.seed=7")))


def test_caption_dropout_has_its_share(settings: Settings) -> None:
    run = settings("dataset.caption_dropout=0.3")
    session = Session(plan.make(run), Path(run.output.folder), lambda event: None)
    session.prepare(lambda: set())
    session.feed.captions = ["words"] * len(session.feed.captions)
    texts = [session.feed.batch(step, 0).texts[0] for step in range(3000)]
    assert texts.count("") / 3000 == pytest.approx(0.3, abs=0.03)


def test_accumulation_equals_a_larger_batch(settings: Settings, tmp_path: Path,
                                            make_pictures: Callable) -> None:
    """4 pictures at once, or 2 and 2: the same gradient where the same pictures come."""
    many = make_pictures(tmp_path / "four", 4)
    shared = (f"dataset.folder={many}", "train.steps=1", "optimizer.schedule=constant",
              "optimizer.warmup=0", "train.clip_norm=0", "dataset.caption_dropout=0",
              "output.dtype=fp32")
    seen = {}
    for name, extra in {"whole": ("train.batch_size=4",),
                        "parts": ("train.batch_size=2", "train.accumulate=2")}.items():
        run = settings(*shared, *extra, f"output.name={name}")
        session = Session(plan.make(run), tmp_path / name, lambda event: None)
        session.prepare(lambda: set())
        feed = session.feed
        order = [i for batch in range(4 // run.train.batch_size) for i in feed.batches.at(batch)]
        feed.latents = [feed.latents[0]] * 4  # the order differs; the pictures must not
        feed.captions = ["the same"] * 4
        assert sorted(order) == [0, 1, 2, 3]
        session.learner.optimizer.step = lambda: None  # type: ignore[method-assign]
        session.learner.optimizer.zero_grad = lambda set_to_none=True: None  # type: ignore
        session.advance()
        seen[name] = [p.grad.clone() for p in session.network.parameters() if p.grad is not None]
        session.network.restore()
    for a, b in zip(seen["whole"], seen["parts"], strict=True):
        assert torch.allclose(a, b, atol=1e-5, rtol=1e-3)


def test_gradient_checkpointing_changes_nothing_but_memory(settings: Settings) -> None:
    plain = train(settings("output.name=plain", "network.dropout=0.2"))[1]
    lean = train(settings("output.name=lean", "network.dropout=0.2",
                          "train.gradient_checkpointing=true"))[1]
    a = load_file(plain / "plain.safetensors")
    b = load_file(lean / "lean.safetensors")
    assert all(torch.allclose(a[k].float(), b[k].float(), atol=2e-3) for k in a)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision(settings: Settings, precision: str) -> None:
    seen, folder, ended = train(settings(f"train.precision={precision}", "sample.every=6"))
    assert ended.reason == "done"
    assert all(math.isfinite(s.loss) for s in of(seen, events.Step))
    assert of(seen, events.Sampled)
    exact = train(settings("output.name=exact", "train.precision=fp32"))[0]
    for a, b in zip(of(seen, events.Step), of(exact, events.Step), strict=True):
        assert a.loss == pytest.approx(b.loss, rel=0.05)


def test_samples_while_training_are_those_of_compare(settings: Settings) -> None:
    """Half precision is the training step's alone: the autoencoder would overflow in it."""
    run = settings("train.precision=bf16", "output.dtype=fp32", "sample.every=6")
    seen, folder, ended = train(run)
    family = plan.make(run).family
    model = family.load(torch.device("cpu"), torch.bfloat16)
    network, _ = contestants.load(contestants.Contestant("one", folder / ended.path), family, model)
    assert network is not None
    network.apply_to()
    how = sampling.settings_of(run.sample, run.dataset.resolution, family.side_multiple)
    painted = next(sampling.paint(model, sampling.jobs_of(run.sample), how))
    last = Image.open(folder / of(seen, events.Sampled)[-1].path)
    assert np.array_equal(np.asarray(last), np.asarray(painted))


def poison(monkeypatch: pytest.MonkeyPatch, steps: range, value: float) -> None:
    """Make the gradient of these steps (counted from 0) overflow, the loss being what it was."""
    real = Session.loss

    def poisoned(self: Session, step: int, micro: int) -> torch.Tensor:
        loss = real(self, step, micro)
        if step in steps:
            loss.register_hook(lambda gradient: gradient * value)
        return loss

    monkeypatch.setattr(Session, "loss", poisoned)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_loss_scaler_skips_what_overflows(settings: Settings, monkeypatch: pytest.MonkeyPatch,
                                              value: float) -> None:
    """In fp16 an overflow is a step left out and a smaller scale; also over a resume."""
    shared = ("train.precision=fp16", "output.dtype=fp32", "optimizer.schedule=constant")
    poison(monkeypatch, range(3), value)
    seen, whole, ended = train(settings("output.name=whole", *shared))
    assert ended.reason == "done" and len(of(seen, events.Step)) == 6
    norms = [step.grad_norm for step in of(seen, events.Step)]
    assert not any(map(math.isfinite, norms[:3])) and all(map(math.isfinite, norms[3:]))
    run = settings("output.name=parts", *shared)
    train(run, after=3)
    state, _ = checkpoint.load(Path(run.output.folder) / "parts" / "state")
    assert state is not None and state.scaler["scale"] < 2.0**16
    assert not any(t.any() for k, t in state.tensors.items() if k.endswith("p.up"))
    _, parts, _ = train(run)
    assert same(whole / "whole.safetensors", parts / "parts.safetensors")


@pytest.mark.parametrize(("precision", "step"), [("fp32", 2), ("bf16", 2), ("fp16", 18)])
def test_a_gradient_that_stays_no_number_ends_the_run(
        settings: Settings, monkeypatch: pytest.MonkeyPatch, precision: str, step: int) -> None:
    poison(monkeypatch, range(1, 100), math.nan)
    with pytest.raises(Diverged, match=f"The gradient became nan at step {step}"):
        train(settings(f"train.precision={precision}", "train.steps=30"))


@pytest.mark.parametrize("split", [1, 2])
@pytest.mark.parametrize(("spoilt", "words"), [
    ("output", "the output of unet mid_block.resnets.0.conv1"),
    ("gradient", "the gradient of unet mid_block.resnets.0.conv1"),
    ("adapter", "the adapter's gradient of unet mid_block.resnets.0.conv1"),
    ("latents", "the latents"), ("loss", "the loss"),
    ("text", "the output of text_encoder encoder.layers.1.mlp.fc1")])
def test_what_was_not_finite_first_is_named(settings: Settings, spoilt: str, words: str,
                                            split: int) -> None:
    """The layer, and of four pictures the one."""
    run = settings("train.batch_size=4", "sample.every=0", f"train.split={split}",
                   "train.gradient_checkpointing=true")
    session = Session(plan.make(run), Path(run.output.folder) / "one", lambda event: None)
    session.prepare(lambda: set())
    parts = session.model.modules
    layer = parts["unet"].get_submodule("mid_block.resnets.0.conv1")
    if spoilt == "text":
        layer = parts["text_encoder"].get_submodule(words.split()[-1])
    batch = session.feed.batch(0, 0)
    bad = batch.members[-1]

    def spoil(x: torch.Tensor) -> torch.Tensor:
        last = torch.arange(len(x)).view(-1, *[1] * (x.ndim - 1)) == len(x) - 1
        return torch.where(last, math.nan, x)

    def slope(module: Any, given: Any, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.register_hook(spoil)

    if spoilt in ("output", "text"):
        layer.register_forward_hook(lambda module, given, output: spoil(output))
    elif spoilt == "gradient":
        layer.register_forward_hook(slope)
    elif spoilt == "adapter":
        next(session.network.targets[layer].parameters()).register_hook(
            lambda gradient: gradient * math.nan)
    elif spoilt == "latents":
        own = session.feed.latents[bad]
        session.feed.latents[bad] = replace(own, latents=own.latents * math.inf)
    else:
        real = session.lesson.loss
        session.lesson.loss = lambda batch: real(batch) * math.nan  # type: ignore[method-assign]
    with pytest.raises(Diverged) as caught:
        session.advance()
    assert f"The first that was not finite: {words}." in caught.value.message
    said = re.findall(r"\d\.png", caught.value.message)
    name = session.feed.names[bad]
    if spoilt in ("output", "latents", "gradient", "text"):
        assert name in said and len(said) <= (1 if spoilt != "text" else split)
    assert "optimizer.lr, such as 0.0033" in caught.value.fix or spoilt == "latents"
    assert "train.max_norm=1" in caught.value.fix or spoilt == "latents"
    session.network.restore()


def test_min_snr_and_noise_offset_act(settings: Settings) -> None:
    plain = of(train(settings("output.name=a"))[0], events.Step)
    for number, extra in enumerate(("loss.min_snr_gamma=1", "loss.noise_offset=0.5")):
        other = of(train(settings(f"output.name=b{number}", extra))[0], events.Step)
        assert other[0].loss != plain[0].loss


def test_learning_rates_by_part(settings: Settings) -> None:
    """Rate 0 leaves the text encoder's adapters as they began."""
    _, folder, _ = train(settings("optimizer.text_encoder_lr=0", "output.dtype=fp32"))
    tensors = load_file(folder / "one.safetensors")
    ups = {k: t for k, t in tensors.items() if k.endswith("lora_up.weight")}
    assert all((t == 0).all() for k, t in ups.items() if k.startswith("lora_te"))
    assert any((t != 0).any() for k, t in ups.items() if k.startswith("lora_unet"))


def test_schedule() -> None:
    how = OptimizerConfig(schedule="cosine", warmup=0.1)
    rates = [schedules.multiplier(how, s, 100) for s in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False)) and rates[-1] < 0.01
    assert schedules.multiplier(OptimizerConfig(schedule="constant", warmup=0), 50, 100) == 1.0
    for name, course in schedules.SCHEDULES.items():
        assert course(0.0, how) == 1.0, name


@pytest.mark.parametrize("wanted", ["stop", "save", "sample"])
def test_requests_are_seen_between_steps(settings: Settings, wanted: str) -> None:
    seen, folder, ended = train(settings("train.checkpoint_every=0"),
                                after=3, wanted=wanted)
    if wanted == "stop":
        assert ended == events.Finished("stopped", 3, "one.safetensors")
        assert (folder / "one.safetensors").is_file() and checkpoint.found(folder / "state")
    else:
        assert ended.reason == "done"
        kind = {"save": events.Saved, "sample": events.Sampled}[wanted]
        assert next(each for each in of(seen, kind) if each.step).step == 3


def test_a_paused_run_holds_and_listens(settings: Settings,
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """It saves and paints while it holds, and its tensors are those of a run that never held."""
    monkeypatch.setattr(sparing, "HOLD", 0.0)
    shared = ("train.checkpoint_every=0", "output.dtype=fp32")
    seen, held, ended = train_asking(settings(*shared), 3, [
        {"pause"}, set(), {"save", "pause"}, set(), {"sample"}, *[set()] * 20, {"resume"}])
    assert ended.reason == "done"
    paused, on = (seen.index(kind(3)) for kind in (events.Paused, events.Continued))
    between = seen[paused:on]
    assert [s.step for s in of(between, events.Saved)] == [3] and not of(between, events.Step)
    assert {(s.step, s.contestant) for s in of(between, events.Sampled)} == {(0, "base"), (3, "")}
    _, never, _ = train(settings("output.name=never", *shared))
    assert same(held / "one.safetensors", never / "never.safetensors")


def test_what_is_asked_while_the_model_loads_is_done_before_the_first_step(
        settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparing, "HOLD", 0.0)
    left = iter([{"save", "sample"}, {"pause"}, *[set()] * 20, {"resume"}])
    seen, _, ended = train(settings("sample.every=0", "train.checkpoint_every=0"),
                           lambda: next(left, set()))
    assert ended.reason == "done"
    first = seen.index(of(seen, events.Step)[0])
    before = seen[:first]
    assert [s.step for s in of(before, events.Paused)] == [0] == [
        s.step for s in of(before, events.Saved)]
    assert of(before, events.Sampled)


def test_a_paused_run_stops_and_saves(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparing, "HOLD", 0.0)
    seen, folder, ended = train_asking(settings(), 3, [{"pause"}, set(), {"stop"}])
    assert ended == events.Finished("stopped", 3, "one.safetensors")
    assert (folder / "one.safetensors").is_file() and not of(seen, events.Failed)


def test_the_base_is_painted_once_beside_the_samples(settings: Settings) -> None:
    """With the adapter off, whatever it has learned: also where that is asked for later."""
    run = settings("sample.every=3", "sample.seeds=5", "optimizer.lr=0.1",
                   'sample.prompts=["a ball", "a cube --d 9 --w 24 --s 3 --n dark --ss ddim"]')
    seen, folder, _ = train(run)
    painted = of(seen, events.Sampled)
    assert [(s.step, s.index, s.contestant, s.seed) for s in painted] == [
        (0, 0, "base", 5), (0, 1, "base", 9),
        (3, 0, "", 5), (3, 1, "", 9), (6, 0, "", 5), (6, 1, "", 9)]
    assert [s.prompt for s in painted[:2]] == ["a ball", "a cube"]
    pictures = [Image.open(folder / s.path) for s in painted]
    assert pictures[0].size == (16, 16) and pictures[1].size == pictures[5].size == (24, 16)
    assert "Steps: 3, Sampler: DDIM" in pictures[3].info["parameters"]
    assert "Negative prompt: dark" in pictures[3].info["parameters"]
    other, where, _ = train_asking(settings(
        "sample.every=0", "sample.seeds=5", "output.name=late", "optimizer.lr=0.1"), 4,
        [{"sample"}])
    assert [s.contestant for s in of(other, events.Sampled)] == ["base", ""]
    base, own = [Image.open(where / s.path) for s in of(other, events.Sampled)]
    assert np.array_equal(np.asarray(base), np.asarray(pictures[0]))
    assert not np.array_equal(np.asarray(base), np.asarray(own))


def test_a_stop_ends_the_painting_of_samples_too(settings: Settings) -> None:
    seen: list[events.Event] = []
    run = settings("sample.every=4", 'sample.prompts=["a ball", "two balls", "three"]')
    session = Session(plan.make(run), Path(run.output.folder) / "one", seen.append)
    session.prepare(lambda: set())
    ended = session.train(lambda: (
        {"stop"} if session.progress.step == 4 and of(seen, events.Sampled)[-1].step == 4
        else set()))
    assert ended == events.Finished("stopped", 4, "one.safetensors")
    assert [s.index for s in of(seen, events.Sampled) if s.step == 4] == [0]
    session.network.restore()
    later: list[events.Event] = []
    again = Session(plan.make(run), session.where, later.append)
    again.prepare(lambda: set())
    assert again.train(lambda: set()).reason == "done"
    assert [s.index for s in of(later, events.Sampled) if s.step == 4] == [0, 1, 2]


def test_an_old_checkpoint_that_cannot_go_ends_no_run(settings: Settings,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows another program may hold it open."""
    def held(path: Path) -> None:
        raise DiskError(f"{path} could not be deleted.", "Close it.", path)

    monkeypatch.setattr(checkpoint.durable, "remove", held)
    seen, folder, ended = train(settings("train.checkpoint_every=1"))
    assert ended.reason == "done" and len(checkpoint.found(folder / "state")) == 6
    assert any("could not be deleted" in w.text for w in of(seen, events.Warned))


def test_a_stop_before_the_first_step_saves_nothing(settings: Settings) -> None:
    seen, folder, ended = train(settings(), lambda: {"stop"})
    assert ended == events.Finished("stopped", 0, "") and not (folder / "one.safetensors").exists()
    stages = [(stage.name, stage.done, stage.total) for stage in of(seen, events.Stage)]
    assert stages == [("loading the model", 0, 0), ("loading the model", 1, 3)]  # between its parts


FULL = ["network.dropout=0.1", "network.rank_dropout=0.1", "network.module_dropout=0.1",
        "dataset.caption_dropout=0.3", "train.accumulate=2", "loss.noise_offset=0.1",
        "loss.min_snr_gamma=5"]


EVERYWHERE = [("lora", "AdamW", [3]), ("lora", "AdamW", [1, 2, 3, 4, 5]),
              ("loha", "AdamW", [1]), ("loha", "AdamW", [2, 4])]


@pytest.mark.parametrize(("algo", "optimizer", "stops"), [
    *EVERYWHERE, *(("lora", name, [2, 3]) for name in optimizers.ROWS if name != "AdamW"),
    *(("boft", name, [3]) for name in ("AdamW8bit", "Prodigy", "CAME", "Muon", "Adafactor"))])
def test_resuming_is_exact(settings: Settings, algo: str, optimizer: str, stops: list[int]) -> None:
    """Stopped at any steps and resumed, a run ends with the same bytes as one never interrupted."""
    shared = [f"network.algo={algo}", f"optimizer.name={optimizer}", "network.dim=24",
              "network.train_norm=true", *FULL]
    averages = optimizers.ROWS[optimizer].averages
    shared += ["optimizer.schedule=constant"] if averages else ["train.ema=0.9"]
    _, whole, _ = train(settings("output.name=whole", *shared))
    run = settings("output.name=parts", *shared)
    for stop in [*stops, None]:
        session = Session(plan.make(run), Path(run.output.folder) / "parts", lambda event: None)
        session.prepare(lambda: set())
        ended = session.train(lambda s=session, stop=stop: (
            {"stop"} if stop is not None and s.progress.step >= stop else set()))
        session.network.restore()
        assert ended.reason == ("done" if stop is None else "stopped")
    parts = Path(run.output.folder) / "parts"
    assert same(whole / "whole.safetensors", parts / "parts.safetensors")


def test_resuming_without_the_draws_would_differ(settings: Settings) -> None:
    """The control: another seed after the stop gives other bytes, so equality can fail."""
    _, whole, _ = train(settings("output.name=whole"))
    _, parts, _ = train(settings("output.name=parts"), after=3)
    train(settings("output.name=parts", "train.seed=43"))
    assert not same(whole / "whole.safetensors", parts / "parts.safetensors")


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_state_is_recognised_and_the_one_before_is_used(settings: Settings,
                                                                  damage: str) -> None:
    _, whole, _ = train(settings("output.name=whole"))
    run = settings("output.name=parts")
    train(run, after=5)
    newest = checkpoint.found(Path(run.output.folder) / "parts" / "state")[-1]
    data = bytearray(newest.read_bytes())
    if damage == "flip":
        data[-10] ^= 1
    newest.write_bytes({"cut": data[:-100], "flip": data, "empty": b""}[damage])
    seen, parts, _ = train(run)
    assert newest.name in of(seen, events.Warned)[0].text
    assert of(seen, events.Resumed)[0].step == 4
    assert same(whole / "whole.safetensors", parts / "parts.safetensors")


def test_pruning_leaves_what_was_just_written(settings: Settings) -> None:
    """With every later state damaged a run begins again, and its new state is the one to keep."""
    run = settings()
    _, folder, _ = train(run)
    damaged = checkpoint.found(folder / "state")
    assert [p.name for p in damaged] == ["step-00000004.safetensors", "step-00000006.safetensors"]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-100])
    seen, _, ended = train(run, after=3)
    assert [w.fix for w in of(seen, events.Warned)] == [
        "No checkpoint is whole, so the run starts from the beginning."] * 2
    assert of(seen, events.Resumed)[0].step == 0 and ended.step == 3
    assert [p.name for p in checkpoint.found(folder / "state")] == [
        "step-00000002.safetensors", "step-00000003.safetensors"]
    _, problems = checkpoint.load(folder / "state")
    assert not problems
    seen, _, _ = train(run)
    assert of(seen, events.Resumed)[0].step == 3
    _, whole, _ = train(settings("output.name=whole"))
    assert same(whole / "whole.safetensors", folder / "one.safetensors")


def test_pruning_goes_by_number_and_takes_names_as_they_are(tmp_path: Path) -> None:
    name = "cats [v2]"
    for step in ("999000", "999500", "1000000", "1000500", "best"):
        (tmp_path / f"{name}-{step}.safetensors").write_bytes(b"x")
    (tmp_path / "cats v-000001.safetensors").write_bytes(b"x")  # what [v2] means as a pattern
    checkpoint.prune(tmp_path, name, 1_000_000, 2)
    assert {f.name for f in tmp_path.iterdir()} == {
        f"{name}-999500.safetensors", f"{name}-1000000.safetensors",
        f"{name}-1000500.safetensors", f"{name}-best.safetensors", "cats v-000001.safetensors"}


def test_a_name_with_brackets(settings: Settings) -> None:
    _, folder, _ = train(settings("output.name=a [1]", "train.keep_checkpoints=1"))
    assert [f.name for f in (folder / "checkpoints").iterdir()] == ["a [1]-000004.safetensors"]


def test_extending_a_finished_run(settings: Settings) -> None:
    train(settings("optimizer.schedule=constant", "optimizer.warmup=0"))
    seen, folder, ended = train(settings("optimizer.schedule=constant", "optimizer.warmup=0",
                                         "train.steps=9"))
    assert of(seen, events.Resumed)[0].step == 6 and ended.step == 9
    _, whole, _ = train(settings("output.name=whole", "optimizer.schedule=constant",
                                 "optimizer.warmup=0", "train.steps=9"))
    assert same(whole / "whole.safetensors", folder / "one.safetensors")


def test_a_state_of_another_network_is_refused(settings: Settings) -> None:
    train(settings())
    with pytest.raises(RunError, match="another network"):
        train(settings("network.dim=3", "train.steps=8"))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_before_it_spreads(
        settings: Settings, monkeypatch: pytest.MonkeyPatch, value: float, precision: str) -> None:
    real = Session.loss

    def poisoned(self: Session, step: int, micro: int) -> torch.Tensor:
        loss = real(self, step, micro)
        return loss * value if step == 3 else loss

    monkeypatch.setattr(Session, "loss", poisoned)
    run = settings(f"train.precision={precision}")
    with pytest.raises(Diverged, match=r"loss became .* at step 4 \(pictures: .*png") as caught:
        train(run)
    assert caught.value.step == 4
    monkeypatch.undo()
    folder = Path(run.output.folder) / "one"
    assert checkpoint.found(folder / "state")[-1].name == "step-00000002.safetensors"
    state, problems = checkpoint.load(folder / "state")
    assert state is not None and not problems
    assert all(torch.isfinite(t).all() for t in state.tensors.values() if t.is_floating_point())
    seen, folder, _ = train(run)
    _, whole, _ = train(settings("output.name=whole", f"train.precision={precision}"))
    assert same(whole / "whole.safetensors", folder / "one.safetensors")


@pytest.mark.parametrize(("where", "name", "words", "fix"), [
    (Session, "loss", "while training", "resume with train.gradient_checkpointing=true; resume "
     "with train.split=2; start a new run with optimizer.name=AdamW8bit; start a new run with "
     "dataset.resolution=12"),
    (cache, "_together", "while encoding the pictures", "start a new run with "
     "dataset.resolution=12"),
    (sd.StableDiffusion, "load", "while loading the model", "close other programs that use the "
     "device"),
])
def test_running_out_of_memory_names_what_would_help(
        settings: Settings, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, words: str,
        fix: str) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(where, name, full)
    with pytest.raises(OutOfMemory, match=words) as caught:
        train(settings("sample.every=2"))
    assert caught.value.fix == f"Try, in this order: {fix}."
    asked = re.findall(r"resume with (?:a lower )?([\w.]+)", caught.value.fix)
    assert all(path.startswith(RESUMABLE) for path in asked)


def test_a_batch_in_parts_is_the_same_step(settings: Settings) -> None:
    """Also where the last batch has fewer pictures than parts, and with random layers left out."""
    shared = ("train.batch_size=4", "network.module_dropout=0.3", "network.rank_dropout=0.2",
              "network.algo=dylora", "network.dim=8", "dataset.caption_dropout=0.3",
              "optimizer.lr=0.002", "output.dtype=fp32")
    whole = train(settings("output.name=whole", *shared))
    parts = train(settings("output.name=parts", "train.split=3", *shared))
    for a, b in zip(of(whole[0], events.Step), of(parts[0], events.Step), strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-4)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-2)
    a, b = (load_file(found[1] / found[2].path) for found in (whole, parts))
    assert all(torch.allclose(a[k], b[k], atol=2e-4) for k in a)


def test_what_an_error_asks_for_is_possible_on_resuming(settings: Settings) -> None:
    """Another output.dtype, precision and learning rate, as the errors of a run suggest."""
    shared = ("optimizer.schedule=constant", "optimizer.warmup=0", "train.checkpoint_every=0")
    with pytest.raises(AdapterError, match=r"float16 cannot.*output\.dtype=bf16"):
        train(settings("network.alpha=100000", "optimizer.lr=1e-9", *shared))
    seen, folder, ended = train(settings("network.alpha=100000", "optimizer.lr=1e-9", *shared,
                                         "output.dtype=bf16"))
    assert (of(seen, events.Resumed)[0].step, ended.step) == (6, 6)
    assert {t.dtype for t in load_file(folder / ended.path).values()} == {torch.bfloat16}

    def go_on(name: str, *extra: str) -> tuple[list[events.Event], Path]:
        run = settings(f"output.name={name}", *shared, "output.dtype=fp32")
        train(run, after=3)
        seen, where, ended = train(settings(f"output.name={name}", *shared, "output.dtype=fp32",
                                            *extra))
        assert of(seen, events.Resumed)[0].step == 3 and ended.step == 6
        return seen, where / ended.path

    _, plain = go_on("plain")
    seen, slower = go_on("slower", "optimizer.lr=0.001")
    assert {step.lr for step in of(seen, events.Step)} == {0.001}
    before, _ = checkpoint.load(slower.parent / "state")
    assert before is not None and before.optimizer["groups"][0]["base_lr"] == 0.001
    assert not same(plain, slower)
    go_on("half", "train.precision=fp16", "train.gradient_checkpointing=true", "model.dtype=fp32")
    for path in ("output.dtype", "optimizer.lr", "train.precision", "model.dtype",
                 "train.gradient_checkpointing"):
        assert f"{path}=x".startswith(RESUMABLE)
    assert not "optimizer.name=x".startswith(RESUMABLE)


def test_a_picture_damaged_after_the_scan_is_named(settings: Settings, pictures: Path) -> None:
    made = plan.make(settings())
    whole = (pictures / "3.png").read_bytes()
    (pictures / "3.png").write_bytes(whole[:len(whole) - 40])
    with pytest.raises(DatasetError, match=r"3\.png is damaged"):
        trainer.run(made, pictures.parent / "run", lambda event: None, lambda: set())


def test_optimisers_from_their_rows() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(3))], "lr": 1e-3, "base_lr": 1e-3}]
    for name in ("AdamW", "AdamW8bit"):
        made = optimizers.make(name, groups, 0.05, {"betas": (0.8, 0.9)})
        assert made.param_groups[0]["weight_decay"] == 0.05
        for wrong in ({"betas": 7}, {"betas": [0.9, 5]}, {"eps": "x"}, {"eps": -1}):
            with pytest.raises(ConfigError, match=f"{name} does not take") as caught:
                optimizers.make(name, groups, 0.05, wrong)
            assert set(caught.value.problems) == {"optimizer.args"}
    with pytest.raises(ConfigError, match="Did you mean betas"):
        optimizers.make("AdamW", groups, 0.0, {"beta": 1})
    with pytest.raises(ConfigError, match="Did you mean AdamW"):
        optimizers.load("AdaW")


def test_one_operation_over_all_tensors_takes_the_same_steps() -> None:
    """As one tensor after the other within rounding; to the bit as itself, also when resumed."""
    def steps(args: dict, resumed: bool = False) -> tuple[list[torch.Tensor], bool]:
        torch.manual_seed(0)
        tensors = [torch.nn.Parameter(torch.randn(size)) for size in (3, 70, 4099)]
        groups = [{"params": tensors, "lr": 1e-2, "base_lr": 1e-2}]
        made = optimizers.make("AdamW", groups, 0.05, args)
        for step in range(6):
            if resumed and step == 3:
                state = made.state_dict()
                made = optimizers.make("AdamW", groups, 0.05, args)
                made.load_state_dict(state)
            for tensor in tensors:
                tensor.grad = torch.randn_like(tensor)
            made.step()
        return [tensor.detach() for tensor in tensors], bool(made.param_groups[0]["fused"])

    once, fused = steps({})
    single, apart = steps({"foreach": False})
    assert fused and not apart
    for found in (steps({})[0], steps({}, resumed=True)[0]):
        assert all(map(torch.equal, once, found))
    assert all(torch.allclose(*pair, rtol=1e-5, atol=1e-6)
               for pair in zip(once, single, strict=True))


def test_arguments_of_the_optimiser_are_refused_with_the_names(settings: Settings) -> None:
    """Before a model is loaded, with all that is wrong in the settings."""
    with pytest.raises(ConfigError) as caught:
        plan.make(settings("optimizer.args.weight_decay=0.1", "optimizer.args.lr=1",
                           "optimizer.args.params=1", "network.preset=none"))
    assert set(caught.value.problems) == {
        "network.preset", *(f"optimizer.args.{key}" for key in ("weight_decay", "lr", "params"))}
    assert "of its own: optimizer.weight_decay" in str(caught.value)
    with pytest.raises(ConfigError, match="AdamW does not take betas = 7"):
        plan.make(settings("optimizer.args.betas=7"))
    assert plan.make(settings("optimizer.args.betas=[0.8, 0.9]"))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    row = optimizers.Row("Gone", "not_installed_anywhere:Gone", 8, needs="gone")
    monkeypatch.setitem(optimizers.ROWS, "Gone", row)
    with pytest.raises(MissingPackage, match="pip install gone"):
        optimizers.load("Gone")


def test_devices() -> None:
    assert devices.choose("cpu").type == "cpu"
    assert devices.precision("auto", torch.device("cpu")) == "fp32"
    with pytest.raises(ConfigError, match="no device 'gpu'"):
        devices.choose("gpu")
    with pytest.raises(ConfigError, match="Set it to auto"):
        devices.choose("cuda:99")
    facts = devices.look(torch.device("cpu"))
    assert facts.total > facts.free > 0


@pytest.mark.parametrize(("said", "expected", "precision"), [
    ("NVIDIA GeForce RTX 3060, 11000, 12288, 8.6",
     devices.Facts("NVIDIA GeForce RTX 3060", "cuda", 11000 * 2**20, 12288 * 2**20), "bf16"),
    ("Tesla T4, 100, 15360, 7.5", devices.Facts("Tesla T4", "cuda", 100 * 2**20, 15360 * 2**20),
     "fp16"),
])
def test_a_card_is_looked_at_without_cuda(monkeypatch: pytest.MonkeyPatch, said: str,
                                          expected: devices.Facts, precision: str) -> None:
    """The page asks nvidia-smi, at most every few seconds; CUDA would keep memory for it."""
    asked: list[list[str]] = []

    def run(command: list[str], **how: Any) -> Any:
        asked.append(command)
        assert how["timeout"] and how["check"]
        return SimpleNamespace(stdout=said + "\n")

    def initialise(*_: Any, **__: Any) -> None:
        raise AssertionError("CUDA")

    monkeypatch.setattr(devices.subprocess, "run", run)
    monkeypatch.setattr(torch.cuda, "_lazy_init", initialise)
    monkeypatch.setattr(devices.time, "monotonic", lambda: 100.0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-7f")
    devices._card.cache_clear()
    for _ in range(3):
        assert devices.look(torch.device("cuda")) == expected
        assert devices.precision("auto", torch.device("cuda")) == precision
    assert [command[:3] for command in asked] == [["nvidia-smi", "-i", "2"]]
    devices.look(torch.device("cuda:1"))
    assert asked[-1][2] == "GPU-7f"
    monkeypatch.setattr(devices.time, "monotonic", lambda: 100.0 + devices.ASKED_EVERY)
    devices.look(torch.device("cuda"))
    assert len(asked) == 3
    devices._card.cache_clear()


@pytest.mark.parametrize("said", ["", "No devices were found", "A, [N/A], 1, 8.0", None])
def test_where_nvidia_smi_says_nothing_pytorch_is_asked(monkeypatch: pytest.MonkeyPatch,
                                                        said: str | None) -> None:
    def run(*_: Any, **__: Any) -> Any:
        if said is None:
            raise subprocess.TimeoutExpired("nvidia-smi", 10)
        return SimpleNamespace(stdout=said)

    monkeypatch.setattr(devices.subprocess, "run", run)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1, 2))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Radeon")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    devices._card.cache_clear()
    assert devices.look(torch.device("cuda")) == devices.Facts("Radeon", "cuda", 1, 2)
    assert devices.precision("auto", torch.device("cuda")) == "bf16"
    devices._card.cache_clear()


class Encoder:
    """Takes groups of up to `most` pictures; remembers their sizes."""

    def __init__(self, most: int):
        self.most, self.groups = most, []

    def encode_image(self, pictures: torch.Tensor) -> torch.Tensor:
        if len(pictures) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.groups.append(len(pictures))
        return pictures[:, :, ::8, ::8].clone()


@pytest.mark.parametrize(("side", "most", "groups"), [
    (64, 8, [8, 1]), (512, 8, [4, 4, 1]), (768, 8, [1] * 9), (1024, 8, [1] * 9),
    (64, 3, [1] * 9)])
def test_groups_of_pictures_fit_the_memory(tmp_path: Path, make_pictures: Callable, side: int,
                                           most: int, groups: list[int]) -> None:
    folder = make_pictures(tmp_path / "nine", 9)
    wanted = [cache.Wanted(folder / f"{number}.png", (side, side)) for number in range(1, 10)]
    encoder, seen = Encoder(most), []
    found = cache.encode(encoder, wanted,  # type: ignore[arg-type]
                         lambda done, total, taken: seen.append(done))
    assert encoder.groups == groups and seen[-1] == 9
    alone = [cache.encode(Encoder(1), [one], print)[0]  # type: ignore[arg-type]
             for one in wanted]
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(found, alone, strict=True))


def test_no_room_for_even_one_picture(pictures: Path) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        cache.encode(Encoder(0),  # type: ignore[arg-type]
                     [cache.Wanted(pictures / "1.png", (64, 64))], print)


def test_warnings_of_the_plan(settings: Settings, pictures: Path) -> None:
    (pictures / "1.txt").unlink()
    texts = " ".join(w.text for w in plan.make(settings(
        "train.batch_size=9", "network.alpha=100", "dataset.resolution=64")).warnings)
    assert "1 of 5 pictures have no caption" in texts and "batch size is 9" in texts
    assert "smaller than 64 px" in texts and "alpha is 100" in texts
    assert "made for 16 px" in texts
    (pictures / "1.txt").write_text("a ball")
    assert plan.make(settings()).warnings == ()


def test_what_a_run_loaded_is_freed(settings: Settings, monkeypatch: pytest.MonkeyPatch,
                                    tmp_path: Path) -> None:
    """By training, painting and comparing in one process; a card's memory too, which would be kept
    for later otherwise."""
    loaded: list[weakref.ref] = []
    real = loading.load

    def load(*given: Any, **named: Any) -> Any:
        model = real(*given, **named)
        loaded.extend(map(weakref.ref, model.modules.values()))
        return model

    release, left = devices.release, []

    def counted() -> None:
        release()
        left.append(sum(ref() is not None for ref in loaded))

    monkeypatch.setattr(loading, "load", load)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(devices, "release", counted)
    run = settings("sample.steps=1", "sample.seeds=[1]", "sample.every=1", "train.device=cpu")
    _, folder, _ = train(run)
    own = contestants.Contestant("one", folder / "one.safetensors")
    sample.run(run, own, tmp_path, lambda event: None, set)
    compare.run(run, [contestants.Contestant("base"), own], tmp_path, lambda event: None, set)
    monkeypatch.setattr(Session, "loss", lambda *given: torch.tensor(math.nan, requires_grad=True))
    with pytest.raises(Diverged):
        train(settings("output.name=bad", "train.device=cpu"))
    assert left[:3] == [0, 0, 0] and len(left) == 4
    gc.collect()
    assert len(loaded) >= 8 and not any(ref() for ref in loaded)


def test_pictures_of_several_folders_are_blamed_by_folder(
        settings: Settings, pictures: Path, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """The same names are in both."""
    other = tmp_path / "others"
    shutil.copytree(pictures, other)
    monkeypatch.setattr(Session, "loss", lambda *given: torch.tensor(math.nan, requires_grad=True))
    with pytest.raises(Diverged, match=rf"pictures: ({pictures.name}|others)/\d\.png"):
        train(settings(f"dataset.more=[{{folder = {str(other)!r}}}]"))
