"""The libraries themselves: what they save is read as they compute it, and they load what is written.

`make parity` installs them and runs this; elsewhere a test of a library that is missing is skipped.
"""

from __future__ import annotations

import pytest
import torch

from tests.conversion.test_read import origin_of
from tests.helpers.converted import PAIRS, assert_same, tide_of, timestep_of
from tests.helpers.foreign_saes import CASES, function_of, rows_apart
from tests.helpers.pages import blocks, run_python
from tests.helpers.real_saes import load, make, need, overcomplete_sae
from tide.conversion import read_sae, write_sae
from tide.sae import TIDE

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_what_a_library_saves(case, tmp_path):
    library, kind = case
    need(library)
    real = make(tmp_path / "foreign", library, kind)
    read_sae(tmp_path / "foreign", origin=origin_of(kind)).model.save_pretrained(tmp_path / "tide")
    model, x = TIDE.from_pretrained(tmp_path / "tide"), rows_apart(function_of(tmp_path / "foreign"))
    with torch.no_grad():
        z, y = real(x)
        assert_same(model.dense(x), z)
        assert_same(model(x), y)


@pytest.mark.parametrize("pair", PAIRS, ids=" ".join)
def test_what_a_library_loads(pair, tmp_path):
    library, name = pair
    need(library)
    model, timestep = tide_of(name), timestep_of(name)
    write_sae(model, tmp_path, library, at=timestep)
    real, x = load(tmp_path, library), rows_apart(function_of(tmp_path))
    with torch.no_grad():
        z, y = real(x)
        assert_same(z, model.dense(x, timestep))
        assert_same(y, model(x, timestep))


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_there_and_back(case, tmp_path):
    library, kind = case
    need(library)
    real = make(tmp_path / "foreign", library, kind)
    write_sae(read_sae(tmp_path / "foreign", origin=origin_of(kind)).model, tmp_path / "back", library)
    back, x = load(tmp_path / "back", library), rows_apart(function_of(tmp_path / "foreign"))
    with torch.no_grad():
        for found, wanted in zip(back(x), real(x), strict=True):
            assert_same(found, wanted)


def test_the_page_saves_and_loads_overcomplete(tmp_path, monkeypatch):
    need("overcomplete")
    overcomplete_sae()
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in blocks("docs/conversion.md"):
        if "overcomplete.sae" in block.text:
            run_python(block, names, small=False)
    with torch.no_grad():
        assert_same(read_sae("folder").model.dense(names["x"]), names["z"])
        assert_same(read_sae("folder").model(names["x"]), names["x_hat"])
