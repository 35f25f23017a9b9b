"""A newcomer with one file of SD 1.5's layout and a folder of pictures: three values, and it
trains."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import small_models
from conftest import TINY_SD, draw_pictures
from in_browser import NEEDS_BROWSER, App, fill, settled, tab

pytestmark = NEEDS_BROWSER


def test_a_model_a_folder_and_a_name(app: App, page: Any, tmp_path: Path) -> None:
    model = small_models.write_single(small_models.make(tmp_path / "made", "sd15", levels=4),
                                      tmp_path / "models" / "v1-5.safetensors")
    draw_pictures(app.folder / "toy", 3, (96, 64))
    tab(page, "Algorithm")
    fill(page, "network.dim", "4")  # chosen before: it stays
    settled(app, "dim", "4")
    tab(page, "Compare")
    fill(page, "sample.steps", "2")  # the same; the first samples are soon painted
    settled(app, "\nsteps", "2\n")
    page.locator("#header .chip").first.click()
    fill(page, "model.base", str(model))
    page.get_by_text("Undo is on the Algorithm tab").wait_for()
    page.locator("#base-panel").get_by_text("no tokenizer").wait_for()
    page.wait_for_function("document.querySelector('#header .chip.bad') !== null")
    shutil.copytree(TINY_SD / "tokenizer", model.parent / "tokenizer")
    page.wait_for_function("document.querySelector('#header .chip.bad') === null")
    page.locator("#base-panel").get_by_role("button", name="Close", exact=True).click()
    settled(app, "steps", "1500")
    settled(app, "resolution", "512")
    settled(app, "lr", "0.0001")
    settled(app, "\ndim", "4")

    tab(page, "Dataset")
    fill(page, "dataset.folder", str(app.folder / "toy"))
    page.get_by_text("3 pictures, 3 with captions").wait_for()
    tab(page, "Train")
    fill(page, "output.name", "first")
    page.locator("#train").click()
    app.wait(lambda: app.run("first").get("step", 0) >= 1)
    page.get_by_role("button", name="Stop").first.click()
    app.wait(lambda: app.run("first")["state"] == "stopped")
    made = (app.folder / "runs" / "first" / "config.toml").read_text("utf-8")
    assert 'prompts = ["a ball, number 1", "a ball, number 2"]' in made

    tab(page, "Algorithm")
    page.get_by_role("button", name="Undo").click()
    settled(app, "base", '"assets/tiny-sd"')
    settled(app, "resolution", "64")
