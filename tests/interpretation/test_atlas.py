"""The atlas read in batches and pieces, against all latents of all images held at once."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from tide.errors import TideError
from tide.interpretation.atlas import Atlas, ImageText, Label, label_latents
from tide.interpretation.gathered import build_atlas
from tide.sae import TIDE, ModulationConfig, Position, TIDEConfig

TIMESTEPS = torch.tensor([900.0, 600.0, 300.0, 100.0])
D_MODEL, N_LATENTS, DEAD = 5, 11, 4


def integers(low: int, high: int, *shape: int, seed: int) -> torch.Tensor:
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed)).float()


def model(activation: str = "relu") -> TIDE:
    """Whole numbers in and out, and averages over four timesteps: every sum is exact, and many values are equal."""
    sae = TIDE(TIDEConfig(D_MODEL, N_LATENTS, 3, activation=activation))
    with torch.no_grad():
        sae.W_enc.copy_(integers(-2, 2, N_LATENTS, D_MODEL, seed=1))
        sae.b_enc.zero_()
        sae.b_enc[DEAD] = -1000
    return sae


def activations(n_images: int, grid: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return integers(-3, 3, len(TIMESTEPS), n_images, grid[0] * grid[1], D_MODEL, seed=seed)


def in_batches(x: torch.Tensor, *sizes: int, conditioning: torch.Tensor | None = None):
    parts = conditioning.split(sizes) if conditioning is not None else [None] * len(sizes)
    return zip(x.split(sizes, dim=1), parts, strict=True)


def equal(first: Atlas, second: Atlas) -> bool:
    def same(a: object, b: object) -> bool:
        return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b

    return all(same(getattr(first, f.name), getattr(second, f.name)) for f in fields(Atlas))


def brute_force(sae: TIDE, x: torch.Tensor, grid: tuple[int, int], n_top: int, pool: int = 1) -> Atlas:
    """Of ``latents [timesteps, images, tokens, n_latents]``, image by image and latent by latent."""
    latents = torch.stack([sae.dense(each, t) for each, t in zip(x, TIMESTEPS.tolist(), strict=True)])
    maps = latents.mean(0)
    n_images, n_tokens, n = maps.shape
    images, values = torch.full((n, n_top), -1), torch.zeros(n, n_top)
    pooled = torch.zeros(n, n_top, grid[0] // pool, grid[1] // pool)
    for latent in range(n):
        peaks = {i: float(maps[i, :, latent].max()) for i in range(n_images) if (maps[i, :, latent] > 0).any()}
        for place, i in enumerate(sorted(peaks, key=lambda i: (-peaks[i], i))[:n_top]):
            images[latent, place], values[latent, place] = i, peaks[i]
            pooled[latent, place] = F.avg_pool2d(maps[i, :, latent].view(1, *grid), pool)[0]
    strongest = pooled.amax((1, 2, 3), keepdim=True).clamp(min=1e-9)
    return Atlas(
        TIMESTEPS,
        (latents > 0).double().mean((1, 2)).float(),
        latents.double().mean((1, 2)).float(),
        images,
        values,
        (pooled / strongest * 255).round().byte(),
        n_images,
        n_tokens,
    )


@pytest.mark.parametrize("activation", ["relu", "topk"])
@pytest.mark.parametrize(
    ("grid", "pool"), [((3, 4), 1), ((1, 1), 1), ((32, 16), 2)], ids=["as it is", "one token", "pooled by two"]
)
def test_equals_a_dense_brute_force(activation, grid, pool):
    sae, x = model(activation), activations(9, grid)
    found = build_atlas(sae, TIMESTEPS, in_batches(x, 4, 1, 4), grid, top_images=3)
    assert equal(found, brute_force(sae, x, grid, 3, pool))
    assert found.top_images.dtype == torch.int64
    assert found.maps.dtype == torch.uint8
    assert found.maps.amax((1, 2, 3)).tolist() == [0 if i == DEAD else 255 for i in range(N_LATENTS)]
    assert found.dead.nonzero().flatten().tolist() == [DEAD]
    assert found.top_images[DEAD].tolist() == [-1, -1, -1]
    assert found.frequency[:, DEAD].tolist() == [0] * 4


def test_how_the_images_are_batched_does_not_matter():
    sae, grid, x = model(), (3, 4), activations(9, (3, 4))
    at_once = build_atlas(sae, TIMESTEPS, in_batches(x, 9), grid, top_images=3)
    assert equal(at_once, build_atlas(sae, TIMESTEPS, in_batches(x, *[1] * 9), grid, top_images=3))
    assert equal(at_once, build_atlas(sae, TIMESTEPS, in_batches(x, 2, 7), grid, top_images=3))


def test_the_order_of_the_batches_only_renames_images():
    """Peaks that are all different, so that no tie is broken by the order."""
    sae, grid = model(), (3, 4)
    x = torch.rand(4, 9, 12, D_MODEL, generator=torch.Generator().manual_seed(0)) - 0.3
    forwards = build_atlas(sae, TIMESTEPS, in_batches(x, 4, 3, 2), grid, top_images=3)
    order = torch.tensor([7, 8, 4, 5, 6, 0, 1, 2, 3])
    backwards = build_atlas(sae, TIMESTEPS, in_batches(x[:, order], 2, 3, 4), grid, top_images=3)
    renamed = torch.where(backwards.top_images < 0, -1, order[backwards.top_images.clamp(min=0)])
    assert torch.equal(renamed, forwards.top_images)
    torch.testing.assert_close(backwards.top_values, forwards.top_values)
    torch.testing.assert_close(backwards.mean, forwards.mean)
    assert torch.equal(backwards.frequency, forwards.frequency)
    assert (backwards.maps.int() - forwards.maps.int()).abs().max() <= 1  # rounded


def test_of_equal_peaks_the_earliest_images_are_kept():
    x = activations(1, (2, 2)).expand(-1, 6, -1, -1)
    found = build_atlas(model(), TIMESTEPS, in_batches(x, 1, 3, 2), (2, 2), top_images=3)
    alive = ~found.dead
    assert alive.any()
    assert found.top_images[alive].tolist() == [[0, 1, 2]] * int(alive.sum())


def test_fewer_images_than_places():
    sae, x = model(), activations(2, (2, 2))
    found = build_atlas(sae, TIMESTEPS, in_batches(x, 1, 1), (2, 2), top_images=5)
    assert equal(found, brute_force(sae, x, (2, 2), 5))
    assert (found.top_images[:, 2:] == -1).all()
    assert (found.top_values[:, 2:] == 0).all()
    assert (found.maps[:, 2:] == 0).all()


@pytest.mark.parametrize("piece", [1, 3 * N_LATENTS, 5 * 12 * N_LATENTS], ids=["a token", "three", "five images"])
def test_pieces_of_any_size_give_the_same(monkeypatch, piece):
    """Also for a grid whose tokens are pooled across pieces; ``on_latents`` gets every row, in order."""
    for grid in ((3, 4), (32, 16)):
        sae, x = model(), activations(7, grid)
        whole = build_atlas(sae, TIMESTEPS, in_batches(x, 7), grid, top_images=3)
        rows: list[torch.Tensor] = []
        with monkeypatch.context() as patch:
            patch.setattr("tide.interpretation.gathered.PIECE", piece)
            found = build_atlas(
                sae,
                TIMESTEPS,
                in_batches(x, 7),
                grid,
                top_images=3,
                on_latents=lambda z, rows=rows: rows.append(z.flatten(0, 1)),
            )
        assert equal(found, whole)
        expected = sum(sae.dense(each.flatten(0, 1), t) for each, t in zip(x, TIMESTEPS.tolist(), strict=True))
        assert torch.equal(torch.cat(rows), expected / len(TIMESTEPS))
        assert max(map(len, rows)) <= max(1, piece // N_LATENTS)


def test_a_grid_that_does_not_divide_is_pooled_by_area():
    """20 x 10 tokens to 16 x 8: each cell covers 1.25 tokens a side."""
    sae, grid = model(), (20, 10)
    x = activations(1, grid)
    found = build_atlas(sae, TIMESTEPS, in_batches(x, 1), grid, top_images=1)
    assert found.maps.shape == (N_LATENTS, 1, 16, 8)
    maps = sum(sae.dense(each[0], t) for each, t in zip(x, TIMESTEPS.tolist(), strict=True)) / 4
    fine = maps.T.view(-1, 1, *grid).repeat_interleave(4, 2).repeat_interleave(4, 3)  # quarters of a token
    pooled = F.avg_pool2d(fine, 5)
    scaled = pooled / pooled.amax((1, 2, 3), keepdim=True).clamp(min=1e-9) * 255
    torch.testing.assert_close(found.maps.float(), scaled, rtol=0, atol=0.51)


def test_each_image_has_its_own_conditioning():
    sae = TIDE(
        TIDEConfig(6, 20, 3, modulation=ModulationConfig(d_model=6, d_embedding=8, n_frequencies=8, conditioned=True))
    )
    generator = torch.Generator().manual_seed(0)
    x, conditioning = torch.randn(4, 5, 6, 6, generator=generator), 5 * torch.randn(5, 8, generator=generator)
    found = build_atlas(sae, TIMESTEPS, in_batches(x, 2, 3, conditioning=conditioning), (2, 3), top_images=2)
    mean = torch.zeros(4, 20)
    for i, t in enumerate(TIMESTEPS.tolist()):
        for image in range(5):
            mean[i] += sae.dense(x[i, image], Position(t, conditioning[image : image + 1])).mean(0) / 5
    torch.testing.assert_close(found.mean, mean, rtol=1e-4, atol=1e-6)
    other = build_atlas(sae, TIMESTEPS, in_batches(x, 5, conditioning=conditioning.flip(0)), (2, 3), top_images=2)
    assert not torch.allclose(other.mean, mean, rtol=1e-2)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4, 2, 12, 5), r"activations are \[4, 2, 12, 5\]; an atlas needs \[4, images, 6, d_model\]"),
        ((3, 2, 6, 5), r"activations are \[3, 2, 6, 5\]; an atlas needs \[4, images, 6, d_model\]"),
        ((4, 6, 5), r"activations are \[4, 6, 5\]; an atlas needs"),
        ((4, 2, 6, 7), "activations have width 7 and this TIDE 5"),
    ],
)
def test_misshaped_activations(shape, message):
    with pytest.raises(TideError, match=message):
        build_atlas(model(), TIMESTEPS, [(torch.zeros(shape), None)], (2, 3))


def test_nothing_to_read():
    with pytest.raises(TideError, match="there are no images to make an atlas of; give at least one"):
        build_atlas(model(), TIMESTEPS, [], (2, 3))
    for timesteps, top_images in ((TIMESTEPS[:0], 6), (TIMESTEPS, 0)):
        with pytest.raises(TideError, match="are too few for an atlas; give at least 1 of both"):
            build_atlas(model(), timesteps, [], (2, 3), top_images=top_images)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_activations_that_are_not_finite(bad):
    x = activations(2, (2, 2))
    x[2, 1, 3, 0] = bad
    with pytest.raises(TideError, match="activations hold NaN or inf at timestep 300; use a wider dtype"):
        build_atlas(model(), TIMESTEPS, in_batches(x, 2), (2, 2))


# -- labels -----------------------------------------------------------------------------------------------------


def test_a_label_is_the_concept_that_fits_best_if_it_fits_well():
    generator = torch.Generator().manual_seed(0)
    masks = dict(zip(("roof", "near"), torch.rand(2, 400, generator=generator) < 0.3, strict=True))
    nothing, noise = torch.zeros(400, dtype=torch.bool), torch.rand(400, generator=generator)
    latents = torch.stack([masks["near"] + noise, noise, masks["roof"] * noise, torch.zeros(400)], dim=1)
    levels = {"roof": "part", "near": "3d", "snow": "ground"}
    found = label_latents(latents, {**masks, "snow": nothing}, levels)
    assert found[0] == Label("near", "3d", 1.0)
    assert found[2] == Label("roof", "part", 1.0)
    assert found[1] is found[3] is None
    assert label_latents(latents, masks, levels, least=0.0)[3].auroc == 0.5
    assert label_latents(latents, {"snow": nothing}, levels) == (None,) * 4
    assert label_latents(latents, {"snow": ~nothing}, levels) == (None,) * 4


@pytest.mark.parametrize("n", [49, 50])
def test_a_concept_on_a_few_tokens_names_nothing(n):
    mask = torch.arange(400) < n
    found = label_latents(mask[:, None].float(), {"trunk": mask}, {"trunk": "part"})
    assert found == ((Label("trunk", "part", 1.0),) if n == 50 else (None,))


# -- on disk ----------------------------------------------------------------------------------------------------


@pytest.fixture
def atlas() -> Atlas:
    return build_atlas(model(), TIMESTEPS, in_batches(activations(4, (2, 3)), 4), (2, 3), top_images=3)


def test_a_round_trip(atlas, tmp_path):
    labels = tuple(Label("<roof>", "part", 0.9) if i in (0, 10) else None for i in range(N_LATENTS))
    images = {i: ImageText(f"<{i}>.png", "\N{FAMILY}\nred" if i else "") for i in atlas.named_images()}
    full = replace(atlas, labels=labels, monosemanticity=torch.rand(N_LATENTS), images=images)
    assert full.monosemanticity is not None
    for name, each in (("plain", atlas), ("full", full)):
        each.save(str(tmp_path / name), run={"seed": 3})
        assert equal(Atlas.load(str(tmp_path / name)), each)
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["atlas.json", "atlas.safetensors"]
    facts = json.loads((tmp_path / "full" / "atlas.json").read_text())
    assert facts["run"] == {"seed": 3}
    assert facts["dead"] == 1
    assert facts["labels"]["10"] == {"concept": "<roof>", "level": "part", "auroc": 0.9}
    assert len(facts["labels"]) == 2
    assert facts["images"]["1"] == {"name": "<1>.png", "caption": "\N{FAMILY}\nred"}
    assert facts["images"].keys() == {str(i) for i in atlas.named_images()}


def test_what_is_no_atlas(atlas, tmp_path):
    with pytest.raises(TideError, match=r"atlas\.json does not exist; check the path"):
        Atlas.load(tmp_path)
    atlas.save(tmp_path)
    facts = json.loads((tmp_path / "atlas.json").read_text())
    (tmp_path / "atlas.json").write_text(json.dumps({**facts, "format": "tide-sae/1"}))
    with pytest.raises(TideError, match=r"atlas\.json is not of an atlas; give the folder that `tide atlas` wrote"):
        Atlas.load(tmp_path)
    (tmp_path / "atlas.json").write_text(json.dumps({k: v for k, v in facts.items() if k != "n_images"}))
    with pytest.raises(TideError, match=r"n_images is missing; the file is damaged"):
        Atlas.load(tmp_path)
    atlas.save(tmp_path)
    tensors = load_file(tmp_path / "atlas.safetensors")
    save_file({**tensors, "mean": tensors["mean"][:, 1:].contiguous()}, tmp_path / "atlas.safetensors")
    with pytest.raises(TideError, match=r"mean has shape \[4, 10\], not \[4, 11\]; make the atlas again"):
        Atlas.load(tmp_path)
    save_file({k: v for k, v in tensors.items() if k != "maps"}, tmp_path / "atlas.safetensors")
    with pytest.raises(TideError, match="holds no maps of 11 latents, or no timesteps"):
        Atlas.load(tmp_path)
    for name, wrong in {"top_images": atlas.top_images + 9, "frequency": atlas.frequency - 1}.items():
        save_file({**tensors, name: wrong}, tmp_path / "atlas.safetensors")
        with pytest.raises(TideError, match=f"{name} reaches outside of .*; make the atlas again"):
            Atlas.load(tmp_path)
    save_file({**tensors, "monosemanticity": torch.full((N_LATENTS,), torch.inf)}, tmp_path / "atlas.safetensors")
    with pytest.raises(TideError, match="monosemanticity holds NaN or inf"):
        Atlas.load(tmp_path)


def test_what_an_atlas_says_of_latents_that_it_has_not(atlas, tmp_path):
    atlas.save(tmp_path)
    facts = json.loads((tmp_path / "atlas.json").read_text())
    for change, match in (
        ({"n_latents": 10**15}, r"holds no maps of 1000000000000000 latents"),
        ({"labels": {"11": vars(Label("roof", "part", 0.9))}}, r"labels\.11 belongs to none of the 11 latents"),
        ({"labels": {"1": {"concept": "roof", "level": "part"}}}, r"labels is .* and must be an object or null"),
    ):
        (tmp_path / "atlas.json").write_text(json.dumps({**facts, **change}))
        with pytest.raises(TideError, match=match):
            Atlas.load(tmp_path)


def test_an_atlas_of_an_older_version_names_no_images(atlas, tmp_path):
    atlas.save(tmp_path)
    facts = json.loads((tmp_path / "atlas.json").read_text())
    del facts["images"]
    (tmp_path / "atlas.json").write_text(json.dumps(facts))
    assert equal(Atlas.load(tmp_path), atlas)


def test_names_of_other_images(atlas, tmp_path):
    images = {i: ImageText(f"{i}.png", "x" * 2000) for i in atlas.named_images()}
    for wrong in ({}, {**images, 9: ImageText("9.png", "")}):
        with pytest.raises(TideError, match="images of an atlas are not those that its latents name; give exactly"):
            replace(atlas, images=wrong)
    replace(atlas, images=images).save(tmp_path)
    assert {len(each.caption) for each in Atlas.load(tmp_path).images.values()} == {1000}
    facts = json.loads((tmp_path / "atlas.json").read_text())
    for change, match in (
        ({"images": {}}, r"images\.0 is missing, or of an image that no latent names; make the atlas again"),
        ({"images": {**facts["images"], "01": facts["images"]["1"]}}, r"images\.01 is missing, or of an image that no"),
        ({"images": {"0": {"name": "a.png"}}}, r"images is .* and must be an object or null"),
    ):
        (tmp_path / "atlas.json").write_text(json.dumps({**facts, **change}))
        with pytest.raises(TideError, match=match):
            Atlas.load(tmp_path)


def test_labels_and_scores_of_other_latents(atlas):
    with pytest.raises(TideError, match="2 labels for 11 latents; give one a latent"):
        replace(atlas, labels=(None, None))
    with pytest.raises(TideError, match=r"monosemanticity of an atlas is \[3\]"):
        replace(atlas, monosemanticity=torch.zeros(3))
