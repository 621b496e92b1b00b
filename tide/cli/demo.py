"""``tide demo``: everything once on the bundled pipeline, with a report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tide.cli.command import Command
from tide.cli.values import Flag, Folder, MaybeThreads, Seed, Text


@dataclass(frozen=True, kw_only=True)
class Demo(Command):
    """Train, measure, interpret and edit on the bundled pipeline."""

    interrupted: ClassVar[str] = "training checkpoints already written are kept; rerun with --resume to continue"

    out: Folder = "runs/demo"
    """folder for the checkpoints and the report"""
    fast: Flag = False
    """a run of a minute, which shows the steps but not the quality"""
    seed: Seed = 0
    """random seed"""
    backend: Text = "auto"
    """kernel backend: auto, reference, triton or native"""
    threads: MaybeThreads = None
    """CPU threads of PyTorch (default: its own choice)"""
    resume: Flag = False
    """resume an interrupted demo"""

    def run(self) -> None:
        from pathlib import Path

        import torch

        from tide.cli.common import about_study, output_folder
        from tide.loading import check_backend, quiet
        from tide.runs import write_run
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
            measured = {"headline": metrics["headline"]}
            holds = about_study(configuration=metrics["config"], measured=measured, files=files)
            write_run(out, holds, made_by)
        print(metrics["headline"])
        print(f"The report is {out / 'report.html'}.")
