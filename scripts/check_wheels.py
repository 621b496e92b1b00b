"""Checks what `make wheel` builds: `python scripts/check_wheels.py dist` (`make wheel-check`).

It is built once more, in another folder, and has to be the same bytes. The library may use torch's stable ABI and
nothing else of torch. In a fresh environment without a compiler `tide doctor` has to choose the compiled kernels, and
their first tests have to pass; `make test` runs all of them on what is built in place.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tempfile
import zipfile
from pathlib import Path

from build_wheels import build
from fresh import Fresh

#: Names of torch's C++, type information and virtual tables included, which change from one release to the next; and
#: Python's own.
UNSTABLE = re.compile(r"_Z(T[ISV])?N?K?(2at|3c10|5torch|5caffe2)|_?Py")


def one(folder: Path, pattern: str) -> Path:
    """The path of the only file of a folder that a pattern finds, whole: what reads it may run elsewhere.

    Raises:
        SystemExit: there is none, or there are several.
    """
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        sys.exit(f"{folder} has {len(found)} files {pattern}, not one: empty it and run make wheel")
    return found[0].resolve()


def digests(files: list[Path]) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def check_same_bytes(files: list[Path]) -> None:
    with tempfile.TemporaryDirectory(prefix="another-") as folder:
        again = digests(build(Path(folder)))
    first = digests(files)
    different = sorted(name for name in first.keys() | again.keys() if first.get(name) != again.get(name))
    if different:
        sys.exit(f"built again, these are not the same bytes: {', '.join(different)}")
    print("\n".join(f"{digest}  {name}" for name, digest in first.items()))


def check_symbols(wheel: Path) -> None:
    """What the compiled library takes from other libraries, by name."""
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import SymbolTableSection

    with zipfile.ZipFile(wheel) as archive, archive.open("tide_kernels/_native_cpu.abi3.so") as file:
        table = ELFFile(file).get_section_by_name(".dynsym")
        if not isinstance(table, SymbolTableSection):
            sys.exit(f"{wheel.name} has a library without a table of symbols")
        taken = {symbol.name for symbol in table.iter_symbols() if symbol.entry.st_shndx == "SHN_UNDEF"}
    if unstable := sorted(filter(UNSTABLE.match, taken)):
        sys.exit(f"{wheel.name} needs symbols outside the stable ABI: {', '.join(unstable)}")
    stable = [name for name in taken if name.startswith(("aoti_torch_", "torch_"))]
    print(f"{wheel.name}: {len(stable)} symbols of torch, all of its stable ABI")


def check_installed(wheel: Path, sdist: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        fresh = Fresh(Path(folder), sys.executable, wheel)
        found = json.loads(fresh.run("tide", "doctor", "--json"))
        if found["used"] != "native":
            sys.exit(f"{wheel.name} is installed and not used: {found['backends']['native']}")
        print(f"installed without a compiler: {found['versions']}, {found['native']['instructions']}")
        fresh.unpack(sdist)
        print(fresh.test(*(f"tests/kernels/native/test_{name}.py" for name in ("select", "adamw"))))


def main() -> None:
    folder = Path(sys.argv[1])
    sdist, compiled, pure = (one(folder, pattern) for pattern in ("*.tar.gz", "*-abi3-*.whl", "*-none-any.whl"))
    if sys.platform == "linux":
        check_symbols(compiled)
    check_installed(compiled, sdist)
    check_same_bytes([sdist, compiled, pure])


if __name__ == "__main__":
    main()
