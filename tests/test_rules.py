"""Who gets what: rules for single layers, starts, LoRA+, impossible settings, and their errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lycoris import algorithms, config, families, plan, presets, trainer
from lycoris.adapterfile import AdapterFile, match
from lycoris.algorithms import Layer
from lycoris.assignments import Assignment, assign, assign_family
from lycoris.errors import ConfigError
from lycoris.families import Family
from lycoris.learner import Learner
from lycoris.network import LycorisNetwork
from lycoris.runs import RunFolder
from lycoris.settings import NetworkConfig

Settings = Callable[..., config.Config]


@pytest.fixture
def family(small_base: Path) -> Family:
    return families.open_base(small_base)


def given(family: Family, *rules: dict[str, Any], **network: Any) -> dict[str, Assignment]:
    settings = NetworkConfig(preset="full", dim=4, alpha=2.0, rules=rules, **network)
    return {f"{a.layer.part}.{a.layer.name}": a for a in assign_family(family, settings)}


def test_the_first_rule_that_matches_counts(family: Family) -> None:
    found = given(family, {"match": "*attn1.to_q", "exclude": True},
                  {"match": "text_encoder.*", "algo": "loha", "dim": 2, "lr": 1e-5},
                  {"match": "*attn*", "algo": "lokr", "options": {"factor": 2}, "alpha": 1.0},
                  {"match": "*attn1*", "dim": 1})
    assert not [name for name in found if name.endswith("attn1.to_q")]
    for name, a in found.items():
        kind, dim = a.algorithm.name, a.algorithm.dim
        if name.startswith("text_encoder"):
            assert (kind, dim, a.rate) == ("loha", 2, 1e-5)
            assert a.algorithm.alpha == 1.0, "alpha keeps its ratio to dim"
        elif "attn" in name:
            assert (kind, dim, a.algorithm.alpha) == ("lokr", 4, 1.0)
            assert a.algorithm.options.factor == 2
        else:
            assert (kind, dim, a.rate) == ("lora", 4, None)


def test_a_rule_without_an_effect_on_size_leaves_it_alone(family: Family) -> None:
    one, two = given(family), given(family, {"match": "*", "lr": 1e-6})
    assert sum(a.parameters() for a in one.values()) == sum(a.parameters() for a in two.values())


def test_what_is_wrong_with_rules_is_said_at_once(family: Family) -> None:
    with pytest.raises(ConfigError) as caught:
        given(family, {"match": "*", "dims": 3}, {"dim": 3}, {"match": "x", "dim": "many"},
              {"match": "y", "exclude": "no"})
    text = caught.value.problems["network.rules"]
    assert "rule 1: there is no dims" in text and "dim?" in text
    assert "rule 2 says no match" in text and "rule 3: dim" in text and "rule 4: exclude" in text
    with pytest.raises(ConfigError, match="there is no 'lorra'"):
        given(family, {"match": "*", "algo": "lorra"})


def test_rules_that_leave_nothing_are_refused(family: Family) -> None:
    with pytest.raises(ConfigError, match="matches no layer"):
        given(family, {"match": "*", "exclude": True})


def test_rules_in_every_form_of_the_settings(tmp_path: Path) -> None:
    """A TOML array of tables, text lines, and a round trip through the written file."""
    file = tmp_path / "a.toml"
    file.write_text('[[network.rules]]\nmatch = "*attn2*"\ndim = 2\n[[network.rules]]\n'
                    'match = "mid*"\nexclude = true\n')
    run = config.load(file)
    lines = 'match = "*attn2*", dim = 2\n{match = "mid*", exclude = true}'
    assert config.load(None, [f"network.rules={lines}"]).network == run.network
    file.write_text(config.dump(run))
    assert config.load(file).network.rules == run.network.rules
    with pytest.raises(ConfigError, match="wants lines like"):
        config.load(None, ["network.rules=*attn2* dim 4"])


def test_impossible_dims_are_refused_with_the_way_out(family: Family) -> None:
    for algo, dim, words in (("boft", 1, "set it to"), ("dylora", 6, "multiple of its block")):
        with pytest.raises(ConfigError, match=words) as caught:
            given(family, algo=algo) if dim == 4 else assign_family(
                family, NetworkConfig(algo=algo, preset="full", dim=dim))
        assert list(caught.value.problems) == ["network.dim"]


def test_starts_that_do_not_fit_are_refused(family: Family) -> None:
    with pytest.raises(ConfigError, match="LoHa has no start pissa"):
        given(family, algo="loha", init="pissa")
    with pytest.raises(ConfigError, match="nothing would move"):
        given(family, init="pissa", use_scalar=True)
    with pytest.raises(ConfigError, match="turn DoRA off"):
        given(family, algo="tlora", dora_wd=True)


def test_pissa_begins_at_the_leading_directions_and_saves_an_ordinary_lora(tmp_path: Path) -> None:
    torch.manual_seed(0)
    root = nn.Sequential(nn.Linear(12, 20, bias=False))
    layer = Layer("0", "linear", (20, 12), bias=False)
    kind = algorithms.catalogue()["lora"]
    network = LycorisNetwork([Assignment(layer, "k_0", kind(3, 6.0, start="pissa"))], {"": root})
    p = network.adapters["k_0"].p
    u, s, v = torch.linalg.svd(root[0].weight.detach(), full_matrices=False)
    assert torch.allclose(2 * p["up"] @ p["down"], (u[:, :3] * s[:3]) @ v[:3], atol=1e-5)
    with torch.no_grad():
        p["up"].add_(0.1)
    x = torch.randn(4, 12)
    learned = network.apply_to().eval()
    y = root(x).detach()
    learned.restore()
    file = AdapterFile(learned.save_weights(tmp_path / "a.safetensors"))
    assert file.kind("k_0")[:2] == (kind, 6)
    again = LycorisNetwork.from_file(
        file, match(file, [layer], lambda each: [f"k_{each.name}"], "x").assignments, {"": root})
    assert torch.allclose(again.apply_to() and root(x), y, atol=1e-5)
    again.restore()


def test_orthogonal_starts_have_orthogonal_rows() -> None:
    root = nn.Sequential(nn.Linear(40, 20))
    kind = algorithms.catalogue()["lora"]
    network = LycorisNetwork(
        [Assignment(Layer("0", "linear", (20, 40)), "k", kind(4, start="orthogonal"))], {"": root})
    down = network.adapters["k"].p["down"].detach()
    product = down @ down.T
    assert torch.allclose(product, product.diag().diag(), atol=1e-6)
    plain = LycorisNetwork([Assignment(Layer("0", "linear", (20, 40)), "k", kind(4))], {"": root})
    ratio = down.square().mean() / plain.adapters["k"].p["down"].square().mean()
    assert ratio.item() == pytest.approx(1, abs=0.25), "as large as the default start"


def test_groups_have_the_rates_of_layers_parts_and_lora_plus(settings: Settings) -> None:
    run = settings("optimizer.lr=0.01", "optimizer.text_encoder_lr=0.001",
                   "optimizer.plus_ratio=16", "optimizer.text_encoder_plus_ratio=4",
                   'network.rules=[{match = "mid*", lr = 0}, {match = "*attn1*", lr = 0.5}]')
    made = plan.make(run)
    model = made.family.load(torch.device("cpu"), torch.float32)
    network = LycorisNetwork(made.assignments, model.modules)
    optimizer = Learner(run, network).optimizer
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for adapter in network:
        part, name = adapter.layer.part, adapter.layer.name
        base = 0.5 if "attn1" in name else 0.001 if part == "text_encoder" else 0.01
        for tensor, times in (("up", 4 if part == "text_encoder" else 16), ("down", 1)):
            found = rate.get(id(adapter.p[tensor]))
            assert found == (None if name.startswith("mid") else pytest.approx(base * times))


def test_all_rates_zero_is_refused(settings: Settings, tmp_path: Path) -> None:
    run = settings('network.rules=[{match = "*", lr = 0}]')
    made = plan.make(run)
    with pytest.raises(ConfigError, match="nothing would learn"):
        trainer.run(made, plan.create(made).path, lambda event: None, set)


@pytest.mark.parametrize("algo", list(algorithms.catalogue()))
def test_every_algorithm_trains_saves_and_is_read_back(algo: str, settings: Settings) -> None:
    """From settings to a file of the planned size that fits its base, with all that can be on."""
    dim = 2 if algo != "dylora" else 4
    run = plan.named(settings(f"network.algo={algo}", f"network.dim={dim}", "train.steps=3",
                              f"output.name=one-{algo}", "network.train_norm=true",
                              "train.max_norm=0.5", "network.module_dropout=0.1"))
    made = plan.make(run)
    folder = plan.create(made)
    seen: list[Any] = []
    ended = trainer.run(made, folder.path, seen.append, set)
    assert ended.reason == "done"
    path = RunFolder(folder.path).adapter_file
    assert path.stat().st_size == made.sizes.file_bytes_with_metadata
    file = AdapterFile(path)
    fits = match(file, made.family.layers, made.family.aliases, "base")
    assert fits.whole and len(fits.assignments) == made.sizes.modules
    steps = [event for event in seen if type(event).__name__ == "Step"]
    assert all(event.norm_max <= 0.5 * 1.001 and event.norm_mean <= event.norm_max
               for event in steps)
    moved = [t for name, t in file.tensors.items() if not name.endswith(("alpha", "on_input"))]
    assert any(t.abs().sum() > 0 for t in moved)


def test_preset_overrides_reach_the_layers(family: Family) -> None:
    settings = NetworkConfig(algo="ia3", preset="ia3")
    found = assign_family(family, settings)
    on_input = {a.layer.name.rsplit(".", 1)[-1] for a in found
                if a.algorithm.options.train_on_input}
    assert on_input == {"2", "fc2"}
    assert {a.layer.name.rsplit(".", 1)[-1] for a in found} == {"to_k", "to_v", "2", "k_proj",
                                                               "v_proj", "fc2"}
    kind = type(family)
    chosen = presets.select(kind, family.layers, presets.find("ia3", kind))
    assert len(assign(chosen.layers, settings, family.key)) == len(found)


def told(settings: Settings, **network: Any) -> list[str]:
    """The plan's warnings that speak of the network."""
    run = settings("network.preset=full")
    run = replace(run, network=replace(run.network, **network))
    return [warned.text for warned in plan.make(run, need_dataset=False).warnings
            if "Rule" in warned.text or "preset" in warned.text]


def test_a_rule_that_does_nothing_is_told(settings: Settings) -> None:
    used, none, late = {"match": "*to_k", "dim": 3}, {"match": "*to_x", "dim": 3}, {
        "match": "unet.*attn1.to_k", "dim": 2}
    assert told(settings, rules=(used,)) == []
    assert told(settings, rules=(none, used)) == [
        "Rule 1, *to_x, does nothing: it fits no layer that the preset full takes."]
    assert told(settings, rules=(used, late)) == [
        "Rule 2, unet.*attn1.to_k, does nothing: earlier rules fit all of its layers."]
    assert told(settings, rules=(late, used)) == []


def test_options_of_an_own_preset_that_its_layers_lack_are_told(settings: Settings,
                                                                tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('name_algo_map = {"attn1.to_k" = {factor = 4, dim = 2}}', "utf-8")
    text, = told(settings, algo="lora", preset=str(file))
    assert text.startswith("The preset mine sets factor for 4 layers, but they are LoRA, which")
    assert told(settings, algo="lokr", preset=str(file)) == []
