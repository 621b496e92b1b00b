"""What is said of every family's pipeline: blocks, tokens, shapes of one pass, modulation, and what a call gets."""

from __future__ import annotations

from math import prod

import pytest

from tests.helpers.families import CORE, FAMILIES, adapter, hooks_of, pipeline
from tide.adapters.base import TENSORS
from tide.probing import describe
from tide.probing.listing import HEADER, rows


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in CORE else [pytest.mark.slow]) for name in FAMILIES]
)
def test_a_pipeline_is_described(name):
    own = adapter(name)
    found = dict(describe(own))
    assert found["family"].startswith(own.family)
    assert found["width"] == str(own.d_model)
    assert f" = {prod(own.token_grid(*own.default_latents))} at the pipeline's own size" in found["image tokens"]
    numbers = [what for what in found if what.startswith("blocks ")]
    assert numbers[0].split()[1] == "0"
    assert numbers[-1].split()[-1] == str(own.n_blocks - 1)
    if "shapes" not in found:
        shapes = [found[f"  {tensor} of 0"] for tensor in TENSORS]
        assert shapes[0].startswith("[2, ")
        assert all(f", {own.d_model}]" in each or each == "none to hook" for each in shapes)
    assert {"modulation msa of 0", "modulation mlp of 0", "timestep", "text", "guidance", "schedule"} <= found.keys()
    assert all("\n" not in said for said in found.values())
    assert hooks_of(pipeline(name)) == 0


def test_numbers_and_units():
    flux, lumina = (dict(describe(adapter(name))) for name in ("flux", "lumina2"))
    assert flux["blocks 2 to 3"] == "single_transformer_blocks, 2 of FluxSingleTransformerBlock"
    assert flux["  attention of 2"] == "none to hook"
    assert flux["modulation mlp of 0"] == (
        "scale and shift (chunks 4, 3 of norm1.linear), conditioned on more than the timestep"
    )
    assert flux["timestep"] == "timestep = t / 1000 for the scheduler's t"
    assert lumina["timestep"] == "timestep = 1 - t / 1000 for the scheduler's t"
    assert lumina["prediction"] == "velocity, its sign turned"


def test_the_list_has_every_family():
    found = rows()
    assert [each["family"] for each in found] == sorted(adapter(name).family for name in FAMILIES)
    assert all(tuple(each) == HEADER for each in found)
