"""What is read from the tables of effects, and their file."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tide.editing import Target, save_target
from tide.errors import TideError
from tide.interpretation.effect import Effects, load_effects, save_effects
from tide.sae import TIDE, TIDEConfig

ATTRIBUTION = torch.tensor([[0.4, -0.9, 0.0, 0.1], [0.2, 0.1, 0.0, -0.1]])
INTEGRATED = torch.tensor([[-1.0, 0.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
ACTIVATION = torch.tensor([[0.1, 0.0, 3.0, 2.0], [0.1, 0.0, 3.0, 4.0]])


def effects(**more) -> Effects:
    return Effects(torch.tensor([800.0, 100.0]), ATTRIBUTION, ACTIVATION, **more)


@pytest.fixture
def sae() -> TIDE:
    return TIDE(TIDEConfig(6, 4, 2, block=1))


def test_the_strongest():
    found = effects(integrated=INTEGRATED)
    assert found.strongest(2) == [0]  # latent 3's effects cancel, and latent 1 has the other sign
    assert found.strongest(2, away=True) == [1]
    assert found.strongest(1, 300.0) == [0]
    assert found.strongest(4, 300.0) == [0, 1]
    assert found.strongest(4, 500.0) == [0, 3]
    assert found.strongest(4, 300.0, away=True) == [3]
    assert found.strongest(4, by="integrated") == [3]
    assert found.strongest(4, by="integrated", away=True) == [0]
    assert found.strongest(4, by="activation") == [2, 3, 0]


def test_the_largest_have_either_sign():
    assert effects().largest(2) == [1, 0]
    assert effects().largest(4) == [1, 0, 3]
    assert effects().largest(0) == []


def test_what_cannot_be_ranked():
    for wrong, message in (
        (lambda e: e.strongest(0), "k = 0 must be at least 1"),
        (lambda e: e.strongest(1, by="integrated"), "no effects by 'integrated'; use attribution or activation, or"),
        (lambda e: e.strongest(1, by="size"), "there are no effects by 'size'"),
        (lambda e: e.strongest(1, by="activation", away=True), "activation has no direction; leave away off"),
        (lambda e: e.correlation(), "no latent was ablated, so there is nothing to compare with; record with ablate="),
    ):
        with pytest.raises(TideError, match=message):
            wrong(effects())


def test_the_correlation():
    found = effects(integrated=INTEGRATED).with_ablation([3, 0], torch.tensor([[0.1, 0.4], [-0.1, 0.2]]))
    assert found.correlation() == pytest.approx(1.0)
    assert found.correlation("integrated") < 0
    assert found.ablated.tolist() == [3, 0]


# -- the file -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [False, True])
def test_effects_come_back(sae, tmp_path, more):
    saved = effects(integrated=INTEGRATED).with_ablation([3, 0], torch.ones(2, 2)) if more else effects()
    save_effects(tmp_path / "e.safetensors", saved, sae)
    found = load_effects(tmp_path / "e.safetensors", sae)
    for name, value in vars(saved).items():
        other = getattr(found, name)
        assert (value is None and other is None) or (torch.equal(value, other) and value.dtype == other.dtype)


def test_of_another_sae(sae, tmp_path):
    save_effects(tmp_path / "e", effects(), sae)
    with pytest.raises(TideError, match=r"was recorded with another SAE \(weights .*\); record the effects again"):
        load_effects(tmp_path / "e", TIDE(TIDEConfig(6, 4, 2, block=1), seed=3))
    with pytest.raises(TideError, match=r"was recorded with another SAE \(block 1, now 2\)"):
        load_effects(tmp_path / "e", TIDE(TIDEConfig(6, 4, 2, block=2)))


def test_files_that_hold_something_else(sae, tmp_path):
    path = tmp_path / "e"
    with pytest.raises(TideError, match="e does not exist; the file of effects is incomplete"):
        load_effects(path, sae)
    path.write_text("no tensors")
    with pytest.raises(TideError, match="is not a readable safetensors file"):
        load_effects(path, sae)
    save_target(path, Target(torch.zeros(1), torch.zeros(1, 4)), sae)
    with pytest.raises(TideError, match="e holds no effects; make some with `tide effect`"):
        load_effects(path, sae)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attribution": None}, "e lacks attribution; record the effects again"),
        ({"attribution": torch.full((2, 4), torch.nan)}, "attribution holds NaN or inf; record the effects again"),
        ({"activation": torch.zeros(2, 5)}, r"activation has shape \[2, 5\], not \[2, 4\]"),
        ({"timesteps": torch.zeros(2, 1)}, r"timesteps has shape \[2, 1\]"),
        ({"timesteps": torch.zeros(0), "attribution": torch.zeros(0, 4), "activation": torch.zeros(0, 4),
          "integrated": torch.zeros(0, 4), "ablation": torch.zeros(0, 2)}, "holds no effects of 4 latents"),
        ({"ablated": torch.tensor([1, 4])}, "holds no effects of 4 latents; record the effects again"),
        ({"ablated": torch.tensor([1])}, r"ablation has shape \[2, 2\], not \[2, 1\]"),
        ({"ablation": None}, "e lacks ablation"),
        ({"ablated": None}, "e holds ablation, which nothing asks for"),
        ({"more": torch.zeros(1)}, "e holds more, which nothing asks for; record the effects again"),
    ],
)  # fmt: skip
def test_damaged_files(sae, tmp_path, change, message):
    path = tmp_path / "e"
    save_effects(path, effects(integrated=INTEGRATED).with_ablation([3, 0], torch.ones(2, 2)), sae)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = {name: value for name, value in {**load_file(path), **change}.items() if value is not None}
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(TideError, match=message):
        load_effects(path, sae)
