"""What every family's adapter promises, on the real pipeline of each, tiny and with random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers.families import FAMILIES, STEPS, adapter, draw, hooks_of, pipeline
from tests.helpers.families.parts_inputs import (
    each_family,
    latents_of,
    modulated,
    n_tokens,
    pictures_of,
    size_of,
    text_of,
)
from tide.activations import ActivationBatch, collect, collect_sampling
from tide.adapters import adapter_for, tap
from tide.adapters.standins import listened
from tide.editing import Edit, Erase, Scale, Steer, edit
from tide.editing.record import record_contrast, record_targets
from tide.errors import TideError
from tide.interpretation.trajectory import record_trajectory
from tide.sae import TIDE
from tide.training import ProgressiveK, TrainConfig, Trainer, build_model

#: The tests that all families go through by default.
QUICK = ("test_image_tokens_of_every_block", "test_modulation_equals_the_blocks_own_norm", "test_no_op_edits")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    each_family(metafunc, QUICK)


def n_rows(name: str) -> int:
    """Rows of a step of a guided run: of models that are distilled for guidance the prompts' alone."""
    return 2 if adapter(name).spec.guidance == "none" else 4


def calls_of(name: str, **kwargs) -> list[tuple[tuple, dict, torch.Tensor]]:
    """Arguments and prediction of every call that a run of the pipeline makes to its transformer."""
    calls: list[tuple[tuple, dict, torch.Tensor]] = []

    def keep(_module, args, kwargs, output):
        calls.append((args, kwargs, output[0] if isinstance(output, tuple) else output.sample))

    handle = pipeline(name).transformer.register_forward_hook(keep, with_kwargs=True)
    try:
        draw(name, **kwargs)
    finally:
        handle.remove()
    return calls


def run_of(name: str) -> torch.Tensor:
    """The timesteps of the last run, as TIDE counts them."""
    return adapter(name).from_scheduler(adapter(name).run_timesteps.float())


def tapped(name: str, block: int, **kwargs) -> list[tuple[torch.Tensor, Any]]:
    """The block's image tokens, and the call, at every call of a run."""
    seen: list[tuple[torch.Tensor, Any]] = []
    with tap(adapter(name), {block: lambda x, call: seen.append((x.clone(), call))}):
        draw(name, **kwargs)
    return seen


def make_sae(name: str, block: int) -> TIDE:
    """An SAE with the block's own modulation that fires on its activations; latent 5 never does."""
    own = adapter(name)
    modulated = bool(FAMILIES[name].norms)
    sae = build_model(own, block, TrainConfig(n_latents=96, k=12, modulation=modulated, modulation_init="adaln"))
    x, call = tapped(name, block)[1]
    sae.calibrate(x, call)
    with torch.no_grad():
        sae.b_enc[5] = -1e6
    return sae.eval()


def refuses(own: Any, tensor: str) -> bool:
    """Whether the blocks have no module of this name, which has to be said in one line."""
    if getattr(own.kind_of(0), tensor) is not None:
        return False
    with pytest.raises(TideError, match=f"has no {tensor} of its own; use output"):
        own.hook_module(0, tensor)
    return True


class Fails(Edit):
    def latents(self, z, place):
        raise RuntimeError("inside")


# -- what the adapter says of the model -----------------------------------------------------------------------------


def test_image_tokens_of_every_block(name):
    """All blocks, in the order in which they run, with the tokens of the grid."""
    own, ran = adapter(name), []
    taps = {block: lambda x, call, block=block: ran.append((block, x.shape)) for block in range(own.n_blocks)}
    with torch.no_grad(), tap(own, taps):
        own.denoise(latents_of(name), 500, text_of(name))
    assert ran == [(block, (2, n_tokens(name), own.d_model)) for block in range(own.n_blocks)]
    assert own.token_grid(*size_of(name)) == FAMILIES[name].grid


def test_a_call_says_the_rows_and_columns_of_its_tokens(name):
    grids: list[tuple[int, ...] | None] = []
    with torch.no_grad(), tap(adapter(name), {0: lambda x, call: grids.append(call.take(call.conditional).grid)}):
        adapter(name).denoise(latents_of(name), 500, text_of(name))
        draw(name, guided=True, n_steps=2)
    assert set(grids) == {FAMILIES[name].grid}


