"""Concepts and the atlas of a tiny pipeline of videos."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.helpers import families
from tests.helpers.clips import clip_folder
from tide.activations import Prepared, prepare
from tide.activations.source import Source
from tide.clip import frames_of
from tide.data import open_source
from tide.errors import TideError
from tide.interpretation import caption_concepts, frame_profiles, make_atlas, read_atlas
from tide.interpretation.reading import noised_calls
from tide.sae import TIDE, TIDEConfig

N, N_LATENTS, FRAMES, SIZE = 8, 32, 9, (64, 32)
TIMESTEPS = torch.tensor([400, 100])


@pytest.fixture(scope="module")
def wan():
    """Its VAE makes three frames of tokens of nine of pixels."""
    return families.adapter("wan")


@pytest.fixture(scope="module")
def sae(wan) -> TIDE:
    return TIDE(TIDEConfig(wan.d_model, N_LATENTS, 8, block=1), seed=0)


@pytest.fixture(scope="module")
def clips(wan, tmp_path_factory) -> Callable[[], Source]:
    folder = clip_folder(tmp_path_factory.mktemp("clips"), N, FRAMES, SIZE)
    return lambda: open_source(folder, wan, size=(FRAMES, *SIZE), batch_size=3)


def test_a_concept_is_drawn_frame_by_frame(wan, sae, clips):
    found = caption_concepts(wan, sae, clips(), ["moves"], images_per_concept=4, top_images=2, timesteps=TIMESTEPS)
    assert (found.grid, found.n_frames) == ((3, 4, 2), FRAMES)
    assert [each.maps.shape for each in found.drawn["moves"]] == [(3, 24)] * 2
    assert [each.image.shape for each in found.drawn["moves"]] == [(8, 512, 256, 3)] * 2
    frames = frames_of(found.picture("moves"))
    assert len(frames) == 8
    sheets = [np.asarray(frame) for frame in frames]
    assert not np.array_equal(sheets[0], sheets[1])


def test_an_atlas_of_clips(wan, sae, clips, tmp_path):
    atlas = make_atlas(wan, sae, clips(), tmp_path, timesteps=TIMESTEPS, top_images=2)
    assert atlas.maps.shape == (N_LATENTS, 2, 3, 4, 2)
    assert (atlas.n_images, atlas.n_tokens, atlas.n_frames) == (N, 24, FRAMES)
    assert atlas.frame_mean.shape == (3, N_LATENTS)
    assert '"shown":[0,1,2,3,5,6,7,8]' in (tmp_path / "atlas.html").read_text()
    _, thumbnails = read_atlas(wan, sae, clips(), TIMESTEPS, top_images=2)
    assert [each.shape for each in thumbnails] == [(8, *SIZE, 3)] * N
    assert all(each.dtype == np.uint8 for each in thumbnails)


def encoded(wan, source: Source) -> list[Prepared]:
    return list(prepare(wan, source, batch_size=3))


def test_a_profile_along_frames_equals_a_naive_mean(wan, sae, clips):
    data = encoded(wan, clips())
    found = frame_profiles(wan, sae, data, TIMESTEPS, seed=3)
    generator = torch.Generator().manual_seed(3)
    seen = []
    with torch.no_grad():
        for batch in data:
            noise = torch.randn(batch.latents.shape, generator=generator)
            seen.append(torch.stack([sae.dense(x, c) for x, c in noised_calls(wan, sae, batch, noise, TIMESTEPS)]))
    z = torch.cat(seen, 1).view(len(TIMESTEPS), N, 3, 8, N_LATENTS)
    torch.testing.assert_close(found.mean, z.mean((0, 1, 3)), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.frequency, (z > 0).float().mean((0, 1, 3)))


def test_a_profile_along_frames_needs_frames(adapter, wan, sae):
    with pytest.raises(TideError, match="needs clips and timesteps; give at least one of both"):
        frame_profiles(wan, sae, [], TIMESTEPS)
    images = Prepared(torch.zeros(1, 4, 16, 16), {})
    with pytest.raises(TideError, match="images have no frames to take a profile along"):
        frame_profiles(adapter, sae, [images], TIMESTEPS)
