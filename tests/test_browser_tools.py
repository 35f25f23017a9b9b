"""The tab Tools in a real browser: an adapter is inspected, resized, compared, merged, and its
recipe goes back into the form."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import ROOT
from in_browser import NEEDS_BROWSER, App, assert_fits_and_reads, fill, settled, tab

pytestmark = NEEDS_BROWSER
RESULT = ".tools-root .pane[data-tool={}][data-state={}]"


@pytest.fixture(scope="module")
def app(app: App) -> Iterator[App]:
    """With a run that has been trained: a LoHa, with settings that are no default's."""
    subprocess.run([
        sys.executable, "-m", "lycoris", "train", "network.algo=loha", "network.dim=4",
        "network.alpha=2", "train.steps=3", "sample.every=0", "train.checkpoint_every=0",
        "optimizer.lr=0.00321", "output.name=mine", f"output.folder={app.folder / 'runs'}",
        "output.trigger=zorb", "--json"], cwd=ROOT, check=True, capture_output=True)
    yield app


def tool(page: Any, name: str) -> None:
    tab(page, "Tools")
    page.locator("#tool").get_by_label(name, exact=True).check(force=True)


def choose(page: Any, field: str, name: str) -> None:
    """Pick from a dropdown, and leave it."""
    page.locator(f"[id='{field}'] input").first.click()
    page.get_by_role("option", name=name, exact=True).first.click()
    page.locator(".tools-form .note").first.click()


def choose_more(page: Any, field: str, name: str) -> None:
    """One more of several in a dropdown, where it is not chosen yet."""
    if name not in page.locator(f"#{field}").inner_text():
        page.locator(f"#{field} input").first.click()
        page.get_by_role("option", name=name, exact=True).first.click()


def go(page: Any, name: str, state: str = "done") -> Any:
    page.locator("#tool-go").click()
    return result(page, name, state)


def result(page: Any, name: str, state: str = "done") -> Any:
    page.wait_for_selector(RESULT.format(name, state), timeout=120_000)
    return page.locator(".tools-root .pane").first


def test_an_adapter_is_inspected_and_its_recipe_loaded(app: App, page: Any) -> None:
    tool(page, "Inspect")
    page.locator("#tool-facts", has_text="mine: LoHa, dim 4, in 101 layers").wait_for()
    shown = go(page, "inspect")
    facts = shown.locator(".facts-grid").inner_text()
    size = (app.folder / "runs" / "mine" / "mine.safetensors").stat().st_size
    for words in ("LoHa, dim 4", f"{size:,} bytes", "fp16", "kohya", "tiny-sd", "zorb", "0.00321"):
        assert words in facts, words
    canvas = shown.locator("canvas.bars")
    assert "Norm of 101 layers, the largest" in canvas.get_attribute("aria-label")
    canvas.focus()
    page.keyboard.press("ArrowRight")
    tip = shown.locator(".tip")
    tip.get_by_text("text_encoder.").wait_for()
    page.keyboard.press("End")
    tip.get_by_text("unet.conv_out").wait_for()
    assert "dim 4, alpha 2" in tip.inner_text()
    shown.locator("summary", has_text="Metadata").click()
    shown.get_by_label("Search in Metadata").fill("nothing of the kind")
    shown.get_by_text("0 of ").wait_for()
    shown.get_by_label("Search in Metadata").fill("ss_learning")
    shown.get_by_text("1 of ").wait_for()
    tab(page, "Algorithm")
    page.get_by_label("Full", exact=True).check()
    settled(app, "algo", '"full"')
    tab(page, "Tools")
    page.get_by_role("button", name="Load into the form").click()
    page.get_by_text("There is a run called mine already, so the name is left empty.").wait_for()
    settled(app, "algo", '"loha"')
    settled(app, "lr", "0.00321")
    assert f"folder = {json.dumps('runs')}" in (app.folder / "settings.toml").read_text("utf-8")
    tab(page, "Algorithm")
    assert page.locator("[id='network.dim'] input").first.input_value() == "4"


