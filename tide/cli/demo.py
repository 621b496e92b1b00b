"""``tide demo``: everything once on the bundled pipeline, with a report."""

from __future__ import annotations

import argparse
from typing import Any

from tide.cli import arguments
from tide.cli.usage import Usage

USAGE = Usage("out fast seed backend threads resume")


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("demo", help="train, measure, interpret and edit on the bundled pipeline")
    parser.add_argument("--out", default="runs/demo", metavar="DIR", help="default runs/demo")
    parser.add_argument("--fast", action="store_true", help="a minute's run that shows the path, not the quality")
    parser.add_argument("--seed", type=arguments.seed, default=0)
    parser.add_argument("--backend", default="auto", help="auto, reference, triton or native (default auto)")
    parser.add_argument("--threads", type=arguments.threads, help="CPU threads of PyTorch (default: its own choice)")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted demo")
    parser.set_defaults(
        run=run,
        interrupted="checkpoints of its trainings are kept, if it got to any: the same command with --resume goes on "
        "from them",
    )


def run(args: argparse.Namespace) -> None:
    from pathlib import Path

    import torch

    from tide.cli import common
    from tide.files import write_json
    from tide.studies.demo import demo

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    common.check_backend(args.backend, torch.device("cpu"))
    out = Path(args.out)
    with common.output_folder(out), common.quiet():
        metrics = demo(out, fast=args.fast, seed=args.seed, backend=args.backend, resume=args.resume)
        write_json(out / "run.json", common.provenance(args))
    print(metrics["headline"])
    print(f"The report is {out / 'report.html'}.")
