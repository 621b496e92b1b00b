"""Peaks in pieces: the same of a whole tensor, of an array and of a stream; damaged ones are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tide.errors import TideError
from tide.interpretation.naming import pieces
from tide.interpretation.naming.pieces import pieces_of

PEAKS = torch.rand(5, 7, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("whole", [PEAKS, PEAKS.double(), PEAKS.numpy()], ids=["float32", "float64", "numpy"])
def test_a_whole_tensor_is_divided(monkeypatch, whole):
    monkeypatch.setattr(pieces, "PIECE", 3)
    found = list(pieces_of(whole, 5))
    assert [latents for latents, _ in found] == [[0, 1, 2], [3, 4, 5], [6]]
    assert torch.equal(torch.cat([columns for _, columns in found], dim=1), PEAKS)


def test_pieces_are_read_one_at_a_time():
    read = []

    def stream():
        for latents in ([4, 2], torch.tensor([0]), np.array([1])):
            read.append(latents)
            yield latents, PEAKS[:, torch.as_tensor(latents)].numpy()

    found = pieces_of(stream())
    latents, columns = next(found)
    assert len(read) == 1
    assert latents == [4, 2]
    assert torch.equal(columns, PEAKS[:, [4, 2]])
    assert [latents for latents, _ in found] == [[0], [1]]


@pytest.mark.parametrize(
    ("peaks", "fault"),
    [
        (PEAKS[0], r"peaks are \[7\]; give \[images, latents\]"),
        (PEAKS[:4], r"peaks of 7 latents are \[4, 7\]; give \[images, latents\] of 5 images"),
        ([([1, 2], PEAKS)], r"peaks of 2 latents are \[5, 7\]; give"),
        ([([1], PEAKS[:, 0])], r"peaks of 1 latents are \[5\]; give"),
        ([([1], PEAKS[:, :1] * torch.nan)], "peaks hold NaN or infinity; check the latents"),
        ([([1], PEAKS[:, :1]), ([1], PEAKS[:, :1])], "peaks of a latent are given twice; give each latent once"),
        ([([1, 1], PEAKS[:, :2])], "peaks of a latent are given twice"),
    ],
    ids=["one row", "images", "latents", "flat", "nan", "twice", "twice at once"],
)
def test_what_are_no_peaks(peaks, fault):
    with pytest.raises(TideError, match=fault):
        list(pieces_of(peaks, 5))


def test_pieces_have_the_same_images():
    with pytest.raises(TideError, match=r"are \[4, 1\]; give \[images, latents\] of 5 images"):
        list(pieces_of([([0], PEAKS[:, :1]), ([1], PEAKS[:4, :1])]))
