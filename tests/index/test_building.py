"""Indexes that are interrupted at every stage, made anew, and made by two at once."""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import tide
from tests.helpers.image_folders import list_captions, make
from tests.helpers.indexes import IMAGES, LATENTS, TIMESTEPS, built, contents, scenes, untrained
from tide.errors import TideError
from tide.files import lock_folder
from tide.index import Index
from tide.index.building import _former
from tide.index.gathering import STATE, IndexGathered
from tide.index.layout import PARTS, UNFINISHED, index_of


class Stopped(Exception):
    pass


@pytest.fixture(autouse=True)
def _saves_after_every_batch(monkeypatch):
    monkeypatch.setattr("tide.index.building.SAVED_AFTER", 0.0)
    monkeypatch.setattr("tide.index.building.SAVED_SHARE", 0.0)


@pytest.fixture(scope="module")
def uninterrupted(adapter, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("whole")
    built(adapter, run)
    return run


@pytest.fixture(scope="module")
def stages(adapter, tmp_path_factory) -> list[tuple[tuple[str, int, int], Path]]:
    """What is on disk at every moment that is reported, as kill -9 leaves it: each with the report."""
    run, snapshots = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("stages")
    found: list[tuple[tuple[str, int, int], Path]] = []

    def copied(stage: str, done: int, total: int) -> None:
        path = snapshots / str(len(found))
        shutil.copytree(run, path)
        found.append(((stage, done, total), path))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tide.index.building.SAVED_AFTER", 0.0)
        patch.setattr("tide.index.building.SAVED_SHARE", 0.0)
        built(adapter, run, on_progress=copied)
    return found


@pytest.fixture
def half(stages, tmp_path) -> Path:
    """A run whose index was interrupted after four of seven images were saved."""
    (found,) = (path for said, path in stages if said == ("images", 6, IMAGES))
    shutil.copytree(found, tmp_path / "half")
    return tmp_path / "half"


def first_report(adapter, run: Path, **options) -> int:
    """How many images of an earlier reading are taken up; makes the whole index."""
    reports: list[tuple[str, int, int]] = []
    built(adapter, run, on_progress=lambda *said: reports.append(said), **options)
    assert reports[0][0] == "images"
    return reports[0][1]


# -- whole ------------------------------------------------------------------------------------------------------


def test_reports_every_stage(stages):
    said = [each for each, _ in stages]
    assert said[:5] == [("images", n, IMAGES) for n in (0, 2, 4, 6, 7)]
    assert said[5] == ("neighbours", 0, 2 * LATENTS)
    assert ("neighbours", 2 * LATENTS, 2 * LATENTS) in said
    assert said[-2:] == [("tables", 0, 1), ("tables", 1, 1)]


def test_leaves_the_index_and_nothing_else(uninterrupted):
    assert [path.name for path in uninterrupted.iterdir()] == ["index"]
    assert {path.name for path in index_of(uninterrupted).iterdir()} == set(PARTS)


def test_files_have_the_mode_of_other_files(uninterrupted, tmp_path):
    (tmp_path / "file").touch()
    modes = {path.stat().st_mode for path in index_of(uninterrupted).rglob("*") if path.is_file()}
    assert modes == {(tmp_path / "file").stat().st_mode}


def test_the_same_call_gives_the_same_index(adapter, uninterrupted, tmp_path):
    built(adapter, tmp_path)
    assert contents(tmp_path) == contents(uninterrupted)


@pytest.mark.parametrize("options", [{"seed": 1}, {"timesteps": torch.tensor([700, 300])}], ids=["seed", "timesteps"])
def test_another_call_gives_another(adapter, uninterrupted, tmp_path, options):
    built(adapter, tmp_path, **options)
    assert contents(tmp_path)["heights.safetensors heights"] != contents(uninterrupted)["heights.safetensors heights"]


def test_is_read_at_the_timesteps_of_ten_steps_by_itself(adapter, tmp_path):
    index = built(adapter, tmp_path, timesteps=None, source=scenes(adapter, 1))
    assert index.facts["timesteps"] == adapter.sampling_timesteps(10).tolist()
    assert index.n_images == 1
    assert set(index.columns()["monosemanticity"].tolist()) != {0.0}  # of one image it is not known
    assert all(row["monosemanticity"] is None for row in index.query("SELECT monosemanticity FROM latents"))


def test_no_images(adapter, tmp_path):
    with pytest.raises(TideError, match="there are no images to make an index of; give at least one"):
        built(adapter, tmp_path, source=replace(scenes(adapter), n_images=0))


def test_what_is_no_source(adapter, tmp_path):
    with pytest.raises(TideError, match="data of type list are given"):
        built(adapter, tmp_path, source=[1])


# -- interrupted ------------------------------------------------------------------------------------------------


def test_what_a_killed_process_leaves_at_any_stage_is_taken_up(adapter, stages, uninterrupted, tmp_path):
    expected = contents(uninterrupted)
    for i, ((stage, done, _), path) in enumerate(stages):
        run = tmp_path / str(i)
        shutil.copytree(path, run)
        saved = max(0, done - 1) // 2 * 2 if stage == "images" else IMAGES
        assert first_report(adapter, run) == saved, stage
        assert contents(run) == expected, stage
        assert [path.name for path in run.iterdir()] == ["index"], stage


def test_an_error_at_any_stage_loses_nothing(adapter, stages, uninterrupted, tmp_path):
    expected = contents(uninterrupted)
    for i in (0, 2, 4, 5, len(stages) - 2, len(stages) - 1):
        left = [i]

        def stops(stage: str, done: int, total: int, left=left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Stopped

        with pytest.raises(Stopped):
            built(adapter, tmp_path / str(i), on_progress=stops)
        built(adapter, tmp_path / str(i))
        assert contents(tmp_path / str(i)) == expected


def test_what_a_stopped_call_had_still_to_write_does_not_reach_the_next_one(adapter, uninterrupted, tmp_path):
    def stops(stage: str, done: int, total: int) -> None:
        if done:
            raise Stopped

    other = tide.open_source("scenes", adapter, images=IMAGES, batch_size=1)
    with pytest.raises(Stopped) as error:  # its traceback holds the files
        built(adapter, tmp_path, source=other, on_progress=stops)
    built(adapter, tmp_path)
    del error
    gc.collect()
    assert contents(tmp_path) == contents(uninterrupted)


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_an_error_amid_a_batch(adapter, uninterrupted, tmp_path, monkeypatch, batch):
    whole, calls = IndexGathered._write_codes, []

    def stops(self: IndexGathered, n: int) -> None:
        calls.append(n)
        if len(calls) > batch:
            raise Stopped
        whole(self, n)

    monkeypatch.setattr(IndexGathered, "_write_codes", stops)
    with pytest.raises(Stopped):
        built(adapter, tmp_path)
    monkeypatch.setattr(IndexGathered, "_write_codes", whole)
    assert first_report(adapter, tmp_path) == 2 * batch
    assert contents(tmp_path) == contents(uninterrupted)


def test_interrupted_again_and_again(adapter, uninterrupted, tmp_path):
    """Every call reads two batches, and none is lost."""
    for reached in (0, 4):
        reports: list[int] = []

        def stops(stage: str, done: int, total: int, reports=reports) -> None:
            reports.append(done)
            if len(reports) == 3:
                raise Stopped

        with pytest.raises(Stopped):
            built(adapter, tmp_path, on_progress=stops)
        assert reports[0] == reached
    built(adapter, tmp_path)
    assert contents(tmp_path) == contents(uninterrupted)


BUILD = textwrap.dedent("""
    import sys
    import tide
    from pathlib import Path
    from tests.helpers.indexes import built, scenes
    import tide.index.building as building

    building.SAVED_AFTER = building.SAVED_SHARE = 0.0
    adapter = tide.load_adapter("scenes")
    print("begins", flush=True)
    built(adapter, Path(sys.argv[1]), source=scenes(adapter, 24, 1))
""")


@pytest.mark.slow
def test_kills_at_random_moments(tmp_path):
    adapter = tide.load_adapter("scenes")
    built(adapter, tmp_path / "whole", source=scenes(adapter, 24, 1))
    rng, kills = random.Random(0), 0
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    for _ in range(20):
        child = subprocess.Popen(
            [sys.executable, "-c", BUILD, tmp_path / "run"], stdout=subprocess.PIPE, text=True, env=environment
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "begins\n"
        time.sleep(rng.uniform(0.1, 1.5))
        os.kill(child.pid, signal.SIGKILL)
        kills += child.wait() == -signal.SIGKILL
        if index_of(tmp_path / "run").exists():
            break
    built(adapter, tmp_path / "run", source=scenes(adapter, 24, 1))
    assert kills >= 1
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


# -- whose state is not taken up --------------------------------------------------------------------------------


def test_the_state_of_the_same_is(adapter, half, uninterrupted):
    assert first_report(adapter, half) == 4
    assert contents(half) == contents(uninterrupted)


def of_another_k(adapter):
    return {"model": untrained(adapter, k=7)}  # of the same weights


@pytest.mark.parametrize(
    "other",
    [
        lambda adapter: {"model": untrained(adapter, seed=1)},
        of_another_k,
        lambda adapter: {"model": untrained(adapter, n_latents=48)},
        lambda adapter: {"source": scenes(adapter, IMAGES + 1)},
        lambda adapter: {"source": tide.open_source("scenes", adapter, images=IMAGES, batch_size=2)},
        lambda adapter: {"source": tide.open_source("scenes", adapter, images=IMAGES, scene_split="test", seed=3)},
        lambda adapter: {"seed": 1},
        lambda adapter: {"timesteps": torch.tensor([700, 300])},
        lambda adapter: {"timesteps": torch.tensor([700])},
    ],
    ids=["weights", "k", "latents", "number of images", "split", "scenes", "seed", "timestep", "timesteps"],
)
def test_the_state_of_another_is_not(adapter, half, tmp_path, other):
    options = other(adapter)
    assert first_report(adapter, half, **options) == 0
    built(adapter, tmp_path / "fresh", **options)
    assert contents(half) == contents(tmp_path / "fresh")


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        (lambda folder: None, 4),
        (lambda folder: Image.new("RGB", (8, 8), "white").save(first_of(folder)), 0),
        (lambda folder: list_captions(folder, [{"file_name": f"{i}.png", "text": "else"} for i in range(5)]), 0),
        (lambda folder: Image.new("RGB", (8, 8), "white").save(folder / "5.png"), 0),
    ],
    ids=["the same", "another image", "other captions", "one more"],
)
def test_the_state_of_a_folder_that_changed_is_not(adapter, tmp_path, change, taken):
    folder = make(tmp_path / "data", *(f"{i}.png" for i in range(5)))
    list_captions(folder, [{"file_name": f"{i}.png", "text": f"number {i}"} for i in range(5)])

    def source():
        return tide.open_source(folder, adapter, batch_size=2, size=(64, 64))

    def stops(stage: str, done: int, total: int) -> None:
        if done == 4:
            raise Stopped

    with pytest.raises(Stopped):
        built(adapter, tmp_path / "run", source=source(), on_progress=stops)
    change(folder)
    assert first_report(adapter, tmp_path / "run", source=source()) == taken
    built(adapter, tmp_path / "fresh", source=source())
    assert contents(tmp_path / "run") == contents(tmp_path / "fresh")


def first_of(folder: Path) -> Path:
    """The image that is read first."""
    adapter = tide.load_adapter("scenes")
    source = tide.open_source(folder, adapter, batch_size=1, size=(64, 64))
    next(iter(source))
    return folder / source.samples()[0].name


def cut(name: str, n: int):
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size - n)


