"""``tide reproduce``: the paper's tables and figures on the bundled pipeline."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

import tyro

from tide.cli.command import Command
from tide.cli.usage import Aspect
from tide.cli.values import (
    Assignments,
    Flag,
    MaybeCount,
    MaybeFolder,
    MaybeNumber,
    MaybePrompts,
    MaybeSeeds,
    MaybeThreads,
    Seed,
    Text,
    option,
    read_by,
)
from tide.errors import TideError

if TYPE_CHECKING:
    from tide.runs import Contents
    from tide.studies.options import Options


class Study(NamedTuple):
    """What a study shows, and the options that not every study uses."""

    what: str
    uses: str = "seeds steps"


#: Each is a module of tide.studies.
STUDIES = {
    "fig1": Study(
        "concepts at the paper's three levels, in latents and in raw neurons; the atlas of all latents",
        "seeds steps set models",
    ),
    "table1": Study("reconstruction of SAE and TIDE, with and without sampling of tokens", "seeds steps set"),
    "sparsity": Study(
        "activation functions at 8 to 128 active latents, where they are spent, margins over random dictionaries",
        "seeds steps device workers minutes",
    ),
    "fig4": Study("scaling in n and k; diffusion loss against other activation functions"),
    "fig5": Study(
        "coarse to fine: latents from step to step, between source and target, and when contours form",
        "seeds steps set models",
    ),
    "fig6": Study(
        "edits by every strategy of the paper, against raw activations and the prompt", "seeds steps set models"
    ),
    "where": Study(
        "edits everywhere and where latents differ, of raw activations and of latents, at equal information",
        "seeds steps set models workers",
    ),
    "bank": Study(
        "edits by a bank of concepts, everywhere and where latents find the source",
        "seeds steps set models workers",
    ),
    "safety": Study(
        "unwanted concepts: guards made of latents against filters and edited weights, plain and under attack",
        "seeds steps set models workers minutes",
    ),
    "ablation": Study(
        "what the paper leaves open: modulation, losses, learning rates, schedules, revival", "seeds steps set"
    ),
    "centring": Study(
        "with and without subtracting each channel's mean, also where one channel is far off", "seeds steps set"
    ),
    "bars": Study(
        "what a checkpoint of the bundled pipeline must reach: diffusion loss, concepts, edits",
        "sae prompts edit_prompts",
    ),
}

#: What the files are that a study writes.
_KINDS = {".csv": "table", ".json": "figures", ".png": "chart", ".html": "page"}


def _study(text: str) -> str:
    if text not in STUDIES:
        raise TideError(f"{text[:60]!r} is not a study; the studies are {', '.join(STUDIES)}")
    return text


_HELP = "\n".join(f"{name}: {study.what}" for name, study in STUDIES.items())


@dataclass(frozen=True, kw_only=True)
class Reproduce(Command):
    """Reproduce the paper's tables and figures.

    Runs a grid of trainings and writes its table as CSV, JSON and PNG. Every finished cell of the grid is kept, and the
    same command resumes an interrupted grid.
    """

    usage: ClassVar[tuple[Aspect, ...]] = (
        Aspect(lambda asked: f"by {asked.study}", {f"by {name}": study.uses for name, study in STUDIES.items()}),
    )
    interrupted: ClassVar[str] = "finished cells are kept: the same command resumes with the others"

    study: Annotated[str, read_by(_study, "STUDY"), tyro.conf.Positional, tyro.conf.arg(metavar="STUDY", help=_HELP)]
    out: MaybeFolder = None
    """folder for tables and pictures (default: runs/reproduce/<study>, with --fast <study>-fast)"""
    fast: Flag = False
    """a run of a minute, which shows the steps but not the result"""
    seeds: MaybeSeeds = None
    """number of seeds (default: table1 5, others 3; with --fast fewer)"""
    seed: Seed = 0
    """first random seed; the data use it, too"""
    steps: MaybeCount = None
    """steps of every training (default: the study's own)"""
    set: Assignments = field(default_factory=list)
    """set fields of tide.TrainConfig in the place of the study's: the paper's TopK is activation=topk density=0.05"""
    models: MaybeFolder = None
    """folder of the models that fig1, fig5 and fig6 share (default: runs/reproduce/models, with --fast models-fast)"""
    sae: Annotated[str | None, option("CHECKPOINT")] = None
    """checkpoint that bars measures"""
    prompts: MaybePrompts = None
    """prompts of the diffusion loss in bars (default: 200, with --fast 4)"""
    edit_prompts: MaybePrompts = None
    """prompts of the edits in bars (default: 100, with --fast 2)"""
    device: Text = "cpu"
    """device that sparsity computes on: cpu, cuda ..."""
    workers: MaybeCount = None
    """processes that compute the cells of sparsity and safety side by side (default: 1)"""
    minutes: MaybeNumber = None
    """after so many minutes sparsity and safety start no further cell and report what they have (default: no limit)"""
    backend: Text = "auto"
    """kernel backend: auto, reference, triton or native"""
    threads: MaybeThreads = None
    """CPU threads of PyTorch (default: its own choice)"""

    def run(self) -> None:
        from importlib import import_module

        import torch

        from tide.cli.common import output_folder
        from tide.devices import device_of
        from tide.loading import check_backend, quiet
        from tide.runs import write_run

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        check_backend(self.backend, device_of(self.device))
        options = self._options()
        shared = [] if options.models is None else [options.models]
        with output_folder(options.out, *shared), quiet():
            checkpoint = self._checkpoint()
            verdict = import_module(f"tide.studies.{self.study}").reproduce(options)
            write_run(options.out, self._contents(options, checkpoint, verdict), self.made_by())
        print(f"\n{verdict}\nTables and pictures are in {options.out}.")

    def _options(self) -> Options:
        """What the study is given; a fast run has folders of its own by default."""
        import sys

        from tide.cli.settings import study_options
        from tide.studies.options import Options

        fast = "-fast" if self.fast else ""
        models = Path(self.models or f"runs/reproduce/models{fast}")
        return Options(
            out=Path(self.out or f"runs/reproduce/{self.study}{fast}"),
            fast=self.fast,
            seed=self.seed,
            seeds=self.seeds,
            steps=self.steps,
            backend=self.backend,
            device=self.device,
            workers=self.workers or 1,
            minutes=self.minutes,
            progress=sys.stderr.isatty(),
            made_by=self.made_by(),
            set=study_options(self.set),
            models=models if "models" in STUDIES[self.study].uses else None,
            sae=None if self.sae is None else Path(self.sae),
            prompts=self.prompts,
            edit_prompts=self.edit_prompts,
            say=lambda text: print(text, flush=True),
        )

    def _checkpoint(self) -> dict[str, Any]:
        """What ``run.json`` says about the checkpoint of the bars."""
        from tide.cli.common import about_sae
        from tide.cli.options import Autoencoder
        from tide.sae import TIDE

        if self.sae is None:
            return {}
        model = TIDE.from_pretrained(Path(self.sae))
        return {"block": model.config.trained_block, "autoencoder": about_sae(Autoencoder(sae=self.sae), model)}

    def _contents(self, options: Options, checkpoint: dict[str, Any], verdict: str) -> Contents:
        from tide.cli.common import about_study
        from tide.runs import FILE
        from tide.studies.options import RECORDED

        written = (path for path in sorted(options.out.iterdir()) if path.name != FILE)
        return about_study(
            **checkpoint,
            configuration={"study": self.study, **{name: getattr(options, name) for name in RECORDED}},
            measured={"verdict": verdict},
            files={path.name: _KINDS[path.suffix] for path in written if path.suffix in _KINDS},
        )
