"""Block swap: weights are where they wait but while their block is at work, and nothing changes.

On a CPU a copy stands for what would be on the GPU.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lycoris import algorithms, families, memory, plan, relief, swapping
from lycoris.errors import ConfigError
from lycoris.settings import Config
from lycoris.swapping import Swap
from lycoris.trainer import Session

Settings = Callable[..., Config]
SWAP = ("train.gradient_checkpointing=true", "train.block_swap=1")


class Copies:
    """Every copy that was made, while it lives."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.made: list[weakref.ref] = []
        self.most = 0
        real = Swap._fetch

        def fetch(swap: Swap, homes: list) -> None:
            real(swap, homes)
            for module, key, home in homes:
                assert module._parameters[key].data_ptr() != home.data_ptr()
                self.made.append(weakref.ref(module._parameters[key]))
            self.most = max(self.most, sum(each.numel() for each in self.alive))

        monkeypatch.setattr(Swap, "_fetch", fetch)

    @property
    def alive(self) -> list[torch.Tensor]:
        return [each for ref in self.made if (each := ref()) is not None]


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[Copies]:
    """Swapping happens on the CPU too."""
    monkeypatch.setattr(swapping, "happens", lambda run, device: run.train.block_swap > 0)
    return Copies(monkeypatch)


def prepared(run: Config) -> Session:
    session = Session(plan.make(run), Path(run.output.folder) / run.output.name, lambda e: None)
    session.prepare(lambda: set())
    return session


def learned(session: Session) -> dict[str, torch.Tensor]:
    """The file's tensors after a step."""
    session.advance()
    session.network.restore()
    return session.network.file_tensors()


@pytest.mark.parametrize("algo", list(algorithms.catalogue()))
def test_the_same_steps_and_no_copy_outlives_its_block(settings: Settings, copies: Copies,
                                                       algo: str) -> None:
    own = (f"network.algo={algo}", "network.dim=4", "train.max_norm=1",
           "train.gradient_checkpointing=true", "network.text_encoder=false")
    session = prepared(settings("output.name=swapped", *own, "train.block_swap=1"))
    blocks = [block for name, block in session.model.unet.named_modules()
              if (place := swapping.BLOCK.match(f"{name}.")) and place[1] == name]
    waiting = [weight for block in blocks for weight in block.parameters()]
    assert waiting and all(hasattr(weight, "works_on") for weight in waiting)
    loss = session.loss(0, 0)
    assert copies.made and not copies.alive, "after the forward pass"
    loss.backward()
    assert not copies.alive
    assert copies.most == max(sum(p.numel() for p in block.parameters()) for block in blocks)
    held = [weight for block in blocks for weight in block.parameters()]
    assert all(one is other for one, other in zip(held, waiting, strict=True))
    session.network.zero_grad(set_to_none=True)
    swapped = learned(session)
    plain = learned(prepared(settings("output.name=plain", *own)))
    assert plain.keys() == swapped.keys()
    assert all(torch.equal(plain[name], swapped[name]) for name in plain)


def test_a_part_of_the_blocks_with_dora(settings: Settings, copies: Copies) -> None:
    own = ("network.dora_wd=true", "train.gradient_checkpointing=true")
    swapped = learned(prepared(settings("output.name=swapped", *own, "train.block_swap=0.5")))
    assert copies.made and not copies.alive
    plain = learned(prepared(settings("output.name=plain", *own)))
    assert all(torch.equal(plain[name], swapped[name]) for name in plain)


@pytest.mark.parametrize(("wrong", "words"), [
    ("train.gradient_checkpointing=false", "without train.gradient_checkpointing"),
    ("model.dtype=nf4", "weights of nf4"), ("train.compile=true", "compiled blocks")])
def test_what_would_save_nothing_is_refused(settings: Settings, wrong: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        plan.make(settings(*SWAP, wrong))
    assert "train.block_swap" in caught.value.problems


def test_the_largest_blocks_go_first() -> None:
    sizes = {"a": 10, "b": 30, "c": 20, "d": 40}
    assert swapping.chosen(sizes, 0) == []
    assert swapping.chosen(sizes, 0.3) == ["d"]
    assert swapping.chosen(sizes, 0.7) == ["d", "b"]
    assert swapping.chosen(sizes, 1) == ["d", "b", "c", "a"]


def test_its_numbers_are_the_blocks(small_base: Path) -> None:
    family = families.open_base(small_base)
    model = family.load(torch.device("cpu"), torch.float32)
    real = {name: sum(p.numel() for p in module.parameters())
            for name, module in model.unet.named_modules()
            if (place := swapping.BLOCK.match(f"{name}.")) and place[1] == name}
    assert swapping.sizes(layer for layer in family.layers if layer.part == "unet") == real


def test_memory_and_its_savings_know_it(settings: Settings) -> None:
    def planned(*own: str) -> plan.Plan:
        return plan.make(settings("model.family=sd15", "dataset.resolution=512",
                                  "dataset.bucket_step=64", "train.gradient_checkpointing=true",
                                  *own), need_dataset=False)

    def weights(one: plan.Plan, device: str) -> dict[str, int]:
        return {item.name: item.bytes for item in memory.predict(one, device).phases[0].items
                if item.kind == "weights" or "swapped" in item.name}

    made, swapped = planned(), planned("train.block_swap=1")
    assert weights(made, "cpu") == weights(swapped, "cpu")
    before, after = weights(made, "cuda"), weights(swapped, "cuda")
    blocks = swapping.sizes(layer for layer in made.family.layers if layer.part == "unet")
    assert before["UNet weights"] - after["UNet weights"] == 2 * sum(blocks.values())  # in bf16
    assert after["a swapped block's weights"] == 2 * max(blocks.values())
    offered = [saving.values for saving in relief.savings(made, "cuda")[0]]
    assert any("train.block_swap" in values for values in offered)
    assert not any("train.block_swap" in saving.values
                   for saving in relief.savings(swapped, "cuda")[0])
    said = relief.after_failure(made, "loading the model")
    assert any("train.block_swap=1.0 (about 1," in text for text in said)
    assert relief.same_result(made.config) == {"train.split": 2}
    assert relief.same_result(planned("train.batch_size=1").config) == {"train.block_swap": 1.0}
    assert relief.same_result(swapped.config) == {"train.split": 2}
