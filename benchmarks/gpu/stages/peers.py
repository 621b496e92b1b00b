"""The step beside other packages' steps, and the choices between our own ways: encoders, regimes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.gpu.bench import PAPER, SPARSE
from benchmarks.gpu.check import Check, Figures, Unit, explained
from benchmarks.gpu.contest import contest, ours, seconds_of
from benchmarks.gpu.replay import in_both_forms
from benchmarks.measure import time_of
from benchmarks.peers import Contender, DenseTorch, SaeLens, Sparsify
from benchmarks.shapes import Shape, make_problem
from benchmarks.table import Bar
from tide_kernels import BackendError, encode_topk, tune

WIDE = Shape(16384, 4608, 18432, 922)

# Times faster than each, for the squared error that the peers compute too, and for all terms against it.
AT_FIVE_PERCENT = {"eai-sparsify": 4.0, "sae-lens": 2.0, "dense torch": 2.0, "dense torch, compiled": 1.3}
ALL_TERMS_AT_FIVE_PERCENT = {"eai-sparsify": 4.0, "sae-lens": 1.6, "dense torch": 1.0}
FEW_ACTIVE = 2.0  # times faster than the best


def compiler(check: Check) -> str:
    """The backend of `torch.compile`; a dry run needs no C++ compiler."""
    return "aot_eager" if check.dry_run else "inductor"


def contenders(check: Check, *, compiled: bool) -> list[Contender]:
    found: list[Contender] = [ours(check), ours(check, all_terms=True), DenseTorch()]
    return [*found, *([DenseTorch(compiler(check))] if compiled else []), Sparsify(), SaeLens()]


def peers(check: Check) -> None:
    """The squared error's step and that of all terms against every peer, compiled dense torch included.

    A quarter of the tokens is measured as well: at 5 % one of the peers may not fit into memory otherwise.
    """
    for full in (PAPER, SPARSE, PAPER.with_tokens(4096)):
        shape = check.shape(full)
        check.unit(str(full), partial(_against_peers, check, shape, True))


def grid(check: Check) -> None:
    """The same without compiled dense torch, over k and n."""
    widths, few = (18432, 4608, 73728), (32, 64, 256)
    shapes = [Shape(16384, 1152, n_latents, k) for n_latents in widths for k in (n_latents // 20, *few)]
    for full in (WIDE, *shapes):
        if full not in (PAPER, SPARSE, Shape(16384, 1152, 18432, 921)):  # these are among the peers' shapes
            check.unit(str(full), partial(_against_peers, check, check.shape(full), False))


def _against_peers(check: Check, shape: Shape, compiled: bool, unit: Unit) -> None:
    figures = contest(check, unit, shape, contenders(check, compiled=compiled))
    names = ours(check).name, ours(check, all_terms=True).name
    unit.bars += in_both_forms(lambda figures: peer_bars(shape, figures, *names), figures)


def peer_bars(shape: Shape, figures: Figures, mse: str, all_terms: str) -> list[Bar]:
    """How many times faster than the peers that have a figure."""
    seconds, bars = seconds_of(figures), []
    rivals = {name: taken for name, taken in seconds.items() if name not in (mse, all_terms)}
    few = shape.k <= 64 and shape.n_latents >= 18432
    for name, step, wanted in ((mse, "step", AT_FIVE_PERCENT), (all_terms, "all terms", ALL_TERMS_AT_FIVE_PERCENT)):
        if name not in seconds or not rivals:
            continue
        if abs(shape.density - 0.05) < 0.005:
            for rival in wanted.keys() & rivals.keys():
                what = f"{step} {shape}, times faster than {rival}"
                bars.append(Bar(what, rivals[rival] / seconds[name], wanted[rival]))
        elif few:
            best = min(rivals, key=lambda rival: rivals[rival])
            what = f"{step} {shape}, times faster than the best ({best})"
            bars.append(Bar(what, rivals[best] / seconds[name], FEW_ACTIVE))
        else:
            best = min(rivals, key=lambda rival: rivals[rival])
            bars.append(Bar(f"{step} {shape}, times faster than the best ({best})", rivals[best] / seconds[name], 1.0))
    return sorted(bars, key=lambda bar: bar.what)


def encoders(check: Check) -> None:
    """`encode_topk` in one launch and in several."""
    for full in (PAPER, SPARSE):
        check.unit(str(full), partial(_encoders, check, check.shape(full)))


def _encoders(check: Check, shape: Shape, unit: Unit) -> None:
    p = make_problem(shape, check.device, check.dtype)
    weight, bias = p.W_enc.to(check.dtype), p.b_enc.to(check.dtype)
    options: dict[str, Any] = {**p.modulation(), "group": p.group, "backend": check.backend}
    runs: dict[str, Callable[[], object]] = {}
    for path in ("split", "single"):
        run = partial(encode_topk, p.x, weight, bias, p.k, path=path, **options)
        figure = unit.figures[path] = {}
        with explained(figure, check):
            try:
                run()
                runs[path] = run
            except BackendError as reason:
                figure["note"] = str(reason)
    for path, timing in check.times(runs, queued=True).items():
        unit.figures[path] |= timing.record()


def dispatch(check: Check) -> None:
    """The density at which the dense regime starts to win."""
    for density in tune.DENSITIES:
        shape = check.shape(Shape(PAPER.n_tokens, PAPER.d_model, PAPER.n_latents, round(density * PAPER.n_latents)))
        check.unit(f"{density:.2%}", partial(_regimes, check, shape))
    check.unit("break-even", partial(_break_even, check))


def _break_even(check: Check, unit: Unit) -> None:
    measured = {density: check.entry["units"][f"{density:.2%}"]["figures"] for density in tune.DENSITIES}
    times = {
        density: (figures["sparse"]["seconds"], figures["dense"]["seconds"])
        for density, figures in measured.items()
        if len(figures) == 2
    }
    found = tune.break_even(times)
    unit.notes.append("one regime wins at all of these densities" if found is None else f"at {found:.3%}")


def _regimes(check: Check, shape: Shape, unit: Unit) -> None:
    problem = make_problem(shape, check.device, check.dtype)
    for regime in ("sparse", "dense"):
        step = ours(check, regime=regime).prepare(problem, check.autocast)
        unit.figures[regime] = dict(time_of(step.run, check.device, queued=False).record())
