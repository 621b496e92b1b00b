"""Images that are encoded once, when a process first reads them, and kept."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from tide.activations.collect import collect, prepare
from tide.activations.encoded import Encoded
from tide.data import open_source
from tide.errors import TideError

N, PASS, LENGTH = 10, 4, 24


@pytest.fixture
def encoded(adapter) -> Encoded:
    return Encoded(adapter, open_source("scenes", adapter, images=N), batch_size=PASS, max_sequence_length=LENGTH)


@pytest.fixture
def counted(adapter, monkeypatch) -> list[int]:
    """The numbers of images that the VAE has encoded at a time."""
    counts, encode = [], type(adapter).encode_images

    def counting(self, images):
        counts.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(type(adapter), "encode_images", counting)
    return counts


def test_passes_are_those_of_the_source(adapter, encoded):
    whole = list(prepare(adapter, encoded.source, batch_size=PASS, max_sequence_length=LENGTH))
    for start in (4, 0, 8):  # in part, and once more
        found = list(encoded.from_sample(start))
        for one, other in zip(whole[start // PASS :], found, strict=True):
            assert torch.equal(one.latents, other.latents)
            assert all(torch.equal(value, other.text[name]) for name, value in one.text.items())


def test_a_rank_encodes_its_own_images_alone_and_once(encoded, counted):
    """Its passes of two epochs: the images 4 to 9."""
    for _ in range(2):
        assert [len(each.latents) for each in encoded.from_sample(4)] == [4, 2]
    assert counted == [4, 2]
    next(encoded.from_sample(0))
    assert counted == [4, 2, 4]


def test_what_is_encoded_already_is_not_read_again(encoded, counted):
    list(islice(encoded.from_sample(4), 1))
    assert len(list(encoded.from_sample(0))) == 3
    assert counted == [4, 4, 2]


def test_collecting_between_two_images_encodes_no_others(adapter, encoded, counted):
    options = {"token_fraction": 1 / 4, "batch_size": PASS, "seed": 3, "max_sequence_length": LENGTH}
    (own,) = collect(adapter, encoded, [2], start=4, stop=8, **options)
    assert counted == [4]
    (alone,) = collect(adapter, encoded.source, [2], start=4, stop=8, **options)
    assert torch.equal(own[2].x, alone[2].x)


def test_a_start_within_a_pass(encoded):
    with pytest.raises(TideError, match=r"^image 6 does not begin a pass of 4; start at a multiple of it$"):
        next(encoded.from_sample(6))
