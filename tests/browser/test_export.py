"""An export: a folder that is whole at every moment, and a page that needs no server behind it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.helpers.indexed_runs import DEAD, N_IMAGES, N_LATENTS, most_active
from tide.browser.export import export
from tide.browser.runs import find_runs
from tide.errors import TideError


def exported(run: Path, folder: Path, **options: object) -> list[str]:
    """What is said while an export is written."""
    said: list[str] = []
    export(find_runs([run]), folder, say=said.append, **options)
    return said


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_number_and_size_are_said_before_anything_is_written(indexed_run, tmp_path):
    there = []
    said = []

    def say(line: str) -> None:
        said.append(line)
        there.extend(tmp_path.iterdir())

    export(find_runs([indexed_run]), tmp_path / "new" / "atlas", say=say)
    assert there == []
    n = len(files_in(tmp_path / "new" / "atlas"))
    (line,) = said
    assert line.startswith(f"Writing {n} files, about ")
    assert line.endswith(f"KB, to {tmp_path / 'new' / 'atlas'}")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["atlas"]


def test_an_earlier_export_and_an_empty_folder_are_replaced(indexed_run, tmp_path):
    (tmp_path / "atlas").mkdir()
    exported(indexed_run, tmp_path / "atlas")
    (tmp_path / "atlas" / "api" / "runs" / "older.json").write_text("{}")
    exported(indexed_run, tmp_path / "atlas")
    assert "api/runs/older.json" not in files_in(tmp_path / "atlas")
    assert [path.name for path in tmp_path.iterdir()] == ["atlas"]


def test_what_is_no_export_stays(indexed_run, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    (own / "index.html").write_text("mine")
    (tmp_path / "file").touch()
    exported(indexed_run, tmp_path / "atlas")
    (tmp_path / "atlas" / ".git").mkdir()
    before = files_in(tmp_path)
    for name, message in {
        "own": "own is not empty and not an earlier export; give a new folder",
        "file": "file is a file; give a folder",
        "atlas": r"atlas also holds \.git, which is not of an export; move it",
    }.items():
        with pytest.raises(TideError, match=message):
            exported(indexed_run, tmp_path / name)
    assert files_in(tmp_path) == before


def test_a_run_without_an_index(indexed_run, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(indexed_run / "config.json", run)
    with pytest.raises(TideError, match=rf"^{run} has no index; make one: tide browse {run}, or tide atlas --index$"):
        exported(run, tmp_path / "out" / "atlas")
    assert not (tmp_path / "out").exists()


def test_a_limit_below_1(indexed_run, tmp_path):
    with pytest.raises(TideError, match="a limit of 0 latents leaves none; give 1 or more"):
        exported(indexed_run, tmp_path / "atlas", limit=0)


@pytest.mark.parametrize("error", [TideError("damaged"), KeyboardInterrupt(), OSError(28, "No space left on device")])
@pytest.mark.parametrize("earlier", [True, False])
def test_a_failure_leaves_what_was_there(indexed_run, tmp_path, monkeypatch, error, earlier):
    """The parents that were made for it go, too."""
    folder = tmp_path / "new" / "atlas"
    if earlier:
        exported(indexed_run, folder)
    before = files_in(tmp_path)
    runs = find_runs([indexed_run])
    calls = iter(range(1000))

    def failing(*_: object) -> bytes:
        if next(calls) > N_IMAGES:  # not while sizes are told
            raise error
        return b""

    monkeypatch.setattr("tide.browser.wire.places", failing)
    with pytest.raises((TideError, KeyboardInterrupt)) as raised:
        export(runs, folder, say=lambda line: None)
    if isinstance(error, OSError):
        assert str(raised.value) == (
            f"{folder} could not be written (No space left on device); free some space or choose another folder"
        )
    assert files_in(tmp_path) == before
    assert [path.name for path in tmp_path.rglob("*atlas*")] == (["atlas"] if earlier else [])
    assert (tmp_path / "new").exists() == earlier


def test_what_a_kill_left_is_removed(indexed_run, tmp_path):
    left = tmp_path / ".atlas.unfinished" / "new" / "api"
    left.mkdir(parents=True)
    (left / "stale.json").write_text("{}")
    exported(indexed_run, tmp_path / "atlas")
    assert [path.name for path in tmp_path.iterdir()] == ["atlas"]
    assert "api/stale.json" not in files_in(tmp_path / "atlas")


# -- in a browser ----------------------------------------------------------------------------------------------------


@contextmanager
def hosted(folder: Path) -> Iterator[str]:
    """The address of a static host of ``folder``: what ``python -m http.server`` starts."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


def test_the_page_works_below_a_path_of_a_static_host(indexed_run, tmp_path, browser):
    exported(indexed_run, tmp_path / "site" / "atlas")
    latent = most_active(find_runs([indexed_run])[0].index)
    wrong: list[str] = []
    with hosted(tmp_path / "site") as address:
        page = browser.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda line: wrong.append(line.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("requestfailed", lambda request: wrong.append(request.url))
        page.on("request", lambda request: None if request.url.startswith(address) else wrong.append(request.url))

        page.goto(f"{address}atlas/")
        page.wait_for_selector("main h1")
        assert page.locator("nav >> text=Compare").count() == page.locator("nav >> text=Steer").count() == 0

        page.click("nav >> text=Latents")
        page.wait_for_selector(".card[data-ready='yes']")
        shown = int(page.get_attribute("[data-count]", "data-count"))
        assert 0 < shown < N_LATENTS
        page.fill("#search", "TALL")
        page.wait_for_selector("[data-count='1']")
        page.click(".card")
        page.wait_for_selector(f"main.latent[data-latent='{latent}'] h2")
        assert "tall door" in page.text_content("h1")
        assert "seen twice" in page.text_content("main")
        assert page.locator("form.names").count() == 0  # nobody can be told

        page.click(".pictures a")
        page.wait_for_selector("ol.firing li")
        assert "page=image" in page.url
        page.goto(f"{address}atlas/?page=latent&run=one&latent={DEAD}")
        page.wait_for_selector("text=It never fires on these images.")
        page.goto(f"{address}atlas/?page=steer&run=one")
        page.wait_for_selector("text=this is a copy without a model")
        page.close()
    assert wrong == []
