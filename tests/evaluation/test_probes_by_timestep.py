"""Probes by timestep: a feature that is a concept at one timestep is found there alone."""

from __future__ import annotations

import pytest
import torch

from tide.evaluation.block_tokens import BlockTokens
from tide.evaluation.concept_labels import Labels, label_images, label_tokens
from tide.evaluation.probes_by_timestep import probes_by_timestep

D, N_IMAGES, N_TOKENS = 6, 20, 12
CPU = torch.device("cpu")


def side(seed: int) -> tuple[BlockTokens, torch.Tensor]:
    """Channel 2 is the concept at the first timestep, and noise at the second; half of it is in channel 4 there."""
    generator = torch.Generator().manual_seed(seed)
    shows = torch.rand(N_IMAGES, N_TOKENS, generator=generator) < 0.4
    x = torch.randn(2, N_IMAGES, N_TOKENS, D, generator=generator)
    x[0, ..., 2] += 20 * shows
    x[1, ..., 4] += shows
    return BlockTokens(torch.tensor([100.0, 900.0]), x), shows


def raw(x, position):
    return x


def test_where_a_concept_is_plain():
    (fit, shown), (measured, there) = side(0), side(1)
    labels = Labels(["red"], shown.flatten()[:, None], there.flatten()[:, None], True, ["colour"])
    found = probes_by_timestep(raw, fit, measured, labels, CPU)
    assert found["1"]["timestep"]["100"]["auroc"] == pytest.approx(1, abs=1e-6)
    assert 0.6 < found["1"]["timestep"]["900"]["auroc"] < 0.9
    assert found["1"]["concepts"]["red"] == pytest.approx(found["1"]["auroc"])
    assert found["1"]["errors"]["auroc"] == float("inf")  # of a single concept


def test_of_images_a_feature_is_its_mean_over_the_tokens():
    """A shift that no token shows clearly, and the mean of many does."""
    generator = torch.Generator().manual_seed(2)
    tokens, shows = [], []
    for _ in range(2):
        shown = torch.arange(N_IMAGES) % 2 == 0
        x = torch.randn(1, N_IMAGES, 400, D, generator=generator)
        x[..., 3] += 0.5 * shown[None, :, None]  # ten errors of a mean of 400
        tokens.append(BlockTokens(torch.tensor([100.0]), x))
        shows.append(shown[:, None])
    labels = Labels(["house"], shows[0], shows[1], False, ["caption"])
    assert probes_by_timestep(raw, *tokens, labels, CPU)["1"]["auroc"] == 1


def test_rows_are_capped_by_images(monkeypatch):
    monkeypatch.setattr("tide.evaluation.probes_by_timestep.MOST_ROWS", 5 * N_TOKENS + 3)
    (fit, shown), (measured, there) = side(0), side(1)
    seen = []

    def features(x, position):
        seen.append(len(x))
        return x

    labels = Labels(["red"], shown.flatten()[:, None], there.flatten()[:, None], True, ["colour"])
    probes_by_timestep(features, fit, measured, labels, CPU)
    assert set(seen) == {5 * N_TOKENS}


def test_labels_of_tokens_are_gathered_at_their_places():
    masks = {"red": torch.arange(80).view(4, 20) % 2 == 0, "blue": torch.zeros(4, 20, dtype=torch.bool)}
    places = torch.stack([torch.arange(10) + i for i in range(4)])
    labels = label_tokens((masks, masks), (places, places), {"red": "colour", "blue": "colour"})
    assert labels.names == ["red"]  # nothing shows blue
    assert torch.equal(labels.fit[:, 0], masks["red"].gather(1, places).flatten())
    assert labels.counted() == {"red": {"level": "colour", "fit": 20, "measured": 20}}


def test_labels_of_captions_are_whole_words():
    captions = ["a Red house", "a reddish house"] * 8
    labels = label_images((captions, captions), ["red"])
    assert labels.fit[:, 0].tolist() == [True, False] * 8
    assert not labels.per_token
