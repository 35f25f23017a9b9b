"""What the docs say is made from the code, and is what the code says now."""

from __future__ import annotations

import runpy

from conftest import ROOT

from lycoris import algorithms


def test_the_page_of_algorithms_is_up_to_date() -> None:
    maker = runpy.run_path(str(ROOT / "docs" / "make_algorithms.py"))
    written = (ROOT / "docs" / "algorithms.md").read_text("utf-8")
    assert written == maker["page"](), "run python docs/make_algorithms.py"


def test_the_page_of_sizes_is_up_to_date() -> None:
    maker = runpy.run_path(str(ROOT / "docs" / "make_sizes.py"))
    assert (ROOT / "docs" / "sizes.md").read_text("utf-8") == maker["page"](), (
        "run python docs/make_sizes.py")


def test_every_algorithm_says_what_it_is_and_when() -> None:
    for name, entry in algorithms.catalogue().items():
        assert entry.about and entry.advice and entry.size and entry.label, name
        assert "arXiv" in (__import__("sys").modules[entry.__module__].__doc__ or "") or (
            name == "full"), f"{name} names its paper"
