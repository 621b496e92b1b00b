"""Launch configurations: the table, and the file that overrides it."""

import json
import os

import pytest
import torch

from tide_kernels import BackendError, tune
from tide_kernels.triton import configs, specs


@pytest.fixture
def cache_file(tmp_path, monkeypatch):
    path = tmp_path / "tuned.json"
    monkeypatch.setenv("TIDE_KERNELS_CACHE", str(path))
    configs.reload()
    yield path
    monkeypatch.undo()
    configs.reload()


def test_the_file_overrides_the_table(cache_file):
    table = configs.static("select", "sm_90", torch.bfloat16, 18432)
    assert configs.lookup("select", "sm_90", torch.bfloat16, 18432) == table
    cache_file.write_text(json.dumps({configs.key("select", "sm_90", torch.bfloat16, 20000): {"num_warps": 32}}))
    configs.reload()
    assert configs.lookup("select", "sm_90", torch.bfloat16, 18432) == {**table, "num_warps": 32}
    assert configs.lookup("select", "sm_90", torch.bfloat16, 4608)["num_warps"] != 32
    assert configs.static("select", "sm_90", torch.bfloat16, 18432) == table


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b'{"key": 3}',
        b'{"key": {"num_warps": "4"}}',
        b'{"key": {"num_warps": true}}',
        b"\xff",
        b"[" * 10**5,
    ],
    ids=["cut", "a list", "a number", "text", "a truth", "no text", "deep"],
)
def test_a_broken_file_is_named(cache_file, content):
    cache_file.write_bytes(content)
    configs.reload()
    with pytest.raises(BackendError, match=r"tuned\.json .*delete it and measure again") as caught:
        configs.lookup("select", "sm_90", torch.bfloat16, 18432)
    assert "\n" not in str(caught.value)


def test_a_pipe_in_its_place_is_not_waited_for(cache_file):
    os.mkfifo(cache_file)
    with pytest.raises(BackendError, match=r"tuned\.json .*not a regular file"):
        configs.lookup("select", "sm_90", torch.bfloat16, 18432)


@pytest.mark.parametrize(
    "entry",
    [
        *({"num_warps": n} for n in (0, -4, 3, 64)),
        *({"num_stages": n} for n in (0, 10**9)),
        *({"BLOCK_K": n} for n in (0, 8, 48, 10**12)),
        {"BLOCK_Q": 16},
        {"maxnreg": 0},
        {"group_tokens": -1},
    ],
    ids=str,
)
def test_what_no_kernel_can_be_launched_with_is_named(cache_file, entry):
    where = ("encoder_gradients", "sm_90", torch.bfloat16, 1152)
    cache_file.write_text(json.dumps({configs.key(*where): entry}))
    configs.reload()
    (name,) = entry
    with pytest.raises(BackendError, match=f"{name} of encoder_gradients/.* is {entry[name]}: delete the file"):
        configs.lookup(*where)


def test_what_the_search_tries_is_possible(cache_file):
    for kernel in configs._TABLE:
        where = (kernel, "sm_90", torch.bfloat16, 1152)
        for config in tune.neighbours(configs.static(*where), "sm_90"):
            cache_file.write_text(json.dumps({configs.key(*where): config}))
            configs.reload()
            assert configs.lookup(*where) == config


@pytest.mark.parametrize("arch", [*specs.ARCHS, "sm_86", "sm_120", "gfx90a", configs.INTERPRETER])
def test_every_kernel_has_a_configuration_everywhere(arch):
    for kernel in configs._TABLE:
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            for size in (1, 192, 1152, 4608, 73728):
                config = configs.static(kernel, arch, dtype, size)
                assert kernel == "pre_activations" or config["num_warps"] > 0  # that one is a choice of the host alone
                assert not (arch.startswith("gfx") and "maxnreg" in config)  # ROCm's compiler does not have this option
