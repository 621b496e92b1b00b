"""Every address of the server: what it sends, and one readable line for what it cannot."""

from __future__ import annotations

import base64
import io
import json
import shutil
import struct

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from tests.helpers.answers import OWN_HEADERS, refused, unpacked
from tide.browser.app import MOST_CARDS, STATIC
from tide.browser.guard import Guard
from tide.browser.runs import find_runs
from tide.index import index_of
from tide.index.layout import BY_LATENT, CODES, FACTS, HEIGHTS, PICTURES, SHEETS, TABLES

AT = "/api/runs/tide"
#: Addresses that read the index.
READING = [
    "facts.json", "columns.bin", "cards.bin?latents=0,1", "latents/1.json", "images/1.json", "images/1.bin",
    "pictures/1.jpg", "sheets/0.jpg", "search?text=a", "names.json",
]  # fmt: skip


def test_the_list_of_runs(own, run):
    (found,) = own.get("/api/runs.json").json()["runs"]
    assert found == run.described()
    assert (found["id"], found["steers"], found["index"]["state"]) == ("tide", True, "ready")


def test_a_server_that_only_browses(serving, run):
    client = serving(run, steering=None)
    assert client.get("/api/runs.json").json()["runs"][0]["steers"] is False
    for path in ("/api/drawings", f"{AT}/recipes/x", f"{AT}/code"):
        body = {"run": "tide", "recipe": {}} if path == "/api/drawings" else {}
        assert "browses only; start tide browse without" in refused(client.post(path, json=body))


def test_facts(client, run):
    facts = client.get(f"{AT}/facts.json").json()
    said = run.index.facts
    assert [facts[name] for name in ("nLatents", "nImages", "map", "sae", "block")] == [
        said["n_latents"], said["n_images"], said["map"], said["sae"], said["block"],
    ]  # fmt: skip
    assert facts["concepts"] == run.index.concepts()
    assert np.array(facts["heat"]).shape[1] == 3


def test_columns(client, run):
    found, expected = unpacked(client.get(f"{AT}/columns.bin").content), run.index.columns()
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values)


def test_cards(client, run):
    asked = [7, 3, 7, 95]
    found = unpacked(client.get(f"{AT}/cards.bin?latents={','.join(map(str, asked))}").content)
    index = run.index
    assert found["latent"].tolist() == asked
    np.testing.assert_array_equal(found["frequency"], index.rows("frequency")[asked])
    np.testing.assert_array_equal(found["images"], index.rows("top_images")[asked][:, :4])
    np.testing.assert_array_equal(found["maps"], index.rows("top_maps")[asked][:, :4])
    assert found["maps"].shape == (4, 4, 8, 8)


def test_as_many_cards_as_are_allowed(client):
    found = client.get(f"{AT}/cards.bin?latents={','.join(['5'] * MOST_CARDS)}")
    assert len(unpacked(found.content)["latent"]) == MOST_CARDS


@pytest.mark.parametrize(
    "latents",
    ["", "x", "1,", ",1", "1,,2", "-1", "+1", "1.0", "1e3", " 1", "1 2", "\u0661", "9" * 10, "9" * 5000,
     ",".join(["1"] * (MOST_CARDS + 1)), ",".join(["1"] * 5_000), "1\x00", "0x1", "nan"],
    ids=lambda text: f"{text[:8]!r} of {len(text)}",
)  # fmt: skip
def test_lists_that_are_none(client, latents):
    answer = client.get(f"{AT}/cards.bin", params={"latents": latents})
    assert refused(answer) == f"give at most {MOST_CARDS} numbers, such as 3,14"


def test_a_latent(client, run):
    index = run.index
    number = int(index.columns()["frequency"].argmax())
    found = client.get(f"{AT}/latents/{number}.json").json()
    assert (found["latent"], found["frequency"]) == (number, pytest.approx(float(index.columns()["frequency"][number])))
    assert found["frequencies"] == pytest.approx(index.rows("frequency")[number].tolist())
    top = index.rows("top_images")[number]
    assert [each["image"] for each in found["top"]] == [i for i in top.tolist() if i >= 0]
    for i, each in enumerate(found["top"]):
        assert base64.b64decode(each["heat"]) == index.rows("top_maps")[number][i].tobytes()
        assert {"name": each["name"], "caption": each["caption"]} == index.image(each["image"])
    assert base64.b64decode(found["meanMap"]) == index.rows("mean_map")[number].tobytes()
    near = index.rows("fires")[number]
    assert [each["latent"] for each in found["fires"]] == near[near >= 0].tolist()


def test_a_latent_that_never_fires(client):
    found = client.get(f"{AT}/latents/5.json").json()
    assert (found["frequency"], found["top"], found["drawn"], found["fires"]) == (0, [], [], [])


