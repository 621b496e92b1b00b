"""Several processes of one run (``torchrun``, ``mpirun``): refused, because each would repeat all of the work."""

from __future__ import annotations

import os

from tide.errors import TideError

#: Variables in which launchers say how many processes they started. SLURM also sets its count where only one runs.
_COUNTS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


def refuse_ranks() -> None:
    """Raises :class:`~tide.errors.TideError` if this is one of several processes that a launcher started."""
    for name in _COUNTS:
        count = os.environ.get(name, "")
        if count.isdecimal() and int(count) > 1:
            raise TideError(
                f"{name} says that this is one of {int(count)} processes, and TIDE runs in one; start it once, without "
                f"torchrun or mpirun, or unset {name}"
            )
