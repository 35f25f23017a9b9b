"""What the tests share: a base model of a few thousand weights, pictures, run settings."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import pytest
import torch
from interop import peers
from nursery import Nursery
from PIL import Image, ImageDraw

from lycoris import config

# PEFT, by which diffusers reads LoRA files, is found here last and in these processes alone: users
# have none, and every engine that is started would import it.
sys.path.append(str(peers.FOLDER))

ROOT = Path(__file__).resolve().parents[1]
TINY_SD = ROOT / "assets" / "tiny-sd"
# Engines outlive who started them, as they should. Those of tests carry this in their environment,
# by which they are found and ended however the tests end, by kill -9 too.
MARK = "LYCOGUI_TESTS"
UNDERTAKER = f"""
import contextlib, sys, psutil
sys.stdin.read()  # ends with the process of the tests
for process in psutil.process_iter():
    with contextlib.suppress(psutil.Error):
        if process.environ().get({MARK!r}) == sys.argv[1]:
            process.kill()
"""


def pytest_configure(config: pytest.Config) -> None:
    mark = secrets.token_hex(8)
    others = {name: value for name, value in os.environ.items() if name != MARK}
    undertaker = subprocess.Popen([sys.executable, "-c", UNDERTAKER, mark], env=others,
                                  stdin=subprocess.PIPE, start_new_session=True)
    config.add_cleanup(undertaker.communicate)
    os.environ[MARK] = mark


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[Any]:
    """Fixtures may ask whether their test has failed."""
    report = yield
    if report.when == "call":
        item.stash[FAILED] = report.failed
    return report


def make_base(folder: Path, *, cross: int = 16, prediction: str = "epsilon") -> Path:
    """An SD1-shaped diffusers folder of the real classes, with few random weights."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(7)
    shutil.copytree(TINY_SD / "tokenizer", folder / "tokenizer")
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=cross, intermediate_size=2 * cross,
        num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )).save_pretrained(folder / "text_encoder")
    UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16),
        layers_per_block=1, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=cross,
        attention_head_dim=2, norm_num_groups=4).save_pretrained(folder / "unet")
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8), layers_per_block=1, latent_channels=4, norm_num_groups=2,
        mid_block_add_attention=False).save_pretrained(folder / "vae")
    DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
                  prediction_type=prediction, clip_sample=False,
                  timestep_spacing="leading").save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(
        '{"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1",'
        ' "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],'
        ' "text_encoder": ["transformers", "CLIPTextModel"],'
        ' "tokenizer": ["transformers", "CLIPTokenizer"],'
        ' "scheduler": ["diffusers", "DDIMScheduler"], "safety_checker": [null, null],'
        ' "feature_extractor": [null, null], "requires_safety_checker": false}')
    return folder


# Of the files that take minutes, the longest first.
LONG = ("story", "browser", "cli", "browser_tools", "training", "jobs", "browser_costs")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests first: a core that gets one last would keep all others waiting."""
    long = [ROOT / "tests" / f"test_{name}.py" for name in LONG]
    slow = {item.path for item in items
            if item.get_closest_marker("slow") or item.get_closest_marker("browser")}
    items.sort(key=lambda item: long.index(item.path) if item.path in long else
               len(long) + (item.path not in slow))


@pytest.fixture(scope="session")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "small")


def draw_pictures(folder: Path, count: int = 5, size: tuple[int, int] = (48, 48)) -> Path:
    """Pictures 1.png.. with captions."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, count + 1):
        image = Image.new("RGB", size, (40 * number % 255, 90, 200 - 30 * number % 200))
        ImageDraw.Draw(image).ellipse((8, 8, 8 + 4 * number, 30), fill="white")
        image.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a ball, number {number}\n", "utf-8")
    return folder


def small_run(base: Path, pictures: Path, runs: Path) -> list[str]:
    """The settings of a run on the small base that takes a second."""
    return [
        f"model.base={base}", f"dataset.folder={pictures}",
        f"output.folder={runs}", "output.name=one", "dataset.resolution=16",
        "dataset.bucket_step=4", "network.preset=full", "network.dim=2", "network.alpha=2",
        "train.steps=6", "train.batch_size=2", "train.checkpoint_every=2", "sample.every=0",
        "sample.steps=2", "sample.seeds=1", "optimizer.lr=0.01", "optimizer.name=AdamW",
        'sample.prompts=["a ball"]']


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


@pytest.fixture
def make_pictures() -> Callable[..., Path]:
    """make_pictures(folder, count, size=(48, 48)): pictures 1.png.. with captions."""
    return draw_pictures


@pytest.fixture
def pictures(tmp_path: Path, make_pictures: Callable[..., Path]) -> Path:
    return make_pictures(tmp_path / "pictures")


@pytest.fixture
def settings(small_base: Path, pictures: Path, tmp_path: Path) -> Callable[..., config.Config]:
    """settings("path=value", ...): a run on the small base that takes a second."""

    def make(*overrides: str) -> config.Config:
        return config.load(None, [*small_run(small_base, pictures, tmp_path / "runs"), *overrides])

    return make


@pytest.fixture
def workspace(settings: Callable[..., config.Config], tmp_path: Path) -> Iterator[Any]:
    """The app's own state, with those settings on screen."""
    from lycogui.workspace import Workspace

    made = Workspace(tmp_path / "settings" / "last.toml")
    made.remember(settings())
    yield made
    made.jobs.close()


from in_browser import app, browser, context, page  # noqa: E402, F401  (fixtures; needs ROOT)
