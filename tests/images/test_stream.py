"""Data sets that are streamed."""

from __future__ import annotations

import pytest

from tests.helpers.image_folders import picture
from tide.errors import TideError, TideWarning
from tide.images import open_data

N = 60

datasets = pytest.importorskip("datasets", reason="the datasets library is an extra")


@pytest.fixture
def rows():
    """Sorted by class, in six shards; row i is the i-th picture."""
    columns = {"image": [picture(i) for i in range(N)], "text": [f"{i // 20}" for i in range(N)]}
    data = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    return data.to_iterable_dataset(num_shards=6)


def numbers(data) -> list[int]:
    """Which pictures are read."""
    return [round((float(image[0, 0, 0]) + 1) * 127.5) for images, _ in data for image in images]


def test_rows_are_shuffled_by_the_seed_and_again_in_the_same_way(rows):
    data = open_data(rows, 8, seed=1)
    first = numbers(data)
    assert sorted(first) == list(range(N))
    assert first == numbers(data) == numbers(open_data(rows, 8, seed=1)) != numbers(open_data(rows, 8, seed=2))
    assert len({i // 20 for i in first[:12]}) == 3  # of every class
    assert numbers(open_data(rows, 8, seed=None)) == list(range(N))


def test_captions_and_samples_belong_to_the_images(rows):
    data = open_data(rows, 8)
    captions = [text for _, captions in data for text in captions]
    assert captions == [f"{i // 20}" for i in numbers(data)]
    assert [sample.name for sample in data.samples] == [f"row {i}" for i in range(N)]
    assert data.options == {"image_column": "image", "caption_column": "text"}


def test_the_same_images_are_held_out_for_every_seed(rows):
    kept = [set(numbers(open_data(rows, 8, seed=seed, hold_out=0.2))) for seed in range(3)]
    assert kept[0] == kept[1] == kept[2]
    assert 40 <= len(kept[0]) <= 55


def test_without_leaves_images_out(rows):
    data = open_data(rows, 8)
    first = numbers(data)
    rest = data.without({sample.image for sample in data.samples[:50]})
    assert numbers(rest) == first[50:]


def test_a_start_continues_the_same_order(rows):
    data = open_data(rows, 8, batch_size=7)
    whole = numbers(data)
    samples = data.samples
    assert numbers(iter_from(data, 11)) == whole[11:]
    assert data.samples == samples


def iter_from(data, start):
    return data.from_sample(start)


def test_classes_and_missing_columns(rows):
    classes = datasets.Dataset.from_dict({"image": [picture(0)], "label": [1]})
    classes = classes.cast_column("image", datasets.Image())
    classes = classes.cast_column("label", datasets.ClassLabel(names=["cat", "dog"]))
    ((_, captions),) = open_data(classes.to_iterable_dataset(), 8)
    assert captions == ["dog"]
    with pytest.raises(TideError, match="no column caption; it has image, text: set caption_column"):
        open_data(rows, 8, caption_column="caption")
    with pytest.raises(TideError, match="the Dataset holds no rows"):
        open_data(datasets.IterableDataset.from_generator(lambda: iter(())), 8)


def test_rows_without_an_image_are_skipped_if_asked():
    cells = [{"image": picture(0), "text": "a"}, {"image": None, "text": "b"}]
    data = datasets.IterableDataset.from_generator(lambda: iter(cells))
    with pytest.raises(TideError, match="the image of row 1 of the Dataset holds no image"):
        numbers(open_data(data, 8, seed=None))
    with pytest.warns(TideWarning, match=r"the image of row 1 of the Dataset holds no image; .*; skipped"):
        assert numbers(open_data(data, 8, seed=None, on_error="skip")) == [0]
