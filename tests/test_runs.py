"""``run.json``: one module writes and reads it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tide.errors import TideError
from tide.provenance import provenance
from tide.runs import Contents, contents, read_run, record_measured, write_run

ATLAS = Contents(
    kind="atlas",
    blocks=[6],
    family="pixart",
    pipeline="scenes",
    weights={"transformer": "0123456789abcdef"},
    autoencoder={"folder": "runs/tide", "weights": "fedcba9876543210"},
    data={"name": "scenes", "images": 64},
    measured={"dead": 0.25},
    files={"atlas.json": "index", "atlas.html": "page"},
)


def test_what_was_written_is_read(tmp_path):
    write_run(tmp_path, ATLAS, provenance("atlas", {"seed": 3}, seed=3))
    assert contents(tmp_path) == ATLAS
    run = read_run(tmp_path)
    assert (run["command"], run["arguments"], run["seed"]) == ("atlas", {"seed": 3}, 3)
    assert run["versions"]["tide-sae"]


def test_what_is_not_known_is_left_out(tmp_path):
    write_run(tmp_path, Contents(kind="study"))
    assert json.loads((tmp_path / "run.json").read_text())["holds"] == {"kind": "study"}
    assert contents(tmp_path) == Contents(kind="study")


def test_earlier_runs_are_kept_the_oldest_first(tmp_path):
    for seed in range(3):
        write_run(tmp_path, ATLAS, provenance("atlas", seed=seed))
    run = read_run(tmp_path)
    assert (run["seed"], [each["seed"] for each in run["earlier"]]) == (2, [0, 1])
    assert all("earlier" not in each for each in run["earlier"])


def test_figures_are_added_to_the_last_run(tmp_path):
    for seed in range(2):
        write_run(tmp_path, ATLAS, provenance("atlas", seed=seed))
    record_measured(tmp_path, {"dead": 0.5})
    assert contents(tmp_path) == replace(ATLAS, measured={"dead": 0.5})
    run = read_run(tmp_path)
    assert (run["seed"], run["earlier"][0]["holds"]["measured"]) == (1, {"dead": 0.25})


def test_a_figure_that_is_not_finite_is_null(tmp_path):
    """NaN is not JSON: a browser would not read the file."""
    write_run(tmp_path, replace(ATLAS, data={"shares": [1.0, float("inf")]}), provenance("atlas", {"x": float("nan")}))
    record_measured(tmp_path, {"explained": float("nan"), "mse": 0.5})
    text = (tmp_path / "run.json").read_text()
    run = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert run["arguments"] == {"x": None}
    assert contents(tmp_path).data == {"shares": [1.0, None]}
    assert contents(tmp_path).measured == {"explained": None, "mse": 0.5}


def test_figures_of_an_older_run_are_not_added(tmp_path):
    record_measured(tmp_path, {"dead": 0.5})
    assert not list(tmp_path.iterdir())
    (tmp_path / "run.json").write_text('{"command": "train"}')
    record_measured(tmp_path, {"dead": 0.5})
    assert (tmp_path / "run.json").read_text() == '{"command": "train"}'


def test_a_folder_without_one(tmp_path):
    assert read_run(tmp_path) is None
    assert contents(tmp_path) is None


def test_an_older_one_says_what_made_the_folder(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"command": "train", "arguments": {"seed": 0}, "seed": 0}))
    assert read_run(tmp_path)["command"] == "train"
    assert contents(tmp_path) is None
    write_run(tmp_path, ATLAS)
    assert read_run(tmp_path)["earlier"][0]["command"] == "train"


def test_a_newer_one_may_say_more(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"holds": {"kind": "atlas", "browser": "index.db"}}))
    assert contents(tmp_path) == Contents(kind="atlas")


@pytest.mark.parametrize("text", ["{", "[]", '{"holds": {"blocks": [6]}}', '{"holds": {"kind": 3}}', '{"earlier": 1}'])
def test_a_damaged_one_is_an_error_and_stays(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(TideError, match=r"run\.json"):
        write_run(tmp_path, ATLAS)
    assert (tmp_path / "run.json").read_text() == text
