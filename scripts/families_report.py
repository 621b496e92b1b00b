"""Runs the whole behaviour suite of all model families and records the outcome of each.

Writes ``benchmarks/results/families.json``: the commit, the day, the versions, and of every family how many tests
passed, failed and were skipped (with the reasons), and the seconds that they took. It is put into docs/adapters.md by
``scripts/families_table.py --write``. Exits with 1 if a test failed.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "families.json"
SUITE = ("tests/adapters/test_families.py", "tests/adapters/test_families_changed.py")


def families_of(report: Path) -> dict[str, dict[str, Any]]:
    """The outcomes by family of a JUnit report, whose tests are named ``test_x[family]`` or ``test_x[family-y]``."""
    found: dict[str, dict[str, Any]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = re.search(r"\[(\w+)", case.get("name", ""))
        if name is None:
            continue
        row = found.setdefault(name[1], {"passed": 0, "failed": 0, "skipped": 0, "seconds": 0.0, "reasons": []})
        skipped = case.find("skipped")
        failed = case.find("failure") is not None or case.find("error") is not None
        row["failed" if failed else "skipped" if skipped is not None else "passed"] += 1
        row["seconds"] = round(row["seconds"] + float(case.get("time", 0)), 1)
        if skipped is not None:
            row["reasons"].append(skipped.get("message", ""))
    return dict(sorted(found.items()))


def _said(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--processes", default="2", help="pytest's workers (default 2)")
    processes = parser.parse_args().processes
    # What is not committed would be recorded as the commit before it.
    changed = bool(_said("git", "status", "--porcelain", "--", "tide", "tests"))
    commit = _said("git", "rev-parse", "--short", "HEAD") + (" with changes" if changed else "")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", *SUITE, "-m", "slow or not slow", "-n", processes]
        code = subprocess.run(
            [*command, "--dist", "worksteal", f"--junitxml={report}"], cwd=ROOT, check=False
        ).returncode
        families = families_of(report)
    versions = {name: version(name) for name in ("torch", "diffusers", "transformers")}
    found = {"commit": commit, "day": datetime.now(UTC).date().isoformat(), "versions": versions, "families": families}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
