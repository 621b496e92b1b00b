"""Benchmarks of this package and its peers in one run. Each figure has to pass a correctness gate first."""