def flipped(folder: Path) -> None:
    state = load_file(folder / STATE)
    state["mean_map"][3, 5] += 1
    save_file(state, folder / STATE)


def forged(folder: Path) -> None:
    state = load_file(folder / STATE)
    save_file({**state, "facts": torch.frombuffer(bytearray(b"{]"), dtype=torch.uint8)}, folder / STATE)


@pytest.mark.parametrize(
    "damage",
    [
        cut(STATE, 1),
        flipped,
        forged,
        lambda folder: save_file({"x": torch.ones(1)}, folder / STATE),
        lambda folder: (folder / STATE).write_bytes(b""),
        lambda folder: (folder / "peaks.safetensors").unlink(),
        lambda folder: os.truncate(folder / "codes.safetensors", 4000),
        lambda folder: shutil.copy(folder / "heights.safetensors", folder / "codes.safetensors"),
        lambda folder: os.truncate(folder / "labelled.safetensors", 300),
        lambda folder: os.truncate(folder / "pictures.bin", 1000),
        lambda folder: (folder / "pictures.bin").unlink(),
    ],
    ids=[
        *("state cut", "state changed", "no facts", "another file", "empty", "peaks gone", "codes cut"),
        *("codes of heights", "labelled cut", "pictures cut", "pictures gone"),
    ],
)
def test_damaged_state_is_not(adapter, half, uninterrupted, damage):
    damage(half / UNFINISHED)
    assert first_report(adapter, half) == 0
    assert contents(half) == contents(uninterrupted)


