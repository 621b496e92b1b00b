"""The captions of an image folder: every accepted form, which one counts, and what is said of those that do not fit."""

from __future__ import annotations

import json
import unicodedata
import warnings

import pytest

from tests.helpers.image_folders import list_captions, make
from tide.errors import TideError
from tide.images.captions import captions_of
from tide.images.files import files_of


def captions(folder, column=None) -> dict[str, str]:
    found = captions_of(files_of(folder), column)
    assert found.faults == []
    return found.of


@pytest.fixture
def folder(tmp_path):
    return make(tmp_path / "photos", "a.png", "b.png", "sub/c.png", "sub/deep/d.png")


# -- forms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", ["a.png", "./a.png", "sub/../a.png", ".//a.png"])
def test_a_name_in_a_list_is_that_of_the_file_however_it_is_written(folder, written):
    list_captions(folder, [{"file_name": written, "text": "a tree"}])
    assert captions(folder) == {"a.png": "a tree"}


def test_a_list_may_lie_in_a_subfolder_and_names_files_from_there(folder):
    list_captions(folder / "sub", [{"file_name": "c.png", "text": "one"}, {"file_name": "deep/d.png", "text": "two"}])
    list_captions(folder, [{"file_name": "b.png", "text": "three"}])
    assert captions(folder) == {"sub/c.png": "one", "sub/deep/d.png": "two", "b.png": "three"}


def test_a_list_may_name_files_of_a_folder_above_it_but_none_outside(folder):
    list_captions(folder / "sub", [{"file_name": "../b.png", "text": "one"}])
    assert captions(folder) == {"b.png": "one"}
    list_captions(folder / "sub", [{"file_name": "../../b.png", "text": "one"}])
    with pytest.raises(TideError, match=r"sub/metadata\.jsonl line 1 names \.\./\.\./b\.png, which is not in the fold"):
        captions(folder)


def test_the_nearest_list_counts(folder):
    list_captions(
        folder, [{"file_name": "sub/c.png", "text": "outer"}, {"file_name": "sub/deep/d.png", "text": "kept"}]
    )
    list_captions(folder / "sub", [{"file_name": "c.png", "text": "inner"}, {"file_name": "deep/d.png", "text": ""}])
    assert captions(folder) == {"sub/c.png": "inner", "sub/deep/d.png": "kept"}


def test_of_two_lists_in_a_folder_jsonl_counts(folder):
    list_captions(folder, [{"file_name": "a.png", "text": "of jsonl"}])
    (folder / "metadata.csv").write_text("file_name,text\na.png,of csv\nb.png,also csv\n")
    assert captions(folder) == {"a.png": "of jsonl", "b.png": "also csv"}


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "byte-order mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_no_mark_and_no_line_end_stays_in_a_caption(folder, mark, end):
    lines = [{"file_name": "a.png", "text": "one"}, {"file_name": "sub/c.png", "text": "two"}]
    (folder / "metadata.jsonl").write_bytes((mark + end.join(map(json.dumps, lines)) + end).encode())
    (folder / "b.txt").write_bytes(f"{mark}three{end}".encode())
    assert captions(folder) == {"a.png": "one", "sub/c.png": "two", "b.png": "three"}
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_bytes(f"{mark}file_name,text{end}a.png,four{end}".encode())
    assert captions(folder) == {"a.png": "four", "b.png": "three"}


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"], ids=ascii)
@pytest.mark.parametrize("how", ["jsonl", "csv", "txt"])
def test_what_python_calls_the_end_of_a_line_may_stand_in_a_caption(folder, how, mark):
    caption = f"a red{mark}house"
    if how == "jsonl":
        escaped = mark if ord(mark) >= 0x20 else f"\\u{ord(mark):04x}"  # JSON allows the others as they are
        (folder / "metadata.jsonl").write_text(f'{{"file_name": "a.png", "text": "a red{escaped}house"}}\n')
    elif how == "csv":
        (folder / "metadata.csv").write_text(f"file_name,text\na.png,{caption}\n")
    else:
        (folder / "a.txt").write_text(caption)
    assert captions(folder) == {"a.png": caption}


