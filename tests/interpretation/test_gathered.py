"""Images ranked by any key, maps as bytes, and what a gathering hands on."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.whole_numbers import DEAD, N_LATENTS, TIMESTEPS, activations, dense, integers, model
from tide.interpretation.gathered import Gathered, Ranked, as_bytes

N, M, CELLS, IMAGES = 6, 4, 3, 30


def merged(keys: torch.Tensor, values: torch.Tensor, maps: torch.Tensor, *sizes: int, m: int = M) -> Ranked:
    found, first = Ranked(len(keys), m, maps.shape[1]), 0
    for size in sizes:
        part = slice(first, first + size)
        found.merge(keys[:, part], values[:, part], first, maps[part])
        first += size
    return found


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys of which many are equal or 0, values and maps."""
    return (
        integers(0, 5, N, IMAGES, seed=0),
        integers(1, 99, N, IMAGES, seed=1),
        integers(0, 9, IMAGES, CELLS, N, seed=2),
    )


@pytest.mark.parametrize("sizes", [(30,), (1,) * 30, (2, 27, 1), (0, 29, 1)], ids=str)
def test_the_highest_keys_and_of_equal_ones_the_earliest(images, sizes):
    keys, values, maps = images
    found = merged(*images, *sizes)
    for row in range(N):
        best = sorted((i for i in range(IMAGES) if keys[row, i] > 0), key=lambda i: (-float(keys[row, i]), i))[:M]
        assert found.images[row].tolist() == best
        assert found.keys[row].tolist() == keys[row, best].tolist()
        assert found.values[row].tolist() == values[row, best].tolist()
        assert torch.equal(found.maps[row], maps[best, :, row])


def test_an_image_whose_key_is_0_is_never_taken(images):
    keys, values, maps = images
    keys = torch.zeros_like(keys)
    keys[2, 17] = 1e-30
    found = merged(keys, values, maps, 10, 10, 10)
    assert found.images[2].tolist() == [17, -1, -1, -1]
    assert found.values[2].tolist() == [values[2, 17], 0, 0, 0]
    rest = [i for i in range(N) if i != 2]
    assert (found.images[rest] == -1).all()
    assert not found.maps[rest].any()
    assert not found.values[rest].any()


def test_keys_need_not_be_the_values(images):
    keys, values, maps = images
    by_value, by_key = merged(values, values, maps, IMAGES), merged(keys, values, maps, IMAGES)
    assert not torch.equal(by_value.images, by_key.images)
    assert torch.equal(by_value.values, by_value.keys)


def test_maps_as_bytes_of_a_latents_strongest_place():
    maps = torch.tensor([[[0.0, 2, 4], [1, 8, 3]], [[0, 0, 0], [0, 0, 0]], [[1e-30, 0, 0], [5e-31, 0, 0]]])
    found = as_bytes(maps, (1, 3))
    assert found.dtype == torch.uint8
    assert found.tolist() == [
        [[[0, 64, 128]], [[32, 255, 96]]],
        [[[0, 0, 0]], [[0, 0, 0]]],
        [[[255, 0, 0]], [[128, 0, 0]]],
    ]


class Seen(Gathered):
    """Keeps every piece that it sees."""

    def __init__(self, sae, grid) -> None:
        super().__init__(sae, TIMESTEPS, grid, 3, None, lambda peaks: self.peaks.append(peaks))
        self.pieces: list[tuple[int, torch.Tensor, int]] = []
        self.peaks: list[torch.Tensor] = []

    def see(self, step, latents, first) -> None:
        self.pieces.append((step, latents.clone(), first))


@pytest.mark.parametrize("piece", [4 * N_LATENTS, 2 * 12 * N_LATENTS, 2**25], ids=["tokens", "images", "all"])
def test_every_piece_at_every_timestep_is_seen_in_order(monkeypatch, piece):
    monkeypatch.setattr("tide.interpretation.gathered.PIECE", piece)
    sae, x = model(), activations(5, (3, 4))
    seen = Seen(sae, (3, 4))
    seen.add(x[:, :3], None)
    seen.add(x[:, 3:], None)
    expected = dense(sae, x)
    for step in range(len(TIMESTEPS)):
        own = [(latents, first) for i, latents, first in seen.pieces if i == step]
        assert torch.equal(torch.cat([each.flatten(0, 1) for each, _ in own]), expected[step].flatten(0, 1))
        starts = [0, 4, 8] * 5 if piece == 4 * N_LATENTS else [0] * len(own)
        assert [first for _, first in own] == starts
    assert torch.equal(torch.cat(seen.peaks), expected.mean(0).amax(1))
    assert torch.equal(seen.fired, (expected > 0).sum((1, 2)))
    assert torch.equal(seen.total, expected.double().sum((1, 2)))
    assert (seen.n_images, seen.n_tokens) == (5, 12)
    assert seen.fired[:, DEAD].tolist() == [0] * 4


def test_an_atlas_may_be_taken_before_all_images_are_read():
    sae, x = model(), activations(5, (3, 4))
    gathered, first = Seen(sae, (3, 4)), Seen(sae, (3, 4))
    gathered.add(x[:, :2], None)
    early = gathered.atlas()
    gathered.add(x[:, 2:], None)
    first.add(x[:, :2], None)
    assert torch.equal(early.mean, first.atlas().mean)
    assert torch.equal(early.top_images, first.atlas().top_images)
    assert early.n_images == 2
    assert gathered.atlas().n_images == 5
