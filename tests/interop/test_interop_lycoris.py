"""lycoris-lora reads our files and we read its files, with the same forward either way.

What is compared is the attached forward of both. Left out, because lycoris-lora 4.1.3 cannot:
T-LoRA on kernels (it crashes), grouped GLoRA and (IA)^3 on the input (they want all input
channels), norms without a bias, SVDiff (it has none), strengths other than 1 under DoRA (at 0 it
leaves W + dW) and of rescaled rotations (it raises).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peers
import pytest
import specimens
import torch
from specimens import ALL, NORMS, POINT, UNGROUPED
from torch import Tensor

import lycoris

peers.need("lycoris-lora")

DIM, ALPHA = 2, 1  # alpha is not dim, so that the scale counts
TOLERANCE = 1e-4  # of outputs around 1


@dataclass(frozen=True)
class Case:
    """One adapter over `layers`; `settings` are create_lycoris's, ours, over DIM and ALPHA."""

    algo: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    layers: tuple[str, ...] = ALL
    strengths: tuple[float, ...] = (1.0, 0.6)

    def theirs(self) -> dict[str, Any]:
        """The same settings as lycoris-lora's network calls them."""
        settings = {"linear_dim": DIM, "linear_alpha": ALPHA, **self.settings}
        settings.setdefault("conv_dim", settings["linear_dim"])
        settings.setdefault("conv_alpha", settings["linear_alpha"])
        names = {"linear_dim": "lora_dim", "linear_alpha": "alpha", "conv_dim": "conv_lora_dim",
                 "dora_wd": "weight_decompose", "wd_on_output": "wd_on_out",
                 "directions": "sig_type"}
        return {"network_module": self.algo, "warn_on_unmatched": False, **{
            names.get(name, name): value for name, value in settings.items()
            if name != "store_start"}}


def dora(algo: str, **settings: Any) -> Case:
    return Case(algo, {"dora_wd": True, **settings}, ALL, (1.0,))


def rotations(algo: str, **settings: Any) -> Case:
    """Dim 10 is the least that splits 80 and 40 outputs into BOFT's powers of two."""
    return Case(algo, {"linear_dim": 10, **settings}, ALL,
                (1.0,) if settings.get("rescaled") else (1.0, 0.6))


CASES = {
    "lora": Case("lora"),
    "lora, tucker": Case("lora", {"use_tucker": True}),
    "lora, rank-stabilised": Case("lora", {"rs_lora": True}),
    "lora, scalar": Case("lora", {"use_scalar": True}),
    "lora, conv dim": Case("lora", {"conv_dim": 3, "conv_alpha": 2}),
    "lora, dora": dora("lora"),
    "lora, dora, tucker": dora("lora", use_tucker=True),
    "loha": Case("loha"),
    "loha, tucker": Case("loha", {"use_tucker": True}),
    "loha, rank-stabilised": Case("loha", {"rs_lora": True}),
    "loha, scalar": Case("loha", {"use_scalar": True}),
    "loha, dora": dora("loha"),
    "loha, dora, tucker": dora("loha", use_tucker=True),
    "lokr": Case("lokr"),
    "lokr, factor 2": Case("lokr", {"factor": 2}),
    "lokr, factor 4": Case("lokr", {"factor": 4}),
    "lokr, full": Case("lokr", {"full_matrix": True}),
    "lokr, full by a huge dim": Case("lokr", {"linear_dim": 100_000, "factor": 4}),
    "lokr, both split": Case("lokr", {"linear_dim": 1, "decompose_both": True}),
    "lokr, rank-stabilised": Case("lokr", {"rs_lora": True}),
    "lokr, scalar": Case("lokr", {"use_scalar": True}),
    "lokr, dora": dora("lokr"),
    "lokr, dora, full": dora("lokr", full_matrix=True, factor=4),
    "glora": Case("glora", {}, UNGROUPED),
    "glora, scalar": Case("glora", {"use_scalar": True}, UNGROUPED),
    "full": Case("full"),
    "norms": Case("lora", {"train_norm": True}, (*ALL, *NORMS)),
    "diag-oft": rotations("diag-oft"),
    "diag-oft, constraint": rotations("diag-oft", constraint=0.01),
    "diag-oft, rescaled": rotations("diag-oft", constraint=0.02, rescaled=True),
    "boft": rotations("boft"),
    "boft, constraint": rotations("boft", constraint=0.01),
    "boft, rescaled": rotations("boft", constraint=0.02, rescaled=True),
}
# The loader of lycoris-lora fails on these, its own files too; its modules, made as for training
# with the same settings, take the tensors.
UNLOADABLE = {
    "lora, dora on the input": dora("lora", wd_on_output=False),
    "loha, dora on the input": dora("loha", wd_on_output=False),
    "lokr, dora on the input": dora("lokr", wd_on_output=False),
    "lokr, unbalanced": Case("lokr", {"unbalanced_factorization": True}),
    "lokr, unbalanced, factor 4": Case("lokr", {"unbalanced_factorization": True, "factor": 4}),
    "lokr, tucker": Case("lokr", {"use_tucker": True, "factor": 2}),
    "lokr, tucker, both split": Case("lokr", {"linear_dim": 1, "use_tucker": True,
                                              "decompose_both": True}),
    "ia3": Case("ia3"),
    "ia3, on the input": Case("ia3", {"train_on_input": True}, UNGROUPED),
}
# Read by them only: PiSSA and DyLoRA are a LoRA for them.
OURS = {
    "lora, pissa": Case("lora", {"init": "pissa"}),
    "dylora": Case("dylora", {"block_size": 1}),
    "tlora": Case("tlora", {"directions": "principal", "store_start": False}, POINT),
}
THEIRS = {"tlora": Case("tlora", {"sig_type": "principal"}, POINT)}
# What lycoris-lora computes while training is not what its file says. We read the file, as its own
# loader does: DyLoRA trains at block_size times the scale; GLoRA's alpha and that of a LoKr of two
# full blocks leave rank-stabilisation out; T-LoRA's file lacks the start, so it is taken to be the
# principal directions of the base.
AS_WRITTEN = {
    "dylora": Case("dylora", {"block_size": 1}),
    "glora, rank-stabilised": Case("glora", {"rs_lora": True}, UNGROUPED),
    "lokr, full, rank-stabilised": Case("lokr", {"rs_lora": True, "full_matrix": True}),
    "tlora, last": Case("tlora", {"sig_type": "last"}, POINT),
    "tlora, random": Case("tlora", {"use_data_init": False}, POINT),
    **{f"{name}, in fp16": CASES[name] for name in ("lora", "loha", "lokr", "full", "diag-oft")},
}


