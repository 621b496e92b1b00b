"""``tide reproduce``: the paper's tables and figures on the bundled pipeline."""

from __future__ import annotations

import argparse
from typing import Any

from tide.cli import arguments
from tide.cli.usage import Aspect, Usage

#: Name -> what it is; each is a module of tide.studies.
STUDIES = {
    "fig1": "concepts at the paper's three levels, in latents and in raw neurons; the atlas of all latents",
    "table1": "reconstruction of SAE and TIDE, with and without sampling of tokens",
    "fig4": "scaling in n and k; diffusion loss against other activation functions",
    "fig5": "coarse to fine: latents from step to step, between source and target, and when contours form",
    "fig6": "edits by every strategy of the paper, against raw activations and the prompt",
    "ablation": "what the paper leaves open: modulation, losses, learning rates, schedules, revival",
    "centring": "with and without subtracting each channel's mean, also where one channel is far off",
}

#: Those that look into models which they share.
OF_MODELS = ("fig1", "fig5", "fig6")

USAGE = Usage(
    "study out fast seeds seed steps backend threads",
    (
        Aspect(
            lambda args: f"by {args.study}",
            {f"by {study}": "models" if study in OF_MODELS else "" for study in STUDIES},
        ),
    ),
)


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "reproduce",
        help="the paper's tables and figures",
        description="Runs a grid of trainings and writes its table as CSV, JSON and PNG. Every finished cell of the "
        "grid is kept: the same command goes on with an interrupted grid.",
    )
    parser.add_argument("study", choices=STUDIES, help="; ".join(f"{name}: {what}" for name, what in STUDIES.items()))
    parser.add_argument("--out", metavar="DIR", help="default runs/reproduce/<study>, with --fast <study>-fast")
    parser.add_argument("--fast", action="store_true", help="a minute's run that shows the path, not the result")
    parser.add_argument(
        "--seeds", type=arguments.seeds, metavar="N", help="how many (default: table1 5, others 3; with --fast fewer)"
    )
    parser.add_argument(
        "--seed", type=arguments.seed, default=0, help="the first one, and that of the data (default 0)"
    )
    parser.add_argument("--steps", type=arguments.positive, help="of every training (default: the study's)")
    parser.add_argument(
        "--models",
        metavar="DIR",
        help="where fig1, fig5 and fig6 keep the models they share (default runs/reproduce/models, with --fast "
        "models-fast)",
    )
    parser.add_argument("--backend", default="auto", help="auto, reference, triton or native (default auto)")
    parser.add_argument("--threads", type=arguments.threads, help="CPU threads of PyTorch (default: its own choice)")
    parser.set_defaults(run=run, interrupted="finished cells are kept: the same command goes on with the others")


def run(args: argparse.Namespace) -> None:
    import sys
    from importlib import import_module
    from pathlib import Path

    import torch

    from tide.cli import common
    from tide.files import write_json
    from tide.studies.options import Options

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    common.check_backend(args.backend, torch.device("cpu"))
    out = Path(args.out or f"runs/reproduce/{args.study}{'-fast' if args.fast else ''}")
    models = Path(args.models or f"runs/reproduce/models{'-fast' if args.fast else ''}")
    options = Options(
        out=out,
        fast=args.fast,
        seed=args.seed,
        seeds=args.seeds,
        steps=args.steps,
        backend=args.backend,
        progress=sys.stderr.isatty(),
        models=models,
        say=lambda text: print(text, flush=True),
    )
    study = import_module(f"tide.studies.{args.study}")
    with common.output_folder(out, *([models] if args.study in OF_MODELS else [])), common.quiet():
        verdict = study.reproduce(options)
        write_json(out / "run.json", common.provenance(args))
    print(f"\n{verdict}\nTables and pictures are in {out}.")