def test_an_image(client, run):
    assert client.get(f"{AT}/images/3.json").json() == {"image": 3, **run.index.image(3)}
    found, expected = unpacked(client.get(f"{AT}/images/3.bin").content), run.index.place(3)
    np.testing.assert_array_equal(found["latents"], expected.latents)
    np.testing.assert_array_equal(found["heights"], expected.heights.astype("f4"))


def test_pictures_and_sheets(client, run):
    answer = client.get(f"{AT}/pictures/2.jpg")
    assert (answer.headers["content-type"], answer.content) == ("image/jpeg", run.index.picture(2))
    assert Image.open(io.BytesIO(answer.content)).size == (64, 64)
    assert client.get(f"{AT}/sheets/0.jpg").content == run.index.sheet(0).read_bytes()


def test_search(client, run):
    word = run.index.image(0)["caption"].split()[1]
    assert client.get(f"{AT}/search", params={"text": word}).json() == run.index.search(word)
    assert 0 in run.index.search(word)["images"]


@pytest.mark.parametrize(
    "text",
    ["", " ", '"', "*", "a OR b", "NEAR(a b)", "-a", "a:b", "\x00", "a\x00b", "'; DROP TABLE latents; --", "é" * 9000,
     "\U0001f600", "²", "\U000105c0", "a " * 5000],
    ids=lambda text: f"{text[:12]!r} of {len(text)}",
)  # fmt: skip
def test_whatever_is_searched_for(client, text):
    assert client.get(f"{AT}/search", params={"text": text}).json().keys() == {"latents", "images"}


@pytest.mark.parametrize("path", READING)
def test_a_run_that_there_is_not(client, path):
    for run in ("other", "%2e%2e", "tide%00", "TIDE", "x" * 5000):
        message = refused(client.get(f"/api/runs/{run}/{path}"), 400, 404)
        assert "there is no run" in message or "there is nothing at this address" in message


@pytest.mark.parametrize("what", ["latents/{}.json", "images/{}.json", "images/{}.bin", "pictures/{}.jpg"])
@pytest.mark.parametrize(
    "number", ["-1", "96", "1000000", "9" * 30, "9" * 4000, "9" * 9000, "x", "1.5", "nan", "%00", "1e1"]
)
def test_numbers_that_are_none(client, what, number):
    answer = client.get(f"{AT}/{what.format(number)}")
    message = refused(answer, 400, 422)
    assert "does not exist" in message or "integer" in message or len(number) > 1000


@pytest.mark.parametrize("number", ["-1", "1", "9" * 300, "9" * 9000, "x", "0.5", "../0", "..%2f0", "%2e%2e"])
def test_sheets_that_there_are_not(client, number):
    answer = client.get(f"{AT}/sheets/{number}.jpg")
    assert answer.status_code in (400, 404, 422)


@pytest.mark.parametrize(
    "path",
    ["/../guard.py", "/%2e%2e/guard.py", "/..%2fguard.py", "/static/../../guard.py", "//etc/passwd", "/%2fetc%2fpasswd",
     "/..%5cguard.py", "/main.js/../../guard.py", "/index.html%00.py"],
)  # fmt: skip
def test_no_file_beside_the_pages_is_sent(client, path):
    assert client.get(path).status_code in (400, 404)


def test_the_page(client):
    answer = client.get("/")
    assert (answer.text, answer.headers["cache-control"]) == ((STATIC / "index.html").read_text(), "no-cache")
    assert client.get("/main.js").text == (STATIC / "main.js").read_text()


@pytest.mark.parametrize("path", ["/", "/api/runs.json", "/none", f"{AT}/latents/x.json", f"{AT}/pictures/99.jpg"])
def test_every_answer_has_the_headers(client, path):
    found = client.get(path).headers
    assert OWN_HEADERS <= found.keys()


def test_what_is_behind_the_guard(client):
    assert isinstance(client.app, Guard)
    assert client.get("/", headers={"host": "evil.example"}).status_code == 421
    assert client.post(f"{AT}/names", content="{}", headers={"content-type": "text/plain"}).status_code == 415


@pytest.mark.parametrize("path", READING)
def test_a_run_that_is_deleted_while_the_server_runs(serving, run, path):
    client = serving(run)
    assert client.get(f"{AT}/{path}").status_code == 200
    shutil.rmtree(run.folder)
    message = refused(client.get(f"{AT}/{path}"))
    assert "was deleted or moved; start tide browse again" in message
    assert client.get("/api/runs.json").json()["runs"][0]["index"]["state"] == "failed"


