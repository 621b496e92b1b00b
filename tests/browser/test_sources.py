"""What the pages' source must not do, whatever a name or a caption says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for path in (ROOT / "web/src").rglob("*") if path.suffix in (".ts", ".tsx", ".html"))
#: Ways of making HTML or a program of text.
MAKING = (
    "innerHTML",
    "outerHTML",
    "insertAdjacentHTML",
    "dangerouslySetInnerHTML",
    "document.write",
    "srcdoc",
    "DOMParser",
)
MAKING += ("eval(", "new Function", "javascript:", "createContextualFragment")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_text_is_never_inserted_as_html(path):
    text = path.read_text(encoding="utf-8")
    assert [each for each in MAKING if each in text] == []


def test_the_sources_are_found():
    assert {"main.tsx", "wire.ts", "index.html"} <= {path.name for path in SOURCES}


@pytest.mark.parametrize("path", [ROOT / "web/src/index.html", ROOT / "tide/browser/static/index.html"], ids=str)
def test_the_page_loads_nothing_from_elsewhere_and_has_no_program_inside(path):
    """The policy of tide/browser/guard.py would not let it."""
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", text)
    assert all(re.search(r"\bsrc=", tag) for tag in re.findall(r"<script[^>]*>", text))
    assert not re.search(r"\son\w+\s*=|<style|\sstyle=", text)
