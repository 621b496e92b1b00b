"""A small TIDE of the bundled pipeline with an index of eight scenes, made once, and a server of a copy of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from benchmarks.browse import chromium
from tests.helpers.edit_samples import BLOCK, make_sae
from tests.helpers.here import steering_here
from tests.helpers.indexed_runs import make_indexed_run
from tide.adapters import Adapter
from tide.browser.app import make_app
from tide.browser.jobs import Jobs
from tide.browser.runs import Run, find_runs
from tide.browser.steering import Steering
from tide.data import open_source
from tide.index import build_index
from tide.loading import load_adapter
from tide.sae import TIDE

ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium; its tests are skipped without one. (Not for a whole session: its event loop is in others' way.)"""
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with ExitStack() as stack:
        try:
            found = stack.enter_context(chromium())
        except FileNotFoundError as error:
            pytest.skip(str(error))
        yield found


@pytest.fixture(scope="session")
def bundled() -> Adapter:
    return load_adapter("scenes", device="cpu")


@pytest.fixture(scope="session")
def model(bundled) -> TIDE:
    """96 latents, of which one never fires."""
    return make_sae(bundled.pipe, BLOCK, pipeline="scenes")


@pytest.fixture(scope="session")
def make_run(bundled) -> Callable[[TIDE, Path], Path]:
    """Saves a model into a folder, with an index of eight scenes at three timesteps."""

    def make(model: TIDE, folder: Path, seed: int = 0, images: int = 8) -> Path:
        source = open_source("scenes", bundled, images=images, batch_size=8, seed=seed, scene_split="test")
        model.save_pretrained(folder)
        build_index(bundled, model, source, folder, timesteps=bundled.sampling_timesteps(3))
        return folder

    return make


@pytest.fixture(scope="session")
def made(model, make_run, tmp_path_factory) -> Path:
    """Never written to; :func:`folder` is a copy."""
    return make_run(model, tmp_path_factory.mktemp("runs") / "tide")


@pytest.fixture
def folder(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "tide"))


@pytest.fixture
def run(folder) -> Run:
    (found,) = find_runs([folder])
    return found


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    found = Jobs()
    yield found
    found.stop()


@pytest.fixture
def steering(jobs, bundled) -> Steering:
    return steering_here(jobs, lambda run: bundled)


@pytest.fixture
def serving(jobs, steering) -> Iterator[Callable[..., TestClient]]:
    """A client of a server of some runs; an exception in the server is raised here."""

    def serve(*runs: Run, address: str = ADDRESS, **options: Any) -> TestClient:
        return TestClient(make_app(runs, jobs, options.pop("steering", steering), **options), base_url=address)

    return serve


@pytest.fixture
def own(serving, run) -> TestClient:
    """Of a server of :func:`run`, whose folder a test may change."""
    return serving(run)


@pytest.fixture(scope="session")
def client(made, bundled) -> Iterator[TestClient]:
    """Of a server of :func:`made`, to which nothing is written."""
    jobs, runs = Jobs(), find_runs([made])
    with TestClient(make_app(runs, jobs, steering_here(jobs, lambda run: bundled)), base_url=ADDRESS) as found:
        yield found


@pytest.fixture(scope="session")
def indexed_run(adapter, tmp_path_factory) -> Path:
    """A run of a folder of images, with names and notes."""
    return make_indexed_run(adapter, tmp_path_factory.mktemp("runs"))
