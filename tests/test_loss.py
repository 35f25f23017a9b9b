"""What a step is judged by: against closed forms, the papers' limits, and what it was before."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lycoris import (
    config,
    distances,
    families,
    focus,
    knobs,
    kohya,
    noises,
    objectives,
    plan,
    recipes,
    streams,
    timesteps,
    weightings,
)
from lycoris.errors import ConfigError, ModelFileError
from lycoris.feed import Batch
from lycoris.kohya_loss import said
from lycoris.lesson import Lesson
from lycoris.settings import Config
from lycoris.settings.loss import LossConfig
from lycoris.trainer import Session

Settings = Callable[..., Config]
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
ALPHAS = objectives.alphas_cumprod(SD)


def objective(name: str = "epsilon", *, zero: bool = False) -> objectives.Objective:
    return objectives.make(name, objectives.zero_terminal(ALPHAS) if zero else ALPHAS)


class Network:
    """Stands for the adapters: what it was told."""

    def __init__(self) -> None:
        self.training, self.multiplier = True, 1.0

    def train(self, mode: bool = True) -> None:
        self.training = mode

    def eval(self) -> None:
        self.training = False

    def set_multiplier(self, value: float) -> None:
        self.multiplier = value


def lesson(predict: Callable[[Tensor, Tensor], Tensor], name: str = "epsilon",
           **loss: Any) -> Lesson:
    """Over a model that is a function of (x_t, t)."""
    model = SimpleNamespace(device=torch.device("cpu"), objective=objective(name),
                            predict=lambda x_t, t, told: predict(x_t, t),
                            with_sizes=lambda told, sizes: told)
    run = replace(Config(), loss=LossConfig(**loss))
    return Lesson(run, model, Network(), "fp32",  # type: ignore[arg-type]
                  lambda texts: {"hidden": torch.zeros(len(texts), 1)})


def batch(count: int = 3, step: int = 5, **given: Any) -> Batch:
    torch.manual_seed(3)
    return Batch(**{"step": step, "members": tuple(range(count)), "places": tuple(range(count)),
                    "x0": torch.randn(count, 4, 6, 8), "texts": ("a",) * count, "masks": None,
                    "weights": (1.0,) * count, "prior": (False,) * count, "sizes": (), **given})


# --- as it was ---

@pytest.mark.parametrize("name", list(objectives.OBJECTIVES))
@pytest.mark.parametrize(("gamma", "offset"), [(0, 0.0), (5, 0.0), (0, 0.3), (1, 0.1)])
def test_without_new_settings_the_loss_is_what_it_was(name: str, gamma: float,
                                                      offset: float) -> None:
    """To the bit: the whole step as it stood before there was any choice."""
    found = batch()
    goal = objective(name)
    t = torch.tensor([streams.number(42, "timestep", 5, place) % 1000 for place in range(3)])
    drawn = []
    for sample, place in zip(found.x0, range(3), strict=True):
        stream = streams.generator(42, "noise", 5, place)
        n = torch.randn(sample.shape, generator=stream)
        if offset:
            n += offset * torch.randn(4, 1, 1, generator=stream)
        drawn.append(n)
    n = torch.stack(drawn)
    predicted = torch.tanh(goal.noised(found.x0, n, t))
    error = (predicted - goal.target(found.x0, n, t)).square().flatten(1).mean(1)
    if gamma:
        snr = goal.snr(t)
        error = error * (
            snr.clamp_max(gamma) / (snr.clamp_min(1e-12) if name == "epsilon" else snr + 1))
    run = config.load(None, [f"loss.min_snr_gamma={gamma}", f"loss.noise_offset={offset}"])
    now = lesson(lambda x_t, t: torch.tanh(x_t), name, **vars(run.loss)).loss(found)
    assert torch.equal(now, error.mean())


# --- schedules ---

@pytest.mark.parametrize("course", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("zero", [False, True])
def test_the_schedule_is_diffusers(course: str, zero: bool) -> None:
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(beta_schedule=course, beta_start=0.00085, beta_end=0.012,
                           rescale_betas_zero_snr=zero)
    ours = objectives.alphas_cumprod(theirs.config)
    assert torch.allclose(ours, theirs.alphas_cumprod, rtol=2e-3, atol=2e-6)


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ModelFileError, match="'wavy'"):
        objectives.alphas_cumprod({"beta_schedule": "wavy"})


def test_zero_terminal_ends_in_noise_alone() -> None:
    rescaled = objectives.zero_terminal(ALPHAS)
    assert rescaled[-1] == 0 and torch.isclose(rescaled[0], ALPHAS[0])
    assert (rescaled.diff() < 0).all() and (rescaled[1:] < ALPHAS[1:]).all()
    last = objective(zero=True).snr(torch.tensor([999]))
    assert last == 0
    x0, n = torch.randn(2, 1, 4, 8, 8)
    velocity = objective("v_prediction", zero=True)
    assert torch.equal(velocity.noised(x0, n, torch.tensor([999])), n)
    assert torch.equal(velocity.target(x0, n, torch.tensor([999])), -x0)


# --- weightings ---

@pytest.mark.parametrize("weighting", list(weightings.ROWS))
@pytest.mark.parametrize("name", list(objectives.OBJECTIVES))
def test_weights_are_numbers_where_nothing_is_left_of_the_picture(weighting: str,
                                                                  name: str) -> None:
    found = weightings.weigh(objective(name, zero=True), torch.arange(1000),
                             LossConfig(weighting=weighting))
    assert (found is None) == (weighting == "none")
    if found is not None:
        assert torch.isfinite(found).all() and (found >= 0).all() and found.max() < 100.1


CLOSED: dict[str, Callable[[float], float]] = {  # of the noise's squared error
    "min-snr": lambda snr: min(1, 4 / snr), "soft-min-snr": lambda snr: 4 / (4 + snr),
    "debiased": lambda snr: 1 / math.sqrt(snr), "p2": lambda snr: 1 / (0.5 + snr) ** 0.7}


@pytest.mark.parametrize("weighting", list(CLOSED))
def test_weights_against_closed_forms(weighting: str) -> None:
    settings = LossConfig(weighting=weighting, snr_gamma=4, p2_gamma=0.7, p2_k=0.5)
    t = torch.tensor([0, 100, 300, 600, 999])
    noise, velocity = (weightings.weigh(objective(name), t, settings)
                       for name in ("epsilon", "v_prediction"))
    assert noise is not None and velocity is not None
    snr = objective().snr(t)
    assert noise.tolist() == pytest.approx([CLOSED[weighting](s) for s in snr.tolist()], rel=1e-4)
    assert torch.allclose(velocity, noise * snr / (snr + 1)), "the same weight of x0's error"


def test_soft_min_snr_meets_min_snr_at_both_ends() -> None:
    snr = torch.tensor([1e-4, 4.0, 1e5])
    settings = LossConfig(snr_gamma=4)
    ratio = weightings.soft_min_snr(snr, settings) / weightings.min_snr(snr, settings)
    assert ratio.tolist() == pytest.approx([1, 0.5, 1], rel=1e-3)


# --- distances ---

def test_huber_lies_between_the_squared_and_the_absolute() -> None:
    d = torch.linspace(-3, 3, 61)
    wide, narrow = torch.tensor(1e3), torch.tensor(1e-3)
    assert torch.allclose(distances.huber(d.double(), wide.double()), d.double().square(),
                          rtol=1e-4)
    far = d[d.abs() > 0.5]
    assert torch.allclose(distances.huber(far, narrow), 2e-3 * far.abs(), rtol=1e-2)
    assert torch.allclose(distances.smooth_l1(far, narrow), 2 * far.abs(), rtol=1e-2)
    near = torch.tensor([1e-2])
    assert torch.allclose(distances.smooth_l1(near, torch.tensor(1.0)), near.square(), rtol=1e-3)


def test_scheduled_limits_fall_from_one_to_c() -> None:
    for zero in (False, True):
        goal, t = objective(zero=zero), torch.arange(1000)
        limits = {name: distances.limit(goal, t, LossConfig(huber_schedule=name, huber_c=0.2))
                  for name in ("constant", "exponential", "snr")}
        assert (limits["constant"] == torch.tensor(0.2)).all()
        assert limits["exponential"][500] == pytest.approx(0.2 ** 0.5)
        for name in ("exponential", "snr"):
            assert (limits[name].diff() < 0).all() and limits[name][0] > 0.9
            assert limits[name][-1] == pytest.approx(0.2, abs=0.005)
    sigma = 1 / objective().snr(torch.tensor([400])).sqrt()
    assert limits["snr"].shape == (1000,) and distances.limit(
        objective(), torch.tensor([400]), LossConfig(huber_schedule="snr", huber_c=0.2)
    ).item() == pytest.approx((0.8 / (1 + sigma) ** 2 + 0.2).item())


@pytest.mark.parametrize("name", list(distances.ROWS))
def test_every_distance_is_nothing_at_the_target_and_has_a_gradient(name: str) -> None:
    target = torch.randn(2, 4, 3, 3)
    t = torch.tensor([10, 900])
    predicted = target.clone().requires_grad_()
    settings = LossConfig(distance=name)
    at = distances.between(predicted, target, objective(), t, settings)
    assert torch.allclose(at, torch.zeros(()), atol=1e-6)
    (gradient,) = torch.autograd.grad(at.sum(), predicted)
    assert torch.isfinite(gradient).all()
    off = distances.between(predicted + 0.5, target, objective(), t, settings)
    (gradient,) = torch.autograd.grad(off.sum(), predicted)
    assert (gradient > 0).all()


# --- timesteps ---

def draws(count: int = 1000, steps: int = 5000, **loss: Any) -> Tensor:
    found = [timesteps.draw(LossConfig(**loss), count, 1, step, (0, 1, 2, 3))
             for step in range(steps)]
    return torch.tensor(found).flatten()


CASES: list[dict[str, Any]] = [
    *({"timesteps": name} for name in timesteps.ROWS),
    {"timesteps": "logit-normal", "logit_mean": -1.0, "logit_std": 0.5},
    {"timestep_shift": 3.0}, {"timesteps": "detail", "timestep_shift": 0.4},
    {"timestep_min": 200, "timestep_max": 500},
    {"timesteps": "composition", "timestep_min": 500}]


@pytest.mark.parametrize("loss", CASES, ids=str)
def test_timesteps_come_as_often_as_the_density_says(loss: dict[str, Any]) -> None:
    found = draws(**loss)
    told = timesteps.density(LossConfig(**loss), 1000, 10)
    counted = torch.histc(found.float(), 10, 0, 1000) / len(found) * 10
    assert told.sum() == pytest.approx(10, rel=1e-6)
    assert torch.allclose(counted.double(), told, atol=0.1)
    assert (counted[told == 0] == 0).all(), "nothing outside of the range"


def test_densities_have_their_middles_where_they_should() -> None:
    settings = LossConfig(timesteps="logit-normal", logit_mean=0.7)
    half = torch.tensor([0.5], dtype=torch.float64)
    assert timesteps.share(half, settings).item() == pytest.approx(1 / (1 + math.exp(-0.7)))
    assert timesteps.share(half, LossConfig(timesteps="cosmap")).item() == pytest.approx(0.5)
    assert timesteps.share(half, LossConfig(timestep_shift=3)).item() == pytest.approx(0.75)
    assert timesteps.share(half, LossConfig(timesteps="detail")).item() == 0.125
    assert timesteps.share(half, LossConfig(timesteps="composition")).item() == 0.875


@pytest.mark.parametrize("name", list(timesteps.ROWS))
def test_a_larger_draw_is_a_noisier_timestep(name: str) -> None:
    u = torch.linspace(0, 1, 999, dtype=torch.float64)
    x = timesteps.share(u, LossConfig(timesteps=name))
    assert (x.diff() > 0).all() and x[0] < 1e-6 and x[-1] > 1 - 1e-6


def test_a_range_without_timesteps_is_refused() -> None:
    with pytest.raises(ConfigError, match="choose at most 99"):
        timesteps.bounds(LossConfig(timestep_min=200, timestep_max=100), 1000)
    with pytest.raises(ConfigError, match="end before 1000"):
        timesteps.bounds(LossConfig(timestep_min=1000), 1000)
    run = config.load(None, ["loss.timestep_min=200", "loss.timestep_max=100"])
    with pytest.raises(ConfigError, match="loss.timestep_min is 200"):
        plan.check_names(run)


# --- noise ---

def noise(count: int = 4, x0: Tensor | None = None, **loss: Any) -> Tensor:
    x0 = torch.zeros(count, 3, 32, 32) if x0 is None else x0
    return noises.draw(x0, LossConfig(**loss), 1, 7, range(len(x0)))[0]


def test_a_samples_noise_is_its_own_in_any_batch() -> None:
    loss = {"noise_offset": 0.3, "noise_offset_random": True, "adaptive_offset": 0.1,
            "pyramid_iterations": 4, "input_perturbation": 0.1}
    x0 = torch.randn(4, 3, 32, 32)
    whole = noises.draw(x0, LossConfig(**loss), 1, 7, range(4))
    part = noises.draw(x0[2:], LossConfig(**loss), 1, 7, (2, 3))
    assert all(torch.equal(a[2:], b) for a, b in zip(whole, part, strict=True))


def test_noise_offset_shifts_whole_channels() -> None:
    plain, shifted = noise(), noise(noise_offset=1.0)
    shift = (shifted - plain).flatten(2)
    assert shift.std(-1).max() < 1e-5 and shift.abs().mean() > 0.1
    drawn = (noise(noise_offset=1.0, noise_offset_random=True) - plain).flatten(2).mean(-1)
    share = drawn / shift.mean(-1)
    assert torch.allclose(share, share[:, :1].expand_as(share), atol=1e-3), "one for a picture"
    assert (share > 0).all() and (share < 1).all() and share[:, 0].std() > 0.01


def test_adaptive_offset_follows_each_channels_mean() -> None:
    x0 = torch.zeros(2, 3, 32, 32)
    x0[:, 1], x0[:, 2] = 2.0, -1.0
    unit = noise(x0=x0, noise_offset=1.0) - noise(x0=x0)
    shift = noise(x0=x0, adaptive_offset=0.5) - noise(x0=x0)
    assert torch.allclose(shift, unit * torch.tensor([0, 1.0, 0.5]).view(3, 1, 1), atol=1e-5)
    both = noise(x0=x0, noise_offset=0.5, adaptive_offset=-1.0) - noise(x0=x0)
    assert torch.allclose(both, unit * torch.tensor([0.5, 0, 0]).view(3, 1, 1), atol=1e-5)


def test_pyramid_noise_has_large_grain_at_the_same_strength() -> None:
    plain, pyramid = noise(), noise(pyramid_iterations=6, pyramid_discount=0.6)
    assert torch.allclose(pyramid.flatten(1).std(1), torch.ones(4), atol=1e-3)

    def coarse(n: Tensor) -> float:
        return torch.nn.functional.avg_pool2d(n, 8).var().item()

    assert coarse(pyramid) > 3 * coarse(plain)
    flat = noise(pyramid_iterations=6, pyramid_discount=0.0)
    assert coarse(flat) < 2 * coarse(plain), "no discount, no grain"


def test_perturbation_is_in_what_the_model_sees_and_not_in_what_it_is_asked_for() -> None:
    x0 = torch.zeros(4, 3, 32, 32)
    n, added = noises.draw(x0, LossConfig(input_perturbation=0.5), 1, 7, range(4))
    assert torch.equal(n, noise())
    assert (added - n).std().item() == pytest.approx(0.5, rel=0.05)
    assert abs(((added - n) * n).mean().item()) < 0.02


# --- masks, weights, regularisation ---

def half(count: int = 3) -> Tensor:
    masks = torch.ones(count, 1, 6, 8)
    masks[..., 4:] = 0
    return masks


def test_a_mask_takes_out_exactly_what_it_hides() -> None:
    def spoilt(x_t: Tensor, t: Tensor) -> Tensor:
        out = x_t.clone()
        out[..., 4:] = 1e6
        return out

    hidden = {"unmasked_weight": 0.0}
    a = lesson(lambda x_t, t: x_t, **hidden).loss(batch(masks=half()))
    assert torch.equal(a, lesson(spoilt, **hidden).loss(batch(masks=half())))
    assert lesson(spoilt, unmasked_weight=0.01).loss(batch(masks=half())) > 1e6
    seen: list[Tensor] = []

    def kept(x_t: Tensor, t: Tensor) -> Tensor:
        seen.append(x_t.clone().requires_grad_())
        return seen[-1]

    lesson(kept, **hidden).loss(batch(masks=half())).backward()
    (gradient,) = (x.grad for x in seen)
    assert (gradient[..., 4:] == 0).all() and (gradient[..., :4] != 0).all()


def test_a_mask_of_everything_is_none_and_one_of_nothing_no_loss() -> None:
    plain = lesson(lambda x_t, t: x_t).loss(batch())
    whole = lesson(lambda x_t, t: x_t).loss(batch(masks=torch.ones(3, 1, 6, 8)))
    assert torch.allclose(plain, whole)
    nothing = torch.zeros(3, 1, 6, 8)
    assert lesson(lambda x_t, t: x_t, unmasked_weight=0.0).loss(batch(masks=nothing)) == 0
    assert torch.allclose(lesson(lambda x_t, t: x_t, unmasked_weight=0.3).loss(
        batch(masks=nothing)), plain), "all alike is all alike"


def test_a_small_subject_counts_as_much_as_a_large_one() -> None:
    """Where the error is the same everywhere, the mask's size does not change the loss."""
    def off_by_one(x_t: Tensor, t: Tensor) -> Tensor:
        n, _ = noises.draw(batch().x0, LossConfig(), 42, 5, range(3))
        return n + 1

    for outside in (0.0, 0.1):
        assert lesson(off_by_one, unmasked_weight=outside).loss(
            batch(masks=half())).item() == pytest.approx(1, rel=1e-5)


