"""Algorithm 1: activations of noised images, and activations along the sampling process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from math import prod
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tide.activations.batch import ActivationBatch
from tide.activations.given import Batch, batches_of, items_of
from tide.activations.options import CollectOptions, check_fraction
from tide.adapters.base import Adapter, Block, Text
from tide.adapters.gate import gate_of
from tide.adapters.hooks import Call, run_until, tap
from tide.checks import GUIDANCE, check_count
from tide.errors import TideError
from tide.sae.config import check_target

#: Images ``[B, 3, H, W]`` in [-1, 1] or latents ``[B, c, h, w]``, clips ``[B, 3, F, H, W]`` or theirs, with captions or
#: encoded prompts; or one of the other forms that :func:`tide.activations.given.batches_of` takes.
Data = Iterable[Batch] | Any


class Prepared(NamedTuple):
    """Images as the transformer takes them: scaled ``latents [B, c, h, w]`` float32, and the prompts as
    keyword arguments of the transformer, one row each. An iterable of these is :data:`Data`.

    Attributes:
        latents: ``[B, c, h, w]`` float32, scaled as the transformer takes them.
        text: keyword arguments of the transformer, a row for each image.
    """

    latents: Tensor
    text: dict[str, Tensor]


#: One image or latent, with its caption or the row of its encoded prompt.
_Item = tuple[Tensor, str | Text]


def sample_generator(seed: int, *place: int) -> torch.Generator:
    """A generator that depends on seed and place alone: a sample draws the same numbers in every batch."""
    (state,) = np.random.SeedSequence([seed, *place]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state) % 2**63)


def sample_noise(shape: Sequence[int], seed: int, first: int, *place: int) -> Tensor:
    """Normal noise of ``shape``; row i is that of the sample ``first + i``, by :func:`sample_generator`."""
    rows = (torch.randn(shape[1:], generator=sample_generator(seed, first + i, *place)) for i in range(shape[0]))
    return torch.stack(list(rows))


def draw_tokens(n_tokens: int, fraction: float, generator: torch.Generator) -> Tensor:
    """A random ``fraction`` of the token places, at least one, ascending."""
    n = max(1, round(n_tokens * fraction))
    return torch.randperm(n_tokens, generator=generator)[:n].sort().values


def _items_between(data: Iterable[Batch], start: int, stop: int | None) -> Iterator[_Item]:
    """The samples from ``start`` to ``stop``; earlier ones are not even decoded if the data can skip them."""
    from_sample = getattr(data, "from_sample", None)
    items = islice(items_of(data), start, None) if from_sample is None else items_of(from_sample(start))
    return items if stop is None else islice(items, max(0, stop - start))


def _batches(items: Iterable[_Item], batch_size: int) -> Iterator[list[_Item]]:
    """Consecutive items of equal size and kind, ``batch_size`` at most."""
    batch: list[_Item] = []
    for item in items:
        if batch and (
            len(batch) == batch_size
            or item[0].shape != batch[0][0].shape
            or isinstance(item[1], str) != isinstance(batch[0][1], str)
        ):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _encoded(adapter: Adapter, items: list[_Item], max_sequence_length: int | None) -> Prepared:
    """Latents and prompt embeddings of a batch of items, computed if they are not given.

    Tokenizers hold the padding of the last call, so no background pass runs meanwhile.
    """
    with gate_of(adapter.transformer).tapped():
        latents = torch.stack([image for image, _ in items])
        if latents.shape[1] != adapter.latent_channels:
            latents = adapter.encode_images(latents)
        captions = [text for _, text in items if isinstance(text, str)]
        if captions:
            return Prepared(latents, adapter.encode_prompts(captions, max_sequence_length))
        rows = [text for _, text in items if not isinstance(text, str)]
        return Prepared(latents.float(), {name: _stacked([row[name] for row in rows]) for name in rows[0]})


def _stacked(rows: list[Tensor]) -> Tensor:
    """Texts that were encoded in several batches, which may be padded to other lengths, padded to the longest."""
    return torch.stack(rows) if rows[0].ndim == 0 else torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def prepare(
    adapter: Adapter, data: Data, *, batch_size: int = 8, max_sequence_length: int | None = None, start: int = 0
) -> Iterator[Prepared]:
    """``data`` encoded from sample ``start`` on, on the CPU. Kept in a list, it can be collected from again without VAE
    and text encoder.

    Args:
        adapter: whose VAE and text encoder are used.
        data: as for :func:`collect`.
        batch_size: images of a pass through them.
        max_sequence_length: tokens of a caption; default the pipeline's own.
        start: the first sample.
    """
    for items in _batches(_items_between(batches_of(adapter, data, batch_size), start, None), batch_size):
        latents, text = _encoded(adapter, items, max_sequence_length)
        yield Prepared(latents.cpu(), {name: value.cpu() for name, value in text.items()})


def _grid(adapter: Adapter, n_timesteps: int, timesteps: Sequence[int] | Tensor | None, paired: bool) -> Tensor:
    grid = adapter.sampling_timesteps(n_timesteps) if timesteps is None else torch.as_tensor(timesteps).cpu()
    grid = torch.unique(grid).flip(0)
    if len(grid) < 1 + paired:
        raise TideError(f"{len(grid)} timesteps are too few to draw {1 + paired} from; give more")
    return grid


@torch.no_grad()
def collect(
    adapter: Adapter,
    data: Data,
    blocks: Sequence[Block],
    options: CollectOptions | None = None,
    *,
    timesteps: Sequence[int] | Tensor | None = None,
    seed: int = 0,
    start: int = 0,
    stop: int | None = None,
    dtype: torch.dtype | None = None,
    max_sequence_length: int | None = None,
    **changed: Any,
) -> Iterator[dict[int, ActivationBatch]]:
    """Algorithm 1 of the paper: noise each image at a random timestep (eq. 3), run the model once, keep a
    random ``token_fraction`` of the image tokens of ``blocks``. Tokens are chosen inside the hook, and the
    pass ends after the last block asked for.

    ``data`` are a :class:`~tide.activations.Source`, batches of images in [-1, 1] (or uint8) or of latents with
    captions or encoded prompts, or what :func:`tide.images.open_data` reads, such as a ``Dataset`` or a list of
    pictures, in its own order.

    ``options`` say which activations of each image to keep; single ones can be given by name, as in
    ``token_fraction=1 / 4`` (:class:`~tide.activations.CollectOptions`).

    Timesteps are drawn from the grid of the pipeline's own schedule with ``n_timesteps`` steps, or from
    ``timesteps``. ``paired`` runs each image at a timestep and at the next (lower) one of the grid, with the
    same noise, and keeps the same tokens of both: rows 2i and 2i + 1.

    A sample's timestep, tokens and noise depend only on ``seed`` and its place in ``data``; ``batch_size`` (images a
    pass; twice as many rows when paired) changes activations at most by the model's rounding. ``start`` skips the first
    samples without running anything, and ``stop`` ends before that sample, so that an interrupted collection can be
    resumed. The same call gives the same bits with the same versions, machine and number of threads (on a CPU, the
    number of threads changes the rounding of PyTorch's products). So does a call with ``start`` if a pass of the whole
    collection began there: at a multiple of ``batch_size`` if all images are of one size.

    Args:
        adapter: of the pipeline whose transformer runs.
        data: images with captions.
        blocks: numbers, negative from the end, or "penultimate".
        options: which activations of each image to keep.
        timesteps: the grid to draw from, ``[T]``; default the pipeline's own.
        seed: of timesteps, tokens and noise.
        start, stop: the first sample, and the one to end before.
        dtype: of the activations; default the model's.
        max_sequence_length: tokens of a caption; default the pipeline's own.
        **changed: fields of ``options`` by name, in the place of those in ``options``.

    Yields, a pass at a time, block -> batch on the model's device, x in ``dtype`` (default the model's).
    Raises :class:`~tide.errors.TideError` for bad input and for activations that are not finite.
    """
    options = replace(options or CollectOptions(), **changed)
    grid = _grid(adapter, options.n_timesteps, timesteps, options.paired)
    indices = [adapter.resolve_block(block) for block in blocks]
    sample = start
    given = batches_of(adapter, data, options.batch_size)
    for items in _batches(_items_between(given, start, stop), options.batch_size):
        latents, text = _encoded(adapter, items, max_sequence_length)
        numbers = range(sample, sample + len(items))
        n_tokens = prod(adapter.token_grid(*latents.shape[2:]))
        repeats = 1 + options.paired  # rows of one image stand next to each other
        draws = [_Draw.of(seed, i, grid, n_tokens, options, latents.shape[1:]) for i in numbers]
        timestep = torch.cat([draw.timesteps for draw in draws])
        noise = torch.stack([draw.noise for draw in draws])
        noised = adapter.add_noise(latents.repeat_interleave(repeats, 0), noise.repeat_interleave(repeats, 0), timestep)
        text = {name: value.repeat_interleave(repeats, 0) for name, value in text.items()}
        kept = _Kept(torch.stack([draw.tokens for draw in draws]), repeats)
        taps = {index: partial(kept.keep, index) for index in indices}
        run = partial(adapter.denoise, noised, timestep, text)
        run_until(adapter, taps, run, options.target or options.tensor, inputs=options.target is not None)
        batches = {index: kept.batch(index, sample, dtype) for index in indices}
        for index, batch in batches.items():
            batch.check_finite(f"block {index}")
        yield batches
        sample += len(items)
    if sample == 0:
        raise TideError("the data hold no images; check the folder or the iterator")


class _Draw(NamedTuple):
    """The random draws of one sample: its one or two ``timesteps``, its ``tokens [n]``, its ``noise [c, h, w]``."""

    timesteps: Tensor
    tokens: Tensor
    noise: Tensor

    @classmethod
    def of(
        cls, seed: int, sample: int, grid: Tensor, n_tokens: int, options: CollectOptions, shape: Sequence[int]
    ) -> _Draw:
        generator = sample_generator(seed, sample)
        step = int(torch.randint(len(grid) - options.paired, (), generator=generator))
        tokens = draw_tokens(n_tokens, options.token_fraction, generator)
        return cls(grid[step : step + 1 + options.paired], tokens, torch.randn(shape, generator=generator))


@dataclass
class _Kept:
    """The chosen tokens of one pass, per block, and what a call also has as inputs. ``tokens [images, n]``; ``repeats``
    rows of the call an image."""

    tokens: Tensor
    repeats: int
    x: dict[int, Tensor] = field(default_factory=dict)
    inputs: dict[int, Tensor] = field(default_factory=dict)
    calls: dict[int, Call] = field(default_factory=dict)

    def keep(self, index: int, x: Tensor, call: Call) -> None:
        self.x[index] = self._chosen(x)
        if call.inputs is not None:
            self.inputs[index] = self._chosen(call.inputs)
        self.calls[index] = replace(call, inputs=None)

    def _chosen(self, x: Tensor) -> Tensor:
        tokens = self.tokens.to(x.device).repeat_interleave(self.repeats, 0)
        return x[torch.arange(len(x), device=x.device)[:, None], tokens]

    def _rows(self, x: Tensor, dtype: torch.dtype | None) -> Tensor:
        n_images, n = self.tokens.shape
        # [image, repeat, token] -> [image, token, repeat]: the rows of a pair become neighbours.
        rows = x.reshape(n_images, self.repeats, n, -1).transpose(1, 2).reshape(n_images * n * self.repeats, -1)
        return rows.to(dtype or x.dtype)

    def batch(self, index: int, first_sample: int, dtype: torch.dtype | None) -> ActivationBatch:
        """With inputs they are x, and what the module made of them is the target."""
        call, x, inputs = self.calls[index], self.x[index], self.inputs.get(index)
        n_images, n = self.tokens.shape
        group = torch.arange(n_images * self.repeats).reshape(n_images, 1, -1).expand(-1, n, -1)
        sample = torch.arange(first_sample, first_sample + n_images).repeat_interleave(n * self.repeats)
        return ActivationBatch(
            x=self._rows(x if inputs is None else inputs, dtype),
            timestep=call.timestep.clone(),
            group=group.reshape(-1).to(x.device, torch.int32),
            conditioning=call.conditioning,
            sample=sample.to(x.device),
            token=self.tokens.repeat_interleave(self.repeats).to(x.device, torch.int32),
            paired=self.repeats == 2,
            target=None if inputs is None else self._rows(x, dtype),
        )


def _check_run(rows: str, paired: bool, n_steps: int) -> None:
    if rows not in ("conditional", "both"):
        raise TideError(f"rows {rows!r} is unknown; use conditional or both")
    if paired and n_steps < 2:
        raise TideError("pairs of sampling steps need at least 2 steps; raise n_steps or set paired=False")


@torch.no_grad()
def collect_sampling(
    adapter: Adapter,
    prompts: Sequence[str],
    blocks: Sequence[Block],
    *,
    n_steps: int = 20,
    guidance_scale: float = GUIDANCE,
    token_fraction: float = 1 / 16,
    rows: Literal["conditional", "both"] = "conditional",
    paired: bool = False,
    batch_size: int = 4,
    seed: int = 0,
    start: int = 0,
    stop: int | None = None,
    tensor: str = "output",
    target: str | None = None,
    dtype: torch.dtype | None = None,
    **pipeline_arguments: Any,
) -> Iterator[dict[int, ActivationBatch]]:
    """Activations along the reverse process: runs the pipeline on ``prompts`` and keeps the same random
    ``token_fraction`` of a sample's tokens at every step.

    ``rows`` says whether the unconditional rows of guided calls are kept as well (their ``sample`` is -1 -
    i). ``paired`` pairs every step with the one that follows it, so that all but the first and the last occur
    twice. Without it, rows are ordered by step, then sample, then token. ``tensor`` and ``target`` are those of
    :class:`~tide.activations.CollectOptions`. ``pipeline_arguments`` (height, width, negative_prompt,
    max_sequence_length ...) go to the pipeline. A sample's noise and tokens depend on ``seed`` and its place in
    ``prompts`` alone; bits are equal under the same conditions as for :func:`collect`.

    Args:
        adapter: of the pipeline that draws.
        prompts: one an image.
        blocks: numbers, negative from the end, or "penultimate".
        n_steps: sampling steps.
        guidance_scale: of classifier-free guidance.
        token_fraction: share of each image's tokens, in (0, 1].
        rows: "conditional" or "both".
        paired: pairs each step with the next.
        batch_size: prompts of a run of the pipeline.
        seed: of noise and tokens.
        start, stop: the first prompt, and the one to end before.
        tensor, target: what of the blocks.
        dtype: of the activations; default the model's.
        **pipeline_arguments: for the pipeline.

    Yields block -> batch, a pipeline run of up to ``batch_size`` prompts at a time, on the model's device.
    """
    check_fraction(token_fraction)
    check_count("batch_size", batch_size)
    if target is not None:
        check_target(target, tensor)
    _check_run(rows, paired, n_steps)
    indices = [adapter.resolve_block(block) for block in blocks]
    prompts = prompts[:stop]
    for first in range(start, len(prompts), batch_size):
        chunk = prompts[first : first + batch_size]
        generators = [sample_generator(seed, first + i) for i in range(len(chunk))]
        trajectory = _Trajectory(first, token_fraction, rows == "conditional", seed)
        taps = {index: partial(trajectory.keep, index) for index in indices}
        with tap(adapter, taps, target or tensor, inputs=target is not None):
            adapter.generate(
                chunk,
                n_steps=n_steps,
                guidance_scale=guidance_scale,
                generators=generators,
                **pipeline_arguments,
            )
        batches = {index: trajectory.batch(index, paired, dtype) for index in indices}
        for index, batch in batches.items():
            batch.check_finite(f"block {index}")
        yield batches


class _Trajectory:
    """The chosen tokens of one run of the pipeline: per block a batch a step, ordered by sample and token."""

    def __init__(self, first: int, token_fraction: float, conditional: bool, seed: int) -> None:
        self.first = first
        self.token_fraction = token_fraction
        self.conditional = conditional
        self.seed = seed
        self.tokens: Tensor | None = None
        self.steps: dict[int, list[ActivationBatch]] = {}

    def keep(self, index: int, x: Tensor, call: Call) -> None:
        is_conditional = call.conditional
        n_samples = int(is_conditional.sum())
        if self.conditional and not n_samples:
            return  # a call for the negative prompt alone
        if self.tokens is None:
            # Separate generators: the pipeline draws the initial noise from the others.
            draw = [sample_generator(self.seed, self.first + i, 1) for i in range(max(n_samples, len(x) - n_samples))]
            self.tokens = torch.stack([draw_tokens(x.shape[1], self.token_fraction, each) for each in draw])
        # Conditional and unconditional rows each come in the order of the samples.
        sample = torch.empty(len(x), dtype=torch.int64)
        sample[is_conditional] = torch.arange(self.first, self.first + n_samples)
        sample[~is_conditional] = -1 - torch.arange(self.first, self.first + len(x) - n_samples)
        row = (is_conditional if self.conditional else torch.ones_like(is_conditional)).nonzero()[:, 0]
        sample = sample[row]
        token = self.tokens[torch.where(sample < 0, -1 - sample, sample) - self.first]
        n = token.shape[1]
        kept = row.to(x.device)
        places = kept[:, None], token.to(x.device)
        inputs = x if call.inputs is None else call.inputs
        batch = ActivationBatch(
            x=inputs[places].flatten(0, 1),
            timestep=call.timestep[kept],
            group=torch.arange(len(row), device=x.device, dtype=torch.int32).repeat_interleave(n),
            conditioning=None if call.conditioning is None else call.conditioning[kept],
            sample=sample.repeat_interleave(n).to(x.device),
            token=token.reshape(-1).to(x.device, torch.int32),
            target=None if call.inputs is None else x[places].flatten(0, 1),
        )
        steps = self.steps.setdefault(index, [])
        if steps and _of_one_step(steps[-1], batch):
            steps[-1] = ActivationBatch.cat([steps[-1], batch])
        else:
            steps.append(batch)

    def batch(self, index: int, paired: bool, dtype: torch.dtype | None) -> ActivationBatch:
        steps = self.steps.pop(index, None)
        if steps is None:
            raise TideError(f"block {index} met no row of the prompts in this run; give prompts that are not empty")
        whole = ActivationBatch.cat(steps)
        if paired:
            n = len(steps[0])
            if any(len(step) != n for step in steps):
                raise TideError("steps of this run hold different rows and cannot be paired; set paired=False")
            earlier = torch.arange((len(steps) - 1) * n)
            whole = whole.take(torch.stack([earlier, earlier + n], 1).reshape(-1))
            whole.paired = True
        return whole.to(dtype=dtype)


def _of_one_step(first: ActivationBatch, second: ActivationBatch) -> bool:
    """Whether two calls belong to one step: that of the prompts and that of the negative prompts, in models that run
    them separately."""
    same = torch.equal(first.timestep[:1], second.timestep[:1])
    return same and not bool(torch.isin(first.sample, second.sample).any())
