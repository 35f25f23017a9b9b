"""We read PEFT's folders, and PEFT reads ours, with the same forward.

Left out: PEFT's LoRA on grouped and dilated convolutions (its B alone is grouped, which is no
change of the layer's weight; its A knows no dilation); its LoKr with a full large block, or with
both blocks split, on 1-D kernels (its product lets the wrong axes meet, or raises; we read such a
file as the Kronecker product it is meant to be).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peers
import pytest
import specimens
from specimens import POINT
from torch import Tensor

import lycoris
from lycoris import dialects, tensorfile
from lycoris.network import LycorisNetwork

peers.need("PEFT")

TOLERANCE = 1e-4  # of outputs around 1
CONVS = ("body.conv_1", "body.strided", "body.row")
LORA = (*POINT, *CONVS, "body.volume")
OTHERS = (*POINT, *CONVS, "body.dilated", "body.grouped")  # PEFT's LoHa and LoKr take no 3-D
FLAT = tuple(name for name in OTHERS if name != "body.row")
IA3 = tuple(name for name in LORA if name != "body.row")  # nor its (IA)^3 1-D
PATTERNS = {"rank_pattern": {"linear": 3, "body.row": 1}, "alpha_pattern": {"^body.point": 5}}
EFFECTIVE = {"use_effective_conv2d": True}


@dataclass(frozen=True)
class Case:
    """A PEFT config and the layers it is put on."""

    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    layers: tuple[str, ...] = OTHERS


def lora(**settings: Any) -> Case:
    return Case("LoraConfig", {"r": 2, "lora_alpha": 3, **settings}, LORA)


def loha(**settings: Any) -> Case:
    return Case("LoHaConfig", {"r": 2, "alpha": 3, **settings})


def lokr(layers: tuple[str, ...] = OTHERS, **settings: Any) -> Case:
    return Case("LoKrConfig", {"r": 2, "alpha": 3, **settings}, layers)


THEIRS = {
    "lora": lora(), "lora, rank-stabilised": lora(use_rslora=True), "lora, dora": lora(
        use_dora=True), "lora, patterns": lora(**PATTERNS),
    "lora, patterns, rank-stabilised": lora(**PATTERNS, use_rslora=True),
    "lora, all of it": lora(**PATTERNS, use_rslora=True, use_dora=True),
    "loha": loha(), "loha, effective": loha(**EFFECTIVE), "loha, patterns": loha(**PATTERNS),
    "lokr": lokr(), "lokr, factor 4": lokr(decompose_factor=4),
    "lokr, factor above the root": lokr(decompose_factor=8),  # PEFT's small block is the larger
    "lokr, effective": lokr(**EFFECTIVE, decompose_factor=2),
    "lokr, both split": lokr(r=1, decompose_both=True),
    "lokr, both split, effective": lokr(FLAT, r=1, decompose_both=True, **EFFECTIVE),
    # of outputs with a bias PEFT scales that too; it is refused here
    "ia3": Case("IA3Config", {"feedforward_modules": [n for n in IA3 if n != "body.plain"]}, IA3),
    "lokr, both full": lokr(FLAT, r=64), "lokr, patterns": lokr(**PATTERNS, decompose_factor=2),
}
# Ours: (algorithm, create_lycoris's settings, what PEFT's config says of it, layers). PEFT's core
# has a side more on 1-D kernels, and a factor above the root splits another way than ours.
OURS = {
    "lora": ("lora", {}, {"r": 2, "lora_alpha": 2}, LORA),
    "lora, rank-stabilised": ("lora", {"rs_lora": True}, {"r": 2, "lora_alpha": 2}, LORA),
    "lora, tucker": ("lora", {"use_tucker": True}, {"r": 2, "lora_alpha": 2}, LORA),
    "lora, dora": ("lora", {"dora_wd": True}, {"r": 2, "lora_alpha": 2, "use_dora": True}, LORA),
    "loha": ("loha", {}, {"r": 2, "alpha": 1}, OTHERS),
    "loha, tucker": ("loha", {"use_tucker": True}, {"r": 2, "alpha": 1, **EFFECTIVE}, FLAT),
    "lokr": ("lokr", {}, {"r": 2, "alpha": 1}, OTHERS),
    "lokr, factor 2": ("lokr", {"factor": 2}, {"r": 2, "alpha": 1, "decompose_factor": 2}, OTHERS),
    "lokr, tucker": ("lokr", {"factor": 2, "use_tucker": True},
                     {"r": 2, "alpha": 1, "decompose_factor": 2, **EFFECTIVE}, FLAT),
    "lokr, full": ("lokr", {"factor": 2, "full_matrix": True},
                   {"r": 64, "alpha": 64, "decompose_factor": 2}, FLAT),
}


def forward(network: LycorisNetwork, root: Any, layers: tuple[str, ...]) -> dict[str, Tensor]:
    network.apply_to().eval()
    return specimens.outputs(root, layers)


def write(name: str, folder: Path) -> dict[str, Tensor]:
    """Our network with random weights in PEFT's folder, and its forward."""
    algo, settings, config, layers = OURS[name]
    root = specimens.model(layers)
    network = lycoris.create_lycoris(root, linear_dim=2, linear_alpha=1, algo=algo, **settings)
    specimens.stir(network.get_trainable_params(), 5)
    groups = [(adapter.layer, {key.removeprefix(f"{adapter.assignment.key}."): tensor for
                               key, tensor in adapter.file_tensors().items()})
              for adapter in network]
    if algo == "lora":  # the scale goes into lora_B
        tensors = dialects.rewrite(groups, lambda layer, _: f"base_model.model.{layer.name}",
                                   "diffusers")
    else:
        tensors = {f"base_model.model.{layer.name}.{suffix}": tensor for layer, group in groups
                   for suffix, tensor in group.items() if suffix != "alpha"}
    folder.mkdir()
    tensorfile.write(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(
        {"peft_type": algo.upper(), "target_modules": list(layers), **config}), "utf-8")
    return forward(network, root, layers)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("peft")