def test_pictures_count_by_their_weights() -> None:
    def one(place: int, **given: Any) -> float:
        weights = tuple(float(i == place) for i in range(3))
        return lesson(lambda x_t, t: x_t, **given).loss(batch(weights=weights)).item()

    parts = [one(i) for i in range(3)]
    whole = lesson(lambda x_t, t: x_t).loss(batch()).item()
    assert sum(parts) == pytest.approx(whole, rel=1e-5)
    mixed = lesson(lambda x_t, t: x_t, prior_weight=0.25).loss(
        batch(weights=(2.0, 1.0, 0.5), prior=(False, True, True))).item()
    assert mixed == pytest.approx(2 * parts[0] + 0.25 * parts[1] + 0.125 * parts[2], rel=1e-5)


def test_regularisation_pictures_teach_what_the_base_predicts() -> None:
    made: Lesson

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        asked.append((made.network.multiplier, len(x_t), torch.is_grad_enabled()))
        return x_t * (0.5 if made.network.multiplier == 0 else 0.7)

    asked: list[Any] = []
    made = lesson(predict, prior_from_base=True)
    found = batch(prior=(True, False, True), weights=(1.0, 0.0, 1.0))
    t = torch.tensor(timesteps.draw(LossConfig(), 1000, 42, 5, (0, 1, 2)))
    n, _ = noises.draw(found.x0, LossConfig(), 42, 5, range(3))
    x_t = objective().noised(found.x0, n, t)
    expected = (0.2 * x_t).square().flatten(1).mean(1)[[0, 2]].sum() / 3
    assert made.loss(found).item() == pytest.approx(expected.item(), rel=1e-4)
    assert asked == [(0.0, 2, False), (1.0, 3, True)] and made.network.multiplier == 1.0
    asked.clear()
    made.loss(batch())
    assert asked == [(1.0, 3, True)], "the base is asked about regularisation pictures alone"


