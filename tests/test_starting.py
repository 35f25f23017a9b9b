"""A run that goes on from an adapter begins as that adapter, and refuses one that is another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lycoris import algorithms, events, plan, trainer
from lycoris.errors import ConfigError
from lycoris.settings import Config
from lycoris.trainer import Session

Settings = Callable[..., Config]


def train(run: Config) -> tuple[list[events.Event], Path]:
    seen: list[events.Event] = []
    folder = Path(run.output.folder) / run.output.name
    trainer.run(plan.make(run), folder, seen.append, lambda: set())
    return seen, folder / f"{run.output.name}.safetensors"


def begun(run: Config) -> Session:
    session = Session(plan.make(run), Path(run.output.folder) / run.output.name, lambda e: None)
    session.prepare(lambda: set())
    session.network.restore()
    return session


@pytest.mark.parametrize("algo", list(algorithms.catalogue()))
def test_it_starts_with_the_tensors_of_the_file(settings: Settings, algo: str) -> None:
    shared = (f"network.algo={algo}", "network.dim=4", "train.steps=2", "output.dtype=fp32",
              "train.checkpoint_every=0", "optimizer.schedule=constant", "optimizer.warmup=0")
    _, file = train(settings(*shared))
    wanted = load_file(file)
    fresh = begun(settings(*shared, "output.name=fresh")).network.file_tensors()
    session = begun(settings(*shared, "output.name=on", f"network.weights={file}"))
    found = session.network.file_tensors()
    assert found.keys() == wanted.keys()
    for key, tensor in found.items():
        torch.testing.assert_close(tensor.reshape(wanted[key].shape).float(), wanted[key].float(),
                                   rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(fresh[key].reshape(wanted[key].shape), wanted[key])
               for key in wanted), "a fresh start is another one"
    assert session.progress.step == 0


def test_it_learns_on_and_its_first_samples_are_the_adapter_s(settings: Settings) -> None:
    first = settings("optimizer.lr=0.1", "output.dtype=fp32")
    train(first)
    seen, file = train(settings("output.name=two", "network.weights=one", "sample.every=6",
                                "output.dtype=fp32"))
    painted = [(e.step, e.contestant) for e in seen if isinstance(e, events.Sampled)]
    assert painted == [(0, "base"), (0, ""), (6, "")]
    before = load_file(Path(first.output.folder) / "one" / "one.safetensors")
    after = load_file(file)
    moved = sum((after[k] - before[k]).norm() for k in before if "lora_up" in k)
    whole = sum(before[k].norm() for k in before if "lora_up" in k)
    assert 0 < moved < 2 * whole


@pytest.mark.parametrize(("more", "said"), [
    ("network.dim=3", "another shape there"),
    ("network.alpha=1", "its alpha is 2 and here it is 1"),
    ("network.algo=loha", "another shape"), ("network.preset=attn-only", "are not trained here"),
    ("network.weights=nothing", "There is no adapter 'nothing'"),
    ("network.weights=base", "give a run or an adapter file"),
    ("network.weights=one:0.5", "without a weight"),
    ("network.init=orthogonal", "set it to default"),
])
def test_what_does_not_fit_is_refused_before_training(settings: Settings, more: str,
                                                      said: str) -> None:
    train(settings("train.steps=1"))
    with pytest.raises(ConfigError, match=said):
        plan.make(settings("output.name=two", "network.weights=one", more))


def test_missing_layers_are_told(settings: Settings) -> None:
    _, file = train(settings("train.steps=1", "network.preset=attn-only"))
    with pytest.raises(ConfigError, match="layers are not in the file"):
        plan.make(settings("output.name=two", f"network.weights={file}"))


def test_the_estimate_does_without(settings: Settings) -> None:
    run = settings("network.weights=nothing")
    assert plan.make(run, need_dataset=False).sizes.parameters
    assert replace(run.network, weights="") != run.network


def test_a_file_that_says_nothing_of_itself_will_do(settings: Settings) -> None:
    """Without any metadata: names and shapes are enough."""
    _, file = train(settings("train.steps=1", "network.preset=attn-only",
                             "network.text_encoder=false", "output.dtype=fp32"))
    other = file.with_name("copy.safetensors")
    save_file(load_file(file), other)  # without any metadata
    made = plan.make(settings("output.name=two", "network.preset=attn-only",
                              "network.text_encoder=false", f"network.weights={other}"))
    assert all(each.source for each in made.assignments)
