"""Properties over the registry: every algorithm, on every kind of layer, with every option.

A new file under lycoris/algorithms is covered the moment it exists.
"""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lycoris import algorithms, knobs, tensorfile
from lycoris.adapterfile import AdapterFile, match
from lycoris.algorithms import Algorithm, Layer
from lycoris.assignments import Assignment, Extras
from lycoris.errors import AdapterError, ConfigError
from lycoris.network import LycorisNetwork

DIM, ALPHA = 4, 2.0
DIMS = {"boft": 10, "lokr": 2}  # the smallest that splits 10 and 20; the largest that keeps ranks

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(12, 20), (3, 5, 12)),
    "linear without bias": (nn.Linear(12, 20, bias=False), (3, 12)),
    "conv 3x3": (nn.Conv2d(6, 10, 3, padding=1), (2, 6, 7, 7)),
    "conv 3x3 strided": (nn.Conv2d(6, 10, 3, stride=2, padding=1), (2, 6, 8, 8)),
    "conv 3x3 dilated": (nn.Conv2d(6, 10, 3, padding=2, dilation=2), (2, 6, 7, 7)),
    "conv 3x3 grouped": (nn.Conv2d(6, 10, 3, padding=1, groups=2), (2, 6, 7, 7)),
    "conv 3x3 circular": (nn.Conv2d(6, 10, 3, padding=1, padding_mode="circular"), (2, 6, 7, 7)),
    "conv 1x1": (nn.Conv2d(6, 10, 1), (2, 6, 7, 7)),
    "conv1d": (nn.Conv1d(6, 10, 3, padding=1), (2, 6, 9)),
    "conv3d": (nn.Conv3d(4, 6, 3, padding=1), (1, 4, 5, 5, 5)),
    "group norm": (nn.GroupNorm(2, 6), (2, 6, 5)),
    "layer norm": (nn.LayerNorm(8), (3, 8)),
    "layer norm without bias": (nn.LayerNorm(8, bias=False), (3, 8)),
}
EXTRAS = {
    "plain": Extras(), "dora": Extras(dora=True),
    "dora on input": Extras(dora=True, dora_on_output=False),
    "scalar": Extras(use_scalar=True), "scalar and dora": Extras(use_scalar=True, dora=True),
}


def kind_of(module: nn.Module) -> str:
    if isinstance(module, nn.Linear):
        return "linear"
    return "norm" if isinstance(module, (nn.GroupNorm, nn.LayerNorm)) else "conv"


MORE_OPTIONS: dict[str, list[dict[str, Any]]] = {
    "lokr": [{"factor": 2}, {"factor": 2, "full_matrix": True},
             {"factor": 5, "decompose_both": True, "use_tucker": True}],
    "diag-oft": [{"constraint": 0.01}, {"constraint": 0.01, "rescaled": True}],
    "boft": [{"constraint": 0.01}],
    "tlora": [{"directions": "principal"}, {"directions": "random"},
              {"directions": "principal", "store_start": False}],
    "dylora": [{"block_size": 2}],
}
IMPOSSIBLE = {"tlora": [{"store_start": False}]}


def option_sets(entry: type[Algorithm]) -> list[dict[str, Any]]:
    """The defaults, each switch turned over, each choice, and some numbers."""
    found: list[dict[str, Any]] = [{}, *MORE_OPTIONS.get(entry.name, [])]
    for leaf in knobs.leaves(entry.Options).values():
        if leaf.type is bool:
            found.append({leaf.name: not leaf.default})
        elif leaf.knob.choices:
            found += [{leaf.name: choice} for choice in leaf.knob.choices
                      if choice != leaf.default]
    return [each for n, each in enumerate(found)
            if each not in found[:n] and each not in IMPOSSIBLE.get(entry.name, [])]


def cases() -> Iterator[Any]:
    for (algo, entry), (name, (module, _)) in itertools.product(
            algorithms.all_entries().items(), LAYERS.items()):
        if kind_of(module) not in entry.kinds:
            continue
        for options, extras, start in itertools.product(option_sets(entry), EXTRAS, entry.starts):
            if not possible(entry, module, options, extras, start):
                continue
            values = [f"{key}={value}" for key, value in options.items()]
            label = "-".join([algo, name, *values, extras, start]).replace(" ", "_")
            yield pytest.param(algo, name, {**options, "start": start}, extras, id=label)