def test_what_a_longer_index_left_is_not_in_a_shorter_one(adapter, half, uninterrupted):
    folder = half / UNFINISHED
    (folder / "sheets").mkdir()
    (folder / "sheets" / "5.jpg").write_bytes(b"old")
    (folder / "index.sqlite").write_bytes(b"old")
    (folder / "index.sqlite-journal").write_bytes(b"old")
    (folder / STATE).unlink()
    assert first_report(adapter, half) == 0
    assert contents(half) == contents(uninterrupted)
    assert [path.name for path in half.iterdir()] == ["index"]


# -- an older index ---------------------------------------------------------------------------------------------


def test_an_older_index_stays_until_the_new_one_is_whole(adapter, tmp_path):
    old = built(adapter, tmp_path, source=scenes(adapter, 3)).facts
    before = contents(tmp_path)
    seen = []

    def looks(stage: str, done: int, total: int) -> None:
        seen.append(stage)
        assert contents(tmp_path) == before
        index = Index(tmp_path)
        assert index.facts == old
        assert index.picture(2).startswith(b"\xff\xd8")

    assert built(adapter, tmp_path, on_progress=looks).n_images == IMAGES
    assert {"images", "neighbours", "tables"} == set(seen)
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_an_older_index_that_was_moved_away_when_a_process_was_killed_is_put_back(adapter, tmp_path):
    built(adapter, tmp_path)
    before = contents(tmp_path)
    index_of(tmp_path).rename(_former(tmp_path))

    def stops(stage: str, done: int, total: int) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        built(adapter, tmp_path, on_progress=stops)
    assert contents(tmp_path) == before
    assert Index(tmp_path).n_images == IMAGES


