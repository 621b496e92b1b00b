"""Memory of freed gradients, kept for the next ones: never in two hands, never more than was in use."""

import os
import threading

import pytest
import torch

import tide_kernels
from tide_kernels import memory

SHAPE = (1200, 1000)  # 4.8 MB
FLOAT = torch.float32


@pytest.fixture(autouse=True)
def nothing_kept():
    memory.empty_cache()
    yield
    memory.empty_cache()


def kept():
    return sum(size * len(blocks) for size, blocks in memory._kept.items())


@pytest.mark.parametrize("shape", [(0, 5), (3, 5), SHAPE, (2048, 1024)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_zeros(shape, dtype):
    for _ in range(3):  # also where the first has been
        fresh = memory.zeros(shape, dtype)
        assert fresh.shape == memory.empty(shape, dtype).shape == shape
        assert fresh.dtype == dtype
        assert fresh.is_contiguous()
        assert not fresh.any()
        assert bool((fresh.fill_(1) == 1).all())
        del fresh


def test_without_large_pages(monkeypatch):
    monkeypatch.delattr(memory.mmap, "MADV_HUGEPAGE", raising=False)
    assert not memory.zeros(SHAPE, FLOAT).any()


def test_freed_memory_is_handed_out_again():
    first = memory.zeros(SHAPE, FLOAT)
    place = first.data_ptr()
    second = memory.zeros(SHAPE, FLOAT)
    assert second.data_ptr() != place
    del first
    assert memory.empty((600, 2000), FLOAT).data_ptr() == place  # the size counts, not the shape


@pytest.mark.parametrize(
    "share",
    [lambda t: t[5:7], lambda t: t.detach(), lambda t: t.untyped_storage(), lambda t: t.numpy()],
    ids=["slice", "detached", "storage", "numpy"],
)
def test_what_shares_the_memory_keeps_it_in_use(share):
    first = memory.zeros(SHAPE, FLOAT)
    place, rest = first.data_ptr(), share(first)
    del first
    assert kept() == 0
    assert memory.zeros(SHAPE, FLOAT).data_ptr() != place
    del rest
    assert kept() > 0


def test_another_size_gives_back_what_is_kept():
    tensors = [memory.zeros(SHAPE, FLOAT) for _ in range(3)]
    most = 3 * (tensors[0].nbytes + memory._LARGE_PAGE)
    del tensors
    assert kept() == most
    other = memory.zeros((1300, 1000), FLOAT)
    assert kept() == 0
    del other
    for rows in range(1201, 1400, 7):  # shapes that change at each step
        tensors = [memory.zeros((rows, 1000), FLOAT) for _ in range(2)]
        del tensors
        assert kept() == 2 * (rows * 4000 + memory._LARGE_PAGE)


def test_emptying_the_cache():
    tensor = memory.zeros(SHAPE, FLOAT)
    del tensor
    assert kept() > 0
    tide_kernels.empty_cache()
    assert kept() == 0


def test_the_system_gets_back_what_is_released():
    def held():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    if not os.path.exists("/proc/self/statm"):
        pytest.skip("no /proc")
    before = held()
    for rows in range(8000, 8030):
        memory.zeros((rows, 1000), FLOAT).fill_(1)
    assert held() < before + 2 * 8030 * 4000
    memory.empty_cache()
    assert held() < before + 8000 * 4000 / 2


def test_threads_never_hold_the_same_memory():
    wrong = []

    def work(number):
        for _ in range(40):
            tensor = memory.empty((1100 + number % 2, 1000), FLOAT)
            tensor.fill_(number)
            wrong.extend([number] * int((tensor != number).any()))
            del tensor

    workers = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_has_a_copy():
    mine = memory.zeros(SHAPE, FLOAT)
    freed = memory.zeros(SHAPE, FLOAT)
    del freed
    child = os.fork()
    if child == 0:  # without operations that need the parent's threads
        own = memory.empty(SHAPE, FLOAT)
        own.numpy()[:] = 5
        mine.numpy()[:] = 5
        os._exit(0 if own.data_ptr() != mine.data_ptr() and (own.numpy() == 5).all() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not mine.any()
    assert not memory.zeros(SHAPE, FLOAT).any()
