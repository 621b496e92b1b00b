"""The stages of `benchmarks.gpu_check`: functions of a `benchmarks.gpu.check.Check`; `benchmarks.gpu.plans` lists them."""
