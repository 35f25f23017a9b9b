"""A base that is only named: offered, downloaded, cancelled and there, from a server that answers
as Hugging Face does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from conftest import TINY_SD
from in_browser import NEEDS_BROWSER, App, fill, settled, tab
from small_hub import NAME, Hub, files_of

pytestmark = NEEDS_BROWSER
OFFER = f"Download {NAME}"


@pytest.fixture(scope="module")
def remote() -> Iterator[Hub]:
    made = Hub(files_of(TINY_SD))
    yield made
    made.close()


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, remote: Hub) -> Iterator[App]:
    folder = tmp_path_factory.mktemp("app")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("HF_HUB_OFFLINE", "0"), ("HF_ENDPOINT", remote.url),
                            ("HF_HUB_CACHE", str(folder / "hub"))):
            patch.setenv(name, value)
        made = App(folder)
    yield made
    made.end()


def test_it_is_offered_cancelled_and_brought(app: App, remote: Hub, page: Any) -> None:
    page.locator("#header .chip").first.click()
    fill(page, "model.base", NAME)
    panel, job = page.locator("#fetch"), page.locator("#header .chip").last
    remote.refuse = (403, "GatedRepo")
    panel.get_by_role("button", name=OFFER).click()
    panel.get_by_text("is gated").wait_for()
    remote.refuse = None
    panel.get_by_role("button", name=OFFER).click()
    panel.get_by_text(f"from huggingface.co into {app.folder / 'hub'}").wait_for()
    remote.open.clear()
    panel.get_by_role("button", name="Download", exact=True).click()
    panel.get_by_text(f"Downloading {NAME}").wait_for()
    job.get_by_text("Downloading").wait_for()
    panel.get_by_role("button", name="Cancel the download").click()
    panel.get_by_role("button", name=OFFER).wait_for()
    job.get_by_text("Nothing running").wait_for()
    remote.open.set()
    panel.get_by_role("button", name=OFFER).click()
    panel.get_by_role("button", name="Download", exact=True).click()
    page.get_by_text(f"{NAME} is here.").wait_for()
    page.wait_for_function("document.querySelector('#header .chip.bad') === null")
    page.locator("#base-panel").get_by_text("Made for 64 px").wait_for()
    panel.get_by_role("button").wait_for(state="detached")
    tab(page, "Train")
    settled(app, "base", f'"{NAME}"')
