"""Scorers are tested offline and with their libraries taken away."""

from __future__ import annotations

import socket
import sys

import pytest


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Any look-up of a host or connection fails, and fails the test even where its error is caught."""
    tried = []

    def refuse(*args: object, **kwargs: object) -> None:
        tried.append(args)
        raise OSError("tests have no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield
    assert not tried


class _Finder:
    """Importing ``name`` raises ``error``."""

    def __init__(self, name: str, error: Exception) -> None:
        self.name, self.error = name, error

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname == self.name:
            raise self.error


@pytest.fixture
def without(monkeypatch):
    """Makes importing a package fail: it is not installed, or it is and breaks."""

    def block(name: str, error: Exception | None = None) -> None:
        for module in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
            monkeypatch.delitem(sys.modules, module)
        error = error or ModuleNotFoundError(f"No module named {name!r}", name=name)
        monkeypatch.setattr(sys, "meta_path", [_Finder(name, error), *sys.meta_path])

    return block