def test_of_a_real_network_the_base_is_what_it_was(settings: Settings) -> None:
    """Text encoder and UNet, whatever the adapter has learned, and with its dropouts on."""
    run = settings("loss.prior_from_base=true", "network.module_dropout=0.5", "optimizer.lr=0.1",
                   "dataset.caption_dropout=0")
    session = Session(plan.make(run), Path(run.output.folder) / "one", lambda event: None)
    session.prepare(lambda: set())
    found = replace(session.feed.batch(0, 0), prior=(True, True))
    x_t, t = torch.randn(2, 4, 8, 8), torch.tensor([3, 700])
    for _ in range(3):
        session.advance()
    target = session.lesson._as_the_base(found, x_t, t, torch.zeros(2, 4, 8, 8))
    trained = session.model.predict(x_t, t, session.lesson.condition(found.texts))
    session.network.restore()
    base = session.model.predict(x_t, t, session.model.encode_text(found.texts))
    assert torch.equal(target, base) and not torch.allclose(target, trained)


# --- validation ---

def test_validation_is_fixed_and_leaves_no_trace(settings: Settings) -> None:
    def session(*extra: str) -> Session:
        run = settings("network.dropout=0.5", "loss.noise_offset=0.3", "loss.weighting=p2",
                       "dataset.caption_dropout=0", *extra)
        made = Session(plan.make(run), Path(run.output.folder) / "one", lambda event: None)
        made.prepare(lambda: set())
        return made

    one = session()
    found, at = one.feed.batch(0, 0), (50, 500, 950)
    first = one.lesson.validation(found, at)
    assert first.shape == (3, 2) and not first.requires_grad and torch.isfinite(first).all()
    assert torch.equal(first, one.lesson.validation(replace(found, step=9, places=(4, 5)), at))
    assert torch.equal(first[1:2], one.lesson.validation(found, (500,)))
    assert one.network.training
    one.network.restore()
    other = session("train.seed=7")
    assert torch.equal(first, other.lesson.validation(found, at)), "runs of any seed compare"
    other.network.restore()


