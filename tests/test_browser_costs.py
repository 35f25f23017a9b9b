"""The views of the Algorithm tab in a real browser: what settings cost and what else they could be.
"""

from __future__ import annotations

from typing import Any

from in_browser import NEEDS_BROWSER, App, fill, settled, tab

pytestmark = NEEDS_BROWSER
FIRST = "document.querySelector('.plan .v').innerText"


def see(page: Any, view: str) -> Any:
    """Open a view and return it."""
    button = page.get_by_role("tab", name=view, exact=True)
    button.click()
    assert button.get_attribute("aria-selected") == "true", "it is chosen before it is counted"
    counted(page)
    return page.locator(".view")


def counted(page: Any) -> None:
    """Until what is shown is new."""
    page.wait_for_selector(".plan-root:not(.waits)")


def sizes_for(page: Any, model: str) -> None:
    page.locator("[id='model.family'] input").click()
    page.get_by_role("option", name=model, exact=True).click()


def test_a_model_that_is_not_there_is_measured(app: App, page: Any) -> None:
    """SDXL by name: figures move with the slider, and a click on Train says why it cannot be."""
    tab(page, "Algorithm")
    page.wait_for_selector(".plan .v")
    sizes_for(page, "SDXL, without its files")
    page.get_by_text("by name alone, at 1024 px").wait_for()
    before = page.locator(".plan .v").first.inner_text()
    page.get_by_label("Dim, slider").fill("32")
    page.wait_for_function(f"text => {FIRST} !== text", arg=before)
    settled(app, "dim", "32")
    shown = see(page, "Memory")
    assert "UNet weights" in shown.inner_text()
    tab(page, "Train")
    page.locator("#train").click()
    page.get_by_text("is not a model of that shape").first.wait_for()
    tab(page, "Algorithm")
    sizes_for(page, "the base model")
    settled(app, "family", '"auto"')


def test_the_plot_of_sizes_goes_by_keys(app: App, page: Any) -> None:
    tab(page, "Algorithm")
    page.wait_for_selector(".plan .v")
    fill(page, "network.dim", "8")
    settled(app, "dim", "8")
    see(page, "Size by dim")
    canvas, tip = page.locator("canvas.curves"), page.locator(".view .tip")
    canvas.focus()
    for key, text in (("ArrowRight", "LoRA, dim 8"), ("ArrowRight", "LoRA, dim 12"),
                      ("ArrowUp", ", dim 12")):
        canvas.press(key)
        tip.get_by_text(text).wait_for()
    assert "LoRA, dim" not in tip.inner_text().replace("DyLoRA", "").replace("T-LoRA", "")
    canvas.press("ArrowDown")
    canvas.press("ArrowLeft")
    canvas.press("ArrowLeft")
    tip.get_by_text("LoRA, dim 6").wait_for()
    canvas.press("Enter")
    settled(app, "dim", "6")
    page.get_by_role("button", name="Undo").click()
    settled(app, "dim", "8")


def test_what_a_view_suggests_is_taken_and_undone(app: App, page: Any) -> None:
    tab(page, "Algorithm")
    page.wait_for_selector(".plan .v")
    start = page.locator(".plan .v").first.inner_text()
    fits = see(page, "What fits")
    limit = fits.get_by_label("Largest file, MiB")
    for wrong, told in (("-5", "more than 0 MiB"), ("", "Write a size")):
        limit.fill(wrong)
        limit.press("Enter")
        fits.get_by_text(told).wait_for()
    limit.fill("0.3")
    limit.press("Enter")
    row = fits.locator("tr", has=page.get_by_role("cell", name="LoKr", exact=True))
    counted(page)
    size = row.locator("td.n").nth(1).inner_text()
    row.get_by_role("button", name="use").click()
    page.wait_for_function("size => document.querySelectorAll('.plan .v')[1].innerText === size",
                           arg=size)
    counted(page)
    assert limit.input_value() == "0.3", "the limit stays what it was"
    assert page.get_by_label("LoKr", exact=True).is_checked()
    page.get_by_role("button", name="Undo").click()
    page.wait_for_function(f"text => {FIRST} === text", arg=start)
    assert page.get_by_label("LoRA", exact=True).is_checked()

    told = see(page, "Advice")
    told.get_by_role("button", name="It learns too much").click()
    told.get_by_role("button", name="Apply").first.click()
    settled(app, "algo", '"loha"')
    page.get_by_role("button", name="Undo").click()
    settled(app, "algo", '"lora"')


def test_what_cannot_be_used_has_a_way_out(app: App, page: Any) -> None:
    """The last figures stay, pale; the field is on another tab, and a click leads to it. What needs
    no plan is there, and undoing too."""
    tab(page, "Algorithm")
    page.wait_for_selector(".plan .v")
    start = page.locator(".plan .v").first.inner_text()
    tab(page, "Train")
    fill(page, "train.batch_size", "100000")
    tab(page, "Algorithm")
    wrong = page.locator(".problems")
    wrong.get_by_text("Batch size is 100000; the most is").wait_for()
    assert page.locator(".figures.past .v").first.inner_text() == start
    assert page.get_by_role("tab", name="Memory", exact=True).is_disabled()
    page.get_by_role("tab", name="Presets", exact=True).click()
    page.locator(".view").get_by_label("Preset", exact=True).wait_for()
    wrong.get_by_role("button", name="Show the field").click()
    field = page.locator("[id='train.batch_size'] input")
    page.wait_for_function("e => e === document.activeElement", arg=field.element_handle())
    assert "2px" in field.evaluate("e => getComputedStyle(e).boxShadow"), "it is marked"
    fill(page, "train.batch_size", "8")
    page.get_by_text("Pictures", exact=True).last.click()
    fill(page, "dataset.resolution", "")
    page.get_by_text("Pictures", exact=True).last.click()
    tab(page, "Algorithm")
    fill(page, "network.dim", "0")
    wrong.get_by_text("Dim is 0").wait_for()
    wrong.locator("p", has_text="Resolution").get_by_role("button", name="Show the field").click()
    field = page.locator("[id='dataset.resolution'] input")
    field.wait_for()  # in a fold that was closed
    fill(page, "dataset.resolution", "64")
    tab(page, "Algorithm")
    fill(page, "network.dim", "8")
    wrong.wait_for(state="hidden")
    see(page, "Every algorithm")


