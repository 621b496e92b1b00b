"""What an installation brings along: `python scripts/dependencies.py licences | sbom --out dist`.

Looked at are the packages that the wheel and its extras for users need, as they are installed here. `licences` fails on
one that `[tool.pip-licenses]` in pyproject.toml does not allow (`make licences`); `sbom` lists them as CycloneDX (`make
sbom`). Tools of development and releases are left out: nothing of theirs is distributed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
NAME = "tide-sae"
#: The extras that users install.
EXTRAS = ("", "browse", "data", "scores", "trackio", "video", "wandb")


def installed(root: str, extras: tuple[str, ...] = ("",)) -> set[str]:
    """Normalised names of a package and of all that it needs here; those that are not installed are passed over."""
    found: set[str] = set()
    todo = [(root, extra) for extra in extras]
    seen = set(todo)
    while todo:
        name, extra = todo.pop()
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue
        found.add(canonicalize_name(name))
        for line in package.requires or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                new = {(canonicalize_name(needed.name), each) for each in ("", *needed.extras)} - seen
                seen |= new
                todo += new
    return found


def licences() -> None:
    """Prints them; ends with 1 where one is not allowed."""
    command = [str(Path(sys.executable).parent / "pip-licenses"), "--python", sys.executable, "--packages"]
    sys.exit(subprocess.run([*command, *sorted(installed(NAME, EXTRAS))], cwd=ROOT).returncode)


def sbom(out: Path) -> None:
    """Writes ``tide-sae.cdx.json`` into the folder."""
    seconds = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True).stdout
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible", sys.executable]
    variables = {**os.environ, "SOURCE_DATE_EPOCH": seconds.strip()}
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    found, needed = json.loads(done.stdout), installed(NAME, EXTRAS)
    whole = found["components"]
    found["components"] = [each for each in whole if canonicalize_name(each["name"]) in needed - {NAME}]
    (found["metadata"]["component"],) = [each for each in whole if canonicalize_name(each["name"]) == NAME]
    kept = {each["bom-ref"] for each in [*found["components"], found["metadata"]["component"]]}
    found["dependencies"] = [
        {"ref": each["ref"], "dependsOn": [ref for ref in each.get("dependsOn", []) if ref in kept]}
        for each in found["dependencies"]
        if each["ref"] in kept
    ]
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{NAME}.cdx.json"
    file.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    print(f"{len(found['components'])} packages: {file}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["licences", "sbom"])
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    options = parser.parse_args()
    licences() if options.what == "licences" else sbom(options.out)


if __name__ == "__main__":
    main()