@pytest.fixture(scope="module")
def ours(folder: Path) -> dict[str, dict[str, Tensor]]:
    """{case: the forward of what we wrote to <case>.ours}."""
    return {name: write(name, folder / f"{name}.ours") for name in OURS}


@pytest.fixture(scope="module")
def answers(folder: Path, ours: dict) -> peers.Answers:
    """Their forward of our folders, "ours:<case>", and of theirs, "theirs:<case>"."""
    jobs: dict[str, dict[str, Any]] = {
        f"ours:{name}": {"do": "read_peft", "folder": f"{name}.ours", "layers": OURS[name][3]}
        for name in OURS}
    for seed, (name, case) in enumerate(THEIRS.items()):
        jobs[f"theirs:{name}"] = {"do": "write_peft", "folder": f"{name}.theirs", "seed": seed,
                                  "layers": case.layers, "kind": case.kind,
                                  "settings": case.settings}
    return peers.ask(folder, jobs)


def compare(ours: dict[str, Tensor], theirs: dict[tuple[float, str], Tensor],
            layers: tuple[str, ...]) -> None:
    plain = specimens.outputs(specimens.model(layers), layers)
    assert set(ours) == {layer for _, layer in theirs} == set(layers)
    for layer, value in ours.items():
        error = (value - theirs[1.0, layer]).abs().max().item()
        moved = (value - plain[layer]).abs().max().item()
        assert error < TOLERANCE, f"{layer} differs by {error:.3g} of {moved:.3g}"
        assert moved > 100 * TOLERANCE, f"the adapter does nothing to {layer}"


@pytest.mark.parametrize("name", THEIRS)
def test_we_read_theirs(name: str, folder: Path, answers: peers.Answers) -> None:
    case = THEIRS[name]
    theirs = answers.of(f"theirs:{name}")
    root = specimens.model(case.layers)
    network, _ = lycoris.create_lycoris_from_weights(1.0, folder / f"{name}.theirs", root)
    assert len(network) == len(case.layers)
    compare(forward(network, root, case.layers), theirs, case.layers)


@pytest.mark.parametrize("name", OURS)
def test_they_read_ours(name: str, ours: dict, answers: peers.Answers) -> None:
    compare(ours[name], answers.of(f"ours:{name}"), OURS[name][3])
