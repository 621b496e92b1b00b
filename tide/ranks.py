"""Several processes of one run (``torchrun``, ``mpirun``): which of them this is, and where they are refused."""

from __future__ import annotations

import os
from collections.abc import Mapping

from tide.errors import TideError

#: Variables in which launchers say how many processes they started. SLURM also sets its count where only one runs.
_COUNTS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


def rank_and_world(environment: Mapping[str, str] = os.environ) -> tuple[int, int] | None:
    """This process's number and how many torchrun started; None for one alone."""
    rank, world = environment.get("RANK", ""), environment.get("WORLD_SIZE", "")
    if not rank.isdecimal() or not world.isdecimal() or int(world) < 2:
        return None
    return int(rank), int(world)


def refuse_ranks() -> None:
    """Raises :class:`~tide.errors.TideError` if this is one of several processes that a launcher started."""
    for name in _COUNTS:
        count = os.environ.get(name, "")
        if count.isdecimal() and int(count) > 1:
            raise TideError(
                f"{name} says that this is one of {int(count)} processes, and TIDE runs in one; start it once, without "
                f"torchrun or mpirun, or unset {name}"
            )