def test_validation_does_not_move_what_a_step_draws(settings: Settings) -> None:
    def losses(look: bool) -> list[float]:
        run = settings("network.dropout=0.5")
        made = Session(plan.make(run), Path(run.output.folder) / "one", lambda event: None)
        made.prepare(lambda: set())
        found = []
        for step in range(2):
            if look:
                made.lesson.validation(made.feed.batch(step, 0), (10, 900))
            made.advance()
            found.append(made.progress.loss_avg)
        made.network.restore()
        return found

    assert losses(look=True) == losses(look=False)


# --- a run with everything on ---

EVERYTHING = ("loss.weighting=soft-min-snr", "loss.distance=huber", "loss.huber_schedule=snr",
              "loss.timesteps=logit-normal", "loss.timestep_shift=2", "loss.noise_offset=0.1",
              "loss.noise_offset_random=true", "loss.adaptive_offset=0.1",
              "loss.pyramid_iterations=3", "loss.input_perturbation=0.1")


def test_all_algorithms_see_the_same_whatever_is_drawn(settings: Settings) -> None:
    def shown(*extra: str) -> list[Tensor]:
        run = settings(*EVERYTHING, *extra)
        session = Session(plan.make(run), Path(run.output.folder) / "one", lambda event: None)
        session.prepare(lambda: set())
        seen: list[Tensor] = []
        predict = session.model.predict

        def spy(x_t: Tensor, t: Tensor, told: Any) -> Tensor:
            seen.extend((x_t.clone(), t.clone()))
            return predict(x_t, t, told)

        session.model.predict = spy  # type: ignore[method-assign]
        for _ in range(2):
            session.advance()
        session.network.restore()
        return seen

    first = shown()
    for other in (("network.algo=loha", "network.dim=1"), ("network.algo=lokr",),
                  ("network.dim=7", "network.dropout=0.3"), ("network.algo=full",)):
        again = shown(*other)
        assert len(first) == len(again) and all(map(torch.equal, first, again)), other
    assert not torch.equal(first[0], shown("train.seed=7")[0])


