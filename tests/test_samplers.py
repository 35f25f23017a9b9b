"""Samplers: each paints, again and again the same, and comes to the picture that is predicted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from lycoris import families, plan, recipes, samplers, sampling
from lycoris.errors import ConfigError
from lycoris.families import Model

CPU = torch.device("cpu")
HERE = [pytest.param(name, marks=pytest.mark.skipif(
    bool(why := samplers.problem(name)), reason=why or "none")) for name in samplers.ROWS]
SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
            "set_alpha_to_one": False}
KINDS = {"epsilon": {"prediction_type": "epsilon", "steps_offset": 1},
         "v_prediction": {"prediction_type": "v_prediction"},
         "zero snr": {"prediction_type": "v_prediction", samplers.ZERO_SNR: True}}


class Oracle:
    """A model that knows the picture: what it predicts leads straight there from any noise."""

    device, latent_scale, latent_channels = CPU, 8, 4

    def __init__(self, kind: str):
        self.scheduler_config: dict[str, Any] = {**SCHEDULE, **KINDS[kind]}
        noise = diffusers.DDPMScheduler.from_config(self.scheduler_config)
        self.logs = noise.alphas_cumprod.double().clamp_min(samplers.LEAST).logit()
        self.x0 = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(3))
        self.steps: list[float] = []

    def with_sizes(self, cond: Any, sizes: Any) -> Any:
        return cond

    def predict(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        at = float(t[0])
        self.steps.append(at)
        low = min(int(at), 998)  # between two timesteps as the samplers do it, by log(signal/noise)
        a = torch.lerp(self.logs[low], self.logs[low + 1], at - low).sigmoid().float()
        noise = (x - a.sqrt() * self.x0) / (1 - a).sqrt()
        if self.scheduler_config["prediction_type"] == "epsilon":
            return noise
        return a.sqrt() * noise - (1 - a).sqrt() * self.x0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HERE)
def test_the_picture_that_is_predicted_is_come_to(name: str, kind: str) -> None:
    model = Oracle(kind)
    scheduler = samplers.make(name, model.scheduler_config)
    cond = {"text": torch.zeros(2, 1)}
    for steps in (5, 20, 30):
        latents = sampling._denoise(model, scheduler, cond, 1, sampling.Settings(  # type: ignore
            steps, 1.0, name, 64, 64), lambda: False)
        assert latents is not None
        away = (latents - model.x0).abs().max().item()
        assert away < 0.2, (steps, away)  # DDIM and PNDM end at the first timestep, at a = 0.999
    assert max(model.steps) == 999 or kind == "epsilon"


@pytest.fixture(scope="module")
def model(small_base: Path) -> Model:
    return families.open_base(small_base).load(CPU, torch.float32)


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("steps", [1, 2, 6])
def test_each_paints_and_each_picture_is_of_its_own_seed_alone(model: Model, name: str,
                                                               steps: int) -> None:
    jobs = [sampling.Job("a zorb", seed) for seed in (1, 2, 1)]
    one, other, again = (image.tobytes() for image in sampling.paint(
        model, jobs, sampling.Settings(steps, 4.0, name, 16, 16)))
    assert one == again != other


def test_a_sampler_whose_package_is_missing_is_told_before_anything_is_loaded(
        settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="LMS needs the package scipy. Run: pip install scipy"):
        plan.make(settings("sample.sampler=LMS"))
    assert not samplers.problem("Heun")
    found = recipes.read("--network_module=networks.lora --network_dim=4 --sample_sampler=k_lms")
    assert "sample.sampler" not in found.settings and "pip install scipy" in found.unknown[0]


def test_kohyas_trainers_are_told_the_names_they_know(settings: Any) -> None:
    told = recipes.write(settings("sample.sampler=DPM2 a"), "kohya")
    assert 'sample_sampler = "dpm_2_a"' in told.text
    told = recipes.write(settings("sample.sampler=UniPC"), "kohya")
    assert "sample_sampler" not in told.text and "sample.sampler" in told.unsaid
