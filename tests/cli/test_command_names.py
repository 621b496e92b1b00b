"""``tide names``: listing and merging what latents of a checkpoint are called."""

from __future__ import annotations

import shutil

import pytest

from tide.interpretation.names import Entry, Names, Score


def at(second: int) -> str:
    return f"2026-11-28T09:00:{second:02}Z"


@pytest.fixture
def own(checkpoint, tmp_path):
    """A checkpoint to name the latents of."""
    return shutil.copytree(checkpoint, tmp_path / "sae")


def test_names_are_listed(cli, own):
    path = own / "names.jsonl"
    entries = [
        Entry(3, "person:anna", at(0), "roof", "of\nhouses", True),
        Entry(3, "clip", at(1), "tile", score=Score(0.987, 120)),
        Entry(5, "clip", at(1), "sky", score=Score(0.987, 120)),
        Entry(7, "person:anna", at(1), star=True),
    ]
    Names(path).add(entries)
    result = cli("names", own, "--list")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [
        "      3 * roof (person:anna)",
        "          of houses (person:anna)",
        "      5   sky (clip, AUROC 0.99 on 120 images)",
        "      7 *",
        f"3 latents in {path}.",
    ]


def test_names_of_somebody_else_are_added_once(cli, own, tmp_path):
    other = tmp_path / "other.jsonl"
    Names(other).add([Entry(3, "person:ben", at(0), "roof"), Entry(4, "person:ben", at(0), "wall")])
    result = cli("names", own, "--merge", other)
    assert (result.code, result.out) == (0, f"2 entries of {other} added to {own / 'names.jsonl'}.\n")
    result = cli("names", own, "--merge", other, "--list")
    assert result.out.splitlines() == [
        f"0 entries of {other} added to {own / 'names.jsonl'}.",
        "      3   roof (person:ben)",
        "      4   wall (person:ben)",
        f"2 latents in {own / 'names.jsonl'}.",
    ]


def test_what_cannot_be_named(cli, own, tmp_path):
    def refused(*words: object) -> str:
        result = cli("names", *words)
        assert (result.code, result.out) == (2, "")
        return result.err

    ways = "--list, --merge, --captions, --concepts, --clip or --vision"
    assert refused(own) == f"tide: error: nothing is asked; give {ways}\n"
    assert refused(own, "--merge", tmp_path / "none").endswith("none does not exist; check the path\n")
    other = tmp_path / "other.jsonl"
    Names(other).add([Entry(10**6, "person:ben", at(0), "roof")])
    assert "other.jsonl, line 1: latent is 1000000 and must be below" in refused(own, "--merge", other)
    assert not (own / "names.jsonl").exists()
    assert "config.json does not exist" in refused(tmp_path, "--list")
