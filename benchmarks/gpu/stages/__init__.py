"""The stages of `benchmarks.gpu_check`, each a function of a `benchmarks.gpu.check.Check`; `plans` lists them."""
