"""Images with captions from wherever they are, and what is refused."""

from __future__ import annotations

import os
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.image_folders import list_captions, make, picture, save
from tide.activations.collect import collect
from tide.adapters import adapter_for
from tide.errors import TideError, TideWarning
from tide.images import image_folder, open_data

pytestmark = pytest.mark.filterwarnings("ignore:.*empty prompt:tide.errors.TideWarning")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "images"
    for name in ("a.png", "b.png", "sub/c.png"):
        save(folder / name)
    (folder / "b.txt").write_text("a tree\n")
    return folder


def by_name(data) -> dict[str, str]:
    captions = [caption for _, captions in data for caption in captions]
    return dict(zip([sample.name for sample in data.samples], captions, strict=True))


# -- folders ---------------------------------------------------------------------------------------------------


def test_images_and_captions(folder):
    data = image_folder(folder, 32, batch_size=2)
    assert len(data) == 3
    for _ in range(2):  # every iteration reads again
        (first, _), (second, _) = data
        assert first.shape == (2, 3, 32, 32)
        assert second.shape == (1, 3, 32, 32)
        assert first.dtype == torch.float32
        assert by_name(data) == {"a.png": "", "b.png": "a tree", "sub/c.png": ""}
        torch.testing.assert_close(first[0, :, 0, 0], torch.tensor([1.0, -1.0, -1.0]))


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
    with pytest.raises(TideError, match=r"a[ab]\.(jpg|png) is not a readable image.*skip unreadable"):
        list(image_folder(folder, 16))
    with pytest.warns(TideWarning, match="skipped"):
        batches = list(image_folder(folder, 16, on_error="skip"))
    assert sum(len(captions) for _, captions in batches) == 3


def test_what_is_too_large_or_a_pipe_is_skipped_too(folder):
    Image.new("1", (70_000, 1)).save(folder / "wide.png")
    os.mkfifo(folder / "pipe.png")  # is not among the files: reading it would wait for ever
    with pytest.raises(TideError, match=r"wide\.png is 70000 x 1 pixels .*make it smaller, or skip unreadable images"):
        list(image_folder(folder, 16))
    with pytest.warns(TideWarning, match=r"wide\.png is 70000 x 1 pixels .*; skipped"):
        batches = list(image_folder(folder, 16, on_error="skip"))
    assert sum(len(captions) for _, captions in batches) == 3


def test_faulty_folders_and_sizes(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    for match, path, size, kwargs in [
        ("is not a folder", tmp_path / "nowhere", 16, {}),
        ("is a file; give the folder that holds the images", folder / "a.png", 16, {}),
        ("holds no images", tmp_path / "empty", 16, {}),
        ("size 0 has no pixels", folder, 0, {}),
        (r"size \(8, -1\) has no pixels", folder, (8, -1), {}),
        ("batch_size 0", folder, 16, {"batch_size": 0}),
        (r"hold_out 1 is not in \[0, 1\)", folder, 16, {"hold_out": 1}),
    ]:
        with pytest.raises(TideError, match=match):
            image_folder(path, size, **kwargs)
    (folder / "b.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(TideError, match=r"b\.txt is not UTF-8"):
        image_folder(folder, 16)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["a", "b", "c"], []),
        (["a"], ["2 of the 3 images of {} have no caption and get the empty prompt; "]),
        (["a", "c"], ["1 of the 3 images of {} has no caption and gets the empty prompt; "]),
        ([], ["none of the 3 images of {} has a caption: all get the empty prompt; "]),
    ],
)
@pytest.mark.filterwarnings("default")
def test_images_without_a_caption_are_counted_once(tmp_path, recwarn, texts, said):
    folder = make(tmp_path / "photos", "a.png", "b.png", "c.png")
    for name in texts:
        (folder / f"{name}.txt").write_text("x")
    data = open_data(folder, 8)
    list(data)
    list(data)
    remedy = "write metadata.jsonl, or a .txt file beside each image"
    assert [str(each.message) for each in recwarn] == [each.format(f"{folder}/") + remedy for each in said]


