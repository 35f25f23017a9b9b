"""Size matches, budgets, curves, advice and warnings: what they promise, on every algorithm."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from conftest import TINY_SD
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lycoris import advice, algorithms, choose, config, families, knobs, plan, weigher
from lycoris.data import folder
from lycoris.errors import ConfigError
from lycoris.families import Family
from lycoris.guideline import ASPECTS
from lycoris.settings import Config, NetworkConfig
from lycoris.sizes import with_dim
from lycoris.surprises import FLOAT16_MAX

ALGOS = tuple(algorithms.catalogue())
FAMILIES = ("sd15", "tiny")
OPTIONS = {"lokr": ({}, {"factor": 4, "full_matrix": True}, {"decompose_both": True, "factor": 8},
                    {"unbalanced_factorization": True}, {"use_tucker": True, "factor": 16}),
           "dylora": ({"block_size": 1}, {"block_size": 4}), "ia3": ({}, {"train_on_input": True}),
           "diag-oft": ({}, {"rescaled": True}), "boft": ({}, {"rescaled": True}),
           "loha": ({}, {"use_tucker": True}), "tlora": ({}, {"min_rank": 2})}


@cache
def family(name: str) -> Family:
    return families.open_base(TINY_SD, "auto" if name == "tiny" else name)


def run_of(**network: object) -> Config:
    return knobs.replace(config.Config(), {f"network.{name}": value
                                           for name, value in network.items()})


@st.composite
def networks(draw: st.DrawFn) -> Config:
    algo = draw(st.sampled_from(ALGOS))
    return run_of(
        algo=algo, dim=4 * draw(st.integers(1, 24)), alpha=float(draw(st.integers(1, 64))),
        preset=draw(st.sampled_from(("attn-only", "attn-mlp", "full"))),
        options=draw(st.sampled_from(OPTIONS.get(algo, ({},)))),
        conv_dim=draw(st.sampled_from((None, 0, 4))), dora_wd=draw(st.booleans()) and
        algo != "tlora", train_norm=draw(st.booleans()), text_encoder=draw(st.booleans()),
        rules=draw(st.sampled_from(((), ({"match": "*attn2*", "dim": 8},),
                                    ({"match": "*to_q", "exclude": True},)))))


@given(networks(), st.sampled_from(FAMILIES), st.sampled_from(("fp16", "bf16", "fp32")))
@settings(max_examples=60, deadline=None)
def test_weighed_is_what_is_measured(run: Config, base: str, dtype: str) -> None:
    run = knobs.replace(run, {"output.dtype": dtype})
    network = run.network
    try:
        made = plan.make(run, family=family(base), need_dataset=False)
    except ConfigError as error:
        with pytest.raises(ConfigError) as other:
            weigher.of(family(base), network).weigh(network, dtype)
        assert other.value.problems == error.problems
        return
    sizes = made.sizes
    weight = weigher.of(family(base), network).weigh(network, dtype)
    assert (weight.file_bytes, weight.parameters) == (sizes.file_bytes, sizes.parameters)
    assert plan.sizes_with(made, network) == sizes


@given(networks(), st.sampled_from(ALGOS), st.sampled_from(FAMILIES))
@settings(max_examples=40, deadline=None)
def test_a_match_is_never_further_away_than_by_dim_alone(run: Config, algo: str,
                                                         base: str) -> None:
    try:
        wanted = plan.file_bytes(run, run.network, family(base))
    except ConfigError:
        return
    start = plan.switched(run.network, algo)
    naive = _by_dim(run, start, wanted, base)
    try:
        found = choose.match(run, algo, family(base))
    except ConfigError:
        assert naive == float("inf"), "a rule may make every dim impossible"
        return
    got = plan.make(found.run, family=family(base), need_dataset=False).sizes.file_bytes
    assert (found.wanted, found.file_bytes) == (wanted, got)
    assert knobs.replace(run, found.changed) == found.run, "the changes are all there is"
    # near enough ends the search, so the dim alone may be a little nearer
    assert abs(got - wanted) <= max(choose.CLOSE * wanted, abs(naive - wanted))


def _by_dim(run: Config, start: NetworkConfig, wanted: int, base: str) -> float:
    """The size nearest to the wanted one over a spread of the dims that mean something."""
    search = choose.Search(run, family(base))
    spread = {*range(1, 40), 48, 64, 96, 128, 192}
    own = algorithms.catalogue()[start.algo].dims(start.dim, start.options)
    found = [weight.file_bytes for dim in (spread if own is None else spread & {*own})
             if (weight := search.possible(with_dim(start, dim)))]
    return min(found, key=lambda size: abs(size - wanted), default=float("inf"))


def test_a_match_moves_the_factor_before_the_preset() -> None:
    run = run_of(dim=32, alpha=16.0)
    found = choose.match(run, "lokr", family("sd15"))
    assert not found.far and found.run.network.preset == run.network.preset
    assert found.run.network.options["factor"] in (4, 8)
    wide = run_of(algo="lokr", dim=100_000, options={"factor": 4, "full_matrix": True})
    assert choose.match(wide, "lokr", family("sd15")).run == wide, "nothing to change"


def test_a_match_takes_another_preset_only_where_it_comes_near() -> None:
    small = plan.file_bytes(run := run_of(dim=32), run.network, family("sd15"))
    far = choose.match(run, "ia3", family("sd15"))
    assert far.far and far.run.network.preset == "attn-mlp"
    assert "comes no closer than" in far.text
    least = plan.file_bytes(run, replace(run.network, algo="full", preset="attn-only"),
                            family("sd15"))
    near = choose.match(run, "full", family("sd15"), target=least)
    assert near.run.network.preset == "attn-only" and near.off == 0
    assert "as was wanted" in near.text and small < least


def test_ratios_are_kept() -> None:
    run = run_of(dim=16, alpha=16.0, conv_dim=8, conv_alpha=4.0, preset="full")
    matched = choose.match(run, "loha", family("sd15")).run.network
    assert matched.alpha == matched.dim and matched.conv_dim == matched.dim // 2
    assert matched.conv_alpha == pytest.approx(matched.conv_dim / 2)


def test_an_impossible_start_is_an_error() -> None:
    with pytest.raises(ConfigError, match="multiple of its block size"):
        choose.match(run_of(algo="dylora", dim=7), "lora", family("tiny"))
    with pytest.raises(ConfigError, match="lora"):
        choose.match(run_of(), "lorah", family("tiny"))


@pytest.mark.parametrize("limit", [2**20, 40 * 2**20])
def test_a_budget_holds_and_is_used(limit: int) -> None:
    run = run_of(dim=32, alpha=16.0)
    fits = choose.budget(run, family("sd15"), limit)
    assert [fit.algo for fit in fits] == list(ALGOS)
    for fit in fits:
        assert fit.run is not None
        made = plan.make(fit.run, family=family("sd15"), need_dataset=False)
        assert made.sizes.file_bytes_with_metadata == fit.file_bytes
        assert (fit.file_bytes <= limit) == (not fit.problem)
        assert (fit.parameters, fit.training_bytes) == (made.sizes.parameters, made.training_bytes)
    lora = next(fit for fit in fits if fit.algo == "lora")
    if not lora.problem:
        more = replace(lora.run, network=with_dim(lora.run.network, lora.run.network.dim + 1))
        next_size = plan.make(more, family=family("sd15"), need_dataset=False).sizes
        assert next_size.file_bytes_with_metadata > limit, "the largest that fits"


def test_a_budget_changes_the_network_alone_and_stops_at_a_dim(tmp_path: Path) -> None:
    """The captions of the pictures, which become prompts, are no part of what fits; and a dim past
    all use is not proposed."""
    Image.new("RGB", (64, 64)).save(tmp_path / "1.png")
    (tmp_path / "1.txt").write_text("a zorb")
    run = run_of(dim=32, alpha=16.0)
    fits = choose.budget(run, family("sd15"), 2**32, folder.scan(tmp_path))
    for fit in fits:
        assert all(path.startswith("network.") for path in fit.changed)
        assert fit.run.network.dim <= choose.MOST
    assert fits[0].run.network.dim == choose.MOST and "no dim above" in fits[0].note


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="holds no file"):
        choose.budget(run_of(), family("tiny"), 0)


def test_curves_are_exact_and_leave_out_the_impossible() -> None:
    run = run_of(dim=20, preset="attn-only")
    found = choose.curves(run, family("sd15"))
    assert found.keys() == set(ALGOS)
    assert 20 in [point.dim for point in found["lora"]], "the point on screen lies on its curve"
    assert len(found["ia3"]) == 2 and found["ia3"][0].file_bytes == found["ia3"][1].file_bytes
    assert all(point.dim % 4 == 0 for point in found["dylora"])
    for algo in ("lora", "lokr", "boft"):
        for point in found[algo][::5]:
            network = with_dim(plan.switched(run.network, algo), point.dim)
            assert point.file_bytes == plan.file_bytes(run, network, family("sd15"))


def test_every_column_of_the_table() -> None:
    rows = {column.label: column.symbols for entry in algorithms.catalogue().values()
            for column in entry.guide.columns}
    table = {aspect: "".join(rows[label][aspect] for label in (
        "Full", "LoRA", "LoHa", "LoKr low factor", "LoKr high factor")) for aspect in ASPECTS}
    assert table == {"fidelity": "★●▲◉▲", "flexibility": "★●◉▲●", "diversity": "▲◉★●★",
                     "size": "▲●●●★", "speed_linear": "★●●★★", "speed_conv": "●★▲●●"}


@pytest.mark.parametrize(("factor", "label"), [
    (4, "LoKr low factor"), (8, "LoKr low factor"), (-1, "LoKr high factor"),
    (1000, "LoKr high factor")])
def test_which_column_of_lokr_counts(factor: int, label: str) -> None:
    network = run_of(algo="lokr", options={"factor": factor}).network
    assert choose.column_of(network, family("sd15")).label == label
    between = run_of(algo="lokr", options={"factor": 16}).network
    assert choose.column_of(between, family("sd15")) is None
    assert choose.column_of(run_of(algo="glora").network, family("sd15")) is None


@pytest.mark.parametrize("goal", advice.GOALS)
@pytest.mark.parametrize("algo", ALGOS)
def test_every_suggestion_makes_a_plan_and_changes_something(algo: str, goal: str) -> None:
    lr = (algorithms.catalogue()[algo].guide.rates or (1e-4,))[0]
    run = knobs.replace(run_of(algo=algo, dim=12, alpha=6.0), {"optimizer.lr": lr})
    now = plan.make(run, family=family("sd15"), need_dataset=False).sizes
    found = advice.advise(run, family("sd15"), goal)
    for each in found.suggestions:
        after = config.build(config.to_dict(run) | each.changes)
        assert after == each.run != run
        made = plan.make(after, family=family("sd15"), need_dataset=False)
        assert made.sizes.file_bytes_with_metadata == each.file_bytes
        assert each.does and each.why and each.sure
        rates = algorithms.catalogue()[after.network.algo].guide.rates
        if rates:
            assert rates[0] <= after.optimizer.lr <= rates[1]
    if goal == "small":
        assert all(each.file_bytes < now.file_bytes_with_metadata for each in found.suggestions)
    sets = [each.changes for each in found.suggestions]
    results = [_result(each.run) for each in found.suggestions]
    assert _result(run) not in results and all(results.count(each) == 1 for each in results)
    assert all(sets.count(each) == 1 for each in sets)


def _result(run: Config) -> object:
    """What is trained at the end, whatever it is called."""
    made = plan.make(run, family=family("sd15"), need_dataset=False)
    said = [(a.key, a.algorithm.label, a.shapes(), a.algorithm.scale(a.layer), a.extras)
            for a in made.assignments]
    return said, replace(run, network=NetworkConfig())


def _algos(goal: str, **network: object) -> list[str]:
    found = advice.advise(run_of(**network), family("sd15"), goal)
    return [each.run.network.algo for each in found.suggestions
            if "network.algo" in each.changes or "network.options" in each.changes]


def test_the_guidelines_logic() -> None:
    assert _algos("learns-too-little") == ["lokr", "full"], "from LoRA on"
    assert _algos("learns-too-little", algo="loha") == ["lora", "lokr", "full"]
    assert _algos("learns-too-much") == ["loha", "lokr", "ia3"]
    assert _algos("faithful", algo="full") == []
    little = advice.advise(run_of(), family("sd15"), "learns-too-little").suggestions[0]
    assert 4 <= little.run.network.options["factor"] <= 8
    assert little.run.network.options["full_matrix"], "full dimension"
    again = advice.advise(run_of(algo="lokr", options={"factor": 8}, dim=4), family("sd15"),
                          "learns-too-little").suggestions[0]
    assert again.run.network.options["full_matrix"] and again.run.network.algo == "lokr"
    much = advice.advise(run_of(), family("sd15"), "learns-too-much").suggestions
    assert any(each.changes.keys() == {"network.alpha"} for each in much)
    assert any(each.run.network.dim == 8 for each in much)


def test_alpha_is_left_out_where_it_does_nothing() -> None:
    whole = advice.advise(run_of(algo="lokr", options={"factor": 4, "full_matrix": True}),
                          family("sd15"), "learns-too-little")
    assert all(each.changes.keys() != {"network.alpha"} for each in whole.suggestions)


def test_an_unknown_goal_lists_the_goals() -> None:
    with pytest.raises(ConfigError, match="Did you mean faithful"):
        advice.advise(run_of(), family("tiny"), "faithfull")


def test_the_scale_and_how_it_moves() -> None:
    found = advice.scale(run_of(dim=16, alpha=8.0).network)
    assert found.value == 0.5 and found.moves == ((8, 1.0, 0.5), (32, 0.25, 0.5))
    root = advice.scale(run_of(dim=16, alpha=8.0, rs_lora=True).network)
    assert root.value == 2.0 and "√" in root.formula
    assert advice.scale(run_of(algo="full").network) is None
    assert "with alpha moved along with dim it stays 0.5." in found.text
    assert "1.41 at dim 8 and 2.83 at dim 32" in root.text


def test_another_batch_than_usual_is_reminded_of() -> None:
    usual = config.load()
    assert advice.batch_moved(usual) == ""
    for times, said in ((2, "2 times as many"), (0.5, "2 times as few")):
        batch = round(usual.train.batch_size * times)
        told = advice.batch_moved(knobs.replace(usual, {"train.batch_size": batch}))
        assert said in told and "learning rate" in told


WARNED = [
    ({"algo": "lokr", "dim": 64}, "keeps the large block whole"),
    ({"algo": "diag-oft", "dim": 128}, "takes blocks of"),
    ({"dim": 100_000, "alpha": 100_000.0}, "more than fp16 can hold"),
    ({"alpha": 100.0, "dim": 4}, "every change is scaled by 25"),
    ({"alpha": 1.0, "dim": 128}, "scaled by 0.00781"),
    ({"preset": "full", "conv_dim": 0}, "convolutions that the preset full takes are left out"),
    ({"conv_dim": 4}, "takes no convolution"), ({"dim": 2048}, "holds more numbers"),
    ({"options": {"use_tucker": True}}, "Tucker decomposition does nothing"),
    ({"algo": "ia3", "rank_dropout": 0.1}, "rank_dropout does nothing"),
    ({"algo": "ia3", "rs_lora": True}, "rs_lora does nothing"),
    ({"algo": "full"}, "usually trained with 1e-06 to 5e-06"),
]


@pytest.mark.parametrize(("network", "text"), WARNED, ids=lambda value: str(value)[:40])
def test_silent_surprises_are_told(network: dict[str, object], text: str) -> None:
    warnings = plan.make(run_of(**network), family=family("sd15"), need_dataset=False).warnings
    assert [text in warned.text for warned in warnings].count(True) == 1, "once for all layers"


def test_no_surprise_no_warning() -> None:
    for network in ({}, {"algo": "loha"}, {"algo": "lokr", "dim": 4, "options": {"factor": 8}},
                    {"algo": "lokr", "dim": 100_000, "alpha": FLOAT16_MAX * 1.5,
                     "options": {"full_matrix": True}},
                    {"algo": "diag-oft", "dim": 4}, {"preset": "full", "conv_dim": 8}):
        made = plan.make(run_of(**network), family=family("sd15"), need_dataset=False)
        shown = [each.text for each in made.warnings if "picture" not in each.text
                 and "px" not in each.text]
        assert not shown, network