def test_what_enters_the_feed_forward_makes_its_output(name):
    """The module, run on the tokens that were read, gives the tokens that it gave."""
    own, seen, outputs, views = adapter(name), [], [], []
    if refuses(own, "feed_forward"):
        return
    module = own.hook_module(0, "feed_forward")
    hooks = [
        module.register_forward_hook(lambda _module, _args, output: outputs.append(output)),
        own.transformer.register_forward_pre_hook(
            lambda _module, args, kwargs: views.append(own.token_views([0], args, kwargs)[0]), with_kwargs=True
        ),
    ]
    with torch.no_grad(), tap(own, {0: lambda x, call: seen.append((x, call.inputs))}, "feed_forward", inputs=True):
        own.denoise(latents_of(name), 500, text_of(name))
    for hook in hooks:
        hook.remove()
    x, inputs = seen[0]
    assert inputs.shape == x.shape == (2, n_tokens(name), own.d_model)
    with torch.no_grad():
        if outputs[0].dim() == 3 and outputs[0].shape == inputs.shape:
            found = module(inputs.contiguous())
        else:  # a map, or a joint sequence
            again = module(views[0].with_image_tokens(outputs[0], inputs, "feed_forward"))
            found = views[0].image_tokens(again, "feed_forward")
    # The same products, in float32, without those of text tokens.
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tensor", ["attention", "feed_forward"])
def test_the_inputs_are_a_tensor_of_their_own(name, tensor):
    """Read by name they are what is read beside the output; they cannot be replaced."""
    own, rows = adapter(name), n_tokens(name)
    beside, alone = [], []
    if refuses(own, tensor):
        return
    with torch.no_grad(), tap(own, {0: lambda x, call: beside.append((call.inputs, x))}, tensor, inputs=True):
        own.denoise(latents_of(name), 500, text_of(name))
    inputs, outputs = beside[0]
    with torch.no_grad(), tap(own, {0: lambda x, call: alone.append(x)}, f"{tensor}_input"):
        own.denoise(latents_of(name), 500, text_of(name))
    assert alone[0].shape == outputs.shape == (2, rows, own.d_model)
    assert torch.equal(alone[0], inputs)
    assert alone[0].std() > 0.01
    with pytest.raises(TideError, match=f"^{tensor}_input is read and not replaced; replace one of output, attention"):
        with torch.no_grad(), tap(own, {0: lambda x, call: x}, f"{tensor}_input"):
            own.denoise(latents_of(name), 500, text_of(name))


