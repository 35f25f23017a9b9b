"""Configurations to share: each form is read as what was written, and nonsense is refused."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import torch
from conftest import TINY_SD
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lycoris import (
    algorithms,
    assignments,
    config,
    families,
    knobs,
    kohya_file,
    optimizers,
    plan,
    recipes,
    schedules,
    tensorfile,
)
from lycoris.config import LEAVES
from lycoris.errors import AdapterError, ConfigError, RunError
from lycoris.metadata import describe
from lycoris.settings import Config

ALGOS = tuple(algorithms.catalogue())
TEXTS = st.text(st.characters(blacklist_categories=("Cs",)), max_size=12)


@st.composite
def options_of(draw: st.DrawFn, algo: str) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, leaf in knobs.leaves(algorithms.catalogue()[algo].Options).items():
        if leaf.type is bool:
            value = st.booleans()
        elif leaf.knob.choices:
            value = st.sampled_from(leaf.knob.choices)
        elif leaf.type is int:
            value = st.integers(int(leaf.knob.low), 64)
        else:
            value = st.floats(leaf.knob.low, 10)
        if draw(st.booleans()):
            found[name] = draw(value)
    return found


@st.composite
def runs(draw: st.DrawFn) -> Config:
    algo = draw(st.sampled_from(ALGOS))
    dims = st.integers(1, 100_000)
    alphas = st.floats(0.01, 1e5)
    return knobs.replace(config.Config(), {
        "network.algo": algo, "network.options": draw(options_of(algo)), "network.dim": draw(dims),
        "network.alpha": draw(alphas), "network.conv_dim": draw(st.none() | st.integers(0, 64)),
        "network.conv_alpha": draw(st.none() | alphas), "network.dora_wd": draw(st.booleans()),
        "network.wd_on_output": draw(st.booleans()), "network.rs_lora": draw(st.booleans()),
        "network.preset": draw(st.sampled_from(("attn-only", "attn-mlp", "full", "ia3"))),
        "network.text_encoder": draw(st.booleans()), "network.train_norm": draw(st.booleans()),
        "network.use_scalar": draw(st.booleans()), "network.dropout": draw(st.floats(0, 0.95)),
        "network.rules": draw(st.sampled_from(((), (
            {"match": "*attn2*", "dim": 4}, {"match": "a'b\"c", "exclude": True})))),
        "optimizer.plus_ratio": draw(st.floats(1, 64)),
        "optimizer.text_encoder_plus_ratio": draw(st.none() | st.floats(1, 64)),
        "optimizer.lr": draw(st.floats(1e-7, 1)),
        "optimizer.text_encoder_lr": draw(st.none() | st.floats(1e-7, 1)),
        "optimizer.args": draw(st.sampled_from(({}, {"betas": [0.9, 0.99], "eps": 1e-8}))),
        "output.description": draw(TEXTS), "output.trigger": draw(TEXTS),
        "sample.prompts": tuple(draw(st.lists(TEXTS, max_size=3))),
        "sample.seeds": tuple(draw(st.lists(st.integers(0, 2**63 - 1), max_size=3))),
        "train.steps": draw(st.integers(1, 10**6)), "dataset.folder": "no such/folder"})


@given(runs(), st.sampled_from(("toml", "whole", "command")))
@settings(max_examples=150, deadline=None)
def test_our_forms_round_trip(run: Config, form: str) -> None:
    shared = recipes.write(run, form)
    found = recipes.read(shared.text)
    assert not shared.unsaid and not found.unknown
    reference = config.load(None, [f"model.base={run.model.base}"])
    assert found.applied(reference) == run


@given(runs())
@settings(max_examples=30, deadline=None)
def test_what_is_written_can_be_run(run: Config) -> None:
    """The TOML as a settings file, the command as one on the command line."""
    words = shlex.split(recipes.write(run, "command").text)
    assert words[:4] == ["python", "-m", "lycoris", "train"]
    assert config.settings(words[4:]) == run


KOHYAS = {  # what both have, beside the network
    "dataset.repeats": st.integers(1, 9), "dataset.resolution": st.sampled_from((64, 512, 1024)),
    "dataset.bucket": st.booleans(), "dataset.bucket_step": st.sampled_from((8, 64)),
    "dataset.enlarge": st.booleans(), "dataset.flip": st.booleans(),
    "dataset.random_crop": st.booleans(), "dataset.caption_dropout": st.sampled_from((0.0, 0.1)),
    "dataset.caption_chunks": st.integers(1, 3), "dataset.caption_prefix": st.just("photo of"),
    "dataset.shuffle_tags": st.booleans(), "dataset.keep_tags": st.integers(0, 5),
    "dataset.keep_separator": st.sampled_from(("", "|||")), "dataset.masks": st.booleans(),
    "dataset.tag_dropout": st.sampled_from((0.0, 0.2)), "dataset.wildcards": st.booleans(),
    "dataset.validation": st.sampled_from((0.0, 0.1)), "model.clip_skip": st.integers(1, 2),
    "train.batch_size": st.integers(1, 8), "train.accumulate": st.integers(1, 8),
    "train.clip_norm": st.sampled_from((0.0, 1.0)), "train.max_norm": st.sampled_from((0.0, 1.0)),
    "train.precision": st.sampled_from(("auto", "fp32", "bf16")),
    "train.checkpoint_every": st.integers(1, 500), "train.keep_checkpoints": st.integers(1, 5),
    "train.gradient_checkpointing": st.booleans(), "train.seed": st.integers(0, 2**31),
    "loss.weighting": st.sampled_from(("none", "min-snr", "debiased", "p2")),
    "loss.distance": st.sampled_from(("l2", "l1", "huber", "smooth-l1")),
    "loss.huber_schedule": st.sampled_from(("constant", "snr")),
    "loss.noise_offset": st.sampled_from((0.0, 0.05)), "loss.pyramid_iterations":
    st.sampled_from((0, 6)), "loss.prior_weight": st.sampled_from((1.0, 0.5)),
    "loss.unmasked_weight": st.sampled_from((0.0, 0.1)),
    "optimizer.name": st.sampled_from(tuple(optimizers.ROWS)),
    "optimizer.weight_decay": st.sampled_from((0.0, 0.1)),
    "optimizer.schedule": st.sampled_from(tuple(schedules.SCHEDULES)),
    "optimizer.warmup": st.sampled_from((0.0, 0.1)), "optimizer.floor": st.sampled_from((0.0, 0.1)),
    "optimizer.cycles": st.integers(1, 4), "optimizer.power": st.sampled_from((1.0, 2.0)),
    "optimizer.decay": st.sampled_from((0.25, 1.0)), "output.dtype": st.sampled_from(
        ("fp16", "bf16", "fp32")), "output.author": st.just("somebody"),
    "sample.sampler": st.sampled_from(("Euler a", "DPM++ 2M")), "sample.every": st.integers(1, 9)}
# What has a say only where something else is so.
ONLY_WITH = {"optimizer.cycles": ("optimizer.schedule", "cosine_with_restarts"),
             "optimizer.power": ("optimizer.schedule", "polynomial"),
             "optimizer.decay": ("optimizer.schedule", "wsd"),
             "loss.unmasked_weight": ("dataset.masks", True),
             "network.wd_on_output": ("network.dora_wd", True)}


@given(run=runs(), more=st.fixed_dictionaries(KOHYAS), several=st.booleans())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_kohyas_words_round_trip(run: Config, more: dict[str, object], several: bool,
                                 tmp_path_factory: pytest.TempPathFactory) -> None:
    """Everything that both have comes back, and everything else was named."""
    if run.network.algo not in kohya_file.REFERENCE:
        with pytest.raises(ConfigError, match="have no svdiff"):
            recipes.write(run, "kohya")
        return
    here = tmp_path_factory.getbasetemp()
    folders = [here / name for name in ("cats", "dogs", "masks", "zoo")]
    for path in folders:
        path.mkdir(exist_ok=True)
    cats, dogs, masks, zoo = map(str, folders)
    run = knobs.replace(run, {**more, "dataset.folder": cats, "dataset.more": (
        {"folder": dogs, "repeats": 2, "caption": "a dog"},
        {"folder": zoo, "regularisation": True}) * several,
        "dataset.balance": several, "dataset.mask_folder": masks * bool(more["dataset.masks"])})
    shared = recipes.write(run, "kohya")
    tomllib.loads(shared.text)
    found = recipes.read(shared.text)
    assert all(each.startswith("output_dir=") for each in found.unknown), found.unknown
    back = found.applied(config.Config())
    limited = run.loss.distance in ("huber", "smooth-l1")
    for path in LEAVES:
        other, value = ONLY_WITH.get(path, ("train.steps", run.train.steps))
        if (path in shared.unsaid or path in ("network.options", "model.base", "output.folder")
                or knobs.get(run, other) != value
                or (path.startswith("loss.huber") and not limited)
                or (path == "optimizer.floor" and run.optimizer.schedule == "constant")
                or (path == "optimizer.text_encoder_lr" and not run.network.text_encoder)):
            continue
        said = knobs.get(run, path)
        same = None if path == "optimizer.text_encoder_lr" and said == run.optimizer.lr else said
        assert knobs.get(back, path) == same, path
    for name, value in run.network.options.items():
        if f"network.options.{name}" not in shared.unsaid:
            assert back.network.options.get(name, False) == value
    assert "decompose_both=False" not in shared.text, "LyCORIS takes any text as yes"


def test_only_what_differs_is_written() -> None:
    run = config.load(None, ["network.dim=7"])
    assert recipes.write(run, "toml").text == "[network]\ndim = 7\n", "tiny-sd's advice aside"
    assert "guidance" in recipes.write(run, "whole").text
    with pytest.raises(ConfigError, match="choose one of toml, whole, command, kohya"):
        recipes.write(run, "yaml")


COMMAND = r"""accelerate launch --num_cpu_threads_per_process 2 train_network.py \
  --pretrained_model_name_or_path="C:\models\v1-5.safetensors" --network_module=lycoris.kohya ^
  --network_dim=16 --network_alpha 8 --network_args "algo=lokr" "factor=8" "preset=attn-mlp" \
  "conv_dim=4" "dora_wd=True" "wd_on_output=True" "bypass_mode=False" "magic=1" \
  --learning_rate=5e-4 --text_encoder_lr=1e-4 --optimizer_type AdamW8bit \
  --optimizer_args "weight_decay=0.1" "betas=0.9,0.99" --lr_scheduler=cosine \
  --lr_warmup_steps=100 --max_train_steps=1000 --resolution=768,768 --mixed_precision=bf16 \
  --cache_latents --seed 7"""
SETTINGS = {
    "network.algo": "lokr", "network.preset": "attn-mlp", "network.dim": 16, "network.alpha": 8.0,
    "network.conv_dim": 4, "network.dora_wd": True, "network.wd_on_output": True,
    "network.options": {"factor": 8}, "optimizer.lr": 5e-4, "optimizer.text_encoder_lr": 1e-4,
    "optimizer.name": "AdamW8bit", "optimizer.weight_decay": 0.1,
    "optimizer.args": {"betas": (0.9, 0.99)}, "optimizer.schedule": "cosine",
    "optimizer.warmup": 0.1, "train.steps": 1000, "dataset.resolution": 768,
    "train.precision": "bf16", "train.seed": 7}


def test_a_pasted_kohya_command() -> None:
    found = recipes.read(COMMAND)
    assert found.settings == SETTINGS and found.source == "kohya's command line"
    said = " ".join(found.unknown)
    for name in ("magic=1", "cache_latents", "pretrained_model_name_or_path", "bypass_mode"):
        assert name in said
    assert len(found.unknown) == 4, found.unknown


def test_kohyas_toml() -> None:
    found = recipes.read("""
