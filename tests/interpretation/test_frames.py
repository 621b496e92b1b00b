"""Latents along the frames of clips: maps, profiles and motion, against all latents held at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from tests.helpers.whole_numbers import N_LATENTS, TIMESTEPS, dense, integers, model
from tests.interpretation.test_atlas import equal
from tests.interpretation.test_atlas_page import tiles, written
from tide.errors import TideError
from tide.interpretation import Atlas, build_atlas, motion
from tide.interpretation.atlas_page import shown_maps
from tide.interpretation.frames import MAP_FRAMES, FrameSums

GRID = (3, 2, 4)


def activations(n: int, grid: tuple[int, int, int]) -> torch.Tensor:
    return integers(-3, 3, len(TIMESTEPS), n, grid[0] * grid[1] * grid[2], 5, seed=0)


def built(n: int = 5, grid: tuple[int, int, int] = GRID) -> Atlas:
    return build_atlas(model(), TIMESTEPS, [(activations(n, grid), None)], grid, top_images=3)


@pytest.mark.parametrize("piece", [1, 5 * N_LATENTS, 2 * 24 * N_LATENTS, 2**25], ids=["token", "five", "clips", "all"])
def test_what_latents_do_in_each_frame(monkeypatch, piece):
    """In pieces that end within frames, too."""
    monkeypatch.setattr("tide.interpretation.gathered.PIECE", piece)
    found, z = built(), dense(model(), activations(5, GRID)).unflatten(2, (3, 8))
    assert torch.equal(found.frame_mean, z.double().mean((0, 1, 3)).float())
    assert torch.equal(found.frame_frequency, (z > 0).double().mean((0, 1, 3)).float())
    torch.testing.assert_close(found.frame_mean.mean(0), found.mean.mean(0))
    assert found.maps.shape == (N_LATENTS, 3, *GRID)
    assert (found.n_images, found.n_tokens) == (5, 24)


def test_maps_of_clips_are_those_of_their_tokens():
    found, maps = built(), dense(model(), activations(5, GRID)).mean(0)
    for latent in (~found.dead).nonzero().flatten().tolist():
        own = maps[found.top_images[latent], :, latent]
        expected = (own / own.max() * 255).round().byte().view(3, *GRID)
        assert torch.equal(found.maps[latent], expected)


def test_long_clips_are_pooled_along_their_frames():
    grid = (2 * MAP_FRAMES, 1, 2)
    found = built(2, grid)
    maps = dense(model(), activations(2, grid)).mean(0).transpose(1, 2).unflatten(2, grid)
    latent = int((~found.dead).nonzero()[0])
    pooled = F.avg_pool3d(maps[found.top_images[latent, :2], latent][:, None], (2, 1, 1))[:, 0]
    assert torch.equal(found.maps[latent, :2], (pooled / pooled.max() * 255).round().byte())
    assert len(found.frame_mean) == 2 * MAP_FRAMES


def test_images_have_none_of_it():
    found = build_atlas(model(), TIMESTEPS, [(integers(-3, 3, 4, 2, 6, 5, seed=0), None)], (2, 3))
    assert found.frame_mean is found.frame_frequency is found.motion is found.n_frames is None


def test_sums_of_clips_that_are_read_in_turn():
    z = torch.rand(4, 12, 5, generator=torch.Generator().manual_seed(0)) - 0.5
    at_once, parts = FrameSums(3, 4, 5), FrameSums(3, 4, 5)
    at_once.add(z, 0)
    for first, last in ((0, 3), (3, 9), (9, 12)):
        parts.add(z[:, first:last], first)
    torch.testing.assert_close(at_once.profiles(4).mean, parts.profiles(4).mean)
    torch.testing.assert_close(at_once.profiles(4).mean, z.view(4, 3, 4, 5).mean((0, 2)))
    assert torch.equal(at_once.profiles(4).peak, z.view(4, 3, 4, 5).mean((0, 2)).argmax(0))


# -- motion -----------------------------------------------------------------------------------------------------


def moving(*places: tuple[int, int] | None, size: tuple[int, int] = (4, 8)) -> torch.Tensor:
    """A clip's map that fires at a place of each frame, or nowhere."""
    heat = torch.zeros(len(places), *size)
    for frame, place in enumerate(places):
        if place is not None:
            heat[frame][place] = 255
    return heat.byte()


def test_motion_is_how_far_the_place_moves():
    clips = {
        "right": moving((0, 0), (0, 2), (0, 4), (0, 6)),
        "stays": moving(*[(2, 3)] * 4),
        "to and fro": moving((0, 0), (0, 6), (0, 6), (0, 0)),
        "aslant": moving((0, 0), (1, 1), (2, 2), (3, 3)),
        "a moment": moving(None, (1, 1), None, None),
        "silent": moving(*[None] * 4),
    }
    found = dict(zip(clips, motion(torch.stack(list(clips.values()))[:, None]).tolist(), strict=True))
    assert found["right"] == pytest.approx(6 / 8)
    assert found["stays"] == found["to and fro"] == pytest.approx(0)
    assert found["aslant"] == pytest.approx(np.hypot(3, 3) / 8)
    assert np.isnan(found["a moment"])
    assert np.isnan(found["silent"])


