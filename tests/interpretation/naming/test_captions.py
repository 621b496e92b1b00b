"""Names from captions are the labels of the atlas, latent by latent."""

from __future__ import annotations

import pytest
import torch

from tide.errors import TideError
from tide.interpretation.names import Score
from tide.interpretation.naming import name_by_captions
from tide.interpretation.word_labels import label_words

N = 120
AT = "2026-11-28T09:00:00Z"


@pytest.fixture
def captions() -> list[str]:
    draw = torch.rand(N, 2, generator=torch.Generator().manual_seed(0)) < 0.5
    return [f"a {'red' if red else 'blue'} {'house' if house else 'tree'}" for red, house in draw.tolist()]


@pytest.fixture
def peaks(captions) -> torch.Tensor:
    noise = torch.rand(N, 4, generator=torch.Generator().manual_seed(1))
    noise[:, 1] += torch.tensor(["red" in text for text in captions])
    noise[:, 3] += 0.7 * torch.tensor(["tree" in text for text in captions])
    return noise


def test_names_are_words_with_their_score_on_the_other_half(captions, peaks):
    found = name_by_captions(peaks, captions, at=AT)
    labels = label_words(peaks, captions)
    assert {latent: (entry.name, entry.by, entry.at) for latent, entry in found.items()} == {
        1: ("red", "captions", AT),
        3: ("tree", "captions", AT),
    }
    assert {latent: entry.score for latent, entry in found.items()} == {
        latent: Score(labels[latent].auroc, N // 2) for latent in (1, 3)
    }


def test_pieces_give_the_same(captions, peaks):
    pieces = (([latent], peaks[:, [latent]]) for latent in (3, 0, 1, 2))
    assert name_by_captions(pieces, captions, at=AT) == name_by_captions(peaks, captions, at=AT)


def test_captions_that_tell_nothing_name_nothing(peaks):
    assert name_by_captions(peaks, [""] * N) == {}


def test_a_caption_for_each_image(captions, peaks):
    with pytest.raises(TideError, match=rf"give \[images, latents\] of {N - 1} images"):
        name_by_captions(peaks, captions[1:])
