"""``tide train``: a TIDE, or a plain TopK SAE, from activation stores or from a live stream."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, TypedDict

from tide.commands import arguments
from tide.commands.collect import add_sampling_options
from tide.commands.usage import Aspect, Usage, kind_of_data, with_option

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tide.activations import ActivationBatch, ActivationStore
    from tide.adapters import Adapter
    from tide.commands.data import Source
    from tide.sae import TIDE
    from tide.training import TrainConfig, Trainer

    Batches = Callable[[int], Iterator[ActivationBatch]]
    #: The model, its batches, and what describes them.
    Job = tuple[TIDE, Batches, dict[str, Any]]


class StoreInfo(TypedDict):
    """What a store says of itself, as far as a training needs it."""

    pipeline: str | None
    family: str
    block: int
    tensor: str


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
            {
                "of a live stream": "pipeline trust_remote_code",
                "by a TIDE of a --store": "pipeline trust_remote_code",
                "by a plain SAE of a --store": "",
            },
        ),
    ),
)


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "train",
        help="train a TIDE (or with --sae a plain SAE)",
        description="From --store, or live from --pipeline and --data. With --store, --pipeline is the one that the "
        "store is of; it may be left out where that is the bundled one, and for --sae.",
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
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from dataclasses import replace
    from pathlib import Path

    from tide.commands import common
    from tide.commands.settings import assigned, train_config
    from tide.errors import TideError
    from tide.files import lock_folder, new_folders

    if bool(args.store) == bool(args.data):
        raise TideError("what to train on is not clear; give --store, or --pipeline and --data")
    out = Path(args.out)
    _check_new(out, args)
    options = {"steps": args.steps, "backend": args.backend, "seed": args.seed}
    assignments = assigned(args)
    config = train_config(args.config, assignments, options, plain=args.sae)
    config = replace(config, device=str(common.device_of(_device(args, assignments, config))))
    args.seed, args.device = config.seed, config.device
    with new_folders(out):
        with lock_folder(out):
            pass  # who else trains into it is known before anything is loaded
        _train(args, config, out)


def _train(args: argparse.Namespace, config: TrainConfig, out: Path) -> None:
    import sys

    from tide.commands import common
    from tide.errors import Interrupted
    from tide.training import Trainer

    model, batches, source = _from_stores(args, config) if args.store else _live(args, config)
    common.check_backend(config.backend, common.device_of(config.device), model.n_latents, model.config.k)
    trainer = Trainer(model, config, out, progress=sys.stderr.isatty())
    try:
        trainer.fit(_recorded(args, trainer, batches), resume=args.resume, source=source)
    except Interrupted as stop:
        again = ": the same command with --resume goes on from it" if trainer.saved else ""
        raise Interrupted(f"{stop}{again}", stop.signal) from None
    last = trainer.history[-1]
    explained = last.get("explained_variance")  # a run that an older version finished has none
    print(
        f"Trained a {'TIDE' if model.modulation is not None else 'plain SAE'} of {model.n_latents} latents, "
        f"k = {model.config.k}, on block {model.config.block} for {trainer.step} steps: mse {last['mse']:.4f} "
        f"(normalised), {'' if explained is None else f'{explained:.1%} of the variance explained, '}cosine "
        f"{1 - last['cosine']:.4f} on the last batch; it is in {out}."
    )


def _recorded(args: argparse.Namespace, trainer: Trainer, batches: Batches) -> Batches:
    """``batches``, with what has to be done once the first is there and the trainer holds the folder: faulty data leave
    no half-made folder."""
    from itertools import chain

    from tide.commands import common

    def from_step(step: int) -> Iterator[ActivationBatch]:
        _check_new(trainer.out, args)  # another training may have come and gone meanwhile
        source = batches(step)
        first = next(source)
        common.record_run(trainer.out, args)
        if trainer.lengths and trainer.lengths[-1]["at"] == step:
            before, now = trainer.lengths[-1]["before"], trainer.config.steps
            print(
                f"Goes on from step {step} to {now} instead of {before}: learning rate and k follow the new schedules."
            )
        return chain([first], source)

    return from_step


def _check_new(out: Path, args: argparse.Namespace) -> None:
    from tide.errors import TideError
    from tide.training.state import holds_training

    if holds_training(out) and not args.resume:
        raise TideError(f"{out} already holds a checkpoint; add --resume, or choose another folder")


def _device(args: argparse.Namespace, assignments: list[str], config: TrainConfig) -> str | None:
    """The configuration's device if it was set there, else None: the GPU if there is one.

    Raises :class:`~tide.errors.TideError` for ``--set device`` beside ``--device``.
    """
    from pathlib import Path

    from tide.errors import TideError
    from tide.files import read_yaml

    assigned = any(each.startswith("device=") for each in assignments)
    if assigned and args.device is not None:
        raise TideError("--set device is not used with --device; leave one of them off")
    given = assigned or (args.config is not None and "device" in read_yaml(Path(args.config)))
    return args.device or (config.device if given else None)


def _from_stores(args: argparse.Namespace, config: TrainConfig) -> Job:
    from tide.commands.trust import followed
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
    if args.pipeline is None:  # a plain SAE records the name and loads nothing
        args.pipeline = followed(info["pipeline"], args.store[0]) if config.modulation else info["pipeline"]
    model = _model(args, config, info, stores[0].d_model)

    def batches(step: int) -> Iterator[ActivationBatch]:
        return mixed(stores, config.batch_tokens, seed=config.seed, buffer_rows=args.buffer_rows, start=step)

    about = [{"rows": len(store), "fingerprint": store.fingerprint} for store in stores]
    return model, batches, {"stores": about, "buffer_rows": args.buffer_rows}


def _open_store(path: str) -> ActivationStore:
    from pathlib import Path

    from tide.activations import ActivationStore
    from tide.adapters.base import check_tensor
    from tide.errors import TideError
    from tide.files.schema import check_schema

    if several := sorted(folder.name for folder in Path(path).glob("block-*") if folder.is_dir()):
        raise TideError(f"{path} holds stores of several blocks; give one of them: {path}/{several[0]}")
    store = ActivationStore(path)
    if missing := [name for name in StoreInfo.__annotations__ if name not in store.info]:
        raise TideError(f"{path} does not say what {missing[0]} it is of; make it with `tide collect`")
    check_schema(store.info, StoreInfo, f"{path}/manifest.json (info)")
    check_tensor(store.info["tensor"])
    store.verify()  # all of it, once: one flipped bit is a value like any other to whoever trains on it
    return store


def _model(args: argparse.Namespace, config: TrainConfig, info: dict[str, Any], d_model: int) -> TIDE:
    """The fresh model for a store: with modulation, from the pipeline's transformer, which is dropped again."""
    from dataclasses import replace

    from tide.commands import common
    from tide.errors import TideError
    from tide.sae import TIDE
    from tide.training import build_model
    from tide.training.memory import check_memory

    check_memory(config, d_model)
    pipeline, block, tensor = common.pipeline_name(args.pipeline), info["block"], info["tensor"]
    if not config.modulation:
        plain = config.model_config(d_model, None, family=info["family"], pipeline=pipeline, block=block, tensor=tensor)
        return TIDE(plain, backend=config.backend, seed=config.seed)
    on_cpu = argparse.Namespace(
        pipeline=args.pipeline, trust_remote_code=args.trust_remote_code, device="cpu", dtype="fp32", offload=False
    )
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


def _live(args: argparse.Namespace, config: TrainConfig) -> Job:
    from dataclasses import replace

    from tide.activations import prepare
    from tide.adapters.base import check_tensor
    from tide.commands import common
    from tide.commands.collect import live_stream
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
    stream = live_stream(adapter, block, args, source, data, rows=config.batch_tokens, seed=config.seed)
    return model, stream.from_step, _live_source(args, adapter, block, source)


def _live_source(args: argparse.Namespace, adapter: Adapter, block: int, source: Source) -> dict[str, Any]:
    """What the bits of a live stream depend on, besides the configuration and the machine."""
    from tide.fingerprint import pipeline_fingerprints

    return {
        "images": source.n_images,
        "size": list(source.size),
        "dtype": str(adapter.dtype).removeprefix("torch."),
        "block": block,
        "tensor": args.tensor,
        "timesteps": args.timesteps,
        "token_fraction": args.token_fraction,
        "paired": not args.no_pairs,
        "batch_size": args.batch_size,
        "buffer_rows": args.buffer_rows,
        "data": source.fingerprint(),
        "pipeline": pipeline_fingerprints(adapter.pipe),
    }
