"""Absolute paths are shortened to their last part; nothing else changes."""

from __future__ import annotations

import pytest

from tide.hub.paths import without_paths


@pytest.mark.parametrize(
    ("path", "left"),
    [("/home/me/photos", "photos"), ("~/photos/", "photos"), ("C:\\Users\\me\\photos", "photos"), ("D:/a/b", "b")],
    ids=["Linux", "home", "Windows", "Windows with slashes"],
)
def test_paths_lose_their_folders(path, left):
    assert without_paths({"data": [path], path: 1}) == {"data": [left], left: 1}


@pytest.mark.parametrize(
    "value", ["PixArt-alpha/PixArt-XL-2-1024-MS", "scenes", "s3://bucket/store", "a: b", 1.5, None]
)
def test_other_values_stay(value):
    assert without_paths([value]) == [value]
