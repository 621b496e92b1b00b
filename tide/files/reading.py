"""Reading text, JSON and YAML that may be damaged or hostile: one line says what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tide.errors import TideError
from tide.files.schema import check_schema
from tide.messages import one_line

#: No text file that is read here is larger: the captions of ten million images are smaller.
TEXT_BYTES = 2**30
#: No YAML file of options is larger.
YAML_BYTES = 2**20


def read_text(path: Path) -> str:
    """A UTF-8 file's text, without a byte-order mark.

    ``path`` is the file.

    Raises :class:`~tide.errors.TideError` if it is missing, unreadable or not text.
    """
    try:
        if path.exists() and not path.is_file():
            raise TideError(f"{path} is not a file; check the path")
        if path.stat().st_size > TEXT_BYTES:
            raise TideError(f"{path} is larger than {TEXT_BYTES} bytes; check the path")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise TideError(f"{path} does not exist; check the path") from None
    except OSError as error:
        raise TideError(f"{path} cannot be read ({error.strerror or error}); check the path") from None
    except UnicodeDecodeError as error:
        raise TideError(f"{path} is not UTF-8 text ({error}); it may be damaged, make it again") from None


def read_json(path: Path, kind: Any = None) -> Any:
    """What a JSON file holds, checked against ``kind`` (:func:`~tide.files.schema.check_schema`) if one is given.

    ``path`` is the file.

    Raises :class:`~tide.errors.TideError` if the file is missing, unreadable, not JSON, or not of this kind.
    """
    return parse_json(read_text(path), str(path), kind)


def parse_json(text: str, where: str, kind: Any = None) -> Any:
    """:func:`read_json` for text from ``where``, a file or an entry of one.

    ``kind`` is as there.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also numbers of thousands of digits
        reason = "nested too deeply" if isinstance(error, RecursionError) else one_line(error)
        raise TideError(f"{where} is not valid JSON ({reason}); it may be truncated, make it again") from None
    if kind is not None:
        check_schema(data, kind, where)
    return data


class _Loader(yaml.SafeLoader):
    """YAML without aliases: a few lines of them can expand to more values than any memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not supported; write the values out")
        return super().compose_node(parent, index)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text. Raises :class:`~tide.errors.TideError` for text that is not YAML, and for aliases."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        raise TideError(one_line(error)) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds. Raises :class:`~tide.errors.TideError` for anything else.

    ``path`` is the file.
    """
    if path.is_file() and path.stat().st_size > YAML_BYTES:
        raise TideError(f"{path} is larger than {YAML_BYTES} bytes; give a file of options")
    text = read_text(path)
    try:
        raw = parse_yaml(text)
    except TideError as error:
        raise TideError(f"{path} could not be read as YAML ({error}); correct it") from None
    if not isinstance(raw, dict):
        raise TideError(f"{path} holds no mapping of options; write lines such as `steps: 5000`")
    return raw
