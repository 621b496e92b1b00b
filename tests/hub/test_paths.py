"""Absolute paths are shortened to their last part, and addresses lose their keys; nothing else changes."""

from __future__ import annotations

import pytest

from tide.hub.paths import without_paths


@pytest.mark.parametrize(
    ("path", "left"),
    [
        ("/home/me/photos", "photos"),
        ("~/photos/", "photos"),
        ("C:\\Users\\me\\photos", "photos"),
        ("D:/a/b", "b"),
        ("\\\\server\\me\\photos", "photos"),
        ("file:///home/me/photos", "photos"),
        ("/home/me/two\nlines", "two\nlines"),
        ("concepts=/home/me/words.txt", "concepts=words.txt"),
    ],
    ids=["Linux", "home", "Windows", "Windows with slashes", "share", "address", "two lines", "after a name"],
)
def test_paths_lose_their_folders(path, left):
    assert without_paths({"data": [path], path: 1}) == {"data": [left], left: 1}


@pytest.mark.parametrize(
    ("address", "left"),
    [
        ("s3://key:secret@bucket/store", "s3://bucket/store"),
        ("https://host:8080/store?X-Amz-Signature=secret#part", "https://host:8080/store"),
        ("s3://bucket/store", "s3://bucket/store"),
        ("http://[broken/store", "http://[broken/store"),
    ],
)
def test_addresses_lose_their_keys(address, left):
    assert without_paths([address]) == [left]


@pytest.mark.parametrize(
    "value", ["PixArt-alpha/PixArt-XL-2-1024-MS", "scenes", "s3://bucket/store", "a: b", "k=4", "and/or", 1.5, None]
)
def test_other_values_stay(value):
    assert without_paths([value]) == [value]