[network_arguments]
network_module = "lycoris.kohya"
network_args = ["algo=loha", "use_cp=True"]
network_dim = 8
network_train_unet_only = true
[optimizer_arguments]
unet_lr = 1e-4
text_encoder_lr = 0
""")
    assert found.settings == {
        "network.algo": "loha", "network.preset": "full", "network.dim": 8, "network.alpha": 1.0,
        "network.text_encoder": False, "network.options": {"use_tucker": True},
        "optimizer.lr": 1e-4}, "what the trainer takes by itself is said"


@pytest.mark.parametrize(("text", "expected"), [
    ("algo=lokr factor=8 preset=attn-mlp conv_dim=4 dora_wd=True wd_on_output=False",
     {"network.algo": "lokr", "network.preset": "attn-mlp", "network.conv_dim": 4,
      "network.dora_wd": True, "network.wd_on_output": False, "network.options": {"factor": 8}}),
    ("factor=4", {"network.options": {"factor": 4}}),
    ("algo=LoCon", {"network.algo": "lora", "network.options": {}}),
    ("network.dim=4\nnetwork.alpha=2", {"network.dim": 4, "network.alpha": 2.0}),
    ("network.algo=loha network.options.use_tucker=true",
     {"network.algo": "loha", "network.options": {"use_tucker": True}}),
    ("--network_module networks.lora --network_dim 8 --network_alpha 4",
     {"network.algo": "lora", "network.preset": "attn-mlp", "network.dim": 8,
      "network.alpha": 4.0, "network.options": {}}),
    ('{"ss_network_module": "lycoris.kohya", "ss_network_dim": "8", "ss_network_alpha": "4",'
     ' "ss_network_args": "{\\"algo\\": \\"ia3\\"}", "ss_steps": "10"}',
     {"network.algo": "ia3", "network.preset": "full", "network.dim": 8, "network.alpha": 4.0,
      "network.options": {}}),
])
def test_short_texts(text: str, expected: dict[str, object]) -> None:
    found = recipes.read(text)
    assert found.settings == expected and not found.unknown


@pytest.mark.parametrize("text", [
    "", "hello", "hello = 1", "[network]\ndim = = 4", "--network_dim abc",
    "network.dim=0", "algo=lokr factor=much", '"unclosed', "[[[", "{}", "=", "\x00", "42",
    "network.algo=lokr network.options.factr=4"])
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        recipes.read(text)


@given(st.text(max_size=60) | st.text("algo=lokrdim.network[]{}\"'\\-- \n", max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_text_gives_settings_or_a_typed_error(text: str) -> None:
    try:
        found = recipes.read(text)
    except ConfigError:
        return
    assert found.settings and found.settings.keys() <= LEAVES.keys()


def test_a_recipe_drops_what_belongs_to_another_algorithm() -> None:
    run = knobs.replace(config.Config(), {"network.init": "pissa"})
    loha = recipes.read("algo=loha").applied(run)
    assert loha.network.init == "default"
    lokr = knobs.replace(run, {"network.algo": "lokr", "network.init": "default",
                               "network.options": {"factor": 8, "decompose_both": True}})
    assert recipes.read("factor=4").applied(lokr).network.options == {
        "factor": 4, "decompose_both": True}


def test_a_name_that_is_not_known_here_is_said() -> None:
    found = recipes.read("algo=abba preset=my.toml factor=4 dora_wd=True")
    assert found.settings == {"network.dora_wd": True, "network.options": {"factor": 4}}
    assert any("algo=abba" in each for each in found.unknown)
    assert any("preset=my.toml" in each for each in found.unknown)
    assert any("wd_on_output is not said" in each for each in found.unknown)
    assert any("loha has no such option" in each
               for each in recipes.read("algo=loha factor=4").unknown)


def _adapter(path: Path, metadata: dict[str, str]) -> Path:
    return tensorfile.write(path, {"lora_unet_x.alpha": torch.zeros(())}, metadata)


def test_an_adapter_tells_its_recipe(tmp_path: Path) -> None:
    run = config.load(None, ["network.algo=lokr", "network.options.factor=4", "train.steps=77"])
    family = families.open_base(TINY_SD)
    found = describe(run, family, None, plan.facts_of(run, ()))
    recipe = recipes.of_file(_adapter(tmp_path / "ours.safetensors", found))
    assert recipe.applied(config.Config()) == run and not recipe.unknown
    del found["lycogui_config"]
    recipe = recipes.of_file(_adapter(tmp_path / "kohya.safetensors", found))
    back = recipe.applied(config.Config())
    assert not recipe.unknown
    assert (back.network.algo, back.network.options, back.network.dim, back.train.steps,
            back.optimizer.lr) == ("lokr", {"factor": 4}, run.network.dim, 77, run.optimizer.lr)
    with pytest.raises(AdapterError, match="does not say how it was trained"):
        recipes.of_file(_adapter(tmp_path / "bare.safetensors", {}))


def test_kohyas_metadata(tmp_path: Path) -> None:
    found = recipes.of_file(_adapter(tmp_path / "a.safetensors", {
        "ss_network_module": "lycoris.kohya", "ss_network_dim": "Dynamic",
        "ss_network_alpha": "None", "ss_network_args": json.dumps({"algo": "loha", "x": "1"}),
        "ss_optimizer": "torch.optim.adamw.AdamW(weight_decay=0.1,betas=(0.9, 0.95))",
        "ss_text_encoder_lr": "[1e-05, 1e-05]", "ss_unet_lr": "0.0001", "ss_seed": "3",
        "ss_noise_offset": "None", "ss_tag_frequency": "{}", "ss_session_id": "12"}))
    assert found.settings == {
        "network.algo": "loha", "network.preset": "full", "network.alpha": 1.0,
        "network.options": {}, "optimizer.name": "AdamW", "optimizer.weight_decay": 0.1,
        "optimizer.args": {"betas": (0.9, 0.95)}, "optimizer.lr": 1e-4,
        "optimizer.text_encoder_lr": 1e-5, "train.seed": 3}
    assert len(found.unknown) == 2 and "network_dim differs" in found.unknown[0]
    assert "x=1" in found.unknown[1]


def test_kohyas_precision_of_the_vae() -> None:
    assert recipes.read("--no_half_vae --seed=1").settings["model.vae_dtype"] == "fp32"
    assert "model.vae_dtype" not in recipes.read("--no_half_vae=false --seed=1").settings
    run = knobs.replace(config.load(), {"model.vae_dtype": "fp32"})
    assert recipes.read(recipes.write(run, "kohya").text).settings["model.vae_dtype"] == "fp32"
    half = recipes.write(knobs.replace(run, {"model.vae_dtype": "half"}), "kohya")
    assert "model.vae_dtype" in half.unsaid


def test_kohyas_optimisers_and_courses() -> None:
    found = recipes.read("--learning_rate=1 --optimizer_type=prodigy --optimizer_args "
                         '"decouple=True" "use_bias_correction=True" "d_coef=2" '
                         "--lr_scheduler=cosine_with_restarts --lr_scheduler_num_cycles=3")
    assert found.settings == {
        "optimizer.lr": 1, "optimizer.name": "Prodigy", "optimizer.schedule":
        "cosine_with_restarts", "optimizer.cycles": 3, "optimizer.args": {
            "weight_decouple": True, "bias_correction": True, "d_coef": 2},
        "optimizer.weight_decay": 0.0} and not found.unknown
    found = recipes.read("--optimizer_type=AdamWScheduleFree --lr_scheduler=polynomial "
                         "--lr_scheduler_power=2 --unet_lr=1e-4 --text_encoder_lr 5e-5 1e-5")
    assert found.settings == {
        "optimizer.name": "ScheduleFreeAdamW", "optimizer.schedule": "polynomial",
        "optimizer.power": 2, "optimizer.lr": 1e-4, "optimizer.text_encoder_lr": 5e-5,
        "optimizer.text_encoder_2_lr": 1e-5, "optimizer.weight_decay": 0.0}
    for name in ("PagedAdamW8bit", "Lion", "Lion8bit", "AdaFactor", "CAME", "adafactor"):
        said = recipes.read(f"--optimizer_type={name} --lr_scheduler=warmup_stable_decay")
        assert said.settings["optimizer.name"].lower() == name.lower()
        assert said.settings["optimizer.schedule"] == "wsd"
    assert recipes.read("--lr_scheduler=cosine_with_min_lr --lr_scheduler_min_lr_ratio=0.1"
                        ).settings == {"optimizer.schedule": "cosine", "optimizer.floor": 0.1}


def test_prose_is_no_recipe() -> None:
    words = "this is a long sentence that says network.dim=4 among very many other words of it"
    with pytest.raises(ConfigError, match="holds no settings"):
        recipes.read(words)
    found = recipes.read("take network.dim=4 there")
    assert found.settings == {"network.dim": 4} and found.unknown == ("take, there: no settings.",)
    assert "There is no setting network.dims" in recipes.read(
        "[network]\ndims = 4\nalpha = 2").unknown[0]


def test_files_of_text(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("[network]\ndim = 3\n", "utf-8")
    assert recipes.of_file(file).settings == {"network.dim": 3}
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    for name, kind in (("b.txt", AdapterError), ("none.toml", (AdapterError, RunError))):
        with pytest.raises(kind):
            recipes.of_file(tmp_path / name)


def test_kohyas_ratios_of_lora_plus() -> None:
    for said, unet, text in (("loraplus_lr_ratio=16", 16, None),
                             ("loraplus_unet_lr_ratio=8", 8, 1),
                             ("loraplus_unet_lr_ratio=8 loraplus_lr_ratio=16", 8, 16),
                             ("loraplus_lr_ratio=16 loraplus_text_encoder_lr_ratio=4", 16, 4)):
        found = recipes.read(f"--network_module=lycoris.kohya --network_args {said}")
        assert found.settings["optimizer.plus_ratio"] == unet, said
        assert found.settings.get("optimizer.text_encoder_plus_ratio") == text, said


WHOLE = """
pretrained_model_name_or_path = "stabilityai/stable-diffusion-xl-base-1.0"
network_module = "networks.lora"
network_dim = 8
network_args = ["conv_dim=4"]
unet_lr = 1e-4
network_train_unet_only = true
max_train_epochs = 10
max_train_steps = 1600
save_every_n_epochs = 1
save_every_n_steps = 100
save_last_n_steps = 200
sample_sampler = "euler_a"
lr_scheduler = "constant"
lr_warmup_steps = 100
optimizer_type = "Lion"
max_token_length = 225
min_snr_gamma = 5
color_aug = true
weighted_captions = false
cache_latents = true
[general]
shuffle_caption = true
keep_tokens = 2
keep_tokens_separator = "|||"
enable_bucket = true
caption_tag_dropout_rate = 0.1
caption_prefix = "photo,"
[[datasets]]
resolution = [512, 768]
batch_size = 3
min_bucket_reso = 320
bucket_no_upscale = true
  [[datasets.subsets]]
  image_dir = "CATS"
  num_repeats = 10
  class_tokens = "a cat"
  flip_aug = true
  [[datasets.subsets]]
  image_dir = "DOGS"
  [[datasets.subsets]]
  image_dir = "REGS"
  is_reg = true
  num_repeats = 2
  [[datasets.subsets]]
  image_dir = "GONE"
