"""What an index gathers in batches, against all latents of all images held at once."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tests.helpers.whole_numbers import DEAD, TIMESTEPS, activations, dense, model
from tide.files.rows import Rows
from tide.index.gathering import CAPTION, IndexGathered, embedded, encoded, lots, shrunk, signs
from tide.index.layout import DRAWN, PICTURE, PLACE, SKETCH, TOP
from tide.interpretation.atlas import Atlas
from tide.interpretation.gathered import build_atlas
from tide.interpretation.monosemanticity import Monosemanticity
from tide.sae import TIDE

N_IMAGES, GRID = 40, (3, 4)
CAPTIONS = [f"{('a red', 'a blue', '')[i % 3]} roof number {i % 7}" for i in range(N_IMAGES)]
PICTURES = [np.full((8, 8, 3), i, dtype=np.uint8) for i in range(N_IMAGES)]


def gathering(folder: Path, sae: TIDE, grid: tuple[int, int] = GRID, labelled: int = 0) -> IndexGathered:
    folder.mkdir(parents=True, exist_ok=True)
    return IndexGathered(sae, TIMESTEPS, grid, folder, "this", labelled, lambda n: [])


def gathered(
    folder: Path, sae: TIDE, x: torch.Tensor, *sizes: int, grid: tuple[int, int] = GRID, labelled: int = 0
) -> IndexGathered:
    found = gathering(folder, sae, grid, labelled)
    for part in x.split(list(sizes) or [x.shape[1]], dim=1):
        images = slice(found.n_images, found.n_images + part.shape[1])
        found.add_images(part, None, PICTURES[images], CAPTIONS[images])
    found.close()
    return found


def rows(found: IndexGathered, name: str) -> torch.Tensor:
    return torch.from_numpy(Rows(found.folder / f"{name}.safetensors", name)[:])


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return activations(N_IMAGES, GRID)


@pytest.fixture
def found(tmp_path, x) -> IndexGathered:
    return gathered(tmp_path, model(), x, 16, 1, 23, labelled=30)


def test_the_atlas_is_the_one_of_the_same_activations(found, x):
    expected = build_atlas(model(), TIMESTEPS, [(x, None)], GRID, top_images=TOP)
    for each in fields(Atlas):
        one, other = getattr(found.atlas(), each.name), getattr(expected, each.name)
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other, each.name


def check_places(latents: torch.Tensor, heights: torch.Tensor, expected: torch.Tensor) -> None:
    """``latents`` and ``heights [images, timesteps, cells, PLACE]`` against all latents ``expected [images, timesteps,
    cells, n_latents]``, of which some may be equal: then any of them is right."""
    n = min(PLACE, expected.shape[-1])
    assert torch.equal(heights[..., :n].float(), expected.topk(n, dim=-1).values)
    assert (heights[..., n:] == 0).all()
    there = latents >= 0
    assert torch.equal(there, heights > 0)
    own = expected.gather(-1, latents.clamp(min=0).long())
    assert torch.equal(own[there], heights.float()[there])
    distinct = latents.masked_fill(~there, -1).sort(-1).values
    assert not ((distinct[..., 1:] == distinct[..., :-1]) & (distinct[..., 1:] >= 0)).any()


@pytest.mark.parametrize("n_latents", [11, 40], ids=["fewer latents than are kept", "more"])
@pytest.mark.parametrize("activation", ["relu", "topk"])
def test_the_strongest_latents_of_each_place_at_each_timestep(tmp_path, activation, n_latents):
    sae, x = model(activation, n_latents), activations(5, GRID)
    found = gathered(tmp_path, sae, x, 2, 3)
    expected = dense(sae, x).transpose(0, 1)
    assert n_latents <= PLACE or activation == "topk" or ((expected > 0).sum(-1) > PLACE).any()
    check_places(rows(found, "codes"), rows(found, "heights"), expected)


def test_places_of_a_large_grid_are_averages_where_no_more_latents_fire_at_a_token_than_are_kept(tmp_path):
    """32 x 16 tokens in 16 x 8 places of 2 x 2 each."""
    sae, x, grid = model(), activations(3, (32, 16)), (32, 16)
    found = gathered(tmp_path, sae, x, 1, 2, grid=grid)
    fine = dense(sae, x).transpose(0, 1).transpose(2, 3).unflatten(3, grid)
    expected = F.avg_pool2d(fine.flatten(0, 1), 2).flatten(2).transpose(1, 2).unflatten(0, (3, 4))
    check_places(rows(found, "codes"), rows(found, "heights"), expected)


def test_places_of_a_large_grid_where_more_latents_fire_at_a_token_than_are_kept(tmp_path):
    """Averages of each token's strongest latents: what is weaker there counts as 0."""
    sae, x, grid = model(n_latents=40), torch.rand(4, 2, 512, 5, generator=torch.Generator().manual_seed(0)), (32, 16)
    with torch.no_grad():
        sae.W_enc.copy_(torch.rand(40, 5, generator=torch.Generator().manual_seed(1)))
    found = gathered(tmp_path, sae, x, grid=grid)
    latents = dense(sae, x).transpose(0, 1)
    best = latents.topk(PLACE, dim=-1)
    kept = torch.zeros_like(latents).scatter(-1, best.indices, best.values)
    assert not torch.equal(kept, latents)
    fine = kept.transpose(2, 3).unflatten(3, grid).flatten(0, 1)
    expected = (F.avg_pool2d(fine, 2).flatten(2).transpose(1, 2)).unflatten(0, (2, 4))
    torch.testing.assert_close(
        rows(found, "heights").float(), expected.topk(PLACE, dim=-1).values, rtol=1e-3, atol=1e-6
    )


