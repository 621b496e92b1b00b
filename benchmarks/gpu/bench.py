"""Where it is measured and by which backend, at what sizes, how often."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Timing, flush, interleaved
from benchmarks.shapes import Shape
from tide_kernels.dispatch import Primitives, choose

PAPER = Shape(16384, 1152, 18432, 922)
SPARSE = Shape(16384, 1152, 18432, 32)
LARGE = Shape(65536, 1152, 73728, 3686)


class Bench:
    """The GPU, bfloat16 and the Triton backend; in a dry run the CPU, float32, the reference backend and toy sizes."""

    def __init__(self, dry_run: bool) -> None:
        self.dry_run = dry_run
        self.device = torch.device("cpu" if dry_run else "cuda")
        self.dtype = torch.float32 if dry_run else torch.bfloat16
        self.backend = "reference" if dry_run else "triton"

    def shape(self, shape: Shape) -> Shape:
        """The shape itself, or in a dry run a small one of about its density."""
        if not self.dry_run:
            return shape
        n_latents = 256 if shape.n_latents < 73728 else 512
        return Shape(min(64, shape.n_tokens), 32, n_latents, max(1, round(n_latents * shape.density)))

    @property
    def autocast(self) -> torch.dtype | None:
        return None if self.dtype == torch.float32 else self.dtype

    def times(self, runs: dict[str, Callable[[], object]], **options: Any) -> dict[str, Timing]:
        """Interleaved times; with ``queued`` those of the device alone, with a cold cache."""
        if options.get("queued"):
            options["before"] = {name: self._cold(options.get("before", {}).get(name)) for name in runs}
        repetitions = 3 if self.dry_run else 15
        return interleaved(runs, self.device, repetitions=repetitions, budget=20, **options)

    def _cold(self, before: Callable[[], object] | None) -> Callable[[], object]:
        def prepare() -> None:
            if before is not None:
                before()
            flush(self.device)

        return prepare

    def ops(self, shape: Shape) -> Primitives:
        return choose(
            self.backend, "auto", device=self.device, dtype=self.dtype, n_latents=shape.n_latents, k=shape.k
        ).ops

    def normal(self, *size: int, seed: int = 0, scale: float = 1.0) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(seed)
        return (torch.randn(*size, generator=generator, device=self.device) * scale).to(self.dtype)
