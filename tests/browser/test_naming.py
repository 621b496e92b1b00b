"""What people say of latents: kept in the run's folder, whoever else writes there, and found again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.helpers.answers import refused
from tide.browser.naming import Naming
from tide.interpretation.entry import MOST_BY, MOST_NAME, MOST_NOTE
from tide.interpretation.names import NAMES, Entry, Names, Score

AT = "/api/runs/tide/names"


def say(client, latent: object = 3, by: object = "me", **said: object):
    return client.post(AT, json={"latent": latent, "by": by, **said})


def test_a_name_a_note_and_a_star(own, run):
    assert say(own, name="red roof", note="at the top", star=True).json() == own.get(f"{AT}.json").json()["3"]
    said = own.get(f"{AT}.json").json()["3"]
    assert (said["name"], said["by"], said["starred"], said["score"]) == ("red roof", "person:me", True, None)
    assert [(each["by"], each["note"]) for each in said["notes"]] == [("person:me", "at the top")]
    assert say(own, name="wall").json()["name"] == "wall"
    (entry, *_) = Names(run.folder / NAMES).read()[3].all
    assert entry.by == "person:me"


def test_taken_back(own):
    say(own, name="red roof", star=True)
    assert say(own, name="").json()["name"] is None
    found = say(own, star=False).json()
    assert (found["starred"], found["names"], found["notes"]) == (False, [], [])
    assert own.get(f"{AT}.json").json() == {}


def test_what_others_write_is_shown(own, run):
    """A command that adds names while the page is open."""
    assert own.get(f"{AT}.json").json() == {}
    file = Names(run.folder / NAMES)
    file.add([Entry(7, "concepts", "2026-01-01T00:00:00Z", name="snow", score=Score(0.9, 40))])
    found = own.get(f"{AT}.json").json()["7"]
    assert (found["name"], found["score"]) == ("snow", {"auroc": 0.9, "images": 40})
    assert own.get("/api/runs/tide/search?text=sno").json()["latents"] == [7]
    say(own, latent=7, by="Ada", name="ice")
    assert own.get("/api/runs/tide/search?text=ice").json()["latents"][0] == 7
    assert own.get(f"{AT}.json").json()["7"]["names"][0]["by"] == "concepts"


def test_two_servers_at_once_lose_nothing(run):
    """Each reads the file again where the other has written."""
    servers = Naming(run), Naming(run)

    def name(i: int) -> None:
        servers[i % 2].add(i, f"reader {i % 3}", name=f"name {i}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(name, range(96)))
    for server in servers:
        assert {latent: each["name"] for latent, each in server.all().items()} == {i: f"name {i}" for i in range(96)}


def test_clients_at_once(own):
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda i: say(own, latent=i, by=f"p{i}", note="x"), range(24)))
    assert {answer.status_code for answer in answers} == {200}
    assert set(own.get(f"{AT}.json").json()) == set(map(str, range(24)))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"name": "a\nb"}, "control characters"),
        ({"name": "a\x00"}, "control characters"),
        ({"name": "a\u202eb"}, "control characters"),
        ({"name": "x" * (MOST_NAME + 1)}, f"may have {MOST_NAME}"),
        ({"note": "x" * (MOST_NOTE + 1)}, f"may have {MOST_NOTE}"),
        ({"name": "  "}, "blank"),
        ({}, "no name, no note and no star"),
        ({"by": "", "name": "x"}, "by is "),
        ({"by": "  ", "name": "x"}, "by is "),
        ({"by": "a\nb", "name": "x"}, "by is "),
        ({"by": "x" * (MOST_BY + 1), "name": "x"}, "by is "),
        ({"latent": 96, "name": "x"}, "latent 96 does not exist; there are 0..95"),
        ({"latent": -1, "name": "x"}, "latent -1 does not exist"),
        ({"latent": 10**30, "name": "x"}, "does not exist"),
    ],
)  # fmt: skip
def test_what_cannot_be_said(own, run, said, message):
    assert message in refused(say(own, **said))
    assert not (run.folder / NAMES).exists()


@pytest.mark.parametrize(
    ("said", "place"),
    [
        ({"latent": "3", "name": "x"}, "latent: "),
        ({"latent": 3.0, "name": "x"}, "latent: "),
        ({"latent": True, "name": "x"}, "latent: "),
        ({"latent": None, "name": "x"}, "latent: "),
        ({"name": 5}, "name: "),
        ({"name": ["x"]}, "name: "),
        ({"star": "yes"}, "star: "),
        ({"star": 1}, "star: "),
        ({"by": None, "name": "x"}, "by: "),
        ({"nam": "x"}, "nam: Extra inputs are not permitted"),
    ],
)
def test_other_types(own, run, said, place):
    assert refused(say(own, **said), 422).startswith(place)
    assert not (run.folder / NAMES).exists()


def test_halves_of_characters(own, run):
    body = b'{"latent": 3, "by": "me", "name": "\\ud800"}'
    assert refused(own.post(AT, content=body, headers={"content-type": "application/json"}), 400, 422)
    assert not (run.folder / NAMES).exists()


def test_the_longest_that_can_be_said(own):
    found = say(own, by="y" * MOST_BY, name="\u00e9" * MOST_NAME, note="line\n" * (MOST_NOTE // 5)).json()
    assert (len(found["name"]), len(found["notes"][0]["note"])) == (MOST_NAME, MOST_NOTE // 5 * 5)


def test_text_is_sent_as_it_was_said(own):
    """It is the page that shows it as text."""
    said = "<img src=x onerror=alert(1)>"
    assert say(own, name=said).json()["name"] == said


def test_a_damaged_file(own, run):
    say(own, name="roof")
    with (run.folder / NAMES).open("ab") as file:
        file.write(b'{"latent": "x"}\n')
    assert "names.jsonl, line 2" in refused(own.get(f"{AT}.json"))
    assert own.get("/api/runs/tide/facts.json").status_code == 200
    (run.folder / NAMES).unlink()
    assert own.get(f"{AT}.json").json() == {}


def test_names_of_a_larger_model(own, run):
    Names(run.folder / NAMES).add([Entry(500, "person:me", "2026-01-01T00:00:00Z", name="x")])
    assert "latent is 500 and must be below 96; correct or remove the line" in refused(own.get(f"{AT}.json"))


@pytest.mark.parametrize("text", ["", "*", '"', "roof OR wall", "x" * 500])
def test_searches_without_a_result(run, text):
    naming = Naming(run)
    naming.add(3, "me", name="red roof")
    assert naming.search(text) == []


def test_searched_words_begin_as_those_that_are_asked_for(run):
    naming = Naming(run)
    assert naming.search("red") == []
    naming.add(3, "me", name="Red Roof")
    naming.add(4, "me", note="a r\u00f6of that is red")
    assert sorted(naming.search("roo RED")) == [3, 4]
    assert naming.search("oof") == []
