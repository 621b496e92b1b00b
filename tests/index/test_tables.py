"""What is searched in the tables of an index: words, and nothing of them is an operator."""

from __future__ import annotations

import sqlite3
import unicodedata
from contextlib import closing

import pytest

from tide.errors import TideError
from tide.index.tables import matching, write_tables

CAPTIONS = [
    "a red roof near the lake",
    "the caf\N{LATIN SMALL LETTER E WITH ACUTE}s of Z\N{LATIN SMALL LETTER U WITH DIAERESIS}rich",
    unicodedata.normalize("NFD", "caf\N{LATIN SMALL LETTER E WITH ACUTE}s by night"),
    "NEAR AND OR NOT",
    "it's 3d, isn't it? 50% of\x00this",
    "",
]
LATENTS = [
    (0, 0.1, 0, 2.0, "roof", "part", 0.9, 0.5, 3),
    (1, 0.2, 1, 3.0, None, None, None, None, 0),
    (2, 0.3, 1, 3.0, "red roof", "part", 0.8, None, 4),
]


@pytest.fixture
def search(tmp_path):
    path = tmp_path / "tables"
    write_tables(path, LATENTS, [(i, f"{i:03}.png", text, 0, 1) for i, text in enumerate(CAPTIONS)])

    def found(text: str, table: str = "image_text") -> set[int] | None:
        if not (query := matching(text)):
            return None
        with closing(sqlite3.connect(path)) as db:
            return {row for (row,) in db.execute(f"SELECT rowid FROM {table} WHERE {table} MATCH ?", (query,))}

    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("roof", {0}),
        ("ROOF", {0}),
        ("roof red", {0}),
        ("ro", {0}),
        ("oof", set()),
        ("roof green", set()),
        ("cafes", {1, 2}),
        ("caf\N{LATIN SMALL LETTER E WITH ACUTE}s", {1, 2}),
        (unicodedata.normalize("NFD", "caf\N{LATIN SMALL LETTER E WITH ACUTE}s"), {1, 2}),
        ("c\N{COMBINING DIAERESIS}afes", {1, 2}),
        ("zurich", {1}),
        ("zu\N{COMBINING DIAERESIS}r", {1}),
        ("003", {3}),
        ("it's", {4}),
        ("50%", {4}),
    ],
)
def test_words_and_the_beginnings_of_words(search, text, expected):
    assert search(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("near", {0, 3}),
        ("NEAR", {0, 3}),
        ("NEAR(roof lake)", {0}),
        ("NEAR(roof lake, 1)", set()),
        ("roof OR cafes", set()),
        ("NOT or", {3}),
        ("roof NOT lake", set()),
        ('"roof', {0}),
        ('roof"', {0}),
        ('""roof""', {0}),
        ('" OR NEAR( * -', {3}),
        ("roof*", {0}),
        ("^red", {0}),
        ("-roof", {0}),
        ("text:roof", set()),
        ("{text} : roof", set()),
        ("red + roof", {0}),
        ("roof; DROP TABLE images", set()),
        ("roof\x00", {0}),
        ("?1", set()),
    ],
)
def test_nothing_is_an_operator(search, text, expected):
    assert search(text) == expected


@pytest.mark.parametrize("text", ["", " ", '"', "*", '" ( * -', "\x00", "\n", "'; --", "\N{COMBINING ACUTE ACCENT}"])
def test_punctuation_finds_nothing(search, text):
    assert matching(text) == ""
    assert search(text) is None


def test_many_words_and_long_ones(search):
    assert search(" ".join(["roof"] * 3000)) == {0}
    assert search("roof" * 10**5) == set()


def test_latents_are_found_by_concept_and_level(search):
    assert search("roof", "latent_text") == {0, 2}
    assert search("red part", "latent_text") == {2}
    assert search("none", "latent_text") == set()


def test_tables_that_were_there_and_a_journal_beside_them_do_not_count(tmp_path):
    path = tmp_path / "tables"
    write_tables(path, LATENTS, [])
    path.with_name("tables-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(600))
    write_tables(path, LATENTS[:1], [(0, "a", "b", 0, 1)])
    path.with_name("tables-journal").unlink()
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT * FROM latents").fetchall() == LATENTS[:1]
        assert db.execute("SELECT * FROM images").fetchall() == [(0, "a", "b", 0, 1)]
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_an_error_leaves_the_tables_that_were_there(tmp_path):
    path = tmp_path / "tables"
    write_tables(path, LATENTS, [])
    with pytest.raises(ZeroDivisionError):
        write_tables(path, LATENTS[:1], ((1 / i, "a", "b", 0, 1) for i in range(2)))
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT * FROM latents").fetchall() == LATENTS
    assert [each.name for each in tmp_path.iterdir()] == ["tables"]


def test_names_that_are_no_unicode(tmp_path):
    """File names whose bytes are no UTF-8 reach Python as lone surrogates."""
    write_tables(tmp_path / "tables", [], [(0, b"a\xff.png".decode("utf-8", "surrogateescape"), "\ud800x", 0, 1)])
    with closing(sqlite3.connect(tmp_path / "tables")) as db:
        assert db.execute("SELECT name, caption FROM images").fetchall() == [("a?.png", "?x")]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TideError, match="could not be written"):
        write_tables(tmp_path / "file" / "tables", [], [])
