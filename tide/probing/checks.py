"""Whether an adapter fits its pipeline: what every family of TIDE promises, checked on small runs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from tide.adapters import Adapter, tap
from tide.adapters.declared import DeclaredAdapter
from tide.adapters.standins import listened
from tide.errors import TideError
from tide.messages import one_line
from tide.probing import calls
from tide.probing.checked_modulation import modulation_misfit
from tide.probing.drawing import MIDDLE, Bench
from tide.probing.values import apart, sample_of

#: How far results of the same products may lie apart, and in half precision.
_CLOSE, _HALF = 1e-3, 5e-2
#: Latents of the autoencoder that is trained and edits.
_LATENTS = 64
#: Side of the corner of latents that is changed.
_CORNER = 2


@dataclass(frozen=True)
class Result:
    """A check of an adapter.

    Attributes:
        name: of the check.
        passed: whether it did; None where it says nothing of this pipeline.
        said: in a line, what was seen.
    """

    name: str
    passed: bool | None
    said: str


class Misfit(Exception):
    """A check failed; the message says what was seen and what was expected."""


class Unsaid(Exception):
    """A check that cannot be made on this pipeline; the message says why."""


def check(adapter: Adapter) -> list[Result]:
    """Small runs that show whether an adapter fits its pipeline, in order: some seconds for a small model. What is
    trained meanwhile is kept nowhere.

    Args:
        adapter: of the pipeline, registered for its transformer.
    """
    return list(checks(adapter))


def checks(adapter: Adapter) -> Iterator[Result]:
    """The results of :func:`check`, each as soon as it is there."""
    bench = Bench(adapter, measured=True)
    for name, function in CHECKS.items():
        yield _checked(name, function, bench)


def _checked(name: str, function: Callable[[Bench], str], bench: Bench) -> Result:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is too short to be of use is meant to be
            return Result(name, True, function(bench))
    except Misfit as misfit:
        return Result(name, False, one_line(misfit))
    except Unsaid as unsaid:
        return Result(name, None, one_line(unsaid))
    except TideError as error:
        return Result(name, False, one_line(error))
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        return Result(name, False, f"{type(error).__name__}: {one_line(error)}")


def _compare(what: str, found: Tensor, expected: Tensor, bench: Bench, *, most: float | None = None) -> None:
    if found.shape != expected.shape:
        raise Misfit(f"{what} is {list(found.shape)}, expected {list(expected.shape)}")
    limit = most or (_CLOSE if bench.adapter.dtype in (torch.float32, torch.float64) else _HALF)
    off = apart(found, expected)
    if not off < limit:
        raise Misfit(f"{what} {list(found.shape)} is off by {off:.2g} of its size")


# -- what the adapter says of the model -----------------------------------------------------------------------------


def tokens_of_blocks(bench: Bench) -> str:
    """Every block runs once, in order, and holds the tokens of the grid at the model's width."""
    own, ran, expected = bench.adapter, [], bench.tokens
    taps = {block: lambda x, call, block=block: ran.append((block, list(x.shape))) for block in range(own.n_blocks)}
    try:
        with tap(own, taps):
            bench.denoise()
    finally:  # which says more than the error that it may lead to
        for block, shape in ran:
            if shape != expected:
                raise Misfit(f"the tokens of block {block} are {shape}, expected {expected}")
    order = [block for block, _ in ran]
    if order != sorted(order):
        raise Misfit(f"the blocks ran in the order {order}; name their lists in that order")
    return f"{own.n_blocks} blocks, {expected} each"


