"""Algorithm 1 and collection along the sampling process, against plain hooks and plain runs."""

from __future__ import annotations

import resource
import time

import pytest
import torch
from diffusers import PixArtAlphaPipeline, PixArtTransformer2DModel
from torch import Tensor

from tide.activations.batch import ActivationBatch
from tide.activations.collect import collect, collect_sampling, prepare
from tide.adapters import adapter_for, tap
from tide.errors import TideError

CAPTIONS = ["a red cube", "a tree, far", "a white house on sand", "a sphere", "a blue cone"]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def prepared(alpha, images):
    return list(prepare(adapter_for(alpha), [(images, CAPTIONS)], batch_size=3, max_sequence_length=20))


def all_rows(batches, block: int) -> ActivationBatch:
    return ActivationBatch.cat([batch[block] for batch in batches])


def timesteps(batch: ActivationBatch) -> Tensor:
    return batch.timestep[batch.group.long()]


@pytest.mark.parametrize("tensor", ["output", "attention", "feed_forward"])
def test_rows_are_what_a_plain_hook_sees(alpha, prepared, tensor):
    """Each row is the activation of its token, sample and timestep in a full pass with a plain forward
    hook."""
    adapter = adapter_for(alpha)
    plain = []
    module = adapter.hook_module(2, tensor)
    handle = module.register_forward_hook(lambda _m, _a, output: plain.append(output))
    batches = list(collect(adapter, prepared, [2], batch_size=3, token_fraction=0.25, seed=1, tensor=tensor))
    handle.remove()
    assert [len(batch[2]) for batch in batches] == [3 * 2 * 16, 2 * 2 * 16]
    for batch, full in zip((batch[2] for batch in batches), plain, strict=True):
        first = int(batch.sample.min())
        which = 2 * (batch.sample - first) + torch.arange(len(batch)) % 2
        assert torch.equal(batch.group, which.int())
        assert torch.equal(batch.x, full[which, batch.token.long()])


TRANSCODER = {"tensor": "feed_forward_input", "target": "feed_forward"}


def test_a_transcoders_rows_are_pairs_of_input_and_output(alpha, prepared):
    """Of the same tokens as an autoencoder's, which sees one side of them."""
    adapter = adapter_for(alpha)
    options = {"batch_size": 3, "token_fraction": 0.25, "seed": 1}
    pairs = all_rows(collect(adapter, prepared, [2], **options, **TRANSCODER), 2)
    outputs = all_rows(collect(adapter, prepared, [2], **options, tensor="feed_forward"), 2)
    assert torch.equal(pairs.target, outputs.x)
    assert torch.equal(pairs.token, outputs.token)
    with torch.no_grad():
        torch.testing.assert_close(adapter.blocks[2].ff(pairs.x), pairs.target, rtol=1e-4, atol=1e-5)


def test_a_transcoders_rows_of_a_sampling_run(alpha):
    adapter = adapter_for(alpha)
    pairs = all_rows(collect_sampling(adapter, CAPTIONS[:2], [2], n_steps=3, paired=True, **TRANSCODER), 2)
    assert pairs.paired
    with torch.no_grad():
        torch.testing.assert_close(adapter.blocks[2].ff(pairs.x), pairs.target, rtol=1e-4, atol=1e-5)
    with pytest.raises(TideError, match="a transcoder of feed_forward reads feed_forward_input, not output"):
        list(collect_sampling(adapter, CAPTIONS[:2], [2], target="feed_forward"))


def test_the_noise_is_eq_3_on_the_schedule(alpha, prepared):
    """Repeats a collection by hand: the model run in full on latents noised at the collected timesteps."""
    adapter = adapter_for(alpha)
    noised = []
    handle = alpha.transformer.register_forward_pre_hook(
        lambda _m, args, kwargs: noised.append((args[0], kwargs["timestep"])), with_kwargs=True
    )
    batches = list(collect(adapter, prepared, [0], batch_size=5))
    handle.remove()
    ((hidden, steps),) = noised
    clean = torch.cat([p.latents for p in prepared]).repeat_interleave(2, 0)
    abar = alpha.scheduler.alphas_cumprod[steps].reshape(-1, 1, 1, 1)
    noise = (hidden - abar.sqrt() * clean) / (1 - abar).sqrt()
    torch.testing.assert_close(noise[::2], noise[1::2], rtol=1e-3, atol=1e-3)  # the same noise in a pair
    assert abs(float(noise.mean())) < 0.1
    assert 0.9 < float(noise.std()) < 1.1
    assert not torch.allclose(noise[0], noise[2])
    assert batches[0][0].timestep.tolist() == steps.tolist()


