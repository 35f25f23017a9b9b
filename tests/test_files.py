"""Adapter files: metadata, what other programs read, and files that are not what they seem."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import make_base
from torch import nn

import lycoris
from lycoris import (
    adapterfile,
    contestants,
    dialects,
    families,
    inspect,
    knobs,
    metadata,
    outfile,
    plan,
    tensorfile,
    trainer,
)
from lycoris.adapterfile import AdapterFile
from lycoris.errors import AdapterError, ConfigError
from lycoris.settings import Config


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory,
            small_base: Path) -> Callable[[str], tuple[Path, Config]]:
    """trained("loha"): the adapter of a short run, made once an algorithm."""
    from conftest import config
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    for number in range(3):
        Image.new("RGB", (20, 20), (80 * number, 40, 200)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a plain, one colour")
    held: dict[str, tuple[Path, Config]] = {}

    def make(algo: str) -> tuple[Path, Config]:
        if algo not in held:
            run = config.load(None, [
                f"model.base={small_base}", f"dataset.folder={folder}", "output.name=one",
                f"output.folder={tmp_path_factory.mktemp('runs')}", "dataset.resolution=16",
                "dataset.bucket_step=4", "network.preset=full", "network.dim=2",
                "network.alpha=1", f"network.algo={algo}", "train.steps=3", "optimizer.lr=0.05",
                "sample.every=0", "output.dtype=fp32"])
            where = Path(run.output.folder) / "one"
            ended = trainer.run(plan.make(run), where, lambda event: None, lambda: set())
            held[algo] = where / ended.path, run
        return held[algo]

    return make


def test_metadata_for_other_programs(trained: Callable[[str], tuple[Path, Config]]) -> None:
    path, run = trained("loha")
    found = AdapterFile(path).metadata
    assert found["ss_network_module"] == "lycoris.kohya" and found["ss_network_dim"] == "2"
    assert found["ss_network_alpha"] == "1" and found["ss_base_model_version"] == "sd_v1"
    assert json.loads(found["ss_network_args"])["algo"] == "loha"
    tags = next(iter(json.loads(found["ss_tag_frequency"]).values()))
    assert tags == {"a plain": 3, "one colour": 3}
    assert found["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert found["modelspec.sai_model_spec"] == "1.0.1"
    made = plan.make(run).config
    assert metadata.config_of(found) == knobs.replace(made, {
        "output.folder": Config().output.folder, "model.base": Path(made.model.base).name,
        "dataset.folder": Path(made.dataset.folder).name}), "all but where on this machine"


@pytest.mark.parametrize(("text", "expected"), [
    ('{"network.dim": 8, "network.dropout": 7, "train.of_tomorrow": 1, "output.name": "a/b"}',
     knobs.replace(Config(), {"network.dim": 8})),
    ("{}", Config()), ("[1]", None), ("3", None), ("null", None), ("no json", None),
    ("[" * 100_000, None)])
def test_settings_of_another_version_are_no_obstacle(text: str, expected: Config | None) -> None:
    """An adapter is painted whatever its metadata says; what cannot be used is left out."""
    assert metadata.config_of({metadata.CONFIG_KEY: text}) == expected
    assert metadata.config_of({}) is None


def test_hashes_are_those_other_programs_compute(
        trained: Callable[[str], tuple[Path, Config]]) -> None:
    path, _ = trained("lora")
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    found = AdapterFile(path).metadata
    assert found["sshs_model_hash"] == hashlib.sha256(data[start:]).hexdigest()
    assert found["modelspec.hash_sha256"] == "0x" + found["sshs_model_hash"]


def test_legacy_hash_of_a_large_file() -> None:
    """The first 8 digits over 64 KiB at 1 MiB of a file with the ss_* keys only."""
    tensors = {"a": torch.randn(300_000), "b": torch.randn(50_000)}
    found = {"ss_x": "1", "other": "not in it"}
    hashed = metadata.with_hashes(found, tensors)
    start, order = tensorfile.header(tensorfile.entries_of(tensors), {"ss_x": "1"})
    whole = start + b"".join(bytes(tensorfile.raw_bytes(tensors[name])) for name in order)
    assert hashed["sshs_legacy_hash"] == hashlib.sha256(whole[0x100000:0x110000]).hexdigest()[:8]


def test_keys_are_kohyas(trained: Callable[[str], tuple[Path, Config]]) -> None:
    path, _ = trained("lora")
    keys = AdapterFile(path).entries
    block = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0"
    for key in (f"{block}_attn1_to_q.lora_up.weight",
                "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight",
                "lora_unet_down_blocks_0_resnets_0_conv1.alpha"):
        assert key in keys


def test_diffusers_paints_the_same_with_our_lora(
        trained: Callable[[str], tuple[Path, Config]], small_base: Path) -> None:
    """load_lora_weights of another program gives the same denoiser and text encoder outputs."""
    pytest.importorskip("peft", reason="diffusers reads LoRA files through peft")
    from diffusers import StableDiffusionPipeline

    path, _ = trained("lora")
    pipe = StableDiffusionPipeline.from_pretrained(small_base, safety_checker=None)
    pipe.load_lora_weights(str(path.parent), weight_name=path.name)
    family = families.open_base(small_base)
    model = family.load(torch.device("cpu"), torch.float32)
    network, match = contestants.load(contestants.Contestant("x", path), family, model)
    assert network is not None and match is not None and match.whole
    plain = model.encode_text(["a ball"])
    network.apply_to()
    torch.manual_seed(0)
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([500])
    ids = pipe.tokenizer(["a ball"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        text = pipe.text_encoder(ids).last_hidden_state
        ours = model.encode_text(["a ball"])
        assert torch.allclose(text, ours["hidden"], atol=1e-5)
        assert not torch.allclose(ours["hidden"], plain["hidden"], atol=1e-4)
        theirs = pipe.unet(x, t, text, return_dict=False)[0]
        assert torch.allclose(theirs, model.predict(x, t, ours), atol=1e-5)


@pytest.mark.parametrize("algo", ["lora", "loha"])
def test_round_trip_through_the_public_api(algo: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    root = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    x = torch.randn(3, 6)
    network = lycoris.create_lycoris(root, 1.0, 2, 1, algo).apply_to()
    for parameter in network.get_trainable_params():
        torch.nn.init.normal_(parameter)
    trained = root(x).detach()
    network.save_weights(tmp_path / "a.safetensors", torch.float32, {"note": "ours"})
    again = lycoris.create_lycoris(root, 1.0, 2, 4, algo)
    network.restore()
    again.load_weights(tmp_path / "a.safetensors")
    again.apply_to()
    assert torch.allclose(root(x), trained, atol=1e-6), "the file's alpha, not the network's"
    again.restore()
    other = lycoris.create_lycoris(root, 1.0, 3, 1, algo)
    with pytest.raises(AdapterError, match="does not fit"):
        other.load_weights(tmp_path / "a.safetensors")
    found, tensors = lycoris.create_lycoris_from_weights(1.0, tmp_path / "a.safetensors", root)
    assert set(tensors) == set(network.file_tensors()), "as the reference package returns them"
    found.merge_to()
    assert torch.allclose(root(x), trained, atol=1e-5)


@pytest.mark.parametrize("dialect", ["kohya", "lycoris", "diffusers", "onetrainer", "ai-toolkit"])
def test_load_weights_takes_any_dialect(small_base: Path, tmp_path: Path, dialect: str) -> None:
    family = families.open_base(small_base)
    unet = family.load(torch.device("cpu"), torch.float32).modules["unet"]
    network = lycoris.create_lycoris(unet, 1.0, 2, 1, preset="attn-only")
    for parameter in network.get_trainable_params():
        torch.nn.init.normal_(parameter)
    layers = {layer.name: layer for layer in family.layers if layer.part == "unet"}
    groups = [(layers[adapter.layer.name], {
        key.removeprefix(f"{adapter.assignment.key}."): tensor
        for key, tensor in adapter.file_tensors().items()}) for adapter in network]
    path = adapterfile.write(tmp_path / "a.safetensors", dialects.rewrite(
        groups, outfile.names_in(family), dialect), None, {})
    again = lycoris.create_lycoris(unet, 1.0, 2, 7, preset="attn-only")
    again.load_weights(path)
    for ours, theirs in zip(again, network, strict=True):
        weight = torch.zeros(ours.layer.shape)
        assert torch.allclose(ours.scaled_delta(weight), theirs.scaled_delta(weight), atol=1e-6)


def test_the_public_api_refuses_what_it_does_not_know() -> None:
    root = nn.Sequential(nn.Linear(6, 8))
    with pytest.raises(ConfigError, match="Did you mean dora_wd"):
        lycoris.create_lycoris(root, dora_w=True)
    with pytest.raises(ConfigError, match="algo"):
        lycoris.create_lycoris(root, algo="lorra")
    with pytest.raises(ConfigError, match="of no known family"):
        lycoris.create_lycoris(root, preset="attn-mlp")
    with pytest.raises(ConfigError, match="matches no layer"):
        lycoris.create_lycoris(nn.Sequential(nn.ReLU()))
    with pytest.raises(ConfigError, match="true or false"):
        lycoris.create_lycoris(root, dora_wd="False!")
    assert lycoris.create_lycoris(root, dora_wd="False") is not None
    with pytest.raises(ConfigError, match="linear_dim is 0; the least is 1") as caught:
        lycoris.create_lycoris(root, linear_dim=0, linear_alpha=0, dropout=2)
    assert set(caught.value.problems) == {"linear_dim", "linear_alpha", "dropout"}
    with pytest.raises(ConfigError, match="linear_dim expects a whole number"):
        lycoris.create_lycoris(root, linear_dim=2.5)
    made = next(iter(lycoris.create_lycoris(root, linear_dim="4", linear_alpha="2")))
    assert (made.algorithm.dim, made.algorithm.alpha) == (4, 2.0)


def test_bare_parts_follow_their_family(small_base: Path,
                                        trained: Callable[[str], tuple[Path, Config]]) -> None:
    model = families.open_base(small_base).load(torch.device("cpu"), torch.float32)
    unet = model.modules["unet"]
    network = lycoris.create_lycoris(unet, preset="attn-only")
    assert len(network) == 32 and all("attn" in key for key in network.adapters)
    path, _ = trained("loha")
    from_run, _ = lycoris.create_lycoris_from_weights(1.0, path, unet)
    assert all(key.startswith("lora_unet_") for key in from_run.adapters)


def test_an_adapter_of_another_base(tmp_path: Path,
                                    trained: Callable[[str], tuple[Path, Config]]) -> None:
    """Shapes that do not fit are counted; none that fits is an error."""
    path, _ = trained("lora")
    wider = families.open_base(make_base(tmp_path / "wider", cross=24))
    file = AdapterFile(path)
    found = adapterfile.match(file, wider.layers, wider.aliases, "wider")
    assert not found.whole and found.unfit and "of another shape" in found.text
    assert found.total == len(file.shapes)
    none = [layer for layer in wider.layers if layer.part == "text_encoder"]
    with pytest.raises(AdapterError, match="made for another base than wider: matched 0 of"):
        adapterfile.match(file, none, wider.aliases, "wider")


def _write(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    return tensorfile.write(path, tensors, {})


BAD_FILES: list[tuple[str, bytes, str]] = [
    ("empty", b"", "not a safetensors file"),
    ("short", b"\x01\x02", "not a safetensors file"),
    ("pickle", b"\x80\x04\x95" + b"x" * 200, "not a safetensors file"),
    ("long header", (2**40).to_bytes(8, "little") + b"{}", "not a safetensors file"),
    ("no json", (8).to_bytes(8, "little") + b"notjson!" + b"0" * 9, "no JSON"),
    ("not utf-8", (8).to_bytes(8, "little") + b"\xff" * 8 + b"0" * 9, "no JSON"),
    ("a list", (8).to_bytes(8, "little") + b"[1, 2]  " + b"0" * 9, "does not describe tensors"),
    ("odd entry", (16).to_bytes(8, "little") + b'{"a.b": "what"} ' + b"0",
     "does not describe tensors"),
    ("no adapter", b"", ""),
]


@pytest.mark.parametrize(("name", "data", "words"), BAD_FILES, ids=[b[0] for b in BAD_FILES])
def test_bad_files_get_a_typed_error(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    path = tmp_path / "bad.safetensors"
    if name == "no adapter":
        _write(path, {"plain": torch.zeros(2)})
        words = "holds no adapter"
    else:
        path.write_bytes(data)
    with pytest.raises(AdapterError, match=words):
        AdapterFile(path)


def test_missing_cut_and_poisoned_files(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="There is no file"):
        AdapterFile(tmp_path / "nowhere.safetensors")
    tensors = {"k.lora_up.weight": torch.randn(4, 2), "k.lora_down.weight": torch.randn(2, 4)}
    path = _write(tmp_path / "cut.safetensors", tensors)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(AdapterError, match=r"is cut off: [\d,]+ of its"):
        AdapterFile(path)
    tensors["k.lora_up.weight"][0, 0] = float("nan")
    with pytest.raises(AdapterError, match=r"not finite.*k\.lora_up"):
        _ = AdapterFile(_write(tmp_path / "nan.safetensors", tensors)).tensors
    odd = _write(tmp_path / "odd.safetensors", {"k.something": torch.zeros(2)})
    with pytest.raises(AdapterError, match="no known algorithm at k: something"):
        AdapterFile(odd).kind("k")


def test_alpha_missing_means_scale_one(tmp_path: Path) -> None:
    root = nn.Sequential(nn.Linear(4, 4, bias=False))
    up, down = torch.randn(4, 2), torch.randn(2, 4)
    path = _write(tmp_path / "a.safetensors", {"lycoris_0.lora_up.weight": up,
                                               "lycoris_0.lora_down.weight": down})
    plain = root[0].weight.detach().clone()
    lycoris.create_lycoris_from_weights(1.0, path, root)[0].merge_to()
    assert torch.allclose(root[0].weight, plain + up @ down, atol=1e-5)


@pytest.mark.parametrize("algo", ["tlora", "ia3", "diag-oft", "full"])
def test_inspect_counts_what_was_trained(trained: Callable[[str], tuple[Path, Config]],
                                         algo: str) -> None:
    """As the plan did: not what a file keeps beside it, as the start of T-LoRA."""
    path, run = trained(algo)
    assert inspect.adapter(path)["parameters"] == plan.make(run).sizes.parameters


def test_inspect_tells_what_is_in_a_file(trained: Callable[[str], tuple[Path, Config]]) -> None:
    path, run = trained("loha")
    found = inspect.adapter(path)
    assert found["summary"] == "LoHa, dim 2" and found["bytes"] == path.stat().st_size
    made = plan.make(run)
    assert found["parameters"] == made.sizes.parameters and found["layers"] == made.sizes.modules
    assert found["settings"]["network"]["algo"] == "loha"
    names = inspect.catalogues()
    assert "lora" in names["algorithms"] and "AdamW8bit" in names["optimizers"]


def test_contestants_are_read_as_people_write_them(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "one.safetensors").write_bytes(b"x")
    (tmp_path / "half").mkdir()
    parse = contestants.parse
    assert parse("base", tmp_path) == contestants.Contestant("base")
    one = parse("one:0.8", tmp_path)
    assert (one.name, one.weight, one.path) == ("one", 0.8, tmp_path / "one" / "one.safetensors")
    assert parse(str(tmp_path / "one" / "one.safetensors"), tmp_path).weight == 1.0
    with pytest.raises(AdapterError, match="no adapter yet"):
        parse("half", tmp_path)
    with pytest.raises(AdapterError, match="There is no adapter 'two'"):
        parse("two", tmp_path)
    with pytest.raises(ConfigError, match="no weight"):
        parse("one:heavy", tmp_path)
    named = contestants.unique([one, parse("one", tmp_path), parse("one:0.8", tmp_path)])
    assert [c.name for c in named] == ["one", "one at 1", "one at 0.8"]
