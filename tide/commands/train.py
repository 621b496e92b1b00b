"""``tide train``: a TIDE, or a plain TopK SAE, from activation stores or from a live stream."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from tide.commands import arguments
from tide.commands.collect import add_sampling_options
from tide.commands.usage import Aspect, Usage, kind_of_data, with_option

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tide.activations import ActivationBatch, ActivationStore
    from tide.sae import TIDE
    from tide.training import TrainConfig

    Batches = Callable[[int], Iterator[ActivationBatch]]


def _modulation(args: argparse.Namespace) -> str:
    """A plain SAE needs no pipeline where the activations are there."""
    from tide.commands.settings import assigned, train_config

    if not args.store:
        return "of a live stream"
    config = train_config(args.config, assigned(args), plain=args.sae)
    return "by a TIDE of a --store" if config.modulation else "by a plain SAE of a --store"


#: From --store, or live from --pipeline and --data.
USAGE = Usage(
    "store buffer_rows device out config assignments sae steps backend seed resume",
    (
        with_option(
            "store",
            leaves_out="data size skip_unreadable split image_column caption_column dtype offload images tensor "
            "token_fraction timesteps no_pairs batch_size block cache",
        ),
        kind_of_data(),
        Aspect(
            _modulation,
            {"of a live stream": "pipeline", "by a TIDE of a --store": "pipeline", "by a plain SAE of a --store": ""},
        ),
    ),
)


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "train",
        help="train a TIDE (or with --sae a plain SAE)",
        description="From --store, or live from --pipeline and --data. With --store, --pipeline is needed only where "
        "the pipeline is no longer under the name that the store records.",
    )
    parser.add_argument("--store", nargs="+", metavar="STORE", help="stores of one block, mixed by their sizes")
    arguments.add_pipeline(parser, required=False)
    arguments.add_data(parser, images="images of the live stream (default: all; 512 scenes)")
    add_sampling_options(parser)
    parser.add_argument("--block", type=arguments.block, default="penultimate", help="of the live stream")
    parser.add_argument("--cache", action="store_true", help="live: keep encoded images and captions in memory")
    parser.add_argument("--buffer-rows", type=arguments.positive, default=65536, help="rows mixed at a time")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the checkpoint")
    parser.add_argument("--config", metavar="FILE", help="YAML of the training configuration")
    parser.add_argument(
        "--set",
        dest="assignments",
        action="append",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="any field of tide.TrainConfig, such as loss.temporal=1e-3, expansion=64, k=64",
    )
    parser.add_argument("--sae", action="store_true", help="a plain SAE, without modulation")
    parser.add_argument("--steps", type=arguments.positive)
    parser.add_argument("--backend", help="auto, reference, triton or native")
    parser.add_argument("--seed", type=arguments.seed)
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted training")
    parser.set_defaults(
        run=run,
        interrupted="the last checkpoint is kept: the same command with --resume goes on from it",
    )


def run(args: argparse.Namespace) -> None:
    import sys
    from dataclasses import replace
    from itertools import chain
    from pathlib import Path

    from tide.commands import common
    from tide.commands.settings import assigned, train_config
    from tide.errors import TideError
    from tide.files import write_json
    from tide.sae.checkpoint import CONFIG
    from tide.training import Trainer

    if bool(args.store) == bool(args.data):
        raise TideError("what to train on is not clear; give --store, or --pipeline and --data")
    out = Path(args.out)
    if (out / CONFIG).exists() and not args.resume:
        raise TideError(f"{out} already holds a checkpoint; add --resume, or choose another folder")
    options = {"steps": args.steps, "backend": args.backend, "seed": args.seed}
    assignments = assigned(args)
    config = train_config(args.config, assignments, options, plain=args.sae)
    config = replace(config, device=str(common.device_of(args.device or _device(args, assignments, config))))
    args.seed, args.device = config.seed, config.device
    model, batches = _from_stores(args, config) if args.store else _live(args, config)
    n, k = model.n_latents, model.config.k
    common.check_backend(config.backend, common.device_of(config.device), n, k)

    def from_step(step: int) -> Iterator[ActivationBatch]:
        # The first batch before the trainer writes anything: faulty data leave no half-made folder.
        source = batches(step)
        first = next(source)
        write_json(out / "run.json", common.provenance(args))
        return chain([first], source)

    trainer = Trainer(model, config, out, progress=sys.stderr.isatty())
    trainer.fit(from_step, resume=args.resume)
    last = trainer.history[-1]
    print(
        f"Trained a {'TIDE' if model.modulation is not None else 'plain SAE'} of {n} latents, k = {k}, on block "
        f"{model.config.block} for {trainer.step} steps: mse {last['mse']:.4f} (normalised), cosine "
        f"{1 - last['cosine']:.4f} on the last batch; it is in {out}."
    )


def _device(args: argparse.Namespace, assignments: list[str], config: TrainConfig) -> str | None:
    """The configuration's device if it was set there, else None: the GPU if there is one."""
    given = args.config is not None or any(each.startswith("device=") for each in assignments)
    return config.device if given else None


