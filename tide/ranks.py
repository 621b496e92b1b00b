"""Several processes of one run: those of ``torchrun``, and launchers whose processes are refused."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from tide.errors import TideError

#: Variables in which launchers say how many processes they started. SLURM also sets its count where only one runs.
_COUNTS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


@dataclass(frozen=True)
class Launched:
    """One of the processes that torchrun started: its number, how many there are, its number on this machine, and how
    many there are here (1 if it is not said)."""

    number: int
    count: int
    local: int
    here: int = 1


def launched(environment: Mapping[str, str] = os.environ) -> Launched | None:
    """Which of torchrun's processes this is; None for one alone."""
    rank, world = environment.get("RANK", ""), environment.get("WORLD_SIZE", "")
    if not rank.isdecimal() or not world.isdecimal() or int(world) < 2:
        return None
    local, here = environment.get("LOCAL_RANK", ""), environment.get("LOCAL_WORLD_SIZE", "")
    if not local.isdecimal() or not here.isdecimal() or int(local) >= int(here):
        return Launched(int(rank), int(world), int(local) if local.isdecimal() else 0)
    return Launched(int(rank), int(world), int(local), int(here))


def refuse_ranks() -> None:
    """Raises :class:`~tide.errors.TideError` if this is one of several processes that a launcher started."""
    for name in _COUNTS:
        count = os.environ.get(name, "")
        if count.isdecimal() and int(count) > 1:
            raise TideError(
                f"{name} says that this is one of {int(count)} processes, and only `tide train` and `tide collect` "
                f"divide their work, under torchrun; start it once, or unset {name}"
            )


def refuse_other_launchers() -> None:
    """Raises :class:`~tide.errors.TideError` for processes of a launcher that do not know which of them they are."""
    if launched() is None:
        refuse_ranks()
