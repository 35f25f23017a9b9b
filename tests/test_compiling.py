"""torch.compile of the denoiser's blocks: the same steps, and errors that say the way out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lycoris import compiling, plan
from lycoris.errors import ConfigError
from lycoris.settings import Config
from lycoris.trainer import Session

Settings = Callable[..., Config]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def after_steps(run: Config, steps: int) -> tuple[list[float], list[torch.Tensor]]:
    """(losses, the adapter's tensors) after some steps."""
    losses: list[float] = []
    session = Session(plan.make(run), Path(run.output.folder) / run.output.name,
                      lambda event: losses.append(getattr(event, "loss", None)))
    session.prepare(lambda: set())
    for _ in range(steps):
        session.advance()
    session.network.restore()
    return ([loss for loss in losses if loss is not None],
            [p.detach().clone() for p in session.network.parameters()])


def test_compiled_blocks_take_the_same_steps(settings: Settings,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as for the real backend, which would take a minute."""
    few = ("network.preset=attn-only", "network.text_encoder=false", "train.batch_size=1")
    counted: list[int] = []
    real = compiling.compile_blocks

    def traced(denoiser: torch.nn.Module, device: torch.device) -> None:
        counted.append(real(denoiser, device, backend="eager"))
        names = [name for name, _ in denoiser.named_parameters()]
        assert not any("_orig_mod" in name for name in names)

    plain = after_steps(settings("output.name=plain", *few), 1)
    monkeypatch.setattr(compiling, "compile_blocks", traced)
    made = after_steps(settings("output.name=made", "train.compile=true", *few), 1)
    assert counted == [5]  # two down, the middle, two up
    assert made[0] == pytest.approx(plain[0], rel=1e-4)
    assert torch._dynamo.utils.counters["stats"]["calls_captured"] > 0
    for one, two in zip(made[1], plain[1], strict=True):
        assert torch.allclose(one, two, atol=2e-3)


def test_what_cannot_compile_says_so(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="does not compile for mps"):
        compiling.check(torch.device("mps"))
    with monkeypatch.context() as bare:
        bare.setattr(compiling.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ConfigError, match="Triton"):
            compiling.check(torch.device("cuda"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    run = settings("train.compile=true")
    session = Session(plan.make(run), Path(run.output.folder) / "one", lambda event: None)
    with pytest.raises(ConfigError, match="no C.. compiler"):
        session.run(lambda: set())


def test_a_failed_compilation_is_an_error_of_ours(settings: Settings,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Session) -> None:
        raise torch._dynamo.exc.InternalTorchDynamoError("it broke\nin many lines")

    monkeypatch.setattr(Session, "advance", broken)
    monkeypatch.setattr(compiling, "compile_blocks", lambda *given: 0)
    run = settings("train.compile=true")
    session = Session(plan.make(run), Path(run.output.folder) / "one", lambda event: None)
    with pytest.raises(ConfigError, match=r"could not be compiled: it broke\. Set train.compile"):
        session.run(lambda: set())
