"""The grid: what is finished is kept and never computed again, and a changed configuration is refused."""

from __future__ import annotations

import json

import pytest

from tide.errors import TideError
from tide.studies.grid import Cell, cell_path, devices_of, duration, run_cells
from tide.training import TrainConfig


def cells(ran: list[str], names=("a", "b", "c"), stop: str = "", **config) -> list[Cell]:
    def run(name: str):
        if name == stop:
            raise KeyboardInterrupt
        ran.append(name)
        return {"value": len(ran)}

    return [
        Cell(name, {"name": name, "training": {"lr": 1e-3, **config}}, lambda n=name: run(n), lambda: 2.0)
        for name in names
    ]


def test_every_cell_is_on_disk_as_soon_as_it_is_done(tmp_path):
    ran, said = [], []
    with pytest.raises(KeyboardInterrupt):
        run_cells(cells(ran, stop="b"), tmp_path, said.append)
    assert ran == ["a"]
    assert [path.name for path in (tmp_path / "cells").iterdir()] == ["a.json"]
    written = json.loads(cell_path(tmp_path, "a").read_text())
    assert written["result"] == {"value": 1}
    assert written["config"] == {"name": "a", "training": {"lr": 1e-3}}
    assert written["seconds"] >= 0
    assert said[0] == "3 of 3 cells to compute; estimating their time ..."
    assert said[1] == "About 6 s on this machine as busy as it is now."
    assert said[2].startswith("[1/3] a: 0.0 s, about 0 s left")


def test_finished_cells_are_skipped(tmp_path):
    ran, said = [], []
    with pytest.raises(KeyboardInterrupt):
        run_cells(cells(ran, stop="c"), tmp_path, said.append)
    results = run_cells(cells(ran), tmp_path, said.append)
    assert ran == ["a", "b", "c"]
    assert list(results) == ["a", "b", "c"]
    assert results["a"] == {"value": 1}
    assert "1 of 3 cells to compute (2 are finished); estimating their time ..." in said
    assert run_cells(cells(ran), tmp_path, said.append) == results
    assert ran == ["a", "b", "c"]
    assert said[-1] == f"All 3 cells are finished in {tmp_path}."


def test_a_changed_configuration_is_refused_before_anything_runs(tmp_path):
    ran: list[str] = []
    run_cells(cells(ran, names=("b",)), tmp_path, lambda _: None)
    with pytest.raises(TideError, match=r"b\.json was made with other options \(training\.lr 0\.001, now 0\.01\)"):
        run_cells(cells(ran, lr=1e-2), tmp_path, lambda _: None)
    with pytest.raises(TideError, match=r"other options \(training\.steps 1000, now 5\)"):
        run_cells(cells(ran, steps=5), tmp_path, lambda _: None)
    assert ran == ["b"]


def test_options_that_are_newer_than_a_cell_count_as_their_defaults(tmp_path):
    ran: list[str] = []
    run_cells(cells(ran, names=("a",)), tmp_path, lambda _: None)
    run_cells(cells(ran, names=("a",), undo=False, loss=TrainConfig().to_dict()["loss"]), tmp_path, lambda _: None)
    assert ran == ["a"]


def test_a_cell_from_before_an_option_has_its_default(tmp_path):
    ran: list[str] = []
    run_cells(cells(ran, names=("a",)), tmp_path, lambda _: None)
    run_cells(cells(ran, names=("a",), centre=False), tmp_path, lambda _: None)
    assert ran == ["a"]
    with pytest.raises(TideError, match=r"other options \(training\.centre false, now true\)"):
        run_cells(cells(ran, names=("a",), centre=True), tmp_path, lambda _: None)


def test_a_density_beside_k_is_no_difference(tmp_path):
    """Where k is set a density has no effect, and older cells always state one."""
    ran: list[str] = []
    run_cells(cells(ran, names=("a",), k=64, density=0.05), tmp_path, lambda _: None)
    run_cells(cells(ran, names=("a",), k=64, density=None), tmp_path, lambda _: None)
    assert ran == ["a"]
    run_cells(cells(ran, names=("b",), k=None, density=0.05), tmp_path, lambda _: None)
    with pytest.raises(TideError, match=r"other options \(training\.density 0\.05, now null\)"):
        run_cells(cells(ran, names=("b",), k=None, density=None), tmp_path, lambda _: None)


def test_cells_from_before_the_default_changed_are_of_topk_at_5_percent(tmp_path):
    ran: list[str] = []
    run_cells(cells(ran, names=("a",)), tmp_path, lambda _: None)
    run_cells(cells(ran, names=("a",), activation="topk", density=0.05), tmp_path, lambda _: None)
    assert ran == ["a"]
    with pytest.raises(TideError, match=r"other options \(training\.activation \"topk\", now \"jumprelu\"\)"):
        run_cells(cells(ran, names=("a",), activation="jumprelu"), tmp_path, lambda _: None)


def test_a_grid_that_grew_computes_what_is_new(tmp_path):
    ran: list[str] = []
    run_cells(cells(ran, names=("a",)), tmp_path, lambda _: None)
    run_cells(cells(ran, names=("a", "b")), tmp_path, lambda _: None)
    assert ran == ["a", "b"]


@pytest.mark.parametrize(
    "text", ["", "[1]", '{"name": "a"}', '{"config": {"na', '{"name": "a", "config": [], "seconds": 1, "result": {}}']
)
def test_a_broken_cell_is_named(tmp_path, text):
    path = cell_path(tmp_path, "a")
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(TideError, match=r"a\.json.*make it again"):
        run_cells(cells([]), tmp_path, lambda _: None)


@pytest.mark.parametrize("change", [{"result": {"value": "1"}}, {"result": {}}, {"sha256": None}, {"sha256": 1}])
def test_a_cell_that_was_changed_is_not_used(tmp_path, change):
    """Each study has results of its own shape: a checksum tells that they are as they were written."""
    ran: list[str] = []
    run_cells(cells(ran), tmp_path, lambda _: None)
    path = cell_path(tmp_path, "b")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(TideError, match=r"b\.json .* checksum.*; delete it to compute it again, or choose"):
        run_cells(cells(ran), tmp_path, lambda _: None)
    path.unlink()
    run_cells(cells(ran), tmp_path, lambda _: None)
    assert ran == ["a", "b", "c", "b"]


def test_names_that_meet_on_disk_are_refused(tmp_path):
    with pytest.raises(ValueError, match="two cells have the same name"):
        run_cells(cells([], names=("a b", "a/b")), tmp_path, lambda _: None)


def test_durations():
    assert [duration(s) for s in (0.4, 99, 100, 3600)] == ["0 s", "99 s", "2 min", "60 min"]


def test_a_folder_that_cannot_be_is_refused_before_anything_runs(tmp_path):
    ran: list[str] = []
    (tmp_path / "file").write_text("")
    with pytest.raises(TideError, match=r"file/out cannot be written to .*; choose another --out"):
        run_cells(cells(ran), tmp_path / "file" / "out", lambda _: None)
    assert ran == []


def test_a_grid_may_hold_cells_of_several_devices_and_tells_how_many_of_each(tmp_path):
    ran: list[str] = []
    run_cells(cells(ran, names=("a", "b"), device="cuda"), tmp_path, lambda _: None)
    results = run_cells(cells(ran, names=("a", "b", "c"), device="cpu"), tmp_path, lambda _: None)
    assert ran == ["a", "b", "c"]
    assert devices_of(results, tmp_path) == {"cuda": 2, "cpu": 1}
