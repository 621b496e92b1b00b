"""Several blocks evaluated together: the figures of each alone, from fewer passes, and their average."""

from __future__ import annotations

import math
import weakref

import pytest
import torch

from tide.activations import collect
from tide.data import open_source
from tide.errors import TideError
from tide.evaluation import blocks_sentence, blocks_text, evaluate, evaluate_blocks, table
from tide.evaluation.table import average, trained_on
from tide.images.trained import TrainedOn
from tide.sae import TIDE, TIDEConfig

OPTIONS = {"token_fraction": 0.25, "loss_timesteps": 2, "loss_images": 3, "batch_size": 4, "seed": 3}
BLOCKS = (1, 6)


@pytest.fixture(scope="module")
def models(adapter) -> dict[int, TIDE]:
    return {block: TIDE(TIDEConfig(adapter.d_model, 256, 16, block=block), seed=block) for block in BLOCKS}


def source(adapter):
    return open_source("scenes", adapter, images=8, batch_size=4)


@pytest.fixture(scope="module")
def found(adapter, models) -> dict:
    return evaluate_blocks(adapter, models, source(adapter), **OPTIONS)


def test_every_block_as_alone(adapter, models, found):
    """Bit for bit: the passes are the same, and end later."""
    assert list(found["blocks"]) == ["1", "6"]
    for block, model in models.items():
        assert found["blocks"][str(block)] == evaluate(adapter, model, source(adapter), **OPTIONS)


def test_passes_are_shared(adapter, models):
    """Two passes a side where activations are collected, one a timestep for the clean loss; of each block its own
    interventions (tide, three PCAs, zero)."""

    def calls(of: dict[int, TIDE]) -> int:
        seen = []
        handle = adapter.transformer.register_forward_pre_hook(lambda *_: seen.append(1))
        evaluate_blocks(adapter, of, source(adapter), **OPTIONS)
        handle.remove()
        return len(seen)

    one, two = calls({6: models[6]}), calls(models)
    assert one == 2 + 2 + 2 * 5
    assert two == one + 2 * 5


def test_the_activations_of_one_pass_are_held_at_a_time(adapter, models, monkeypatch):
    seen: list[weakref.ref] = []
    held: list[int] = []

    def collected(*arguments, **options):
        for batches in collect(*arguments, **options):
            held.append(sum(each() is not None for each in seen))
            seen.extend(map(weakref.ref, batches.values()))
            yield batches

    monkeypatch.setattr(table, "collect", collected)
    monkeypatch.setattr(table, "clean_losses", lambda *_, **__: None)
    monkeypatch.setattr(table, "compare_losses", lambda *_, **__: {})
    evaluate_blocks(adapter, models, source(adapter), **{**OPTIONS, "batch_size": 1})
    assert len(held) == 8
    assert max(held) == len(models)  # of the pass before, as the next one ends


def test_the_average_is_over_the_blocks(found):
    first, second = (found["blocks"][block]["models"]["tide"]["cosine"] for block in ("1", "6"))
    cosine = found["average"]["models"]["tide"]["cosine"]
    assert cosine["mean"] == pytest.approx((first + second) / 2)
    assert cosine["spread"] == pytest.approx(abs(first - second) / math.sqrt(2))
    assert cosine["blocks"] == 2
    assert "kind" not in found["average"]["sae"]


def test_what_is_not_known_in_a_block_is_left_out_of_its_average():
    rows = [{"a": 1.0, "b": None, "c": {"d": None}}, {"a": 3, "b": 2.0, "c": {"d": 4.0}}]
    assert average(rows)["a"]["mean"] == 2
    assert average(rows)["b"] == {"mean": 2.0, "spread": 0.0, "blocks": 1}
    assert average(rows)["c"]["d"]["blocks"] == 1
    assert average([rows[0]])["b"] is None


def test_as_text(found):
    read, table, *_ = blocks_text(found).split("\n\n")
    assert read.startswith("8 images of scenes: 4 to fit PCA and mean, 4 measured")
    assert [line.split("  ")[0] for line in table.splitlines()[1:]] == ["block 1", "block 6", "mean"]
    assert "the autoencoders of 2 blocks explain" in blocks_sentence(found)


def test_images_that_trained_any_of_the_models(models):
    first, second = (TrainedOn(("d",), frozenset({digit * 16})) for digit in "12")
    one, two = (TIDE(TIDEConfig(192, 64, 8, block=block)) for block in BLOCKS)
    one.trained_on, two.trained_on = first, second
    both = trained_on([one, two])
    assert both is not None
    assert both.images == {"1" * 16, "2" * 16}
    two.trained_on = None
    assert trained_on([one, two]) is None


def test_models_that_do_not_fit(adapter, models):
    with pytest.raises(TideError, match=r"^there are no autoencoders to measure; give at least one$"):
        evaluate_blocks(adapter, {}, source(adapter))
    with pytest.raises(TideError, match=r"^the autoencoder given for block 3 is of block 6; give each for its own bl"):
        evaluate_blocks(adapter, {3: models[6]}, source(adapter))
    other = TIDE(TIDEConfig(192, 64, 8, block=2, tensor="attention"))
    with pytest.raises(TideError, match=r"of different tensors \(attention, output\); give those of one$"):
        evaluate_blocks(adapter, {2: other, 6: models[6]}, source(adapter))
    with pytest.raises(TideError, match="does not exist"):
        evaluate_blocks(adapter, {9: TIDE(TIDEConfig(192, 64, 8, block=9))}, source(adapter))


def test_a_clean_loss_that_is_shared(adapter):
    """Given, it is not measured again; the other figures are the same."""
    from tide.activations import prepare
    from tide.evaluation import diffusion_loss, zero_ablation
    from tide.evaluation.diffusion_loss import clean_losses

    data = list(prepare(adapter, source(adapter), batch_size=4, max_sequence_length=24))
    at = torch.tensor([900, 100])
    alone = diffusion_loss(adapter, data, 6, {"zero": zero_ablation}, timesteps=at)
    clean = clean_losses(adapter, data, timesteps=at)
    assert diffusion_loss(adapter, data, 6, {"zero": zero_ablation}, timesteps=at, clean=clean) == alone
