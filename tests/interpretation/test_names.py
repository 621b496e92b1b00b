"""Names of latents in a file: what is in force, nothing lost among many writers or by a kill, and merging."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest

from tide.errors import TideError
from tide.interpretation.names import Entry, LatentNames, Names, Score, now

ANNA, BEN = "person:anna", "person:ben"


def at(second: int) -> str:
    return f"2026-11-28T09:00:{second:02}Z"


@pytest.fixture
def names(tmp_path) -> Names:
    return Names(tmp_path / "names.jsonl", 100)


def read(names: Names, *entries: Entry) -> LatentNames:
    names.add(entries)
    return names.read()[1]


def test_without_a_file_there_are_no_names(names):
    assert names.read() == {}
    names.add([])
    assert names.read() == {}


def test_the_file_is_plain_lines(names):
    names.add([Entry(12, ANNA, at(0), "roof"), Entry(3, ANNA, at(1), star=True)])
    assert names.path.read_text().splitlines() == [
        '{"latent": 12, "by": "person:anna", "at": "2026-11-28T09:00:00Z", "name": "roof"}',
        '{"latent": 3, "by": "person:anna", "at": "2026-11-28T09:00:01Z", "star": true}',
    ]
    assert [path.name for path in names.path.parent.iterdir()] == ["names.jsonl"]
    found = names.read()
    assert list(found) == [3, 12]
    assert (found[12].name, found[12].by, found[12].score, found[12].starred) == ("roof", ANNA, None, False)
    assert (found[3].name, found[3].by, found[3].starred) == (None, None, True)


def test_the_last_of_each_author_and_field_is_in_force(names):
    """By time, whatever the order in the file."""
    found = read(
        names,
        Entry(1, ANNA, at(5), "roof", note="of houses"),
        Entry(1, ANNA, at(3), "wall", note="old"),
        Entry(1, BEN, at(4), note="also of huts"),
        Entry(1, ANNA, at(6), star=True),
        Entry(1, ANNA, at(7), "red roof"),
    )
    assert found.all == (
        Entry(1, BEN, at(4), note="also of huts"),
        Entry(1, ANNA, at(5), note="of houses"),
        Entry(1, ANNA, at(6), star=True),
        Entry(1, ANNA, at(7), "red roof"),
    )
    assert [entry.note for entry in found.notes] == ["also of huts", "of houses"]


def test_of_equal_times_the_later_in_the_file_is_in_force(names):
    assert read(names, Entry(1, ANNA, at(1), "b"), Entry(1, ANNA, at(1), "a")).name == "a"


def test_a_persons_latest_name_goes_before_automatic_ones(names):
    score = Score(1.0, 50)
    found = read(
        names,
        Entry(1, "clip", at(9), "tile", score=score),
        Entry(1, ANNA, at(1), "roof"),
        Entry(1, BEN, at(2), "gable"),
    )
    assert (found.name, found.by, found.score) == ("gable", BEN, None)


def test_of_automatic_names_the_best_on_other_images_is_shown(names):
    found = read(
        names,
        Entry(1, "clip", at(1), "tile", score=Score(0.8, 50)),
        Entry(1, "captions", at(2), "roof", score=Score(0.9, 60)),
        Entry(1, "concepts", at(3), "house", score=Score(0.7, 50)),
        Entry(1, "model:m", at(4), "sky"),
    )
    assert (found.name, found.by, found.score) == ("roof", "captions", Score(0.9, 60))
    found = read(names, Entry(1, "captions", at(5), "roofs", score=Score(0.75, 60)))
    assert (found.name, found.score) == ("tile", Score(0.8, 50))
    assert read(names, Entry(1, "captions", at(6), "roofs", score=Score(0.8, 60))).name == "roofs"  # the latest


def test_empty_texts_and_stars_take_back(names):
    names.add([Entry(1, ANNA, at(1), "roof", "of houses", True), Entry(1, "clip", at(1), "tile")])
    assert read(names, Entry(1, ANNA, at(2), "")).name == "tile"
    found = read(names, Entry(1, ANNA, at(2), note="", star=False))
    assert (found.notes, found.starred, len(found.all)) == ((), False, 1)
    names.add([Entry(1, "clip", at(2), "")])
    assert names.read() == {}
    assert read(names, Entry(1, ANNA, at(3), "roof")).name == "roof"


def test_latents_that_there_are_not(names):
    with pytest.raises(TideError, match="latent is 100 and must be below 100; correct the entry"):
        names.add([Entry(1, ANNA, at(1), "a"), Entry(100, ANNA, at(1), "a")])
    assert not names.path.exists()
    Names(names.path).add([Entry(100, ANNA, at(1), "a")])
    with pytest.raises(TideError, match=r"names.jsonl, line 1: latent is 100 and must be below 100; correct or remove"):
        names.read()


@pytest.mark.parametrize("damage", ["{", "", "x", '{"latent": 1}'])
def test_a_damaged_line_is_named(names, damage):
    names.add([Entry(i, ANNA, at(i), "a") for i in range(4)])
    lines = names.path.read_text().splitlines()
    lines[2] = lines[2][:20] + damage if damage == "" else damage
    names.path.write_text("\n".join(lines) + "\n")
    with pytest.raises(TideError, match=r"names.jsonl, line 3: .*; correct or remove the line$"):
        names.read()


def test_blank_lines_are_passed_over(names):
    names.path.write_text("\n" + Entry(1, ANNA, at(1), "roof").line() + "\r\n\n")
    assert names.read()[1].name == "roof"


def test_a_missing_folder(tmp_path):
    with pytest.raises(TideError, match=r"none does not exist; check the path"):
        Names(tmp_path / "none" / "names.jsonl").add([Entry(1, ANNA, at(1), "a")])


# -- many writers, and killed ones -------------------------------------------------------------------------------------


class Slow(io.FileIO):
    """Writes a few bytes at a time, as a full disk or a network may: others come in between."""

    def write(self, data: Any) -> int:
        time.sleep(0)
        return super().write(data[:100])


@pytest.fixture
def slow_writes(monkeypatch) -> None:
    """Of lines that are added, here and in processes that are forked."""
    former = Path.open

    def opened(self: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        return Slow(self, "ab") if mode == "ab" else former(self, mode, *args, **options)

    monkeypatch.setattr(Path, "open", opened)


def write(path: Path, by: str, n: int, go: Event, added: Connection) -> None:
    names = Names(path)
    go.wait()
    for i in range(n):
        names.add([Entry(i, by, now(), "n" * 150), Entry(i, by, now(), note="m" * 9000)])
        added.send(i)


@contextmanager
def writers(names: Names, *by: str, n: int) -> Iterator[list[tuple[BaseProcess, Connection]]]:
    """Processes that begin at once, and what each says that it has added."""
    context = get_context("fork")  # a new one would import torch
    go, started = context.Event(), []
    for each in by:
        reader, added = context.Pipe(duplex=False)
        process = context.Process(target=write, args=(names.path, each, n, go, added))
        process.start()
        started.append((process, reader))
    try:
        go.set()
        yield started
    finally:
        for process, _ in started:
            process.kill()
            process.join()


@pytest.mark.usefixtures("slow_writes")
def test_two_processes_that_write_at_once_lose_nothing(names):
    n = 40
    with writers(names, ANNA, BEN, n=n) as started:
        while any(process.is_alive() for process, _ in started):
            names.read()  # never half a line
        assert [process.exitcode for process, _ in started] == [0, 0]
    found = names.read()
    assert {latent: {entry.by for entry in each.all} for latent, each in found.items()} == {
        i: {ANNA, BEN} for i in range(n)
    }
    assert len(names.path.read_text().splitlines()) == 4 * n


@pytest.mark.usefixtures("slow_writes")
def test_threads_that_write_at_once_lose_nothing(names):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: Names(names.path, 100).add([Entry(i, ANNA, at(1), "a" * 200)]), range(40)))
    assert list(names.read()) == list(range(40))


@pytest.mark.usefixtures("slow_writes")
def test_a_killed_writer_leaves_what_it_added_and_is_in_nobodys_way(names):
    for i in range(10):
        with writers(names, f"person:{i}", n=99) as ((process, added),):
            done = [added.recv() for _ in range(1 + i % 3)]
            time.sleep(0.0003 * i)
            process.kill()
            process.join()
        assert process.exitcode == -signal.SIGKILL
        held = [latent for latent, each in names.read().items() if any(e.by == f"person:{i}" for e in each.all)]
        assert set(done) <= set(held)
        names.add([Entry(99, ANNA, at(i), f"after {i}")])
        assert names.read()[99].name == f"after {i}"
        for line in names.path.read_text().splitlines():
            json.loads(line)


def test_half_a_last_line_is_no_error_and_goes_with_the_next_entry(names):
    names.add([Entry(1, ANNA, at(1), "roof"), Entry(2, ANNA, at(1), "größe")])
    whole = names.path.read_bytes()
    start = whole.index(b"\n") + 1
    for end in range(start, len(whole) - 1):
        names.path.write_bytes(whole[:end])
        assert list(names.read()) == [1]
    names.add([Entry(3, ANNA, at(1), "wall")])
    assert list(names.read()) == [1, 3]
    assert names.path.read_bytes().count(b"\n") == 2


# -- merging -----------------------------------------------------------------------------------------------------------


def test_merging_adds_what_is_lacking_once(tmp_path):
    ours, theirs = (Names(tmp_path / f"{name}.jsonl", 100) for name in ("a", "b"))
    shared = Entry(1, ANNA, at(1), "roof")
    ours.add([shared, Entry(2, ANNA, at(1), "wall")])
    theirs.add([shared, Entry(2, BEN, at(2), "door"), Entry(2, BEN, at(2), "door"), Entry(1, ANNA, at(3), "gable")])
    assert ours.merge(theirs.path) == 2
    assert ours.merge(theirs.path) == 0
    assert ours.merge(ours.path) == 0
    assert len(ours.path.read_text().splitlines()) == 4
    assert {latent: each.name for latent, each in ours.read().items()} == {1: "gable", 2: "door"}
    assert theirs.merge(ours.path) == 1
    assert theirs.read() == ours.read()


def some_entries(seed: int) -> list[Entry]:
    """Of few latents, authors and times, so that most clash."""
    draw = random.Random(seed)

    def text() -> str | None:
        return draw.choice([None, "", "a", "b"])

    found = []
    while len(found) < 12:
        fields = (text(), text(), draw.choice([None, True, False]))
        if fields != (None, None, None):
            by = draw.choice([ANNA, "clip"])
            score = Score(draw.choice([0.5, 0.9]), 20) if by == "clip" and fields[0] and draw.random() < 0.5 else None
            found.append(Entry(draw.randrange(2), by, at(draw.randrange(3)), *fields, score))
    return found


@pytest.mark.parametrize("seed", range(30))
def test_the_order_of_merging_does_not_matter(tmp_path, seed, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    both = [some_entries(seed), some_entries(seed + 1000)]
    both[1] += both[0][::-2]
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    results = []
    for order in ((0, 1), (1, 0)):
        for path, entries in zip(paths, both, strict=True):
            path.unlink(missing_ok=True)
            Names(path).add(entries)
        first, second = Names(paths[order[0]]), Names(paths[order[1]])
        first.merge(second.path)
        results.append(first.read())
        before = first.path.read_bytes()
        assert first.merge(second.path) == 0
        assert first.path.read_bytes() == before
        second.merge(first.path)
        assert second.read() == first.read()
    assert results[0] == results[1]


def test_nothing_of_a_damaged_file_is_merged(tmp_path, names):
    other = tmp_path / "other.jsonl"
    with pytest.raises(TideError, match=r"other.jsonl does not exist; check the path"):
        names.merge(other)
    other.write_text(Entry(1, ANNA, at(1), "a").line() + "\nx\n")
    with pytest.raises(TideError, match=r"other.jsonl, line 2: it is not JSON"):
        names.merge(other)
    other.write_text(Entry(1, ANNA, at(1), "a").line() + "\n" + Entry(100, ANNA, at(1), "a").line() + "\n")
    with pytest.raises(TideError, match=r"other.jsonl, line 2: latent is 100 and must be below 100"):
        names.merge(other)
    assert not names.path.exists()


@pytest.mark.slow
def test_a_million_lines_are_read_in_seconds(tmp_path):
    names = Names(tmp_path / "names.jsonl", 73_728)
    with names.path.open("w") as file:
        for i in range(10**6):
            file.write(Entry(i % 73_728, "clip", at(i % 60), f"roof {i % 999}", score=Score(0.9, 120)).line() + "\n")
    began = time.process_time()
    assert len(names.read()) == 73_728
    assert time.process_time() - began < 20