# --- what it dwells on, for the page ---

def test_focus_is_what_the_engine_does(small_base: Path) -> None:
    family = families.open_base(small_base)
    plain = focus.of(LossConfig(), family)
    assert plain.count == 1000 and set(plain.weight) == {1.0} and not plain.zero_terminal
    assert plain.often == pytest.approx([1.0] * focus.BINS)
    loss = LossConfig(weighting="min-snr", timestep_min=500)
    found = focus.of(loss, family)
    assert found.often[:50] == pytest.approx([0] * 50) and found.often[50:] == pytest.approx(
        [2] * 50)
    weight = weightings.weigh(objective(), torch.tensor([5, 995]), loss)
    assert weight is not None
    assert (found.weight[0], found.weight[-1]) == pytest.approx(weight.tolist(), rel=1e-4)


def test_only_settings_with_a_say_are_used() -> None:
    plain = focus.used(LossConfig())
    assert not any(plain.values())
    assert {path for path, on in focus.used(LossConfig(
        weighting="p2", distance="smooth-l1", timesteps="logit-normal")).items() if on} == {
        "loss.p2_gamma", "loss.p2_k", "loss.huber_c", "loss.huber_schedule", "loss.logit_mean",
        "loss.logit_std"}
    assert set(plain) <= set(config.LEAVES)