def test_a_token_between_two_places_belongs_to_the_one_that_covers_most_of_it(tmp_path):
    """20 x 1 tokens in 16 x 1 places: a latent fires at one token alone, and its place is the only one that has it."""
    sae, grid = model(), (20, 1)
    for token in range(20):
        x = torch.zeros(4, 1, 20, 5)
        x[:, 0, token] = torch.tensor([3.0, -1, 2, 1, -2])
        found = gathered(tmp_path / str(token), sae, x, grid=grid)
        places = (rows(found, "heights")[0, 0] > 0).any(-1).nonzero().flatten().tolist()
        covered = [min(token + 1, (p + 1) * 1.25) - max(token, p * 1.25) for p in range(16)]
        assert places == [covered.index(max(covered))]


def test_heights_beyond_half_precision_are_its_largest(tmp_path):
    found = gathered(tmp_path, model(), activations(2, GRID) * 1e5)
    heights = rows(found, "heights")
    assert heights.isfinite().all()
    assert heights.max() == 65504


# -- images drawn at random -------------------------------------------------------------------------------------


def test_drawn_images_are_those_with_the_highest_lots_of_all_on_which_a_latent_fires(found, x):
    maps = dense(model(), x).mean(0)
    peaks, lot = maps.amax(1), lots(11, 0, N_IMAGES)
    for latent in range(11):
        fires = [i for i in range(N_IMAGES) if peaks[i, latent] > 0]
        expected = sorted(fires, key=lambda i: (-float(lot[latent, i]), i))[:DRAWN]
        images = found.drawn.images[latent].tolist()
        assert images == expected + [-1] * (DRAWN - len(expected))
        for place, image in enumerate(expected):
            assert found.drawn.values[latent, place] == peaks[image, latent]
            assert torch.equal(found.drawn.maps[latent, place], maps[image, :, latent])
    assert found.drawn.images[DEAD].tolist() == [-1] * DRAWN
    assert (peaks > 0).sum(0).max() > DRAWN


@pytest.mark.parametrize("sizes", [(40,), (1,) * 40, (7, 30, 3)], ids=["at once", "one by one", "other batches"])
def test_batches_do_not_matter(tmp_path, found, x, sizes):
    other = gathered(tmp_path / "other", model(), x, *sizes, labelled=30)
    for name, value in found._tensors().items():
        if name.startswith("scores."):  # sums of numbers that are not whole
            torch.testing.assert_close(other._tensors()[name], value, rtol=1e-12, atol=1e-12)
        else:
            assert torch.equal(other._tensors()[name], value), name
    for name in ("codes", "heights", "latents", "peaks", "labelled"):
        assert torch.equal(rows(other, name), rows(found, name)), name
    assert (other.counts, other.offsets, other.captions) == (found.counts, found.offsets, found.captions)


def test_a_later_image_only_replaces_images_of_lower_lots(tmp_path, x):
    """So that what is drawn from the first images does not depend on how many follow: of those, the sample is one of
    the earlier sample's."""
    few, all_of_them = (gathered(tmp_path / str(n), model(), x[:, :n]) for n in (25, N_IMAGES))
    for before, after in zip(few.drawn.images.tolist(), all_of_them.drawn.images.tolist(), strict=True):
        assert {i for i in after if 0 <= i < 25} <= set(before)


def test_lots_are_even_and_independent():
    drawn = lots(64, 0, 400)
    assert drawn.min() > 0
    assert drawn.max() <= 1
    assert torch.equal(drawn[:, 100:200], lots(64, 100, 100))
    counts = torch.histc(drawn, 16, 0, 1)
    assert (counts - 1600).abs().max() < 5 * 1600**0.5
    for each in (drawn, drawn.T):  # of two latents, and of two images
        correlation = torch.corrcoef(each).fill_diagonal_(0)
        assert correlation.abs().max() < 6 / each.shape[1] ** 0.5


