"""A newcomer's pictures and pipelines, and what the commands say about them. Everything is made once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.newcomer import CAPTIONS, DIGITS, Digit, digits, save_digits
from tests.helpers.newcomer_flow import Flow
from tests.helpers.newcomer_models import trained_dit, trained_pixart

#: Steps of training of each pipeline: ten seconds on one core. Colours follow the captions then, forms hardly do.
STEPS = 130


@pytest.fixture(autouse=True)
def agreeing(monkeypatch) -> None:
    """Whoever is asked whether to load the pipeline that a file names says yes."""
    monkeypatch.setattr("tide.cli.trust._agreed", lambda question: True)


@pytest.fixture(scope="session")
def drawn() -> list[Digit]:
    """Four of every digit in every colour."""
    return digits(4)


@pytest.fixture(scope="session")
def photos(drawn, tmp_path_factory) -> Path:
    """In class folders, with captions such as "a blue seven"."""
    folder = tmp_path_factory.mktemp("photos")
    save_digits(folder, drawn)
    CAPTIONS["metadata.jsonl"](folder, drawn)
    return folder


@pytest.fixture(scope="session")
def classes(drawn, tmp_path_factory) -> Path:
    """In class folders, with the class beside each."""
    folder = tmp_path_factory.mktemp("classes")
    save_digits(folder, drawn)
    for each in drawn:
        (folder / each.name).with_suffix(".txt").write_text(each.digit)
    return folder


@pytest.fixture(scope="session")
def pixart(drawn, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pixart") / "digits"
    trained_pixart(drawn, STEPS).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def unnamed_dit(drawn, tmp_path_factory) -> Path:
    """As diffusers saves it: without the names of its classes."""
    folder = tmp_path_factory.mktemp("dit") / "digits"
    trained_dit(drawn, STEPS).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def dit(unnamed_dit, tmp_path_factory) -> Path:
    """With the names of its classes where diffusers looks for them, written by hand."""
    folder = tmp_path_factory.mktemp("named") / "digits"
    folder.mkdir()
    for part in unnamed_dit.iterdir():
        if part.is_dir():
            (folder / part.name).symlink_to(part)
    index = json.loads((unnamed_dit / "model_index.json").read_text())
    names = {str(number): name for number, name in enumerate(DIGITS)}
    (folder / "model_index.json").write_text(json.dumps({**index, "id2label": names}))
    return folder


@pytest.fixture(scope="session")
def pixart_flow(pixart, photos, tmp_path_factory) -> Flow:
    return Flow(pixart, photos, tmp_path_factory.mktemp("pixart-runs"), "a blue seven", "blue=red", ("blue", "seven"))


@pytest.fixture(scope="session")
def dit_flow(dit, classes, tmp_path_factory) -> Flow:
    return Flow(dit, classes, tmp_path_factory.mktemp("dit-runs"), "seven", "seven=one", ("seven", "one"))


@pytest.fixture(params=["pixart", "dit"])
def flow(request) -> Flow:
    found: Flow = request.getfixturevalue(f"{request.param}_flow")
    return found
