"""What collecting and training will take, before any of it is begun."""

from tide.planning.here import measure
from tide.planning.machines import Constant, Machine, load_machine, machine_names
from tide.planning.model import FORMULAS, Way
from tide.planning.planner import Plan, plan
from tide.planning.report import plan_text
from tide.planning.sizes import PipelineSizes, given_sizes, sizes_of
from tide.planning.work import Work

__all__ = [
    "FORMULAS",
    "Constant",
    "Machine",
    "PipelineSizes",
    "Plan",
    "Way",
    "Work",
    "given_sizes",
    "load_machine",
    "machine_names",
    "measure",
    "plan",
    "plan_text",
    "sizes_of",
]
