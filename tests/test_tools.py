"""merge, extract, resize, convert, inspect: what they write computes what they say it computes."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_base
from torch import Tensor

from lycoris import (
    adapterfile,
    algorithms,
    convert,
    durable,
    events,
    extract,
    families,
    inspect,
    merge,
    metadata,
    provenance,
    resize,
    runs,
    tensorfile,
)
from lycoris.__main__ import main
from lycoris.adapterfile import AdapterFile
from lycoris.assignments import assign_family
from lycoris.deltas import Deltas
from lycoris.errors import AdapterError, ConfigError, DiskError, LycorisError, ModelFileError
from lycoris.merge import Block, Merge
from lycoris.network import LycorisNetwork
from lycoris.outfile import Written
from lycoris.progress import Progress, Stopped
from lycoris.settings import NetworkConfig

ALGOS = tuple(algorithms.catalogue())
NEW = "new.safetensors"
# {case: settings of [network]} of files that differ in what their tensors are
CASES: dict[str, dict[str, Any]] = {
    **{name: {"algo": name} for name in ALGOS},
    "dora": {"algo": "lora", "dora_wd": True},
    "loha dora on input": {"algo": "loha", "dora_wd": True, "wd_on_output": False},
    "lora tucker": {"algo": "lora", "options": {"use_tucker": True}},
    "loha tucker": {"algo": "loha", "options": {"use_tucker": True}},
    "lokr tucker": {"algo": "lokr", "dim": 1, "options": {"use_tucker": True, "factor": 2}},
    "lokr both": {"algo": "lokr", "dim": 1, "options": {"decompose_both": True, "factor": 2}},
    "lokr full": {"algo": "lokr", "options": {"full_matrix": True, "factor": 2}},
    "ia3 input": {"algo": "ia3", "options": {"train_on_input": True}},
    "norms": {"algo": "lora", "train_norm": True},
    "tlora without start": {"algo": "tlora", "options": {"store_start": False,
                                                         "directions": "principal"}},
}


class Workshop:
    """The small base and adapters of every sort for it."""

    def __init__(self, base: Path, folder: Path):
        self.base, self.folder = base, folder
        self.family = families.open_base(base)
        self._files: dict[str, Path] = {}
        torch.manual_seed(3)
        self.x, self.t = torch.randn(1, 4, 8, 8), torch.tensor([0])  # T-LoRA: all ranks at 0

    @functools.cached_property
    def plain(self) -> Any:
        """The base's model, with nothing attached."""
        return self.model()

    def model(self, base: Path | None = None) -> Any:
        return families.open_base(base or self.base).load(torch.device("cpu"), torch.float32)

    @torch.no_grad()
    def paint(self, model: Any) -> Tensor:
        text = model.encode_text(["a ball"])
        return torch.cat([text["hidden"].flatten(), model.predict(self.x, self.t, text).flatten()])

    def adapter(self, case: str, **more: Any) -> Path:
        """A file of random tensors; the change is about as large as the weights."""
        if case in self._files and not more:
            return self._files[case]
        said = {"preset": "full", "dim": 2, "alpha": 1.0, **CASES[case], **more}
        if said["algo"] == "dylora":
            said = {**said, "dim": 4, "options": {"block_size": 2}}
        if said["algo"] == "boft":
            said["dim"] = 4
        if said["algo"] == "boft":
            said["preset"] = "attn-only"  # what a power of two of blocks can split
        network = LycorisNetwork(assign_family(self.family, NetworkConfig(**said)),
                                 self.plain.modules, seed=1)
        torch.manual_seed(len(self._files))
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if not name.endswith(("schedule", "0")):
                    parameter.add_(0.3 * torch.randn_like(parameter))
        path = network.save_weights(self.folder / f"{case} {len(self._files)}.safetensors",
                                    metadata={"ss_output_name": case, "ss_seed": "7",
                                              metadata.CONFIG_KEY: json.dumps(
                                                  {"network.algo": said["algo"]})})
        if not more:
            self._files[case] = path
        return path

    def network(self, path: Path, model: Any, weight: float = 1.0) -> LycorisNetwork:
        file = AdapterFile(path)
        found = adapterfile.match(file, self.family.layers, self.family.aliases, "small")
        assert found.whole, found.text
        network = LycorisNetwork.from_file(file, found.assignments, model.modules)
        network.set_multiplier(weight)
        return network

    def under(self, *adapters: tuple[Path, float]) -> Tensor:
        """What is painted with them attached."""
        networks = [self.network(path, self.plain, weight) for path, weight in adapters]
        for network in networks:
            network.apply_to()
        painted = self.paint(self.plain)
        for network in networks:
            network.restore()
        return painted

    def deltas(self, path: Path) -> dict[str, Tensor]:
        """{layer: dW} as the loader makes it."""
        found = Deltas(path, self.family)
        return {f"{a.layer.part}.{a.layer.name}": found.change(a).delta()
                for a in found.assignments}


