"""Stage `pictures`: draws the training set once, into one array and one list of captions."""

import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import Random

import numpy as np

from .draw import PIXELS, paint, sample_training
from .training import finish

CHUNK = 1000


def draw_chunk(seed: int, first: int, count: int) -> tuple[np.ndarray, list[str]]:
    """Pictures `first` to `first + count`: each is a function of the seed and its number."""
    pixels = np.empty((count, PIXELS, PIXELS, 3), np.uint8)
    captions = []
    for number in range(count):
        scene, caption = sample_training(Random(f"{seed}/{first + number}"))
        pixels[number] = np.asarray(paint(scene))
        captions.append(caption)
    return pixels, captions


def draw_pictures(work: Path, count: int, seed: int, processes: int | None = None) -> None:
    began = time.monotonic()
    folder = work / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, count, CHUNK)
    counts = [min(CHUNK, count - start) for start in starts]
    temporary = folder / "pixels.tmp.npy"
    shape = (count, PIXELS, PIXELS, 3)
    pixels = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
    captions: list[str] = []
    with ProcessPoolExecutor(processes or os.cpu_count()) as pool:
        for part, words in pool.map(draw_chunk, [seed] * len(counts), starts, counts):
            pixels[len(captions) : len(captions) + len(part)] = part
            captions += words
            print(f"pictures {len(captions)}/{count}", end="\r", flush=True)
    pixels.flush()
    (folder / "captions.json").write_text(json.dumps(captions), encoding="utf-8")
    temporary.replace(folder / "pixels.npy")
    seconds = round(time.monotonic() - began)
    print(f"pictures {count} in {seconds} s", flush=True)
    finish(work, "pictures", count=count, seed=seed, seconds=seconds)


def load_pictures(work: Path) -> tuple[np.ndarray, list[str]]:
    """The array is mapped, not read."""
    folder = work / "pictures"
    captions = json.loads((folder / "captions.json").read_text(encoding="utf-8"))
    return np.load(folder / "pixels.npy", mmap_mode="r"), captions