def possible(entry: type[Algorithm], module: nn.Module, options: dict, extras: str,
             start: str) -> bool:
    """Every option, every extra and every start, each with the defaults of the others."""
    special = [bool(options), extras != "plain", start != "default"]
    if special.count(True) > 1 and special != [True, extras == "dora", False]:
        return False
    if kind_of(module) == "norm" and extras != "plain":
        return False
    if extras.startswith("dora") and entry.timed:
        return False
    if extras.startswith("scalar") and not (entry.scaled and entry.fold):
        return False
    layer = Layer("0", kind_of(module), tuple(module.weight.shape), module.bias is not None)
    return made(entry, {**options, "start": start}).problem([layer]) is None


def made(entry: type[Algorithm], options: dict[str, Any], alpha: float = ALPHA,
         rank_stabilised: bool = False) -> Algorithm:
    own = {name: value for name, value in options.items() if name != "start"}
    dim = DIMS.get(entry.name, DIM)
    return entry(dim, alpha, entry.Options(**own), rank_stabilised,
                 options.get("start", "default"))


class Case:
    """One layer with one adapter on it."""

    def __init__(self, algo: str, name: str, options: dict[str, Any], extras: str,
                 alpha: float = ALPHA, rank_stabilised: bool = False):
        torch.manual_seed(3)
        module, shape = LAYERS[name]
        self.module = copy.deepcopy(module)
        with torch.no_grad():
            for parameter in self.module.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        self.x = torch.randn(shape)
        self.before = self.module(self.x).detach()
        entry = algorithms.all_entries()[algo]
        self.options = options
        layer = Layer("0", kind_of(module), tuple(self.module.weight.shape),
                      self.module.bias is not None)
        self.assignment = Assignment(
            layer, "lycoris_0", made(entry, options, alpha, rank_stabilised), EXTRAS[extras])
        self.root = nn.Sequential(self.module)
        self.network = LycorisNetwork([self.assignment], {"": self.root}, seed=1)
        self.adapter = next(iter(self.network))

    def stir(self) -> None:
        """Move every tensor away from its start, as training does."""
        torch.manual_seed(5)
        with torch.no_grad():
            for parameter in self.network.get_trainable_params():
                parameter.add_(0.2 * torch.randn_like(parameter))

    def forward(self) -> torch.Tensor:
        return self.root(self.x)


every_case = pytest.mark.parametrize(("algo", "name", "options", "extras"), list(cases()))


@every_case
def test_estimated_shapes_are_the_real_ones(algo: str, name: str, options: dict,
                                            extras: str) -> None:
    case = Case(algo, name, options, extras)
    real = sum(p.numel() for p in case.network.get_trainable_params())
    assert case.assignment.parameters() == real
    tensors = {key: tuple(t.shape) for key, t in case.network.file_tensors().items()}
    assert tensors == case.assignment.file_shapes()


@every_case
def test_nothing_changes_at_the_start(algo: str, name: str, options: dict, extras: str) -> None:
    case = Case(algo, name, options, extras)
    case.network.apply_to().eval()
    assert torch.allclose(case.forward(), case.before, atol=1e-6)


@every_case
def test_merged_equals_attached(algo: str, name: str, options: dict, extras: str) -> None:
    case = Case(algo, name, options, extras)
    case.stir()
    for strength in (1.0, 0.4):
        other = copy.deepcopy(case.module)
        case.network.apply_to().eval().set_multiplier(strength)
        attached = case.forward().detach()
        case.network.restore()
        changed, bias = case.adapter.eval().changed(other.weight, other.bias, strength)
        with torch.no_grad():
            other.weight.copy_(changed)
            if bias is not None:
                other.bias.copy_(bias)
        assert torch.allclose(other(case.x), attached, atol=2e-5)
        assert not torch.allclose(attached, case.before, atol=1e-3), "the adapter does something"
    case.network.merge_to(0.4)
    assert torch.allclose(case.forward(), attached, atol=2e-5)


