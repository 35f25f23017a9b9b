"""train.fused_backward: the same steps, taken one parameter at a time, and no gradients kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lycoris import algorithms, memory, optimizers, plan, relief
from lycoris.crew import Crew
from lycoris.errors import ConfigError, Diverged
from lycoris.settings import Config
from lycoris.trainer import Session

Settings = Callable[..., Config]
FUSED = ("train.fused_backward=true", "train.clip_norm=0")


def prepared(run: Config, crew: Crew | None = None) -> Session:
    session = Session(plan.make(run), Path(run.output.folder) / run.output.name, lambda e: None,
                      *([crew] if crew else []))
    session.prepare(lambda: set())
    return session


def learned(run: Config, steps: int = 3) -> tuple[dict[str, torch.Tensor], list[dict], Session]:
    """The network's tensors after some steps, and what the optimiser's groups say."""
    session = prepared(run)
    for _ in range(steps):
        session.advance()
    said = [{key: value for key, value in group.items() if key != "params"}
            for group in session.learner.optimizer.param_groups]
    session.network.restore()
    return {name: p.detach() for name, p in session.network.named_parameters()}, said, session


def usable() -> list[str]:
    return [name for name, row in optimizers.ROWS.items() if not row.one_rate]


@pytest.mark.parametrize("name", usable())
def test_every_optimiser_takes_the_same_steps(settings: Settings, name: str) -> None:
    own = (f"optimizer.name={name}", "optimizer.schedule=constant", "train.steps=3")
    one, groups, _ = learned(settings("output.name=one", "train.clip_norm=0", *own))
    other, others, session = learned(settings("output.name=other", *FUSED, *own))
    assert one.keys() == other.keys()
    for tensor in one:
        if optimizers.ROWS[name].matrices:  # products in bf16, at steps of 0.01
            assert torch.allclose(one[tensor], other[tensor], rtol=0, atol=1e-3), tensor
        else:
            assert torch.equal(one[tensor], other[tensor]), tensor
    assert groups == others
    assert all(p.grad is None for p in session.network.parameters())


@pytest.mark.parametrize("extra", [(), ("train.gradient_checkpointing=true",),
                                   ("network.dora_wd=true",)])
@pytest.mark.parametrize("algo", list(algorithms.catalogue()))
def test_every_algorithm_takes_the_same_steps(settings: Settings, algo: str,
                                              extra: tuple[str, ...]) -> None:
    if algo == "tlora" and "network.dora_wd=true" in extra:
        pytest.skip("T-LoRA has no one weight for DoRA to measure")
    own = (f"network.algo={algo}", "network.dim=4", "train.steps=3", "train.ema=0.9",
           "network.dropout=0.1", *extra)
    one = learned(settings("output.name=one", "train.clip_norm=0", *own))[0]
    other = learned(settings("output.name=other", *FUSED, *own))[0]
    assert all(torch.equal(one[tensor], other[tensor]) for tensor in one)


def test_a_run_goes_on_as_if_never_stopped(settings: Settings, tmp_path: Path) -> None:
    """The optimiser's state and its groups' counters are saved whole."""
    own = ("optimizer.name=ScheduleFreeAdamW", "optimizer.schedule=constant", *FUSED)
    whole = learned(settings("output.name=whole", *own), 4)[0]
    session = prepared(settings("output.name=halves", *own))
    for _ in range(2):
        session.advance()
    session.save()
    session.network.restore()
    session = prepared(settings("output.name=halves", *own))
    assert session.progress.step == 2
    for _ in range(2):
        session.advance()
    session.network.restore()
    halves = dict(session.network.named_parameters())
    assert all(torch.equal(whole[name], halves[name]) for name in whole)


def test_what_is_not_finite_reaches_no_parameter_and_is_found(
        settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    session = prepared(settings(*FUSED))
    session.advance()
    real = session.model.predict

    def spoilt(x: torch.Tensor, t: torch.Tensor, told: dict) -> torch.Tensor:
        found = real(x, t, told)
        found.register_hook(lambda slope: slope * float("nan"))
        return found

    monkeypatch.setattr(session.model, "predict", spoilt)
    with pytest.raises(Diverged, match="gradient"):
        session.advance()
    session.network.restore()
    assert all(torch.isfinite(p).all() for p in session.network.parameters())


def test_what_needs_the_whole_gradient_is_refused_all_at_once(settings: Settings) -> None:
    with pytest.raises(ConfigError) as caught:
        plan.make(settings("train.fused_backward=true", "train.accumulate=2", "train.split=2",
                           "optimizer.name=Prodigy", "train.precision=fp16"))
    assert set(caught.value.problems) == {"train.clip_norm", "train.accumulate", "train.split",
                                          "optimizer.name", "train.precision"}
    assert "Set train.clip_norm to 0" in caught.value.problems["train.clip_norm"]


class Two(Crew):
    """One of two processes, the other of which agrees with everything."""

    def __init__(self) -> None:
        super().__init__(0, 2)

    def _gather(self, word: object) -> list[object]:
        return [word, word]

    def same(self, tensors: object) -> None:
        pass


def test_several_processes_are_refused(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="2 processes"):
        prepared(settings(*FUSED), Two())


def test_memory_knows_it_and_it_is_offered(settings: Settings) -> None:
    def planned(*own: str) -> plan.Plan:
        return plan.make(settings("model.family=sd15", "dataset.resolution=512", "train.split=1",
                                  "dataset.bucket_step=64", "network.algo=full",
                                  "train.batch_size=1", "train.gradient_checkpointing=true",
                                  "optimizer.name=AdamW8bit", *own), need_dataset=False)

    def phases(one: plan.Plan) -> dict[str, int]:
        return memory.predict(one, "cuda").data()["phases"]

    made, fused = planned(), planned(*FUSED)
    gradients = sum(4 * a.parameters() for a in made.assignments)
    saved = phases(made)["optimiser step"] - phases(fused)["optimiser step"]
    assert 0.9 * gradients < saved < 2.1 * gradients
    assert phases(fused)["training"] < phases(made)["training"]
    values = next(saving.values for saving in relief.savings(made, "cuda")[0]
                  if "train.fused_backward" in saving.values)
    assert values == {"train.fused_backward": True, "train.clip_norm": 0.0}
    assert not any("fused" in text for text in relief.after_failure(made, "training"))
    assert any("resume with train.fused_backward=true (about" in text for text in
               relief.after_failure(planned("train.clip_norm=0"), "training"))
    assert not any("train.fused_backward" in saving.values
                   for saving in relief.savings(fused, "cuda")[0])
    many = planned(*FUSED, "train.batch_size=4")
    assert relief.same_result(many.config) == {"train.block_swap": 1.0}
