"""Guards: unwanted concepts kept out of every image that a pipeline draws. Names are loaded when they are first used.

- ``definition``: what a guard is; ``guard_file``: its folder;
- ``words``, ``refuge``: what becomes of the prompt's words; ``cost``: what all of it takes;
- ``context``: guards at work in a pipeline; ``guard_run``: one guard, call by call; ``log``: what it met.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tide.deferred import deferred

if TYPE_CHECKING:
    from tide.guards.context import guard
    from tide.guards.cost import Cost, guard_cost
    from tide.guards.definition import Guard, MadeFor
    from tide.guards.guard_file import load_guard, save_guard
    from tide.guards.log import GuardLog, Sighting
    from tide.guards.refuge import Refuge
    from tide.guards.words import Words

__all__ = [
    "Cost",
    "Guard",
    "GuardLog",
    "MadeFor",
    "Refuge",
    "Sighting",
    "Words",
    "guard",
    "guard_cost",
    "load_guard",
    "save_guard",
]

__getattr__, __dir__ = deferred(
    __name__,
    {
        "context": "guard",
        "cost": "Cost guard_cost",
        "definition": "Guard MadeFor",
        "guard_file": "load_guard save_guard",
        "log": "GuardLog Sighting",
        "refuge": "Refuge",
        "words": "Words",
    },
)
