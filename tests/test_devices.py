"""Devices by name, and the memory that they have."""

from __future__ import annotations

import pytest
import torch

from tide import devices
from tide.devices import device_memory, device_of
from tide.errors import TideError


def test_the_cpu_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of(None) == device_of("cpu") == torch.device("cpu")


def test_a_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_of(None) == device_of("cuda") == torch.device("cuda")
    assert device_of("cuda:1") == torch.device("cuda:1")
    with pytest.raises(TideError, match="device 'cuda:2' is not there: PyTorch sees 2 GPUs; use device cpu"):
        device_of("cuda:2")


@pytest.mark.parametrize("name", ["tpu", "meta", "cuda:x", "", "cpu:first"])
def test_other_names(name):
    with pytest.raises(TideError, match="is not supported; use cpu, cuda or cuda:<number>"):
        device_of(name)


def test_a_container_has_what_it_may_use(monkeypatch, tmp_path):
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "unlimited").write_text("max\n")
    monkeypatch.setattr(devices, "_LIMITS", (tmp_path / "none", tmp_path / "unlimited", tmp_path / "memory.max"))
    assert device_memory(torch.device("cpu")) == 1000000


def test_a_device_of_another_kind_does_not_say():
    assert device_memory(torch.device("meta")) is None