def squares_of_the_image(bench: Bench) -> str:
    """The tokens that move most with the last corner of the latents are those of that corner, row by row."""
    own, latents = bench.adapter, bench.latents()
    if latents.ndim < 4:
        raise Unsaid("latents without rows and columns")
    changed = latents.clone()
    changed[..., -_CORNER:, -_CORNER:] += 3.0
    seen: list[Tensor] = []
    with torch.no_grad(), tap(own, {0: lambda x, call: seen.append(x[0].float())}):
        for each in (latents, changed):
            own.denoise(each, MIDDLE, bench.text)
    moved = (seen[1] - seen[0]).norm(dim=1)
    rows, columns = bench.grid[-2:]
    row, column = divmod(int(moved.argmax()) % (rows * columns), columns)
    side = max(1, _CORNER * rows // latents.shape[-2])
    if not bool(moved.max() > 0) or row < rows - side or column < columns - side:
        raise Misfit(
            f"of the tokens {list(seen[0].shape)} of block 0, that of row {row} and column {column} moves most with "
            f"the last corner of the latents, expected row {rows - 1} and column {columns - 1}"
        )
    return f"row {row}, column {column} of {rows} x {columns}"


def grid_of_calls(bench: Bench) -> str:
    """A call says the rows and columns of its tokens."""
    grids = [call.grid for _, call in bench.tapped(0)]
    wrong = next((grid for grid in grids if grid != bench.grid), bench.grid)
    if wrong != bench.grid:
        raise Misfit(f"a call says that its tokens are {wrong}, expected {bench.grid}")
    return " x ".join(map(str, bench.grid))


def modulation(bench: Bench) -> str:
    """What attention and feed-forward read is a norm's output, scaled and shifted."""
    own, said = bench.adapter, []
    for chunk in ("msa", "mlp"):
        try:
            own.modulation(0, chunk)
        except TideError as error:
            if "modulated" not in str(error):
                raise
            continue
        found = [modulation_misfit(bench, block, chunk) for block in sorted({0, own.n_blocks // 2, own.n_blocks - 1})]
        off = [each for each in found if each is not None]
        if off and max(off) > (_CLOSE if own.dtype in (torch.float32, torch.float64) else 2 * _HALF):
            raise Misfit(f"the modulation {chunk} is off by {max(off):.2g} of what it changes")
        if off:
            said.append(f"{chunk} off by {max(off):.1g}")
    if not said:
        raise Unsaid("no norm's output was found that is modulated")
    return ", ".join(said)


def denoise(bench: Bench) -> str:
    """From the same latents, ``denoise`` returns what the pipeline's own call returned."""
    own, text = bench.adapter, dict(bench.text)
    if "guidance" in text:
        text["guidance"] = torch.ones_like(text["guidance"])
    found: list[tuple[dict[str, Any], Tensor]] = []
    handle = own.transformer.register_forward_hook(
        lambda _m, args, kwargs, output: found.append((own.arguments(args, kwargs), sample_of(output))),
        with_kwargs=True,
    )
    try:
        bench.draw()
    finally:
        handle.remove()
    times = _times(own)
    if len(found) != len(times):
        raise Misfit(f"a run without guidance called the transformer {len(found)} times in {len(times)} steps")
    with torch.no_grad():
        for (arguments, expected), t in zip(found, times, strict=True):
            latents = _latents_of(own, arguments, bench)
            _compare(
                f"the prediction at timestep {float(t):g}",
                own.denoise(latents, t, {**text, **_beside(own, arguments)}),
                _prediction_of(own, expected, bench),
                bench,
            )
    return f"{len(found)} calls"


def _times(own: Adapter) -> Tensor:
    """The timesteps of the last run, as TIDE counts them, one for each call."""
    return own.from_scheduler(own.run_timesteps.float()).cpu()


def _beside(own: Adapter, arguments: dict[str, Any]) -> dict[str, Any]:
    """What a call drew beside the latents, such as sound."""
    return {name: arguments[name] for name in (own.spec.beside if isinstance(own, DeclaredAdapter) else ())}


def _latents_of(own: Adapter, arguments: dict[str, Any], bench: Bench) -> Tensor:
    if isinstance(own, DeclaredAdapter):
        return own.latents_of(arguments, bench.size)
    return own.unpacked(arguments[own.latents_argument], bench.size)


def _prediction_of(own: Adapter, output: Tensor, bench: Bench) -> Tensor:
    if isinstance(own, DeclaredAdapter):
        return own.prediction_of(output, bench.size)
    return own.unpacked(output, bench.size).float()


def timesteps(bench: Bench) -> str:
    """A call's timestep is the scheduler's, whatever the transformer is given, and known before the run."""
    own = bench.adapter
    seen = torch.stack([call.timestep.cpu() for _, call in bench.tapped(0)])
    expected = _times(own)[:, None].expand(seen.shape)
    _compare("the timesteps of a run", seen, expected, bench, most=5e-3)
    # A schedule that depends on the image's size is known for the pipeline's own size.
    if own.schedule_arguments(calls.STEPS).get("mu") is None or bench.size == tuple(own.default_latents):
        known = own.sampling_timesteps(calls.STEPS).float()
        _compare("the timesteps that are known before a run", known, expected[:, 0].unique().flip(0), bench, most=5e-3)
    return ", ".join(f"{float(t):.4g}" for t in expected[:, 0])


def rows_of_the_prompt(bench: Bench) -> str:
    """At the first step of a guided run they hold what a run on the prompts alone holds, and the others do not."""
    block = bench.adapter.n_blocks - 1
    alone, guided = bench.tapped(block), bench.tapped(block, guided=True)
    first = guided[: len(guided) // calls.STEPS]
    rows = torch.cat([x for x, _ in first])
    chosen = torch.cat([call.conditional for _, call in first]).to(rows.device)
    if len(rows) == len(bench.prompts):
        raise Unsaid("this pipeline has no classifier-free guidance")
    if int(chosen.sum()) != len(bench.prompts):
        raise Misfit(f"{int(chosen.sum())} of {len(rows)} rows count as the prompts', expected {len(bench.prompts)}")
    embedded = "guidance" in bench.text
    if not embedded:  # whose scale differs between the two runs
        _compare("what the rows of the prompts hold", rows[chosen], alone[0][0], bench)
    off, others = (apart(rows[each], alone[0][0]) for each in (chosen, ~chosen))
    if not others:
        raise Unsaid("the tokens do not depend on the text of these prompts")
    if not off < others:
        raise Misfit(
            f"the rows of the negative prompt are nearer to the prompts' ({others:.2g}) than their own ({off:.2g})"
        )
    return f"{int(chosen.sum())} of {len(rows)} rows"


def noise_and_prediction(bench: Bench) -> str:
    """The scheduler is given what ``denoise`` returns, and the last prediction leads to what a run ends on."""
    own, text = bench.adapter, dict(bench.text)
    if "guidance" in text:
        text["guidance"] = torch.ones_like(text["guidance"])
    steps, drawn = _steps(bench)
    given, at, start, beside = steps[0]
    if given.shape == start.shape == drawn.shape:
        with torch.no_grad():
            predicted = own.denoise(start, at, {**text, **beside})
        _compare("what the scheduler is given", predicted, given, bench)
    _, t, sample, beside = steps[-1]
    noise, image = bench.latents(9), bench.latents()
    noisy = own.add_noise(image, noise, t)
    back = own.predicted_clean(_exact(own, image, noise, t), noisy, t)
    _compare("the image that noising and the exact prediction lead to", back, image, bench, most=1e-2)
    if sample.shape == drawn.shape:
        with torch.no_grad():
            clean = own.predicted_clean(own.denoise(sample, t, {**text, **beside}), sample, t)
        _compare("the image that the last step predicts", clean, drawn.to(clean), bench, most=0.1)
    return f"at timestep {t:.4g}"


#: Prediction, timestep and noisy latents of a step, as TIDE has them, and what was drawn beside the latents.
_Step = tuple[Tensor, float, Tensor, dict[str, Any]]


def _steps(bench: Bench) -> tuple[list[_Step], Tensor]:
    """The steps of the scheduler in a run without guidance, and the latents that it draws."""
    own, steps, last = bench.adapter, list[_Step](), dict[str, Any]()

    def keep(model_output: Tensor, timestep: Any, sample: Tensor, *_: Any, **__: Any) -> None:
        prediction, t, noisy = own.of_step(model_output, timestep, sample)
        prediction, noisy = (own.unpacked(each, bench.size).to(own.device) for each in (prediction, noisy))
        steps.append((prediction.float(), t, noisy, _beside(own, last)))

    handle = own.transformer.register_forward_pre_hook(
        lambda _m, args, kwargs: last.update(own.arguments(args, kwargs)), with_kwargs=True
    )
    try:
        with listened(own.pipe.scheduler, "step", before=keep):
            drawn = bench.draw()
    finally:
        handle.remove()
    return steps, drawn


def _exact(own: Adapter, image: Tensor, noise: Tensor, t: float) -> Tensor:
    """The true prediction of noised images."""
    kind = own.prediction_type
    if kind == "velocity":
        return noise - image
    signal, sigma = own.signal_and_noise(t, image)
    return {"epsilon": noise, "sample": image, "v_prediction": signal * noise - sigma * image}[kind]


def latents_decode(bench: Bench) -> str:
    """The VAE is given the same by ``decode_latents`` and by the pipeline."""
    own = bench.adapter
    if "output_type" not in calls.parameters_of(own.pipe):
        raise Unsaid("the pipeline has no output_type, so it returns one kind alone")
    own_part: list[Tensor] = []
    theirs: list[Tensor] = []
    given = own_part
    with listened(own.pipe.vae, "decode", before=lambda z, *_, **__: given.append(z.detach().clone())):
        latents = bench.draw()
        at_once = list(own_part)  # a pipeline that decodes in every run
        own_part.clear()
        own.decode_latents(latents)
        given = theirs
        if not at_once:
            _draw_pictures(bench)
    if not theirs and not at_once:
        raise Unsaid("the pipeline does not call its VAE")
    _compare("what the VAE decodes", torch.cat(own_part), torch.cat(theirs or at_once), bench)
    return str(list(torch.cat(own_part).shape))


def _draw_pictures(bench: Bench) -> None:
    own = bench.adapter
    given = {**bench.pixels, **calls.prompt_length(own.pipe), **calls.guidance_arguments(own.pipe, False)}
    scale = given.pop("guidance_scale", None)
    own.run_pipeline(bench.prompts, calls.STEPS, scale, calls.generators(), **given, output_type="pt")


# -- collect, train, edit ---------------------------------------------------------------------------------------------


def collect_and_train(bench: Bench) -> str:
    """A batch of activations, on which a few steps of training lower the loss."""
    from tide.activations import collect
    from tide.training import ProgressiveK, TrainConfig, Trainer

    own, block = bench.adapter, _penultimate(bench.adapter)
    if own.draws == "audio":
        raise Unsaid("images are what is collected from here")
    length = calls.prompt_length(own.pipe).get("max_sequence_length")
    data = [(bench.pictures(), list(bench.prompts))]
    (batches,) = collect(own, data, [block], token_fraction=1.0, max_sequence_length=length)
    x = batches[block].x
    if x.shape[1] != own.d_model:
        raise Misfit(f"collected activations are {list(x.shape)}, expected a width of {own.d_model}")
    config = TrainConfig(
        n_latents=_LATENTS, k=8, steps=12, batch_tokens=32, log_every=1, progressive_k=ProgressiveK(shape="off")
    )
    model = _tide(bench, block, config)
    with TemporaryDirectory() as folder:
        trainer = Trainer(model, config, folder, progress=False)
        trainer.fit([batches[block]] * config.steps)
    first, last = (trainer.history[i]["mse"] for i in (0, -1))
    if not last < first:
        raise Misfit(
            f"{config.steps} steps of training on {list(x.shape)} took the loss from {first:.4g} to {last:.4g}"
        )
    return f"{list(x.shape)}, loss {first:.3g} to {last:.3g}"


def edits(bench: Bench) -> str:
    """An edit that changes no latent leaves every bit; one that does changes the picture."""
    from tide.editing import Scale, edit
    from tide.training import TrainConfig

    own, block = bench.adapter, _penultimate(bench.adapter)
    model = _tide(bench, block, TrainConfig(n_latents=_LATENTS, k=8))
    x, call = bench.tapped(block)[1]
    model.calibrate(x, call)
    model.eval()
    for guided in (False, True):
        plain = bench.draw(guided=guided)
        with edit(own.pipe, model, Scale(range(_LATENTS), 1.0), branch="both"):
            same = bench.draw(guided=guided)
        if not torch.equal(same, plain):
            raise Misfit(f"an edit that changes no latent moved the picture by {apart(same, plain):.2g} of its size")
    with edit(own.pipe, model, Scale(range(_LATENTS), 5.0)):
        changed = bench.draw(guided=True)
    if torch.equal(changed, plain):
        raise Misfit(f"an edit of all latents of block {block} did not change the picture")
    return f"block {block}: the picture moves by {apart(changed, plain):.2g} of its size"


def _tide(bench: Bench, block: int, config: Any) -> Any:
    """An autoencoder of a block, with the block's modulation where it has one."""
    from dataclasses import replace

    from tide.training import build_model

    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            bench.adapter.modulation(block)
        except TideError:
            config = replace(config, modulation=False)
        return build_model(bench.adapter, block, config)


def _penultimate(adapter: Adapter) -> int:
    return max(adapter.n_blocks - 2, 0)


#: Name -> the check, which says what it saw or raises.
CHECKS: dict[str, Callable[[Bench], str]] = {
    "tokens of every block": tokens_of_blocks,
    "a token is a square of the image": squares_of_the_image,
    "rows and columns of a call": grid_of_calls,
    "modulation of a block's norm": modulation,
    "denoise is the pipeline's call": denoise,
    "timesteps are the scheduler's": timesteps,
    "rows of the prompt": rows_of_the_prompt,
    "noise and prediction": noise_and_prediction,
    "latents decode to its picture": latents_decode,
    "collect and train": collect_and_train,
    "edits": edits,
}