@pytest.fixture(scope="module")
def shop(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(small_base, tmp_path_factory.mktemp("adapters"))


def run(asked: Any, progress: Progress | None = None) -> Any:
    verb = {merge.Merge: merge, resize.Resize: resize, convert.Convert: convert,
            extract.Extract: extract}[type(asked)]
    return verb.run(asked, progress or Progress())


def relative(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Of all layers together; one that is missing counts as zero."""
    lost = sum((found.get(name, torch.zeros_like(d)).reshape(d.shape) - d).double().square().sum()
               for name, d in wanted.items())
    return math.sqrt(float(lost) / float(sum(d.double().square().sum() for d in wanted.values())))


# --- merge into the base


@pytest.mark.parametrize("case", CASES)
def test_the_merged_model_paints_what_the_attached_one_does(shop: Workshop, tmp_path: Path,
                                                            case: str) -> None:
    path = shop.adapter(case)
    ended = run(Merge(((path, 0.7),), str(tmp_path / "model"), "model", shop.base))
    merged, attached = shop.paint(shop.model(tmp_path / "model")), shop.under((path, 0.7))
    assert not torch.allclose(attached, shop.paint(shop.plain), atol=1e-2)
    assert torch.allclose(merged, attached, atol=2e-5 * attached.abs().max())
    assert len(ended.rows) == len(AdapterFile(path).shapes)


def test_several_adapters_with_weights_and_blocks(shop: Workshop, tmp_path: Path) -> None:
    """First block that fits counts, for one adapter or for all; what is 0 does not change."""
    paths = [shop.adapter(case) for case in ("loha", "diag-oft", "dora")]
    weights = (1.0, -0.5, 0.8)
    blocks = tuple(Block.parse(text) for text in (
        "2:unet.mid_block.*=0", "unet.mid_block.*=0.5", "3:lora_te_*=0.25"))
    run(Merge(tuple(zip(paths, weights, strict=True)), str(tmp_path / "model"), "model",
              shop.base, blocks))
    model = shop.model()
    for number, (path, weight) in enumerate(zip(paths, weights, strict=True), 1):
        network = shop.network(path, model, weight)
        for adapter in network:
            name = f"{adapter.layer.part}.{adapter.layer.name}"
            if name.startswith("unet.mid_block."):
                adapter.multiplier = 0.0 if number == 2 else weight * 0.5
            elif number == 3 and adapter.layer.part == "text_encoder":
                adapter.multiplier = weight * 0.25
        network.apply_to()
    merged, attached = shop.paint(shop.model(tmp_path / "model")), shop.paint(model)
    assert torch.allclose(merged, attached, atol=2e-5 * attached.abs().max())


def test_only_changed_weights_are_written(shop: Workshop, tmp_path: Path) -> None:
    """Other files are copied byte for byte; other weights of a changed part would be stale."""
    base = shutil.copytree(shop.base, tmp_path / "base")
    for stale in ("unet/diffusion_pytorch_model.fp16.safetensors", "unet/x.bin", "v1.ckpt",
                  ".cache/x"):
        (base / stale).parent.mkdir(exist_ok=True)
        (base / stale).write_bytes(b"old")
    (base / "vae" / "other.bin").write_bytes(b"stays")
    path = shop.adapter("lora", preset="unet-only")
    ended = run(Merge(((path, 1.0),), str(tmp_path / "model"), "model", base, dtype="fp16"))
    assert ended.files == ("unet/diffusion_pytorch_model.safetensors",)
    before = {f.relative_to(base).as_posix() for f in base.rglob("*") if f.is_file()}
    after = {f.relative_to(tmp_path / "model").as_posix()
             for f in (tmp_path / "model").rglob("*") if f.is_file()}
    assert before - after == {"unet/diffusion_pytorch_model.fp16.safetensors", "unet/x.bin",
                              "v1.ckpt", ".cache/x"} and not after - before
    for name in after - set(ended.files):
        assert (base / name).read_bytes() == (tmp_path / "model" / name).read_bytes(), name
    entries, said = tensorfile.peek(tmp_path / "model" / ended.files[0], ModelFileError)
    assert {dtype for dtype, _ in entries.values()} == {"F16"} and said["format"] == "pt"
    assert said["modelspec.merged_from"] == f"base, {path.stem}"
    assert ended.bytes == sum(f.stat().st_size for f in (tmp_path / "model").rglob("*")
                              if f.is_file())


def test_a_model_of_half_precision_stays_one(shop: Workshop, tmp_path: Path) -> None:
    base = shutil.copytree(shop.base, tmp_path / "base")
    file = base / "unet" / "diffusion_pytorch_model.safetensors"
    tensors, said = tensorfile.read(file, ModelFileError)
    tensorfile.write(file.with_name("diffusion_pytorch_model.fp16.safetensors"),
                     {name: t.half() for name, t in tensors.items()}, said)
    file.unlink()
    path = shop.adapter("lora", preset="unet-only")
    for dtype, name in (("keep", "diffusion_pytorch_model.fp16.safetensors"),
                        ("fp32", "diffusion_pytorch_model.safetensors")):
        out = tmp_path / dtype
        run(Merge(((path, 1.0),), str(out), "model", base, dtype=dtype))
        entries, _ = tensorfile.peek(out / "unet" / name, ModelFileError)
        assert {each for each, _ in entries.values()} == {"F16" if dtype == "keep" else "F32"}
        shop.paint(shop.model(out))


# --- merge into each other


@pytest.mark.parametrize(("into", "allowed"), [("exact", 1e-6), ("full", 1e-6), ("lora", 1e-6)])
@pytest.mark.parametrize("pair", [("lora", "dylora"), ("loha", "lokr"), ("dora", "full"),
                                  ("norms", "tlora"), ("glora", "lora tucker")])
def test_a_merged_adapter_is_the_sum(shop: Workshop, tmp_path: Path, into: str, allowed: float,
                                     pair: tuple[str, str]) -> None:
    paths = [shop.adapter(case) for case in pair]
    out = tmp_path / NEW
    ended = run(Merge(((paths[0], 0.5), (paths[1], -1.5)), str(out), into, shop.base,
                      rule="sv_fro", value=1.0, dtype="fp32"))
    first, second = (shop.deltas(path) for path in paths)
    wanted = {name: 0.5 * first.get(name, torch.zeros(())) - 1.5 * second.get(
        name, torch.zeros(())) for name in first | second}
    assert relative(shop.deltas(out), wanted) <= allowed and ended.error <= allowed
    if into == "exact" and pair[0] == "lora":  # both are LoRAs: their ranks lie side by side
        assert {row.algorithm for row in ended.rows if row.dim == 6} == {"lora"}
        attached = shop.under((paths[0], 0.5), (paths[1], -1.5))
        assert torch.allclose(shop.under((out, 1.0)), attached, atol=1e-4 * attached.abs().max())


def test_adapters_meet_without_a_base_where_their_names_agree(shop: Workshop,
                                                              tmp_path: Path) -> None:
    paths = [shop.adapter(case) for case in ("lora", "dylora")]
    out = tmp_path / NEW
    run(Merge(((paths[0], 1.0), (paths[1], 2.0)), str(out), "exact", dtype="fp32"))
    first, second = (shop.deltas(path) for path in paths)
    assert relative(shop.deltas(out), {n: first[n] + 2 * second[n] for n in first}) < 1e-6
    other = tmp_path / "other.safetensors"
    run(convert.Convert(paths[1], str(other), "diffusers", base=shop.base))
    with pytest.raises(AdapterError, match="diffusers and kohya.*--base"):
        run(Merge(((paths[0], 1.0), (other, 1.0)), str(tmp_path / "x.safetensors"), "exact"))
    run(Merge(((paths[0], 1.0), (other, 2.0)), str(tmp_path / "x.safetensors"), "exact",
              shop.base, dtype="fp32"))
    assert relative(shop.deltas(tmp_path / "x.safetensors"), shop.deltas(out)) < 1e-6


def test_what_merged_files_say_of_themselves(shop: Workshop, tmp_path: Path) -> None:
    tagged = []
    for number, tags in enumerate(({"a": {"zorb": 3}}, {"b": {"blit": 2}})):
        file = AdapterFile(shop.adapter("lora"))
        path = tmp_path / f"{number}.safetensors"
        tensorfile.write(path, file.tensors, {
            **file.metadata, "ss_seed": str(number), "ss_tag_frequency": json.dumps(tags)})
        tagged.append((path, 1.0))
    run(Merge(tuple(tagged), str(tmp_path / NEW), "exact"))
    found = AdapterFile(tmp_path / NEW).metadata
    assert found["modelspec.merged_from"] == "0, 1" and "ss_seed" not in found
    assert json.loads(found["ss_tag_frequency"]) == {"a": {"zorb": 3}, "b": {"blit": 2}}
    assert provenance.frequent_tags(found) == [("zorb", 3), ("blit", 2)]


# --- convert


@pytest.mark.parametrize("case", CASES)
def test_names_are_rewritten_and_back(shop: Workshop, tmp_path: Path, case: str) -> None:
    """kohya -> lycoris -> kohya gives the very tensors; the recipe stays true."""
    path, there, back = shop.adapter(case), tmp_path / NEW, tmp_path / "back.safetensors"
    run(convert.Convert(path, str(there), "lycoris", base=shop.base))
    assert all(key.startswith("lycoris_") for key in AdapterFile(there).entries)
    run(convert.Convert(there, str(back), "kohya", base=shop.base))
    first, last = AdapterFile(path), AdapterFile(back)
    assert first.entries.keys() == last.entries.keys()
    assert all(torch.equal(first.tensors[key], last.tensors[key]) for key in first.tensors)
    assert metadata.config_of(last.metadata) == metadata.config_of(first.metadata) is not None
    assert provenance.made_by(last.metadata)["before"][0]["dialect"] == "lycoris"


def test_diffusers_names_and_back(shop: Workshop, tmp_path: Path) -> None:
    path, there, back = shop.adapter("lora"), tmp_path / NEW, tmp_path / "back.safetensors"
    run(convert.Convert(path, str(there), "diffusers", base=shop.base))
    assert "unet.mid_block.attentions.0.proj_in.lora_A.weight" in AdapterFile(there).entries
    ended = run(convert.Convert(there, str(back), "kohya", base=shop.base))
    assert ended.dialect == "kohya" and relative(shop.deltas(back), shop.deltas(path)) < 1e-6
    again = run(resize.Resize(there, str(tmp_path / "r.safetensors"), "dim", 1))
    assert again.dialect == "diffusers", "a file without a base keeps its own names"
    assert all(".lora_" in key for key in AdapterFile(tmp_path / "r.safetensors").entries)
    for wrong in ("loha", "loha dora on input"):
        with pytest.raises(AdapterError, match="Convert the adapter to LoRA first"):
            run(convert.Convert(shop.adapter(wrong), str(tmp_path / "w.safetensors"), "diffusers",
                                base=shop.base))


@pytest.mark.parametrize("dialect", ["onetrainer", "ai-toolkit"])
@pytest.mark.parametrize("case", CASES)
def test_the_original_codes_names_and_back(shop: Workshop, tmp_path: Path, case: str,
                                           dialect: str) -> None:
    path, there, back = shop.adapter(case), tmp_path / NEW, tmp_path / "back.safetensors"
    ended = run(convert.Convert(path, str(there), dialect, base=shop.base))
    assert ended.dialect == dialect
    found = AdapterFile(there)
    assert found.dialect == {"onetrainer": "OneTrainer"}.get(dialect, dialect), "and no other"
    assert not any("lora_unet" in key or "_blocks_" in key for key in found.entries)
    run(convert.Convert(there, str(back), "kohya", base=shop.base))
    if (dialect, case) != ("ai-toolkit", "lora tucker"):  # whose core is worked into lora_A
        assert AdapterFile(path).entries.keys() == AdapterFile(back).entries.keys()
    assert relative(shop.deltas(back), shop.deltas(path)) < 1e-6
    again = tmp_path / "again.safetensors"
    run(convert.Convert(there, str(again), base=shop.base, dtype="fp32"))
    assert AdapterFile(again).entries.keys() == found.entries.keys(), "it keeps its names"


def test_the_keys_that_onetrainer_and_ai_toolkit_look_for(shop: Workshop, tmp_path: Path) -> None:
    ends = {"onetrainer": (".lora_down.weight", ".lora_up.weight", ".alpha"),
            "ai-toolkit": (".lora_A.weight", ".lora_B.weight")}
    names = {"onetrainer": ("unet.time_embed.0", "unet.middle_block.2.out_layers.3",
                            "clip_l.text_model.encoder.layers.0.mlp.fc1"),
             "ai-toolkit": ("diffusion_model.time_embed.0",
                            "diffusion_model.middle_block.2.out_layers.3",
                            "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1")}
    for dialect in ends:
        there = tmp_path / f"{dialect}.safetensors"
        run(convert.Convert(shop.adapter("lora"), str(there), dialect, base=shop.base))
        keys = set(AdapterFile(there).entries)
        assert {name + end for name in names[dialect] for end in ends[dialect]} <= keys
        assert all(key.endswith(ends[dialect]) for key in keys)


@pytest.mark.parametrize("case", ["lora", "dora", "loha", "lokr full", "lokr both",
                                  "loha tucker", "lokr tucker", "ia3 input"])
def test_peft_loads_what_is_written_for_it(shop: Workshop, tmp_path: Path, case: str) -> None:
    peft = pytest.importorskip("peft")
    path, out = shop.adapter(case), tmp_path / "peft"
    ended = run(convert.Convert(path, str(out), "peft", base=shop.base))
    assert ended.dialect == "peft"
    wanted = shop.deltas(path)
    for part in ("unet", "text_encoder"):
        own = {name: delta for name, delta in wanted.items() if name.startswith(f"{part}.")}
        assert relative(shop.deltas(out / part), own) < 1e-6, "as we read it"
    model = shop.model()
    unet = peft.PeftModel.from_pretrained(model.unet, out / "unet")
    text = peft.PeftModel.from_pretrained(model.text_encoder, out / "text_encoder")
    with torch.no_grad():
        words = model.encoders[0].tokenizer
        ids = words(["a ball"], padding="max_length", return_tensors="pt").input_ids
        hidden = text(ids).last_hidden_state
        painted = unet(shop.x, shop.t, hidden, return_dict=False)[0]
    theirs, ours = torch.cat([hidden.flatten(), painted.flatten()]), shop.under((path, 1.0))
    assert torch.allclose(theirs, ours, atol=1e-4 * ours.abs().max())


def test_what_peft_has_no_words_for(shop: Workshop, tmp_path: Path) -> None:
    for case, words in (("boft", "this adapter is boft"), ("norms", "lora and norm"),
                        ("ia3", "scales the bias of .* too"),
                        ("loha dora on input", "DoRA on LoRA only"),
                        ("lokr", "with one factor")):  # ours puts the smaller of a pair first
        own = {"options": {"factor": 4}, "dim": 8} if case == "lokr" else {}
        with pytest.raises(AdapterError, match=f"{words}.*--algo lora"):
            run(convert.Convert(shop.adapter(case, **own), str(tmp_path / "peft"), "peft",
                                base=shop.base))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("case", CASES)
def test_everything_is_a_full(shop: Workshop, tmp_path: Path, case: str) -> None:
    path, out = shop.adapter(case), tmp_path / NEW
    ended = run(convert.Convert(path, str(out), algo="full", base=shop.base, dtype="fp32"))
    assert ended.error < 1e-7 and {row.algorithm for row in ended.rows} <= {"full", "norm"}
    attached = shop.under((path, 1.0))
    assert torch.allclose(shop.under((out, 1.0)), attached, atol=2e-5 * attached.abs().max())
    found = AdapterFile(out).metadata
    assert metadata.config_of(found) is None, "it was not trained as Full"
    assert provenance.source_config(found).network.algo == CASES[case]["algo"]
    assert json.loads(found["ss_network_args"])["algo"] == "full"


@pytest.mark.parametrize("case", ["lora", "dylora", "tlora", "lora tucker", "loha", "loha tucker",
                                  "lokr both", "glora"])
def test_low_ranks_are_a_lora_without_loss(shop: Workshop, tmp_path: Path, case: str) -> None:
    path = shop.adapter(case, preset="attn-mlp" if case != "lora tucker" else "full", dim=1)
    out = tmp_path / NEW
    ended = run(convert.Convert(path, str(out), algo="lora", base=shop.base, dtype="fp32"))
    assert {row.algorithm for row in ended.rows} == {"lora"}
    assert ended.error < 1e-5 and relative(shop.deltas(out), shop.deltas(path)) < 1e-5
    found = AdapterFile(out)
    assert found.metadata["ss_network_module"] == "networks.lora"
    assert {suffix for group in found.shapes.values() for suffix in group} == {
        "lora_up.weight", "lora_down.weight", "alpha"}


def test_a_lora_that_would_be_too_large_is_refused(shop: Workshop, tmp_path: Path) -> None:
    path = shop.adapter("full")
    with pytest.raises(ConfigError, match="larger than the .* layers themselves"):
        run(convert.Convert(path, str(tmp_path / NEW), algo="lora"))
    notes = Progress()
    ended = run(convert.Convert(path, str(tmp_path / NEW), algo="lora", rule="dim", dim=2), notes)
    assert ended.error == pytest.approx(relative(shop.deltas(tmp_path / NEW), shop.deltas(path)),
                                        rel=1e-5) and ended.error > 0.1
    assert any("change their bias as well" in note for note in notes.notes)


# --- resize


@pytest.mark.parametrize("case", [*CASES])
def test_the_error_of_a_resize_is_the_real_one(shop: Workshop, tmp_path: Path, case: str) -> None:
    path, out = shop.adapter(case), tmp_path / NEW
    ended = run(resize.Resize(path, str(out), "dim", 1, conv_dim=2, base=shop.base, dtype="fp16"))
    before, after = shop.deltas(path), shop.deltas(out)
    assert ended.error == pytest.approx(relative(after, before), rel=1e-4)
    assert {row.algorithm for row in ended.rows} <= {"lora", "norm"}
    for row in ended.rows:
        assert row.norm == pytest.approx(before[row.layer].norm().item(), rel=1e-4)
        assert row.error == pytest.approx(relative({"": after[row.layer]},
                                                   {"": before[row.layer]}), rel=1e-3, abs=1e-6)
        best = torch.linalg.svdvals(before[row.layer].flatten(1).double()) if (
            before[row.layer].ndim > 1) else None
        if best is not None:
            least = math.sqrt(float(best[row.dim:].square().sum() / best.square().sum()))
            assert row.error <= 1.01 * least + 2e-3, "no LoRA of that dim comes closer"
    assert not any(t.dtype == torch.float16 for key, t in AdapterFile(out).tensors.items()
                   if key.endswith(".alpha"))


@pytest.mark.parametrize(("rule", "value", "kept"), [
    ("sv_ratio", 3.0, lambda s: int((s > s[0] / 3).sum())),
    ("threshold", 0.5, lambda s: max(1, int((s > 0.5).sum()))),
    ("sv_fro", 0.9, lambda s: next(k for k in range(1, 99) if (
        s[:k].square().sum() >= 0.81 * s.square().sum()))),
    ("sv_cumulative", 0.8, lambda s: next(k for k in range(1, 99)
                                          if s[:k].sum() >= 0.8 * s.sum())),
])
def test_rules_keep_what_they_say(shop: Workshop, tmp_path: Path, rule: str, value: float,
                                  kept: Callable[[Tensor], int]) -> None:
    path = shop.adapter("lokr full")
    ended = run(resize.Resize(path, str(tmp_path / NEW), rule, value=value, dtype="fp32"))
    deltas = {name.replace(".", "_"): delta for name, delta in shop.deltas(path).items()}
    ranks = set()
    for row in ended.rows:
        name = row.layer.replace("lora_unet", "unet").replace("lora_te_text_model",
                                                              "text_encoder")
        values = torch.linalg.svdvals(deltas[name].flatten(1).double())
        assert row.dim == row.alpha == kept(values), row.layer
        ranks.add(row.dim)
    assert len(ranks) > 1, "the dims differ"
    said = AdapterFile(tmp_path / NEW).metadata
    assert said["ss_network_dim"] == said["ss_network_alpha"] == "Dynamic"
    capped = run(resize.Resize(path, str(tmp_path / "2.safetensors"), rule, 2, value))
    assert max(row.dim for row in capped.rows) == 2


def test_first_ranks_are_what_training_made(shop: Workshop, tmp_path: Path,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """A DyLoRA file cut to its first k ranks is the prefix as the training step saw it."""
    path, out = shop.adapter("dylora"), tmp_path / NEW
    ended = run(resize.Resize(path, str(out), "first", 2))
    assert {(row.dim, row.alpha) for row in ended.rows} == {(2, 0.5)}, "alpha / dim stays 1 / 4"
    cut = shop.deltas(out)
    network = LycorisNetwork(assign_family(shop.family, NetworkConfig(
        algo="dylora", dim=4, alpha=1.0, preset="full", options={"block_size": 2})),
        shop.plain.modules)
    network.load_weights(path)
    network.train()
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.tensor(0))  # the first block
    for adapter in network:
        seen = adapter.scaled_delta(torch.zeros(adapter.layer.shape), p=adapter.seen())
        assert torch.allclose(cut[f"{adapter.layer.part}.{adapter.layer.name}"], seen, atol=1e-6)
    assert ended.error == pytest.approx(relative(cut, shop.deltas(path)), rel=1e-5)
    with pytest.raises(AdapterError, match="layers without first ranks"):
        run(resize.Resize(shop.adapter("loha"), str(tmp_path / "x.safetensors"), "first", 1))
    with pytest.raises(AdapterError, match="layers without first ranks"):
        run(resize.Resize(shop.adapter("boft"), str(tmp_path / "x.safetensors"), "first", 1))


def test_what_a_resized_file_says_of_itself(shop: Workshop, tmp_path: Path) -> None:
    source, out = AdapterFile(shop.adapter("loha")), tmp_path / "small.safetensors"
    run(resize.Resize(source.path, str(out), "dim", 1, base=shop.base, dtype="bf16"))
    found = AdapterFile(out)
    said = found.metadata
    assert said["ss_seed"] == "7" and said["ss_output_name"] == said["modelspec.title"] == "small"
    assert said["ss_network_dim"] == "1" and said["ss_network_module"] == "networks.lora"
    assert json.loads(said["ss_network_args"]) == {"conv_dim": "1", "conv_alpha": "1"}
    assert said["ss_base_model_version"] == "sd_v1" and "resize of loha" in said[
        "ss_training_comment"]
    assert metadata.CONFIG_KEY not in said
    assert provenance.source_config(said).network.algo == "loha"
    data = out.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    assert said["sshs_model_hash"] == hashlib.sha256(data[start:]).hexdigest()
    assert {dtype for key, (dtype, _) in found.entries.items()
            if not key.endswith("alpha")} == {"BF16"}


# --- extract


@pytest.fixture(scope="module")
def tuned(shop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """tuned("lora"): the base with that adapter merged in, as a model of its own."""
    held: dict[str, Path] = {}

    def make(case: str, **more: Any) -> Path:
        if case not in held:
            held[case] = tmp_path_factory.mktemp("tuned") / "model"
            run(Merge(((shop.adapter(case, **more), 1.0),), str(held[case]), "model", shop.base))
        return held[case]

    return make


def test_a_known_lora_is_found_again(shop: Workshop, tuned: Callable[..., Path],
                                     tmp_path: Path) -> None:
    out = tmp_path / NEW
    ended = run(extract.Extract(shop.base, tuned("lora"), str(out), dim=2, dtype="fp32"))
    wanted = shop.deltas(shop.adapter("lora"))
    assert ended.error < 1e-4 and relative(shop.deltas(out), wanted) < 1e-4
    assert {row.layer for row in ended.rows} == set(wanted) and AdapterFile(
        out).metadata["ss_network_dim"] == "2"
    found = run(extract.Extract(shop.base, tuned("lora"), str(tmp_path / "2.safetensors"),
                                rule="sv_fro", value=0.9999, dtype="fp32"))
    assert {row.dim for row in found.rows if row.algorithm == "lora"} <= {1, 2}


def test_a_kronecker_difference_is_found_again(shop: Workshop, tuned: Callable[..., Path],
                                               tmp_path: Path) -> None:
    out = tmp_path / NEW
    ended = run(extract.Extract(shop.base, tuned("lokr full"), str(out), "lokr", factor=2,
                                dtype="fp32"))
    assert {row.algorithm for row in ended.rows} == {"lokr"} and ended.error < 1e-4
    assert relative(shop.deltas(out), shop.deltas(shop.adapter("lokr full"))) < 1e-4
    small = run(extract.Extract(shop.base, tuned("lokr full"), str(tmp_path / "2.safetensors"),
                                "lokr", dim=1, factor=2, dtype="fp32"))
    assert small.error == pytest.approx(
        relative(shop.deltas(small.out), shop.deltas(shop.adapter("lokr full"))), abs=1e-4)
    assert small.bytes < ended.bytes


def test_a_full_extraction_is_exact(shop: Workshop, tuned: Callable[..., Path],
                                    tmp_path: Path) -> None:
    out = tmp_path / NEW
    model = tuned("norms")
    full = tmp_path / "full"
    run(Merge(((shop.adapter("full"), 0.5), (shop.adapter("norms"), 1.0)), str(full), "model",
              shop.base))
    for each in (model, full):
        ended = run(extract.Extract(shop.base, each, str(out), "full", dtype="fp32",
                                    overwrite=True))
        painted = shop.paint(shop.model(each))
        assert torch.allclose(shop.under((out, 1.0)), painted, atol=1e-5 * painted.abs().max())
        assert ended.error < 1e-7 and "norm" in {row.algorithm for row in ended.rows}


def test_a_sparse_rest_brings_it_nearer_and_is_read_back(
        shop: Workshop, tuned: Callable[..., Path], tmp_path: Path) -> None:
    plain = run(extract.Extract(shop.base, tuned("full"), str(tmp_path / "a.safetensors"), dim=1,
                                dtype="fp32"))
    sparse = run(extract.Extract(shop.base, tuned("full"), str(tmp_path / "b.safetensors"), dim=1,
                                 dtype="fp32", sparsity=0.9))
    wanted = shop.deltas(sparse.out)
    rows = {row.layer: row for row in plain.rows}
    assert {row.algorithm for row in sparse.rows} == {"lora with a sparse rest"}
    assert all(row.error < rows[row.layer].error for row in sparse.rows)
    difference = shop.deltas(run(extract.Extract(
        shop.base, tuned("full"), str(tmp_path / "c.safetensors"), "full", dtype="fp32")).out)
    assert sparse.error == pytest.approx(relative(wanted, difference), rel=1e-4)
    names = {key.rpartition(".")[2] for key in AdapterFile(sparse.out).entries}
    assert {"bias_indices", "bias_values", "bias_size"} <= names


def test_presets_and_convolutions_narrow_it(shop: Workshop, tuned: Callable[..., Path],
                                            tmp_path: Path) -> None:
    model = tuned("full")
    ended = run(extract.Extract(shop.base, model, str(tmp_path / NEW), dim=1, preset="attn-only"))
    assert ended.rows and all(".attn" in row.layer or "self_attn" in row.layer
                              for row in ended.rows)
    notes = Progress()
    ended = run(extract.Extract(shop.base, model, str(tmp_path / "2.safetensors"), dim=1,
                                conv_dim=0), notes)
    assert not any("conv1" in row.layer for row in ended.rows)
    assert "convolutions" in notes.notes[0] and "biases" in notes.notes[0]
    only = run(extract.Extract(shop.base, tuned("lora"), str(tmp_path / "3.safetensors"),
                               preset="unet-transformer-only"))
    assert {row.layer.partition(".")[0] for row in only.rows} == {"unet"}


def test_extraction_refuses_what_does_not_match(shop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="do not differ in any of the"):
        run(extract.Extract(shop.base, shop.base, str(tmp_path / NEW)))
    other = make_base(tmp_path / "other", cross=8)
    with pytest.raises(ModelFileError, match="was not made from small"):
        run(extract.Extract(shop.base, other, str(tmp_path / NEW)))
    assert not (tmp_path / NEW).exists()


# --- what all have in common


@pytest.mark.parametrize(("asked", "field", "words"), [
    (lambda p, o: resize.Resize(p, o), "dim", "needs dim"),
    (lambda p, o: resize.Resize(p, o, "dim", 0), "dim", "least is 1"),
    (lambda p, o: resize.Resize(p, o, "half"), "rule", "no rule 'half'"),
    (lambda p, o: resize.Resize(p, o, "sv_ratio", value=0.5), "value", "above 1"),
    (lambda p, o: resize.Resize(p, o, "sv_fro", value=1.5), "value", "at most 1"),
    (lambda p, o: resize.Resize(p, o, "sv_fro", value=math.nan), "value", "at most 1"),
    (lambda p, o: resize.Resize(p, o, "sv_fro", value=0.9, conv_value=0), "conv_value", "above 0"),
    (lambda p, o: resize.Resize(p, o, "dim", 2, value=3), "value", "takes no value"),
    (lambda p, o: resize.Resize(p, o, "first", 2, conv_dim=3), "conv_dim", "takes no conv_dim"),
    (lambda p, o: resize.Resize(p, str(p), "dim", 2), "out", "is read as well"),
    (lambda p, o: resize.Resize(p, str(p), "dim", 2, overwrite=True), "out", "is read as well"),
    (lambda p, o: resize.Resize(p, str(p.parent / "there.safetensors"), "dim", 2), "out",
     "exists already"),
    (lambda p, o: resize.Resize(p, "x.ckpt", "dim", 2), "out", "ends in .safetensors"),
    (lambda p, o: resize.Resize(p, o, "dim", 2, dtype="fp8"), "dtype", "no dtype 'fp8'"),
    (lambda p, o: convert.Convert(p, o, "peft"), "base", "--base"),
    (lambda p, o: convert.Convert(p, o, "webui"), "dialect", "choose keep"),
    (lambda p, o: convert.Convert(p, o, algo="loha"), "algo", "choose keep"),
    (lambda p, o: Merge(((p, 1.0),), o, "model"), "base", "needs the model"),
    (lambda p, o: Merge((), o, "exact"), "adapters", "nothing to merge"),
    (lambda p, o: Merge(((p, 1.0),), o, "lora"), "dim", "needs dim"),
    (lambda p, o: Merge(((p, 1.0),), o, "exact", blocks=(Block("vae.*", 1.0),)), "block",
     "fits no layer"),
    (lambda p, o: Merge(((p, 1.0),), o, "exact", blocks=(Block("*", 1.0, 2),)), "block",
     "adapter 2 of 1"),
    (lambda p, o: Merge(((p, 0.0),), o, "exact"), "", "no layer to write"),
    (lambda p, o: extract.Extract(p, p, o, "dora"), "algo", "choose lora"),
    (lambda p, o: extract.Extract(p, p, o, sparsity=2.0), "sparsity", "between 0 and 1"),
    (lambda p, o: extract.Extract(p, p, o, "lokr", factor=0), "factor", "1 or more"),
])
def test_mistakes_are_told_in_words(shop: Workshop, tmp_path: Path, asked: Callable[..., Any],
                                    field: str, words: str) -> None:
    path = Path(shutil.copy(shop.adapter("lora"), tmp_path / "lora.safetensors"))
    shutil.copy(path, tmp_path / "there.safetensors")
    with pytest.raises(ConfigError) as caught:
        run(asked(path, str(tmp_path / NEW)))
    assert words in str(caught.value) and caught.value.field == field
    assert {f.name for f in tmp_path.iterdir()} == {"lora.safetensors", "there.safetensors"}


@pytest.mark.parametrize("text", ["unet.*", "=1", "x:unet.*=1", "unet.*=much", "unet.*=nan"])
def test_blocks_that_mean_nothing(text: str) -> None:
    with pytest.raises(ConfigError, match="is not understood"):
        Block.parse(text)


def test_broken_files_are_typed_errors(shop: Workshop, tmp_path: Path) -> None:
    whole = shop.adapter("lora").read_bytes()
    cut, text = tmp_path / "cut.safetensors", tmp_path / "text.safetensors"
    cut.write_bytes(whole[:-10])
    text.write_text("not one")
    model = tensorfile.write(tmp_path / "model.safetensors", {"a.weight": torch.ones(2, 2)}, {})
    for path, words in ((cut, "cut off"), (text, "not a safetensors"), (model, "no adapter"),
                        (tmp_path / "nowhere.safetensors", "no file")):
        for asked in (resize.Resize(path, str(tmp_path / NEW), "dim", 1),
                      convert.Convert(path, str(tmp_path / NEW)),
                      Merge(((path, 1.0),), str(tmp_path / "m"), "model", shop.base)):
            with pytest.raises(AdapterError, match=words):
                run(asked)
    assert not (tmp_path / NEW).exists() and not (tmp_path / "m").exists()


@pytest.mark.parametrize("case", ["ia3", "boft", "svdiff", "dora", "loha", "tlora without start"])
def test_what_only_the_base_tells_is_asked_for(shop: Workshop, tmp_path: Path, case: str) -> None:
    """IA3, rotations and DoRA read W; LoHa keeps a convolution's kernel in a matrix."""
    with pytest.raises(AdapterError, match="--base"):
        run(resize.Resize(shop.adapter(case), str(tmp_path / NEW), "dim", 1))
    if case != "loha":
        run(convert.Convert(shop.adapter(case), str(tmp_path / NEW)))  # as it is: no shape needed
        assert AdapterFile(tmp_path / NEW).shapes == AdapterFile(shop.adapter(case)).shapes


def test_an_adapter_of_another_base_is_refused(shop: Workshop, tmp_path: Path) -> None:
    other = make_base(tmp_path / "other", cross=8)
    path = shop.adapter("lora", preset="attn-only", text_encoder=False)
    notes = Progress()
    ended = run(resize.Resize(path, str(tmp_path / NEW), "dim", 1, base=other), notes)
    assert "fits this base only in part" in notes.notes[0]
    assert len(ended.rows) < len(AdapterFile(path).shapes)


def test_existing_files_stay_unless_overwritten(shop: Workshop, tmp_path: Path) -> None:
    out = tmp_path / NEW
    out.write_bytes(b"mine")
    with pytest.raises(ConfigError, match="exists already"):
        run(resize.Resize(shop.adapter("lora"), str(out), "dim", 1))
    assert out.read_bytes() == b"mine"
    run(resize.Resize(shop.adapter("lora"), str(out), "dim", 1, overwrite=True))
    assert AdapterFile(out).shapes
    with pytest.raises(ConfigError, match="name a new folder"):
        run(Merge(((shop.adapter("lora"), 1.0),), str(tmp_path), "model", shop.base))
    for asked in (Merge(((shop.adapter("lora"), 1.0),), str(shop.base / "x"), "model", shop.base),
                  extract.Extract(shop.base, shop.base, str(shop.base / "unet" / NEW), dim=1)):
        with pytest.raises(ConfigError, match="in the model small; choose a place outside"):
            run(asked)


@pytest.mark.parametrize("make", [
    lambda shop, out: resize.Resize(shop.adapter("lora"), str(out / NEW), "dim", 1),
    lambda shop, out: convert.Convert(shop.adapter("lora"), str(out / NEW), algo="full"),
    lambda shop, out: convert.Convert(shop.adapter("lora"), str(out / "peft"), "peft",
                                      base=shop.base),
    lambda shop, out: Merge(((shop.adapter("lora"), 1.0),), str(out / "m"), "model", shop.base),
    lambda shop, out: Merge(((shop.adapter("lora"), 1.0),), str(out / NEW), "exact"),
], ids=["resize", "convert", "peft", "model", "adapters"])
def test_a_stop_leaves_nothing_behind(shop: Workshop, tmp_path: Path,
                                      make: Callable[..., Any]) -> None:
    asked = make(shop, tmp_path)
    looks = 0

    def counted() -> set[str]:
        nonlocal looks
        looks += 1
        return set()

    run(asked, Progress(asked=counted))
    for child in list(tmp_path.iterdir()):
        shutil.rmtree(child) if child.is_dir() else child.unlink()
    for moment in (1, 5, looks // 2, looks):
        left = moment

        def stop() -> set[str]:
            nonlocal left
            left -= 1
            return {"stop"} if left <= 0 else set()

        with pytest.raises(Stopped):
            run(asked, Progress(asked=stop))
        assert not list(tmp_path.iterdir()), f"at look {moment} of {looks}"


def test_a_full_disk_leaves_nothing_behind(shop: Workshop, tmp_path: Path,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable.os, "fsync", full)
    with pytest.raises(DiskError, match="disk is full"):
        run(Merge(((shop.adapter("lora"), 1.0),), str(tmp_path / "m"), "model", shop.base))
    assert not list(tmp_path.iterdir())


# --- inspect


@pytest.mark.parametrize("case", CASES)
def test_norms_are_those_of_the_change(shop: Workshop, case: str) -> None:
    path = shop.adapter(case)
    found = inspect.adapter(path, shop.base)
    wanted = shop.deltas(path)
    assert {row["name"] for row in found["rows"]} == set(wanted) and found["match"]["whole"]
    for row in found["rows"]:
        assert row["norm"] == pytest.approx(wanted[row["name"]].norm().item(), rel=1e-4)
    alone = inspect.adapter(path)
    needing = set(alone["needs_base"])
    for row, other in zip(alone["rows"], found["rows"], strict=True):
        assert row["norm"] == (None if row["layer"] in needing
                               else pytest.approx(other["norm"], rel=1e-4))
    reads = case.startswith(("ia3", "boft", "diag", "glora", "svdiff", "tlora w")) or "dora" in case
    assert bool(needing) == reads
    json.dumps({**found, "settings": None, "source_settings": None})


def test_inspect_says_how_a_file_was_made(shop: Workshop, tmp_path: Path) -> None:
    out = tmp_path / NEW
    run(resize.Resize(shop.adapter("lora"), str(out), "dim", 1))
    found = inspect.adapter(out)
    assert found["made"]["verb"] == "resize" and found["made"]["rule"] == "dim 1"
    assert found["settings"] is None and found["source_settings"]["network"]["algo"] == "lora"
    assert found["total_norm"] == pytest.approx(math.hypot(*(r["norm"] for r in found["rows"])))
    assert found["rows"][0]["dim"] == 1 and found["rows"][0]["alpha"] == 1.0
    assert found["parameters"] == sum(row["parameters"] for row in found["rows"])


def test_inspect_against_another_base(shop: Workshop, tmp_path: Path) -> None:
    path = tensorfile.write(tmp_path / "x.safetensors", {
        "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": torch.ones(6, 1),
        "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.ones(1, 4)},
        {"ss_num_train_images": "4", "ss_tag_frequency": json.dumps(
            {"x": {"zorb": 4, "a hill": 2}, "bad": 3})})
    found = inspect.adapter(path, shop.base)
    assert not found["match"]["whole"] and "another base" in found["match"]["text"]
    assert found["rows"][0]["norm"] == pytest.approx(math.sqrt(24))
    assert found["trigger"] == ["zorb"] and found["tags"][1] == ("a hill", 2)
    said = {"modelspec.trigger_phrase": "zorb, blit"}
    assert provenance.trigger_words(said) == ["zorb", "blit"]


def test_inspect_shows_a_file_of_broken_numbers(tmp_path: Path) -> None:
    path = tensorfile.write(tmp_path / "x.safetensors", {
        "lora_unet_a.lora_up.weight": torch.full((6, 1), math.nan),
        "lora_unet_a.lora_down.weight": torch.ones(1, 4)}, {})
    found = inspect.adapter(path)
    assert "not finite" in found["problem"] and found["rows"][0]["norm"] is None


# --- the command line


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], tmp_path: Path,
            monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, Any]]:
    monkeypatch.chdir(tmp_path)

    def call(*words: str | Path) -> tuple[int, Any]:
        capfd.readouterr()
        code = main([*map(str, words), "--json"])
        lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
        return code, lines[-1]

    return call


def test_the_story_of_a_file(shop: Workshop, tmp_path: Path, command: Callable[..., Any]) -> None:
    path, follow = shop.adapter("loha"), tmp_path / "jobs" / "1"
    base = ["--base", shop.base]
    code, found = command("resize", path, "--out", "a.safetensors", "--rule", "sv_fro", "--value",
                          0.9, "--conv-dim", 2, *base, "--follow", follow)
    assert code == 0 and found["verb"] == "resize" and 0 < found["error"] < 0.5
    assert json.loads((follow / "result.json").read_text()) == found
    history = runs.RunFolder(follow).history()
    assert history.finished == events.Finished("done", 0, "result.json")
    assert history.stage == events.Stage("resizing", len(found["layers"]), len(found["layers"]))
    assert history.started and runs.RunFolder(follow).state() == "done"
    assert set(found["layers"][0]) == {"layer", "algorithm", "dim", "alpha", "parameters", "norm",
                                       "error", "from"}
    assert found["layers"][0]["from"] == "loha, dim 2" and found["summary"].startswith("LoRA, dim")

    code, found = command("convert", "a.safetensors", "--out", "b.safetensors", "--algo", "full")
    assert code == 0 and found["dialect"] == "kohya" and found["dtype"] == "fp32"
    code, found = command("merge", "a.safetensors:0.5", "b.safetensors:0.5", "--out",
                          "c.safetensors", *base)
    assert code == 0 and found["error"] < 1e-3
    code, found = command("merge", "a.safetensors:0.5", "b.safetensors", "--out", "model", *base,
                          "--block", "2:unet.*=0", "--block", "text_encoder.*=2")
    assert code == 0 and found["changed"] == len(shop.deltas(path))
    one = next(r for r in found["layers"] if r["layer"].startswith("unet"))
    assert one["weights"] == [0.5] and one["adapters"] == ["a"]
    code, found = command("extract", *base, "--tuned", "model", "--out", "d.safetensors", "--algo",
                          "lokr", "--factor", 2, "--dtype", "fp32")
    assert code == 0 and {row["algorithm"] for row in found["layers"]} == {"lokr"}
    code, found = command("inspect", "d.safetensors", *base)
    assert code == 0 and found["match"]["whole"] and found["made"]["verb"] == "extract"


def test_failures_reach_who_follows(shop: Workshop, tmp_path: Path,
                                    command: Callable[..., Any]) -> None:
    code, found = command("resize", shop.adapter("ia3"), "--out", "a.safetensors", "--rule", "dim",
                          "--dim", 2, "--follow", "job")
    history = runs.RunFolder(tmp_path / "job").history()
    assert code == 2 and "--base" in found["error"]["fix"]
    assert history.failed and history.failed.kind == "adapter" and not history.finished
    assert not (tmp_path / "job" / "result.json").exists()
    for words, said in ((["resize", "base", "--out", "x.safetensors"], "no adapter"),
                        (["resize", f"{shop.adapter('lora')}:0.5", "--out", "x.safetensors"],
                         "only merge takes"),
                        (["convert", "nothing", "--out", "x.safetensors"], "no adapter 'nothing'"),
                        (["inspect", tmp_path], "holds no adapter")):
        code, found = command(*words)
        assert code == 2 and said in found["error"]["message"]


def test_a_bug_reaches_who_follows(shop: Workshop, tmp_path: Path, command: Callable[..., Any],
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("x")

    monkeypatch.setattr(resize, "run", broken)
    code, last = command("resize", shop.adapter("lora"), "--out", "a.safetensors", "--follow",
                         "job")
    assert code == 1 and last["event"] == "started"
    history = runs.RunFolder(tmp_path / "job").history()
    assert history.failed == events.Failed(
        "bug", "ZeroDivisionError: x", "This is a bug in lycogui; log.txt has the details.")
    assert "Traceback" in (tmp_path / "job" / "log.txt").read_text()


def test_a_request_to_stop_is_heard(shop: Workshop, tmp_path: Path,
                                    monkeypatch: pytest.MonkeyPatch,
                                    command: Callable[..., Any]) -> None:
    folder = runs.RunFolder(tmp_path / "job")
    whole = Deltas.change

    def asking(self: Deltas, assignment: Any) -> Any:
        folder.request("stop")
        return whole(self, assignment)

    monkeypatch.setattr(Deltas, "change", asking)
    code, found = command("resize", shop.adapter("lora"), "--out", "a.safetensors", "--rule",
                          "dim", "--dim", 1, "--follow", "job")
    assert code == 0 and found == {"reason": "stopped"} and folder.state() == "stopped"
    assert not (tmp_path / "a.safetensors").exists()


def test_a_signal_stops_it(shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                           command: Callable[..., Any]) -> None:
    whole = Deltas.change

    def interrupted(self: Deltas, assignment: Any) -> Any:
        if "mid_block" in assignment.layer.name:
            signal.raise_signal(signal.SIGTERM)
            monkeypatch.setattr(Deltas, "change", whole)
        return whole(self, assignment)

    monkeypatch.setattr(Deltas, "change", interrupted)
    code, found = command("merge", shop.adapter("lora"), "--out", "model", "--base", shop.base)
    assert code == 143 and found == {"reason": "stopped"} and not list(tmp_path.iterdir())


def test_what_people_read(shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                          capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    path = str(shop.adapter("loha"))
    assert main(["resize", path, "--out", "a.safetensors", "--dim", "1", "--base",
                 str(shop.base)]) == 0
    assert "LoRA, dim 1 in" in (said := capsys.readouterr().out) and "% of the change" in said
    assert main(["inspect", str(shop.adapter("ia3"))]) == 0
    assert "layers need --base" in capsys.readouterr().out
    assert main(["merge", "a.safetensors", "--out", "model", "--base", str(shop.base)]) == 0
    assert "layers changed in" in capsys.readouterr().out


def test_an_sdxl_file_stays_one(tmp_path: Path) -> None:
    """A1111 takes any file with metadata and without a base's version for SD1's."""
    path = tensorfile.write(tmp_path / "x.safetensors", {
        "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(6, 1),
        "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(1, 4)}, {})
    run(convert.Convert(path, str(tmp_path / NEW)))
    assert AdapterFile(tmp_path / NEW).metadata["ss_base_model_version"] == "sdxl_base_v1-0"


def test_results_are_plain_json(shop: Workshop, tmp_path: Path) -> None:
    ended = run(resize.Resize(shop.adapter("lora"), str(tmp_path / NEW), "dim", 1))
    assert isinstance(ended, Written) and json.loads(json.dumps(ended.data())) == ended.data()
    assert isinstance(ConfigError({"x": "y"}), LycorisError)
