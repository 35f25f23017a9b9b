"""Predicted beside measured: the most memory that training has in use.

    python benchmarks/memory_check.py [--device cuda] [--only lora] [--base FOLDER] [path=value ...]

Every row is a run of a few steps in a process of its own, through the trainer itself: encoding the
pictures, steps, no samples. On a CPU the measure is by how much the process's resident memory grew
at its highest (VmHWM), from what it was with all libraries imported; on CUDA it is
torch.cuda.max_memory_allocated. The prediction is lycoris.memory's, without what this machine may
have learned. Rows are chosen large enough that activations are most of it: below some 200 MiB a CPU
row says more about the allocator than about the model.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
MIB = 2**20
STEPS = 3
PICTURES = 16
SHARED = ("sample.every=0", f"train.steps={STEPS}", "train.checkpoint_every=0",
          "dataset.bucket=false", "optimizer.name=AdamW")
Row = tuple[str, tuple[str, ...]]


def rows() -> list[Row]:
    """(name, settings) of every run."""
    found: list[Row] = []
    for side, batch in ((128, 16), (256, 4), (256, 8), (256, 16)):
        found.append((f"lora {side} px, batch {batch}",
                      ("network.algo=lora", "network.preset=full", f"dataset.resolution={side}",
                       f"train.batch_size={batch}")))
    common = ("dataset.resolution=256", "train.batch_size=8")
    for algo in ("loha", "lokr", "diag-oft", "boft", "ia3", "glora", "full", "dylora"):
        more = ("network.dim=16",) if algo == "boft" else ()
        found.append((algo, (f"network.algo={algo}", "network.preset=full", *common, *more)))
    for name, more in (
            ("lora, attn-mlp", ("network.preset=attn-mlp",)),
            ("lora, attn-only, no text", ("network.preset=attn-only",
                                          "network.text_encoder=false")),
            ("lora, DoRA", ("network.preset=full", "network.dora_wd=true")),
            ("lora, dim 64, alpha 64", ("network.preset=full", "network.dim=64")),
            ("lora, checkpointing", ("network.preset=full", "train.gradient_checkpointing=true")),
            ("loha, checkpointing", ("network.algo=loha", "network.preset=full",
                                     "train.gradient_checkpointing=true")),
            ("full, checkpointing", ("network.algo=full", "network.preset=full",
                                     "train.gradient_checkpointing=true"))):
        found.append((name, (*common, *more)))
    found.append(("lora 512 px, batch 4", ("network.preset=full", "dataset.resolution=512",
                                           "train.batch_size=4")))
    return found


def measured(settings: Sequence[str], device: str, exact: bool) -> dict[str, Any]:
    """What a child process found."""
    more = {"MALLOC_MMAP_THRESHOLD_": str(MIB)} if exact else {}
    done = subprocess.run([sys.executable, __file__, "--child", "--device", device, *settings],
                          capture_output=True, text=True, encoding="utf-8", check=False,
                          env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **more})
    if done.returncode:
        raise SystemExit(f"{' '.join(settings)} failed:\n{done.stderr[-2000:]}")
    said = json.loads(done.stdout.splitlines()[-1])
    if exact:
        said["predicted"] -= sum(item["bytes"] for item in said["items"]
                                 if item["name"] == "the allocator's spare")
    return said


def child(settings: Sequence[str], device: str) -> Mapping[str, Any]:
    """Train, and say what was predicted and what it took."""
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    assert all((AutoencoderKL, DDPMScheduler, UNet2DConditionModel, CLIPTextModel, CLIPTokenizer))
    from lycoris import config, devices, memory, plan, trainer

    with tempfile.TemporaryDirectory() as folder:
        pictures = _pictures(Path(folder) / "pictures")
        run = config.load(None, [*SHARED, f"dataset.folder={pictures}", f"train.device={device}",
                                 f"output.folder={folder}/runs", "output.name=one", *settings])
        made = plan.make(run)
        predicted = memory.predict(made, device)
        where = plan.create(made).path
        meter = devices.Meter(torch.device(device))
        trainer.run(made, where, lambda event: None, set)
        return {"predicted": predicted.counted, "measured": meter.peak(),
                "items": predicted.data()["items"], "phase": predicted.highest.name}


def _pictures(folder: Path) -> Path:
    from PIL import Image

    folder.mkdir()
    for number in range(PICTURES):
        Image.effect_noise((512, 512), 40 + number).convert("RGB").save(
            folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(f"noise number {number}\n", "utf-8")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    parser.add_argument("--base", default="", help="a base model's folder; default: the embedded")
    parser.add_argument("--json", help="write all rows to this file")
    parser.add_argument("--exact", action="store_true",
                        help="glibc: map every tensor from 1 MiB on alone, so that what is freed "
                             "leaves the process; slower, and the spare is not predicted")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("settings", nargs="*", help="further settings of all rows")
    options = parser.parse_intermixed_args()
    if options.child:
        sys.stdout.write(json.dumps(child(options.settings, options.device)) + "\n")
        return
    extra = [*options.settings, *([f"model.base={options.base}"] if options.base else [])]
    sys.stdout.write("| run | predicted MiB | measured MiB | predicted / measured |\n"
                     "|---|---|---|---|\n")
    found = {}
    for name, settings in rows():
        if options.only and options.only not in name:
            continue
        found[name] = said = measured([*settings, *extra], options.device, options.exact)
        ratio = said["predicted"] / said["measured"]
        sys.stdout.write(f"| {name} | {said['predicted'] / MIB:,.0f} | "
                         f"{said['measured'] / MIB:,.0f} | {ratio:.3f} |\n")
        sys.stdout.flush()
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1), "utf-8")


if __name__ == "__main__":
    main()