def test_csv_with_quotes_commas_and_lines_in_a_caption(folder):
    (folder / "metadata.csv").write_text('text,file_name\n"a ""red"", big\nhouse",a.png\n\nplain,b.png\n')
    assert captions(folder) == {"a.png": 'a "red", big\nhouse', "b.png": "plain"}


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_csv_as_spreadsheets_of_other_countries_write_it(folder, delimiter):
    (folder / "metadata.csv").write_text(f"file_name{delimiter}text\na.png{delimiter}a house, red\n")
    assert captions(folder) == {"a.png": "a house, red"}


def test_parquet(folder):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow reads Parquet")
    from pyarrow import parquet

    table = pyarrow.table({"file_name": ["a.png", "sub/c.png"], "caption": ["one", "two"]})
    parquet.write_table(table, folder / "metadata.parquet")
    assert captions(folder) == {"a.png": "one", "sub/c.png": "two"}


def test_parquet_without_pyarrow_says_what_to_install(folder, monkeypatch):
    (folder / "metadata.parquet").write_bytes(b"PAR1")
    monkeypatch.setattr("tide.images.metadata.find_spec", lambda name: None)
    with pytest.raises(TideError, match=r"metadata\.parquet is read by pyarrow; `pip install datasets` brings it"):
        captions(folder)


@pytest.mark.parametrize("column", ["text", "caption", "prompt", "label"])
def test_the_usual_columns_hold_captions(folder, column):
    list_captions(folder, [{"file_name": "a.png", "other": "x", column: "a tree"}])
    assert captions(folder) == {"a.png": "a tree"}


def test_the_column_asked_for_counts(folder):
    list_captions(folder, [{"file_name": "a.png", "text": "one", "german": "eins"}])
    assert captions(folder, "german") == {"a.png": "eins"}
    with pytest.raises(TideError, match=r"has no column french \(it has file_name, text, german\); name the captions'"):
        captions(folder, "french")


def test_classes_may_be_numbers(folder):
    """As DiT takes them."""
    list_captions(folder, [{"file_name": "a.png", "label": 0}, {"file_name": "b.png", "label": 7}])
    assert captions(folder) == {"a.png": "0", "b.png": "7"}


def test_a_list_of_captions_gives_its_first_and_says_so(folder):
    list_captions(folder, [{"file_name": "a.png", "text": ["one", "two"]}, {"file_name": "b.png", "text": ["three"]}])
    found = captions_of(files_of(folder))
    assert found.of == {"a.png": "one", "b.png": "three"}
    assert found.faults == [f"1 of the entries for {folder} holds several captions; the first counts"]
    list_captions(folder, [{"file_name": name, "text": ["one", "two"]} for name in ("a.png", "b.png")])
    found = captions_of(files_of(folder))
    assert found.faults == [f"2 of the entries for {folder} hold several captions; the first counts"]


def test_a_caption_of_100_kilobytes(folder):
    long = "a house, " * 12_000
    list_captions(folder, [{"file_name": "a.png", "text": long}])
    (folder / "sub/metadata.csv").write_text(f'file_name,text\nc.png,"{long}"\n')
    assert captions(folder) == {"a.png": long.strip(), "sub/c.png": long.strip()}


# -- names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "written"),
    [
        ("my photo.png", "my photo.png"),
        ("Häuschen 🏠.png", "Häuschen 🏠.png"),
        (unicodedata.normalize("NFD", "Häuschen.png"), unicodedata.normalize("NFC", "Häuschen.png")),
        (unicodedata.normalize("NFC", "Häuschen.png"), unicodedata.normalize("NFD", "Häuschen.png")),
        ("e.PNG", "e.png"),
        ("e.png", "E.PNG"),
        ("inner/e.png", "inner\\e.png"),
        ("a\\b.png", "a\\b.png"),
    ],
)
def test_names_that_are_written_alike_match(tmp_path, file, written):
    folder = make(tmp_path / "photos", file)
    list_captions(folder, [{"file_name": written, "text": "a house"}])
    assert captions(folder) == {file: "a house"}


