"""How many programs fit on a multiprocessor, from the registers and the shared memory of one."""

from __future__ import annotations

from dataclasses import dataclass

# Bytes of shared memory that a program may use.
SHARED_LIMIT = {"sm_80": 166912, "sm_90": 232448, "sm_100": 232448, "gfx942": 65536}


@dataclass(frozen=True)
class Processor:
    """What the programs on a multiprocessor share."""

    lanes: int  # threads of a warp
    warps: int
    programs: int
    registers: int  # of 32 bits, for each of its four schedulers
    granule: int  # registers of a warp come in multiples of this
    shared: int  # bytes
    reserved: int  # bytes of shared memory that each program takes beyond its own


_NVIDIA = {
    arch: Processor(32, 64, 32, 16384, 256, SHARED_LIMIT[arch] + 1024, 1024) for arch in ("sm_80", "sm_90", "sm_100")
}
_PROCESSORS = {**_NVIDIA, "gfx942": Processor(64, 32, 32, 32768, 512, SHARED_LIMIT["gfx942"], 0)}
_SCHEDULERS = 4


def programs(arch: str, registers: int, shared: int, warps: int) -> int:
    """Programs on a multiprocessor at once, of ``warps`` warps with ``registers`` each thread and ``shared`` bytes."""
    has = _PROCESSORS[arch]
    of_warp = -(-max(registers, 1) * has.lanes // has.granule) * has.granule
    resident = min(has.warps, _SCHEDULERS * (has.registers // of_warp))
    return min(has.programs, resident // warps, has.shared // (shared + has.reserved) if shared else has.programs)
