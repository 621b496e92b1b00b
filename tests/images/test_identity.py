"""What tells samples apart, and how a difference is said."""

from __future__ import annotations

import pytest
import torch

from tide.images.identity import Sample, digest, digest_of, what_changed


def samples(text: str) -> list[Sample]:
    """``a1x b2y``: name, image, caption."""
    return [Sample(*each) for each in text.split()]


@pytest.mark.parametrize(
    ("now", "what"),
    [
        ("a1x b2y c3z", None),
        ("a1x b2y c3z d4x", None),
        ("a1x b2y", None),
        ("a1x d4x b2y c3z", "d was added before b"),
        ("d4x a1x b2y c3z", "d was added before a"),
        ("b2y c3z", "a is gone"),
        ("a1x c3z d4x", "b is gone"),
        ("a1x b5y c3z", "b is another image"),
        ("a1x b2q c3z", "the caption of b is another one"),
        ("a1x b5q c3z", "b is another image"),
    ],
)
def test_what_changed(now, what):
    before = dict(enumerate(samples("a1x b2y c3z")))
    assert what_changed(before, samples(now)) == what


def test_places_that_nothing_is_recorded_of_are_not_compared():
    assert what_changed({2: Sample("c", "3", "z")}, samples("q8x r9y c3z")) is None
    assert what_changed({2: Sample("c", "3", "z")}, samples("q8x r9y c4z")) == "c is another image"


def test_digests():
    assert digest("a") == digest(b"a") == "ca978112ca1bbdca"
    assert digest(torch.zeros(2, 3)) == digest(torch.zeros(3, 2).T) != digest(torch.zeros(2, 4))
    assert digest("caf\udce9")  # a file name that is not UTF-8
    assert digest_of(samples("a1x b2y")) != digest_of(samples("b2y a1x"))
    assert digest_of([Sample("a", "b", "")]) != digest_of([Sample("", "a", "b")])
