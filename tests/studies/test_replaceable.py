"""Which earlier trainings a study replaces."""

from __future__ import annotations

import json

import pytest

from tide.errors import TideError
from tide.studies.demo import demo
from tide.studies.reconstruction import check_replaceable


def training(folder, source) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "training.json").write_text(json.dumps({"config": {}, "history": [], "source": source}))


@pytest.mark.parametrize(
    "source",
    [
        pytest.param({"stores": [], "buffer_rows": 65536}, id="of stores"),
        pytest.param(None, id="of no stated source"),
    ],
)
@pytest.mark.parametrize("name", ["sae", "tide"])
def test_the_demo_does_not_replace_a_training_of_another_command(tmp_path, name, source):
    training(tmp_path / name, source)
    with pytest.raises(TideError, match=f"{name} holds a training of another command; choose another folder$"):
        demo(tmp_path, fast=True, say=lambda line: pytest.fail(f"the demo began: {line}"))


def test_a_checkpoint_alone_is_not_replaced(tmp_path):
    training(tmp_path / "tide", {})
    (tmp_path / "tide/training.json").unlink()
    with pytest.raises(TideError, match="holds a training of another command"):
        check_replaceable(tmp_path / "tide")


def test_a_training_on_a_pool_is_replaced(tmp_path):
    training(tmp_path / "tide", {"rows": 2, "places": "0123"})
    check_replaceable(tmp_path / "tide")


def test_a_new_folder_is_no_training(tmp_path):
    check_replaceable(tmp_path / "tide")
