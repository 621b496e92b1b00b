"""What all launches share: the layout of operands, and small choices of sizes."""

import pytest
import torch

from tide_kernels.triton import configs, launch
from tide_kernels.triton.modulate import modulate_kernel

EMPTY = launch.empty  # the tests' fixture replaces it


class Recorder:
    """Stands in for a kernel with the arguments of ``modulate_kernel``."""

    arg_names = modulate_kernel.arg_names
    __name__ = "recorder"

    def __init__(self):
        self.grids = []
        self.compiled = []

    def __getitem__(self, grid):
        return lambda *arguments, **keywords: self.grids.append(grid)

    def warmup(self, *arguments, grid, **keywords):
        self.compiled.append((grid, keywords))


def test_contiguous_tensors_are_not_copied():
    whole = torch.zeros(4, 6)
    apart = whole[:, :5]
    for prepare in (launch.contiguous, launch.rows_contiguous, launch.strided):
        assert prepare(whole) is whole
    for prepare in (launch.rows_contiguous, launch.strided):
        assert prepare(apart) is apart
    assert launch.strided(apart.T).data_ptr() == apart.data_ptr()


def test_what_a_kernel_cannot_read_is_copied():
    columns_apart = torch.arange(24.0).view(4, 6)[:, ::2]
    negated = torch._neg_view(torch.arange(6.0))
    far = torch.zeros(1).as_strided((1, 3), (2**25, 0))
    for prepare, tensor in (
        (launch.contiguous, columns_apart),
        (launch.rows_contiguous, columns_apart),
        (launch.strided, negated),
        (launch.strided, far),
    ):
        copy = prepare(tensor)
        assert copy.is_contiguous()
        assert not copy.is_neg()
        assert torch.equal(copy, tensor)


def test_an_empty_grid_launches_nothing():
    kernel = Recorder()
    launch.launch(kernel, (0, 3), torch.device("cpu"))
    launch.launch(kernel, (2, 3), torch.device("cpu"))
    assert kernel.grids == [(2, 3)]


def test_where_kernels_are_only_compiled_nothing_is_launched_and_results_are_zero():
    kernel = Recorder()
    with launch.compiling(threads=1):
        launch.launch(kernel, (2, 3), torch.device("cpu"), COLUMNS=8)
        assert not EMPTY(4, dtype=torch.int32, device=torch.device("cpu")).any()
    assert kernel.compiled == [((2, 3), {"COLUMNS": 8})]
    assert kernel.grids == []
    launch.launch(kernel, (2, 3), torch.device("cpu"))
    assert kernel.grids == [(2, 3)]


def test_a_tensor_that_lies_otherwise_than_the_kernel_expects_is_refused():
    kernel = Recorder()
    names = list(kernel.arg_names)
    arguments = [None] * len(names)
    arguments[names.index("x")] = torch.zeros(4, 6)[:, ::2]
    with pytest.raises(ValueError, match="x of recorder is not contiguous: pass memory of its own"):
        launch.launch(kernel, (1,), torch.device("cpu"), *arguments)
    assert kernel.grids == []


@pytest.mark.parametrize(
    ("size", "largest", "block"),
    [(1152, 512, 128), (1024, 512, 512), (70, 64, 8), (1, 64, 8), (4608, 512, 512)],
    ids=str,
)
def test_the_block_that_pads_the_least(size, largest, block):
    assert launch.cover(size, largest) == block


def test_options_are_those_of_the_compiler():
    assert launch.options({"BLOCK_M": 16, "rows": 3, "num_warps": 4, "num_stages": 2}) == {
        "num_warps": 4,
        "num_stages": 2,
    }


@pytest.mark.skipif(not launch.INTERPRETED, reason="is about the interpreter")
def test_the_interpreter_is_an_architecture_of_its_own():
    assert launch.architecture(torch.device("cpu")) == configs.INTERPRETER
    assert launch.processors(torch.device("cpu")) > 1


def test_float32_products_are_as_precise_as_those_of_pytorch():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        for precision in ("ieee", "tf32"):
            matmul.fp32_precision = precision
            assert launch.dot_precision(torch.float32) == precision
            assert launch.dot_precision(torch.float16) == "ieee"
    finally:
        matmul.fp32_precision = before
