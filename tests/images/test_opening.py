"""Images with captions from a folder, and what is said of faulty ones."""

from __future__ import annotations

import json
import os
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from tide.activations.collect import collect
from tide.adapters import adapter_for
from tide.errors import TideError
from tide.images.opening import image_folder, open_data


def save(path, colour=(255, 0, 0), size=(64, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def folder(tmp_path):
    tmp_path = tmp_path / "images"
    save(tmp_path.parent / "outside.png")
    for name in ("a.png", "b.png", "sub/c.png"):
        save(tmp_path / name)
    (tmp_path / "b.txt").write_text("a tree\n")
    return tmp_path


def test_images_and_captions(folder):
    data = image_folder(folder, 32, batch_size=2)
    assert len(data) == 3
    for _ in range(2):  # every iteration reads again
        (first, captions), (second, last) = data
        assert first.shape == (2, 3, 32, 32)
        assert second.shape == (1, 3, 32, 32)
        assert first.dtype == torch.float32
        assert (captions, last) == (["", "a tree"], [""])
        torch.testing.assert_close(first[0, :, 0, 0], torch.tensor([1.0, -1.0, -1.0]))


def test_metadata_comes_before_text_files(folder):
    lines = [{"file_name": "b.png", "text": "a cube"}, {"file_name": "sub/c.png", "text": "a sphere"}]
    (folder / "metadata.jsonl").write_text("\n\n".join(map(json.dumps, lines)))
    ((_, captions),) = image_folder(folder, 16)
    assert captions == ["", "a cube", "a sphere"]


def test_crops_about_the_centre(tmp_path):
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 20:60] = 255  # the middle square is white
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    ((image, _),) = image_folder(tmp_path, 40)
    assert image.min() == 1.0
    ((image, _),) = image_folder(tmp_path, (20, 40))
    assert image.shape == (1, 3, 20, 40)
    assert image[..., 0].max() == -1.0


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "CMYK"])
def test_every_colour_mode(tmp_path, mode):
    Image.new(mode, (8, 8)).save(tmp_path / ("x.jpg" if mode == "CMYK" else "x.png"))
    ((image, _),) = image_folder(tmp_path, 8)
    assert image.shape == (1, 3, 8, 8)


def test_unreadable_images(folder):
    (folder / "aa.jpg").write_text("not an image")
    whole = (folder / "a.png").read_bytes()
    (folder / "ab.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TideError, match=r"aa\.jpg is not a readable image.*skip unreadable"):
        list(image_folder(folder, 16))
    with pytest.warns(UserWarning, match="skipped"):
        batches = list(image_folder(folder, 16, on_error="skip"))
    assert sum(len(captions) for _, captions in batches) == 3


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("{", r"line 1 is not"),
        ('{"file_name": "a.png"}', "line 1 is not"),
        ("3", "line 1 is not"),
        ('{"file_name": "a.png", "text": 5}', "line 1 is not"),
        ('{"file_name": 5, "text": "x"}', "line 1 is not"),
        ('{"file_name": "z.png", "text": "x"}', r"line 1 names z\.png, which is not in the folder"),
        ('{"file_name": "../outside.png", "text": "x"}', r"line 1 names \.\./outside\.png, which is not in the folder"),
        ('{"file_name": "/etc/hosts", "text": "x"}', r"line 1 names /etc/hosts, which is not in the folder"),
        ('{"file_name": "a\\u0000.png", "text": "x"}', r"line 1 names .*, which is not in the folder"),
        ("[" * 100_000, "line 1 is not"),
    ],
)
def test_faulty_metadata(folder, line, match):
    (folder / "metadata.jsonl").write_text(line)
    with pytest.raises(TideError, match=match):
        image_folder(folder, 16)


