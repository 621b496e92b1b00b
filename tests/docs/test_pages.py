"""The blocks of the pages that are marked so run, in order, in one folder for each page."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.pages import PAGES, ROOT, blocks, run_page, run_python
from tide.scenes import load_judge

#: The others are run by tests of their own.
OWN_TESTS = ("docs/adapters.md",)
RUN = [page for page in PAGES if page not in OWN_TESTS and any(block.runs for block in blocks(page))]


@pytest.mark.parametrize("page", RUN)
@pytest.mark.usefixtures("folder")
def test_a_page_runs(page):
    run_page(page)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 160


@pytest.mark.slow
def test_the_first_example_turns_the_house_blue(folder):
    """As it stands, sizes and all: the judge reads a blue house where the prompt says red."""
    first = next(block for block in blocks("README.md") if block.language == "python")
    run_python(first, {"__name__": "example"}, small=False)
    pictures = [np.array(Image.open(folder / name)) for name in ("before.png", "after.png")]
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    assert [verdict.attributes["colour"] for verdict in load_judge().read(images)] == ["red", "blue"]
