"""The steps of threshold activations that a GPU times, at a toy size."""

from benchmarks.gpu.bench import Bench
from benchmarks.shapes import Shape
from benchmarks.threshold_ops import steps


def test_steps_of_all_activations_are_timed():
    times = steps(Bench(dry_run=True), Shape(64, 32, 256, 13))
    assert list(times) == ["topk", "batch_topk", "jumprelu"]
    assert all(timing.median > 0 for timing in times.values())
