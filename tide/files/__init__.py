"""Files that survive crashes and power loss, and careful readers of files from elsewhere."""

from tide.files.folders import new_folders, remove_leftovers
from tide.files.lines import append_lines, read_lines
from tide.files.lock import lock_file, lock_folder
from tide.files.reading import parse_json, read_json, read_text, read_yaml
from tide.files.sealed import read_sealed, write_sealed
from tide.files.tensors import (
    check_tensors,
    file_digest,
    halved,
    open_tensors,
    read_tensors,
    tensors_writer,
    what_is_wrong,
)
from tide.files.writing import Write, finite, json_text, json_writer, replace_file, replace_files, write_json

__all__ = [
    "Write",
    "append_lines",
    "check_tensors",
    "file_digest",
    "finite",
    "halved",
    "json_text",
    "json_writer",
    "lock_file",
    "lock_folder",
    "new_folders",
    "open_tensors",
    "parse_json",
    "read_json",
    "read_lines",
    "read_sealed",
    "read_tensors",
    "read_text",
    "read_yaml",
    "remove_leftovers",
    "replace_file",
    "replace_files",
    "tensors_writer",
    "what_is_wrong",
    "write_json",
    "write_sealed",
]
