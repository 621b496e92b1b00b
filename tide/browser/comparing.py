"""The latents of one run that match those of another, by where both fire on the same images."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from tide.errors import TideError
from tide.index import Index
from tide.index.layout import FACTS
from tide.index.neighbours import matched


def compared(a: Index, b: Index) -> dict[str, np.ndarray]:
    """For each latent of ``a`` the latent of ``b`` whose maps on the same images are most similar: ``match`` (-1 for
    one that never fires), its ``cosine``, and whether it is ``mutual``: the match's own match.

    Raises :class:`~tide.errors.TideError` for indexes of different images or different grids.
    """
    if a.facts["data_digest"] != b.facts["data_digest"] or a.facts["map"] != b.facts["map"]:
        raise TideError(
            f"{a.run} and {b.run} were indexed on different images; make both indexes on the same data, size and seed"
        )
    forward, cosine = _matches(*_keys(a), *_keys(b))
    backward, _ = _matches(*_keys(b), *_keys(a))
    there = forward >= 0
    mutual = np.zeros(len(forward), dtype="i4")
    mutual[there] = backward[forward[there]] == np.flatnonzero(there)
    return {"match": forward, "cosine": cosine, "mutual": mutual}


def _keys(index: Index) -> tuple[Path, int]:
    return index.run, (index.folder / FACTS).stat().st_mtime_ns


@lru_cache(maxsize=8)
def _matches(a: Path, a_time: int, b: Path, b_time: int) -> tuple[np.ndarray, np.ndarray]:
    """The times are there so that an index made anew is compared anew."""
    rows, others = (torch.from_numpy(Index(run).rows("sketch")[:].astype("f4")) for run in (a, b))
    match, cosine = matched(rows, others, 1)
    return match[:, 0].numpy(), cosine[:, 0].numpy()