"""


@pytest.fixture()
def folders(tmp_path: Path) -> dict[str, str]:
    found = {name: str(tmp_path / name.lower()) for name in ("CATS", "DOGS", "REGS", "GONE")}
    for name in ("CATS", "DOGS", "REGS"):
        Path(found[name]).mkdir()
    return found


def test_a_whole_recipe_of_kohyas(folders: dict[str, str]) -> None:
    text = WHOLE
    for name, path in folders.items():
        text = text.replace(f'"{name}"', json.dumps(path))
    found = recipes.read(text)
    expected = {
        "model.base": "stabilityai/stable-diffusion-xl-base-1.0", "network.preset": "full",
        "network.conv_dim": 4, "network.conv_alpha": 1.0, "network.alpha": 1.0,
        "network.text_encoder": False, "train.checkpoint_every": 100,
        "train.keep_checkpoints": 3, "sample.sampler": "Euler a",
        "optimizer.schedule": "constant", "optimizer.warmup": 0.0, "optimizer.name": "Lion",
        "optimizer.weight_decay": 0.0, "dataset.caption_chunks": 3, "loss.weighting": "min-snr",
        "dataset.shuffle_tags": True, "dataset.keep_tags": 2, "dataset.keep_separator": "|||",
        "dataset.tag_dropout": 0.1, "dataset.caption_prefix": "photo,", "dataset.bucket": True,
        "dataset.resolution": 624, "dataset.enlarge": False, "train.batch_size": 3,
        "dataset.caption_dropout": 0.0, "dataset.folder": folders["DOGS"], "dataset.repeats": 1,
        "dataset.balance": True, "dataset.flip": False, "dataset.more": (
            {"folder": folders["CATS"], "repeats": 10, "caption": "a cat"},
            {"folder": folders["REGS"], "repeats": 2, "regularisation": True})}
    assert {path: found.settings.get(path) for path in expected} == expected
    assert "train.steps" not in found.settings, "epochs overrule them"
    said = " ".join(found.unknown)
    for name in ("max_train_epochs=10", "max_train_steps=1600", "save_every_n_epochs=1",
                 "color_aug", "cache_latents", "flip_aug differs", "image_dir=" + folders["GONE"]):
        assert name in said, name
    assert len(found.unknown) == 7, found.unknown
    notes = " ".join(found.notes)
    for name in ("lr_warmup_steps=100", "keep_tokens", "area of 624", "dataset.caption_dropout"):
        assert name in notes and name in found.text, name
    assert found.whole().dataset.more == expected["dataset.more"]


def test_a_dataset_config_beside_a_command(folders: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "data.toml"
    file.write_text("[[datasets]]\nresolution = 768\n[[datasets.subsets]]\n"
                    f"image_dir = {json.dumps(folders['CATS'])}\nalpha_mask = true\n", "utf-8")
    found = recipes.read(f"--network_module=lycoris.kohya --dataset_config {shlex.quote(str(file))}"
                         f" --reg_data_dir {shlex.quote(folders['REGS'])} --max_token_length=100")
    run = found.applied(config.Config())
    assert (run.dataset.folder, run.dataset.resolution, run.dataset.masks) == (
        folders["CATS"], 768, True)
    assert run.dataset.more == ({"folder": folders["REGS"], "regularisation": True},)
    assert (run.optimizer.schedule, run.train.steps) == ("constant", 1600), "as it takes them"
    assert (run.optimizer.lr, run.optimizer.text_encoder_lr) == (2e-6, 2e-6)
    assert len(found.unknown) == 1 and "max_token_length=100" in found.unknown[0]


def test_metadata_tell_of_the_folders_but_not_where(tmp_path: Path) -> None:
    found = recipes.of_file(_adapter(tmp_path / "a.safetensors", {
        "ss_network_module": "networks.lora", "ss_learning_rate": "0.0001", "ss_datasets":
        json.dumps([{"resolution": [768, 768], "enable_bucket": True, "num_train_images": 3,
                     "subsets": [{"flip_aug": True, "num_repeats": 10, "image_dir": "assets"}]}])}))
    run = found.applied(config.Config())
    assert (run.dataset.resolution, run.dataset.flip) == (768, True)
    assert run.dataset.folder == config.Config().dataset.folder
    assert len(found.unknown) == 1 and "repeated 10 times" in found.unknown[0]


def test_kohyas_folders_are_written_one_by_one(tmp_path: Path) -> None:
    for name in ("10_cat", "3_dog"):
        (tmp_path / name).mkdir()
    found = recipes.read(recipes.write(config.load(None, [f"dataset.folder={tmp_path}"]),
                                       "kohya").text)
    first, second = str(tmp_path / "10_cat"), str(tmp_path / "3_dog")
    assert [found.settings[f"dataset.{name}"] for name in ("folder", "repeats", "more")] == [
        second, 3, ({"folder": first, "repeats": 10, "caption": "cat"},)] or [
        found.settings[f"dataset.{name}"] for name in ("folder", "repeats", "more")] == [
        first, 10, ({"folder": second, "repeats": 3, "caption": "dog"},)]


def _blocks(text: str) -> recipes.Recipe:
    return recipes.read(f"--network_module=networks.lora --network_dim=8 --network_alpha=4 "
                        f"--unet_lr=1e-3 --network_args {text}")


def test_rates_by_blocks_are_rules() -> None:
    """Which layers theirs are was read off the names: input_blocks_4_1 is down_blocks.1's first."""
    found = _blocks('"down_lr_weight=1,1,1,1,.5,1,1,1,1,1,1,1" "mid_lr_weight=0"')
    assert found.settings["network.rules"] == (
        {"match": "unet.down_blocks.1.attentions.0.*", "dim": 8, "alpha": 4.0, "lr": 5e-4},
        {"match": "unet.mid_block.attentions.0.*", "exclude": True}) and not found.unknown
    found = _blocks('"up_lr_weight=1,1,1,1,1,.5,1,1,1"')
    assert [rule["match"] for rule in found.settings["network.rules"]] == [
        "unet.up_blocks.1.attentions.2.*"], "nine are SDXL's"
    for text in ('"down_lr_weight=sine+.25"', '"block_dims=1,2,3"', '"mid_lr_weight=x"'):
        found = _blocks(text)
        assert "network.rules" not in found.settings and len(found.unknown) == 1, text
    said = recipes.read("--network_module=lycoris.kohya --network_args algo=loha mid_lr_weight=0")
    assert "only networks.lora" in said.unknown[0]
    said = recipes.read("--network_module=lycoris.kohya --network_args algo=lokr "
                        "decompose_both=False")
    assert said.settings["network.options"] == {"decompose_both": False} and "as yes" in said.text


