"""The built wheel under other versions of Python: `python scripts/check_pythons.py dist --pythons python3.12 ...`.

Each gets a fresh environment with the wheel, and runs the tests named there, away from the source tree (`make
python-check`). Interpreters that are not installed are named and passed over; one has to be there.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from check_wheels import one
from fresh import Fresh


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="what make wheel filled")
    parser.add_argument("--pythons", nargs="+", required=True)
    parser.add_argument("--tests", nargs="+", required=True)
    parser.add_argument("--torch", help="a release of torch other than that of constraints.txt")
    options = parser.parse_args()
    sdist, wheel = (one(options.folder, pattern) for pattern in ("*.tar.gz", "*-abi3-*.whl"))
    for python in options.pythons:
        if shutil.which(python) is None:
            print(f"{python} is not installed: passed over")
    if not (found := list(filter(shutil.which, options.pythons))):
        sys.exit("no Python was tested: name one that is installed, make python-check PYTHONS=...")
    for python in found:
        with tempfile.TemporaryDirectory() as folder:
            fresh = Fresh(Path(folder), python, wheel, "[browse,data]", options.torch)
            fresh.unpack(sdist)
            compiling = [f"--ignore=tests/kernels/native/test_{name}.py" for name in ("build", "cuda", "wheel")]
            print(f"{python}: {fresh.test(*options.tests, *compiling)}", flush=True)


if __name__ == "__main__":
    main()