def test_an_index_that_is_open_reads_on_what_it_had_opened(adapter, tmp_path):
    old = built(adapter, tmp_path, source=scenes(adapter, 3))
    place = old.place(2)
    built(adapter, tmp_path)
    assert (old.place(2).latents == place.latents).all()


# -- two at once ------------------------------------------------------------------------------------------------


def test_a_second_process_gets_one_line(adapter, half, uninterrupted):
    before = (half / UNFINISHED / STATE).read_bytes()
    with (
        lock_folder(half / UNFINISHED),
        pytest.raises(TideError, match=r"index-unfinished is being written by .*; wait for it") as error,
    ):
        built(adapter, half)
    assert "\n" not in str(error.value)
    assert (half / UNFINISHED / STATE).read_bytes() == before
    assert first_report(adapter, half) == 4


def test_who_comes_while_the_first_one_ends_is_not_disturbed(adapter, tmp_path, monkeypatch):
    """The folder in which it is made is not removed from under a process that has begun there."""
    from tide.index import building

    def begun(folders: list[Path]) -> None:
        (tmp_path / UNFINISHED / "begun").write_text("")
        removed(folders)

    removed = building.remove_empty
    monkeypatch.setattr(building, "remove_empty", begun)
    built(adapter, tmp_path)
    assert (tmp_path / UNFINISHED / "begun").exists()


def test_its_facts_say_what_was_read(uninterrupted, adapter):
    facts = json.loads((index_of(uninterrupted) / "index.json").read_text())
    model = untrained(adapter)
    assert (facts["n_latents"], facts["n_images"], facts["n_tokens"]) == (LATENTS, IMAGES, 64)
    assert (facts["grid"], facts["map"], facts["timesteps"]) == ([8, 8], [8, 8], TIMESTEPS.tolist())
    assert (facts["block"], facts["seed"], facts["labels"]) == (6, 0, "masks")
    assert facts["sae_config"]["k"] == model.config.k
    assert (facts["picture"], facts["tile"]) == ([64, 64], [64, 64])