def test_it_is_resized_and_compared_with_the_original(app: App, page: Any) -> None:
    tool(page, "Resize")
    choose(page, "tool-adapter", "mine")
    fill(page, "resize.dim", "0")
    page.locator("#tool-go").click()
    page.locator(".validation-error", has_text="Dim is 0; the least is 1").wait_for(
        state="attached")
    fill(page, "resize.dim", "8")
    page.get_by_role("button", name="Resize to dim 8").wait_for()
    shown = go(page, "resize")
    made = app.folder / "runs" / "adapters" / "mine-dim8.safetensors"
    figures = shown.locator(".plan").inner_text()
    assert f"{made.stat().st_size:,} bytes" in figures and "error: what is lost" in figures
    error = float(shown.locator(".plan > div").nth(2).locator(".v").inner_text().split()[0])
    assert 0 < error < 100
    assert "Error of 101 layers" in shown.locator("canvas.bars").get_attribute("aria-label")
    page.reload()
    page.wait_for_selector("body[data-ready]")
    tab(page, "Tools")
    shown = result(page, "resize")
    assert page.locator("[id='resize.dim'] input").first.input_value() == "8", "as it was left"
    assert shown.locator(".run b").inner_text() == "mine-dim8.safetensors"
    shown.get_by_role("button", name="Compare with the original").click()
    page.locator("#paint").wait_for()
    chosen = page.locator("#contestants").inner_text()
    assert all(name in chosen for name in ("base", "mine", "mine-dim8"))
    tab(page, "Tools")
    page.get_by_role("button", name="Inspect it").click()
    facts = result(page, "inspect").locator(".facts-grid").inner_text()
    assert "LoRA, dim 8" in facts or "LoRA, dim" in facts
    page.get_by_text("The recipe is that of the adapter it was made from.").wait_for()
    page.locator(".tools-root tr", has_text="Resize to dim 8").click()
    result(page, "resize")


def test_adapters_are_merged_and_the_model_used(app: App, page: Any) -> None:
    tool(page, "Merge")
    choose(page, "tool-adapters", "mine")
    page.get_by_text("Weights of single blocks").click()
    fill(page, "merge.block", "unet.nowhere.* = 0.5")
    failed = go(page, "merge", "failed")
    failed.get_by_role("alert").get_by_text("fits no layer").wait_for()
    fill(page, "merge.block", "")
    shown = go(page, "merge")
    assert "101 layers" in shown.locator(".plan").inner_text().replace("\n", " ")
    shown.get_by_role("button", name="Use it as the base").click()
    page.locator("#header .chip", has_text="tiny-sd+mine").wait_for()
    tool(page, "Extract")
    page.locator("#tool-tuned input, #tool-tuned textarea").first.fill("/nowhere")
    page.locator("#tool-facts", has_text="there is no folder /nowhere").wait_for()
    page.locator("#header .chip").first.click()
    page.get_by_role("button", name="Use the embedded model").click()
    page.locator("#header .chip", has_text="tiny-sd+mine").wait_for(state="detached")
    page.locator("#base-panel").get_by_role("button", name="Close", exact=True).click()


def test_a_file_that_is_none_is_said_beside_its_field(app: App, page: Any) -> None:
    broken = app.folder / "broken <b>.safetensors"
    broken.write_bytes(b"not one")
    tool(page, "Inspect")
    field = page.locator("#tool-adapter input").first
    field.fill(str(broken))
    field.press("Enter")
    page.locator("#tool-facts .bad", has_text="broken <b>").wait_for()
    page.locator("#tool-go").click()
    page.locator("#tool-note").get_by_text("It cannot start like this").wait_for()


