"""Runs found in folders, and what becomes of them while they are open."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tide.browser.runs import find_runs
from tide.errors import TideError
from tide.index import index_of
from tide.runs import Contents, write_run
from tide.sae import TIDE, TIDEConfig


def checkpoint(folder: Path) -> None:
    """A plain SAE without an index."""
    TIDE(TIDEConfig(8, 16, 2, block=1, pipeline="scenes")).save_pretrained(folder)


def atlas(made: Path, folder: Path, recorded: object = None) -> Path:
    """An index without weights, and a run.json that says where these are."""
    shutil.copytree(index_of(made), index_of(folder))
    write_run(folder, Contents(kind="atlas", autoencoder={} if recorded is None else {"folder": recorded}))
    return folder


def found(*paths: Path) -> list[tuple[str, str]]:
    return [(run.id, run.name) for run in find_runs(paths)]


def test_a_checkpoint(made):
    (run,) = find_runs([made])
    assert (run.id, run.name, run.folder, run.checkpoint, run.state) == ("tide", "tide", made, made, "ready")
    said = run.described()
    assert (said["block"], said["nLatents"], said["kind"], said["steers"]) == (6, 96, "TIDE", True)
    assert (said["index"]["state"], run.pipeline) == ("ready", "scenes")


def test_the_folder_of_here_has_a_name(made, monkeypatch):
    monkeypatch.chdir(made)
    assert found(Path(".")) == [("tide", "tide")]
    monkeypatch.chdir(index_of(made))
    assert found(Path("..")) == [("tide", "tide")]


def test_a_set_of_blocks_in_their_order(tmp_path):
    for block in (10, 2):
        checkpoint(tmp_path / "set" / f"block-{block}")
    (tmp_path / "set" / "block-3").mkdir()  # nothing was saved there yet
    expected = [("block-2", "block-2"), ("block-10", "block-10")]
    assert found(tmp_path / "set") == expected
    assert [name for _, name in found(tmp_path)] == ["set/block-2", "set/block-10"]


def test_an_atlas_and_its_checkpoint(made, tmp_path):
    (run,) = find_runs([atlas(made, tmp_path / "one", str(made))])
    assert (run.checkpoint, run.described()["steers"]) == (made, True)


@pytest.mark.parametrize("recorded", [None, "/none/gone", 5, ["a"], "a\0b"])
def test_an_atlas_whose_checkpoint_is_elsewhere(made, tmp_path, recorded):
    (run,) = find_runs([atlas(made, tmp_path / "one", recorded)])
    said = run.described()
    assert (run.checkpoint, said["steers"], said["kind"], said["block"]) == (None, False, "TIDE", 6)


def test_a_folder_of_all_of_these(made, tmp_path):
    """A TIDE comes first, the plain ones and what has no weights after it, each by name."""
    atlas(made, tmp_path / "all" / "atlas")
    checkpoint(tmp_path / "all" / "sae")
    shutil.copytree(made, tmp_path / "all" / "tide")
    checkpoint(tmp_path / "all" / ".hidden")
    (tmp_path / "all" / "empty").mkdir()
    (tmp_path / "all" / "notes.txt").write_text("x")
    assert [name for _, name in found(tmp_path / "all")] == ["tide", "atlas", "sae"]


def test_ids_are_unique_and_safe_in_an_address(tmp_path):
    names = ["a b", "a?b", "a#b", "A-B", "é/x", "ü/x", "..x", "%2e%2e"]
    for name in names:
        checkpoint(tmp_path / name)
    runs = find_runs([tmp_path / name for name in names])
    ids = [run.id for run in runs]
    assert len(set(ids)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9-]+", each) for each in ids), ids
    assert ids[:4] == ["a-b", "a-b-2", "a-b-3", "a-b-4"]


def test_a_run_that_is_named_twice_is_one(made):
    assert len(find_runs([made, made.parent, made / ".." / made.name])) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", r"empty holds no checkpoint and no index; give the folder that tide train or tide demo wrote"),
        ("none", r"none is not a folder; give the folder of a checkpoint, or one with several"),
        ("file", r"file is not a folder; give the folder of a checkpoint"),
    ],
)
def test_folders_without_any(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(TideError, match=message):
        find_runs([tmp_path / name])


def test_without_any_folder():
    with pytest.raises(TideError, match="no folder is named; give that of a checkpoint"):
        find_runs([])


def test_deleted_while_open(run):
    assert run.index.n_latents == 96
    shutil.rmtree(run.folder)
    with pytest.raises(TideError, match="was deleted or moved; start tide browse again"):
        _ = run.index
    said = run.described()
    assert (said["index"]["state"], said["name"]) == ("failed", "tide")
    assert said["index"]["message"]


def test_the_index_alone_deleted_while_open(run):
    assert run.index.n_latents == 96
    shutil.rmtree(index_of(run.folder))
    with pytest.raises(TideError, match="has no index yet; wait for it, or make one"):
        _ = run.index
    said = run.described()
    assert (said["index"]["state"], said["block"]) == ("failed", 6)


def test_made_anew_while_open(run, make_run, model):
    """The new index is used, whichever way it came."""
    before = run.index
    assert run.index is before
    make_run(model, run.folder, images=4)
    assert (before.n_images, run.index.n_images) == (8, 4)
    assert run.index is run.index


def test_an_index_that_comes_while_open(made, folder):
    shutil.rmtree(index_of(folder))
    (run,) = find_runs([folder])
    assert run.described()["index"]["state"] == "missing"
    shutil.copytree(index_of(made), index_of(folder))
    assert run.described()["index"]["state"] == "ready"
    assert run.index.n_images == 8