# --- in other words ---

def test_min_snr_by_its_gamma_alone_is_still_understood(tmp_path: Path) -> None:
    full = tmp_path / "full.toml"
    full.write_text(config.dump(Config()))
    for given in ((full, ["loss.min_snr_gamma=3"]), (None, ["train.min_snr_gamma=3"])):
        loss = config.load(*given).loss
        assert (loss.weighting, loss.snr_gamma) == ("min-snr", 3.0)
    assert config.build({"loss.min_snr_gamma": 0.0}).loss == LossConfig()
    own = tmp_path / "own.toml"
    own.write_text('[loss]\nmin_snr_gamma = 7\nweighting = "soft-min-snr"\n')
    assert config.load(own).loss.weighting == "soft-min-snr"
    with pytest.raises(ConfigError, match="loss.snr_gamma expects a number"):
        config.build({"loss.min_snr_gamma": "much"})


KOHYA = ("--loss_type huber --huber_c 0.2 --adaptive_noise_scale 0.01 --noise_offset 0.05 "
         "--noise_offset_random_strength --multires_noise_iterations 8 "
         "--multires_noise_discount 0.4 --ip_noise_gamma 0.1 --min_timestep 100 "
         "--max_timestep 900 --prior_loss_weight 0.5 --masked_loss --min_snr_gamma 5")