@every_case
def test_file_round_trip(algo: str, name: str, options: dict, extras: str,
                         tmp_path: Path) -> None:
    case = Case(algo, name, options, extras)
    case.stir()
    case.network.apply_to().eval()
    trained = case.forward().detach()
    case.network.save_weights(tmp_path / "a.safetensors")
    case.network.restore()
    file = AdapterFile(tmp_path / "a.safetensors")
    kind, dim, found = file.kind("lycoris_0")
    assert kind.name == {"dylora": "lora"}.get(algo, algo)
    spatial = case.assignment.layer.is_spatial
    if "use_tucker" in options and spatial and "t2" not in options:
        assert found.use_tucker == ("lokr_t2" in file.shapes["lycoris_0"] or algo != "lokr")
    if algo in ("lora", "loha", "dylora", "glora"):
        assert dim == DIM * (2 if options.get("start") == "pissa" else 1)
    matched = match(file, [case.assignment.layer], lambda layer: [f"lycoris_{layer.name}"], "x")
    assert matched.whole
    again = LycorisNetwork.from_file(file, matched.assignments, {"": case.root}).apply_to()
    assert torch.allclose(case.forward(), trained, atol=2e-5)
    again.restore()


@every_case
def test_gradients_reach_every_tensor(algo: str, name: str, options: dict, extras: str) -> None:
    case = Case(algo, name, options, extras)
    case.stir()
    case.network.apply_to().train()
    case.forward().square().sum().backward()
    for parameter_name, parameter in case.network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, parameter_name


@every_case
def test_detaching_is_exact(algo: str, name: str, options: dict, extras: str) -> None:
    case = Case(algo, name, options, extras)
    weights = [p.clone() for p in case.module.parameters()]
    case.stir()
    case.network.apply_to()
    case.forward()
    case.network.restore()
    assert torch.equal(case.forward(), case.before)
    assert all(torch.equal(a, b) for a, b in zip(weights, case.module.parameters(), strict=True))
    assert "forward" not in vars(case.module)


@every_case
def test_multiplier_zero_is_the_base(algo: str, name: str, options: dict, extras: str) -> None:
    case = Case(algo, name, options, extras)
    case.stir()
    case.network.apply_to().set_multiplier(0)
    assert torch.equal(case.forward(), case.before)
    changed, _ = case.adapter.changed(case.module.weight, None, 0.0)
    assert torch.allclose(changed, case.module.weight, atol=1e-6)


@pytest.mark.parametrize("algo", [n for n, e in algorithms.catalogue().items() if e.scaled])
def test_alpha_scales_the_change(algo: str) -> None:
    one, two = Case(algo, "linear", {}, "plain"), Case(algo, "linear", {}, "plain", 2 * ALPHA)
    for case in (one, two):
        case.stir()
        case.network.apply_to().eval()
    change = one.forward() - one.before
    assert torch.allclose(two.forward() - two.before, 2 * change, atol=1e-4)


@pytest.mark.parametrize("algo", [n for n, e in algorithms.catalogue().items() if e.scaled])
def test_rank_stabilised_scale_survives_the_file(algo: str, tmp_path: Path) -> None:
    dim = DIMS.get(algo, DIM)
    case = Case(algo, "linear", {}, "plain", rank_stabilised=True)
    assert case.assignment.algorithm.scale(case.assignment.layer) == pytest.approx(ALPHA / dim**0.5)
    saved = case.network.file_tensors()["lycoris_0.alpha"].item()
    assert saved / dim == pytest.approx(ALPHA / dim**0.5), "a reader that divides by dim agrees"


@pytest.mark.parametrize("algo", list(algorithms.catalogue()))
def test_unknown_options_are_refused(algo: str) -> None:
    with pytest.raises(ConfigError, match="has no option factr"):
        algorithms.read_options(algo, {"factr": 4})


