"""Every optimiser by its row: what it keeps, how it steps, what is saved; the rate's course."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from lycogui import pace
from lycoris import events, memory, optimizers, plan, schedules
from lycoris.errors import ConfigError, RunError
from lycoris.learner import Average, Learner
from lycoris.settings import Config, OptimizerConfig
from lycoris.trainer import Session, run

Settings = Callable[..., Config]
SHAPES = ((320, 16), (16, 320, 3, 3), (70,), (1,), (320, 1), (4, 8, 8))


def held(state: object) -> int:
    """Bytes of the floating or 8-bit tensors of a state, without the tables bitsandbytes shares
    between tensors and without counters."""
    if isinstance(state, dict):
        return sum(held(value) for key, value in state.items()
                   if key not in ("qmap1", "qmap2", "step", "RMS"))
    return state.numel() * state.element_size() if isinstance(state, torch.Tensor) else 0


def group(*shapes: tuple[int, ...]) -> list[dict]:
    torch.manual_seed(0)
    return [{"params": [torch.nn.Parameter(torch.randn(shape)) for shape in shapes],
             "lr": 1e-3, "base_lr": 1e-3}]


@pytest.mark.parametrize("name", optimizers.ROWS)
def test_the_state_takes_what_its_row_says(name: str) -> None:
    for shape in SHAPES:
        given = group(shape)
        made = optimizers.make(name, given, 0.01, {})
        for parameter in given[0]["params"]:
            parameter.grad = torch.randn_like(parameter)
        made.step()
        found = held(made.state[given[0]["params"][0]])
        assert found == pytest.approx(optimizers.state_bytes(name, shape), rel=0.01, abs=8), shape


@pytest.mark.parametrize("name", optimizers.ROWS)
def test_every_optimiser_learns_and_knows_its_weight_decay(name: str) -> None:
    """Towards a target that differs in every number, at the rate its row calls usual."""
    row = optimizers.ROWS[name]
    lr = 1.0 if row.times is None else 0.02 * row.times
    given = group((24, 8), (8,))
    for one in given:
        one["lr"] = lr
    made = optimizers.make(name, given, 0.05, {})
    assert all(one["weight_decay"] == 0.05 for one in made.param_groups)
    params = given[0]["params"]
    aims = [torch.randn_like(p) for p in params]

    def loss() -> torch.Tensor:
        return sum((p - aim).square().mean() for p, aim in zip(params, aims, strict=True))

    first = loss().item()
    for _ in range(100):
        made.zero_grad()
        loss().backward()
        made.step()
    if row.averages:
        made.eval()
    assert loss().item() < 0.9 * first


def test_rates_that_an_optimiser_does_not_mean_are_told(settings: Settings) -> None:
    def texts(*extra: str) -> str:
        return " ".join(w.text + w.fix for w in plan.make(settings("optimizer.lr=1e-4",
                                                                   *extra)).warnings)

    assert "optimizer" not in texts()
    assert "finds the learning rate itself" in texts("optimizer.name=Prodigy")
    assert "finds" not in texts("optimizer.name=Prodigy", "optimizer.lr=1")
    assert "text_encoder_lr does nothing" in texts("optimizer.name=Prodigy",
                                                   "optimizer.text_encoder_lr=0.5")
    assert "schedule to constant" in texts("optimizer.name=ScheduleFreeAdamW")
    assert "schedule" not in texts("optimizer.name=ScheduleFreeAdamW",
                                   "optimizer.schedule=constant")
    assert "5e-07 by Lion" in texts("network.algo=full", "optimizer.name=Lion")
    assert "usually" not in texts("network.algo=full", "optimizer.name=Lion", "optimizer.lr=3e-7")
    for wrong in ("train.ema=0.9", "train.max_norm=1"):
        with pytest.raises(ConfigError) as caught:
            plan.make(settings("optimizer.name=ScheduleFreeAdamW", wrong))
        assert set(caught.value.problems) == {wrong.partition("=")[0]}


def test_the_rate_that_was_found_is_the_one_told(settings: Settings, tmp_path: Path) -> None:
    seen: list[events.Event] = []
    made = plan.make(settings("optimizer.name=Prodigy", "optimizer.lr=1", "train.steps=12",
                              "optimizer.schedule=constant", "optimizer.warmup=0",
                              "optimizer.args.d0=1e-5"))
    run(made, tmp_path / "one", seen.append, lambda: set())
    rates = [event.lr for event in seen if isinstance(event, events.Step)]
    assert rates[-1] > rates[0] >= 1e-5 and rates[-1] < 1


def course(name: str, steps: int = 100, **how: float) -> list[float]:
    said = OptimizerConfig(**{"schedule": name, "warmup": 0.0, **how})
    return [schedules.multiplier(said, step, steps) for step in range(steps)]


def test_courses() -> None:
    assert course("linear") == pytest.approx(course("polynomial", power=1))
    assert course("polynomial", power=2)[50] == pytest.approx(0.25)
    assert course("cosine_with_restarts") == course("cosine")
    twice = course("cosine_with_restarts", cycles=2)
    assert twice[:50] == pytest.approx(twice[50:]) and twice[25] == pytest.approx(0.5)
    assert course("rex")[50] == pytest.approx(2 / 3)
    level = course("wsd", decay=0.2)
    assert level[:80] == [1.0] * 80 and level[90] == pytest.approx(0.5)
    for name in schedules.SCHEDULES:
        rates = course(name, floor=0.1, warmup=0.1)
        assert min(rates[10:]) >= 0.1 and max(rates) == 1.0, name
        assert rates[:10] == pytest.approx([0.1 * step for step in range(1, 11)]), name
        points = schedules.curve(OptimizerConfig(schedule=name, warmup=0.1), 5000, 100)
        assert points[0][0] == 1 and points[-1][0] == 5000 and 100 <= len(points) <= 103


def test_the_course_of_few_steps() -> None:
    assert [step for step, _ in schedules.curve(OptimizerConfig(warmup=0.5), 3)] == [1, 2, 3]
    assert len(schedules.curve(OptimizerConfig(warmup=0.9), 1)) == 1


def test_the_plot_shows_the_rates_of_a_run(settings: Settings) -> None:
    shown = pace.drawn(settings("optimizer.text_encoder_lr=1e-5", "optimizer.lr=1e-4",
                                "optimizer.text_encoder_2_lr=1e-6"))
    assert shown["lines"] == [("Learning rate", 1e-4), ("Text encoder", 1e-5),
                              ("Second text encoder", 1e-6)]
    assert shown["points"] == [(step + 1, schedules.multiplier(settings().optimizer, step, 6))
                               for step in range(6)] and not shown["unit"]
    found = pace.drawn(settings("optimizer.name=Prodigy", "optimizer.text_encoder_lr=1e-5"))
    assert len(found["lines"]) == 1 and "Prodigy finds" in found["unit"]
    assert len(pace.drawn(settings("optimizer.text_encoder_lr=1e-5",
                                   "network.text_encoder=false"))["lines"]) == 1
    assert [name for name, on in pace.used("wsd").items() if on] == [
        "optimizer.floor", "optimizer.decay"]


def test_the_average_follows_the_formula() -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    average, wanted = Average({"w": weight}, 0.5), 0.0
    for step in range(1, 8):
        with torch.no_grad():
            weight.fill_(float(step))
        average.follow(step)
        keep = min(0.5, (1 + step) / (10 + step))
        wanted = keep * wanted + (1 - keep) * step
        assert average.tensors["w"].tolist() == pytest.approx([wanted] * 3)


@pytest.mark.parametrize("how", [("train.ema=0.9",), (
    "optimizer.name=ScheduleFreeAdamW", "optimizer.schedule=constant")])
def test_what_is_saved_is_the_mean_and_training_goes_on_untouched(settings: Settings,
                                                                 how: tuple[str, ...]) -> None:
    made = plan.make(settings("output.dtype=fp32", *how))
    session = Session(made, Path(made.config.output.folder) / "one", lambda event: None)
    session.prepare(lambda: set())
    for _ in range(4):
        session.advance()
    before = {name: p.detach().clone() for name, p in session.network.named_parameters()}
    with session.learner.shown():
        means = session.network.file_tensors()
        means = {name: tensor.clone() for name, tensor in means.items()}
    session.save()
    after = dict(session.network.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)
    saved = load_file(session.where / "checkpoints" / "one-000004.safetensors")
    assert all(torch.equal(saved[name], means[name]) for name in means)
    plain = session.network.file_tensors()
    assert any(not torch.equal(saved[name], plain[name]) for name in plain)
    session.network.restore()


def test_a_state_without_the_average_is_refused() -> None:
    one = SimpleNamespace(tensors=lambda: {"average/w": torch.zeros(1)})
    with pytest.raises(RunError, match="no moving average"):
        Learner.restore(one, {})


def test_memory_knows_the_optimiser_and_the_average(settings: Settings) -> None:
    def items(*extra: str) -> dict[str, int]:
        found = memory.predict(plan.make(settings(*extra)), "cuda")
        return {item.name: item.bytes for item in found.phases[0].items}

    bare, mean = items(), items("train.ema=0.99")
    trained = bare["gradients"]
    assert mean["the adapter's moving average"] == trained
    assert items("optimizer.name=Prodigy")["Prodigy's state"] == 4 * trained
    assert items("optimizer.name=CAME")["CAME's state"] > trained
    assert items("optimizer.name=Adafactor")["Adafactor's state"] < bare["AdamW's state"]
