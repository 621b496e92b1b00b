"""``tide browse``: what was learnt, looked through and steered with in a browser."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, ClassVar

import tyro

from tide.cli.command import Command, left_behind
from tide.cli.options import Data, Model
from tide.cli.usage import Aspect, kind_of_data, with_option
from tide.cli.values import Count, Flag, MaybeCount, MaybeFolder, Seed, Text, option, port, read_by, words_by

if TYPE_CHECKING:
    from tide.activations.source import Source
    from tide.adapters import Adapter
    from tide.browser.runs import Run

_HELP = "folders of checkpoints, of several of them, or of an atlas; `tide demo` and `tide train` write such"
#: Images that an index is made on unless told otherwise.
IMAGES = 512
_SERVING = (
    "pipeline adapter component device dtype offload trust_remote_code data images batch_size index host port no_open "
    "no_steering backend seed"
)


@dataclass(frozen=True, kw_only=True)
class Browse(Command):
    """Look through the latents of trained autoencoders in a browser, name them, and steer images with them.

    Starts a server on this machine and opens its page. The first time, an index is made: it reads images once, which
    takes a minute for the bundled pipeline, and an interruption loses nothing. No request leaves the machine.

    With --export it starts no server and writes a folder for any static host instead, such as GitHub Pages or
    `python -m http.server`. That needs no pipeline: the runs must have an index.
    """

    interrupted: ClassVar[str] = "an index that was being made is resumed by the same command"
    usage: ClassVar[tuple[Aspect, ...]] = (
        kind_of_data(),
        with_option("export", uses="limit no_notes", leaves_out=_SERVING),
    )

    runs: Annotated[
        tuple[str, ...], words_by(str, "RUN ..."), tyro.conf.Positional, tyro.conf.arg(metavar="RUN ...", help=_HELP)
    ]
    model: Model = field(default_factory=Model)
    source: Data = field(default_factory=Data)
    batch_size: Count = 8
    """images per pass while an index is made"""
    index: Flag = False
    """make the indexes again, also those that are there"""
    host: Text = "127.0.0.1"
    """address to listen at; elsewhere than on this machine the page is opened with a token, which is printed"""
    port: Annotated[int, read_by(port, "N"), option()] = 0
    """port to listen at (default: a free one)"""
    no_open: Flag = False
    """do not open the page"""
    no_steering: Flag = False
    """browse only: nothing is drawn"""
    backend: Text = "auto"
    """kernel backend: auto, reference, triton or native"""
    seed: Seed = 0
    """random seed of the order of the images and of their noise"""
    export: MaybeFolder = None
    """write a folder that any static host serves; names of latents go into it, and notes"""
    limit: MaybeCount = None
    """how many of the most active latents the export has all pictures of; of the others it has four (default: all)"""
    no_notes: Flag = False
    """leave notes out of the export, which may be private"""

    def run(self) -> None:
        from tide.browser.runs import find_runs

        runs = find_runs(self.runs)
        if self.export is None:
            self._serve(runs)
        else:
            self._export(runs, self.export)

    def _export(self, runs: list[Run], folder: str) -> None:
        from tide.browser.export import export

        left_behind.set(f"{folder} is as it was")
        export(runs, folder, limit=self.limit, notes=not self.no_notes)
        left_behind.set(f"the export is in {folder}")
        print(f"Look at it with: python -m http.server --directory {quote(folder)}")

    def opening(self, pipelines: dict[str, str]) -> Opened:
        """How the worker opens what the options name; ``pipelines`` by the runs' ids."""
        return Opened(self.model, self.source, self.batch_size, self.seed, pipelines)

    def _serve(self, runs: list[Run]) -> None:
        from tide.browser.serving import serve
        from tide.cli.trust import followed
        from tide.pipeline_names import recorded_pipeline

        pipelines: dict[str, str] = {}
        for each in runs:  # asked now, at the terminal, and not when the page wants it
            loads = self.index or each.state != "ready" or not self.no_steering
            if each.checkpoint is not None and self.model.pipeline is None and loads:
                pipelines[each.id] = followed(recorded_pipeline(each.checkpoint), str(each.checkpoint))

        opening = self.opening(pipelines)
        serve(
            runs,
            opening,
            host=self.host,
            port=self.port,
            steering=not self.no_steering,
            rebuild=self.index,
            open_page=not self.no_open,
            backend=self.backend,
        )


@dataclass(frozen=True)
class Opened:
    """How the worker opens pipelines and images: by the command's options, and ``pipelines`` by the runs' ids."""

    model: Model
    data: Data
    batch_size: int
    seed: int
    pipelines: dict[str, str]

    def adapter(self, run: Run) -> Adapter:
        """The pipeline of a run, without progress bars of its own."""
        from tide.adapters import import_adapters
        from tide.cli import common

        if self.model.adapter is not None:
            import_adapters(self.model.adapter)
        if run.checkpoint is not None:
            common.check_family(run.checkpoint)
        trained = None if run.checkpoint is None else str(run.checkpoint)
        found = common.adapter_of(self.model, self.pipelines.get(run.id), sae=trained)
        found.pipe.set_progress_bar_config(disable=True)
        return found

    def source(self, run: Run, adapter: Adapter) -> Source | None:
        """What the options name, or what the checkpoint was trained on, or rendered scenes."""
        from dataclasses import replace

        from tide.cli import common
        from tide.loading import BUNDLED
        from tide.runs import contents

        name = self.data.data
        if name is None and adapter.name == BUNDLED:
            name = BUNDLED
        if name is None and run.checkpoint is not None and (holds := contents(run.checkpoint)) is not None:
            recorded = holds.data.get("name")
            name = recorded if isinstance(recorded, str) and Path(recorded).exists() else None
        if name is None:
            return None
        source = replace(self.data, data=name, images=self.data.images or IMAGES)
        return common.source_of(source, adapter, seed=self.seed, batch_size=self.batch_size, split="test")
