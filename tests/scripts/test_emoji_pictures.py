"""The package of emoji as two image folders: names, weights, mirror images, and what is held out."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path

import emoji_pictures
import pytest
from emoji_names import plain, shown_name
from emoji_package import PICTURES, opened
from emoji_pictures import COMBINATIONS, Row, rows_of, split, write
from PIL import Image

from tide.errors import TideError
from tide.images import open_data, open_picture


def entry(
    name: str, short: str, *, category: str = "Objects", group: str = "tool", tones: tuple[str, ...] = ()
) -> dict:
    variants = {tone: {"image": f"{short}-{tone}.png", "has_img_google": True} for tone in tones}
    return {
        "name": name, "short_name": short, "image": f"{short}.png", "category": category, "subcategory": group,
        "has_img_google": True, "skin_variations": variants,
    }  # fmt: skip


EMOJI = [
    entry("GEAR", "gear"),
    entry("HAMMER", "hammer"),
    entry("BLUE HEART", "blue_heart", category="Smileys & Emotion", group="heart"),
    entry("RED HEART", "red_heart", category="Smileys & Emotion", group="heart"),
    entry("BLUE BOOK", "blue_book", group="book-paper"),
    entry("Peru Flag", "flag-pe", category="Flags", group="country-flag"),
    entry("KEYCAP 1", "one", category="Symbols", group="keycap"),
    entry("WAVING HAND SIGN", "wave", category="People & Body", group="hand-fingers-open", tones=("1F3FB", "1F3FE")),
    entry("COUPLE WITH HEART: WOMAN, MAN", "woman-heart-man", category="People & Body", tones=("1F3FB-1F3FF",)),
    entry("WOMAN WALKING", "woman-walking", category="People & Body"),
    entry("WOMAN WALKING FACING RIGHT", "woman_walking_facing_right", category="People & Body"),
]


@pytest.fixture
def package(tmp_path) -> Path:
    """A folder like the package's, whose pictures are half transparent, half blue."""
    folder = tmp_path / "package"
    (folder / PICTURES).mkdir(parents=True)
    (folder / "emoji.json").write_text(json.dumps(EMOJI))
    picture = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    picture.paste((0, 0, 255, 255), (0, 0, 32, 64))
    for _, row in rows_of(EMOJI):
        picture.save(folder / PICTURES / row.file_name)
    return folder


def by_text() -> dict[str, Row]:
    return {row.text: row for _, row in rows_of(EMOJI)}


@pytest.mark.parametrize(
    ("name", "short", "shown"),
    [
        ("RED APPLE", "apple", "red apple"),
        ("HEAVY BLACK HEART", "heart", "red heart"),
        ("MAN: RED HAIR", "red_haired_man", "man with red hair"),
        ("WOMAN: BALD", "bald_woman", "bald woman"),
        ("NEGATIVE SQUARED LATIN CAPITAL LETTER B", "b", "letter b button"),
        ("SQUARED SOS", "sos", "sos button"),
        ("LARGE ORANGE SQUARE", "large_orange_square", "orange square"),
        ("CLAPPING HANDS SIGN", "clap", "clapping hands"),
        ("RESCUE WORKER\u2019S HELMET", "helmet", "rescue workers helmet"),
        ("Réunion Flag", "flag-re", "reunion flag"),
        ("UP-POINTING RED TRIANGLE", "small_red_triangle", "up pointing red triangle"),
    ],
)
def test_names_say_what_is_seen(name, short, shown):
    assert shown_name(name, short) == shown


def test_categories_in_plain_words():
    assert plain("Animals & Nature") == "animals and nature"
    assert plain("animal-mammal") == "animal mammal"


def test_captions_with_the_skin_tone_and_the_group():
    row = by_text()["waving hand, medium dark skin tone"]
    assert row.grouped == "waving hand, hand fingers open, medium dark skin tone"
    assert "hand fingers open, medium dark skin tone" in row.texts
    assert "wave, medium dark skin tone" in row.texts
    assert (row.category, row.subcategory) == ("people and body", "hand fingers open")


def test_two_skin_tones_are_both_named():
    assert "couple with heart woman man, light and dark skin tone" in by_text()


def test_skin_tones_together_weigh_as_much_as_their_base():
    rows = by_text()
    tones = [row.weight for text, row in rows.items() if text.startswith("waving hand,")]
    assert len(tones) == 2
    assert sum(tones) == rows["waving hand"].weight == 1


def test_flags_and_signs_weigh_less():
    rows = by_text()
    assert rows["peru flag"].weight < rows["keycap 1"].weight < rows["gear"].weight


