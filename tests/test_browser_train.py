"""The tab Train in a real browser: what a newcomer stumbled over."""

from __future__ import annotations

from typing import Any

from in_browser import NEEDS_BROWSER, App, fill, settled, tab

from lycoris import config, events
from lycoris.errors import Diverged
from lycoris.runs import Process, RunFolder

pytestmark = NEEDS_BROWSER


def begun(app: App, name: str, *, alive: bool = False) -> RunFolder:
    """A run of a few steps as its folder tells it; its process is this one, or long gone."""
    me = Process.this() if alive else Process(1, 0.5)
    run = RunFolder(app.folder / "runs" / name).create({"config.toml": config.dump(config.load())})
    run.append(events.Started(me.pid, me.born, "CPU", 300))
    for step in range(1, 6):
        run.append(events.Step(step, 0.1, 0.5, 0.5, 3e-3, 0.1, 0.5, 10**8))
    run.append(events.Saved(5, "state", 1))
    return run


def dialog(page: Any) -> Any:
    return page.locator("dialog.ask")


def test_a_dialog_stays_where_a_drag_ends_outside_of_it(app: App, page: Any) -> None:
    begun(app, "ended").append(events.Finished("stopped", 5, ""))
    tab(page, "Train")
    page.locator("tr", has_text="ended").click()
    page.get_by_role("button", name="Continue …").click()
    field = dialog(page).locator("textarea")
    field.fill("a ball on a chair")
    box = field.bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 10)
    page.mouse.down()
    page.mouse.move(20, box["y"] + 10)
    page.mouse.up()
    assert field.input_value() == "a ball on a chair"
    dialog(page).locator("label", has_text="Steps in all").locator("input").fill("-5")
    dialog(page).get_by_text("Steps is -5; the least is 1").wait_for()
    page.mouse.click(20, 300)
    dialog(page).wait_for(state="detached")


def test_after_a_diverged_loss_the_dialog_comes_with_a_lower_rate(app: App, page: Any) -> None:
    error = Diverged(6, float("nan"))
    begun(app, "diverged").append(
        events.Failed(error.kind, error.message, error.fix, error.field))
    tab(page, "Train")
    page.locator("tr", has_text="diverged").click()
    page.get_by_role("alert").get_by_text("“Learning rate”").wait_for()
    page.get_by_role("button", name="Continue with a lower learning rate …").click()
    rate = dialog(page).locator("label", has_text="Learning rate").locator("input")
    assert rate.input_value() == "0.001", "a third"
    dialog(page).get_by_role("button", name="Cancel").click()
    assert page.get_by_role("button", name="Resume").count() == 0, "it would lead there again"


def test_buttons_that_come_under_the_pointer_rest(app: App, page: Any) -> None:
    """Stop was pressed twice: the second click must not meet what took its place."""
    run = begun(app, "going", alive=True)
    tab(page, "Train")
    page.locator(".run b", has_text="going").wait_for()
    page.get_by_text("95.4 MiB of memory in the whole process").wait_for()
    buttons = page.locator(".monitor-root .row", has=page.get_by_role("button", name="Pause"))
    buttons.wait_for()
    page.evaluate("""() => { const row = document.querySelector('.monitor-root .chart + .row');
        window.rested = [];
        new MutationObserver(() => rested.push(row.inert)).observe(row, {
            attributes: true, attributeFilter: ['inert']}); }""")
    run.append(events.Finished("stopped", 5, ""))
    page.wait_for_function("rested.join() === 'true,false'")
    page.get_by_role("button", name="Resume").wait_for()
    page.reload()
    page.wait_for_selector("body[data-ready]")
    page.locator(".run b").first.wait_for()  # still on the tab Train
    assert page.get_by_role("tab", name="Train", exact=True).get_attribute(
        "aria-selected") == "true"


def test_a_pair_from_an_adapter_is_refused_whole_and_a_run_teaches_its_time(
        app: App, page: Any) -> None:
    tab(page, "Algorithm")
    page.locator(".plan").get_by_text("unknown").wait_for()
    tab(page, "Train")
    fill(page, "train.steps", "16")
    fill(page, "sample.every", "0")
    fill(page, "output.name", "first")
    settled(app, "steps", "16")
    settled(app, "name", '"first"')
    page.get_by_text("only when asked for: “a zorb on grass” and 2 more").wait_for()
    page.locator("#train").click()
    settled(app, "name", '"first-2"')
    app.wait(lambda: app.run("first").get("state") == "done")
    tab(page, "Algorithm")
    page.locator(".plan").get_by_text("unknown").wait_for(state="detached")
    tab(page, "Train")
    page.locator("tr", has_text="first").click()
    page.get_by_role("button", name="New run from it").click()
    page.locator(".goes-on", has_text="Goes on from first").wait_for()
    before = len(app.api("all_runs")["runs"])
    page.locator("#train-pair").click()
    page.locator("#train-note").get_by_text("B of the pair, LoHa: ").wait_for()
    assert len(app.api("all_runs")["runs"]) == before
    page.get_by_role("button", name="Start at no change").click()
    page.locator(".goes-on").wait_for(state="detached")
    settled(app, "weights", '""')
