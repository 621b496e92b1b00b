"""Starting the server: one line for what is missing, and indexes that are made in the queue."""

from __future__ import annotations

import builtins
import shutil
import socket
import sys
import threading

import pytest

from tests.helpers.answers import ended
from tests.helpers.here import Given, steering_here
from tide.browser.runs import find_runs
from tide.browser.serving import _listening, _make_missing, _shown, serve
from tide.data import open_source
from tide.errors import TideError
from tide.index import index_of
from tide.index.layout import UNFINISHED


def started(run, **options) -> None:
    serve([run], Given(lambda run: pytest.fail("nothing is loaded")), **options)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_taken_port(run, host):
    threads = threading.active_count()
    with _listening(host, 0) as other:
        port = other.getsockname()[1]
        with pytest.raises(TideError) as refused:
            started(run, host=host, port=port)
    assert str(refused.value) == (
        f"{host}:{port} cannot be listened at (Address already in use); give another --port or --host"
    )
    assert threading.active_count() == threads


@pytest.mark.parametrize("host", ["no.such.host.invalid", "x" * 80, "..", "a..b", "256.0.0.1", "192.0.2.1", "1::2::3"])
def test_a_host_that_is_none(run, host):
    with pytest.raises(TideError, match=r"cannot be listened at \(.+\); give another --port or --host") as refused:
        started(run, host=host)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("package", ["fastapi", "uvicorn"])
def test_a_missing_package(run, monkeypatch, package):
    real = builtins.__import__

    def without(name, *rest):
        if name.split(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return real(name, *rest)

    monkeypatch.delitem(sys.modules, "tide.browser.app")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(TideError, match=rf"^tide browse needs {package}; pip install 'tide-sae\[browse\]'$"):
        started(run)


def test_hosts_in_an_address():
    assert [_shown(host) for host in ("127.0.0.1", "::1", "name")] == ["127.0.0.1", "[::1]", "name"]
    assert _shown("0.0.0.0") == _shown("::") == socket.gethostname()


# -- indexes -----------------------------------------------------------------------------------------------------


@pytest.fixture
def bare(folder):
    """A run without an index."""
    shutil.rmtree(index_of(folder))
    (run,) = find_runs([folder])
    return run


def scenes(run, adapter):
    return open_source("scenes", adapter, images=8, batch_size=2, scene_split="test")


def made(run, steering, source=scenes) -> list[str]:
    """Makes the index of a run; what was said."""
    said = []
    opening = steering._worker.tasks.opening
    ended(steering_here(steering.jobs, opening.adapter, source).make_index(run, said.append))
    return said


def test_an_index_is_made(bare, steering):
    said = made(bare, steering)
    assert said[0].startswith("An index of 96 latents on 8 images takes about ")
    assert said[1:] == ["The index of tide is made"]
    assert (bare.state, bare.message, bare.index.n_images) == ("ready", "", 8)
    assert bare.described()["index"]["state"] == "ready"


def test_drawings_are_done_in_between(bare, steering):
    """They do not wait for the whole index."""
    seen = []

    def opened(run, adapter):
        steering.jobs.submit(lambda job: seen.append((bare.state, bare.stage, bare.done)))
        return scenes(run, adapter)

    made(bare, steering, opened)
    assert seen == [("building", "", 0)]


def test_data_that_are_not_known(bare, steering):
    said = made(bare, steering, lambda run, adapter: None)
    assert (bare.state, said) == ("missing", [f"tide has no index: {bare.message}"])
    assert bare.message == "what images tide is to be read on is not known; give --data"


def test_an_atlas_without_a_checkpoint(bare, steering):
    bare.checkpoint = None
    said = []
    _make_missing([bare], steering, False, said.append)
    assert said == []
    assert (bare.state, bare.message) == ("missing", "the checkpoint of tide is not here; give its folder")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (TideError("photos/ is empty; give another folder"), "photos/ is empty; give another folder"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (MemoryError(), "the memory is used up"),
        (RuntimeError("no kernel"), "the pipeline failed (RuntimeError: no kernel)"),
    ],
)
def test_an_index_that_cannot_be_made(bare, steering, error, message):
    """The page and the terminal say why, and the next job is done."""

    def fail(run, adapter):
        raise error

    (said,) = made(bare, steering, fail)
    assert bare.state == "failed"
    assert bare.message.startswith(message)
    assert said == f"The index of tide was not made: {bare.message}"
    assert made(bare, steering)[-1] == "The index of tide is made"


def test_an_index_that_is_interrupted_is_resumed(bare, steering, monkeypatch):
    begun = []
    plain = steering.jobs.others

    def others() -> None:
        begun.append((bare.stage, bare.done))
        if begun[-1] == ("images", 6):
            for job in steering.jobs._known.values():
                steering.jobs.cancel(job)
        plain()

    monkeypatch.setattr(steering.jobs, "others", others)
    made(bare, steering)
    assert (bare.state, bare.message) == ("failed", "it was interrupted; start tide browse again to resume it")
    assert (bare.folder / UNFINISHED).is_dir()
    begun.clear()
    monkeypatch.setattr(steering.jobs, "others", plain)
    progress = []

    def set_and_noted(run, name, value) -> None:
        if name == "done" and run is bare:
            progress.append(value)
        object.__setattr__(run, name, value)

    monkeypatch.setattr(type(bare), "__setattr__", set_and_noted)
    assert made(bare, steering)[-1] == "The index of tide is made"
    assert progress[0] == 6
    assert not (bare.folder / UNFINISHED).exists()


def test_a_server_in_a_thread_answers_until_it_is_stopped(run, bundled, monkeypatch):
    """With everything that a process has, but for its signals."""
    import httpx
    import uvicorn

    servers, said, ready = [], [], threading.Event()
    plain = uvicorn.Server

    def server(config):
        servers.append(plain(config))
        return servers[-1]

    def say(line):
        said.append(line)
        ready.set()

    monkeypatch.setattr(uvicorn, "Server", server)
    opened = []
    monkeypatch.setattr("tide.browser.serving.webbrowser.open", opened.append)
    thread = threading.Thread(
        target=serve,
        args=([run], Given(pytest.fail)),
        kwargs={"host": "0.0.0.0", "say": say},
    )
    thread.start()
    assert ready.wait(20)
    address, token = said[0].removeprefix("Browse at ").removesuffix(" (Ctrl-C ends it)").split("?token=")
    own = f"http://127.0.0.1:{address.split(':')[-1]}"
    try:
        assert httpx.get(f"{own}api/runs.json").status_code == 401
        with httpx.Client(base_url=own) as client:
            assert client.get("/", params={"token": token}).status_code == 200
            assert client.get("/api/runs.json").json()["runs"][0]["id"] == "tide"
    finally:
        servers[0].should_exit = True
        thread.join(20)
    assert not thread.is_alive()
    assert opened == [f"{address}?token={token}"]
    assert len(token) == 32
    assert not any(token in line for line in said[1:])