def test_the_exact_name_comes_before_one_that_is_alike(tmp_path):
    folder = make(tmp_path / "photos", "a.png", "A.png")
    list_captions(folder, [{"file_name": "a.png", "text": "small"}, {"file_name": "A.png", "text": "capital"}])
    assert captions(folder) == {"a.png": "small", "A.png": "capital"}
    list_captions(folder, [{"file_name": "A.PNG", "text": "either"}])
    assert captions_of(files_of(folder)).faults[0].startswith("1 caption has no image in ")


@pytest.mark.parametrize("names", [("a.png", "A.png"), ("A.png", "a.png")])
def test_an_image_that_is_listed_exactly_gets_no_others_caption(tmp_path, names):
    folder = make(tmp_path / "photos", "a.png")
    list_captions(folder, [{"file_name": name, "text": f"of {name}"} for name in names])
    found = captions_of(files_of(folder))
    assert found.of == {"a.png": "of a.png"}
    assert found.faults[0].startswith(f"1 caption has no image in {folder}, such as that of A.png ")


def test_texts_beside_match_alike_names_too(tmp_path):
    folder = make(tmp_path / "photos", "A.png", "ü.png")
    (folder / "a.TXT").write_text("one")
    (folder / unicodedata.normalize("NFD", "ü.txt")).write_text("two")
    assert captions(folder) == {"A.png": "one", "ü.png": "two"}


def test_a_text_is_no_other_images_than_the_one_of_its_exact_name(tmp_path):
    folder = make(tmp_path / "photos", "A.png", "a.png", "a.jpg", "B.png", "b.png", "B.PNG.txt.png")
    (folder / "A.txt").write_text("capital")
    (folder / "b.png.TXT").write_text("small")
    assert captions(folder) == {"A.png": "capital", "b.png": "small"}
    (folder / "a.TXT").write_text("small, too")
    assert captions(folder) == {"A.png": "capital", "b.png": "small", "a.png": "small, too", "a.jpg": "small, too"}


def test_a_text_that_fits_several_images_is_none_of_theirs(tmp_path):
    folder = make(tmp_path / "photos", "AB.png", "Ab.png", "CD.png", "CD.jpg")
    (folder / "ab.txt").write_text("either")
    (folder / "cd.txt").write_text("both")
    found = captions_of(files_of(folder))
    assert found.of == {"CD.png": "both", "CD.jpg": "both"}
    assert found.faults == [f"1 .txt file of {folder} lies beside no image of that name, such as ab.txt"]


def test_a_list_can_name_images_without_a_suffix(tmp_path):
    folder = make(tmp_path / "photos", "a.png", "0001")
    list_captions(folder, [{"file_name": "0001", "text": "one"}])
    found = captions_of(files_of(folder))
    assert (found.of, found.added) == ({"0001": "one"}, ["0001"])


# -- precedence and classes ------------------------------------------------------------------------------------


def test_a_list_comes_before_a_text_which_fills_what_it_lacks(folder):
    for name in ("a", "b", "sub/c"):
        (folder / f"{name}.txt").write_text(f"text of {name}\n")
    list_captions(folder, [{"file_name": "a.png", "text": "listed"}, {"file_name": "b.png", "text": None}])
    assert captions(folder) == {"a.png": "listed", "b.png": "text of b", "sub/c.png": "text of sub/c"}


def test_class_folders_give_their_names_as_they_are(tmp_path):
    folder = make(tmp_path / "digits", "0/a.png", "tench_tinca/b.png", "train/sea-lion/c.png")
    found = captions_of(files_of(folder))
    assert found.of == {"0/a.png": "0", "tench_tinca/b.png": "tench_tinca", "train/sea-lion/c.png": "sea-lion"}
    assert found.notes == ("captions are the names of 3 folders: 0, sea-lion, tench_tinca",)