def test_a_name_in_the_metadata_is_that_of_the_file_however_it_is_written(folder):
    """Else the caption would be lost without a word."""
    lines = [{"file_name": "./a.png", "text": "one"}, {"file_name": "sub//c.png", "text": "two"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    ((_, captions),) = image_folder(folder, 16)
    assert captions == ["one", "a tree", "two"]


def test_metadata_in_another_encoding(folder):
    (folder / "metadata.jsonl").write_bytes('{"file_name": "a.png", "text": "ein Häuschen"}'.encode("latin-1"))
    with pytest.raises(TideError, match=r"metadata\.jsonl is not UTF-8 text"):
        image_folder(folder, 16)


def test_what_is_too_large_or_a_pipe_is_skipped_too(folder):
    Image.new("1", (70_000, 1)).save(folder / "wide.png")
    os.mkfifo(folder / "pipe.png")  # is not among the files: reading it would wait for ever
    with pytest.raises(TideError, match=r"wide\.png is 70000 x 1 pixels .*make it smaller, or skip unreadable images"):
        list(image_folder(folder, 16))
    with pytest.warns(UserWarning, match=r"wide\.png is 70000 x 1 pixels .*; skipped"):
        batches = list(image_folder(folder, 16, on_error="skip"))
    assert sum(len(captions) for _, captions in batches) == 3


def test_faulty_folders_and_sizes(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    for match, path, size, kwargs in [
        ("is not a folder", tmp_path / "nowhere", 16, {}),
        ("holds no images", tmp_path / "empty", 16, {}),
        ("size 0 has no pixels", folder, 0, {}),
        (r"size \(8, -1\) has no pixels", folder, (8, -1), {}),
        ("batch_size 0", folder, 16, {"batch_size": 0}),
    ]:
        with pytest.raises(TideError, match=match):
            image_folder(path, size, **kwargs)
    (folder / "b.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(TideError, match=r"b\.txt is not UTF-8"):
        list(image_folder(folder, 16))


def test_open_data_reads_folders(folder):
    ((images, captions),) = open_data(folder, 16)
    assert (len(images), captions) == (3, ["", "a tree", ""])
    with pytest.raises(TideError, match="is not a folder"):
        open_data(folder / "nowhere", 16)


def test_open_data_without_datasets(monkeypatch):
    monkeypatch.setattr("tide.images.opening.find_spec", lambda name: None)
    with pytest.raises(TideError, match=r"owner/pictures is not a folder; give one, or `pip install datasets`"):
        open_data("owner/pictures", 16)


class Rows(list):
    """What ``datasets.load_dataset`` returns: rows, the features of their columns, and the means to change both."""

    def __init__(self, rows, features=None):
        super().__init__(rows)
        self.features = features

    def select_columns(self, names):
        return Rows([{n: row[n] for n in names} for row in self], {n: self.features[n] for n in names})

    def cast_column(self, name, feature):
        assert not feature.decode
        return Rows([row | {name: row[name].stored} for row in self], self.features | {name: feature})


class StoredImage:
    """An image column: decoded unless it is cast."""

    def __init__(self, decode=True):
        self.decode = decode


class Picture:
    """What a cell of an image column is before it is decoded."""

    def __init__(self, **stored):
        self.stored = stored


@pytest.fixture
def with_rows(monkeypatch):
    """Has ``datasets`` find these rows under any name."""

    def install(rows):
        fake = ModuleType("datasets")
        fake.load_dataset = lambda name, split, streaming: rows
        fake.Image = StoredImage
        monkeypatch.setitem(sys.modules, "datasets", fake)
        monkeypatch.setattr("tide.images.opening.find_spec", lambda name: object())

    return install


def test_pictures_of_a_named_data_set_are_opened_as_those_of_a_folder(with_rows, folder):
    """``datasets`` would decode any format: the column is read as bytes or paths, other columns are not read."""
    pictures = [
        Picture(bytes=(folder / "a.png").read_bytes(), path=None),
        Picture(bytes=None, path=str(folder / "b.png")),
        Picture(bytes=b"%!PS-Adobe-3.0 EPSF-3.0", path="x.png"),
    ]
    sys.modules.setdefault("fsspec", pytest.importorskip("fsspec"))
    rows = [{"image": picture, "text": "t", "other": None} for picture in pictures]
    with_rows(Rows(rows, {"image": StoredImage(), "text": "string", "other": StoredImage()}))
    data = open_data("owner/pictures", 8, batch_size=2)
    assert list(data.rows[0]) == ["image", "text"]
    read = iter(data)
    assert next(read)[0].shape == (2, 3, 8, 8)
    with pytest.raises(TideError, match=r"row 2 of owner/pictures is not a readable image .*or skip unreadable images"):
        next(read)
    with pytest.warns(UserWarning, match=r"row 2 of owner/pictures is not a readable image .*; skipped"):
        assert [len(captions) for _, captions in open_data("owner/pictures", 8, on_error="skip")] == [2]


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"image": "a.png", "text": ""}, r"column image of row 0 of o/p holds no image; set image_column"),
        ({"image": {"bytes": None, "path": None}, "text": ""}, r"column image of row 0 of o/p holds no image"),
        ({"image": {"bytes": b"", "path": None}, "text": ["a"]}, r"column text of row 0 holds no text; set caption_co"),
        (
            {"image": {"bytes": None, "path": "file:///no/such.png"}, "text": ""},
            r"image of row 0 of o/p could not be ",
        ),
        ({"image": {"bytes": None, "path": "/no/such.png"}, "text": ""}, r"row 0 of o/p does not exist"),
    ],
)
def test_columns_that_hold_something_else(with_rows, row, match):
    with_rows(Rows([row]))
    with pytest.raises(TideError, match=match):
        list(open_data("o/p", 8))


