"""What follows from a pass over the images, against the atlas of the same images and brute force."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import tide
from tests.helpers.image_folders import list_captions, save
from tests.helpers.indexes import LATENTS, TIMESTEPS, built, scenes, untrained
from tide.activations import Source
from tide.adapters import Adapter
from tide.files.rows import Rows
from tide.index import Index
from tide.index.gathering import CAPTION, embedded, lots
from tide.index.layout import DRAWN, FIRING, TOP
from tide.index.neighbours import nearest
from tide.interpretation import Atlas, make_atlas
from tide.interpretation.atlas import label_latents
from tide.interpretation.atlas_reading import read_atlas
from tide.interpretation.monosemanticity import Monosemanticity

IMAGES, DEAD = 14, 5


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    """The bundled pipeline, which is trained: some of any latents fit a concept."""
    return tide.load_adapter("scenes")


@pytest.fixture(scope="module", autouse=True)
def _labels_of_low_scores():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(label_latents.__kwdefaults__, "least", 0.7)
        yield


def model(adapter):
    """With a latent that never fires."""
    sae = untrained(adapter)
    with torch.no_grad():
        sae.b_enc[DEAD] = -1e6
    return sae


@pytest.fixture(scope="module")
def source(adapter) -> Source:
    return scenes(adapter, IMAGES, 4)


@pytest.fixture(scope="module")
def index(adapter, source, tmp_path_factory) -> Index:
    return built(adapter, tmp_path_factory.mktemp("run"), model=model(adapter), source=source)


@pytest.fixture(scope="module")
def atlas(adapter, source, tmp_path_factory) -> Atlas:
    out = tmp_path_factory.mktemp("atlas")
    return make_atlas(adapter, model(adapter), source, out, timesteps=TIMESTEPS, top_images=TOP)


@pytest.fixture(scope="module")
def latents(adapter, source) -> torch.Tensor:
    """All of them, averaged over the timesteps: ``[images, tokens, n_latents]``."""
    kept: list[torch.Tensor] = []
    everywhere = torch.ones(IMAGES, 64, dtype=torch.bool)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "tide.interpretation.atlas_reading.label_latents", lambda latents, masks, level_of: kept.append(latents)
        )
        read_atlas(adapter, model(adapter), source, TIMESTEPS, masks={"any": everywhere}, level_of={"any": "all"})
    return kept[0].clone().view(IMAGES, 64, LATENTS)


def rows(index: Index, name: str) -> torch.Tensor:
    return torch.from_numpy(index.rows(name)[:])


def test_equals_the_atlas(index, atlas):
    assert torch.equal(rows(index, "frequency"), atlas.frequency.T)
    assert torch.equal(rows(index, "mean"), atlas.mean.T)
    assert torch.equal(rows(index, "top_images").long(), atlas.top_images)
    assert torch.equal(rows(index, "top_values"), atlas.top_values)
    assert torch.equal(rows(index, "top_maps"), atlas.maps)
    assert index.facts["dead"] == int(atlas.dead.sum()) >= 1


def test_labels_are_those_of_the_atlas(index, atlas):
    assert atlas.labels is not None
    found = index.query("SELECT concept, level, auroc FROM latents ORDER BY latent")
    expected = [vars(label) if label else {"concept": None, "level": None, "auroc": None} for label in atlas.labels]
    assert found == expected
    assert len({label.concept for label in atlas.labels if label}) > 1
    assert index.facts["labels"] == "masks"


def test_columns(index, atlas, latents):
    columns = index.columns()
    assert np.array_equal(columns["frequency"], atlas.activity.numpy())
    assert np.array_equal(columns["step"], atlas.frequency.argmax(0).numpy())
    assert np.array_equal(columns["strongest"], atlas.top_values[:, 0].numpy())
    assert np.array_equal(columns["images"], (latents.amax(1) > 0).sum(0).numpy())
    concepts = index.concepts()
    for label, place in zip(atlas.labels or (), columns["concept"].tolist(), strict=True):
        assert (concepts[place]["concept"] if place >= 0 else None) == (label.concept if label else None)


def test_concepts_have_their_latents_and_the_best_of_them(index, atlas):
    found = index.concepts()
    labelled = [(i, label) for i, label in enumerate(atlas.labels or ()) if label]
    assert sum(each["count"] for each in found) == len(labelled)
    for each in found:
        own = {i: label.auroc for i, label in labelled if label.concept == each["concept"]}
        assert each["count"] == len(own)
        assert each["auroc"] == max(own.values()) == own[each["best"]]
    assert [(each["level"], -each["auroc"]) for each in found] == sorted(
        (each["level"], -each["auroc"]) for each in found
    )


def test_monosemanticity_is_that_of_the_captions(index, latents, source):
    captions = [caption for _, texts in source for caption in texts]
    scores = Monosemanticity(LATENTS, CAPTION)
    scores.update(latents.amax(1), torch.stack(list(map(embedded, captions))))
    expected, found = scores.scores(), torch.from_numpy(index.columns()["monosemanticity"])
    torch.testing.assert_close(found, expected, equal_nan=True)
    assert found.isfinite().sum() > LATENTS / 2
    assert found[DEAD].isnan()


def test_where_each_latent_fires_and_its_peaks_there(index, latents):
    peaks = latents.amax(1)
    for latent in range(LATENTS):
        images, heights = index.firing(latent)
        assert images.tolist() == peaks[:, latent].nonzero().flatten().tolist()
        assert np.array_equal(heights, peaks[images.tolist(), latent].numpy())
    assert len(index.firing(DEAD)[0]) == 0
    assert Rows(index.folder / FIRING, "starts")[:][-1] == (peaks > 0).sum()


def test_drawn_images_are_a_sample_sorted_by_peak(index, latents):
    peaks, lot = latents.amax(1), lots(LATENTS, 0, IMAGES)
    images, values, maps = (rows(index, f"drawn_{name}") for name in ("images", "values", "maps"))
    left_out = 0
    for latent in range(LATENTS):
        fires = peaks[:, latent].nonzero().flatten().tolist()
        drawn = sorted(fires, key=lambda i: -float(lot[latent, i]))[:DRAWN]
        expected = sorted(drawn, key=lambda i: -float(peaks[i, latent]))
        lacking = DRAWN - len(expected)
        left_out += len(fires) - len(expected)
        assert images[latent].tolist() == expected + [-1] * lacking
        assert values[latent].tolist() == peaks[expected, latent].tolist() + [0] * lacking
        strongest = latents[:, :, latent].max().clamp(min=1e-30)  # of the top images: weak firing looks weak
        for place, image in enumerate(expected):
            scaled = (latents[image, :, latent] / strongest * 255).round().byte()
            assert torch.equal(maps[latent, place].flatten(), scaled)
    assert left_out > 0


def test_the_mean_map(index, latents):
    mean = latents.mean(0).T
    expected = mean / mean.amax(1, keepdim=True).clamp(min=1e-9) * 255
    torch.testing.assert_close(rows(index, "mean_map").flatten(1).float(), expected, rtol=0, atol=0.51)


def test_neighbours_by_what_latents_write(index, adapter):
    numbers, cosines = rows(index, "writes"), rows(index, "writes_cosine")
    directions = model(adapter).W_dec.detach().clone()
    dead = rows(index, "frequency").sum(1) == 0
    directions[dead] = 0
    expected = nearest(directions, 12)
    assert torch.equal(numbers, expected[0])
    assert torch.equal(cosines, expected[1])
    assert DEAD not in numbers
    assert (numbers[DEAD] == -1).all()


def test_neighbours_by_where_latents_fire(index, latents):
    numbers, cosines = rows(index, "fires"), rows(index, "fires_cosine")
    maps = F.normalize(latents.flatten(0, 1).T)
    exact = (maps @ maps.T).gather(1, numbers.clamp(min=0).long())
    there = numbers >= 0
    assert (exact - cosines)[there].abs().max() < 6 / 512**0.5
    assert (exact - cosines)[there].square().mean().sqrt() < 1.5 / 512**0.5
    assert DEAD not in numbers
    assert (numbers[DEAD] == -1).all()
    assert (numbers != torch.arange(LATENTS)[:, None]).all()


def test_sketches_of_two_autoencoders_on_the_same_images_are_compared(adapter, index, source, tmp_path):
    """An autoencoder with the latents in another order: each finds itself."""
    sae, order = model(adapter), torch.randperm(LATENTS, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for each in (sae.W_enc, sae.W_dec, sae.b_enc):
            each.copy_(each[order].clone())
    other = built(adapter, tmp_path, model=sae, source=source)
    sketches = [F.normalize(rows(each, "sketch").float()) for each in (index, other)]
    alive = rows(other, "frequency").sum(1) > 0
    cosines = sketches[1] @ sketches[0].T
    assert torch.equal(cosines.argmax(1)[alive], order[alive])
    assert cosines.amax(1)[alive].min() > 0.99
    assert rows(index, "sketch").dtype == torch.float16
    assert (rows(index, "sketch")[DEAD] == 0).all()


def test_sketches_of_weak_latents_keep_their_directions(adapter, index, source, tmp_path):
    """Latents so small that half precision would not hold their sums."""
    sae = model(adapter)
    with torch.no_grad():
        sae.W_enc.mul_(1e-9)
        sae.b_enc.mul_(1e-9)
    other = built(adapter, tmp_path, model=sae, source=source)
    alive = rows(other, "frequency").sum(1) > 0
    cosines = F.cosine_similarity(rows(index, "sketch").float(), rows(other, "sketch").float())
    assert alive.sum() > LATENTS / 2
    assert cosines[alive].min() > 0.99


# -- captions ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(adapter, tmp_path_factory) -> Source:
    """Pictures of two colours, which their captions name."""
    folder: Path = tmp_path_factory.mktemp("photos")
    colours = {"crimson": (220, 20, 60), "teal": (0, 128, 128)}
    lines = []
    for i in range(60):
        name = ("crimson", "teal")[i // 2 % 2]
        save(folder / f"{i:02}.png", colours[name], (16, 16))
        lines.append({"file_name": f"{i:02}.png", "text": f"a {name} wall, number {i}"})
    list_captions(folder, lines)
    return tide.open_source(folder, adapter, batch_size=20, size=(64, 64))


def test_labels_of_captions_are_those_of_the_atlas(adapter, photos, tmp_path, monkeypatch):
    """Also where latents are labelled a few at a time."""
    monkeypatch.setattr("tide.index.finishing.dense_peaks.__defaults__", (60 * 10,))
    index = built(adapter, tmp_path / "run", source=photos)
    atlas = make_atlas(adapter, untrained(adapter), photos, tmp_path / "atlas", timesteps=TIMESTEPS)
    assert atlas.labels is not None
    assert any(atlas.labels)
    found = index.query("SELECT concept, level, auroc FROM latents ORDER BY latent")
    expected = [vars(label) if label else {"concept": None, "level": None, "auroc": None} for label in atlas.labels]
    assert found == expected
    assert index.facts["labels"] == "captions"
    first = photos.samples()[0].name
    assert index.image(0)["name"] == first
    assert index.image(0)["caption"].endswith(f"number {int(first[:2])}")


def test_captions_that_are_too_few_label_nothing(adapter, photos, tmp_path):
    index = built(adapter, tmp_path, source=tide.open_source([photos_of(photos)] * 3, adapter, size=(64, 64)))
    assert index.facts["labels"] == "none"
    assert index.concepts() == []
    assert (index.columns()["concept"] == -1).all()


def photos_of(photos: Source):
    from PIL import Image

    return Image.new("RGB", photos.size[::-1], "teal"), "a teal wall"