@pytest.mark.parametrize(
    "names",
    [
        ("a.png", "cat/b.png"),
        ("train/a.png", "test/b.png"),
        ("images/a.png",),
    ],
    ids=["one beside the folders", "splits", "no class"],
)
def test_folders_that_are_no_classes_give_no_captions(tmp_path, names):
    assert captions(make(tmp_path / "photos", *names)) == {}


def test_folders_are_no_captions_where_some_images_have_others(tmp_path):
    folder = make(tmp_path / "photos", "first/a.png", "second/b.png")
    (folder / "first/a.txt").write_text("a tree")
    assert captions(folder) == {"first/a.png": "a tree"}


# -- what does not fit -----------------------------------------------------------------------------------------


def test_captions_that_match_no_image_are_counted_and_the_first_is_named(folder):
    rows = [{"file_name": name, "text": "x"} for name in ("a.png", "z.png", "y.png", "a\0.png", "c" * 300)]
    list_captions(folder, rows)
    found = captions_of(files_of(folder))
    assert found.of == {"a.png": "x"}
    assert found.faults == [
        f"4 captions have no image in {folder}, such as that of z.png ({folder}/metadata.jsonl line 2); "
        "correct the names, or remove them"
    ]


@pytest.mark.parametrize("name", ["../outside.png", "sub/../../outside.png", "/etc/hosts", "./../photos2/a.png"])
def test_files_outside_the_folder_are_refused_and_not_looked_for(folder, name):
    make(folder.parent, "outside.png")
    list_captions(folder, [{"file_name": "a.png", "text": "x"}, {"file_name": name, "text": "x"}])
    with pytest.raises(TideError) as raised:
        captions(folder)
    assert str(raised.value) == (
        f"{folder}/metadata.jsonl line 2 names {name}, which is not in the folder; correct or remove it"
    )


def test_an_absolute_path_inside_the_folder_is_one_of_it(folder):
    list_captions(folder, [{"file_name": str(folder / "a.png"), "text": "x"}])
    assert captions(folder) == {"a.png": "x"}


def test_an_image_that_is_listed_twice(folder):
    rows = [{"file_name": "a.png", "text": "one"}, {"file_name": "./a.png", "text": "two"}]
    list_captions(folder, [*rows, {"file_name": "b.png", "text": "same"}, {"file_name": "b.png", "text": "same"}])
    found = captions_of(files_of(folder))
    assert found.of == {"a.png": "two", "b.png": "same"}
    assert found.faults == [f"1 image of {folder} is listed with several captions, such as a.png: the last one counts"]


def test_texts_beside_no_image_are_said_where_texts_are_used(folder):
    (folder / "README.txt").write_text("about")
    assert captions(folder) == {}
    (folder / "a.txt").write_text("a tree")
    found = captions_of(files_of(folder))
    assert found.faults == [f"1 .txt file of {folder} lies beside no image of that name, such as README.txt"]
    (folder / "notes.txt").write_text("more")
    found = captions_of(files_of(folder))
    assert found.faults == [f"2 .txt files of {folder} lie beside no image of that name, such as README.txt"]


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("{", r"line 1 is not"),
        ("3", "line 1 is not"),
        ('{"file_name": 5, "text": "x"}', "line 1 names no file in file_name; correct or remove it"),
        ('{"file_name": "", "text": "x"}', "line 1 names no file in file_name; correct or remove it"),
        ('{"text": "x"}', r"has no column file_name \(it has text\); name the column of the images so"),
        ('{"file_name": "a.png"}', r"has no column of captions, such as text \(it has file_name\)"),
        ('{"file_name": "a.png", "text": {"en": "x"}}', "text of .*line 1 holds no text"),
        ('{"file_name": "a.png", "text": 0.5}', "text of .*line 1 holds no text"),
        ('{"file_name": "a.png", "text": true}', "text of .*line 1 holds no text"),
        ('{"file_name": "a.png", "text": "\\ud800"}', "text of .*line 1 holds half a character"),
        ("[" * 100_000, "line 1 is not"),
    ],
)
def test_faulty_lists_are_refused_with_the_line(folder, line, match):
    (folder / "metadata.jsonl").write_text(line)
    with pytest.raises(TideError, match=match) as raised:
        captions(folder)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (
            "file_name,text\na.png,a house, red\n",
            'line 2 has more fields than the first line; put a caption that holds ","',
        ),
        ('file_name,text\na.png,"open\n', r"csv line 2: a double quote is not closed; close it, and write one that"),
        ('\n\nfile_name,text\na.png,x\n\n\nb.png,"open\nsub/c.png,y', "csv line 7: a double quote is not closed"),
        ('file_name,text\na.png,"open\nb.png,"two"\n', "csv line 2: a double quote is not closed"),
        ('"file_name,text\na.png,x\n', "csv line 1: a double quote is not closed"),
        ('file_name,text\na.png,x\nb.png,"a" b', r"csv line 3 is not CSV \(.+\); correct it"),
        ("file_name,text\na.png,x\n\n,y\n", "csv line 4 names no file in file_name; correct or remove it"),
        ("\nimage_file_name,text\n,y\n", "csv line 3 names no file in image_file_name"),
        ("name,text\na.png,x\n", r"has no column file_name \(it has name, text\)"),
    ],
)
def test_faulty_csv_is_refused_with_the_line(folder, text, match):
    (folder / "metadata.csv").write_text(text)
    with pytest.raises(TideError, match=match):
        captions(folder)