def test_pairs_are_the_same_token_at_neighbouring_timesteps(alpha, prepared):
    adapter = adapter_for(alpha)
    grid = adapter.sampling_timesteps(20).tolist()
    batch = all_rows([b for seed in range(6) for b in collect(adapter, prepared, [0], seed=seed)], 0)
    assert batch.paired
    assert torch.equal(batch.sample[::2], batch.sample[1::2])
    assert torch.equal(batch.token[::2], batch.token[1::2])
    steps = timesteps(batch).reshape(-1, 2).tolist()
    assert all(grid.index(later) == grid.index(earlier) + 1 for earlier, later in steps)
    assert len({earlier for earlier, _ in steps}) > 5


def test_unpaired_and_given_timesteps(alpha, prepared):
    adapter = adapter_for(alpha)
    batch = all_rows(collect(adapter, prepared, [0], paired=False, timesteps=[700]), 0)
    assert not batch.paired
    assert batch.timestep.tolist() == [700.0] * 5
    assert len(batch) == 5 * 4
    pairs = all_rows(collect(adapter, prepared, [0], timesteps=torch.tensor([10, 700])), 0)
    assert timesteps(pairs).reshape(-1, 2).unique(dim=0).tolist() == [[700.0, 10.0]]


@pytest.mark.parametrize(("fraction", "n"), [(1 / 16, 4), (0.25, 16), (1.0, 64), (1e-6, 1)])
def test_token_fraction(alpha, prepared, fraction, n):
    batch = all_rows(collect(adapter_for(alpha), prepared, [0], token_fraction=fraction, paired=False), 0)
    for sample in range(5):
        tokens = batch.token[batch.sample == sample]
        assert len(tokens) == len(tokens.unique()) == n
        assert tokens.min() >= 0
        assert tokens.max() < 64


def test_tokens_differ_between_samples(alpha, prepared):
    batch = all_rows(collect(adapter_for(alpha), prepared, [0]), 0)
    assert len({tuple(batch.token[batch.sample == i].tolist()) for i in range(5)}) == 5


def test_seed_decides_and_batch_size_does_not(alpha, prepared):
    adapter = adapter_for(alpha)
    one, five = (all_rows(collect(adapter, prepared, [3], batch_size=size, seed=4), 3) for size in (1, 5))
    for name in ("token", "sample", "timestep", "group"):
        assert torch.equal(getattr(one, name), getattr(five, name)), name
    torch.testing.assert_close(one.x, five.x, rtol=1e-4, atol=1e-4)
    again = all_rows(collect(adapter, prepared, [3], batch_size=5, seed=4), 3)
    assert torch.equal(again.x, five.x)
    other = all_rows(collect(adapter, prepared, [3], batch_size=5, seed=5), 3)
    assert not torch.equal(other.token, five.token)


def test_start_goes_on_where_a_collection_stopped(alpha, prepared):
    adapter = adapter_for(alpha)
    whole = all_rows(collect(adapter, prepared, [3], batch_size=1), 3)
    rest = all_rows(collect(adapter, prepared, [3], batch_size=1, start=2), 3)
    assert torch.equal(rest.x, whole.x[whole.sample >= 2])
    assert torch.equal(rest.sample, whole.sample[whole.sample >= 2])
    assert list(collect(adapter, prepared, [3], start=5)) == []


@pytest.mark.parametrize(("start", "stop"), [(0, 2), (2, 4), (2, 5), (4, 5), (0, 9), (3, 3)])
def test_passes_cut_where_the_whole_collection_cut_them_have_its_bits(alpha, prepared, start, stop):
    adapter = adapter_for(alpha)
    whole = all_rows(collect(adapter, prepared, [3], batch_size=2), 3)
    part = list(collect(adapter, prepared, [3], batch_size=2, start=start, stop=stop))
    wanted = whole.take((whole.sample >= start) & (whole.sample < stop))
    assert (len(part) == 0) == (start == stop)
    if part:
        assert torch.equal(all_rows(part, 3).x, wanted.x)
        assert torch.equal(all_rows(part, 3).sample, wanted.sample)


def test_sampling_stops_before_a_sample(alpha):
    arguments = {"n_steps": 2, "batch_size": 1}
    adapter = adapter_for(alpha)
    whole = all_rows(collect_sampling(adapter, CAPTIONS[:3], [4], **arguments), 4)
    part = all_rows(collect_sampling(adapter, CAPTIONS[:3], [4], start=1, stop=2, **arguments), 4)
    assert torch.equal(part.x, whole.x[whole.sample == 1])