@pytest.mark.parametrize("conv", [False, True])
def test_sizes_by_blocks_are_rules(conv: bool) -> None:
    """Every layer gets the dim and alpha of its block, by its number in the original UNet."""
    dims = [0, *range(1, 25)]
    dims[5] = 0
    found = _blocks(f'"block_dims={",".join(map(str, dims))}"' + (
        ' "conv_dim=3" "conv_alpha=2"' if conv else ""))
    run = found.whole()
    run = knobs.replace(run, {"model.family": "sd15", "network.text_encoder": False})
    layers = assignments.assign_family(families.open_chosen(run.model), run.network)
    assert not found.unknown
    for each in layers:
        way, number, kind, place = re.match(
            r"(\w+?)_block[s]?\.?(\d)?\.(\w+)\.(\d)", each.layer.name).groups()
        at = {"down": 1, "mid": 12, "up": 13}[way] + 3 * int(number or 0) * (way != "mid") + (
            2 if "samplers" in kind else int(place) * (way != "mid"))
        expected = (3, 2.0) if each.layer.is_spatial else (dims[at], 4.0)
        assert (each.algorithm.dim, each.algorithm.alpha) == expected, each.layer.name
        assert at != 5 or each.layer.is_spatial
    assert {each.layer.is_spatial for each in layers} == ({False, True} if conv else {False})
