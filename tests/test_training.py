"""The engine: what a step draws, what it learns, what it saves, and how it ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lycoris import checkpoint, config, devices, events, optimizers, plan, schedules, trainer
from lycoris.config import Config
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
from lycoris.trainer import Session

Settings = Callable[..., Config]


def train(run: Config, asked: Callable[[], set[str]] = lambda: set(),
          where: Path | None = None) -> tuple[list[events.Event], Path, events.Finished]:
    """Run to the end in-process; (events, folder, how it ended)."""
    seen: list[events.Event] = []
    folder = where or Path(run.output.folder) / config.run_name(run)
    ended = trainer.run(plan.make(run), folder, seen.append, asked)
    return seen, folder, ended


def of(seen: list[events.Event], kind: type) -> list[Any]:
    return [event for event in seen if isinstance(event, kind)]


def same(a: Path, b: Path) -> bool:
    left, right = load_file(a), load_file(b)
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


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
            return sum(session._loss(1000 + i, 0).item() for i in range(8)) / 8

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
    condition = session.condition

    def spy(x_t: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        shown.append((x_t.clone(), t.clone()))
        return predict(x_t, t, cond)

    def spied(texts: list[str]) -> torch.Tensor:
        shown.append(tuple(texts))
        return condition(texts)

    session.model.predict, session.condition = spy, spied  # type: ignore[method-assign]
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
    session.captions = ["words"]
    texts = [session._caption(0, step, 0) for step in range(3000)]
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
        order = [i for batch in range(4 // run.train.batch_size) for i in session.batches.at(batch)]
        session.latents = [session.latents[0]] * 4  # the order differs; the pictures must not
        session.captions = ["the same"] * 4
        assert sorted(order) == [0, 1, 2, 3]
        session.optimizer.step = lambda: None  # type: ignore[method-assign]
        session.optimizer.zero_grad = lambda set_to_none=True: None  # type: ignore[method-assign]
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


def test_min_snr_and_noise_offset_act(settings: Settings) -> None:
    plain = of(train(settings("output.name=a"))[0], events.Step)
    for number, extra in enumerate(("train.min_snr_gamma=1", "train.noise_offset=0.5")):
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
    rates = [schedules.multiplier(schedules.cosine, s, 100, 0.1) for s in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False)) and rates[-1] < 0.01
    assert schedules.multiplier(schedules.constant, 50, 100, 0) == 1.0
    for name, course in schedules.SCHEDULES.items():
        assert course(0.0) == 1.0, name


@pytest.mark.parametrize("wanted", ["stop", "save", "sample"])
def test_requests_are_seen_between_steps(settings: Settings, wanted: str) -> None:
    answers = iter([set()] * 4 + [{wanted}])
    seen, folder, ended = train(settings("train.checkpoint_every=0"),
                                lambda: next(answers, set()))
    if wanted == "stop":
        assert ended == events.Finished("stopped", 3, "one.safetensors")
        assert (folder / "one.safetensors").is_file() and checkpoint.found(folder / "state")
    else:
        assert ended.reason == "done"
        kind = {"save": events.Saved, "sample": events.Sampled}[wanted]
        assert of(seen, kind)[0].step == 3


def test_a_stop_before_the_first_step_saves_nothing(settings: Settings) -> None:
    seen, folder, ended = train(settings(), lambda: {"stop"})
    assert ended == events.Finished("stopped", 0, "") and not (folder / "one.safetensors").exists()


FULL = ["network.dropout=0.1", "network.rank_dropout=0.1", "network.module_dropout=0.1",
        "dataset.caption_dropout=0.3", "train.accumulate=2", "train.noise_offset=0.1",
        "train.min_snr_gamma=5"]


@pytest.mark.parametrize("algo", ["lora", "loha"])
@pytest.mark.parametrize("optimizer", list(optimizers.ROWS))
@pytest.mark.parametrize("stops", [[1], [3], [2, 4], [1, 2, 3, 4, 5]])
def test_resuming_is_exact(settings: Settings, algo: str, optimizer: str, stops: list[int]) -> None:
    """Stopped at any steps and resumed, a run ends with the same bytes as one never interrupted."""
    shared = [f"network.algo={algo}", f"optimizer.name={optimizer}", "network.dim=24", *FULL]
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
    answers = iter([set()] * 4 + [{"stop"}])
    _, parts, _ = train(settings("output.name=parts"), lambda: next(answers, set()))
    train(settings("output.name=parts", "train.seed=43"))
    assert not same(whole / "whole.safetensors", parts / "parts.safetensors")


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_state_is_recognised_and_the_one_before_is_used(settings: Settings,
                                                                  damage: str) -> None:
    _, whole, _ = train(settings("output.name=whole"))
    answers = iter([set()] * 6 + [{"stop"}])
    run = settings("output.name=parts")
    train(run, lambda: next(answers, set()))
    newest = checkpoint.found(Path(run.output.folder) / "parts" / "state")[-1]
    data = bytearray(newest.read_bytes())
    if damage == "flip":
        data[-10] ^= 1
    newest.write_bytes({"cut": data[:-100], "flip": data, "empty": b""}[damage])
    seen, parts, _ = train(run)
    assert newest.name in of(seen, events.Warned)[0].text
    assert of(seen, events.Resumed)[0].step == 4
    assert same(whole / "whole.safetensors", parts / "parts.safetensors")


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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_before_it_spreads(
        settings: Settings, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    real = Session._loss

    def poisoned(self: Session, step: int, micro: int) -> torch.Tensor:
        loss = real(self, step, micro)
        return loss * value if step == 3 else loss

    monkeypatch.setattr(Session, "_loss", poisoned)
    run = settings()
    with pytest.raises(Diverged, match=r"at step 4 \(pictures: .*png") as caught:
        train(run)
    assert caught.value.step == 4
    monkeypatch.undo()
    folder = Path(run.output.folder) / "one"
    assert checkpoint.found(folder / "state")[-1].name == "step-00000002.safetensors"
    state, problems = checkpoint.load(folder / "state")
    assert state is not None and not problems
    assert all(torch.isfinite(t).all() for t in state.tensors.values() if t.is_floating_point())
    seen, folder, _ = train(run)
    _, whole, _ = train(settings("output.name=whole"))
    assert same(whole / "whole.safetensors", folder / "one.safetensors")


@pytest.mark.parametrize("phase", ["_loss", "sample", "save"])
def test_running_out_of_memory_names_what_would_help(
        settings: Settings, monkeypatch: pytest.MonkeyPatch, phase: str) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Session, phase, full)
    with pytest.raises(OutOfMemory, match="ran out of memory while") as caught:
        train(settings("sample.every=2"))
    assert "train.gradient_checkpointing" in caught.value.fix
    assert "batch_size to 1" in caught.value.fix and "AdamW8bit" in caught.value.fix


def test_a_full_disk_while_saving_keeps_the_last_good_state(
        settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from lycoris import durable

    calls = []
    real = durable.write_bytes

    def write(path: Path, chunks: Any) -> Path:
        calls.append(Path(path).name)
        if Path(path).name == "step-00000004.safetensors":
            raise durable.disk_error(OSError(errno.ENOSPC, "full"), Path(path))
        return real(path, chunks)

    monkeypatch.setattr(durable, "write_bytes", write)
    run = settings()
    with pytest.raises(DiskError, match="disk is full: .*step-00000004"):
        train(run)
    monkeypatch.undo()
    folder = Path(run.output.folder) / "one"
    assert [f.name for f in checkpoint.found(folder / "state")] == ["step-00000002.safetensors"]
    _, whole, _ = train(settings("output.name=whole"))
    train(run)
    assert same(whole / "whole.safetensors", folder / "one.safetensors")


def test_a_picture_damaged_after_the_scan_is_named(settings: Settings, pictures: Path) -> None:
    made = plan.make(settings())
    whole = (pictures / "3.png").read_bytes()
    (pictures / "3.png").write_bytes(whole[:len(whole) - 40])
    with pytest.raises(DatasetError, match=r"3\.png is damaged"):
        trainer.run(made, pictures.parent / "run", lambda event: None, lambda: set())


def test_optimisers_from_their_rows() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(3))], "lr": 1e-3, "base_lr": 1e-3}]
    for name in optimizers.ROWS:
        made = optimizers.make(name, groups, 0.05, {"betas": (0.8, 0.9)})
        assert made.param_groups[0]["weight_decay"] == 0.05
    with pytest.raises(ConfigError, match="Did you mean betas"):
        optimizers.make("AdamW", groups, 0.0, {"beta": 1})
    with pytest.raises(ConfigError, match="Did you mean AdamW"):
        optimizers.load("AdaW")


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


def test_warnings_of_the_plan(settings: Settings, pictures: Path) -> None:
    (pictures / "1.txt").unlink()
    texts = " ".join(w.text for w in plan.make(settings(
        "train.batch_size=9", "network.alpha=100", "dataset.resolution=64")).warnings)
    assert "1 of 5 pictures have no caption" in texts and "batch size is 9" in texts
    assert "smaller than 64 px" in texts and "alpha is 100" in texts
    assert "made for 16 px" in texts
    (pictures / "1.txt").write_text("a ball")
    assert plan.make(settings()).warnings == ()


def test_an_adapter_that_fp16_cannot_hold_is_not_written(settings: Settings) -> None:
    with pytest.raises(AdapterError, match="output.dtype"):
        train(settings("network.alpha=100000", "optimizer.lr=1e-9"))
