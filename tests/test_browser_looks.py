"""What is held out, on the page: the curve's dashes, and the numbers by timestep."""

from __future__ import annotations

from typing import Any

from in_browser import CONTRAST, NEEDS_BROWSER, App, tab

from lycoris import config, events
from lycoris.runs import RunFolder

pytestmark = NEEDS_BROWSER


def made(app: App, name: str, shift: float) -> RunFolder:
    run = RunFolder(app.folder / "runs" / name).create({
        "config.toml": config.dump(config.load(None, [f"output.name={name}"])),
        "plan.json": '{"steps": 20}'})
    run.append(events.Started(1, 1.0, "CPU", 20))
    for step in range(1, 21):
        run.append(events.Step(step, 0.1, 1 / step, 1 / step, 1e-3, 0.1, 0.5, 10**9))
    run.append(events.Validated(0, 0.5, {"62": 0.2, "937": 0.8 + shift}))
    return run


def test_the_first_and_the_last_look_are_in_sight(app: App, page: Any) -> None:
    first, other = made(app, "first", 0.0), made(app, "other", 0.1)
    tab(page, "Train")
    page.get_by_text("first", exact=True).first.click()
    told = page.get_by_role("region", name="Validation loss by timestep")
    told.get_by_role("row", name="step 0 0.2000 0.8000 0.5000").wait_for()
    assert told.get_by_text("change").count() == 0, "one look is no change"
    first.append(events.Validated(20, 0.4, {"62": 0.25, "937": float("nan")}))
    told.get_by_role("row", name="step 20 0.2500 – 0.4000").wait_for()
    told.get_by_role("row", name="change +25.0 % – −20.0 %").wait_for()
    told.focus()
    assert page.evaluate("document.activeElement.getAttribute('role')") == "region"
    page.locator("tr", has_text="other").get_by_role("button", name="show curve").click()
    told.get_by_role("rowheader", name="other").wait_for()
    assert told.get_by_role("row").count() == 1 + 4 + 2
    assert not page.evaluate(CONTRAST)
    other.append(events.Finished("done", 20, ""))
