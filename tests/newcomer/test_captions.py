"""The captions that a newcomer's pictures have, in every form that he may write them in."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.helpers.newcomer import CAPTIONS, DIGITS, digits, save_bare, save_digits
from tests.helpers.newcomer_flow import tide
from tide import open_source
from tide.adapters import Adapter

#: One of every digit and colour: few, so that they are read in a moment.
FEW = digits(1)


@pytest.fixture
def any_adapter(adapter) -> Adapter:
    """Of the bundled architecture: reading pictures asks it for their size alone."""
    return adapter


def captions(folder: Path, adapter: Adapter) -> list[str]:
    return [caption for _, batch in open_source(folder, adapter) for caption in batch]


@pytest.mark.parametrize("form", [form for form in CAPTIONS if form != "class folders"])
def test_every_form_is_read(tmp_path, any_adapter, form):
    if "parquet" in form:
        pytest.importorskip("pyarrow")
    save_digits(tmp_path, FEW)
    CAPTIONS[form](tmp_path, FEW)
    assert sorted(captions(tmp_path, any_adapter)) == sorted(each.caption for each in FEW)


def test_class_folders_are_captions(tmp_path, any_adapter):
    save_digits(tmp_path, FEW)
    assert sorted(captions(tmp_path, any_adapter)) == sorted(each.digit for each in FEW)


def test_pictures_alone_have_none(tmp_path, any_adapter):
    save_bare(tmp_path, FEW)
    assert captions(tmp_path, any_adapter) == [""] * len(FEW)


def collected(folder: Path, pipeline: Path, out: Path) -> str:
    """What `tide collect` says of the folder, on both streams."""
    options = ("--images", 12, "--timesteps", 2, "--token-fraction", "1/16")
    said = tide("collect", "--pipeline", pipeline, "--data", folder, "--out", out, *options)
    assert said.code == 0, said.err
    return said.out + said.err


def test_it_is_said_that_pictures_have_no_captions(tmp_path, pixart):
    save_bare(tmp_path / "bare", digits(1)[:12])
    said = collected(tmp_path / "bare", pixart, tmp_path / "acts")
    assert re.search(r"none of the 12 images .* has a caption: all get the empty prompt", said)


def test_it_is_said_that_folders_are_the_captions(tmp_path, pixart):
    save_digits(tmp_path / "classes", digits(1)[:12])
    assert "folder" in collected(tmp_path / "classes", pixart, tmp_path / "acts").replace(str(tmp_path), "")


def test_pictures_and_captions_without_the_other_are_counted(tmp_path, pixart):
    few = digits(1)[:12]
    save_bare(tmp_path / "some", few)
    lines = [{"file_name": Path(each.name).name, "text": each.caption} for each in few[:9]]
    lines += [{"file_name": f"gone-{i}.png", "text": "a blue ten"} for i in range(2)]
    (tmp_path / "some/metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    said = collected(tmp_path / "some", pixart, tmp_path / "acts")
    assert "3 of" in said  # pictures without a caption
    assert "2 captions" in said  # captions without a picture


def test_a_sample_has_every_class(classes, any_adapter):
    """Names start with the class, so the first of them are of one class."""
    found = [caption for _, batch in open_source(classes, any_adapter, images=60) for caption in batch]
    assert len(found) == 60
    assert set(found) == set(DIGITS)


def test_pictures_in_python(pixart):
    import tide as package

    adapter = package.load_adapter(str(pixart))
    rows = [{"image": each.draw(), "text": each.caption} for each in FEW[:6]]
    for data, expected in ((rows, [row["text"] for row in rows]), ([row["image"] for row in rows], [""] * 6)):
        found = [caption for _, batch in package.open_source(data, adapter) for caption in batch]
        assert sorted(found) == sorted(expected)
