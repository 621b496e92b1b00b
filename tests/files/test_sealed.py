"""JSON that tells when it is not as it was written."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tide.errors import TideError
from tide.files import read_sealed, write_sealed

DATA = {"numbers": [1, 0.1, 1e300, -0.0, float("nan")], "text": "ä", "pairs": {1: (2, 3)}, "none": None}


def test_what_was_written_is_read(tmp_path):
    write_sealed(tmp_path / "a.json", DATA)
    found = read_sealed(tmp_path / "a.json", dict[str, Any], remedy="make it again")
    assert str(found) == str({**DATA, "pairs": {"1": [2, 3]}})  # as JSON has it
    assert "sha256" not in DATA
    write_sealed(tmp_path / "b.json", found)
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()


def test_the_order_of_the_keys_does_not_matter(tmp_path):
    write_sealed(tmp_path / "a.json", {"a": 1, "b": 2})
    kept = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps(dict(reversed(kept.items()))))
    assert read_sealed(tmp_path / "a.json", dict[str, int | str], remedy="") == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": "a"}, "does not agree with its checksum"),
        ({"numbers": [1, 0.1, 1e300, 0.0, float("nan")]}, "does not agree with its checksum"),
        ({"more": 1}, "does not agree with its checksum"),
        ({"sha256": 3}, "does not agree with its checksum"),
        ({"sha256": None}, "does not agree with its checksum"),
    ],
)
def test_what_was_changed_is_refused(tmp_path, change, message):
    write_sealed(tmp_path / "a.json", DATA)
    kept = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps(kept | change))
    with pytest.raises(TideError, match=f"a.json {message}.*; delete it"):
        read_sealed(tmp_path / "a.json", dict[str, Any], remedy="delete it")


def test_a_file_of_an_earlier_version_has_no_checksum(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert read_sealed(tmp_path / "a.json", dict[str, int], remedy="") == {"a": 1}
    with pytest.raises(TideError, match="a is 1 and must be text"):
        read_sealed(tmp_path / "a.json", dict[str, str], remedy="")
