"""A path or a name is told apart without reading it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.image_folders import make
from tide.images.kinds import kind_of


@pytest.mark.parametrize("spec", ["./photos", "/photos", "../photos", ".", Path("owner/photos")])
def test_what_can_only_be_a_path_is_a_folder(spec):
    assert kind_of(spec) == "folder"


@pytest.mark.parametrize("spec", ["owner/photos", "mnist", "photos"])
def test_anything_else_that_is_not_there_is_a_name(spec):
    assert kind_of(spec) == "named"


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ((), "folder"),
        (("metadata.parquet",), "folder"),
        (("state.json", "dataset_info.json"), "saved"),
        (("dataset_dict.json",), "saved"),
        (("data/train-0.parquet", "README.md"), "saved"),
        ((".cache/x.parquet",), "folder"),
    ],
)
def test_folders_by_what_is_in_them(tmp_path, files, kind):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert kind_of(tmp_path) == kind


def test_parquet_beside_pictures_is_no_data_set(tmp_path):
    make(tmp_path, "a.png")
    (tmp_path / "embeddings.parquet").write_bytes(b"")
    assert kind_of(tmp_path) == "folder"
    assert kind_of(tmp_path / "embeddings.parquet") == "saved"