def test_forms_of_data_agree(alpha, images, prepared):
    """Images with captions, latents with captions, latents with embeddings: the same activations."""
    adapter = adapter_for(alpha)
    latents = torch.cat([p.latents for p in prepared])
    forms = [
        all_rows(collect(adapter, data, [5], max_sequence_length=20), 5)
        for data in (
            [(images, CAPTIONS)],
            [(latents[:2], CAPTIONS[:2]), (latents[2:], CAPTIONS[2:])],
            prepared,
        )
    ]
    for form in forms[1:]:
        torch.testing.assert_close(form.x, forms[0].x, rtol=1e-4, atol=1e-4)


def test_images_of_several_sizes(alpha, prepared):
    small = (
        prepared[0].latents[:1, :, :8, :8],
        {name: value[:1] for name, value in prepared[0].text.items()},
    )
    batches = list(collect(adapter_for(alpha), [*prepared[:1], small], [0], token_fraction=1.0, paired=False))
    assert [len(batch[0]) for batch in batches] == [3 * 64, 16]


def test_several_blocks_in_one_pass_and_none_after_the_last(alpha, prepared):
    adapter = adapter_for(alpha)
    ran = []
    handles = [
        block.register_forward_pre_hook(lambda _m, _a, i=i: ran.append(i)) for i, block in enumerate(adapter.blocks)
    ]
    (batches,) = collect(adapter, prepared, [1, -4], batch_size=5)
    for handle in handles:
        handle.remove()
    assert list(batches) == [1, 4]
    assert ran == [0, 1, 2, 3, 4]
    assert torch.equal(batches[1].token, batches[4].token)
    (alone,) = collect(adapter, prepared, [4], batch_size=5)
    assert torch.equal(alone[4].x, batches[4].x)


def test_conditioning_comes_from_the_models_own_call(alpha_with_sizes, prepared):
    adapter = adapter_for(alpha_with_sizes)
    (batches,) = collect(adapter, prepared, [1], batch_size=5)
    batch = batches[1]
    assert batch.conditioning.shape == (10, 48)
    assert len(batch.timestep) == 10
    scale, shift = adapter.modulation(1)(batch.timestep, batch.conditioning)
    assert scale.shape == shift.shape == (10, 48)


def test_dtype(alpha, prepared):
    (batches,) = collect(adapter_for(alpha), prepared, [0], batch_size=5, dtype=torch.bfloat16)
    assert batches[0].x.dtype == torch.bfloat16


def test_activations_that_are_not_finite(alpha, prepared):
    adapter = adapter_for(alpha)
    with (
        pytest.raises(TideError, match=r"activations of block 6 hold NaN at timestep 951; use a wider dtype"),
        tap(adapter, {3: lambda x, call: torch.full_like(x, float("nan"))}),
    ):
        list(collect(adapter, prepared, ["penultimate"], timesteps=[951], paired=False))


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"token_fraction": 0}, r"token_fraction 0 is not in \(0, 1\]"),
        ({"token_fraction": 1.5}, "token_fraction 1.5"),
        ({"batch_size": 0}, "batch_size 0 is too small"),
        ({"timesteps": [5]}, "1 timesteps are too few to draw 2 from"),
        ({"n_timesteps": 0}, "n_timesteps 0 is too small; give at least 1"),
        ({"timesteps": [5, 1000]}, "timestep 1000 does not exist"),
        ({"tensor": "residual"}, "tensor 'residual' is unknown"),
        ({"tensor": "feed_forward_input"}, "tensor 'feed_forward_input' is unknown; use one of output, attention, fee"),
        ({"target": "output"}, "target 'output' is unknown; use one of attention, feed_forward"),
        ({"target": "attention"}, "a transcoder of attention reads attention_input, not output; set tensor to that"),
        ({"blocks": [12]}, "block 12 does not exist"),
        ({"data": []}, "the data hold no images"),
        ({"data": [(torch.zeros(1, 5, 8, 8), ["a"])]}, "data have 5 channels; images have 3, latents 4"),
    ],
)
def test_bad_input(alpha, prepared, kwargs, match):
    arguments = {"data": prepared, "blocks": [0], **kwargs}
    with pytest.raises(TideError, match=match):
        list(collect(adapter_for(alpha), **arguments))


# -- along the sampling process ---------------------------------------------------------------------------


