"""``tide evaluate``: how well a checkpoint reconstructs, beside PCA and the mean, and inside the diffusion model."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from tide.cli import arguments
from tide.cli.usage import Usage, fast_beside, kind_of_data, with_option
from tide.tables import text_table

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tide.activations import ActivationBatch, Prepared
    from tide.adapters import Adapter
    from tide.evaluation.baselines import PCA
    from tide.sae import TIDE


#: Without --data the measures on rendered scenes, which have sizes of their own.
USAGE = Usage(
    "sae block backend pipeline data out seed",
    (
        with_option(
            "data",
            uses="device dtype offload images fit token_fraction loss_timesteps loss_images batch_size "
            "trust_remote_code",
            leaves_out="prompts edit_prompts resume",
        ),
        kind_of_data(),
        fast_beside("images", "loss_timesteps", "loss_images"),
    ),
)


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "evaluate",
        help="reconstruction and diffusion loss of a checkpoint",
        description="With --pipeline scenes and no --data: the project's own measures on rendered scenes.",
    )
    arguments.add_sae(parser)
    arguments.add_pipeline(parser, required=False, default="the checkpoint's")
    arguments.add_data(parser, images="how many (default 256, 32 with --fast)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of metrics.json")
    parser.add_argument(
        "--fit", type=arguments.fraction, help="first part of the images, for PCA and mean (default 1/2)"
    )
    parser.add_argument("--token-fraction", type=arguments.fraction, help="default 1/16")
    parser.add_argument(
        "--loss-timesteps", type=arguments.positive, help="of the diffusion loss (default 10, 3 with --fast)"
    )
    parser.add_argument("--loss-images", type=arguments.positive, help="of the diffusion loss (default 64, 8 --fast)")
    parser.add_argument("--batch-size", type=arguments.positive, help="default 8")
    parser.add_argument("--prompts", type=arguments.prompts, help="of the scenes (default 200, 4 with --fast)")
    parser.add_argument(
        "--edit-prompts",
        type=arguments.prompts,
        help="of the scenes, to measure edits on (default 100, 2 with --fast)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="of the scenes: keep the stages already measured in --out"
    )
    parser.add_argument("--fast", action="store_true", help="a quick look rather than a measurement")
    parser.add_argument("--seed", type=arguments.seed, default=0)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from pathlib import Path

    from tide.cli import common
    from tide.errors import TideError

    common.pipeline_of_sae(args)
    if args.data is None and args.pipeline != common.BUNDLED:
        raise TideError("what to evaluate on is not clear; give --data")
    with common.output_folder(Path(args.out)):
        if args.data is None:
            _scenes(args, Path(args.out))
        else:
            _data(args)


def _data(args: argparse.Namespace) -> None:
    from pathlib import Path

    from tide.cli import common

    for name, value in {"fit": 0.5, "token_fraction": 1 / 16, "batch_size": 8}.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    adapter = common.load_adapter(args)
    model = common.load_sae(args, adapter)
    figures = measure(adapter, model, args)
    losses = figures["diffusion_loss"]
    print(_table(figures))
    tide, pca = figures["models"]["tide"], figures["models"]["pca_k"]
    print(
        f"On {figures['images']['held_out']} held-out images the {_kind(model)} explains "
        f"{tide['explained_variance']:.1%} of the variance (PCA of rank {pca['rank']}: "
        f"{pca['explained_variance']:.1%}) and recovers {losses['recovered']:.1%} of the diffusion loss; "
        f"see {Path(args.out) / 'metrics.json'}."
    )


def _scenes(args: argparse.Namespace, out: Path) -> None:
    from pathlib import Path

    import torch

    from tide.cli import common
    from tide.files import write_json
    from tide.studies.bars import reproduce
    from tide.studies.options import Options

    common.check_backend(args.backend, torch.device("cpu"))
    options = Options(
        out=out,
        fast=args.fast,
        seed=args.seed,
        backend=args.backend,
        sae=Path(args.sae),
        prompts=args.prompts,
        edit_prompts=args.edit_prompts,
    )
    args.interrupted = "finished cells are kept: the same command resumes with the others"
    with common.quiet():
        verdict = reproduce(options)
    write_json(out / "run.json", common.provenance(args))
    print(f"{verdict}\nTables and pictures are in {out}.")


def measure(adapter: Adapter, model: TIDE, args: argparse.Namespace) -> dict[str, Any]:
    """All figures; writes them to ``metrics.json``."""
    from pathlib import Path

    from tide.activations import prepare
    from tide.cli import common
    from tide.cli.data import open_source
    from tide.errors import TideError
    from tide.evaluation.baselines import PCA
    from tide.evaluation.reconstruction import evaluate_reconstruction, with_sae
    from tide.files import write_json
    from tide.sae.model import inference

    args.images = args.images or (32 if args.fast else 256)
    source = open_source(args, common.image_size(args, adapter), scene_split="test")
    batches = prepare(adapter, source, batch_size=args.batch_size, max_sequence_length=common.caption_length(adapter))
    n_fit = round(source.n_images * args.fit)
    if not 0 < n_fit < source.n_images:
        raise TideError(f"{n_fit} of {source.n_images} images are to fit the baselines; give more, or another --fit")
    seen, unseen = _parted(list(batches), n_fit)
    with inference(model):
        pca = PCA.fit(_activations(adapter, model, seen, args, args.seed))
        held_out = list(_activations(adapter, model, unseen, args, args.seed + 1))
        scale, n, k = float(model.activation_scale), model.n_latents, model.config.k
        models = {"tide": evaluate_reconstruction(with_sae(model), held_out, n_latents=n, scale=scale)}
        for name, rank in {"pca_k": k, "pca_k/4": k // 4, "mean": 0}.items():
            rank = min(rank, model.d_model)  # beyond that a PCA is the identity
            models[name] = {**evaluate_reconstruction(pca.reconstruct(rank), held_out, scale=scale), "rank": rank}
        losses = _losses(adapter, model, pca, _first(unseen, args.loss_images or (8 if args.fast else 64)), args)
    figures = {
        "images": {"fit": sum(len(p.latents) for p in seen), "held_out": sum(len(p.latents) for p in unseen)},
        "sae": {"kind": _kind(model), "d_model": model.d_model, "n_latents": n, "k": k, "block": model.config.block},
        "models": models,
        "diffusion_loss": losses,
        "run": common.provenance(args),
    }
    with common.writing(args):
        write_json(Path(args.out) / "metrics.json", figures)
    return figures


def _parted(batches: list[Prepared], n: int) -> tuple[list[Prepared], list[Prepared]]:
    """The first ``n`` images and the rest."""
    return _first(batches, n), _first(batches, None, skip=n)


def _first(batches: list[Prepared], n: int | None, *, skip: int = 0) -> list[Prepared]:
    from tide.activations import Prepared

    out, left = [], n
    for latents, text in batches:
        taken = slice(skip, None if left is None else skip + left)
        rows = len(latents[taken])
        if rows:
            out.append(Prepared(latents[taken], {name: value[taken] for name, value in text.items()}))
        skip = max(0, skip - len(latents))
        left = None if left is None else left - rows
    return out


def _activations(
    adapter: Adapter, model: TIDE, data: list[Prepared], args: argparse.Namespace, seed: int
) -> Iterator[ActivationBatch]:
    from tide.activations import collect

    block = model.config.block
    assert block is not None
    options: dict[str, Any] = {"token_fraction": args.token_fraction, "batch_size": args.batch_size}
    passes = collect(adapter, data, [block], paired=False, seed=seed, tensor=model.config.tensor, **options)
    return (batches[adapter.resolve_block(block)].to(adapter.device) for batches in passes)


def _losses(adapter: Adapter, model: TIDE, pca: PCA, data: list[Prepared], args: argparse.Namespace) -> dict[str, Any]:
    """Eq. 4 clean, with each reconstruction in place and with zeros, and the share that each recovers."""
    from tide.activations import Prepared
    from tide.evaluation.diffusion_loss import diffusion_loss, recovered, sae_intervention, zero_ablation

    interventions: dict[str, Any] = {"tide": sae_intervention(model), "ablated": zero_ablation}
    for name, rank in {"pca_k": model.config.k, "pca_k/4": model.config.k // 4, "mean": 0}.items():
        interventions[name] = lambda x, call, rank=rank: pca.project(x, rank)
    timesteps = adapter.sampling_timesteps(args.loss_timesteps or (3 if args.fast else 10))
    block = adapter.resolve_block(model.config.block)  # type: ignore[arg-type]
    device = adapter.device
    there = (Prepared(latents.to(device), {n: v.to(device) for n, v in text.items()}) for latents, text in data)
    losses = diffusion_loss(
        adapter, there, block, interventions, timesteps=timesteps, tensor=model.config.tensor, seed=args.seed
    )
    clean, ablated = losses["clean"]["loss"], losses["ablated"]["loss"]
    shares = {
        name: recovered(clean, value["loss"], ablated) if ablated != clean else float("nan")
        for name, value in losses.items()
        if name not in ("clean", "ablated")
    }
    return {
        "clean": clean,
        "reconstructed": losses["tide"]["loss"],
        "ablated": ablated,
        "recovered": shares["tide"],
        "variants": {name: {"loss": losses[name]["loss"], "recovered": share} for name, share in shares.items()},
        "timestep": {name: value["timestep"] for name, value in losses.items()},
    }


def _kind(model: TIDE) -> str:
    return "TIDE" if model.modulation is not None else "SAE"


def _table(figures: dict[str, Any]) -> str:

    variants = figures["diffusion_loss"]["variants"]
    names = {"tide": figures["sae"]["kind"], "pca_k": "PCA k", "pca_k/4": "PCA k/4", "mean": "mean"}
    header = ("", "mse", "cosine", "variance", "l0", "dead", "loss", "recovered")
    rows = [
        (
            names[name],
            f"{row['mse_normalised']:.4f}",
            f"{row['cosine']:.4f}",
            f"{row['explained_variance']:.4f}",
            f"{row['l0']:.1f}" if "l0" in row else "",
            f"{row['dead']:.1%}" if "dead" in row else "",
            f"{variants[name]['loss']:.4f}",
            f"{variants[name]['recovered']:.4f}",
        )
        for name, row in figures["models"].items()
    ]
    bins = figures["models"]["tide"]["timestep"].items()
    by_timestep = [
        (f"t {name}", f"{row['mse_normalised']:.4f}", f"{row['cosine']:.4f}", f"{row['explained_variance']:.4f}")
        for name, row in bins
    ]
    return text_table(header, rows) + "\n\n" + text_table(("", "mse", "cosine", "variance"), by_timestep)
