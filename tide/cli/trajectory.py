"""``tide trajectory``: how the latents of a prompt change from step to step, beside the picture (section 5.5)."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from tide.cli import arguments
from tide.cli.usage import PIPELINE, Usage, fast_beside

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from tide.adapters import Adapter
    from tide.interpretation.trajectory import Trajectory

#: Bytes that the recorded codes and activations of a run may take.
RUN_BYTES = 8 * 10**9

USAGE = Usage(
    f"{PIPELINE} size sae block backend prompt towards change seed n_steps guidance out", (fast_beside("n_steps"),)
)


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "trajectory",
        help="follow the latents along a sampling run",
        description="Draws a prompt and compares the latents of consecutive steps; with --towards or --change also "
        "with those of another prompt from the same seed.",
    )
    arguments.add_sae(parser)
    arguments.add_pipeline(parser, required=False, default="the checkpoint's")
    parser.add_argument("--prompt", required=True)
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--towards", metavar="PROMPT", help="the target: another prompt, drawn from the same seed")
    other.add_argument("--change", type=arguments.replacement, metavar="red=blue", help="the target: a word replaced")
    parser.add_argument("--seed", type=arguments.seed, default=0)
    parser.add_argument("--n-steps", type=arguments.positive, help="sampling steps (default 20, 8 with --fast)")
    parser.add_argument("--guidance", type=arguments.finite, default=4.5, help="guidance scale (default 4.5)")
    parser.add_argument("--fast", action="store_true", help="8 sampling steps")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of trajectory.png, .csv and .json")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from pathlib import Path

    from tide.charts import check_matplotlib
    from tide.cli import common
    from tide.cli.edit_target import changed_prompt
    from tide.errors import TideError
    from tide.interpretation.abrupt_change import SHORTEST

    check_matplotlib()
    args.n_steps = args.n_steps or (8 if args.fast else 20)
    if args.n_steps <= SHORTEST:
        raise TideError(f"--n-steps {args.n_steps} is too few to find a change in; give at least {SHORTEST + 1}")
    if args.change is not None:
        args.towards = changed_prompt(args.prompt, *args.change)
    common.pipeline_of_sae(args)
    with common.output_folder(Path(args.out)):
        _follow(args, Path(args.out))


def _follow(args: argparse.Namespace, out: Path) -> None:
    from functools import partial

    import torch

    from tide.cli import common
    from tide.errors import TideError
    from tide.files import write_json
    from tide.interpretation.abrupt_change import abrupt_change
    from tide.interpretation.trajectory import record_trajectory, step_changes
    from tide.tables import write_csv

    adapter = common.load_adapter(args)
    adapter.check_steps(args.n_steps)
    model = common.load_sae(args, adapter)
    size = common.image_size(args, adapter)
    n_bytes = args.n_steps * common.n_tokens(adapter, size) * (6 * model.config.k + 2 * model.d_model)
    if n_bytes > RUN_BYTES:
        raise TideError(f"the run's latents take {n_bytes / 1e9:.0f} GB; lower --n-steps or --size")

    def draw(prompt: str) -> Tensor:
        drawn = adapter.generate(
            [prompt],
            n_steps=args.n_steps,
            guidance_scale=args.guidance,
            generators=[torch.Generator().manual_seed(args.seed)],
            **common.sampling_arguments(adapter, size),
        )
        common.check_drawn(drawn, "lower --guidance or use --dtype fp32")
        return drawn

    source = record_trajectory(adapter, model, partial(draw, args.prompt))
    target = None if args.towards is None else record_trajectory(adapter, model, partial(draw, args.towards))
    columns = _columns(source, target)
    found = abrupt_change(step_changes(source).cosine[:, 0].tolist())
    at = None if found is None else found.index + 1
    rows = [{"step": i, **{name: values[i] for name, values in columns.items()}} for i in range(len(source.codes))]
    change = None if found is None else {"step": at, "strength": found.strength}
    with common.writing(args):
        write_csv(out / "trajectory.csv", rows)
        report = {"abrupt_change": change, "steps": rows, "run": common.provenance(args)}
        write_json(out / "trajectory.json", report)
        _draw(out / "trajectory.png", adapter, source, target, columns, at)
    what = f"Latents of block {model.config.block}"
    if found is None or at is None:
        print(
            f"{what} change without a dip of the consecutive cosine over {len(rows)} steps; see {out}/trajectory.png."
        )
        return
    print(
        f"{what} change most abruptly before step {at} of {len(rows)} (timestep {source.timesteps[at]:.0f}; the "
        f"consecutive cosine dips by {found.strength:.0%} of its range); see {out / 'trajectory.png'}."
    )


def _columns(source: Trajectory, target: Trajectory | None) -> dict[str, list[float | None]]:
    """What is measured at every step, by its name."""
    from tide.interpretation.trajectory import raw_step_changes, run_distances, step_changes

    latents, raw = step_changes(source), raw_step_changes(source)
    columns: dict[str, list[float | None]] = {
        "timestep": source.timesteps.tolist(),
        "cosine with the next step": [*latents.cosine[:, 0].tolist(), None],
        "mse to the next step": [*latents.mse[:, 0].tolist(), None],
        "raw cosine with the next step": [*raw.cosine[:, 0].tolist(), None],
        "raw mse to the next step": [*raw.mse[:, 0].tolist(), None],
    }
    if target is not None:
        apart = run_distances(source, target)
        columns |= {
            "cosine with the target": apart.cosine[:, 0].tolist(),
            "mse to the target": apart.mse[:, 0].tolist(),
        }
    return columns


def _draw(
    path: Path,
    adapter: Adapter,
    source: Trajectory,
    target: Trajectory | None,
    columns: dict[str, list[float | None]],
    at: int | None,
) -> None:
    """The predicted image at every step, over the curves."""
    from tide import charts

    runs = [source] if target is None else [source, target]
    steps = len(source.codes)
    figure, strip, axes = charts.strip_over_panels(len(runs), steps, 2 if target is None else 3)
    for row, each in enumerate(runs):
        images = [(adapter.decode_latents(clean)[0].permute(1, 2, 0).cpu() + 1) / 2 for clean in each.clean]
        charts.pictures(strip, [image.numpy() for image in images], row)
        strip.text(-0.7, 0.5 - row, ("source", "target")[row], ha="right", va="center", fontsize="small")
    between = [i + 0.5 for i in range(steps - 1)]
    for axis, figure_name in ((axes[0], "cosine with the next step"), (axes[1], "mse to the next step")):
        for i, name in enumerate(("latents", "raw")):
            axis.plot(between, columns[("raw " if i else "") + figure_name][:-1], label=name, **charts.style(i))
        if at is not None:
            axis.axvline(at - 0.5, color="black", linewidth=0.9, linestyle="--")
        axis.set(title=figure_name, xlabel="step")
    axes[1].set_yscale("log")
    axes[0].legend(frameon=False, fontsize="small")
    if target is not None:
        axes[2].plot(range(steps), columns["cosine with the target"], **charts.style(2))
        axes[2].set(title="cosine with the target", xlabel="step")
    charts.save(figure, path)
