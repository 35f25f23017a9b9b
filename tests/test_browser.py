"""The app in a real browser, on the embedded model: the story of a newcomer, and what may go
wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from in_browser import NEEDS_BROWSER, App, assert_fits_and_reads, fill, settled, tab, visit
from PIL import Image

from lycoris import events
from lycoris.runs import RunFolder

pytestmark = NEEDS_BROWSER
STEPS = 24


def test_first_start_is_ready_to_train(app: App, page: Any) -> None:
    assert "tiny-sd" in page.locator("#header").inner_text()
    assert "Nothing running" in page.locator("#header").inner_text()
    assert "16 pictures, 16 with captions. No problems." in page.locator(".facts").inner_text()
    page.wait_for_selector("#epoch dl")
    assert "2 steps: 16 pictures in 2 batches of 8" in page.locator("#epoch dl").inner_text()
    tab(page, "Train")
    page.wait_for_selector("#train-epoch dl")
    fill(page, "train.batch_size", "5")
    page.get_by_text("64 × 64: 16 in 4 batches, the last with 1").last.wait_for()
    fill(page, "train.batch_size", "8")
    page.get_by_text("64 × 64: 16 in 2 batches").last.wait_for()
    tab(page, "Algorithm")
    page.wait_for_selector(".plan .v")
    assert "parameters in 101 layers" in page.locator(".plan").inner_text()


def test_the_size_follows_the_settings(app: App, page: Any) -> None:
    tab(page, "Algorithm")
    page.wait_for_selector(".plan .v")
    before = page.locator(".plan .v").first.inner_text()
    page.get_by_label("LoHa", exact=True).check()
    page.wait_for_function("text => document.querySelector('.plan .v').innerText !== text",
                           arg=before)
    assert "Learns more gently" in page.content()
    loha = page.locator(".plan .v").first.inner_text()
    page.locator("table.sizes tr", has=page.get_by_role("cell", name="LoRA", exact=True)
                 ).get_by_role("button").click()  # make equal: back to LoRA, at LoHa's size
    page.wait_for_function("""loha => document.querySelector('.plan .v').innerText === loha &&
        document.querySelector('table.algos tr.on td').innerText === 'LoRA'""", arg=loha)
    assert page.locator("[id='network.dim'] input[type=number]").input_value() == "16"
    fill(page, "network.dim", "8")
    page.wait_for_function("t => document.querySelector('.plan .v').innerText === t", arg=before)


def test_a_number_may_lie_beyond_its_slider(app: App, page: Any) -> None:
    tab(page, "Algorithm")
    page.wait_for_selector(".plan .v")
    slider = page.get_by_label("Dim, slider")
    assert slider.get_attribute("max") == "128"
    fill(page, "network.dim", "256")
    settled(app, "dim", "256")
    page.wait_for_function("document.querySelector('.range input').value === '256'")
    fill(page, "network.alpha", "0.25")
    page.get_by_text("alpha / dim = 0.000977").wait_for()
    fill(page, "network.alpha", "")
    page.get_by_text("Alpha is empty").wait_for()
    fill(page, "network.alpha", "8")
    slider.fill("8")
    settled(app, "dim", "8")
    assert page.locator("[id='network.dim'] input").input_value() == "8"


def test_what_an_algorithm_lacks_is_off_and_what_is_impossible_has_a_way_out(
        app: App, page: Any) -> None:
    tab(page, "Algorithm")
    page.wait_for_selector(".plan .v")
    boft = page.locator("table.sizes tr", has=page.get_by_role("cell", name="BOFT", exact=True))
    assert "set it to 14 or more" in boft.inner_text()
    page.get_by_label("BOFT", exact=True).check()
    page.get_by_role("button", name="Set dim to 14").click()
    page.wait_for_function("document.querySelector('table.sizes tr.on td').innerText === 'BOFT'")
    page.wait_for_function("document.querySelector(\"[id='network.dim'] input\").value === '14'")
    page.wait_for_selector(".plan .v")
    assert page.locator("[id='network.alpha'] input").is_disabled()
    assert page.get_by_label("Alpha, slider").is_disabled()
    page.get_by_label("Full", exact=True).check()
    page.locator("[id='network.dim']").get_by_text("Not used: Full has none.").wait_for()
    assert page.get_by_label("Dim, slider").is_disabled()
    page.get_by_label("LoRA", exact=True).check()
    page.get_by_text("Not used:").first.wait_for(state="detached")
    assert page.get_by_label("Dim, slider").is_enabled()
    fill(page, "network.dim", "8")
    settled(app, "dim", "8")


def test_a_wrong_setting_is_marked_and_explained(app: App, page: Any) -> None:
    tab(page, "Train")
    fill(page, "train.steps", "0")
    page.locator("#train").click()
    page.get_by_text("Steps is 0; the least is 1").first.wait_for()
    assert app.api("all_runs")["runs"] == []
    fill(page, "train.steps", str(STEPS))
    fill(page, "sample.every", "12")
    fill(page, "train.checkpoint_every", "8")
    settled(app, "steps", str(STEPS))
    settled(app, "every", "12")
    settled(app, "checkpoint_every", "8")


def test_captions_are_saved_as_they_are_written(app: App, page: Any) -> None:
    folder = page.locator("[id='dataset.folder'] textarea, [id='dataset.folder'] input").first
    folder.fill(str(app.folder / "zorb"))
    folder.press("Tab")
    page.wait_for_function("f => lyco.dataset.folder === f", arg=str(app.folder / "zorb"))
    page.locator(".thumbs figure").nth(2).click()
    page.get_by_text("Caption of zorb_03.png").wait_for()
    field = page.locator("#caption-text")
    field.fill("a zorb, seen by a tester")
    field.press("Control+Enter")
    page.get_by_text("Caption of zorb_04.png").wait_for()
    file = app.folder / "zorb" / "zorb_03.txt"
    app.wait(lambda: file.read_text() == "a zorb, seen by a tester\n", 60)
    page.get_by_role("button", name="Undo", exact=True).click()
    app.wait(lambda: "tester" not in file.read_text(), 60)
    page.get_by_text("Caption of zorb_03.png").wait_for()
    page.locator(".scroll").focus()
    page.keyboard.press("ArrowRight")
    page.get_by_text("Caption of zorb_04.png").wait_for()


def test_words_are_kept_until_they_are_saved(app: App, page: Any) -> None:
    """Another program writes the same caption, then the disk refuses: nothing typed is lost."""
    page.wait_for_function("f => lyco.dataset.folder === f", arg=str(app.folder / "zorb"))
    page.locator(".thumbs figure").nth(4).click()
    page.get_by_text("Caption of zorb_05.png").wait_for()
    file, field = app.folder / "zorb" / "zorb_05.txt", page.locator("#caption-text")
    before = file.read_text()
    file.write_text("from another program\n")
    field.fill("mine")
    field.blur()
    page.get_by_text("changed this caption to “from another program”").wait_for()
    page.wait_for_function("lyco.dataset.items[4].caption === 'from another program'")
    assert field.input_value() == "mine" and file.read_text() == "from another program\n"
    page.get_by_role("button", name="Next", exact=True).click()
    page.get_by_text("Caption of zorb_06.png").wait_for()
    page.locator(".thumbs figure").nth(4).get_by_text("not saved").wait_for()
    page.get_by_role("button", name="Previous", exact=True).click()
    page.get_by_text("Caption of zorb_05.png").wait_for()
    assert field.input_value() == "mine"
    page.get_by_role("button", name="Save yours").click()
    app.wait(lambda: file.read_text() == "mine\n", 60)
    full = json.dumps({"error": {"message": "The disk is full.", "fix": "Make room."}})
    page.route("**/api/save_caption", lambda route: route.fulfill(status=422, body=full))
    field.fill(before.strip())
    page.get_by_text("Not saved: The disk is full.").wait_for()
    page.route("**/api/gallery", lambda route: route.fulfill(status=422, body=full))
    page.get_by_text("No picture chosen").wait_for()
    page.unroute("**/api/gallery")
    page.get_by_text("Not saved: The disk is full.").wait_for()
    assert field.input_value() == before.strip() and file.read_text() == "mine\n"
    page.unroute("**/api/save_caption")
    page.get_by_role("button", name="Next", exact=True).click()
    app.wait(lambda: file.read_text() == before, 60)


def test_all_captions_at_once_with_a_preview(app: App, page: Any) -> None:
    before = {f.name: f.read_text() for f in (app.folder / "zorb").glob("*.txt")}
    page.wait_for_function("f => lyco.dataset.folder === f", arg=str(app.folder / "zorb"))
    page.locator(".thumbs figure").nth(2).click()
    page.get_by_text("Caption of zorb_03.png").wait_for()
    page.locator("#caption-text").fill("typed before")
    third = app.folder / "zorb" / "zorb_03.txt"
    app.wait(lambda: third.read_text() == "typed before\n", 60)
    before[third.name] = third.read_text()
    page.get_by_text("All captions").click()
    page.locator("#bulk-trigger textarea, #bulk-trigger input").first.fill("creature")
    page.get_by_text("16 captions would change").wait_for()
    assert {f.name: f.read_text() for f in (app.folder / "zorb").glob("*.txt")} == before
    page.get_by_role("button", name="Change captions").click()
    first = app.folder / "zorb" / "zorb_01.txt"
    app.wait(lambda: first.read_text().startswith("creature, "), 60)
    page.wait_for_function("lyco.dataset.items[2].caption === 'creature, typed before'")
    page.get_by_role("button", name="Undo", exact=True).click()  # of one caption: not over the many
    page.get_by_text("has been changed in another way since").wait_for()
    assert third.read_text() == "creature, typed before\n"
    other = app.folder / "zorb" / "zorb_02.txt"
    other.write_text("changed since\n")
    page.get_by_role("button", name="Undo the last change").click()
    page.get_by_text("15 captions are as they were. 1 had been changed since").wait_for()
    assert other.read_text() == "changed since\n"
    other.write_text(before[other.name])
    app.wait(lambda: {f.name: f.read_text() for f in (app.folder / "zorb").glob("*.txt")} == before,
             60)


def test_problems_of_a_folder_are_links(app: App, page: Any) -> None:
    bad = app.folder / "zorb" / "broken <b>.png"
    bad.write_text("not a picture")
    try:
        link = page.get_by_role("button", name="1 unreadable")
        link.wait_for(timeout=60_000)
        link.click()
        page.wait_for_function("document.querySelectorAll('.thumbs figure').length === 1")
        assert "not a picture" in page.locator(".thumbs").inner_text()
        tab(page, "Train")
        page.locator("#train").click()
        page.locator("#train-note").get_by_text("broken <b>.png: not a picture").wait_for()
        page.locator(".validation-error", has_text="broken <b>.png").wait_for(state="attached")
    finally:
        bad.unlink()


def test_an_empty_folder_says_what_to_do(app: App, page: Any) -> None:
    (app.folder / "empty").mkdir(exist_ok=True)
    fill(page, "dataset.folder", str(app.folder / "empty"))
    page.get_by_text("No pictures here yet").wait_for()
    fill(page, "dataset.folder", str(app.folder / "nowhere"))
    page.get_by_text("There is no folder").first.wait_for()
    fill(page, "dataset.folder", str(app.folder / "zorb"))
    page.get_by_text("16 pictures").wait_for()


def test_another_base_model(app: App, page: Any, small_base: Path) -> None:
    page.locator("#header .chip").first.click()
    page.locator("#base-panel").wait_for()
    fill(page, "model.base", str(app.folder))
    page.get_by_text("This base cannot be used").wait_for()
    page.wait_for_function("document.querySelector('#header .chip.bad') !== null")
    fill(page, "model.base", str(small_base))
    page.get_by_text("Made for 16 px").wait_for()
    page.get_by_role("button", name="Use the embedded model").click()
    page.get_by_text("Made for 64 px").wait_for()
    page.locator("#base-panel").get_by_role("button", name="Close", exact=True).click()
    page.locator("#base-panel").wait_for(state="hidden")
    settled(app, "base", '"assets/tiny-sd"')


def test_a_pair_is_trained_watched_and_compared(app: App, page: Any) -> None:
    """One click; the tab is closed meanwhile; a new one shows the same and compares the two."""
    tab(page, "Compare")
    fill(page, "sample.steps", "4")  # for the samples while training too
    settled(app, "steps", "4")
    tab(page, "Train")
    page.locator("#train-pair").click()
    page.locator(".run span", has_text=f"of {STEPS}").first.wait_for(timeout=90_000)
    app.wait(lambda: app.run("zorb-lora").get("step", 0) >= 2)
    context = page.context
    context.set_default_timeout(60_000)
    page.close()
    app.wait(lambda: app.run("zorb-loha").get("state") == "done")
    page = context.new_page()
    page.add_init_script("""window.drawn = new Set();
        const write = CanvasRenderingContext2D.prototype.fillText;
        CanvasRenderingContext2D.prototype.fillText = function (text, ...where) {
            drawn.add(text); return write.call(this, text, ...where); };""")
    visit(app, page)
    tab(page, "Train")
    page.get_by_text("zorb-loha").first.wait_for()
    page.wait_for_function("drawn.has('●') && drawn.has('▪')")
    page.wait_for_function("document.querySelectorAll('.strip img').length === 9")
    page.wait_for_function("[...document.querySelectorAll('.strip img')].every(i => i.complete)")
    drawn = page.evaluate("""() => { const c = document.querySelector('canvas.loss');
        const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
        const seen = new Set(); for (let i = 0; i < d.length; i += 4) if (d[i + 3] > 200) seen.add(
            [d[i] >> 4, d[i + 1] >> 4, d[i + 2] >> 4].join()); return [...seen]; }""")
    assert "2,6,14" in drawn and "13,4,0" in drawn, "a blue curve and an orange one"
    page.locator("#monitor").get_by_role("button", name="Compare", exact=True).click()
    page.locator("#paint").wait_for()
    chosen = page.locator("#contestants").inner_text()
    assert "zorb-lora" in chosen and "zorb-loha" in chosen and "base" in chosen
    page.locator("#paint").click()
    page.wait_for_function("document.querySelectorAll('.empty-cell').length > 0")
    page.get_by_role("link", name="Save grid").wait_for(timeout=90_000)
    assert page.locator(".ab .cell img").count() == 3 * 3 * 2
    with page.expect_download() as caught:
        page.get_by_role("link", name="Save grid").click()
    grid = Image.open(caught.value.path())
    recipe = json.loads(grid.text["lycogui"])
    assert [c["name"] for c in recipe["contestants"]] == ["base", "zorb-lora", "zorb-loha"]
    for mode, mark in (("Wipe", "input.wipe"), ("Flip", "text=show B"), ("Difference", "canvas")):
        page.get_by_role("tab", name=mode).click()
        page.locator("#comparison").locator(mark).first.wait_for()
    page.get_by_text("mean difference").first.wait_for()
    page.get_by_role("tab", name="Grid").click()
    page.locator(".ab .cell").first.click()
    page.locator(".lightbox img").wait_for()
    page.keyboard.press("ArrowRight")
    page.locator(".lightbox").get_by_text("zorb-lora").first.wait_for()
    page.keyboard.press("Escape")
    page.locator(".lightbox").wait_for(state="detached")


def test_compare_stands_as_it_was_left(app: App, page: Any) -> None:
    tab(page, "Compare")
    field = page.locator("#compare-prompts textarea")
    field.fill("a zorb in a box")
    page.locator("#weights textarea, #weights input").first.fill("1, 0.8")
    page.locator("#contestants .token", has_text="zorb-loha").locator(".token-remove").click()
    kept = app.folder / "compare.json"
    wanted = {"contestants", "weights", "prompts"}  # each differs from a fresh page's by now
    app.wait(lambda: kept.exists() and wanted <= set(json.loads(kept.read_text()))
             and "loha" not in kept.read_text(), 60)
    context = page.context
    page.close()
    page = context.new_page()
    visit(app, page)
    tab(page, "Compare")
    assert page.locator("#compare-prompts textarea").input_value() == "a zorb in a box"
    assert page.locator("#weights textarea, #weights input").first.input_value() == "1, 0.8"
    chosen = page.locator("#contestants").inner_text()
    assert "zorb-lora" in chosen and "zorb-loha" not in chosen


def test_stop_resume_and_a_restart_of_the_app(app: App, page: Any) -> None:
    tab(page, "Train")
    fill(page, "train.steps", "3000")
    settled(app, "steps", "3000")
    fill(page, "output.name", "long one")
    settled(app, "name", '"long one"')
    page.locator("#train").click()
    app.wait(lambda: app.run("long one").get("step", 0) >= 3)
    page.reload()
    page.wait_for_selector("body[data-ready]")
    tab(page, "Train")
    page.locator(".run b", has_text="long one").wait_for()
    page.get_by_role("button", name="Stop and save").click()
    app.wait(lambda: app.run("long one").get("state") == "stopped")
    page.get_by_role("button", name="Resume").wait_for()
    step = app.run("long one")["step"]
    page.get_by_role("button", name="Resume").click()
    app.wait(lambda: app.run("long one").get("step", 0) > step)
    app.kill()
    page.get_by_text("lycogui does not answer").wait_for(timeout=60_000)
    app.start()
    assert app.run("long one")["state"] == "running", "training went on without the page"
    visit(app, page)
    tab(page, "Train")
    page.locator(".run b", has_text="long one").wait_for()
    page.get_by_role("button", name="Stop and save").click()
    app.wait(lambda: app.run("long one").get("state") == "stopped")
    settled(app, "name", '"long one-2"')
    fill(page, "output.name", "long one")
    settled(app, "name", '"long one"')
    page.locator("#train").click()
    page.get_by_text("There is already a run called long one; long one-2 is free").first.wait_for()
    fill(page, "output.name", "")
    settled(app, "name", '""')


def test_a_run_that_failed_says_why_and_can_be_resumed(app: App, page: Any) -> None:
    run = RunFolder(app.folder / "runs" / "broken").create(
        {"config.toml": (app.folder / "runs" / "long one" / "config.toml").read_text()})
    run.append(events.Started(1, 0.5, "CPU", 10))
    run.append(events.Failed("memory", "The memory ran out.", "Take a smaller batch."))
    tab(page, "Train")
    page.locator("tr", has_text="broken").click()
    page.get_by_role("alert").get_by_text("Take a smaller batch.").wait_for()
    page.get_by_role("button", name="Resume").wait_for()
    page.locator("tr", has_text="long one").click()
    page.locator(".run b", has_text="long one").wait_for()


def test_a_hostile_page_gets_nothing(app: App, browser: Any, tmp_path: Path) -> None:
    """A page of another origin: no call, no picture, no upload, no frame."""
    import http.server
    import threading

    port = int(app.url.rstrip("/").rsplit(":", 1)[1])
    page_file = tmp_path / "evil.html"
    page_file.write_text(f"""<iframe src="{app.url}"></iframe><img id="p"
      src="{app.url}lyco/script.js"><script>window.got = [];
      const targets = ["lyco/api/status", "gradio_api/upload", "gradio_api/component_server"];
      Promise.allSettled(targets.map(t => fetch("http://localhost:{port}/" + t, {{method: "POST",
        mode: "no-cors", headers: {{"content-type": "text/plain"}}, body: "{{}}"}}))
      ).then(() => window.done = true);</script>""")
    seen: list[tuple[str, int]] = []
    handler = type("Handler", (http.server.SimpleHTTPRequestHandler,), {
        "log_message": lambda *_: None, "directory": str(tmp_path),
        "__init__": lambda self, *a, **k: http.server.SimpleHTTPRequestHandler.__init__(
            self, *a, directory=str(tmp_path), **k)})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    context = browser.new_context()
    evil = context.new_page()
    evil.on("response", lambda r: seen.append((r.url, r.status)) if f":{port}/" in r.url else None)
    evil.goto(f"http://127.0.0.1:{server.server_port}/evil.html")
    evil.wait_for_function("window.done === true")
    evil.wait_for_timeout(500)
    context.close()
    server.shutdown()
    assert seen and all(status == 403 for _, status in seen), seen


def test_nothing_overflows_and_text_can_be_read(app: App, page: Any) -> None:
    for name in ("Dataset", "Algorithm", "Train", "Compare", "Tools"):
        tab(page, name)
        page.wait_for_timeout(500)
        assert_fits_and_reads(page, name)
