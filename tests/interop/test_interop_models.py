"""Whole adapters of the embedded model: what diffusers paints with ours, what lycoris-lora makes of
ours as kohya's names call the layers, what PEFT makes of ours once converted, and what we make of
one that lycoris.kohya wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import peers
import pytest
import specimens
import torch
from torch import Tensor

from lycoris import assignments, config, contestants, convert, families, plan, sampling, trainer
from lycoris.families import Model
from lycoris.network import LycorisNetwork
from lycoris.progress import Progress
from lycoris.settings import NetworkConfig

peers.need("lycoris-lora", "PEFT")

BASE = peers.ROOT / "assets" / "tiny-sd"
PICTURES = peers.ROOT / "assets" / "datasets" / "zorb"
PROMPT, SEED = "a zorb on grass", 3
HOW = sampling.Settings(steps=6, guidance=4.0, sampler="DDIM", width=64, height=64)
TOLERANCE = 1e-4
TRAINED = ("lora", "dylora")
FOR_DIFFUSERS = {"loha": {"algo": "lora"}, "lora, tucker": {"dialect": "diffusers"}}  # converted
# Over preset full with dim 4 and alpha 2, in kohya's keys.
OURS: dict[str, dict[str, Any]] = {
    "lora": {}, "loha": {"options": {"use_tucker": True}},
    "lokr": {}, "lora, dora": {"dora_wd": True},
    "lora, tucker": {"options": {"use_tucker": True}}, "lora, norms": {"train_norm": True},
    "full": {"algo": "full"}, "diag-oft": {"algo": "diag-oft", "dim": 8},
    "glora": {"algo": "glora"}}
CONVERTED = ("lora", "lora, dora", "lora, tucker", "loha", "lokr")  # to PEFT's folders, of OURS
# lycoris.kohya's arguments, as its trainers pass them.
THEIRS: dict[str, dict[str, Any]] = {
    "lora": {}, "lora, dora": {"dora_wd": True}, "loha": {"algo": "loha"},
    "lokr": {"algo": "lokr", "factor": "4"}, "full": {"algo": "full"},
    "lora, norms": {"train_norm": "True"}, "boft": {"algo": "boft", "network_dim": 16}}


def network_of(name: str) -> NetworkConfig:
    settings = {"algo": name.partition(",")[0], "preset": "full", "dim": 4, "alpha": 2.0,
                **OURS[name]}
    return NetworkConfig(**settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def model() -> Model:
    return families.open_base(BASE).load(torch.device("cpu"), torch.float32)


def outputs(model: Model) -> dict[str, Tensor]:
    return specimens.painted(model.modules["unet"], model.modules["text_encoder"])


def with_file(file: Path, model: Model) -> LycorisNetwork:
    """The file on the model, attached, all of it."""
    family = families.open_base(BASE)
    network, match = contestants.load(contestants.Contestant("x", file), family, model)
    assert network is not None and match is not None and match.whole
    return network.apply_to()


def train(algo: str, file: Path) -> None:
    """The file that a short training run writes."""
    run = config.load(None, [
        f"model.base={BASE}", f"dataset.folder={PICTURES}", f"output.folder={file.parent}",
        f"output.name={algo}", f"network.algo={algo}", "network.preset=full", "network.dim=4",
        "network.alpha=2", "train.steps=3", "train.batch_size=2", "dataset.resolution=32",
        "optimizer.lr=0.05", "sample.every=0",
        *(["network.options.block_size=2"] if algo == "dylora" else [])])
    where = file.parent / algo
    done = trainer.run(plan.make(run), where, lambda event: None, set)
    (where / done.path).rename(file)


def stirred(settings: NetworkConfig, model: Model, by: float = 0.1) -> LycorisNetwork:
    """A network over the embedded model with random weights."""
    family = families.open_base(BASE)
    network = LycorisNetwork(assignments.assign_family(family, settings), model.modules)
    specimens.stir(network.get_trainable_params(), 2, by)
    return network.eval()


def to(file: Path, out: Path, **settings: Any) -> None:
    """The file converted for other programs."""
    convert.run(convert.Convert(file, str(out), base=BASE, **settings), Progress())


@pytest.fixture(scope="module")
def ours(folder: Path, model: Model) -> Mapping[str, Mapping[str, Tensor]]:
    """{case: the model's outputs under what we wrote to <case>.ours.safetensors}."""
    found = {}
    for name in OURS:
        network = stirred(network_of(name), model)
        network.save_weights(folder / f"{name}.ours.safetensors")
        network.apply_to()
        found[name] = outputs(model)
        network.restore()
    return found


@pytest.fixture(scope="module")
def answers(folder: Path, ours: dict, model: Model) -> peers.Answers:
    for name in TRAINED:
        train(name, folder / f"{name}.paint.safetensors")
    for name, how in FOR_DIFFUSERS.items():
        file = folder / f"{name}.safetensors"
        stirred(network_of(name), model, 0.3).save_weights(file)
        to(file, folder / f"{name}.paint.safetensors", **how)
    for name in CONVERTED:
        to(folder / f"{name}.ours.safetensors", folder / f"{name}.peft", dialect="peft")
    base = {"base": str(BASE)}
    jobs: dict[str, dict[str, Any]] = {
        f"ours:{name}": {"do": "read_model", "file": f"{name}.ours.safetensors", **base}
        for name in OURS}
    for seed, (name, settings) in enumerate(THEIRS.items()):
        jobs[f"theirs:{name}"] = {"do": "write_model", "file": f"{name}.theirs.safetensors",
                                  "settings": settings, "seed": seed, **base}
    for name in CONVERTED:
        jobs[f"peft:{name}"] = {"do": "read_peft_model", "folder": f"{name}.peft", **base}
    for name in (*TRAINED, *FOR_DIFFUSERS):
        jobs[f"paint:{name}"] = {
            "do": "paint", "file": f"{name}.paint.safetensors", "prompt": PROMPT, "seed": SEED,
            "steps": HOW.steps, "guidance": HOW.guidance, "side": HOW.width, **base}
    return peers.ask(folder, jobs)


def compare(ours: Mapping[str, Tensor], theirs: Mapping[tuple[float, str], Tensor],
            model: Model) -> None:
    plain = outputs(model)
    assert set(ours) == set(plain) == {name for _, name in theirs}
    for name, value in ours.items():
        error = (value - theirs[1.0, name]).abs().max().item()
        moved = (value - plain[name]).abs().max().item()
        assert error < TOLERANCE < moved / 100, f"{name} differs by {error:.3g} of {moved:.3g}"


@pytest.mark.parametrize("name", OURS)
def test_lycoris_lora_reads_a_whole_model(name: str, ours: Mapping, answers: peers.Answers,
                                          model: Model) -> None:
    compare(ours[name], answers.of(f"ours:{name}"), model)


@pytest.mark.parametrize("name", CONVERTED)
def test_peft_reads_a_converted_model(name: str, ours: Mapping, answers: peers.Answers,
                                      model: Model) -> None:
    compare(ours[name], answers.of(f"peft:{name}"), model)


@pytest.mark.parametrize("name", THEIRS)
def test_we_read_what_lycoris_kohya_writes(name: str, folder: Path, answers: peers.Answers,
                                           model: Model) -> None:
    theirs = answers.of(f"theirs:{name}")
    network = with_file(folder / f"{name}.theirs.safetensors", model)
    found = outputs(model)
    network.restore()
    compare(found, theirs, model)


@pytest.mark.parametrize("name", (*TRAINED, *FOR_DIFFUSERS))
def test_diffusers_paints_the_same_picture(name: str, folder: Path, answers: peers.Answers,
                                           model: Model) -> None:
    (theirs,) = answers.of(f"paint:{name}").values()
    plain = picture(model)
    network = with_file(folder / f"{name}.paint.safetensors", model)
    ours = picture(model)
    network.restore()
    assert (ours - theirs).abs().max() < 2, "half a level by rounding, and one in the arithmetic"
    assert (ours - plain).abs().mean() > 10, "the adapter shows"


def picture(model: Model) -> Tensor:
    """(3, h, w) in 0..255, by our own sampling."""
    (image,) = sampling.paint(model, [sampling.Job(PROMPT, SEED)], HOW)
    return torch.from_numpy(numpy.array(image)).permute(2, 0, 1).float()
