"""What an index gives to those who find names, and the names that its labels are."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from tests.helpers.planted_index import EXACT, N_IMAGES, N_LATENTS, SILENT, TURNING, WORD, planted_index, showing
from tide.errors import TideError
from tide.index import Index
from tide.index.naming import batches, captions, concept_names, heat, peaks, pictures
from tide.interpretation.names import Entry, Score
from tide.interpretation.naming import name_by_captions

AT = "2026-11-28T09:00:00Z"


@pytest.fixture(scope="module")
def index(adapter, tmp_path_factory) -> Index:
    return planted_index(adapter, tmp_path_factory.mktemp("run"))


def whole(index: Index, **options) -> torch.Tensor:
    return torch.cat([columns for _, columns in peaks(index, **options)], dim=1)


def test_peaks_are_those_of_each_latent(index):
    found = whole(index)
    assert (found.shape, found.dtype) == ((N_IMAGES, N_LATENTS), torch.float32)
    for latent in range(N_LATENTS):
        images, values = index.firing(latent)
        expected = np.zeros(N_IMAGES, np.float32)
        expected[images] = values
        assert found[:, latent].tolist() == expected.tolist()
    assert found[:, EXACT].gt(0).tolist() == showing(index).tolist()
    assert not found[:, SILENT].any()


def test_peaks_come_in_pieces(index):
    parts = list(peaks(index, at_once=24))
    assert [list(latents) for latents, _ in parts] == [[*range(24)], [*range(24, 48)], [*range(48, 64)]]
    assert [columns.shape for _, columns in parts] == [(N_IMAGES, 24), (N_IMAGES, 24), (N_IMAGES, 16)]
    assert torch.cat([columns for _, columns in parts], dim=1).equal(whole(index))


def test_a_piece_is_as_large_as_memory_allows(index, monkeypatch):
    monkeypatch.setattr("tide.index.naming.SIZE", 3 * N_IMAGES)
    assert {len(latents) for latents, _ in peaks(index)} == {3, 1}
    monkeypatch.setattr("tide.index.naming.SIZE", 1)
    assert {len(latents) for latents, _ in peaks(index)} == {1}


def test_peaks_of_some_latents(index):
    ((latents, columns),) = peaks(index, [40, EXACT])
    assert list(latents) == [40, EXACT]
    assert columns.equal(whole(index)[:, [40, EXACT]])
    with pytest.raises(TideError, match=r"latent 64 does not exist; there are 0\.\.63"):
        next(peaks(index, [64]))


def test_a_peak_that_half_precision_does_not_hold_is_one(index, tmp_path):
    other = copied(index, tmp_path)
    path = other.folder / "firing.safetensors"
    found = {name: value.copy() for name, value in load_file(path).items()}
    found["peaks"][:2] = [0, np.inf]
    save_file(found, path)
    images, _ = index.firing(EXACT)
    weak, strong = whole(other)[images[:2], EXACT].tolist()
    assert 0 < weak < 1e-7
    assert strong == 65504


def test_a_latent_that_fires_on_a_word_gets_it(index):
    found = name_by_captions(peaks(index), captions(index), at=AT)
    assert found[EXACT] == Entry(EXACT, "captions", AT, WORD, score=Score(1.0, N_IMAGES // 2))
    assert SILENT not in found
    assert TURNING not in found  # the images that chose its word do not score it


def test_pictures_are_read_one_at_a_time(index):
    found = pictures(index)
    assert len(found) == N_IMAGES
    assert (found[3].dtype, found[3].shape) == (np.uint8, (*index.facts["picture"], 3))
    assert not np.array_equal(found[3], found[4])
    assert [np.array_equal(a, found[i]) for i, a in enumerate(found[:2])] == [True, True]
    with pytest.raises(IndexError):
        found[N_IMAGES]
    parts = list(batches(index, 40))
    assert [len(each) for each in parts] == [40, 24]
    restored = ((torch.cat(parts)[50] + 1) * 127.5).round().byte().permute(1, 2, 0)
    assert np.array_equal(restored.numpy(), found[50])


def test_a_damaged_picture_is_named(index, tmp_path):
    damaged = copied(index, tmp_path)
    path = damaged.folder / "pictures.bin"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(TideError, match="the picture of image 0 is damaged; make the index again"):
        pictures(damaged)[0]


class Forgetful(Index):
    """An index without the maps of single images."""

    def rows(self, name):
        rows = super().rows(name)
        return np.full(rows.shape, -1) if name.endswith("_images") else rows


def test_heat_is_the_map_over_an_image(index):
    """Where the map was kept, and where it is put together from what fires in each place: eight of 64 latents fire at
    a time, and sixteen are kept."""
    kept, gathered = heat(index), heat(Forgetful(index.run))
    compared = 0
    for latent in range(TURNING + 1, N_LATENTS):
        for kind in ("top", "drawn"):
            images, values = index.rows(f"{kind}_images")[latent], index.rows(f"{kind}_values")[latent]
            for image, value in zip(images.tolist()[:2], values.tolist(), strict=False):
                if image >= 0:
                    found = kept(latent, image)
                    assert (found.shape, found.dtype) == (tuple(index.facts["map"]), np.float32)
                    assert found.max() == pytest.approx(value)
                    np.testing.assert_allclose(gathered(latent, image), found, atol=value / 20)
                    compared += 1
    assert compared > N_LATENTS


def test_heat_is_nothing_where_a_latent_is_silent(index):
    silent = next(
        (latent, image)
        for latent in range(TURNING + 1, N_LATENTS)
        for image in set(range(N_IMAGES)) - set(index.firing(latent)[0].tolist())
    )
    assert not heat(index)(*silent).any()
    with pytest.raises(TideError, match="latent -1 does not exist"):
        heat(index)(-1, 0)
    with pytest.raises(TideError, match="image 64 does not exist"):
        heat(index)(EXACT, N_IMAGES)


def test_labels_by_masks_have_no_score_where_every_image_chose_them(index):
    assert concept_names(index, at=AT) == {i: Entry(i, "concepts", AT, WORD) for i in (EXACT, TURNING)}


def test_labels_by_masks_are_scored_on_images_that_chose_none(index, monkeypatch):
    monkeypatch.setattr("tide.index.naming.most_labelled", lambda n_latents, n_tokens: 24)
    found = concept_names(index, at=AT)
    assert found[EXACT].score == Score(1.0, N_IMAGES - 24)
    assert 0.2 < found[TURNING].score.auroc < 0.8
    monkeypatch.setattr("tide.index.naming.most_labelled", lambda n_latents, n_tokens: N_IMAGES - 8)
    assert concept_names(index)[EXACT].score is None  # too few images


def test_words_of_captions_are_no_labels_by_masks(index, tmp_path):
    other = copied(index, tmp_path)
    path = other.folder / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"labels": "captions"}))
    with pytest.raises(TideError, match="has no labels by masks, only rendered scenes have; find names by captions"):
        concept_names(Index(other.run))


def copied(index: Index, to) -> Index:
    shutil.copytree(index.folder, to / "run" / index.folder.name)
    return Index(to / "run")
