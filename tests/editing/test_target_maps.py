"""Maps of latents as targets: averaged, compared token by token, kept on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tide.editing import Target, differing_tokens, most_different_tokens
from tide.editing.target_file import load_target, save_target
from tide.errors import TideError
from tide.sae import TIDE, TIDEConfig

STEPS = torch.tensor([900.0, 300.0])
MAP = Target(STEPS, torch.rand(2, 6, 4, generator=torch.Generator().manual_seed(0)))


def model(**changes) -> TIDE:
    torch.manual_seed(0)
    return TIDE(TIDEConfig(**{"d_model": 8, "n_latents": 4, "k": 2, "family": "pixart", "block": 6, **changes}))


def test_pooled():
    pooled = MAP.pooled()
    assert torch.equal(pooled.values, MAP.values.mean(1))
    assert pooled.pooled() is pooled
    assert Target(STEPS, MAP.values.half()).pooled().values.dtype == torch.float32


@pytest.fixture
def changed() -> Target:
    """Three tokens of the map, changed."""
    other = MAP.values.clone()
    other[0, 4, 2] += 3.0
    other[:, 1] += 2.0
    other[1, 0, 0] += 0.5
    return Target(STEPS, other)


def test_the_tokens_that_differ_most(changed):
    """Summed over the timesteps: token 4 differs most at one of them, token 1 over both."""
    for n, expected in ((1, [1]), (2, [1, 4]), (3, [0, 1, 4]), (6, [0, 1, 2, 3, 4, 5])):
        assert most_different_tokens(MAP, changed, n).nonzero().flatten().tolist() == expected
    assert most_different_tokens(MAP, MAP, 2).nonzero().flatten().tolist() == [0, 1]


def test_tokens_that_differ_by_a_share_of_the_most(changed):
    """Token 1 is 2 * 8^(1/2) = 5.7 away, token 4 3.0 and token 0 0.5."""
    for share, expected in ((1.0, [1]), (0.54, [1]), (0.52, [1, 4]), (0.08, [0, 1, 4]), (0.0, [0, 1, 2, 3, 4, 5])):
        assert differing_tokens(MAP, changed, share).nonzero().flatten().tolist() == expected
    assert not differing_tokens(MAP, MAP, 0.0).any()


def test_tokens_of_maps_that_do_not_fit():
    with pytest.raises(TideError, match=r"share = 1\.5 must lie between 0 and 1"):
        differing_tokens(MAP, MAP, 1.5)
    with pytest.raises(TideError, match="do not differ token by token; give two maps"):
        differing_tokens(MAP, MAP.pooled(), 0.5)
    with pytest.raises(TideError, match=r"7 tokens asked for; the image has 1\.\.6"):
        most_different_tokens(MAP, MAP, 7)
    with pytest.raises(TideError, match="do not differ token by token; give two maps"):
        most_different_tokens(MAP, MAP.pooled(), 1)


@pytest.mark.parametrize("kind", [str, Path])
def test_round_trip(tmp_path, kind):
    path = kind(tmp_path / "target.safetensors")
    save_target(path, MAP, model())
    found = load_target(path, model())
    assert torch.equal(found.timesteps, MAP.timesteps)
    assert torch.equal(found.values, MAP.values)
    assert [p.name for p in tmp_path.iterdir()] == ["target.safetensors"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": 3}, r"\(block 6, now 3\)"),
        ({"n_latents": 5}, r"\(n_latents 4, now 5\)"),
        ({"family": "flux"}, r'\(family "pixart", now "flux"\)'),
        ({"d_model": 16}, r"\(d_model 8, now 16\)"),
    ],
)
def test_a_target_of_another_sae(tmp_path, changes, message):
    save_target(tmp_path / "target", MAP, model())
    with pytest.raises(TideError, match=f"was recorded with another SAE {message}; record it with this SAE"):
        load_target(tmp_path / "target", model(**changes))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"values": torch.full((2, 6, 4), torch.nan)}, "values holds NaN or inf"),
        ({"values": torch.zeros(2, 6, 5)}, "holds no latents of 4 an entry"),
        ({"values": torch.zeros(2, 0, 4)}, "holds no latents of 4 an entry"),
        ({"values": torch.zeros(3, 4)}, r"timesteps has shape \[2\], not \[3\]"),
        ({"values": torch.zeros(2, 4, dtype=torch.int64)}, "values is int64, not float32"),
        ({"timesteps": torch.tensor([900.0, torch.inf])}, "timesteps holds NaN or inf"),
        ({"more": torch.zeros(1)}, "holds more, which nothing asks for"),
    ],
)
def test_a_damaged_target(tmp_path, tensors, message):
    save_target(tmp_path / "target", MAP, model())
    with safe_open(tmp_path / "target", "pt") as file:
        metadata = file.metadata()
    save_file({"timesteps": MAP.timesteps, "values": MAP.values} | tensors, tmp_path / "target", metadata)
    with pytest.raises(TideError, match=f"{message}.*; record the target again"):
        load_target(tmp_path / "target", model())


@pytest.mark.parametrize("description", ["{", "[]", "3", "[" * 10**5])
def test_a_target_whose_description_is_damaged(tmp_path, description):
    tensors = {"timesteps": MAP.timesteps, "values": MAP.values}
    save_file(tensors, tmp_path / "target", {"tide_target": description})
    with pytest.raises(TideError, match="target's description"):
        load_target(tmp_path / "target", model())


def test_half_precision_stays(tmp_path):
    save_target(tmp_path / "target", Target(STEPS, MAP.values.half()), model())
    assert load_target(tmp_path / "target", model()).values.dtype == torch.float16


def test_a_target_of_other_weights(tmp_path):
    """Latents of another dictionary of the same shape mean something else."""
    other = model()
    with torch.no_grad():
        other.W_dec[1, 2] += 1e-3
    save_target(tmp_path / "target", MAP, model())
    with pytest.raises(TideError, match=r'was recorded with another SAE \(weights "\w{16}", now "\w{16}"\)'):
        load_target(tmp_path / "target", other)
