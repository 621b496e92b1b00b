"""The files of an export are the answers of the server, but for what tells of this machine or is private."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.helpers.indexed_runs import DEAD, N_IMAGES, N_LATENTS, most_active
from tide.browser import wire
from tide.browser.files import BLOCK, files_of, without_folders
from tide.browser.jobs import Jobs
from tide.browser.runs import find_runs
from tide.errors import TideError


@pytest.fixture(scope="module")
def contents(indexed_run) -> dict[str, bytes]:
    return made(indexed_run)


def made(run: Path, limit: int | None = None, notes: bool = True) -> dict[str, bytes]:
    files = files_of(find_runs([run]), limit=limit, notes=notes)
    return {each.path.format(i): each.make(i) for each in files for i in range(each.n)}


def test_they_are_what_the_server_answers(indexed_run, contents):
    testing = pytest.importorskip("fastapi.testclient", exc_type=ImportError)
    from tide.browser.app import make_app

    app = make_app(find_runs([indexed_run]), Jobs(), None)
    client = testing.TestClient(app, base_url="http://localhost")
    differ = {"api/runs.json", "api/runs/one/facts.json", "api/runs/one/names.json", ".nojekyll"}
    asked = [path for path in contents if "/cards/" not in path and path not in differ]
    assert len(asked) == 4 + 1 + N_LATENTS + 3 * N_IMAGES + 1  # the page, columns, latents, images, a sheet
    for path in asked:
        answer = client.get(f"/{path}")
        assert answer.status_code == 200, path
        same = (
            answer.json() == json.loads(contents[path]) if path.endswith(".json") else answer.content == contents[path]
        )
        assert same, path
    for block in range(2):
        latents = range(64 * block, min(N_LATENTS, 64 * (block + 1)))
        answer = client.get(f"/api/runs/one/cards.bin?latents={','.join(map(str, latents))}")
        assert answer.content == contents[f"api/runs/one/cards/{block}.bin"]


def test_the_page_takes_cards_in_the_same_blocks():
    store = Path(__file__).parents[2] / "web" / "src" / "store.ts"
    assert re.findall(r"^const BLOCK = (\d+);", store.read_text(), re.MULTILINE) == [str(BLOCK)]


def test_nothing_tells_of_this_machine(indexed_run, contents):
    assert [path for path, data in contents.items() if str(indexed_run.parent).encode() in data] == []
    (run,) = json.loads(contents["api/runs.json"])["runs"]
    assert (run["folder"], run["pipeline"], run["steers"]) == ("one", "pipeline", False)
    assert json.loads(contents["api/runs/one/facts.json"])["data"] == "photos"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/home/me/models/sana", "sana"),
        ("~/models/sana/", "sana"),
        (r"C:\Users\me\sana", "sana"),
        ("PixArt-alpha/PixArt-XL-2-1024-MS", "PixArt-alpha/PixArt-XL-2-1024-MS"),
        ("scenes", "scenes"),
    ],
)
def test_names_of_folders(text, told):
    assert without_folders(text) == told


def test_names_and_notes(indexed_run, contents):
    latent = most_active(find_runs([indexed_run])[0].index)
    said = json.loads(contents["api/runs/one/names.json"])
    assert said[str(latent)]["name"] == "tall door"
    assert {each["by"] for each in said[str(latent)]["names"]} == {"person:Ada", "model:weights"}
    assert said[str(latent + 1)]["notes"][0]["note"] == "ask Bob"


def test_without_notes(indexed_run):
    """A latent of which nothing else is said is not even mentioned."""
    everything = made(indexed_run, notes=False)
    said = json.loads(everything["api/runs/one/names.json"])
    assert [each["name"] for each in said.values()] == ["tall door"]
    assert not [path for path, data in everything.items() if b"seen twice" in data or b"ask Bob" in data]


def test_a_dead_latent_has_a_file(contents):
    dead = json.loads(contents[f"api/runs/one/latents/{DEAD}.json"])
    assert (dead["frequency"], dead["top"]) == (0, [])


def test_a_limit_keeps_the_pictures_of_the_most_active(indexed_run, contents):
    index = find_runs([indexed_run])[0].index
    limited = made(indexed_run, limit=10)
    assert limited.keys() == contents.keys()
    differ = {path for path in limited if limited[path] != contents[path]}
    assert differ
    assert {path.rsplit("/", 1)[0] for path in differ} == {"api/runs/one/latents"}
    ranked = sorted(range(N_LATENTS), key=lambda i: -index.columns()["frequency"][i])
    assert all(f"api/runs/one/latents/{i}.json" not in differ for i in ranked[:10])
    for path in differ:
        whole, cut = json.loads(contents[path]), json.loads(limited[path])
        assert cut == whole | {"top": whole["top"][: wire.ON_CARD], "drawn": []}


def test_sizes_are_told_from_a_sample(indexed_run, contents):
    files = files_of(find_runs([indexed_run]), limit=None, notes=True)
    assert sum(each.n for each in files) == len(contents)
    size = sum(map(len, contents.values()))
    assert sum(each.about for each in files) == pytest.approx(size, rel=0.1)


def test_a_page_that_is_not_built(indexed_run, tmp_path, monkeypatch):
    monkeypatch.setattr("tide.browser.files.STATIC", tmp_path)
    with pytest.raises(TideError, match=r"lacks the page; build it"):
        files_of(find_runs([indexed_run]), limit=None, notes=True)
