"""What comes from the Hub, into its cache or a folder, and what is refused."""

from __future__ import annotations

import json
import logging
import logging.handlers

import pytest
import torch

import tide
from tide.errors import TideError
from tide.hub import FILES
from tide.sae import TIDE


@pytest.fixture
def shared(hub, token, run, monkeypatch) -> str:
    tide.push(run, "me/tide", subfolder="block-26")
    monkeypatch.delenv("HF_TOKEN")
    hub.asked.clear()
    return "me/tide"


def test_the_model_is_the_one_that_was_sent(shared, run):
    model, sent = TIDE.from_pretrained(shared, subfolder="block-26", block=26), TIDE.from_pretrained(run)
    assert model.config.pipeline == "PixArt"
    assert all(torch.equal(value, sent.state_dict()[name]) for name, value in model.state_dict().items())


def test_nothing_but_a_checkpoints_files_is_fetched(hub, shared):
    hub.files(shared)["block-26/evil.py"] = b"print()"
    hub.files(shared)["block-26/model.pkl"] = b"\x80"
    TIDE.from_pretrained(shared, subfolder="block-26")
    got = {path.rpartition("/")[2] for method, path in hub.asked if method == "GET" and "/resolve/" in path}
    assert "config.json" in got
    assert got <= set(FILES)


def test_what_the_cache_has_is_not_fetched_again_and_serves_offline(hub, shared, monkeypatch):
    TIDE.from_pretrained(shared, subfolder="block-26")
    hub.asked.clear()
    TIDE.from_pretrained(shared, subfolder="block-26")
    assert not [path for method, path in hub.asked if method == "GET" and "/resolve/" in path]
    hub.asked.clear()
    TIDE.from_pretrained(shared, subfolder="block-26", local_files_only=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    TIDE.from_pretrained(shared, subfolder="block-26")
    assert hub.asked == []


def test_a_pulled_folder_is_a_checkpoint_that_says_where_it_came_from(hub, shared, tmp_path):
    out = tide.pull(shared, tmp_path / "out", subfolder="block-26", revision="main")
    assert TIDE.from_pretrained(out).config.block == 26
    commit = hub.repositories[shared].commit("main")
    origin = {"repository": "me/tide", "subfolder": "block-26", "revision": "main", "commit": commit}
    assert json.loads((out / "hub.json").read_text()) == origin
    assert not [each for each in out.rglob("*") if each.is_symlink()]
    with pytest.raises(TideError, match=r"already holds config\.json; choose another folder"):
        tide.pull(shared, out, subfolder="block-26")


def test_no_file_of_a_folder_is_overwritten(shared, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(TideError, match=r"already holds README\.md; choose another folder"):
        tide.pull(shared, tmp_path, subfolder="block-26")
    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.parametrize("file", ["block-3/names.jsonl", "hub.json"])
def test_no_file_of_a_set_is_overwritten(hub, token, blocks, tmp_path, file):
    tide.push(blocks, "me/set")
    mine = tmp_path / "out" / file
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(TideError, match=f"out already holds {file}; choose another folder"):
        tide.pull("me/set", tmp_path / "out")
    assert [each for each in (tmp_path / "out").rglob("*") if each.is_file() and ".lock" not in each.name] == [mine]
    assert mine.read_text() == "mine"


def test_the_folders_of_blocks_are_a_set(hub, token, blocks, tmp_path):
    tide.push(blocks, "me/set")
    out = tide.pull("me/set", tmp_path / "out")
    assert sorted(each.name for each in out.iterdir() if each.is_dir()) == ["block-26", "block-3"]
    with pytest.raises(TideError, match="me/set holds the checkpoints of block-26, block-3; give one of them"):
        TIDE.from_pretrained("me/set")
    assert TIDE.from_pretrained(tide.pull("me/set"), subfolder="block-3").config.block == 3


def test_a_subfolder_here(blocks):
    assert TIDE.from_pretrained(blocks, subfolder="block-3").config.block == 3


@pytest.mark.parametrize("files", [{}, {"config.json": b'{"model_type": "t5"}', "model.safetensors": b"x"}])
def test_a_repository_that_is_no_tide(hub, files, tmp_path):
    hub.add("you/t5", files)
    refused = "^you/t5 holds no checkpoint of TIDE; give another repository, or a subfolder that holds one$"
    with pytest.raises(TideError, match=refused):
        TIDE.from_pretrained("you/t5")
    with pytest.raises(TideError, match=refused):
        tide.pull("you/t5", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_there_is_said_in_one_line(shared, tmp_path):
    said = logging.handlers.BufferingHandler(100)
    log = logging.getLogger("huggingface_hub")
    log.addHandler(said)
    try:
        with pytest.raises(TideError, match="me/tide/block-7 holds no checkpoint of TIDE"):
            tide.pull(shared, tmp_path / "out", subfolder="block-7")
    finally:
        log.removeHandler(said)
    assert [each.getMessage() for each in said.buffer if each.levelno >= logging.WARNING] == []


def test_a_config_that_is_no_json_names_the_repository(hub):
    hub.add("you/torn", {"config.json": b"{", "model.safetensors": b"x"})
    with pytest.raises(TideError, match=r"^you/torn holds a checkpoint that is not whole: "):
        tide.pull("you/torn")


def test_a_private_one_without_a_token_and_one_that_is_not_there(hub, run, token, monkeypatch):
    tide.push(run, "me/secret", private=True)
    assert TIDE.from_pretrained("me/secret").config.block == 26
    monkeypatch.delenv("HF_TOKEN")
    for name in ("me/secret", "me/none"):
        with pytest.raises(TideError) as found:
            tide.pull(name, cache_dir=run.parent / "other cache")
        assert str(found.value) == (
            f"{name} does not exist on the Hub, or is private; check the name, or log in (`hf auth login`) or set "
            "HF_TOKEN"
        )


def test_a_gated_one(hub):
    hub.add("you/gated", {}, gated=True)
    with pytest.raises(TideError, match="you/gated is gated; ask for access on its page, then log in"):
        tide.pull("you/gated")


def test_a_revision_that_is_not_there(shared):
    with pytest.raises(TideError, match="me/tide has no revision v9; give a branch, a tag or a commit of it"):
        tide.pull(shared, revision="v9")


@pytest.mark.parametrize("how", ["an argument", "the environment"])
def test_a_cache_that_lacks_it(hub, shared, how, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", how == "the environment")
    with pytest.raises(TideError, match="me/tide is not in the cache and the Hub is not asked or not reached; fetch"):
        tide.pull(shared, local_files_only=how == "an argument")
    assert hub.asked == []


def test_an_older_huggingface_hub_lacks_an_error(hub, monkeypatch):
    monkeypatch.delattr("huggingface_hub.errors.CachedRepoTreeNotFoundError")
    with pytest.raises(TideError, match="me/tide does not exist on the Hub, or is private"):
        tide.pull("me/tide")
    with pytest.raises(TideError, match="me/tide is not in the cache"):
        tide.pull("me/tide", local_files_only=True)


def test_a_damaged_checkpoint_names_the_repository(hub, run, token, tmp_path):
    tide.push(run, "me/tide")
    hub.files("me/tide")["model.safetensors"] = b"not tensors"
    with pytest.raises(TideError, match=r"me/tide holds a checkpoint that is not whole: .*not a readable safetensors"):
        tide.pull("me/tide", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_hub_that_is_not_there(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(TideError, match="me/tide"):
        tide.pull("me/tide", tmp_path / "out")
    assert not (tmp_path / "out").exists()
