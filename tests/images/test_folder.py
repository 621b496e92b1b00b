"""A folder as a set of images: what it holds, and what is said of it."""

from __future__ import annotations

import hashlib

import pytest

from tests.helpers.image_folders import make, save
from tide.errors import TideError, TideWarning
from tide.images.folder import Folder


def test_names_captions_digests_and_pictures(tmp_path):
    folder = make(tmp_path / "photos", "b.png", "a.png")
    (folder / "b.txt").write_text("a tree\n")
    images = Folder(folder, "photos/")
    assert [images.name(i) for i in range(len(images))] == ["a.png", "b.png"]
    assert [images.caption(i) for i in range(2)] == ["", "a tree"]
    assert images.digest(0) == hashlib.sha256((folder / "a.png").read_bytes()).hexdigest()[:16]
    assert images.picture(0).getpixel((0, 0)) == (1, 0, 100)
    assert images.without_caption() == 1


def test_pictures_of_other_formats_are_said(tmp_path):
    folder = make(tmp_path / "photos", "a.png")
    (folder / "b.tif").write_bytes(b"x")
    with pytest.warns(TideWarning) as warned:
        Folder(folder, "photos/")
    assert [str(each.message) for each in warned] == [
        f"1 picture of {folder} is not read (1 of .tif); formats that are read: .png, .jpg, .jpeg, .jpe, .jfif, .webp, "
        ".bmp"
    ]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere", "is not a folder; give one that holds images"),
        ("empty", "holds no images; add some (.png, .jpg, .jpeg, .jpe, .jfif, .webp, .bmp)"),
        ("other", "holds no images (2 of .gif); add some (.png, .jpg, .jpeg, .jpe, .jfif, .webp, .bmp)"),
    ],
)
def test_folders_without_images(tmp_path, name, said):
    for folder in ("empty", "other"):
        (tmp_path / folder).mkdir()
    for file in ("a.gif", "b.GIF"):
        (tmp_path / "other" / file).write_bytes(b"x")
    with pytest.raises(TideError) as raised:
        Folder(tmp_path / name, "photos/")
    assert str(raised.value) == f"{tmp_path / name} {said}"


def test_a_damaged_image_is_named(tmp_path):
    folder = make(tmp_path / "photos", "a.png")
    (folder / "b.png").write_bytes(b"no image")
    images = Folder(folder, "photos/")
    with pytest.raises(TideError, match=r"b\.png is not a readable image"):
        images.picture(1)
    save(folder / "b.png")
    assert images.picture(1).size == (64, 64)