def test_a_match_that_stays_far_off_is_asked_for_and_undone_with_all_options(app: App,
                                                                            page: Any) -> None:
    tab(page, "Algorithm")
    page.wait_for_selector(".plan .v")
    rows = see(page, "Every algorithm")

    def equal(algo: str) -> None:
        rows.locator("tr", has=page.get_by_role("cell", name=algo, exact=True)).get_by_role(
            "button", name="make equal").click()

    equal("SVDiff")
    rows.get_by_text("comes no closer than").wait_for()
    assert page.get_by_label("LoRA", exact=True).is_checked()
    rows.get_by_role("button", name="Stay here").click()
    equal("SVDiff")
    rows.get_by_role("button", name="Switch to SVDiff all the same").click()
    settled(app, "algo", '"svdiff"')
    page.get_by_role("button", name="Undo").click()
    settled(app, "algo", '"lora"')
    counted(page)
    equal("LoKr")
    settled(app, "algo", '"lokr"')
    page.get_by_text("The algorithm's own options").click()
    factor = page.locator("[id='network.options.lokr.factor'] input").first
    assert factor.input_value() != "-1"
    page.get_by_role("button", name="Undo").click()
    settled(app, "algo", '"lora"')
    page.get_by_label("LoKr", exact=True).check(force=True)
    settled(app, "algo", '"lokr"')
    assert factor.input_value() == "-1"
    page.get_by_label("LoRA", exact=True).check(force=True)
    settled(app, "algo", '"lora"')


def test_a_preset_shows_what_it_would_change_and_is_undone(app: App, page: Any) -> None:
    tab(page, "Algorithm")
    page.wait_for_selector(".plan .v")
    settled(app, "algo", '"lora"')
    shown = see(page, "Presets")
    shown.get_by_label("Preset", exact=True).select_option("style-sd15-8gb")
    page.wait_for_selector(".view .changes")
    assert "min-snr" in shown.inner_text()
    settled(app, "algo", '"lora"')
    shown.get_by_role("button", name="Apply").click()
    settled(app, "algo", '"lokr"')
    settled(app, "weighting", '"min-snr"')
    shown.get_by_text("The settings on screen are this preset's.").wait_for()
    page.get_by_role("button", name="Undo").click()
    settled(app, "algo", '"lora"')
    settled(app, "weighting", '"none"')


def test_two_configurations_and_their_words(app: App, page: Any) -> None:
    tab(page, "Algorithm")
    page.wait_for_selector(".plan .v")
    both = see(page, "A and B")
    assert "a fair comparison" in both.inner_text()
    fill(page, "network.dim", "2")
    settled(app, "dim", "2")
    both.get_by_role("button", name="Put what is on screen here").first.click()
    both.get_by_role("button", name="Clear").wait_for()
    fill(page, "network.dim", "8")
    settled(app, "dim", "8")
    both.get_by_role("button", name="Load it").first.click()
    settled(app, "dim", "2")

    words = see(page, "Share")
    words.get_by_role("button", name="Command line").click()
    page.wait_for_function("document.querySelector('pre.shared').innerText.includes('dim=2')")
    words.get_by_label("Settings to read").fill("--network_module=lycoris.kohya --network_dim=6 "
                                                "--network_args algo=loha preset=attn-mlp")
    words.get_by_role("button", name="Read into the form").click()
    settled(app, "dim", "6")
    assert page.get_by_label("LoHa", exact=True).is_checked()
    words.get_by_label("Settings to read").fill("what is this")
    words.get_by_role("button", name="Read into the form").click()
    page.get_by_text("no settings that are known here").first.wait_for()


def test_the_loss_is_drawn_as_it_is_chosen(app: App, page: Any) -> None:
    """The plot appears with the fold, follows the choices, and shows only their fields."""
    tab(page, "Train")
    page.get_by_text("Noise, loss and seed").click()
    plot = page.locator("canvas.focus")
    plot.wait_for()
    assert "weight at most 1" in plot.get_attribute("aria-label")
    gamma = page.locator("[id='loss.p2_gamma']")
    assert not gamma.is_visible()
    page.locator("[id='loss.weighting'] input").click()
    page.get_by_role("option", name="P2", exact=True).click()
    gamma.wait_for()
    fill(page, "loss.timestep_min", "500")
    page.wait_for_function(
        "document.querySelector('canvas.focus').ariaLabel.includes('at most 2 times')")
    # Of velocity: snr / (1 + snr)^2.
    assert "weight at most 0.25" in plot.get_attribute("aria-label")
    plot.focus()
    plot.press("ArrowRight")
    page.get_by_text("Timesteps 0 to 9", exact=True).wait_for()
    settled(app, "weighting", '"p2"')
    page.reload()
    page.wait_for_selector("body[data-ready]")
    tab(page, "Train")
    page.get_by_text("Noise, loss and seed").click()
    gamma.wait_for()
    page.locator("canvas.focus[aria-label*='at most 2 times']").wait_for()
