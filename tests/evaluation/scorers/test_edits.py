"""Scores of edited images beside the unedited one."""

from __future__ import annotations

import pytest
from PIL import Image

from tide.evaluation.scorers import StubScorer, score_edits
from tide.images.tensors import to_tensor

GREYS = [Image.new("RGB", (24, 16), (value, value, 255 - value)) for value in (10, 10, 60, 200)]


def test_every_image_has_a_row():
    stub = StubScorer()
    rows = score_edits(GREYS[0], GREYS[1:], clip=stub, lpips=stub, texts={"prompt": "a house", "towards": "a tree"})
    tensors = [to_tensor(image, (16, 24))[None] for image in GREYS]
    for row, tensor in zip(rows, tensors, strict=True):
        expected = {
            name: float(stub.similarity(tensor, [t])) for name, t in (("prompt", "a house"), ("towards", "a tree"))
        }
        assert row["clip"] == pytest.approx(expected)
    assert "lpips" not in rows[0]
    assert [row["lpips"] for row in rows[1:]] == pytest.approx(
        [float((t - tensors[0]).square().mean()) for t in tensors[1:]]
    )
    assert rows[1]["lpips"] == 0


def test_what_is_not_asked_for_is_not_scored():
    assert score_edits(GREYS[0], GREYS[1:]) == [{}] * 4
    assert score_edits(GREYS[0], GREYS[1:2], clip=StubScorer()) == [{}, {}]
    assert score_edits(GREYS[0], GREYS[1:2], lpips=StubScorer(), texts={"prompt": "a"}) == [{}, {"lpips": 0.0}]