# -- sums and lists ---------------------------------------------------------------------------------------------


def test_the_mean_map(found, x):
    assert torch.equal(found.mean_map, dense(model(), x).mean(0).sum(0).T)


def test_peaks_and_where_latents_fire_are_listed(found, x):
    peaks = dense(model(), x).mean(0).amax(1)
    image, latent = peaks.nonzero(as_tuple=True)
    assert found.counts == (peaks > 0).sum(1).tolist()
    assert torch.equal(rows(found, "latents"), latent.int())
    assert torch.equal(rows(found, "peaks"), peaks[image, latent])


def test_peaks_are_kept_as_they_are(tmp_path):
    x = torch.rand(4, 3, 12, 5, generator=torch.Generator().manual_seed(0)) * 1e-6
    found = gathered(tmp_path, model(), x)
    peaks = sum(dense(model(), x)) / 4
    assert torch.equal(rows(found, "peaks"), peaks.amax(1)[peaks.amax(1) > 0])


def test_the_first_rows_are_kept_for_labels(found, x):
    assert torch.equal(rows(found, "labelled"), dense(model(), x).mean(0).flatten(0, 1)[:30])


def test_monosemanticity_is_that_of_the_captions(found, x):
    scores = Monosemanticity(11, CAPTION)
    scores.update(dense(model(), x).mean(0).amax(1), torch.stack(list(map(embedded, CAPTIONS))))
    torch.testing.assert_close(found.scores.scores(), scores.scores(), equal_nan=True)
    assert found.scores.scores().isfinite().sum() > 5


def test_captions_are_the_sums_of_their_words():
    assert torch.equal(embedded("Red roofs, red!"), embedded("RED") + embedded("roofs"))
    assert torch.equal(embedded(""), torch.ones(CAPTION))
    assert torch.equal(embedded("..."), torch.ones(CAPTION))
    words = [
        "different",
        "differing",
        "x" * 200,
        "x" * 201,
        "roof",
        "roofs",
        "r\N{LATIN SMALL LETTER O WITH DIAERESIS}f",
    ]
    vectors = F.normalize(torch.stack([embedded(word) for word in words]))
    assert ((vectors @ vectors.T).fill_diagonal_(0).abs() < 0.5).all()


# -- sketches ---------------------------------------------------------------------------------------------------


def test_cosines_of_sketches_are_near_those_of_the_maps(tmp_path, x):
    """Also of two autoencoders on the same images. Their error has a standard deviation of at most 1 / sqrt(512)."""
    saes = [model(n_latents=60, seed=seed) for seed in (1, 2)]
    maps = torch.cat([dense(sae, x).mean(0).flatten(0, 1).T for sae in saes])
    sketches = torch.cat([gathered(tmp_path / str(i), sae, x, 13, 27).sketch for i, sae in enumerate(saes)])
    exact, estimated = (F.normalize(each) @ F.normalize(each).T for each in (maps, sketches))
    error = exact - estimated
    assert error.abs().max() < 6 / SKETCH**0.5
    assert error[:60, 60:].square().mean().sqrt() < 1.2 / SKETCH**0.5
    assert exact.std() > 0.1


def test_signs_depend_on_image_and_place_alone():
    three = signs(5, 3, 12)
    assert torch.equal(three, torch.cat([signs(5, 1, 12), signs(6, 2, 12)]))
    assert three.unique().tolist() == [-1, 1]
    products = (three @ three.T / SKETCH).fill_diagonal_(0)
    assert products.abs().max() < 6 / SKETCH**0.5


# -- pictures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((8, 8), (8, 8)),
        ((384, 100), (384, 100)),
        ((768, 100), (384, 50)),
        ((5, 4000), (1, 384)),
        ((500, 1000), (192, 384)),
    ],
)
def test_pictures_are_made_smaller_and_never_larger(size, expected):
    assert shrunk(np.zeros((*size, 3), dtype=np.uint8), PICTURE).shape == (*expected, 3)


def test_pictures_are_kept_one_behind_the_other(found):
    data = (found.folder / "pictures.bin").read_bytes()
    assert found.offsets[-1] == len(data)
    for i, picture in enumerate(PICTURES):
        part = data[found.offsets[i] : found.offsets[i + 1]]
        assert part == encoded(picture)
        (found.folder / "one.jpg").write_bytes(part)
        assert abs(np.asarray(Image.open(found.folder / "one.jpg")).astype(int) - i).max() <= 2