def test_a_captions_column_may_be_named_for_a_folder(folder):
    list_captions(folder, [{"file_name": "a.png", "text": "one", "de": "eins"}])
    assert by_name(open_data(folder, 8, caption_column="de"))["a.png"] == "eins"


def test_open_data_reads_folders(folder):
    ((images, captions),) = open_data(folder, 16)
    assert (len(images), sorted(captions)) == (3, ["", "", "a tree"])
    with pytest.raises(TideError, match="is not a folder"):
        open_data(folder / "nowhere", 16)


def test_ten_thousand_files_are_opened_in_seconds(tmp_path):
    content = (make(tmp_path, "0.png") / "0.png").read_bytes()
    for i in range(10_000):
        (tmp_path / f"{i}.png").write_bytes(content)
    rows = [{"file_name": f"{i}.png", "text": f"number {i}"} for i in range(10_000)]
    list_captions(tmp_path, rows)
    data = open_data(tmp_path, 8, hold_out=0.1)
    assert 8_800 < len(data) < 9_200
    assert len(data.samples_before(100)) >= 99


def test_a_folder_is_collected_from(alpha, folder):
    (batches,) = collect(adapter_for(alpha), image_folder(folder, 64), [0])
    assert len(batches[0]) == 3 * 2 * 4


# -- rows in Python --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (5, "data of type int cannot be read; give a folder, a data set's name, a Dataset, or a list of pictures"),
        ((picture(i) for i in range(3)), "data of type generator cannot be read"),
        ({"image": [picture()]}, "data of type dict cannot be read"),
        ([], "the list of images is empty; give at least one"),
        (torch.zeros(2, 3, 8, 8), "the image of row 0 of the list holds float32 numbers"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_data_is_refused(data, said):
    with pytest.raises(TideError) as raised:
        list(open_data(data, 8, seed=None))
    assert str(raised.value).startswith(said)


# -- named data sets -------------------------------------------------------------------------------------------


def test_named_data_without_the_library(monkeypatch, tmp_path):
    monkeypatch.setattr("tide.images.opening.find_spec", lambda name: None)
    with pytest.raises(TideError, match=r"owner/pictures is not a folder; give one, or `pip install datasets`"):
        open_data("owner/pictures", 16)
    with pytest.raises(TideError, match=r"x\.parquet is read by the datasets library; `pip install datasets`"):
        open_data(tmp_path / "x.parquet", 16)


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

    def shuffle(self, seed, buffer_size):
        assert buffer_size < 1000  # the buffer is filled before the first image
        return self


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
    with pytest.warns(TideWarning, match=r"row 2 of owner/pictures is not a readable image .*; skipped"):
        assert [len(captions) for _, captions in open_data("owner/pictures", 8, on_error="skip")] == [2]


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"image": "a.png", "text": ""}, r"the image of row 0 of o/p holds no image; name the images' column with ima"),
        ({"image": {"bytes": None, "path": None}, "text": ""}, r"the image of row 0 of o/p holds no image"),
        ({"image": {"bytes": b"", "path": None}, "text": {}}, r"the caption of row 0 of o/p holds no text; name the c"),
        (
            {"image": {"bytes": None, "path": "file:///no/such.png"}, "text": ""},
            r"image of row 0 of o/p could not be ",
        ),
        (
            {"image": {"bytes": None, "path": "/no/such.png"}, "text": ""},
            r"the image of row 0 of o/p cannot be read \(No such file",
        ),
    ],
)
def test_columns_that_hold_something_else(with_rows, row, match):
    with_rows(Rows([row]))
    with pytest.raises(TideError, match=match):
        list(open_data("o/p", 8))


def test_named_data(monkeypatch):
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
    with pytest.raises(TideError, match="no column caption; it has image, text: set caption_column"):
        list(open_data("owner/pictures", 8, caption_column="caption"))
    with pytest.raises(TideError, match=r"owner/missing could not be opened \(no such data set\)"):
        open_data("owner/missing", 8)
