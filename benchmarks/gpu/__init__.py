"""Tests and measurements on a GPU machine, in commands of a few minutes: see `benchmarks.gpu_check`.

`plans` says what is measured and in which order, `driver` runs each stage in a process of its own (`process`,
`worker`), `check` is what a stage measures with, `record` and `report` are the results. The stages are in `stages`.
"""
