"""Which images are read, in which order, and what is recorded of them."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.image_folders import list_captions, make, save
from tide.errors import TideWarning
from tide.images import open_data
from tide.images.identity import UNREAD

pytestmark = pytest.mark.filterwarnings("ignore:.*empty prompt:tide.errors.TideWarning")

NAMES = ("a.png", "b.png", "sub/c.png", "sub/d.png", "e.png")


@pytest.fixture
def folder(tmp_path):
    folder = make(tmp_path / "photos", *NAMES)
    list_captions(folder, [{"file_name": name, "text": f"caption of {name}"} for name in NAMES])
    return folder


def names(data) -> list[str]:
    return [sample.name for sample in data.samples]


def read(data) -> list[str]:
    list(data)
    return names(data)


def test_the_order_depends_on_the_seed_and_is_that_of_every_iteration(folder):
    orders = {tuple(read(open_data(folder, 8, seed=seed))) for seed in range(4)}
    assert len(orders) > 1
    assert all(sorted(order) == sorted(NAMES) for order in orders)
    data = open_data(folder, 8, seed=1)
    assert read(data) == read(data)
    assert read(open_data(folder, 8, seed=None)) == ["a.png", "b.png", "e.png", "sub/c.png", "sub/d.png"]


def test_images_captions_and_samples_belong_together(folder):
    data = open_data(folder, 8, batch_size=2)
    pairs = [(image, text) for images, captions in data for image, text in zip(images, captions, strict=True)]
    for (image, caption), sample in zip(pairs, data.samples, strict=True):
        assert caption == f"caption of {sample.name}"
        assert round((float(image[0, 0, 0]) + 1) * 127.5) == NAMES.index(sample.name)


def test_samples_say_what_was_read(folder):
    data = open_data(folder, 8, batch_size=2)
    next(iter(data))
    assert len(data.samples) == 2
    before = dict(zip(read(data), data.samples, strict=True))
    save(folder / "a.png", (255, 0, 1))
    list_captions(folder, [{"file_name": name, "text": "another"} for name in NAMES if name == "b.png"])
    changed = open_data(folder, 8)
    after = dict(zip(read(changed), changed.samples, strict=True))
    assert after["a.png"].image != before["a.png"].image
    assert after["b.png"].image == before["b.png"].image
    assert after["b.png"].caption != before["b.png"].caption


def test_the_digest_of_an_image_does_not_depend_on_the_size(folder):
    small, large = open_data(folder, 8), open_data(folder, (16, 24))
    read(small), read(large)
    assert small.samples == large.samples


@pytest.mark.parametrize("start", range(7))
def test_a_reading_from_a_sample_on_knows_those_before(folder, start):
    data = open_data(folder, 8, batch_size=2)
    whole = list(data)
    samples, images = data.samples, torch.cat([images for images, _ in whole])
    rest = list(data.from_sample(start))
    assert data.samples == samples
    assert sum(len(captions) for _, captions in rest) == max(0, 5 - start)
    if rest:
        assert torch.equal(torch.cat([images for images, _ in rest]), images[start:])
    assert data.samples_before(start)[:start] == samples[:start]


def test_images_before_the_start_are_not_decoded(folder, monkeypatch):
    opened = []
    monkeypatch.setattr("tide.images.sets.to_tensor", lambda image, size: opened.append(1) or torch.zeros(3, 4, 4))
    list(open_data(folder, 8).from_sample(4))
    assert len(opened) == 1


def test_files_before_the_first_that_is_recorded_are_not_read(folder):
    whole = open_data(folder, 8)
    read(whole)
    late = open_data(folder, 8).recording_from(3)
    for name in names(whole)[:3]:
        (folder / name).write_text("no image")
    assert late.samples_before(4) == [UNREAD] * 3 + whole.samples[3:4]
    rest = torch.cat([images for images, _ in late.from_sample(3)])
    assert late.samples == [UNREAD] * 3 + whole.samples[3:]
    assert len(rest) == 2


def test_a_listing_tells_names_and_their_order(folder):
    data = open_data(folder, 8, seed=1)
    assert data.listing(5) == open_data(folder, 8, seed=1).listing(5)
    assert len({data.listing(5), data.listing(4), open_data(folder, 8, seed=3).listing(5)}) == 3
    save(folder / "new.png", (1, 2, 3))
    assert open_data(folder, 8, seed=1).listing(6) != data.listing(5)


def test_unreadable_images_that_are_skipped_are_no_samples(folder):
    (folder / "b.png").write_text("not an image")
    data = open_data(folder, 8, on_error="skip")
    with pytest.warns(TideWarning, match=r"b\.png is not a readable image .*; skipped"):
        batches = list(data.from_sample(1))
    assert sorted(names(data)) == sorted(set(NAMES) - {"b.png"})
    assert sum(len(captions) for _, captions in batches) == 3


def test_a_share_is_left_out_whatever_the_seed(folder):
    kept = [set(read(open_data(folder, 8, hold_out=0.3, seed=seed))) for seed in range(3)]
    assert kept[0] == kept[1] == kept[2]
    assert 1 <= len(kept[0]) <= 4


def test_without_leaves_images_out_by_their_digest_and_decodes_none_of_them(folder, monkeypatch):
    data = open_data(folder, 8)
    list(data)
    first = data.samples
    opened = []
    real = type(data.images).picture
    monkeypatch.setattr(type(data.images), "picture", lambda self, i: opened.append(self.name(i)) or real(self, i))
    rest = data.without({first[0].image, first[3].image})
    assert read(rest) == [each.name for each in first if each not in (first[0], first[3])] == opened
    assert read(rest.without([first[1].image])) == [first[2].name, first[4].name]
    assert read(data) == [each.name for each in first]  # unchanged
    assert read(data.without({each.image for each in first})) == []


def test_without_leaves_copies_of_an_image_out_too(folder):
    (folder / "copy.png").write_bytes((folder / "a.png").read_bytes())
    data = open_data(folder, 8)
    list(data)
    excluded = next(each.image for each in data.samples if each.name == "a.png")
    assert set(read(data.without([excluded]))) == set(NAMES) - {"a.png"}


def test_recorded_images_come_first(folder):
    data = open_data(folder, 8, seed=None)
    list(data)
    by_name = {sample.name: sample for sample in data.samples}
    data = open_data(folder, 8, seed=5).beginning_with({0: by_name["b.png"], 1: by_name["sub/d.png"]})
    assert read(data)[:2] == ["b.png", "sub/d.png"]
    assert sorted(read(data)) == sorted(NAMES)


def test_what_the_first_images_are_is_known_without_decoding_any(folder):
    """Not even the one after them, which nobody asked for."""
    data = open_data(folder, 8)
    list(data)
    samples = data.samples
    for name in NAMES:
        (folder / name).write_bytes(b"no image")
    again = open_data(folder, 8)
    assert [each.name for each in again.samples_before(3)] == [each.name for each in samples[:3]]
    assert again.samples_before(0) == []
    assert len(again.samples_before(99)) == 5
    assert list(again.captions()) == [f"caption of {each.name}" for each in samples]