def test_a_token_is_a_square_of_the_image(name):
    """Row-major: latents that are changed in one corner change the tokens of that corner most."""
    own, (*_, rows, columns) = adapter(name), (1, *FAMILIES[name].grid)  # a sound is one row
    changed = (latents := latents_of(name, 1)).clone()
    changed[(..., *(slice(-2, None),) * min(len(FAMILIES[name].grid), 2))] += 3.0
    text = {key: value[:1] for key, value in text_of(name).items()}
    seen = []
    with torch.no_grad(), tap(own, {0: lambda x, call: seen.append(x[0])}):
        own.denoise(latents, 500, text)
        own.denoise(changed, 500, text)
    # The corner of every frame of a clip is changed; the last frame stands for all.
    moved = (seen[1] - seen[0]).norm(dim=1).reshape(-1, rows, columns)[-1]
    side = 2 * columns // latents.shape[-1]  # of the changed square in tokens: two where tokens are single latents
    at = divmod(int(moved.argmax()), columns)
    assert at[0] >= rows - side
    assert at[1] >= columns - side
    assert moved[-2:, -2:].mean() > 2 * moved[: max(rows // 2, 1), : columns // 2].mean()


@pytest.mark.parametrize("chunk", ["msa", "mlp"])
def test_modulation_equals_the_blocks_own_norm(name, chunk):
    """What the attention (or the feed-forward) reads is the norm's output, scaled and shifted."""
    own, family = adapter(name), FAMILIES[name]
    if chunk not in family.norms:
        with pytest.raises(TideError, match=r"(is|are) not modulated"):
            own.modulation(0, chunk)
        return
    for index in range(own.n_blocks):
        found = modulated(own, name, index, chunk)
        scale, shift, modulation = found.scale, found.shift, own.modulation(index, chunk)
        torch.testing.assert_close(found.call.timestep, torch.tensor([900.0, 40.0]), rtol=1e-4, atol=1e-3)
        assert modulation.config.conditioned == (found.call.conditioning is not None)
        torch.testing.assert_close(found.read, found.expected, rtol=1e-4, atol=1e-4)
        assert (scale - scale.flip(0)).abs().max() + (shift - shift.flip(0)).abs().max() > 1e-3
        if index:
            following = own.modulation(index - 1, chunk, next_block=True)
            assert torch.equal(following.linear.weight, modulation.linear.weight)
    with pytest.raises(TideError, match="has no next block"):
        own.modulation(-1, chunk, next_block=True)


def test_denoise_is_the_pipelines_own_call(name):
    """From the same latents, what denoise returns is what the pipeline's own call returned."""
    own, text, size = adapter(name), text_of(name), size_of(name)
    calls = calls_of(name)
    if "guidance" in text:
        text["guidance"] = torch.full((2,), float(FAMILIES[name].unguided["guidance_scale"]))
    with torch.no_grad():
        for (args, kwargs, expected), t in zip(calls, run_of(name), strict=True):
            given = own.arguments(args, kwargs)
            beside = {argument: given[argument] for argument in own.spec.beside}
            found = own.denoise(own.latents_of(given, size), t, {**text, **beside})
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, own.prediction_of(expected, size), rtol=1e-4, atol=1e-5)


def test_timesteps_are_the_schedulers(name):
    """Whatever unit the transformer is given; and the schedule is known before the run."""
    seen = tapped(name, 0)
    schedule = run_of(name)
    found = torch.stack([call.timestep for _, call in seen])
    torch.testing.assert_close(found, schedule[:, None].expand(-1, 2), rtol=1e-5, atol=1e-3)
    if adapter(name).schedule_arguments(STEPS).get("mu") is None or size_of(name) == adapter(name).default_latents:
        torch.testing.assert_close(adapter(name).sampling_timesteps(STEPS).float(), schedule)


def test_noise_and_prediction_lead_back_to_each_other(name):
    """Eqs 3 and 4: the scheduler's last step from noisy latents along the true prediction is the image."""
    own, scheduler = adapter(name), pipeline(name).scheduler
    image, noise = latents_of(name), torch.randn(latents_of(name).shape, generator=torch.Generator().manual_seed(9))
    draw(name)
    t = run_of(name)[1]
    noisy = own.add_noise(image, noise, t)
    if own.flow_matching:
        prediction = noise - image
        sigmas = getattr(scheduler, "sigmas", None)
        share = float(t) / 1000 if sigmas is None else float(sigmas[1])
        if own.inverted and sigmas is not None:  # they count the share of the image
            share = 1 - share
        # Some schedulers round timesteps to whole numbers.
        rounding = {} if scheduler.timesteps.is_floating_point() else {"atol": 0.01, "rtol": 0}
        torch.testing.assert_close(noisy, (1 - share) * image + share * noise, **rounding)
    else:
        known = hasattr(scheduler, "alphas_cumprod")  # else the scheduler counts the noise of unscaled latents
        abar = scheduler.alphas_cumprod[round(float(t))] if known else 1 / (1 + scheduler.sigmas[1] ** 2)
        epsilon = scheduler.config.prediction_type == "epsilon"
        prediction = noise if epsilon else abar.sqrt() * noise - (1 - abar).sqrt() * image
        torch.testing.assert_close(noisy, abar.sqrt() * image + (1 - abar).sqrt() * noise)
    torch.testing.assert_close(own.predicted_noise(prediction, noisy, t), noise, rtol=1e-4, atol=1e-4)
    with pytest.raises(TideError, match="timestep 1001 does not exist"):
        own.add_noise(image, noise, 1001)


def test_latents_are_what_the_pipeline_decodes(name):
    """The VAE is given the same by decode_latents and by the pipeline, which draws the same picture once more."""
    own, family, given = adapter(name), FAMILIES[name], []
    with listened(own.pipe.vae, "decode", before=lambda z, *_, **__: given.append(z.clone())):
        latents = draw(name)
        n_own = len(given)  # DiT's pipeline decodes in every run
        pictures = own.decode_latents(latents)
        own_part = given[n_own:]
        if not n_own:
            options = {**family.pixels, **family.unguided, **family.arguments, "output_type": "pt"}
            generators = [torch.Generator().manual_seed(i) for i in range(2)]
            own.run_pipeline(family.prompts, STEPS, options.pop("guidance_scale", None), generators, **options)
    assert pictures.shape == pictures_of(name).shape
    pipelines_part = given[:n_own] or given[len(own_part) :]
    found, expected = torch.cat(own_part), torch.cat(pipelines_part)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_encode_images(name):
    """Decoding undoes the normalisation of encoding: the VAE is given back its own latents."""
    own, given, made = adapter(name), [], []
    with (
        listened(own.pipe.vae, "encode", after=made.append),
        listened(own.pipe.vae, "decode", before=lambda z, *_, **__: given.append(z)),
    ):
        latents = own.encode_images(pictures_of(name))
        own.decode_latents(latents)
    assert latents.shape == latents_of(name).shape
    assert latents.dtype == torch.float32
    raw = torch.cat([each.latent if hasattr(each, "latent") else each.latent_dist.mode() for each in made])
    torch.testing.assert_close(torch.cat(given).reshape(raw.shape), raw, rtol=1e-4, atol=1e-5)


# -- the rows of guidance -------------------------------------------------------------------------------------------


def test_conditional_rows_are_the_prompts(name):
    """At the first step of a guided run they hold what a run on the prompts alone holds, and the others do not."""
    block = adapter(name).n_blocks - 2
    # Where the scale is embedded, it is the same in both runs.
    both = {"guidance_scale", "true_cfg_scale"} <= FAMILIES[name].guided.keys() or n_rows(name) == 2
    guidance = {"guidance_scale": FAMILIES[name].guided["guidance_scale"]} if both else {}
    alone, guided = tapped(name, block, **guidance), tapped(name, block, guided=True)
    first = guided[: len(guided) // STEPS]
    assert len(first) == (2 if adapter(name).spec.guidance == "two calls" else 1)
    rows = torch.cat([x for x, _ in first])
    conditional = torch.cat([call.conditional for _, call in first])
    assert conditional.sum() == 2
    assert len(conditional) == n_rows(name)
    torch.testing.assert_close(rows[conditional], alone[0][0], rtol=1e-4, atol=1e-4)
    assert n_rows(name) == 2 or (rows[~conditional] - alone[0][0]).abs().max() > 1e-3
    assert all(call.conditional.all() for _, call in alone)


def test_an_edit_of_the_conditional_rows_leaves_the_others(name):
    """At the edited block, at the first step: later ones start from other latents."""
    block = adapter(name).n_blocks - 2
    change = Steer(torch.tensor([500.0]), torch.ones(1, adapter(name).d_model))
    before = tapped(name, block, guided=True)
    for branch in ("conditional", "unconditional", "both"):
        seen: list[tuple[torch.Tensor, Any]] = []
        with (
            edit(pipeline(name), None, change, block=block, branch=branch),
            tap(adapter(name), {block: lambda x, call, seen=seen: seen.append((x.clone(), call))}),
        ):
            draw(name, guided=True)
        for (old, call), (new, _) in list(zip(before, seen, strict=True))[: len(seen) // STEPS]:
            chosen = call.conditional if branch == "conditional" else ~call.conditional
            chosen = torch.ones_like(chosen) if branch == "both" else chosen
            assert torch.equal(new[~chosen], old[~chosen])
            torch.testing.assert_close(new[chosen], old[chosen] + 1)


# -- collect, train, edit -------------------------------------------------------------------------------------------


def test_collect_noised_images(name):
    """Algorithm 1 from images and captions: pairs of neighbouring timesteps, with the conditioning of each."""
    own, family = adapter(name), FAMILIES[name]
    data = [(pictures_of(name), list(family.prompts))]
    blocks = [0, own.n_blocks - 2]
    length = family.arguments.get("max_sequence_length")
    (batches,) = collect(own, data, blocks, token_fraction=0.5, max_sequence_length=length)
    grid = own.sampling_timesteps(20).tolist()
    for block, batch in batches.items():
        assert batch.x.shape == (2 * 2 * n_tokens(name) // 2, own.d_model)
        steps = batch.timestep.reshape(-1, 2).tolist()
        nearest = [[min(grid, key=lambda g, t=t: abs(g - t)) for t in pair] for pair in steps]
        torch.testing.assert_close(torch.tensor(steps), torch.tensor(nearest).float(), rtol=1e-4, atol=1e-2)
        assert all(grid.index(later) == grid.index(earlier) + 1 for earlier, later in nearest)
        if family.norms:
            with torch.no_grad():
                scale, _ = own.modulation(block)(batch.timestep, batch.conditioning)
            assert scale.shape == (4, own.d_model)


def test_collect_along_the_sampling_process(name):
    own, family = adapter(name), FAMILIES[name]
    block = own.n_blocks - 2
    arguments = {**family.pixels, **family.unguided, **family.arguments}
    guided = {**family.guided}
    if name == "dit":
        guided.pop("negative_prompt", None)
    elif "negative_prompt" in guided:
        guided["negative_prompt"] = [guided["negative_prompt"]] * 2

    def collected(**options) -> ActivationBatch:
        (batches,) = collect_sampling(
            own, family.prompts, [block], n_steps=STEPS, token_fraction=0.5, **{**arguments, **guided, **options}
        )
        return batches[block]

    conditional, both = collected(), collected(rows="both")
    n = n_tokens(name) // 2
    assert len(conditional) == STEPS * 2 * n
    assert len(both) == n_rows(name) // 2 * len(conditional)
    assert torch.equal(both.take(both.sample >= 0).x, conditional.x)
    pairs = collected(rows="both", paired=True)
    assert len(pairs) == 2 * (STEPS - 1) * n_rows(name) * n
    assert torch.equal(pairs.sample[::2], pairs.sample[1::2])
    assert torch.equal(pairs.token[::2], pairs.token[1::2])
    steps = pairs.timestep[pairs.group.long()].reshape(-1, 2)
    assert (steps[:, 0] > steps[:, 1]).all()


def test_train_and_load(name, tmp_path):
    own = adapter(name)
    block = own.n_blocks - 2
    config = TrainConfig(
        n_latents=64,
        k=8,
        steps=12,
        batch_tokens=32,
        log_every=1,
        progressive_k=ProgressiveK(shape="off"),
        modulation=bool(FAMILIES[name].norms),
    )
    data = [(latents_of(name), text_of(name))]
    batches = [batch[block] for batch in collect(own, data, [block], token_fraction=1.0)]
    sae = build_model(own, block, config)
    trainer = Trainer(sae, config, tmp_path, progress=False)
    trainer.fit(batches * config.steps)
    assert trainer.history[-1]["mse"] < trainer.history[0]["mse"]
    loaded = TIDE.from_pretrained(tmp_path, family=own.family, d_model=own.d_model, block=block)
    batch = batches[0]
    with torch.no_grad():
        found, expected = (model.eval()(batch.x.float(), batch.position) for model in (loaded, sae))
    torch.testing.assert_close(found, expected)


def test_no_op_edits(name):
    """Bit-identical, without guidance and with it."""
    pipe, block = pipeline(name), adapter(name).n_blocks - 2
    sae = make_sae(name, block)
    for guided in (False, True):
        plain = draw(name, guided=guided)
        for change in (Scale(range(96), 1.0), Erase([5])):
            with edit(pipe, sae, change, branch="both"):
                assert torch.equal(draw(name, guided=guided), plain)
        with edit(pipe, sae, Erase(range(96)), steps=(0.34, 0.6)):  # between two of three steps
            assert torch.equal(draw(name, guided=guided), plain)
        with edit(pipe, sae, Scale(range(96), 5.0)):
            assert not torch.equal(draw(name, guided=guided), plain)


def test_edits_reach_the_steps_asked_for(name):
    block, seen = adapter(name).n_blocks - 2, []

    class Watch(Edit):
        def latents(self, z, place):
            seen.append(place.timestep)
            return z

    with edit(pipeline(name), make_sae(name, block), Watch(), steps=(0.3, 0.6)):
        draw(name, guided=True)
    expected = float(run_of(name)[1])
    assert seen
    torch.testing.assert_close(torch.tensor(seen), torch.full((len(seen),), expected), rtol=1e-5, atol=1e-3)


def test_record_targets(name):
    """The conditional rows of every step, once a step."""
    own = adapter(name)
    block = own.n_blocks - 2
    found = record_targets(own, make_sae(name, block), lambda: draw(name, guided=True))
    assert found.raw.shape == (STEPS, 2, n_tokens(name), own.d_model)
    conditional = [x[call.conditional] for x, call in tapped(name, block, guided=True) if call.conditional.any()]
    torch.testing.assert_close(found.raw, torch.stack(conditional))


def test_record_contrast(name):
    """What a block holds under either prompt is encoded with the conditioning of that prompt."""
    own = adapter(name)
    block = own.n_blocks - 2
    sae, latents, length = (
        make_sae(name, block),
        latents_of(name, 2),
        FAMILIES[name].arguments.get("max_sequence_length"),
    )
    steps = own.sampling_timesteps(STEPS)[:2]
    first, second = FAMILIES[name].prompts
    pair = ([first, first], [second, second])
    found = record_contrast(own, [block], latents, pair, steps, max_sequence_length=length)[block]
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    for side, words in enumerate(pair):
        seen: list[torch.Tensor] = []

        def keep(x, call, seen=seen):
            seen.append(sae.encode(x.float(), call).dense(sae.n_latents))

        text = own.encode_prompts(words, length)
        with torch.no_grad(), tap(own, {block: keep}):
            for t in steps.tolist():
                own.denoise(own.add_noise(latents, noise, t), t, text)
        for image, targets in enumerate(found.targets(sae)):
            expected = torch.stack([z.view(2, -1, sae.n_latents)[image] for z in seen])
            # Kept as float16; another batch rounds differently, and a latent may change places with the k-th.
            apart = (targets[side].values.float() - expected).norm() / expected.norm()
            assert apart < 0.02


def test_record_trajectory(name):
    """Conditional rows alone, and the image that each step predicts: the last one is what the run ends on."""
    own = adapter(name)
    block = own.n_blocks - 2
    found = record_trajectory(own, make_sae(name, block), lambda: draw(name, guided=True))
    conditional = [x[call.conditional] for x, call in tapped(name, block, guided=True) if call.conditional.any()]
    torch.testing.assert_close(found.raw, torch.stack(conditional).half())
    assert found.clean.shape == (STEPS, *found.final.shape)
    # HunyuanDiT's DDPM ends on timestep 1, where it still adds noise of a standard deviation near 0.01.
    torch.testing.assert_close(found.clean[-1], found.final, rtol=1e-2, atol=0.06 if name == "hunyuan" else 1e-2)
    assert "step" not in vars(own.pipe.scheduler)


def test_nothing_is_left_behind_when_the_pipeline_raises(name):
    pipe, block = pipeline(name), adapter(name).n_blocks - 2
    plain = draw(name)
    with pytest.raises(RuntimeError, match="inside"), edit(pipe, make_sae(name, block), Fails()):
        draw(name, guided=True)
    assert hooks_of(pipe) == 0
    assert not {"encode_prompt"} & vars(pipe).keys()
    assert "decode" not in vars(pipe.vae)
    assert torch.equal(draw(name), plain)


@pytest.mark.parametrize("tensor", ["attention", "feed_forward"])
def test_other_tensors_of_a_block(name, tensor):
    """Read at the width of the block, and put back where they were."""
    own, seen = adapter(name), []
    if refuses(own, tensor):
        return
    text, latents = text_of(name), latents_of(name)
    with torch.no_grad():
        expected = own.denoise(latents, 500, text)
        with tap(own, {0: lambda x, call: seen.append(x) or x.clone()}, tensor):
            assert torch.equal(own.denoise(latents, 500, text), expected)
        with tap(own, {0: lambda x, call: 3 * x + 1}, tensor):  # some blocks norm it, which undoes a mere factor
            assert not torch.allclose(own.denoise(latents, 500, text), expected, atol=1e-5)
    assert seen[0].shape == (2, n_tokens(name), own.d_model)


def test_missing_parts(name):
    own = adapter_for(pipeline(name))
    bare = type("Bare", (), {"transformer": own.transformer, "vae": None, "text_encoder": None, "tokenizer": None})()
    with pytest.raises(TideError, match="no VAE"):
        type(own)(bare).encode_images(torch.zeros(1, 3, 32, 32))
    if name != "dit":
        with pytest.raises(TideError, match="no text encoder"):
            type(own)(bare).encode_prompts(["a tree"])
