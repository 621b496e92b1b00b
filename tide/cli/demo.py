"""``tide demo``: everything once on the bundled pipeline, with a report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tide.cli.command import Command
from tide.cli.usage import Usage
from tide.cli.values import Flag, Folder, MaybeThreads, Seed, Text


@dataclass(frozen=True, kw_only=True)
class Demo(Command):
    """Train, measure, interpret and edit on the bundled pipeline."""

    usage: ClassVar[Usage] = Usage("out fast seed backend threads resume")
    interrupted: ClassVar[str] = (
        "checkpoints of its trainings are kept, if it got to any: the same command with --resume resumes from them"
    )

    out: Folder = "runs/demo"
    """folder of the report"""
    fast: Flag = False
    """a minute's run that shows the path, not the quality"""
    seed: Seed = 0
    """of everything that is drawn"""
    backend: Text = "auto"
    """auto, reference, triton or native"""
    threads: MaybeThreads = None
    """CPU threads of PyTorch (default: its own choice)"""
    resume: Flag = False
    """resume an interrupted demo"""

    def run(self) -> None:
        from pathlib import Path

        import torch

        from tide.cli.common import output_folder
        from tide.loading import check_backend, quiet
        from tide.runs import Contents, write_run
        from tide.studies.demo import demo

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        check_backend(self.backend, torch.device("cpu"))
        out = Path(self.out)
        with output_folder(out), quiet():
            made_by = self.made_by()
            metrics = demo(
                out, fast=self.fast, seed=self.seed, backend=self.backend, resume=self.resume, made_by=made_by
            )
            files = {"sae": "autoencoder", "tide": "autoencoder", "metrics.json": "figures", "report.html": "report"}
            holds = Contents(kind="study", pipeline="scenes", measured={"headline": metrics["headline"]}, files=files)
            write_run(out, holds, made_by)
        print(metrics["headline"])
        print(f"The report is {out / 'report.html'}.")
