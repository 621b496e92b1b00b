"""Devices by name, and the memory that they have."""

from __future__ import annotations

import types

import pytest
import torch

from tests.helpers.single import single
from tide import devices
from tide.devices import check_backend, default_dtype, device_memory, device_names, device_of, in_double, use_own_gpu
from tide.errors import TideError
from tide_kernels.dispatch import choose


def test_the_cpu_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of(None) == device_of("cpu") == torch.device("cpu")


@pytest.mark.parametrize(("environment", "number"), [({"LOCAL_RANK": "1"}, 1), ({"LOCAL_RANK": "5"}, 1), ({}, None)])
def test_each_process_of_a_machine_takes_its_own_gpu(monkeypatch, environment, number):
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    launcher = {"RANK": "5", "WORLD_SIZE": "8", **environment} if environment else {}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    use_own_gpu()
    assert chosen == ([] if number is None else [number])


def test_a_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_of(None) == device_of("cuda") == torch.device("cuda")
    assert device_of("cuda:1") == torch.device("cuda:1")
    with pytest.raises(TideError, match=r"device 'cuda:2' is not there; use cpu, cuda:0 or cuda:1$"):
        device_of("cuda:2")


@pytest.mark.parametrize("name", ["tpu", "meta", "cuda:x", "", "cpu:first"])
def test_other_names(name):
    with pytest.raises(TideError, match=rf"device {name!r} is not supported; use cpu"):
        device_of(name)


@pytest.fixture
def laptop(monkeypatch) -> None:
    """A torch that sees Apple's GPU, as far as names of devices go."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 7 * 10**9)


@pytest.mark.usefixtures("laptop")
def test_apples_gpu_is_used_where_it_is_asked_for():
    assert device_of("mps") == torch.device("mps")
    assert device_of("mps:0") == torch.device("mps:0")
    assert device_of(None) == torch.device("cpu")
    assert device_names() == ["cpu", "mps"]
    assert device_memory(torch.device("mps")) == 7 * 10**9
    with pytest.raises(TideError, match=r"device 'mps:1' is not there; use cpu or mps$"):
        device_of("mps:1")


def test_intels_gpus(monkeypatch):
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 2)
    assert device_of("xpu:1") == torch.device("xpu:1")
    assert device_names() == ["cpu", "xpu:0", "xpu:1"]
    with pytest.raises(TideError, match=r"device 'xpu:2' is not there; use cpu, xpu:0 or xpu:1$"):
        device_of("xpu:2")


def test_the_device_of_an_extension(monkeypatch):
    """Such as Ascend's: known to torch once its package is imported."""
    there = types.SimpleNamespace(is_available=lambda: True, device_count=lambda: 1)
    monkeypatch.setattr(torch, "npu", there, raising=False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_: types.SimpleNamespace(type="npu"))
    monkeypatch.setattr(torch, "device", lambda name: types.SimpleNamespace(type=name, index=None))
    assert device_of("npu").type == "npu"
    assert device_names() == ["cpu", "npu"]


@pytest.mark.parametrize("name", ["mps", "xpu", "cuda", "cpu:1"])
def test_devices_that_are_not_here(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TideError, match=f"device '{name}' is not there; use cpu$"):
        device_of(name)


@pytest.mark.parametrize(
    ("device", "expected"),
    [("cpu", torch.float32), ("mps", torch.float32), ("cuda", torch.bfloat16), ("xpu", torch.bfloat16)],
)
def test_the_dtype_of_a_pipeline_by_default(device, expected):
    assert default_dtype(torch.device(device)) == expected


def test_the_reference_backend_serves_devices_without_kernels_of_their_own():
    for device in ("mps", "xpu"):
        check_backend("auto", torch.device(device))
        assert choose("auto", "auto", device=torch.device(device), dtype=torch.float32, n_latents=64, k=4).backend == (
            "reference"
        )


def test_float64_is_on_the_cpu_where_a_device_has_none(monkeypatch):
    x = single(torch.ones(3))
    monkeypatch.setattr(devices, "has_float64", lambda device: False)
    assert type(in_double(x)) is torch.Tensor
    assert in_double(x).dtype == torch.float64


def test_a_container_has_what_it_may_use(monkeypatch, tmp_path):
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "unlimited").write_text("max\n")
    monkeypatch.setattr(devices, "_LIMITS", (tmp_path / "none", tmp_path / "unlimited", tmp_path / "memory.max"))
    assert device_memory(torch.device("cpu")) == 1000000


def test_a_device_of_another_kind_does_not_say():
    assert device_memory(torch.device("meta")) is None
