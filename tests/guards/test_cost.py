"""What guards cost beside the transformer."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

from tests.helpers.edit_samples import BLOCK, make_sae
from tide.adapters import Adapter, adapter_for
from tide.editing import Detector, Place, Steer, Where
from tide.guards import Guard, MadeFor, Words
from tide.guards.cost import cost_of, guard_cost, multiply_adds
from tide.sae import TIDE, TIDEConfig
from tide.sae.modulation import ModulationConfig

XL, LATENTS, CAPTION, RANK = 1152, 18432, 4096, 32


@pytest.fixture(scope="module")
def xl() -> Adapter:
    """PixArt Sigma at 1024 pixels, without values."""
    with torch.device("meta"):
        transformer = PixArtTransformer2DModel(
            num_attention_heads=16,
            attention_head_dim=XL // 16,
            num_layers=28,
            cross_attention_dim=XL,
            sample_size=128,
            caption_channels=CAPTION,
            use_additional_conditions=False,
        )
    return adapter_for(PixArtSigmaPipeline(None, None, None, transformer, DDIMScheduler()))


def xl_guard(activation: str, *, moves: bool = False) -> Guard:
    """A guard that reads 32 latents of the paper's SAE; its values are on the meta device, too."""
    with torch.device("meta"):
        modulation = ModulationConfig(XL, XL)  # as the block's own
        model = TIDE(TIDEConfig(XL, LATENTS, 64, modulation=modulation, activation=activation, block=14)).eval()
    ones = torch.ones(1, 32)
    when = Detector(model, torch.arange(32), torch.zeros(1), ones, torch.zeros(1))
    return Guard(
        "house",
        "tree",
        when,
        MadeFor("pixart", 14, "output", XL, ""),
        words=Words(torch.empty(CAPTION, RANK), torch.empty(RANK, CAPTION)),
        where=Where((when,)) if moves else None,
        what=Steer(torch.zeros(1), torch.zeros(1, XL)) if moves else None,
    )


def caption(tokens: int) -> dict[str, torch.Tensor]:
    states = torch.empty(1, tokens, CAPTION, device="meta")
    return {"encoder_hidden_states": states, "encoder_attention_mask": states[..., 0].bool()}


@pytest.mark.parametrize("tokens", [120, 300])
@pytest.mark.parametrize("moves", [False, True])
def test_of_a_large_model_a_guard_takes_a_twentieth_of_a_step_at_most(xl, tokens, moves):
    cost = guard_cost(xl, xl_guard("jumprelu", moves=moves), (1024, 1024), text=caption(tokens))
    print(f"\n{tokens} tokens of text, tokens moved: {moves}; {cost}")
    assert 0 < cost.share < 0.05
    assert cost.words == 2 * tokens * CAPTION * RANK
    assert (cost.moved > 0) is moves


def test_topk_encodes_all_latents_of_which_a_guard_reads_few(xl):
    text = caption(300)
    few, every = (guard_cost(xl, xl_guard(name), (1024, 1024), text=text) for name in ("jumprelu", "topk"))
    print(f"\n{every} with TopK")
    assert few.detectors == 4096 * XL * 32
    assert every.detectors == 4096 * XL * LATENTS
    assert few.transformer == every.transformer


def test_detectors_and_modulation_are_what_a_counter_of_operations_sees(alpha):
    guard = small_guard(alpha)
    x, at = torch.randn(64, 192), torch.arange(64)
    counted = multiply_adds(lambda: guard.when.scores(x, Place(0.0, token=at, image=0 * at)))
    cost = guard_cost(adapter_for(alpha), guard, (64, 64))
    assert cost.detectors == 64 * 192 * 3
    assert counted == cost.detectors + cost.modulation - 64 * 192  # the counter sees products of matrices alone


def test_a_call_takes_as_much_on_the_meta_device_as_where_it_is_computed(alpha):
    adapter, guard = adapter_for(alpha), small_guard(alpha)
    text = adapter.encode_prompts([""], 20)
    with torch.device("meta"):
        bare = PixArtTransformer2DModel.from_config(alpha.transformer.config)
    without = adapter_for(type(alpha)(None, None, None, bare, alpha.scheduler))
    on_meta = {name: value.to("meta") for name, value in text.items()}
    size = (8 * adapter.default_latents[0],) * 2  # without a VAE, a latent is taken for 8 x 8 pixels
    assert guard_cost(adapter, guard, text=text) == guard_cost(without, guard, size, text=on_meta)


def test_each_part_of_the_cost_is_counted_once():
    numbers = {"modulation": 7, "text": 11, "d_text": 13, "rank": 2, "moves": True, "transformer": 10_000}
    cost = cost_of(5, 3, latents=[4, 1], **numbers)
    assert (cost.detectors, cost.modulation, cost.words, cost.moved) == (75, 2 * (7 + 15), 572, 15)
    assert cost.share == (75 + 44 + 572 + 15) / 10_000
    assert cost_of(5, 3, latents=[4], **{**numbers, "modulation": 0}).modulation == 0


def small_guard(pipe) -> Guard:
    """Reads three latents of the tiny pipeline's block."""
    when = Detector.of_features(make_sae(pipe, BLOCK, activation="jumprelu"), [3, 20, 41])
    words = Words(torch.zeros(128, 2), torch.zeros(2, 128))
    return Guard("a", "b", when, MadeFor("pixart", BLOCK, "output", 192, ""), words=words)