def write(case: Case, file: Path, seed: int) -> dict[tuple[float, str], Tensor]:
    """Our file of a network with random weights, and its forward."""
    root = specimens.model(case.layers)
    settings = {"linear_dim": DIM, "linear_alpha": ALPHA, **case.settings}
    network = lycoris.create_lycoris(root, algo=case.algo, **settings)
    specimens.stir(network.get_trainable_params(), seed)
    network.save_weights(file)
    return forward(network, root, case)


def forward(network: Any, root: torch.nn.Module, case: Case) -> dict[tuple[float, str], Tensor]:
    network.apply_to().eval()
    found = {}
    for strength in case.strengths:
        network.set_multiplier(strength)
        for name, value in specimens.outputs(root, case.layers).items():
            found[strength, name] = value
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lycoris-lora")


@pytest.fixture(scope="module")
def ours(folder: Path) -> dict[str, dict[tuple[float, str], Tensor]]:
    """{case: the forward of what we wrote to <case>.ours.safetensors}."""
    return {name: write(case, folder / f"{name}.ours.safetensors", seed)
            for seed, (name, case) in enumerate({**CASES, **UNLOADABLE, **OURS}.items())}


@pytest.fixture(scope="module")
def answers(folder: Path, ours: dict) -> peers.Answers:
    """Their forward of our files, "ours:<case>", and of theirs, "theirs:<case>"."""
    jobs: dict[str, dict[str, Any]] = {}
    for name, case in {**CASES, **UNLOADABLE, **OURS}.items():
        job = {"file": f"{name}.ours.safetensors", "layers": case.layers,
               "multipliers": case.strengths}
        jobs[f"ours:{name}"] = {"do": "read_lycoris", **job} if name not in UNLOADABLE else {
            "do": "build_lycoris", **job, "settings": case.theirs()}
    for seed, (name, case) in enumerate({**CASES, **UNLOADABLE, **THEIRS, **AS_WRITTEN}.items()):
        jobs[f"theirs:{name}"] = {
            "do": "write_lycoris", "file": f"{name}.theirs.safetensors", "layers": case.layers,
            "multipliers": case.strengths, "settings": case.theirs(), "seed": seed,
            "reload": name in AS_WRITTEN, "dtype": "float16" if name.endswith("fp16") else ""}
    return peers.ask(folder, jobs)


def test_their_package_is_out_of_sight() -> None:
    """It lies beside PEFT, which tests do import; that folder comes last."""
    assert Path(lycoris.__file__).parent == peers.ROOT / "lycoris"
    loaded = [name for name, module in list(sys.modules.items())
              if str(getattr(module, "__file__", "")).startswith(f"{peers.FOLDER / 'lycoris'}")]
    assert loaded == []


def compare(ours: dict[tuple[float, str], Tensor], theirs: dict[tuple[float, str], Tensor],
            case: Case) -> None:
    plain = specimens.outputs(specimens.model(case.layers), case.layers)
    assert ours.keys() == theirs.keys() and len(ours) == len(case.layers) * len(case.strengths)
    for (strength, layer), value in ours.items():
        error = (value - theirs[strength, layer]).abs().max().item()
        moved = (value - plain[layer]).abs().max().item()
        assert error < TOLERANCE, f"{layer} at {strength} differs by {error:.3g} of {moved:.3g}"
        assert moved > 100 * TOLERANCE, f"the adapter does nothing to {layer}"


@pytest.mark.parametrize("name", {**CASES, **UNLOADABLE, **OURS})
def test_they_read_ours(name: str, ours: dict, answers: peers.Answers) -> None:
    case = {**CASES, **UNLOADABLE, **OURS}[name]
    compare(ours[name], answers.of(f"ours:{name}"), case)


@pytest.mark.parametrize("name", {**CASES, **UNLOADABLE, **THEIRS, **AS_WRITTEN})
def test_we_read_theirs(name: str, folder: Path, answers: peers.Answers) -> None:
    case = {**CASES, **UNLOADABLE, **THEIRS, **AS_WRITTEN}[name]
    theirs = answers.of(f"theirs:{name}")
    root = specimens.model(case.layers)
    network, _ = lycoris.create_lycoris_from_weights(1.0, folder / f"{name}.theirs.safetensors",
                                                     root)
    assert len(network) == len(case.layers)
    compare(forward(network, root, case), theirs, case)
