"""Folders with one folder for each block: activation stores that were collected together, TIDEs trained together."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tide.files.remote import P, folders_in

_NAME = re.compile(r"block-(0|[1-9][0-9]{0,5})")


def block_folders(out: P, blocks: Sequence[int]) -> dict[int, P]:
    """Where what belongs to each of ``blocks`` goes: a single block's into ``out`` itself, that of several into
    ``out/block-N``."""
    return {block: out if len(blocks) == 1 else out / f"block-{block}" for block in blocks}


def found_blocks(folder: P) -> dict[int, P]:
    """The folders ``block-N`` in ``folder`` by N, ascending; none of a folder that holds one block's own files."""
    found = ((_NAME.fullmatch(name), each) for name, each in folders_in(folder).items())
    return dict(sorted((int(name[1]), each) for name, each in found if name))