def test_the_other_runs_are_listed_still(serving, made, folder):
    runs = find_runs([made, folder])
    shutil.rmtree(folder)
    found = serving(*runs).get("/api/runs.json").json()["runs"]
    assert [each["index"]["state"] for each in found] == ["ready", "failed"]


def test_the_index_that_is_made_anew_is_the_one_that_is_read(own, run, make_run, model):
    assert own.get(f"{AT}/facts.json").json()["nImages"] == 8
    make_run(model, run.folder, images=4)
    assert own.get(f"{AT}/facts.json").json()["nImages"] == 4
    assert "there are 0..3" in refused(own.get(f"{AT}/pictures/5.jpg"))


FILES = {
    FACTS: READING,
    TABLES: ["facts.json", "columns.bin", "latents/1.json", "images/1.json", "pictures/1.jpg", "search?text=a"],
    BY_LATENT: ["cards.bin?latents=1", "latents/1.json"],
    CODES: ["facts.json", "images/1.bin"],
    HEIGHTS: ["facts.json", "images/1.bin"],
}


@pytest.mark.parametrize("how", ["gone", "empty", "half", "other"])
@pytest.mark.parametrize("name", FILES)
def test_damaged_files(own, run, name, how):
    """What reads the file is refused with the remedy, and the server lives."""
    path = index_of(run.folder) / name
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "half": data[: len(data) // 2], "other": b"\xff" * 5000}[how])
    for each in FILES[name]:
        message = refused(own.get(f"{AT}/{each}"))
        assert ("make" in message and "again" in message) or "has no index yet" in message, message
    assert own.get("/api/runs.json").status_code == 200
    assert own.get("/").status_code == 200


@pytest.mark.parametrize("name", [PICTURES, SHEETS])
def test_pictures_that_are_gone(own, run, name):
    path = index_of(run.folder) / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    refused(own.get(f"{AT}/{'pictures/1' if name == PICTURES else 'sheets/0'}.jpg"))
    assert own.get(f"{AT}/facts.json").status_code == 200


def test_compare(serving, made, folder):
    client = serving(*find_runs([made, folder]))
    found = unpacked(client.get("/api/compare.bin", params={"a": "tide", "b": "tide-2"}).content)
    assert found["match"].tolist() == [-1 if i == 5 else i for i in range(96)]
    assert "there is no run" in refused(client.get("/api/compare.bin", params={"a": "tide", "b": "x"}))
    assert "b: Field required" in refused(client.get("/api/compare.bin", params={"a": "tide"}), 422)


BODIES = [
    b"", b"{", b"null", b"[]", b'"x"', b"1", b"NaN", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000, b"9" * 5000,
    b'{"latent": NaN, "by": "me"}', b'{"run": "\\ud800", "recipe": {}}', b'{"\\ud800": 1}',
]  # fmt: skip


@pytest.mark.parametrize("body", BODIES, ids=lambda body: f"{body[:20]!r} of {len(body)}")
@pytest.mark.parametrize("path", [f"{AT}/names", "/api/drawings", f"{AT}/recipes/x", f"{AT}/code"])
def test_bodies_that_are_none(client, path, body):
    answer = client.post(path, content=body, headers={"content-type": "application/json"})
    assert refused(answer, 400, 422)


def test_jobs_that_there_are_not(client):
    for job in ("1", "%00", "x" * 5000):
        assert refused(client.get(f"/api/jobs/{job}/events")) == "that drawing is forgotten; draw it again"
        assert "forgotten" in refused(client.post(f"/api/jobs/{job}/cancel", json={}))


def test_the_layout_of_packed_arrays(client):
    """As web/src/wire.ts reads it: offsets that its typed arrays take."""
    data = client.get(f"{AT}/cards.bin?latents=1,2,3").content
    (length,) = struct.unpack("<I", data[:4])
    entries = json.loads(data[4 : 4 + length])
    assert [each["name"] for each in entries] == ["latent", "frequency", "images", "maps"]
    assert all((4 + length + each["start"]) % 4 == 0 for each in entries)


def test_a_bug_is_answered_without_its_traceback_and_raised_for_the_terminal(own, run, monkeypatch):
    def broken(index):
        raise KeyError("secret")

    with monkeypatch.context() as patch:
        patch.setattr("tide.browser.wire.facts", broken)
        with pytest.raises(KeyError):
            own.get(f"{AT}/facts.json")
        answer = TestClient(own.app, base_url=str(own.base_url), raise_server_exceptions=False).get(f"{AT}/facts.json")
        assert (answer.status_code, answer.text) == (500, "Internal Server Error")
        assert OWN_HEADERS <= answer.headers.keys()
    assert own.get(f"{AT}/facts.json").status_code == 200
