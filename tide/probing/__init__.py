"""What adapters say of pipelines: described, checked, and proposed for transformers that TIDE does not know."""

from tide.probing.checks import Result, check
from tide.probing.describing import describe
from tide.probing.probe import Probe, probe
from tide.probing.trying import tried
from tide.probing.writing import text_of, write

__all__ = ["Probe", "Result", "check", "describe", "probe", "text_of", "tried", "write"]
