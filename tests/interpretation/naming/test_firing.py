"""On which images a latent fires."""

from __future__ import annotations

import torch

from tide.interpretation.naming.firing import firing_images, strongest_images


def test_the_strongest_tenth():
    peaks = torch.stack([torch.arange(20.0), torch.zeros(20), (torch.arange(20) == 3).float(), torch.ones(20)], dim=1)
    strong = strongest_images(peaks)
    assert strong.sum(0).tolist() == [2, 0, 1, 20]
    assert strong[:, 0].nonzero().flatten().tolist() == [18, 19]


def test_a_sparse_latent_fires_where_it_is_positive():
    peaks = torch.zeros(40, 1)
    peaks[::4] = 0.1
    peaks[1] = 5.0
    assert torch.equal(firing_images(peaks), peaks > 0)


def test_a_latent_of_most_images_fires_where_it_is_strongest():
    """By the level of the first half of the images alone."""
    peaks = torch.arange(40.0)[:, None] + 1
    assert firing_images(peaks).nonzero()[:, 0].tolist() == [36, 37, 38, 39]
    peaks[1::2] += 100  # the others do not move the level
    fires = firing_images(peaks)[:, 0]
    assert fires[0::2].sum() == 2
    assert fires[1::2].all()