def test_a_list_in_another_encoding(folder):
    (folder / "metadata.jsonl").write_bytes('{"file_name": "a.png", "text": "ein Häuschen"}'.encode("latin-1"))
    with pytest.raises(TideError, match=r"metadata\.jsonl is not UTF-8 text"):
        captions(folder)


def test_an_empty_list_is_no_list(folder):
    (folder / "metadata.jsonl").write_text("\n")
    (folder / "metadata.csv").write_text("")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert captions(folder) == {}


@pytest.mark.parametrize(
    "text",
    [
        "\n\nfile_name,text\na.png,a tree\n",
        "file_name, text\na.png, a tree\n",
        'file_name,"text"\r\n"a.png","a tree"\r\n',
    ],
)
def test_csv_as_people_write_it(folder, text):
    (folder / "metadata.csv").write_bytes(text.encode())
    assert captions(folder) == {"a.png": "a tree"}


def test_csv_without_its_first_line_is_refused(folder):
    (folder / "metadata.csv").write_text("a.png,a tree\n")
    with pytest.raises(TideError, match=r"metadata\.csv has no column file_name \(it has a\.png, a tree\)"):
        captions(folder)


def test_a_list_in_capitals_and_texts_that_keep_the_suffix(folder):
    (folder / "METADATA.CSV").write_text("file_name,label\na.png,3\n")
    (folder / "b.png.txt").write_text("a tree")
    assert captions(folder) == {"a.png": "3", "b.png": "a tree"}


def test_whole_numbers_that_are_stored_as_floats_are_classes(folder):
    list_captions(folder, [{"file_name": "a.png", "label": 3.0}, {"file_name": "b.png", "label": float("nan")}])
    assert captions(folder) == {"a.png": "3"}


@pytest.mark.parametrize("name", ["captions.csv", "metadata.json", "a.caption"])
def test_a_file_that_may_be_the_missing_list_is_named(folder, name):
    (folder / name).write_text("file_name,text\na.png,a tree\n")
    found = captions_of(files_of(folder))
    assert found.faults == [
        f"{folder}/{name} is not read; a list of captions is called metadata.jsonl or metadata.csv or metadata.parquet"
    ]
    (folder / "a.txt").write_text("a tree")
    assert captions(folder) == {"a.png": "a tree"}


def test_a_single_folder_is_a_class(tmp_path):
    found = captions_of(files_of(make(tmp_path / "animals", "cat/a.png", "cat/b.png")))
    assert (set(found.of.values()), found.notes) == ({"cat"}, ("captions are the name of the folder cat",))
