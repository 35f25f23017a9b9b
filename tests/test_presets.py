"""Presets: which layers they take, on real modules, and what is said of the rest."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_SD
from torch import nn

from lycoris import config, families, inspect, knobs, plan, presetfile, presets
from lycoris.algorithms import Layer
from lycoris.errors import ConfigError
from lycoris.families.sd import StableDiffusion
from lycoris.presets import Selection
from lycoris.settings import Config

# Layers of the UNet and of the text encoder on SD1.5 (reference/SIZES.md), and norms among them.
COUNTS = {"attn-only": (128, 48, 0), "attn-mlp": (192, 72, 64), "full-lin": (230, 72, 108),
          "full": (282, 72, 108), "unet-only": (282, 0, 108), "unet-transformer-only": (192, 0, 64),
          "unet-convblock-only": (88, 0, 44), "ia3": (80, 36, 0)}
TEXT = 'text_encoder_target_module = ["CLIPAttention", "CLIPMLP"]'
# The same presets as people have them for the LyCORIS package.
REFERENCE = {
    "attn-only": 'enable_conv = false\nunet_target_module = ["CrossAttention"]\n'
                 'unet_target_name = []\ntext_encoder_target_module = ["CLIPAttention"]',
    "attn-mlp": f'enable_conv = false\nunet_target_module = ["Transformer2DModel"]\n{TEXT}',
    "full-lin": 'enable_conv = false\nunet_target_module = ["Transformer2DModel", "ResnetBlock2D"]'
                f'\nunet_target_name = ["time_embedding.linear_1", "time_embedding.linear_2"]\n'
                f'{TEXT}',
    "full": 'enable_conv = true\nunet_target_module = ["Transformer2DModel", "ResnetBlock2D", '
            '"Downsample2D", "Upsample2D"]\nunet_target_name = ["conv_in", "conv_out", '
            f'"time_embedding.linear_1", "time_embedding.linear_2"]\n{TEXT}',
    "unet-convblock-only": 'enable_conv = true\nunet_target_module = ["ResnetBlock2D", '
                           '"Downsample2D", "Upsample2D"]\n'
                           'unet_target_name = ["conv_in", "conv_out"]\n'
                           'text_encoder_target_module = []',
    "ia3": r'''
enable_conv = false
unet_target_module = []
unet_target_name = [".*\\.to_k", ".*\\.to_v", ".*\\.ff\\.net\\.2"]
text_encoder_target_name = [".*\\.k_proj", ".*\\.v_proj", ".*\\.mlp\\.fc2"]
[name_algo_map.".*mlp.fc2"]
train_on_input = true
[name_algo_map.".*ff.net.2"]
train_on_input = true
''',
}
UNET, FC2 = "down_blocks.0.attentions.0.transformer_blocks.0", "encoder.layers.3.mlp.fc2"


@cache
def modules() -> dict[str, nn.Module]:
    """Stable Diffusion 1.5's own modules, built without memory."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        return {"unet": UNet2DConditionModel(cross_attention_dim=768),
                "text_encoder": CLIPTextModel(CLIPTextConfig(
                    hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                    num_attention_heads=12))}


@cache
def sd15() -> tuple[Layer, ...]:
    return tuple(layer for part, module in modules().items() for layer in families.layers_of(
        module, part, lambda name: name.removeprefix("text_model.")))


def take(layers: tuple[Layer, ...] | None = None, **table: Any) -> Selection:
    """What a preset of these keys takes of SD1.5, or of other layers."""
    return presets.select(StableDiffusion, layers or sd15(), presetfile.parse("mine", table))


def built_in(name: str) -> Selection:
    return presets.select(StableDiffusion, sd15(), presets.find(name, StableDiffusion))


def count(found: Selection) -> tuple[int, int]:
    return found.counts.get("unet", 0), found.counts.get("text_encoder", 0)


