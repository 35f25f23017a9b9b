"""The forward in all its ways: with and without dW, on quantised bases, compiled, stacked, under
autocast and checkpointing, with dropouts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_algorithms import ALPHA, DIM, DIMS, LAYERS, Case, kind_of, made
from torch import nn
from torch.utils.checkpoint import checkpoint

from lycoris import algorithms, families, paths
from lycoris.adapter import Adapter
from lycoris.adapterfile import AdapterFile, match
from lycoris.algorithms import Cost, Layer
from lycoris.assignments import Assignment, Extras
from lycoris.effort import folds
from lycoris.errors import AdapterError
from lycoris.network import LycorisNetwork

WEIGHTED = [name for name, entry in algorithms.catalogue().items()]
PLAIN = Extras()
every_algorithm = pytest.mark.parametrize("algo", WEIGHTED)


def network_on(root: nn.Module, algo: str, extras: Extras = PLAIN,
               names: tuple[str, ...] = ("0",), key: str = "k", **options: Any) -> LycorisNetwork:
    """Adapters, moved away from their start, on named layers of a module."""
    found = []
    for name in names:
        layer = next(each for each in families.layers_of(root) if each.name == name)
        found.append(Assignment(layer, f"{key}_{name}", made(
            algorithms.catalogue()[algo], options), extras))
    network = LycorisNetwork(found, {"": root}, seed=3)
    torch.manual_seed(11)
    with torch.no_grad():
        for parameter in network.get_trainable_params():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network


def two_ways() -> Iterator[Any]:
    """(algorithm, layer, options, DoRA) wherever there is a way without dW."""
    sets = ({}, {"use_tucker": True}, {"full_matrix": True}, {"train_on_input": True},
            {"rescaled": True}, {"decompose_both": True, "factor": 5})
    for algo, (name, (module, _)), options, dora in itertools.product(
            WEIGHTED, LAYERS.items(), sets, (False, True)):
        entry = algorithms.catalogue()[algo]
        if kind_of(module) == "norm" or not {*options} <= {*entry.Options.__dataclass_fields__}:
            continue
        if dora and (entry.around or entry.timed):
            continue
        layer = Layer("0", kind_of(module), tuple(module.weight.shape))
        if getattr(module, "groups", 1) == 1 and made(entry, options).cost(layer).token is not None:
            extras = "dora" if dora else "plain"
            yield pytest.param(algo, name, options, extras,
                               id="-".join([algo, name, *options, extras]))


@pytest.mark.parametrize(("algo", "name", "options", "extras"), list(two_ways()))
def test_both_ways_agree(algo: str, name: str, options: dict, extras: str,
                         monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs and all gradients are the same whether dW is formed or not."""
    case = Case(algo, name, options, extras)
    case.stir()
    found = []
    for aside in (True, False):
        monkeypatch.setattr(Adapter, "goes_aside", lambda *_, aside=aside: aside)
        case.network.zero_grad()
        x = case.x.clone().requires_grad_(True)
        case.network.apply_to()
        y = case.root(x)
        y.square().sum().backward()
        case.network.restore()
        found.append([y.detach(), x.grad, *(p.grad for p in case.network.get_trainable_params())])
    for one, two in zip(*found, strict=True):
        assert torch.allclose(one, two, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", ["linear", "bias", "conv"])
def test_a_weight_made_anew_agrees(kind: str, autocast: bool,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """Where positions are many, W' is made in both passes: with and without, outputs and all
    gradients are the same, and the layer's input is not kept."""
    torch.manual_seed(0)
    module = nn.Conv2d(12, 20, 1) if kind == "conv" else nn.Linear(12, 20, bias=kind == "bias")
    root = nn.Sequential(module).requires_grad_(False)
    if module.bias is not None:
        module.bias.requires_grad_(True)
    network = network_on(root, "diag-oft").apply_to()
    size, found = (2, 12, 20, 30) if kind == "conv" else (3, 400, 12), []
    x = torch.randn(size, requires_grad=True)
    slope = torch.randn(2, 20, 30, 20).movedim(-1, 1) if kind == "conv" else torch.randn(3, 400, 20)
    for anew in (True, False):
        choice = paths.Choice(2.0, 3.0, 1.0 if anew else None)
        assert choice.goes_aside and choice.goes_anew == anew
        monkeypatch.setattr(Adapter, "choice", lambda *_, choice=choice: choice)
        monkeypatch.setattr(Adapter, "goes_aside", lambda *_: True)
        root.zero_grad()
        network.zero_grad()
        x.grad, kept = None, []
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast), \
                torch.autograd.graph.saved_tensors_hooks(
                    lambda t, kept=kept: kept.append(t.shape) or t, lambda t: t):
            y = root(x)
        assert not anew or x.shape not in kept
        y.backward(slope.to(y.dtype))
        found.append([y.detach(), x.grad, *(p.grad.clone() for p in network.parameters()),
                      *([] if module.bias is None else [module.bias.grad.clone()])])
    network.restore()
    for one, two in zip(*found, strict=True):
        assert (one - two).norm() <= (2e-2 if autocast else 1e-5) * two.norm()


@pytest.mark.parametrize("algo", ["lora", "dylora", "svdiff"])
def test_thin_factors_folded_into_the_weight_agree(algo: str,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    assert folds(160, 160, 16, 2048) and not folds(640, 640, 16, 128)
    torch.manual_seed(0)
    root = nn.Sequential(nn.Linear(12, 20)).requires_grad_(False)
    network = network_on(root, algo).apply_to()
    monkeypatch.setattr(Adapter, "goes_aside", lambda *_: True)
    x, found = torch.randn(3, 7, 12, requires_grad=True), []
    for fold in (True, False):
        monkeypatch.setattr(algorithms, "folds", lambda *_, fold=fold: fold)
        network.zero_grad()
        x.grad = None
        torch.manual_seed(5)  # DyLoRA draws a rank
        y = root(x)
        y.square().sum().backward()
        found.append([y.detach(), x.grad, *(p.grad.clone() for p in network.parameters()
                                            if p.requires_grad)])
    network.restore()
    for one, two in zip(*found, strict=True):
        assert torch.allclose(one, two, atol=1e-4, rtol=1e-4)


def test_the_cheaper_way_is_taken_and_says_why() -> None:
    layer = Layer("q", "linear", (320, 320))
    thin = paths.choose(layer, Cost(3 * 4 * 640.0, 4 * 4 * 320 * 320.0), 8192, True)
    assert thin.goes_aside and thin.why.startswith("applies the factors")
    thick = paths.choose(layer, Cost(3 * 300 * 640.0, 4 * 300 * 320 * 320.0), 8192, True)
    assert not thick.goes_aside and thick.why.startswith("builds dW")
    anew = paths.choose(layer, Cost(3e4, 1e7, anew=(1e4, 1e6)), 8192, True)
    assert anew.goes_aside and anew.goes_anew and anew.why.startswith("makes W' anew")
    few = paths.choose(layer, Cost(3e4, 1e7, anew=(1e4, 1e6)), 8, True)
    assert few.goes_aside and not few.goes_anew and few.why.startswith("applies the factors")
    only = paths.choose(layer, Cost(None, 0.0), 8192, True)
    assert not only.goes_aside and "the only way" in only.why


def test_nothing_of_full_size_is_kept_for_the_backward_pass(
        monkeypatch: pytest.MonkeyPatch) -> None:
    """Between forward and backward a dense adapter holds its input, not W + dW."""
    root = nn.Sequential(nn.Linear(96, 64))
    network = network_on(root, "loha").apply_to()
    monkeypatch.setattr(Adapter, "goes_aside", lambda *_: False)
    kept: list[tuple[int, ...]] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor is not root[0].weight:
            kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        root(torch.randn(5, 96, requires_grad=True))
    assert (64, 96) not in kept and (5, 96) in kept
    network.restore()


@pytest.mark.parametrize("bits", [4, 8])
@every_algorithm
def test_quantised_bases(algo: str, bits: int) -> None:
    """The forward is that of the dequantised weight with the same adapter; merging is refused."""
    quantised = pytest.importorskip("bitsandbytes").nn
    torch.manual_seed(0)
    plain = nn.Linear(64, 40)
    layer = (quantised.Linear4bit(64, 40, compute_dtype=torch.float32, quant_type="nf4")
             if bits == 4 else quantised.Linear8bitLt(64, 40, has_fp16_weights=False))
    layer.load_state_dict(plain.state_dict())
    root = nn.Sequential(layer.to("cpu")).requires_grad_(False)
    x = torch.randn(3, 7, 64)
    before = root(x)
    from lycoris.quantised import weight_of

    same = nn.Sequential(nn.Linear(64, 40))
    same[0].weight.data, same[0].bias.data = weight_of(layer), plain.bias.data
    outputs = []
    for each in (same, root):
        network = network_on(each, algo).apply_to()
        outputs.append(each(x))
        outputs[-1].sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all()
                   for p in network.get_trainable_params())
        network.restore()
    assert torch.allclose(outputs[1], outputs[0], atol=2e-2 if bits == 8 else 1e-3)
    assert not torch.allclose(outputs[1], before, atol=1e-2)
    assert torch.equal(root(x), before)
    with pytest.raises(AdapterError, match=r"4 or 8 bits.*0"):
        network.merge_to()


@every_algorithm
def test_the_adapted_model_compiles(algo: str) -> None:
    """In one graph, with the same outputs and gradients."""
    torch.manual_seed(0)
    root = nn.Sequential(nn.Linear(12, 20), nn.SiLU(), nn.Unflatten(1, (20, 1, 1)),
                         nn.Conv2d(20, 10, 3, padding=1)).requires_grad_(False)
    network = network_on(root, algo, names=("0", "3"))
    x = torch.randn(6, 12)
    grads = []
    network.apply_to()
    for run in (root, torch.compile(root, backend="aot_eager", fullgraph=True)):
        network.zero_grad()
        y = run(x)
        y.square().sum().backward()
        grads.append([y.detach(), *(p.grad.clone() for p in network.get_trainable_params())])
    network.restore()
    torch._dynamo.reset()
    for one, two in zip(*grads, strict=True):
        assert torch.allclose(one, two, atol=1e-3, rtol=1e-3)


@every_algorithm
def test_any_two_stack_and_come_off_in_any_order(algo: str) -> None:
    """Each adds its own change of the base, whatever else is attached."""
    for other, first in itertools.product(("lora", "diag-oft", "loha"), (0, 1)):
        torch.manual_seed(0)
        root = nn.Sequential(nn.Linear(12, 20)).requires_grad_(False)
        x = torch.randn(4, 12)
        base = root(x)
        made = [network_on(root, algo, key="a").eval(), network_on(root, other, key="b").eval()]
        made[1].set_multiplier(0.5)
        changes = []
        for network in made:
            network.apply_to()
            changes.append(root(x) - base)
            network.restore()
        for place in (first, 1 - first):
            made[place].apply_to()
        assert torch.allclose(root(x) - base, changes[0] + changes[1], atol=1e-4)
        made[first].restore()
        assert torch.allclose(root(x) - base, changes[1 - first], atol=1e-4)
        made[1 - first].restore()
        assert torch.equal(root(x), base)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_algorithm
def test_autocast_and_checkpointing(algo: str, dtype: torch.dtype) -> None:
    """Gradients under autocast are near the exact ones; with checkpointing they are the same."""
    torch.manual_seed(0)
    root = nn.Sequential(nn.Linear(12, 20)).requires_grad_(False)
    network = network_on(root, algo).apply_to()
    x = torch.randn(5, 12, requires_grad=True)
    found = []
    for autocast, again in ((False, False), (True, False), (True, True)):
        network.zero_grad()
        with torch.autocast("cpu", dtype, enabled=autocast):
            y = checkpoint(root, x, use_reentrant=False) if again else root(x)
        y.float().square().sum().backward()
        found.append([p.grad.clone() for p in network.get_trainable_params()])
    exact, near, recomputed = found
    for a, b, c in zip(exact, near, recomputed, strict=True):
        assert (a - b).norm() <= 0.05 * a.norm() + 1e-4
        assert torch.equal(b, c)
    network.restore()


@every_algorithm
def test_dropout_of_outputs(algo: str) -> None:
    """A share of what the adapter adds is dropped, the mean stays; none of it when painting."""
    torch.manual_seed(0)
    root = nn.Sequential(nn.Linear(12, 20)).requires_grad_(False)
    network = network_on(root, algo, Extras(dropout=0.4)).apply_to().eval()
    x = torch.randn(300, 12)
    network.set_multiplier(0.0)
    base = root(x)
    network.set_multiplier(1.0)
    whole = root(x) - base
    network.train()
    drawn = (root(x) - base).detach()
    share = (drawn.abs() < 1e-6).float().mean().item()
    assert share == pytest.approx(0.4, abs=0.03)
    if algo != "dylora":  # of which every pass is another
        kept = drawn.abs() > 1e-6
        assert torch.allclose(drawn[kept], whole[kept] / 0.6, atol=1e-4)
    network.restore()


@pytest.mark.parametrize("algo", [n for n, e in algorithms.catalogue().items() if e.drops_ranks()])
def test_dropout_of_ranks(algo: str) -> None:
    """The change is random while training and, where it is linear in the ranks, has the mean of the
    whole; where not (rotations), a share of the blocks stands still."""
    torch.manual_seed(0)
    root = nn.Sequential(nn.Linear(12, 20)).requires_grad_(False)
    network = network_on(root, algo, Extras(rank_dropout=0.3))
    adapter = next(iter(network))
    weight = root[0].weight
    whole = adapter.eval().change(weight, 1.0).detach()
    adapter.train()
    drawn = torch.stack([adapter.change(weight, 1.0).detach() for _ in range(1500)])
    assert drawn.std(0).max() > 1e-3
    if algo in ("diag-oft", "boft"):
        rotated = adapter.seen()["blocks"]
        still = torch.stack([adapter.seen()["blocks"] for _ in range(1500)])
        share = (still.flatten(-2).abs().sum(-1) == 0).float().mean().item()
        assert share == pytest.approx(0.3, abs=0.03) and rotated.shape == still.shape[1:]
    elif algo != "dylora":
        assert (drawn.mean(0) - whole).norm() < 0.1 * whole.norm()


def test_dylora_trains_a_prefix_at_the_scale_of_its_file() -> None:
    """Every pass is some prefix of the ranks at alpha / dim, and only its last block learns."""
    torch.manual_seed(0)
    root = nn.Sequential(nn.Linear(12, 20)).requires_grad_(False)
    network = network_on(root, "dylora", block_size=2)
    adapter = next(iter(network)).train()
    up, down = adapter.p["up"].detach(), adapter.p["down"].detach()
    prefixes = [ALPHA / DIM * up[:, :k] @ down[:k] for k in (2, 4)]
    hit = set()
    for _ in range(40):
        network.zero_grad()
        change = adapter.change(root[0].weight, 1.0)
        change.sum().backward()
        place = [torch.allclose(each, change, atol=1e-5) for each in prefixes].index(True)
        learned = adapter.p["down"].grad.abs().sum(1) > 0
        assert learned.tolist() == [place == 0, place == 0, place == 1, place == 1]
        hit.add(place)
    assert hit == {0, 1}
    file = network.file_tensors()
    assert file["k_0.alpha"] / DIM == ALPHA / DIM


def test_tlora_listens_to_the_timestep() -> None:
    """Each picture of a batch gets the ranks of its own timestep; merged, all count."""

    class Denoiser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(12, 20)

        def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            return self.layer(sample)

    torch.manual_seed(0)
    root = Denoiser().requires_grad_(False)
    network = network_on(root, "tlora", names=("layer",)).eval()
    x = torch.randn(3, 5, 12)
    base = root(x, 0)
    network.apply_to()
    adapter = next(iter(network))
    times = [0.0, 500.0, 999.0]
    together = root(x, torch.tensor(times)) - base
    p = {name: t.detach() for name, t in adapter.p.items()}
    for place, t in enumerate(times):
        active = math.floor((1000 - t) / 1000 * (DIM - 1)) + 1
        mask = (torch.arange(DIM) < active).float()
        dw = (p["p"] * (p["scales"] * mask)) @ p["q"]
        dw -= (p["p0"] * (p["scales0"] * mask)) @ p["q0"]
        expected = ALPHA / DIM * x[place] @ dw.T
        assert torch.allclose(together[place], expected, atol=1e-4)
        assert torch.allclose(root(x, timestep=torch.tensor(t))[place] - base[place], expected,
                              atol=1e-4)
    network.restore().merge_to()
    assert torch.allclose(root(x, 0)[0] - base[0], together[0], atol=1e-4)


def test_dora_gradient_through_the_norm_is_a_choice() -> None:
    grads = []
    for detach in (True, False):
        torch.manual_seed(0)
        root = nn.Sequential(nn.Linear(12, 20)).requires_grad_(False)
        network = network_on(root, "lora", Extras(dora=True, dora_detach=detach)).apply_to()
        y = root(torch.ones(2, 12))
        y.square().sum().backward()
        grads.append((y.detach(), network.adapters["k_0"].p["up"].grad))
        network.restore()
    assert torch.allclose(grads[0][0], grads[1][0], atol=1e-5)
    assert not torch.allclose(grads[0][1], grads[1][1], atol=1e-3)


def test_module_dropout_needs_no_norm_of_its_own() -> None:
    """Also normalisation layers sit out."""
    torch.manual_seed(0)
    root = nn.Sequential(nn.LayerNorm(8)).requires_grad_(False)
    entry = algorithms.all_entries()["norm"]
    network = LycorisNetwork([Assignment(Layer("0", "norm", (8,)), "k", entry(),
                                         Extras(module_dropout=0.5))], {"": root})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_()
    x = torch.randn(2, 8)
    base = root(x)
    network.apply_to().train()
    same = sum(torch.equal(root(x), base) for _ in range(400))
    assert 140 < same < 260
    network.restore()


def test_every_kind_of_layer_is_listed() -> None:
    """The table of layers that these tests go through has all kinds an adapter can take."""
    assert {kind_of(module) for module, _ in LAYERS.values()} == {"linear", "conv", "norm"}
    assert set(DIMS) <= set(algorithms.catalogue())


@pytest.mark.parametrize("extras", [PLAIN, Extras(dora=True)], ids=["plain", "dora"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_algorithm
def test_files_in_half_precision_are_within_their_rounding(
        algo: str, dtype: torch.dtype, extras: Extras, tmp_path: Path) -> None:
    if extras.dora and algorithms.catalogue()[algo].timed:
        extras = PLAIN
    torch.manual_seed(0)
    root = nn.Sequential(nn.Linear(12, 20), nn.Unflatten(1, (20, 1, 1)),
                         nn.Conv2d(20, 10, 3, padding=1)).requires_grad_(False)
    x = torch.randn(6, 12)
    network = network_on(root, algo, extras, names=("0", "2")).apply_to().eval()
    exact = root(x).detach()
    file = AdapterFile(network.save_weights(tmp_path / "a.safetensors", dtype))
    network.restore()
    layers = families.layers_of(root)
    fits = match(file, layers, lambda layer: [f"k_{layer.name}"], "x")
    assert fits.whole and len(fits.assignments) == 2
    again = LycorisNetwork.from_file(file, fits.assignments, {"": root}).apply_to()
    allowed = 30 * torch.finfo(dtype).eps * exact.abs().max()
    assert (root(x) - exact).abs().max() < allowed
    again.restore()