def test_what_has_writing_or_a_direction_is_not_mirrored():
    flips = {text: row.flip for text, row in by_text().items()}
    assert flips["gear"]
    assert not any(flips[text] for text in ("keycap 1", "peru flag", "blue book"))
    assert not flips["woman walking"]  # its mirror image is another picture
    assert not flips["woman walking facing right"]


def test_named_combinations_are_held_out_and_their_words_are_trained_on():
    train, held_out = split(list(rows_of(EMOJI)))
    found = {row.text: row.held_out for row in held_out}
    assert found["blue heart"] == "combination"
    assert not {row.text for row in train} & set(COMBINATIONS)


def test_a_base_emoji_that_is_held_out_is_so_in_every_skin_tone(monkeypatch):
    monkeypatch.setattr(emoji_pictures, "_chosen", lambda name: name == "waving hand")
    train, held_out = split(list(rows_of(EMOJI)))
    assert {row.held_out for row in held_out if row.text.startswith("waving hand")} == {"word"}
    assert len(train) + len(held_out) == len(list(rows_of(EMOJI)))
    assert not [row for row in train if row.text.startswith("waving hand")]


def test_image_folders_that_tide_reads(package, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["emoji_pictures.py", str(tmp_path / "out"), "--package", str(package)])
    emoji_pictures.main()
    (_, texts), *_ = open_data(tmp_path / "out" / "train", 64, batch_size=99, seed=None)
    assert "waving hand, light skin tone" in texts
    assert "blue heart" not in texts
    assert open_picture(tmp_path / "out" / "held-out" / "blue_heart.png").getpixel((60, 5)) == (255, 255, 255)
    grouped = open_data(tmp_path / "out" / "train", 64, batch_size=99, seed=None, caption_column="grouped")
    assert "gear, tool" in next(iter(grouped))[1]


def test_pictures_of_another_split_are_removed(package, tmp_path):
    train, held_out = split(list(rows_of(EMOJI)))
    read = opened(package)
    write(tmp_path / "out", held_out, train, read)
    (tmp_path / "out" / "mine.png").write_bytes(b"")
    write(tmp_path / "out", train, held_out, read)
    names = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert names == {row.file_name for row in train} | {"mine.png"}


def test_the_archive_reads_as_the_folder_does(package, tmp_path):
    with tarfile.open(tmp_path / "package.tgz", "w:gz") as archive:
        archive.add(package, "package")
        extra = tarfile.TarInfo("package/../../outside")
        archive.addfile(extra, io.BytesIO())
    read = opened(tmp_path / "package.tgz")
    assert read("emoji.json") == opened(package)("emoji.json")
    assert read("img/google/64/gear.png") == opened(package)("img/google/64/gear.png")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "emoji.json").unlink(), "has no emoji.json; fetch it"),
        (lambda folder: (folder / "emoji.json").write_text("[{"), "emoji.json is not valid JSON"),
        (lambda folder: (folder / "emoji.json").write_text('[{"name": "GEAR"}]'), "is missing"),
        (lambda folder: (folder / "emoji.json").write_bytes(b"\xff"), "emoji.json is not valid JSON"),
        (lambda folder: (folder / "img/google/64/gear.png").unlink(), "has no img/google/64/gear.png; fetch it"),
        (lambda folder: (folder / "img/google/64/gear.png").write_text("x"), "gear.png"),
        (lambda folder: list_one(folder, entry("GEAR", "../../gear")), "'../../gear.png' is no file name"),
        (lambda folder: list_one(folder, entry("WAVE", "wave", tones=("1F3F",))), "'1F3F' is no skin tone"),
    ],
)
def test_a_damaged_package_is_told_in_a_line(package, tmp_path, monkeypatch, capsys, damage, message):
    damage(package)
    monkeypatch.setattr(sys, "argv", ["emoji_pictures.py", str(tmp_path / "out"), "--package", str(package)])
    with pytest.raises(SystemExit) as ended:
        emoji_pictures.main()
    error = capsys.readouterr().err
    assert (ended.value.code, error.count("\n")) == (2, 1)
    assert message in error
    assert not list(tmp_path.rglob("metadata.jsonl"))


def list_one(folder: Path, listed: dict) -> None:
    (folder / "emoji.json").write_text(json.dumps([listed]))


@pytest.mark.parametrize("cut", [0, 40, -30])
def test_an_archive_that_is_cut_off(package, tmp_path, cut):
    path = tmp_path / "package.tgz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(package, "package")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(TideError, match=r"is not a whole archive .*fetch it with"):
        opened(path)


def test_a_package_that_is_not_there_says_how_to_fetch_it(tmp_path):
    with pytest.raises(TideError, match="fetch it with `npm pack emoji-datasource-google"):
        opened(tmp_path / "none.tgz")
