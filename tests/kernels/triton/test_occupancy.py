"""Programs on a multiprocessor."""

import pytest

from tide_kernels.triton.occupancy import SHARED_LIMIT, programs


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "fit"),
    [
        (128, 0, 8, 2),  # 65536 registers
        (129, 0, 8, 1),  # registers come in multiples of 8
        (32, 0, 4, 16),  # 64 warps
        (16, 0, 1, 32),  # 32 programs
        (32, 98304, 8, 2),
        (32, 116000, 8, 1),
        (32, SHARED_LIMIT["sm_90"], 8, 1),
    ],
)
def test_on_hopper(registers, shared, warps, fit):
    assert programs("sm_90", registers, shared, warps) == fit


def test_on_an_mi300():
    assert programs("gfx942", 128, 0, 4) == 4  # 512 registers of each lane
    assert programs("gfx942", 64, 32768, 4) == 2
