"""Where what belongs to several blocks lies."""

from pathlib import Path

from tide.files.per_block import block_folders, found_blocks


def test_one_block_has_the_folder_itself_and_several_have_one_each(tmp_path: Path) -> None:
    assert block_folders(tmp_path, [6]) == {6: tmp_path}
    assert block_folders(tmp_path, [6, 3]) == {6: tmp_path / "block-6", 3: tmp_path / "block-3"}


def test_folders_are_found_by_number_and_other_names_are_left_out(tmp_path: Path) -> None:
    for name in ("block-10", "block-9", "block-09", "block-x", "blocks", "block-7.bak"):
        (tmp_path / name).mkdir()
    (tmp_path / "block-3").write_text("a file")
    assert list(found_blocks(tmp_path).items()) == [(9, tmp_path / "block-9"), (10, tmp_path / "block-10")]