def test_open_data_with_datasets(monkeypatch):
    rows = Rows({"image": Image.new("RGB", (20, 10), "white"), "text": text} for text in ("a tree", None))
    asked = []

    def load_dataset(name, split, streaming):
        asked.append((name, split, streaming))
        if name == "owner/missing":
            raise FileNotFoundError("no such data set\nsecond line")
        return rows

    fake = ModuleType("datasets")
    fake.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", fake)
    monkeypatch.setattr("tide.images.opening.find_spec", lambda name: object())
    ((images, captions),) = open_data("owner/pictures", 8, split="validation")
    assert asked == [("owner/pictures", "validation", True)]
    assert images.shape == (2, 3, 8, 8)
    assert captions == ["a tree", ""]
    with pytest.raises(TideError, match="no column caption; it has image, text: set image_column and caption_column"):
        list(open_data("owner/pictures", 8, caption_column="caption"))
    with pytest.raises(TideError, match=r"owner/missing could not be opened \(no such data set\)"):
        open_data("owner/missing", 8)


# -- what was read ---------------------------------------------------------------------------------------------


def names(data) -> list[str]:
    return [sample.name for sample in data.samples]


def test_samples_say_what_was_read(folder):
    data = image_folder(folder, 16, batch_size=2)
    next(iter(data))
    assert names(data) == ["a.png", "b.png"]
    list(data)
    first = list(data.samples)
    assert names(data) == ["a.png", "b.png", "sub/c.png"]
    assert first[0].image == first[1].image  # the same file, and another caption
    assert first[0].caption != first[1].caption
    save(folder / "a.png", (255, 0, 1))
    (folder / "b.txt").write_text("a cone")
    list(data)
    assert [was == now for was, now in zip(first, data.samples, strict=True)] == [False, False, True]


@pytest.mark.parametrize("start", range(5))
def test_a_reading_from_a_sample_on_knows_those_before(folder, start):
    data = image_folder(folder, 16, batch_size=2)
    whole = list(data)
    samples, images = data.samples, torch.cat([images for images, _ in whole])
    rest = list(data.from_sample(start))
    assert data.samples == samples
    assert sum(len(captions) for _, captions in rest) == max(0, 3 - start)
    if rest:
        assert torch.equal(torch.cat([images for images, _ in rest]), images[start:])
        assert [caption for _, captions in rest for caption in captions] == ["", "a tree", ""][start:]


def test_images_before_the_start_are_not_decoded(folder, monkeypatch):
    opened = []
    monkeypatch.setattr("tide.images.samples.to_tensor", lambda image, size: opened.append(1) or torch.zeros(3, 4, 4))
    list(image_folder(folder, 16).from_sample(2))
    assert len(opened) == 1


def test_unreadable_images_that_are_skipped_are_no_samples(folder):
    (folder / "aa.jpg").write_text("not an image")
    data = image_folder(folder, 16, on_error="skip")
    with pytest.warns(UserWarning, match="skipped"):
        (((_, captions)),) = data.from_sample(1)
    assert names(data) == ["a.png", "b.png", "sub/c.png"]
    assert captions == ["a tree", ""]


def test_a_folder_is_collected_from(alpha, folder):
    (batches,) = collect(adapter_for(alpha), image_folder(folder, 64), [0])
    assert len(batches[0]) == 3 * 2 * 4
