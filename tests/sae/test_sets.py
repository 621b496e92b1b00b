"""Sets of checkpoints: which folders are members, and one line for those that do not belong together."""

from __future__ import annotations

from pathlib import Path

import pytest

from tide.errors import TideError
from tide.sae import TIDE, TIDEConfig
from tide.sae.sets import members, one_of


def save(folder: Path, block: int, **options) -> None:
    where = {"family": "pixart", "pipeline": "some/model", "block": block, **options}
    TIDE(TIDEConfig(6, 20, 3, **where)).save_pretrained(folder)


@pytest.fixture
def folder(tmp_path) -> Path:
    for block in (10, 2):
        save(tmp_path / "set" / f"block-{block}", block)
    return tmp_path / "set"


def test_members_are_found_by_block(folder):
    assert list(members(folder).items()) == [(2, folder / "block-2"), (10, folder / "block-10")]
    assert members(folder, [10]) == {10: folder / "block-10"}
    assert one_of(folder) == folder / "block-2"


def test_a_checkpoint_is_no_set_whatever_lies_in_it(folder):
    save(folder, 5)
    assert members(folder) == {}
    assert one_of(folder) == folder


def test_a_block_that_is_not_there(folder):
    with pytest.raises(TideError, match=rf"^{folder} holds no block 3; it holds 2, 10$"):
        members(folder, [2, 3])


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_member_that_is_half_written(folder, name):
    (folder / "block-10" / name).unlink()
    with pytest.raises(TideError, match=rf"^{folder}/block-10 is not a whole checkpoint \(.*\); train it again$"):
        members(folder)
    assert list(members(folder, [2])) == [2]


def test_a_truncated_member(folder):
    weights = folder / "block-2" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:40])
    with pytest.raises(TideError, match=rf"^{folder}/block-2 is not a whole checkpoint \("):
        members(folder)


def test_a_first_member_without_a_config_is_passed_over(folder):
    (folder / "block-2" / "config.json").unlink()
    assert one_of(folder) == folder / "block-10"


def test_a_member_of_another_block(folder):
    (folder / "block-10").rename(folder / "block-11")
    with pytest.raises(
        TideError, match=rf"^{folder}/block-11 holds a checkpoint of block 10; name its folder block-10$"
    ):
        members(folder)


@pytest.mark.parametrize("field", [{"family": "flux"}, {"pipeline": "other/model"}, {"tensor": "attention"}], ids=str)
def test_members_that_disagree(folder, field):
    save(folder / "block-4", 4, **field)
    ((name, value),) = field.items()
    with pytest.raises(TideError) as error:
        members(folder)
    assert str(error.value).startswith(f"{folder}/block-4 is of the {name} {value!r} and block-2 beside it of ")
    assert "\n" not in str(error.value)