def test_kohyas_words_for_the_loss() -> None:
    found = recipes.read("accelerate launch train_network.py " + KOHYA)
    assert not [text for text in found.unknown if "no setting" in text]
    assert found.applied(Config()).loss == LossConfig(
        weighting="min-snr", snr_gamma=5, distance="huber", huber_c=0.2, huber_schedule="snr",
        timestep_min=100, timestep_max=900, noise_offset=0.05, noise_offset_random=True,
        adaptive_offset=0.01, pyramid_iterations=8, pyramid_discount=0.4, input_perturbation=0.1,
        unmasked_weight=0.0, prior_weight=0.5)
    settings, *_ = kohya.read({"debiased_estimation_loss": True, "noise_offset_type": "Original",
                               "multires_noise_iterations": 6, "huber_schedule": "exponential"})
    assert settings["loss.weighting"] == "debiased" and settings["loss.pyramid_iterations"] == 0
    assert settings["loss.huber_schedule"] == "exponential"
    _, unknown, _ = kohya.read({"zero_terminal_snr": True, "loss_type": "wavelet"})
    assert "model.zero_snr to on" in " ".join(unknown) and "loss_type=wavelet" in " ".join(unknown)


@pytest.mark.parametrize("loss", [
    LossConfig(), LossConfig(weighting="min-snr", snr_gamma=7, distance="smooth-l1",
                             huber_schedule="exponential", huber_c=0.3, noise_offset=0.05,
                             noise_offset_random=True, adaptive_offset=0.02, pyramid_iterations=4,
                             pyramid_discount=0.5, input_perturbation=0.05, prior_weight=0.7),
    LossConfig(weighting="debiased", distance="l1")], ids=["plain", "much", "debiased"])
def test_metadata_say_the_loss_as_kohya_reads_it(loss: LossConfig) -> None:
    settings, unknown, _ = kohya.read(kohya.from_metadata(said(loss)))
    assert not unknown
    assert knobs.replace(Config(), settings).loss == loss
