"""Which launch configurations kernels use while something is measured."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.gpu.bench import Bench


@contextmanager
def configured(path: Path) -> Iterator[None]:
    """Launches use this file of configurations; if it is missing, the table alone."""
    try:
        from tide_kernels.triton import configs
    except ImportError:  # there is no Triton, so nothing is launched
        yield
        return
    with configs.using(path):
        yield


@contextmanager
def uncompiled_selection(bench: Bench, n_latents: int) -> Iterator[None]:
    """The Triton backend's selection is Triton's own, whatever is configured."""
    if bench.device.type != "cuda":
        yield
        return
    from tide_kernels.triton import configs, launch

    arch = launch.architecture(bench.device)
    keys = (configs.key(kernel, arch, bench.dtype, n_latents) for kernel in ("select", "keep_top"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "select.json"
        path.write_text(json.dumps({key: {"compiled": 0} for key in keys}))
        with configured(path):
            yield