@every_case
def test_norm_cap(algo: str, name: str, options: dict, extras: str) -> None:
    case = Case(algo, name, options, extras)
    case.stir()
    weight = case.module.weight.detach()
    norm = case.adapter.scaled_delta(weight).norm().item()
    assert norms(case, norm * 2) == pytest.approx((0, norm, norm))
    capped, mean, most = norms(case, norm / 3)
    assert capped == 1 and mean == most and 0 < mean <= norm / 3 * (1 + 1e-4)
    if case.adapter.algorithm.fold and options["start"] != "pissa":
        assert mean == pytest.approx(norm / 3, rel=1e-4)
    assert case.adapter.scaled_delta(weight).norm().item() == pytest.approx(mean, rel=1e-4)


def norms(case: Case, limit: float) -> tuple[int, float | None, float | None]:
    found = case.network.apply_max_norm_regularization(limit)
    return found.capped, found.mean, found.most


@pytest.mark.parametrize("algo", [n for n, e in algorithms.catalogue().items() if e.ranked])
def test_norm_cap_counts_all_ranks_and_draws_nothing(algo: str) -> None:
    """The norm of the whole dW, not of what rank dropout leaves of it, in training too."""
    case = Case(algo, "linear", {}, "plain")
    case.stir()
    case.adapter.extras = Extras(rank_dropout=0.5)
    weight = case.module.weight.detach()
    norm = case.adapter.eval().scaled_delta(weight).norm().item()
    case.network.train()
    stream = torch.get_rng_state()
    for _ in range(5):
        assert norms(case, norm * 2) == pytest.approx((0, norm, norm))
    assert norms(case, norm / 3)[0] == 1
    assert torch.equal(torch.get_rng_state(), stream)
    assert 0 < case.adapter.eval().scaled_delta(weight).norm().item() <= norm / 3 * (1 + 1e-4)


def test_dropout_silences_its_share_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    module = nn.Linear(16, 400)
    for extras in (Extras(dropout=0.4), Extras(rank_dropout=0.4)):
        entry = algorithms.catalogue()["lora"]
        layer = Layer("0", "linear", (400, 16))
        network = LycorisNetwork([Assignment(layer, "k", entry(8, 8.0), extras)],
                                 {"": nn.Sequential(module)})
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.normal_()
        x = torch.randn(1, 16)
        plain = module(x)
        network.apply_to().eval()
        whole = module(x) - plain
        network.train()
        drawn = torch.stack([module(x) - plain for _ in range(3000)]).detach()
        assert (drawn.mean(0) - whole).abs().mean() < 0.15 * whole.abs().mean()
        if extras.dropout:
            assert (drawn == 0).float().mean().item() == pytest.approx(0.4, abs=0.01)
        network.restore()


def test_module_dropout_sits_out_its_share_and_only_in_training() -> None:
    torch.manual_seed(0)
    entry = algorithms.catalogue()["loha"]
    layer = Layer("0", "linear", (6, 5))
    root = nn.Sequential(nn.Linear(5, 6))
    network = LycorisNetwork(
        [Assignment(layer, "k", entry(2, 2.0), Extras(module_dropout=0.3))], {"": root})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_()
    x = torch.randn(2, 5)
    plain = root(x)
    network.apply_to().train()
    out = sum(torch.equal(root(x), plain) for _ in range(2000))
    assert out / 2000 == pytest.approx(0.3, abs=0.04)
    network.eval()
    assert not any(torch.equal(root(x), plain) for _ in range(50))


