"""The stages of `benchmarks.gpu_check`: functions of a `benchmarks.gpu.check.Check`, named in `benchmarks.gpu.plans`."""