def _from_stores(args: argparse.Namespace, config: TrainConfig) -> tuple[TIDE, Batches]:
    from tide.errors import TideError

    stores = [_open_store(path) for path in args.store]
    info = stores[0].info
    for store in stores[1:]:
        for name in ("pipeline", "family", "block", "tensor"):
            if store.info[name] != info[name]:
                raise TideError(
                    f"{store.path} is of {name} {store.info[name]!r} and {stores[0].path} of {info[name]!r}; "
                    "train on stores of one block"
                )
    n_latents, k = config.sizes(stores[0].d_model)
    args.pipeline = args.pipeline or info["pipeline"]
    model = _model(args, config, info, stores[0].d_model, n_latents, k)

    def batches(step: int) -> Iterator[ActivationBatch]:
        return mixed(stores, config.batch_tokens, seed=config.seed, buffer_rows=args.buffer_rows, start=step)

    return model, batches


def _open_store(path: str) -> ActivationStore:
    from pathlib import Path

    from tide.activations import ActivationStore
    from tide.errors import TideError

    if several := sorted(folder.name for folder in Path(path).glob("block-*") if folder.is_dir()):
        raise TideError(f"{path} holds stores of several blocks; give one of them: {path}/{several[0]}")
    store = ActivationStore(path)
    if missing := [name for name in ("pipeline", "family", "block", "tensor") if name not in store.info]:
        raise TideError(f"{path} does not say what {missing[0]} it is of; make it with `tide collect`")
    return store


def _model(
    args: argparse.Namespace, config: TrainConfig, info: dict[str, Any], d_model: int, n_latents: int, k: int
) -> TIDE:
    """The fresh model for a store: with modulation, from the pipeline's transformer, which is dropped again."""
    from dataclasses import replace

    from tide.commands import common
    from tide.errors import TideError
    from tide.sae import TIDE, TIDEConfig
    from tide.training import build_model

    pipeline, block, tensor = common.pipeline_name(args.pipeline), info["block"], info["tensor"]
    if not config.modulation:
        plain = TIDEConfig(
            d_model,
            n_latents,
            k,
            activation=config.activation,
            bandwidth=config.bandwidth,
            family=info["family"],
            pipeline=pipeline,
            block=block,
            tensor=tensor,
        )
        return TIDE(plain, backend=config.backend, seed=config.seed)
    on_cpu = argparse.Namespace(**{**vars(args), "device": "cpu", "dtype": "fp32", "offload": False})
    adapter = common.load_adapter(on_cpu, denoiser_only=True)
    for name, stored, own in (("family", info["family"], adapter.family), ("width", d_model, adapter.d_model)):
        if stored != own:
            raise TideError(f"{args.store[0]} is of {name} {stored} and {args.pipeline} of {own}; use its own pipeline")
    model = build_model(adapter, adapter.resolve_block(block), config, tensor=tensor)
    model.config = replace(model.config, pipeline=pipeline)
    return model


def mixed(
    stores: list[ActivationStore], batch_size: int, *, seed: int, buffer_rows: int, start: int
) -> Iterator[ActivationBatch]:
    """Endless batches from number ``start`` on, each of one store, drawn in proportion to the stores' rows.

    Which store serves batch number b depends on ``seed`` and b alone, so that a resumed run draws the same.
    """
    import numpy as np

    rng = np.random.default_rng([seed, len(stores)])
    shares = np.cumsum([len(store) for store in stores]) / sum(map(len, stores))
    used = np.bincount(np.searchsorted(shares, rng.random(start), side="right"), minlength=len(stores))
    readers = [
        store.batches(batch_size, seed=seed, epochs=None, buffer_rows=buffer_rows, start=int(n))
        for store, n in zip(stores, used, strict=True)
    ]
    while True:
        yield next(readers[int(np.searchsorted(shares, rng.random(), side="right"))])


def _live(args: argparse.Namespace, config: TrainConfig) -> tuple[TIDE, Batches]:
    from dataclasses import replace

    from tide.activations import prepare, stream
    from tide.adapters.base import check_tensor
    from tide.commands import common
    from tide.commands.collect import noised
    from tide.commands.data import open_source
    from tide.errors import TideError
    from tide.training import build_model

    if args.pipeline is None:
        raise TideError("a live stream runs a pipeline; give --pipeline")
    check_tensor(args.tensor)
    adapter = common.load_adapter(args)
    block = adapter.resolve_block(args.block)
    source = open_source(args, common.image_size(args, adapter))
    length = common.caption_length(adapter)
    model = build_model(adapter, block, config, tensor=args.tensor)
    model.config = replace(model.config, pipeline=common.pipeline_name(args.pipeline))
    data: Any = source
    if args.cache:
        data = list(prepare(adapter, source, batch_size=args.batch_size, max_sequence_length=length))
    tokens = max(1, round(common.n_tokens(adapter, source.size) * args.token_fraction))
    per_epoch = source.n_images * tokens * (1 if args.no_pairs else 2)
    # Few images must not be collected over and over to fill a large buffer before the first step.
    buffer_rows = max(2 * config.batch_tokens, min(args.buffer_rows, per_epoch))

    def batches(step: int) -> Iterator[ActivationBatch]:
        """Every epoch, and every resumed run, draws its own noise, timesteps and tokens."""

        def epoch(number: int) -> Iterator[ActivationBatch]:
            seed = config.seed + 1_000_003 * step + number
            return (each[block] for each in noised(adapter, [block], args, data, seed=seed))

        return stream(epoch, config.batch_tokens, buffer_rows=buffer_rows, seed=config.seed + step)

    return model, batches