def test_every_preset_of_the_guideline_is_there() -> None:
    assert set(StableDiffusion.presets) == set(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_presets_take_what_the_guideline_meant(name: str) -> None:
    found = built_in(name)
    assert (*count(found), sum(layer.kind == "norm" for layer in found.layers)) == COUNTS[name]
    assert not found.unmatched and all(found.matched.values()) and not found.notes
    taken = set(found.layers)
    assert list(found.layers) == [layer for layer in sd15() if layer in taken]
    assert StableDiffusion.select(sd15(), name) == list(found.layers)


@pytest.mark.parametrize("name", REFERENCE)
def test_files_of_the_reference_package_take_the_same(name: str, tmp_path: Path) -> None:
    file = tmp_path / "theirs.toml"
    file.write_text(REFERENCE[name], "utf-8")
    found = presets.select(StableDiffusion, sd15(), presets.find(str(file), StableDiffusion))
    ours = built_in(name)
    assert (found.layers, found.overrides, found.conv) == (ours.layers, ours.overrides, ours.conv)
    assert not found.unmatched


def test_ia3_scales_inputs_of_the_feed_forward_only() -> None:
    found = built_in("ia3")
    assert found.overrides[("unet", f"{UNET}.ff.net.2")] == {"train_on_input": True}
    assert found.overrides[("text_encoder", FC2)] == {"train_on_input": True}
    assert len(found.overrides) == 16 + 12 and not found.conv


def test_blocks_are_where_the_real_modules_are() -> None:
    """Every class of the real model that the family knows, by the patterns that stand for it."""
    seen = 0
    for part, module in modules().items():
        for name, pattern in StableDiffusion.blocks[part].items():
            real = {path for path, each in module.named_modules() if type(each).__name__ == name}
            ours = {path for path, _ in module.named_modules() if re.fullmatch(pattern, path)}
            assert ours, f"{name} is nowhere"
            if real:
                assert ours == real, name
                seen += 1
    assert seen == 17


@pytest.mark.parametrize(("name", "expected"), [
    ("Attention", 128), ("CrossAttention", 128), ("SelfAttention", 64), ("FeedForward", 32),
    ("BasicTransformerBlock", 160), ("TimestepEmbedding", 2), ("UNet2DConditionModel", 282),
    ("Linear", 184), ("Conv2d", 98), ("Upsample2D", 3)])
def test_classes_of_the_unet(name: str, expected: int) -> None:
    assert count(take(unet_target_module=[name])) == (expected, 0)


@pytest.mark.parametrize(("name", "expected"), [
    ("CLIPSdpaAttention", 48), ("CLIPMLP", 24), ("CLIPEncoderLayer", 72), ("CLIPTextModel", 72),
    ("Linear", 72)])
def test_classes_of_the_text_encoder(name: str, expected: int) -> None:
    assert count(take(text_encoder_target_module=[name])) == (0, expected)


@pytest.mark.parametrize(("pattern", "globs", "expected"), [
    ("conv_in", False, (1, 0)),
    ("time_emb", False, (2, 0)),  # at the paths' start; so not the 22 time_emb_proj
    (r"down_blocks\.1\.", False, (32, 0)), ("mid_block", False, (18, 0)),
    (r".*\.proj_in$", False, (16, 0)), ("proj_in", False, (16, 0)), ("to_out", False, (32, 0)),
    ("attn2", False, (64, 0)), ("attn2.to_k", False, (16, 0)), ("proj", False, (16, 0)),
    ("mlp", False, (0, 24)), (r"fc\d", False, (0, 24)),
    (r"text_model\.encoder\.layers\.11", False, (0, 6)), ("encoder.layers.3", False, (0, 6)),
    ("*.to_k", True, (32, 0)), ("to_k", True, (32, 0)), ("*.attn2", True, (64, 0)),
    ("up_blocks.*.to_[kv]", True, (36, 0)), ("text_model.*.fc1", True, (0, 12)),
])
def test_names(pattern: str, globs: bool, expected: tuple[int, int]) -> None:
    assert count(take(target_name=[pattern], use_fnmatch=globs)) == expected


def test_lists_of_a_part_go_before_those_of_all() -> None:
    both = take(target_module=["Linear"])
    assert count(both) == (184, 72) and not both.notes
    assert count(take(target_module=["Linear"], text_encoder_target_name=["fc1"])) == (184, 12)
    assert count(take(target_module=["Linear"], unet_target_module=[])) == (0, 72)
    assert count(take(unet_target_module=["Attention"])) == (128, 0), "no word of the text encoder"
    unused = take(target_module=["Linear"], unet_target_name=["to_k"],
                  text_encoder_target_name=["fc1"])
    assert count(unused) == (32, 12) and "target_module and target_name are not used" in unused.text


def test_without_targets_those_of_full_are_taken() -> None:
    found = take(exclude_name=["mid_block"])
    assert count(found) == (282 - 18, 72) and "those of full" in found.text
    assert count(take(enable_conv=False)) == (230, 72)


def test_a_layer_named_twice_is_taken_once() -> None:
    """As the lists shipped with 4.1.3 do, which stop that package with an error."""
    found = take(unet_target_module=["Transformer2DModel", "TimestepEmbedding", "HunYuanDiTBlock"],
                 unet_target_name=["time_embedding.linear_1"])
    assert count(found) == (194, 0) and len(set(found.layers)) == len(found.layers)
    assert found.matched == {"Transformer2DModel": 192, "TimestepEmbedding": 2,
                             "HunYuanDiTBlock": 0, "time_embedding.linear_1": 1}
    assert found.unmatched == ("HunYuanDiTBlock",)


def test_exclusions() -> None:
    found = take(unet_target_module=["Attention"], exclude_name=["to_q", "attn2", "nowhere"])
    assert count(found) == (16 * 3, 0)
    assert found.matched == {"Attention": 48} and found.unmatched == ("exclude_name nowhere",)
    globs = take(unet_target_module=["Attention"], exclude_name=["*attn2*"], use_fnmatch=True)
    assert count(globs) == (64, 0)


def test_what_stays_without_convolutions() -> None:
    found = take(unet_target_module=["ResnetBlock2D"], enable_conv=False)
    assert count(found) == (22 + 14, 0) and not found.conv, "1x1 stay"
    assert take(unet_target_module=["ResnetBlock2D"]).conv
    own = take(unet_target_module=["ResnetBlock2D"], enable_conv=False,
               name_algo_map={"conv1": {"dim": 4}})
    assert count(own) == (22 + 14 + 22, 0), "a dim of its own brings a convolution back"


def test_the_nearest_settings_count() -> None:
    found = take(
        unet_target_module=["Transformer2DModel"], unet_target_name=["conv_in"],
        module_algo_map={"Attention": {"dim": 4}, "Transformer2DModel": {"algo": "lokr",
                                                                         "factor": 8},
                         "Linear": {"alpha": 2}, "ResnetBlock2D": {"dim": 3}},
        name_algo_map={"attn1.*": {"algo": "loha", "dim": 2}, f"{UNET}.attn1.to_q": {"dim": 7}})
    own = {name.removeprefix(f"{UNET}."): dict(settings)
           for (_, name), settings in found.overrides.items()}
    assert own["down_blocks.0.attentions.0.proj_in"] == {"algo": "lokr", "factor": 8}
    assert own["attn2.to_q"] == {"algo": "lokr", "alpha": 2.0}, "algo goes on, nothing else does"
    assert own["attn1.to_k"] == {"algo": "loha", "dim": 2}, "a name before a class"
    assert own["attn1.to_q"] == {"algo": "lokr", "dim": 7}, "a whole name before a pattern"
    assert "conv_in" not in own
    assert found.unmatched == ("module_algo_map.ResnetBlock2D",)


def test_names_of_the_reference_package_are_understood() -> None:
    made = presetfile.parse("mine", {
        "lora_prefix": "lycoris", "target_module": ["Linear"], "module_algo_map": {"Linear": {
            "algo": "locon", "lora_dim": 2, "use_cp": "true", "bypass_mode": True}}})
    assert dict(made.overrides[0].settings) == {"algo": "lora", "dim": 2, "use_tucker": True}
    assert [note.split()[0] for note in made.notes] == ["lora_prefix", "bypass_mode"]


def test_every_key_of_the_reference_package_is_accepted() -> None:
    presetfile.parse("mine", {
        "enable_conv": True, "use_fnmatch": False, "lora_prefix": "x", "module_algo_map": {},
        "name_algo_map": {}, **{key: ["a"] for key in (
            "target_module", "target_name", "unet_target_module", "unet_target_name",
            "text_encoder_target_module", "text_encoder_target_name", "exclude_name")}})


@pytest.mark.parametrize(("text", "words"), [
    ("unet_target_modul = ['Attention']", "no key unet_target_modul. Did you mean unet_target_m"),
    ("unet_target_name = ['to_(k']", "'to_(k' is no regular expression: missing )"),
    ("exclude_name = ['*attn*']", "set use_fnmatch = true"),
    ("unet_target_name = ['a{9999999999999}']", "no regular expression"),
    ("[name_algo_map.'+']\ndim = 1", "'+' is no regular expression"),
    ("unet_target_module = 'Attention'", "unet_target_module wants a list of texts"),
    ("unet_target_name = ['']", "unet_target_name wants a list of texts"),
    ("enable_conv = 'False'", "enable_conv is a switch"),
    ("module_algo_map = ['Attention']", "module_algo_map wants a table"),
    ("[module_algo_map]\nAttention = 4", "module_algo_map.Attention wants a table"),
    ("[name_algo_map.ff.net.2]\ndim = 4", "write a name with dots in quotation marks"),
    ("[module_algo_map.Attention]\nalgo = 'lorra'", "'lorra'; choose one of .* Did you mean lora"),
    ("[module_algo_map.Attention]\nalgo = 4", "there is no algorithm 4"),
    ("[module_algo_map.Attention]\nalgo = 'lora'\nfacto = 4", "lora has no setting facto"),
    ("[module_algo_map.Attention]\nalgo = 'lora'\nfactor = 4", "lora has no setting factor"),
    ("[module_algo_map.Attention]\nfacto = 4", "no setting facto. Did you mean factor"),
    ("[module_algo_map.Attention]\nweight_decompose = true", "the same for all layers; set "
     "network.dora_wd"),
    ("[module_algo_map.Attention]\ndim = 0", "Attention.dim is 0; the least is 1"),
    ("unet_target_name = [", "is not valid TOML"), ("x = '\udcff'", "is not UTF-8"),
])
def test_bad_files_are_refused(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=re.escape(words).replace(r"\.\*", ".*")) as caught:
        presetfile.read(file)
    assert set(caught.value.problems) == {"network.preset"} and "bad.toml" in str(caught.value)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        presetfile.parse("mine", {"target": [], "enable_conv": 1, "exclude_name": ["("]})
    assert all(word in str(caught.value) for word in ("no key target", "enable_conv", "'('"))


@pytest.mark.parametrize(("table", "words"), [
    ({"unet_target_module": ["Atention"], "unet_target_name": ["to_x"]},
     "nothing matched Atention, to_x"),
    ({"unet_target_module": []}, "it names nothing"),
    ({"unet_target_module": ["Attention"], "exclude_name": [".*"]}, "exclude_name takes out all"),
    ({"unet_target_name": ["conv_in"], "enable_conv": False}, "enable_conv = false leaves none"),
])
def test_a_preset_that_takes_nothing_is_an_error(table: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        take(**table)
    assert "Transformer2DModel" in caught.value.fix and "conv_in" in caught.value.fix


def test_targets_of_absent_parts_are_passed_over() -> None:
    unet = tuple(layer for layer in sd15() if layer.part == "unet")
    found = presets.select(StableDiffusion, unet, presets.find("ia3", StableDiffusion))
    assert found.counts == {"unet": 80}
    assert "k_proj" not in found.matched and found.unmatched == ("name_algo_map.mlp.fc2",)
    with pytest.raises(ConfigError, match="unet-only takes no layer"):
        StableDiffusion.select([layer for layer in sd15() if layer.part != "unet"], "unet-only")


def test_the_selection_in_words() -> None:
    assert built_in("attn-mlp").text == (
        "“attn-mlp”: 192 of the UNet's 282 and all 72 of the text encoder. Matched by name or "
        "class: Transformer2DModel (192), CLIPAttention (48), CLIPMLP (24).")
    many = [f"Block{number}" for number in range(9)]
    text = take(unet_target_module=["Attention", *many], lora_prefix="x",
                module_algo_map={"SelfAttention": {"dim": 2}}).text
    assert text == (
        "“mine”: 128 of the UNet's 282 and none of the text encoder. Matched by name or class: "
        "Attention (128). 64 layers have settings of their own. lora_prefix is not used: the "
        "family says how keys begin. Nothing matched: Block0, Block1, Block2, Block3, Block4, "
        "Block5 and 3 more.")


def test_the_embedded_model() -> None:
    layers = families.open_base(TINY_SD).layers
    found = {name: count(presets.select(StableDiffusion, layers,
                                        presets.find(name, StableDiffusion))) for name in COUNTS}
    assert found == {"attn-only": (32, 12), "attn-mlp": (48, 18), "full-lin": (63, 18),
                     "full": (83, 18), "unet-only": (83, 0), "unet-transformer-only": (48, 0),
                     "unet-convblock-only": (33, 0), "ia3": (20, 9)}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """own(name, text): a preset in the user's folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "presets").mkdir()

    def write(name: str, text: str) -> Path:
        file = tmp_path / "presets" / f"{name}.toml"
        file.write_text(text, "utf-8")
        return file

    return write


def test_own_presets_are_found_by_name_and_by_path(own: Callable[[str, str], Path]) -> None:
    assert presets.own_names() == ()
    file = own("mine", 'unet_target_name = ["to_k"]\n')
    own("another", 'unet_target_name = ["to_v"]\n')
    assert presets.own_names() == ("another", "mine")
    assert families.preset_names() == (*StableDiffusion.presets, "another", "mine")
    for name in ("mine", str(file), "presets/mine.toml"):
        run = config.load(None, [f"network.preset={name}"])
        made = plan.make(run, need_dataset=False)
        unet = {a.layer.name.rpartition(".")[2] for a in made.assignments}
        assert (made.sizes.modules, unet) == (8, {"to_k"})
    assert inspect.catalogues()["presets"]["own"] == ["another", "mine"]
    assert inspect.catalogues()["presets"]["sd"]["ia3"]["unet_target_name"][0] == "to_k"


def test_own_presets_that_cannot_be_used_are_told_with_the_other_settings(
        own: Callable[[str, str], Path]) -> None:
    own("broken", "unet_target_names = []")
    for name, words in (("broken", "Did you mean unet_target_name?"), ("nowhere.toml", "There is "),
                        ("brokken", "Did you mean broken?"), ("presets/", "cannot be read")):
        run = config.load(None, [f"network.preset={name}", "sample.sampler=none"])
        with pytest.raises(ConfigError) as caught:
            plan.make(run, need_dataset=False)
        assert set(caught.value.problems) == {"network.preset", "sample.sampler"}
        assert words in caught.value.problems["network.preset"]


def test_an_own_preset_cannot_hide_behind_a_built_in_one(own: Callable[[str, str], Path]) -> None:
    own("full", "unet_target_name = ['to_k']")
    with pytest.raises(ConfigError, match="full is built in.*rename the file"):
        presets.find("full", StableDiffusion)


def test_a_change_of_the_file_counts_at_once(own: Callable[[str, str], Path]) -> None:
    own("mine", 'unet_target_name = ["to_k"]')
    assert len(StableDiffusion.select(sd15(), "mine")) == 32
    own("mine", 'unet_target_name = ["to_k", "to_v"]')
    assert len(StableDiffusion.select(sd15(), "mine")) == 64


def test_the_page_offers_own_presets_and_holds_any_path(own: Callable[[str, str], Path]) -> None:
    import gradio as gr

    from lycogui.form import Form

    form = Form(Config())
    with gr.Blocks():
        form.place("algorithm")
    widget = form.widgets["network.preset"]
    own("mine", 'unet_target_name = ["to_k"]')
    path = "/somewhere/else.toml"
    update = form.write(knobs.replace(Config(), {"network.preset": path}))[widget]
    assert ("mine", "mine") in update["choices"] and update["value"] == path
    assert widget.preprocess(path) == path
