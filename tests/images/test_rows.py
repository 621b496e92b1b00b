"""Rows as images with captions: lists of Python, and data sets of the ``datasets`` library."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.image_folders import list_captions, make, picture
from tide.errors import TideError, TideWarning
from tide.images import open_data

N = 6


def read(data: Any, **options: Any) -> list[tuple[int, str]]:
    """Which picture and which caption, in the order of the rows."""
    found = open_data(data, 8, seed=None, **options)
    pairs = [(image, text) for images, captions in found for image, text in zip(images, captions, strict=True)]
    return [(round((float(image[0, 0, 0]) + 1) * 127.5), text) for image, text in pairs]


def png(i: int) -> bytes:
    file = BytesIO()
    picture(i).save(file, "PNG")
    return file.getvalue()


PICTURES = [picture(i) for i in range(N)]
EXPECTED = [(i, f"no. {i}") for i in range(N)]


class Torch:
    """A data set of PyTorch: it has ``__getitem__``, ``__len__`` and classes, and decodes an image at every access."""

    classes = ("cat", "dog")

    def __init__(self) -> None:
        self.decoded: list[int] = []

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> tuple[Any, int]:
        self.decoded.append(i)
        return picture(i), i % 2


FORMS = {
    "rows": [{"image": p, "text": f"no. {i}", "other": 3} for i, p in enumerate(PICTURES)],
    "rows by usual names": [{"img": p, "caption": f"no. {i}"} for i, p in enumerate(PICTURES)],
    "pairs": [(p, f"no. {i}") for i, p in enumerate(PICTURES)],
    "pairs as lists": [[p, f"no. {i}"] for i, p in enumerate(PICTURES)],
    "bytes": [(png(i), f"no. {i}") for i in range(N)],
    "bytes as datasets has them": [({"bytes": png(i), "path": None}, f"no. {i}") for i in range(N)],
    "arrays": [(np.asarray(p), f"no. {i}") for i, p in enumerate(PICTURES)],
    "tensors": [(torch.from_numpy(np.array(p)).permute(2, 0, 1), f"no. {i}") for i, p in enumerate(PICTURES)],
    "captions in lists": [(p, [f"no. {i}", "another"]) for i, p in enumerate(PICTURES)],
    "a tuple of rows": tuple({"image": p, "text": f"no. {i}"} for i, p in enumerate(PICTURES)),
}


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_python(form):
    assert read(FORMS[form]) == EXPECTED


def test_columns_by_name():
    rows = [{"a": p, "b": f"no. {i}"} for i, p in enumerate(PICTURES)]
    assert read(rows, image_column="a", caption_column="b") == EXPECTED


def test_paths_and_rows_of_paths(tmp_path):
    folder = make(tmp_path, "0.png", "1.png")
    assert read([(str(folder / "0.png"), "x"), (folder / "1.png", "y")]) == [(0, "x"), (1, "y")]
    assert read([{"file_name": str(folder / "1.png"), "text": "z"}]) == [(1, "z")]


def test_pictures_alone_have_empty_prompts_and_that_is_said():
    with pytest.warns(TideWarning) as warned:
        assert read(PICTURES) == [(i, "") for i in range(N)]
    assert str(warned[0].message) == (
        "none of the 6 images of the list has a caption: all get the empty prompt; "
        "fill the captions' column, or give (picture, caption) pairs"
    )


def test_some_rows_without_a_caption_are_counted():
    rows = [{"image": p, "text": None if i < 2 else "" if i < 4 else "x"} for i, p in enumerate(PICTURES)]
    with pytest.warns(TideWarning, match="4 of the 6 images of the list have no caption and get the empty prompt"):
        read(rows)


def test_a_data_set_of_pytorch_gives_the_names_of_its_classes_and_decodes_each_image_once():
    data = Torch()
    assert read(data) == [(i, "cat" if i % 2 == 0 else "dog") for i in range(N)]
    assert data.decoded == [0, *range(N)]  # the first one tells what rows are like


def test_digests_do_not_depend_on_the_size_and_tell_pictures_apart():
    small, large = (open_data(FORMS["pairs"], size, seed=None) for size in (8, 32))
    list(small), list(large)
    assert small.samples == large.samples
    assert [sample.name for sample in small.samples] == [f"row {i}" for i in range(N)]
    assert len({sample.image for sample in small.samples}) == N
    wide, tall = (open_data([(picture(0, size), "")], 8) for size in ((4, 2), (2, 4)))
    list(wide), list(tall)
    assert wide.samples[0].image != tall.samples[0].image


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [{"image": PICTURES[0], "x": 1, "y": 2}],
            "no column of captions, such as text; it has image, x, y: set ",
        ),
        (
            [{"x": PICTURES[0], "text": "a"}],
            "the data set has no column of images, such as image; it has x, text: ",
        ),
        ([{"image": None, "text": "a"}], "the image of row 0 of the list holds no image; name the images' column"),
        ([(PICTURES[0], "a"), PICTURES[1]], "row 1 of the list is not like the first row; give rows of one kind"),
        ([(PICTURES[0], {"en": "a"})], "the caption of row 0 of the list holds no text"),
        (
            [(np.zeros((8, 8, 3)), "a")],
            "the image of row 0 of the list holds float64 numbers, whose range is not ",
        ),
        ([(b"no image", "a")], "the image of row 0 of the list is not a readable image"),
        ([("/no/such.png", "a")], "the image of row 0 of the list"),
        ([("a\0.png", "a")], "the image of row 0 of the list"),
        ([3, 4], "the image of row 0 of the list holds no image"),
        ([PICTURES[0], Image.open(BytesIO(png(1)[:50]))], "the image of row 1 of the list is not a readable image"),
        ([Image.new("F", (2, 2), 999.0)], "the image of row 0 of the list is of mode F"),
    ],
)
def test_faulty_rows_are_named(rows, said):
    with pytest.raises(TideError) as raised:
        read(rows)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_faulty_rows_are_skipped_if_asked():
    rows = [(PICTURES[0], "a"), (b"no image", "b"), ("/no/such.png", "c"), (None, "d"), (PICTURES[4], "e")]
    with pytest.warns(TideWarning, match="skipped"):
        assert read(rows, on_error="skip") == [(0, "a"), (4, "e")]


# -- datasets --------------------------------------------------------------------------------------------------


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    found = pytest.importorskip("datasets", reason="the datasets library is an extra")
    monkeypatch.setattr(found.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    found.disable_progress_bars()
    return found


def dataset(datasets, captions=None, **columns: Any) -> Any:
    """Of six pictures with captions, in a column of images."""
    columns = {"image": PICTURES, "text": captions or [f"no. {i}" for i in range(N)], **columns}
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())


def test_a_dataset(datasets):
    assert read(dataset(datasets)) == EXPECTED
    assert read(dataset(datasets).with_format("torch")) == EXPECTED
    assert read(dataset(datasets).rename_column("text", "prompt")) == EXPECTED


def test_classes_give_their_names(datasets):
    data = dataset(datasets, label=[0, 1, 0, 1, 0, -1]).remove_columns("text")
    data = data.cast_column("label", datasets.ClassLabel(names=["tench", "dog"]))
    with pytest.warns(TideWarning, match="1 of the 6 images of the Dataset has no caption and gets the"):
        assert [caption for _, caption in read(data)] == ["tench", "dog"] * 2 + ["tench", ""]
    found = open_data(data, 8)
    assert found.images.notes == ("captions are in the column label",)
    assert found.images.options == {"image_column": "image", "caption_column": "label"}


def test_saved_and_parquet(datasets, tmp_path):
    data = dataset(datasets)
    data.save_to_disk(tmp_path / "saved")
    several = datasets.DatasetDict({"train": data, "test": data.select([3])})
    several.save_to_disk(tmp_path / "several")
    data.to_parquet(tmp_path / "one.parquet")
    for name, part in several.items():
        (tmp_path / "repository/data").mkdir(parents=True, exist_ok=True)
        part.to_parquet(tmp_path / f"repository/data/{name}-00000-of-00001.parquet")
    for path in ("saved", "several", "one.parquet", "repository"):
        assert read(tmp_path / path) == read(str(tmp_path / path)) == EXPECTED
    for path in ("several", "repository"):
        assert read(tmp_path / path, split="test") == [(3, "no. 3")]
        assert open_data(tmp_path / path, 8, split="test").images.options["split"] == "test"
    assert read(several, split="test") == [(3, "no. 3")]
    with pytest.raises(TideError, match="several has no split dev; it has train, test: set split"):
        open_data(tmp_path / "several", 8, split="dev")
    with pytest.raises(TideError, match=r"repository could not be opened \(Unknown split .*dev.*\)"):
        open_data(tmp_path / "repository", 8, split="dev")


def test_what_is_not_whole_is_refused(datasets, tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/state.json").write_text("{}")
    for name in ("x.parquet", "saved"):
        with pytest.raises(TideError, match=rf"{name} could not be opened \(.*\); check the path, or save it again"):
            open_data(tmp_path / name, 8)
    with pytest.raises(TideError, match="the Dataset holds no rows; give another data set or split"):
        open_data(dataset(datasets).select([]), 8)


def test_images_are_not_decoded_by_the_library(datasets):
    """It knows formats whose decoders start programs."""
    cells = [{"bytes": b"%!PS-Adobe-3.0 EPSF-3.0", "path": None}]
    data = datasets.Dataset.from_dict({"image": cells, "text": ["x"]}).cast_column("image", datasets.Image())
    with pytest.raises(TideError, match="the image of row 0 of the Dataset is not a readable image"):
        read(data)


def test_a_folder_and_the_data_set_of_it_have_the_same_digests(datasets, tmp_path):
    folder = make(tmp_path / "photos", "a.png", "sub/b.png")
    list_captions(folder, [{"file_name": "a.png", "text": "one"}, {"file_name": "sub/b.png", "text": "two"}])
    as_rows = open_data(datasets.load_dataset("imagefolder", data_dir=str(folder), split="train"), 8)
    as_files = open_data(folder, 8)
    list(as_rows), list(as_files)
    assert {s[1:] for s in as_rows.samples} == {s[1:] for s in as_files.samples}


@pytest.mark.parametrize("form", ["Parquet", "a folder of Parquet", "saved"])
@pytest.mark.parametrize("as_image", [False, True], ids=["texts", "images"])
def test_paths_in_a_data_set_are_seen_from_its_folder(datasets, tmp_path, monkeypatch, form, as_image):
    folder = make(tmp_path / "set", ".files/0.xyz", ".files/1.xyz")  # with pictures, Parquet files are no data set
    make(tmp_path, "outside.png")
    monkeypatch.chdir(make(tmp_path / "elsewhere", ".files/1.xyz", ".files/0.xyz"))

    def written(*paths: str) -> Path:
        cells = [{"bytes": None, "path": path} for path in paths] if as_image else list(paths)
        data = datasets.Dataset.from_dict({"image": cells, "text": ["x"] * len(paths)})
        if form == "saved":
            data.save_to_disk(folder)
            return folder
        data.to_parquet(folder / "rows.parquet")
        return folder if form == "a folder of Parquet" else folder / "rows.parquet"

    assert read(written(".files/0.xyz", str(folder / ".files/1.xyz"))) == [(0, "x"), (1, "x")]
    for path in ("../outside.png", str(tmp_path / "outside.png"), "sub/../../outside.png"):
        with pytest.raises(TideError) as raised:
            read(written(path))
        assert str(raised.value).startswith(
            f"the image of row 0 of {written(path)} is {path}, which is not in {folder}; "
        )


def test_paths_in_a_data_set_of_python_are_the_callers_own(datasets, tmp_path, monkeypatch):
    monkeypatch.chdir(make(tmp_path, "0.png"))
    assert read(datasets.Dataset.from_dict({"image": ["0.png"], "text": ["x"]})) == [(0, "x")]


def test_one_row_of_several_captions(datasets):
    several = [["no. 0", "x"], *([f"no. {i}"] for i in range(1, N))]
    with pytest.warns(TideWarning, match="1 row of the Dataset holds several captions in text; the first counts"):
        assert read(dataset(datasets, several)) == EXPECTED


def test_several_captions_a_row(datasets):
    with pytest.warns(TideWarning, match="6 rows of the Dataset hold several captions in text; the first counts"):
        assert read(dataset(datasets, [[f"no. {i}", "x"] for i in range(N)])) == EXPECTED
