"""Lines of a file of names: what is an entry, and what is refused in one line."""

from __future__ import annotations

import json
import re

import pytest

from tide.errors import TideError
from tide.interpretation.entry import Entry, Score, now, read_entry

AT = "2026-11-28T09:00:00Z"
CONTROLS = "\n\t\0\x1b\x7f\x85\u2028\u202e"
GOOD = {"latent": 12, "by": "person:anna", "at": AT, "name": "roof"}


@pytest.mark.parametrize(
    "entry",
    [
        Entry(12, "person:anna", AT, "roof"),
        Entry(0, "person:Anna Größe", now(), note="one\ntwo\t\u2028", star=False),
        Entry(1, "concepts", AT, "屋顶 👩‍🚀", score=Score(0.93, 120)),
        Entry(1, "model:org/name:7b", "2026-11-28T09:00:00.5Z", name="", note=""),
        Entry(2**31 - 1, "clip", AT, "n" * 200, "n" * 10_000, True, Score(1, 1)),
    ],
    ids=lambda entry: entry.by,
)
def test_an_entry_is_one_line(entry):
    line = entry.line()
    assert "\n" not in line
    assert read_entry(line) == entry
    assert read_entry(f" {line} \r") == entry


def test_the_line_of_an_entry():
    assert Entry(12, "person:anna", AT, "roof").line() == (
        '{"latent": 12, "by": "person:anna", "at": "2026-11-28T09:00:00Z", "name": "roof"}'
    )
    assert json.loads(Entry(1, "clip", AT, "roof", score=Score(0.93, 120)).line())["score"] == {
        "auroc": 0.93,
        "images": 120,
    }


def test_keys_of_a_newer_version_are_passed_over():
    assert read_entry(json.dumps({**GOOD, "colour": "red"})) == Entry(**GOOD)


def test_times_sort_by_time():
    times = ["2026-11-28T09:00:00Z", "2026-11-28T09:00:00.000001Z", "2026-11-28T09:00:00.5Z", "2026-11-28T09:00:01Z"]
    keys = [Entry(1, "clip", at, "a").when for at in times]
    assert keys == sorted(keys)
    assert len(set(keys)) == 4
    assert Entry(1, "clip", "2026-11-28T09:00:00.50Z", "a").when == keys[2]
    assert Entry(1, "clip", "2026-11-28T09:00:00.000Z", "a").when == keys[0]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"latent": -1}, "latent is -1 and must be a number from 0"),
        ({"latent": True}, "latent is True and"),
        ({"latent": 1.0}, "latent is 1.0 and"),
        ({"latent": 2**31}, "latent is 2147483648 and"),
        *[
            ({"by": by}, f"by is {by!r} and must be person:NAME, concepts")
            for by in ("anna", "person:", "person: a", "person:a\n", "clip:a", "person", "", None)
        ],
        ({"by": "person:" + "a" * 201}, "by is 'person:aaaa"),
        *[
            ({"at": at}, f"at is {at!r} and must be a time")
            for at in ("2026-11-28", "2026-11-28T09:00:00", "2026-02-30T09:00:00Z", "2026-11-28T24:00:00Z", 5)
        ],
        ({"at": "2026-11-28T09:00:00+01:00"}, "at is '2026-11-28T09:00:00+01:00' and"),
        ({"at": "2026-11-28T09:00:00Z\n"}, "at is "),
        ({"at": "٢٠٢٦-11-28T09:00:00Z"}, "at is "),
        ({"name": None}, "it has no name, no note and no star"),
        ({"name": "a" * 201}, "name has 201 characters and may have 200"),
        ({"note": "a" * 10_001}, "note has 10001 characters and may have 10000"),
        *[({"name": f"a{c}b"}, f"name is {f'a{c}b'!r} and must have no control") for c in CONTROLS],
        ({"name": "  "}, "name is blank and must be empty to take the former one back"),
        ({"name": 5}, "name is 5 and must be text"),
        ({"note": ["a"]}, "note is ['a'] and must be text"),
        ({"note": "a\ud800"}, "note holds half a character"),
        ({"star": 1}, "star is 1 and must be true or false"),
        ({"by": "clip", "score": {"auroc": 1.5, "images": 1}}, "score has the auroc 1.5 and must have one from 0 to 1"),
        ({"by": "clip", "score": {"auroc": float("nan"), "images": 1}}, "score has the auroc nan"),
        ({"by": "clip", "score": {"auroc": True, "images": 1}}, "score has the auroc True"),
        ({"by": "clip", "score": {"auroc": 0.5, "images": 0}}, "score must have a number of images of at least 1"),
        ({"by": "clip", "name": "", "score": {"auroc": 0.5, "images": 1}}, "score must go with a name that was found"),
        ({"score": {"auroc": 0.5, "images": 1}}, "score must go with a name that was found automatically"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_entry(change, fault):
    said = {**GOOD, **change}
    with pytest.raises(TideError, match=re.escape(fault)) as read:
        read_entry(json.dumps(said))
    if said.get("score"):
        said["score"] = Score(**said["score"])
    with pytest.raises(TideError) as made:
        Entry(**said)
    assert str(made.value) == f"{read.value}; correct the entry"
    assert str(made.value).isprintable()


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"latent": 1', "it is not JSON"),
        ('{"latent": 1}}', "it is not JSON"),
        ('{"latent": 1} {"latent": 2}', "it is not JSON"),
        ("x", "it is not JSON"),
        ("  x", "it is not JSON"),
        ("[" * 100_000, "it is not JSON (nested too deeply)"),
        ('{"latent": ' + "1" * 5000 + "}", "it is not JSON"),
        ("[1]", "it is not an object"),
        ("null", "it is not an object"),
        ('{"by": "clip", "at": "x", "name": "a"}', "latent is missing"),
        (f'{{"latent": 1, "by": "clip", "at": "{AT}", "name": "a", "score": 1}}', "score is not an auroc and a number"),
    ],
    ids=lambda text: text[:20],
)
def test_lines_that_are_damaged(line, fault):
    with pytest.raises(TideError, match=re.escape(fault)) as error:
        read_entry(line)
    assert len(str(error.value)) < 200