def test_motion_is_averaged_over_the_clips_and_not_drawn_on():
    """Clips in which the latent is silent do not count, and frames in which it is silent add nothing."""
    right, stays, silent = moving((0, 0), (0, 2), (0, 4)), moving(*[(0, 0)] * 3), moving(*[None] * 3)
    assert motion(torch.stack([right, stays, silent])[None]).tolist() == pytest.approx([2 / 8])
    brief = moving((0, 0), (0, 2), *[None] * 6)
    assert 0 < float(motion(brief[None, None])) <= 4 / 8


# -- on disk and on the page --------------------------------------------------------------------------------------


def test_a_round_trip(tmp_path):
    for n_frames in (None, 9):
        atlas = replace(built(), n_frames=n_frames)
        atlas.save(tmp_path)
        assert equal(Atlas.load(tmp_path), atlas)
    tensors = load_file(tmp_path / "atlas.safetensors")
    for change, match in (
        ({"frame_mean": tensors["frame_mean"][:2].contiguous()}, "has maps of 3 frames, and latents of 2"),
        ({"frame_frequency": tensors["frame_frequency"] + 1}, "frame_frequency reaches outside of 0 to 1"),
        ({"maps": tensors["maps"][:, :, 0].contiguous()}, "holds no maps of 11 latents"),
    ):
        save_file({**tensors, **change}, tmp_path / "atlas.safetensors")
        with pytest.raises(TideError, match=match):
            Atlas.load(tmp_path)
    del tensors["frame_frequency"]
    save_file(tensors, tmp_path / "atlas.safetensors")
    with pytest.raises(TideError, match="frame_frequency"):
        Atlas.load(tmp_path)


def grey_clips(n: int = 5, frames: int = 9) -> list[np.ndarray]:
    """Frame f of clip i in the grey of 40 i + f."""
    return [np.stack([np.full((6, 10, 3), 40 * i + f, dtype=np.uint8) for f in range(frames)]) for i in range(n)]


def test_the_page_holds_frames_side_by_side(tmp_path):
    atlas = replace(built(), n_frames=9)
    page, data = written(tmp_path, atlas, grey_clips())
    # The first frame of tokens is the first of the clip; of the others each stands for four.
    assert data["frames"]["shown"] == [0, 1, 2, 3, 5, 6, 7, 8]
    assert data["frames"]["map"] == [0, 1, 1, 1, 2, 2, 2, 2]
    assert data["map"] == [3, 2, 4]
    arrays, alive = data["arrays"], (~atlas.dead).nonzero().flatten()
    assert np.array_equal(arrays["frameMean"].reshape(-1, 3), atlas.frame_mean[:, alive].T.numpy())
    assert np.array_equal(arrays["frameFrequency"].reshape(-1, 3), atlas.frame_frequency[:, alive].T.numpy())
    assert np.array_equal(arrays["motion"], atlas.motion[alive].numpy(), equal_nan=True)
    assert np.array_equal(arrays["map"].reshape(-1, 3, *GRID), atlas.maps[alive].numpy())
    data["arrays"]["image"] = np.repeat(arrays["image"], 8)
    shown = [int(tile[0, 0, 0]) for tile in tiles(data)]
    assert shown == [40 * i + f for i in arrays["image"][::8] for f in data["frames"]["shown"]]
    assert "<dt>clips</dt><dd>5</dd>" in page
    assert "Of a clip 8 of the 9 frames are shown; the transformer sees 3 frames of tokens." in page
    assert "prefers-reduced-motion" in page


def test_clips_that_do_not_fit_an_atlas(tmp_path):
    atlas = replace(built(), n_frames=9)
    with pytest.raises(TideError, match=r"an atlas of clips needs clips \[F, H, W, 3\]"):
        written(tmp_path, atlas, [clip[0] for clip in grey_clips()])
    with pytest.raises(TideError, match="the atlas is of clips of 9 frames and one of 5 is given"):
        written(tmp_path, atlas, grey_clips(frames=5))


@pytest.mark.parametrize(
    ("n_frames", "tokens", "cells", "expected"),
    [(3, 3, 3, [0, 1, 2]), (5, 2, 2, [0, 1, 1, 1, 1]), (16, 16, 8, [0, 1, 2, 3, 4, 5, 6, 7])],
)
def test_the_frame_of_a_map_that_covers_a_frame(n_frames, tokens, cells, expected):
    assert shown_maps(n_frames, tokens, cells) == expected
