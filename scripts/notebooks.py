"""Executes the notebooks of ``docs/notebooks``: ``python scripts/notebooks.py [NAME ...] [--write]``.

The source of a notebook is a Python file in cells (jupytext's ``py:percent``), which is reviewed, linted and tested as
code. With ``--write`` the executed ``.ipynb`` is kept beside it, for readers who do not run it: text and pictures of
one run, without what is of that machine alone. Each notebook runs in a fresh folder and without network.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from PIL import Image

from tide.files import replace_file

FOLDER = Path(__file__).parents[1] / "docs/notebooks"
#: Bytes of an executed notebook at most: the repository keeps every version of it.
LARGEST = 300_000
#: Seconds of a cell at most, on a machine that is busy with other things.
SLOWEST_CELL = 600
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
#: An output is kept in the first of these forms that it has.
FORMS = ("image/png", "text/html", "text/markdown", "text/plain")


def opened(source: Path) -> nbformat.NotebookNode:
    """The notebook of a source, without outputs. The same source gives the same bytes."""
    notebook = jupytext.read(source, fmt="py:percent")
    notebook.metadata = nbformat.from_dict(METADATA)
    for i, cell in enumerate(notebook.cells, start=1):
        cell.id, cell.metadata = f"cell-{i:02d}", nbformat.from_dict({})
    return notebook


def execute(notebook: nbformat.NotebookNode) -> None:
    """Fills in the outputs. Raises ``nbclient.exceptions.CellExecutionError`` for a cell that raises."""
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=SLOWEST_CELL,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
            record_timing=False,
        )
        client.execute()
    notebook.metadata = nbformat.from_dict(METADATA)


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Keeps one form of each output, and of the streams what is printed: progress and warnings are of one machine."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [_tidied(each) for each in cell.outputs if each.get("name") != "stderr"]


def _tidied(output: Any) -> Any:
    if "data" in output:
        form = next(each for each in FORMS if each in output.data)
        data = smaller(output.data[form]) if form == "image/png" else output.data[form]
        output.data, output.metadata = nbformat.from_dict({form: data}), nbformat.from_dict({})
    return output


def smaller(data: str) -> str:
    """A PNG in base64 with 256 colours of its own: a third of the size, and to the eye nearly the same."""
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        few, buffer = image.convert("RGB").quantize(256, dither=Image.Dither.NONE), io.BytesIO()
    few.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def warnings_of(notebook: nbformat.NotebookNode) -> str:
    """What the cells wrote to stderr."""
    cells = (cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    return "".join(each.text for outputs in cells for each in outputs if each.get("name") == "stderr")


def cpu_seconds() -> float:
    """Of the kernels so far: what a run takes on a machine that does nothing else."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(source: Path, *, write: bool) -> None:
    notebook, started, worked = opened(source), time.perf_counter(), cpu_seconds()
    execute(notebook)
    taken = f"{time.perf_counter() - started:.0f} s, {cpu_seconds() - worked:.0f} s of CPU"
    if said := warnings_of(notebook):
        print(said, file=sys.stderr)
    tidy(notebook)
    text = nbformat.writes(notebook) + "\n"
    size = len(text.encode())
    print(f"{source.stem}: {taken}, {size / 1000:.0f} kB", flush=True)
    if size > LARGEST:
        sys.exit(f"{source.stem} has {size:,} bytes with its outputs; draw fewer or smaller pictures ({LARGEST:,})")
    if write:
        replace_file(source.with_suffix(".ipynb"), lambda path: path.write_text(text, encoding="utf-8"))


def main() -> None:
    sources = {path.stem: path for path in sorted(FOLDER.glob("*.py"))}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which; default all: {', '.join(sources)}")
    parser.add_argument("--write", action="store_true", help="keep the executed notebooks beside their sources")
    args = parser.parse_args()
    if unknown := set(args.names) - set(sources):
        parser.error(f"there is no notebook {', '.join(sorted(unknown))}; there are {', '.join(sources)}")
    os.environ |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(FOLDER.parents[1])}
    for name in args.names or sources:
        run(sources[name], write=args.write)


if __name__ == "__main__":
    main()