def test_a_finished_run_is_inspected_from_its_line(app: App, page: Any) -> None:
    tab(page, "Train")
    page.locator("#monitor").get_by_role("button", name="Inspect", exact=True).click()
    result(page, "inspect").locator(".run b", has_text="mine.safetensors").wait_for()
    page.get_by_role("button", name="Train again with these settings").click()
    page.get_by_text("mine-2 is in the queue.").wait_for()
    app.wait(lambda: app.run("mine-2").get("state") == "done", 120)
    assert app.run("mine-2")["total"] == 3 and "LoHa 4" in app.run("mine-2")["about"]


def test_results_fit_and_can_be_read(app: App, page: Any) -> None:
    for name in ("Inspect", "Resize", "Convert", "Merge", "Extract"):
        tool(page, name)
        page.wait_for_timeout(700)
        page.evaluate(
            "document.querySelectorAll('.tools-root details').forEach(d => d.open = true)")
        assert_fits_and_reads(page, name)


def test_algorithms_of_different_kinds_from_training_to_tools(app: App, page: Any) -> None:
    """A Kronecker product, a rotation and a scaling: each trained from its own choice, with the
    file that was announced; all painted side by side; one inspected and made a LoRA of."""
    names = {"LoKr": "zorb-lokr", "Diag-OFT": "zorb-diag-oft", "(IA)³": "zorb-ia3"}
    tab(page, "Train")
    fill(page, "output.name", "")
    fill(page, "train.steps", "2")
    fill(page, "sample.every", "0")
    announced = {}
    for label, name in names.items():
        tab(page, "Algorithm")
        page.get_by_label(label, exact=True).check()
        page.locator("[id='output.name']").locator(f"[placeholder='{name}']").wait_for(
            state="attached")
        page.wait_for_function("text => document.querySelector('table.algos tr.on td')"
                               "?.innerText === text", arg=label)
        announced[name] = page.locator(".plan").inner_text()
        tab(page, "Train")
        page.locator("#train").click()
        app.wait(lambda name=name: app.run(name))
    for name, said in announced.items():
        app.wait(lambda name=name: app.run(name)["state"] == "done", 120)
        assert f"{app.run(name)['bytes']:,} bytes" in said, name
    tab(page, "Compare")
    fill(page, "sample.steps", "2")
    fill(page, "sample.seeds", "1")
    settled(app, "seeds", "[1]")
    for name in names.values():
        choose_more(page, "contestants", name)
    page.locator("#compare-prompts textarea").fill("a zorb on grass")
    page.locator("#paint").click()
    page.get_by_role("link", name="Save grid").wait_for(timeout=90_000)
    heads = page.locator(".ab .who").all_inner_texts()
    assert all(any(head.startswith(name) for head in heads) for name in ("base", *names.values()))
    page.wait_for_function("n => document.querySelectorAll('.ab .cell img').length === n && "
                           "[...document.querySelectorAll('.ab .cell img')].every(i => "
                           "i.complete && i.naturalWidth)", arg=len(heads))
    tab(page, "Train")
    page.locator("table.runs tr", has=page.get_by_text("zorb-ia3", exact=True)).click()
    page.locator("#monitor .run b", has_text="zorb-ia3").wait_for()
    page.locator("#monitor").get_by_role("button", name="Inspect", exact=True).click()
    page.locator(".tools-root .run b", has_text="zorb-ia3.safetensors").wait_for()
    assert "(IA)³" in result(page, "inspect").locator(".facts-grid").inner_text()
    tool(page, "Resize")
    fill(page, "resize.dim", "2")
    page.get_by_role("button", name="Resize to dim 2").click()
    page.locator(".tools-root .run b", has_text="zorb-ia3-dim2.safetensors").wait_for(
        timeout=90_000)
    result(page, "resize").get_by_text("It is larger than before").wait_for()
    page.get_by_role("button", name="Compare with the original").click()
    page.locator("#contestants .token", has_text="zorb-ia3-dim2").wait_for()
    tokens = page.locator("#contestants .token").all_inner_texts()
    assert not [token for token in tokens if "/" in token], "names, not paths"