def test_networks_stack_and_come_off_in_any_order() -> None:
    torch.manual_seed(0)
    root = nn.Sequential(nn.Linear(8, 8))
    x = torch.randn(4, 8)
    plain = root(x)
    layer = Layer("0", "linear", (8, 8))
    made = []
    for algo in ("lora", "loha"):
        entry = algorithms.catalogue()[algo]
        network = LycorisNetwork([Assignment(layer, algo, entry(2, 2.0))], {"": root})
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.normal_()
        made.append(network.eval())
    alone = []
    for network in made:
        network.apply_to()
        alone.append(root(x) - plain)
        network.restore()
    for network in made:
        network.apply_to()
    assert torch.allclose(root(x) - plain, alone[0] + alone[1], atol=1e-4)
    made[0].restore()
    assert torch.allclose(root(x) - plain, alone[1], atol=1e-4)
    made[1].restore()
    assert torch.equal(root(x), plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("algo", list(algorithms.catalogue()))
def test_half_precision_bases(algo: str, dtype: torch.dtype) -> None:
    case = Case(algo, "linear", {}, "plain")
    case.stir()
    case.network.apply_to().eval()
    exact = case.forward().detach()
    case.root.to(dtype)
    assert next(case.network.parameters()).dtype == torch.float32
    assert torch.allclose(case.root(case.x.to(dtype)).float(), exact, atol=0.15, rtol=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(case.root(case.x.to(dtype)).float(), exact, atol=0.15, rtol=0.05)


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
@pytest.mark.parametrize("algo", [name for name, entry in algorithms.all_entries().items()
                                  if "conv" in entry.kinds])
def test_other_paddings(algo: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A convolution's own way to pad its input is that of its change."""
    monkeypatch.setitem(LAYERS, "padded", (nn.Conv2d(6, 10, 3, padding=1, padding_mode=mode),
                                           (2, 6, 7, 7)))
    case = Case(algo, "padded", {}, "plain")
    case.stir()
    case.network.apply_to().eval()
    attached = case.forward().detach()
    assert not torch.allclose(attached, case.before, atol=1e-3)
    case.network.merge_to()
    assert torch.allclose(case.forward(), attached, atol=1e-5)


def test_the_start_is_each_layers_own() -> None:
    """Adding a layer to a network does not change how the others begin."""
    root = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    entry = algorithms.catalogue()["lora"]
    layers = [Layer(str(i), "linear", (4, 4)) for i in range(2)]
    both = LycorisNetwork([Assignment(one, f"k{one.name}", entry(2)) for one in layers],
                          {"": root}, seed=9)
    last = LycorisNetwork([Assignment(layers[1], "k1", entry(2))], {"": root}, seed=9)
    assert torch.equal(both.adapters["k1"].p["down"], last.adapters["k1"].p["down"])
    other = LycorisNetwork([Assignment(layers[1], "k1", entry(2))], {"": root}, seed=8)
    assert not torch.equal(other.adapters["k1"].p["down"], last.adapters["k1"].p["down"])


def test_what_fp16_cannot_hold_is_refused(tmp_path: Path) -> None:
    case = Case("lora", "linear", {}, "plain", alpha=1e6)
    with pytest.raises(AdapterError, match=r"lycoris_0\.alpha"):
        case.network.save_weights(tmp_path / "a.safetensors", torch.float16)
    case.network.save_weights(tmp_path / "a.safetensors", torch.bfloat16)


def test_registry_lists_what_is_there() -> None:
    assert list(algorithms.catalogue())[:2] == ["lora", "loha"]
    for name, entry in algorithms.catalogue().items():
        assert entry.name == name and entry.label and entry.about
        assert sys.modules[entry.__module__].__doc__, "its formula and its paper"


@pytest.mark.parametrize("metadata", [{}, {"b": "ü🙂", "a": "1"}])
def test_our_header_is_the_packages(metadata: dict[str, str], tmp_path: Path) -> None:
    """The safetensors package writes the same bytes (it does not keep the metadata's order)."""
    from safetensors.torch import load_file, save

    tensors = {"b.x": torch.randn(3).half(), "a.y": torch.randn(2, 2), "c": torch.tensor(5),
               "a.z": torch.arange(5, dtype=torch.uint8), "a.0": torch.randn(2, 2).bfloat16(),
               "e": torch.empty(0, 3), "f": torch.tensor(True)}
    path = tensorfile.write(tmp_path / "a.safetensors", tensors, metadata)
    theirs = save(tensors, metadata or None)
    if len(metadata) < 2:
        assert path.read_bytes() == theirs
    assert path.stat().st_size == len(theirs)
    assert path.stat().st_size == tensorfile.size(tensorfile.entries_of(tensors), metadata)
    back, described = tensorfile.read(path, AdapterError)
    assert described == metadata and all(torch.equal(back[k], tensors[k]) for k in tensors)
    assert set(load_file(path)) == set(tensors)