def test_sampling_rows_are_the_pipelines_conditional_rows(alpha):
    adapter = adapter_for(alpha)
    plain = []
    handle = adapter.blocks[4].register_forward_hook(lambda _m, _a, output: plain.append(output))
    (batches,) = collect_sampling(adapter, CAPTIONS[:2], [4], n_steps=4, negative_prompt="snow", token_fraction=0.25)
    handle.remove()
    batch = batches[4]
    assert len(batch) == 4 * 2 * 16
    assert timesteps(batch).reshape(4, -1).unique(dim=1).squeeze().tolist() == alpha.scheduler.timesteps.tolist()
    for step, full in enumerate(plain):
        rows = batch.take(slice(step * 32, (step + 1) * 32))
        assert torch.equal(rows.x, full[2 + rows.sample, rows.token.long()])
    tokens = batch.token.reshape(4, 32)
    assert (tokens == tokens[0]).all()


def test_sampling_conditional_rows_are_those_of_an_unguided_run_at_the_first_step(alpha):
    adapter = adapter_for(alpha)
    arguments = {"n_steps": 2, "seed": 3}
    guided, alone = (
        all_rows(collect_sampling(adapter, CAPTIONS[:1], [4], guidance_scale=scale, **arguments), 4)
        for scale in (4.5, 1.0)
    )
    n = len(guided) // 2
    torch.testing.assert_close(guided.x[:n], alone.x[:n], rtol=1e-5, atol=1e-5)
    assert torch.equal(guided.token, alone.token)


def test_sampling_both_rows(alpha):
    batch = all_rows(collect_sampling(adapter_for(alpha), CAPTIONS[:2], [4], n_steps=2, rows="both"), 4)
    assert batch.sample.unique().tolist() == [-2, -1, 0, 1]
    unconditional, conditional = batch.take(batch.sample < 0), batch.take(batch.sample >= 0)
    assert torch.equal(unconditional.token, conditional.token)
    assert not torch.equal(unconditional.x, conditional.x)


def test_sampling_pairs_are_consecutive_steps(alpha):
    adapter = adapter_for(alpha)
    single, pairs = (
        all_rows(collect_sampling(adapter, CAPTIONS[:2], [4], n_steps=4, paired=paired), 4) for paired in (False, True)
    )
    assert pairs.paired
    assert len(pairs) == 2 * 3 * len(single) // 4
    n = len(single) // 4
    assert torch.equal(pairs.x[::2], single.x[: 3 * n])
    assert torch.equal(pairs.x[1::2], single.x[n:])
    assert torch.equal(pairs.sample[::2], pairs.sample[1::2])
    assert torch.equal(pairs.token[::2], pairs.token[1::2])


def test_sampling_does_not_depend_on_the_batch(alpha):
    adapter = adapter_for(alpha)
    one, three = (
        all_rows(collect_sampling(adapter, CAPTIONS[:3], [2], n_steps=2, batch_size=size), 2) for size in (1, 3)
    )
    order = torch.argsort(one.sample, stable=True), torch.argsort(three.sample, stable=True)
    one, three = one.take(order[0]), three.take(order[1])
    assert torch.equal(one.token, three.token)
    torch.testing.assert_close(one.x, three.x, rtol=1e-3, atol=1e-3)
    rest = all_rows(collect_sampling(adapter, CAPTIONS[:3], [2], n_steps=2, start=2), 2)
    torch.testing.assert_close(rest.x, one.x[one.sample == 2], rtol=1e-3, atol=1e-3)


def test_sampling_bad_input(alpha):
    adapter = adapter_for(alpha)
    for kwargs, match in [
        ({"rows": "all"}, "rows 'all' is unknown"),
        ({"n_steps": 1, "paired": True}, "at least 2 steps"),
    ]:
        with pytest.raises(TideError, match=match):
            list(collect_sampling(adapter, CAPTIONS, [2], **kwargs))


@pytest.mark.slow
def test_pixart_xl_sized_block(alpha):
    """Width 1152, 4096 tokens, bf16: one block of PixArt-XL-2-1024-MS."""
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(num_layers=1, caption_channels=128, sample_size=128).to(torch.bfloat16)
    pipe = PixArtAlphaPipeline(**{**alpha.components, "transformer": transformer})
    adapter = adapter_for(pipe)
    assert adapter.token_grid(128, 128) == (64, 64)
    text = adapter.encode_prompts(["a red cube"])
    data = [(torch.randn(1, 4, 128, 128), text)]
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (batches,) = collect(adapter, data, [0])
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    batch = batches[0]
    assert batch.x.shape == (2 * 256, 1152)
    assert batch.x.dtype == torch.bfloat16
    assert batch.conditioning.shape == (2, 1152)
    assert time.perf_counter() - started < 120
    assert grown < 4, f"peak memory grew by {grown:.1f} GiB"
