"""Sharing what was trained: a run's folder to the Hub (:func:`push`), and from there (:func:`pull`)."""

from tide.sharing.pulling import pull
from tide.sharing.pushing import Shared, prepared, push

__all__ = ["Shared", "prepared", "pull", "push"]
