"""``tide browse`` as a process, and what its options come to."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from tests.helpers.edit_samples import make_sae
from tide.cli.app import command
from tide.cli.browse import IMAGES
from tide.errors import TideError
from tide.index.gathering import STATE
from tide.index.layout import UNFINISHED, index_of
from tide.loading import load_adapter
from tide.runs import Contents, write_run

#: Seconds that a server lives at most.
LONGEST = 120.0


@pytest.fixture(scope="module")
def bundled():
    return load_adapter("scenes", device="cpu")


@pytest.fixture
def scenes_checkpoint(bundled, tmp_path) -> Path:
    make_sae(bundled.pipe, 6, pipeline="scenes").save_pretrained(tmp_path / "tide")
    return tmp_path / "tide"


@pytest.fixture
def served(monkeypatch) -> list[tuple]:
    """What would be served."""
    found: list[tuple] = []
    monkeypatch.setattr("tide.browser.serving.serve", lambda *args, **options: found.append((args, options)))
    return found


class Server:
    """The command as a process, which is killed at the end of the block, or if it does not end by itself."""

    def __init__(self, *words: object) -> None:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tide", "browse", *map(str, words), "--no-open"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.said: list[str] = []
        self.alarm = threading.Timer(LONGEST, self.process.kill)
        self.alarm.start()

    def __enter__(self) -> Server:
        self.address = self.line(r"Browse at (http://127\.0\.0\.1:\d+/) \(Ctrl-C ends it\)")[1]
        return self

    def __exit__(self, *_: object) -> None:
        self.alarm.cancel()
        self.process.kill()
        self.process.wait()

    def line(self, pattern: str) -> re.Match[str]:
        """Reads lines up to one that matches."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)
            if (found := re.fullmatch(pattern, line.strip())) is not None:
                return found
        raise AssertionError((pattern, self.said, self.process.communicate()))

    def index(self) -> dict:
        with urllib.request.urlopen(f"{self.address}api/runs.json", timeout=20) as answer:
            return json.load(answer)["runs"][0]["index"]

    def ended(self, number: int) -> tuple[int, str]:
        """Its status and what it wrote to stderr after a signal."""
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err


@pytest.mark.slow
def test_it_starts_answers_ends_and_resumes_the_index(scenes_checkpoint):
    words = (scenes_checkpoint, "--images", 24, "--batch-size", 2, "--device", "cpu")
    expected = "tide: interrupted; an index that was being made is resumed by the same command\n"
    with Server(*words) as server:
        while server.index()["done"] < 4:
            time.sleep(0.01)
        assert server.ended(signal.SIGINT) == (130, expected)
    assert (scenes_checkpoint / UNFINISHED / STATE).exists()
    assert not index_of(scenes_checkpoint).exists()
    with Server(*words) as server:
        while server.index()["state"] == "waiting":
            time.sleep(0.01)
        assert server.index()["done"] >= 4
        server.line("The index of tide is made")
        assert server.index()["state"] == "ready"
        assert server.ended(signal.SIGTERM) == (143, expected)
    assert not (scenes_checkpoint / UNFINISHED).exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no folder is named; give that of a checkpoint, or one with several, such as runs/demo"),
        (["/none/there"], "/none/there is not a folder; give the folder of a checkpoint, or one with several"),
        (["."], "holds no checkpoint and no index; give the folder that tide train or tide demo wrote"),
        ([".", "--port", "70000"], "--port"),
        ([".", "--port", "-1"], "--port"),
        ([".", "--port", "x"], "--port"),
    ],
)
def test_one_line_for_what_is_wrong(cli, served, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    result = cli("browse", *words)
    assert (result.code, served) == (2, [])
    assert result.err.startswith("tide: error: ")
    assert message in result.err
    assert result.err.count("\n") == 1


def test_what_the_options_come_to(cli, checkpoint, served, pipeline):
    words = ("--host", "::1", "--port", 8123, "--index", "--no-open", "--no-steering", "--backend", "reference")
    assert cli("browse", checkpoint, "--pipeline", pipeline, *words).code == 0
    ((runs, opening), options) = served[0]
    assert options == {
        "host": "::1", "port": 8123, "rebuild": True, "open_page": False, "steering": False, "backend": "reference",
    }  # fmt: skip
    assert [run.checkpoint for run in runs] == [checkpoint]
    assert opening.adapter(runs[0]).name == str(pipeline.resolve())


def test_a_pipeline_is_asked_for_at_the_terminal(cli, checkpoint, served, monkeypatch):
    asked = []
    monkeypatch.setattr("tide.cli.trust._agreed", lambda question: asked.append(question) or False)
    result = cli("browse", checkpoint)
    assert (result.code, len(asked), served) == (2, 1, [])
    assert "which is not loaded unasked; give --pipeline" in result.err


def test_who_only_looks_is_not_asked(cli, checkpoint, served, monkeypatch, tmp_path):
    """Nothing is loaded for an index that is there already."""
    (tmp_path / "run" / "index").mkdir(parents=True)
    for each in checkpoint.iterdir():
        if each.is_file():
            (tmp_path / "run" / each.name).write_bytes(each.read_bytes())
    (tmp_path / "run" / "index" / "index.json").write_text("{}")
    monkeypatch.setattr("tide.cli.trust._agreed", lambda question: pytest.fail(question))
    assert cli("browse", tmp_path / "run", "--no-steering").code == 0
    assert len(served) == 1


def test_the_adapter_is_imported_before_the_checkpoint_is_checked(cli, checkpoint, served, tmp_path):
    """Or a family of one's own would be unknown."""
    (tmp_path / "own.py").write_text("from pathlib import Path\n(Path(__file__).parent / 'imported').touch()\n")
    cli("browse", checkpoint, "--adapter", tmp_path / "own.py")
    ((runs, opening), _) = served[0]
    assert not (tmp_path / "imported").exists()  # the worker's process imports it, not the server's
    with pytest.raises(TideError, match="adapter"):
        opening.adapter(runs[0])
    assert (tmp_path / "imported").exists()


def test_the_images_of_an_index(bundled, scenes_checkpoint, tmp_path, images):
    """Those that are named, or else scenes for the bundled pipeline, or what the checkpoint was trained on."""
    from tide.browser.runs import find_runs

    (run,) = find_runs([scenes_checkpoint])
    asked = command(["browse", str(scenes_checkpoint)])
    found = asked.opening({}).source(run, bundled)
    assert (found.name, found.n_images) == ("scenes", IMAGES)
    asked = command(["browse", str(scenes_checkpoint), "--data", str(images), "--images", "3"])
    assert asked.opening({}).source(run, bundled).n_images == 3
    asked = command(["browse", str(scenes_checkpoint)])
    other = load_adapter("scenes", device="cpu")
    other.name = "another"
    assert asked.opening({}).source(run, other) is None
    write_run(scenes_checkpoint, Contents(kind="autoencoder", data={"name": str(images)}))
    assert asked.opening({}).source(run, other).n_images == len(list(images.glob("*.png")))
    write_run(scenes_checkpoint, Contents(kind="autoencoder", data={"name": "/none/gone"}))
    assert asked.opening({}).source(run, other) is None
