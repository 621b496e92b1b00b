"""Which files of a folder are pictures."""

from __future__ import annotations

import os

from tests.helpers.image_folders import make
from tide.images.files import files_of


def pictures(folder) -> list[str]:
    return files_of(folder).pictures


def test_pictures_of_all_suffixes_and_folders_sorted_by_their_parts(tmp_path):
    make(tmp_path, "b.PNG", "a.jpeg", "sub/c.webp", "sub-2/d.bmp", "e.jfif")
    assert pictures(tmp_path) == ["a.jpeg", "b.PNG", "e.jfif", "sub/c.webp", "sub-2/d.bmp"]


def test_hidden_files_and_those_of_other_programs_are_none(tmp_path):
    make(tmp_path, "a.png", "._a.png", ".cache/b.png", "__MACOSX/c.png", "@eaDir/d.png", "sub/._e.png")
    (tmp_path / ".metadata.jsonl").write_text("")
    assert pictures(tmp_path) == ["a.png"]
    assert files_of(tmp_path).lists == []


def test_links_are_followed_but_not_in_circles(tmp_path):
    make(tmp_path / "elsewhere", "x.png", "y.png")
    folder = make(tmp_path / "photos", "a.png")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "b.png").symlink_to(tmp_path / "elsewhere/x.png")
    (folder / "broken.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "up").symlink_to(folder)
    (tmp_path / "elsewhere/back").symlink_to(folder)
    assert pictures(folder) == ["a.png", "b.png", "linked/x.png", "linked/y.png"]


def test_pipes_and_folders_with_a_suffix_are_none(tmp_path):
    make(tmp_path, "a.png", "c.png/d.png")
    os.mkfifo(tmp_path / "pipe.png")  # reading it would wait for ever
    assert pictures(tmp_path) == ["a.png", "c.png/d.png"]


def test_pictures_of_other_formats_are_counted(tmp_path):
    make(tmp_path, "a.png")
    for name in ("b.tif", "c.TIF", "d.heic", "e.mp4"):
        (tmp_path / name).write_bytes(b"x")
    found = files_of(tmp_path)
    assert dict(found.unread) == {".tif": 2, ".heic": 1}
    assert found.others == {"e.mp4"}
