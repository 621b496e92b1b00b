"""In which order the images of a set are read, and which of them are held out: by hashes of their names."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence

from tide.errors import TideError


def seeded(names: Sequence[str], seed: int) -> list[int]:
    """The numbers of ``names`` in an order that depends on ``seed`` and the names alone.

    The first N are a uniform sample, and the first N of the first M > N. Names that are added leave the others in
    their order.
    """
    return sorted(range(len(names)), key=lambda i: (_hash(f"{seed}", names[i]), names[i]))


def held_out(names: Sequence[str], share: float) -> set[int]:
    """The numbers of the ``names`` that are held out: those whose hash, uniform in [0, 1), is below ``share``.

    It is the same names whatever the seed, and names that are added change nothing for the others, with one exception:
    of two or more names at least one is held out, that of the lowest hash, and never all.

    Raises :class:`~tide.errors.TideError` for a share that is not in [0, 1).
    """
    check_hold_out(share)
    if share == 0 or len(names) < 2:
        return set()
    places = [_hash("hold-out", name) for name in names]
    chosen = {i for i, place in enumerate(places) if is_below(place, share)}
    ordered = sorted(range(len(names)), key=lambda i: (places[i], names[i]))
    return (chosen | {ordered[0]}) - {ordered[-1]}


def is_held_out(name: str, share: float) -> bool:
    """:func:`held_out` of a name whose neighbours are not known."""
    return is_below(_hash("hold-out", name), share)


def is_below(place: int, share: float) -> bool:
    return place < share * 2**64


def check_hold_out(share: float) -> None:
    """Raises :class:`~tide.errors.TideError` for a share that is not in [0, 1)."""
    if not 0 <= share < 1:
        raise TideError(f"hold_out {share} is not in [0, 1); give the share to reserve, such as 0.1, or 0 for none")


def continuing(names: Sequence[str], order: Sequence[int], recorded: Mapping[int, str], n: int = 0) -> list[int]:
    """``order``, but with the images whose names are ``recorded`` (place -> name) at their places.

    Of the first ``n`` places, those that nothing is recorded of are filled in ``order``; if the recorded names were not
    read in that order, but sorted, as by earlier versions, they are filled sorted.
    """
    number = {name: i for i, name in enumerate(names)}
    found = {place: number[name] for place, name in recorded.items() if name in number}
    taken = set(found.values())
    rest = [i for i in order if i not in taken]
    by_name = sorted(taken.union(order), key=lambda i: names[i].split("/"))
    as_now = _agreeing(found, order) >= _agreeing(found, by_name)
    filling = iter(rest if as_now else [i for i in by_name if i not in taken])
    end = max(n, max(recorded, default=-1) + 1)
    first = [found[place] if place in found else next(filling, None) for place in range(end)]
    begun = [i for i in first if i is not None]
    used = set(begun)
    return begun + [i for i in rest if i not in used]


def _agreeing(found: Mapping[int, int], order: Sequence[int]) -> int:
    """How many places have the number that ``order`` has there."""
    return sum(place < len(order) and order[place] == i for place, i in found.items())


def _hash(salt: str, name: str) -> int:
    """64 bits of a name, the same however its accents are composed."""
    text = f"{salt}/{unicodedata.normalize('NFC', name)}"
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")
