"""Benchmarks: this package beside its peers, in one run, each figure behind a correctness gate."""
