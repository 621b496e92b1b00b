"""A probe of real transformers whose adapters are taken away: it proposes what TIDE's own say, field by field."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from tests.helpers.families import FAMILIES, adapter, pipeline, prepared
from tests.helpers.unknown import unknown
from tide.adapters import adapter_for
from tide.adapters.registry import provisional
from tide.errors import TideError
from tide.probing import Probe, probe, text_of, tried, write
from tide.probing.checks import CHECKS

NAMES = ("pixart", "sd3", "flux")
#: Fields of a spec that decide what is read and drawn. ``width`` may be spelled otherwise; models, notes and what is
#: refused are for people; rounding of timesteps shows in half precision alone.
FIELDS = (
    "transformer",
    "blocks",
    "guidance",
    "negative",
    "flow_matching",
    "sign",
    "latents_argument",
    "timestep_argument",
    "timestep_unit",
    "packed",
    "grid",
    "size",
    "scales_channels",
    "vae_has_frames",
    "steps_both_branches",
    "guidance_scale",
    "sigmas",
    "draws",
    "result",
    "call_defaults",
)
#: Fields that the tiny pipelines say nothing of: pixart's VAE has no shift, sd3's schedule is not shifted.
OPEN = {"pixart": ("shifts_latents", "max_shift"), "sd3": ("max_shift",), "flux": ()}


@cache
def probed(name: str) -> Probe:
    with unknown(name):
        return probe(pipeline(name))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("field", [*FIELDS, "shifts_latents", "max_shift"])
def test_a_field_is_that_of_tides_own_spec(name, field):
    if field in OPEN[name]:
        pytest.skip("the tiny pipeline does not show it")
    assert getattr(probed(name).spec, field) == getattr(adapter(name).spec, field)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "field", ["outputs", "arguments", "as_called", "length", "count", "guidance", "guidance_factor", "mask_of_all"]
)
def test_the_text_is_that_of_tides_own_spec(name, field):
    assert getattr(probed(name).spec.text, field) == getattr(adapter(name).spec.text, field)


@pytest.mark.parametrize("name", NAMES)
def test_the_embedding_is_that_of_tides_own_spec(name):
    found, own = probed(name).spec.embedding, adapter(name).spec.embedding
    for field in ("path", "part", "sinusoid", "embedder", "layers", "added", "factor", "of_block", "activation"):
        assert getattr(found, field) == getattr(own, field), field
    assert found.conditioned == adapter(name).is_conditioned  # which may be an attribute's name in TIDE's own


@pytest.mark.parametrize("name", NAMES)
def test_the_adapter_of_its_file_has_the_same_modulations(name):
    own, pipe = adapter(name), pipeline(name)
    with unknown(name), provisional():
        exec(text_of(probed(name)), {"__name__": "probed"})
        found: Any = adapter_for(pipe)
        assert type(found) is not type(own)
        assert (found.d_model, found.n_blocks, found.family) == (own.d_model, own.n_blocks, name)
        for block in range(own.n_blocks):
            for chunk in ("msa", "mlp"):
                ours, theirs = (each.modulation(block, chunk) for each in (own, found))
                assert ours.config == theirs.config
                for key, value in ours.state_dict().items():
                    assert torch.equal(value, theirs.state_dict()[key]), key


#: Further families that a probe finds by itself; those of :data:`NAMES` are compared field by field.
WHOLE = ("auraflow", "chroma", "cogview3plus", "hunyuan_video", "lumina2", "qwen_image", "sana", "wan")
#: What it says is missing of a family whose file passes all checks none the less.
MISSING = {"cogview4": ["the sigmas that the pipeline passes to its scheduler; override schedule_arguments"]}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*WHOLE, *MISSING])
def test_the_files_of_further_families_pass_all_checks(name):
    pipe = pipeline(name)
    with unknown(name):
        found = probe(pipe)
        results = list(tried(found, pipe))
    assert [(each.name, each.said) for each in results if not each.passed] == []
    assert len(results) == len(CHECKS)
    assert found.missing == MISSING.get(name, [])


@pytest.mark.parametrize("name", NAMES)
def test_its_file_passes_all_checks(name):
    pipe = pipeline(name)
    with unknown(name):
        results = list(tried(probed(name), pipe))
        with pytest.raises(TideError, match="has no adapter"):  # it was registered meanwhile only
            adapter_for(pipe)
    assert [(each.name, each.said) for each in results if not each.passed] == []
    assert not probed(name).missing


def test_in_half_precision():
    """Where all that is compared is rounded coarsely, and the model rounds the timestep that it is given."""
    with torch.random.fork_rng(), unknown("flux"):
        torch.manual_seed(0)
        pipe = prepared(FAMILIES["flux"].build()).to(torch.bfloat16)
        found = probe(pipe)
        results = list(tried(found, pipe))
    own = adapter("flux").spec
    assert found.spec.blocks == own.blocks
    assert found.spec.embedding == own.embedding
    assert found.spec.rounds_timestep
    assert not found.missing
    assert [(each.name, each.said) for each in results if not each.passed] == []


def test_nothing_is_left_behind():
    probed("sd3")
    pipe = pipeline("sd3")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in pipe.transformer.modules())
    assert not {"encode_prompt", "step", "decode"} & {*vars(pipe), *vars(pipe.scheduler), *vars(pipe.vae)}


def test_a_family_that_is_there_keeps_its_name():
    assert probe(pipeline("sd3")).spec.family == "sd3_2"


def test_a_file_that_exists_is_left_alone(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("# mine\n")
    with pytest.raises(TideError, match=r"mine.py exists; give another name, or remove it$"):
        write(probed("sd3"), file)
    with pytest.raises(TideError, match="is not the name of a module"):
        write(probed("sd3"), tmp_path / "no-module.py")
    assert file.read_text() == "# mine\n"


def test_what_has_no_transformer_or_no_prompt_is_one_line():
    with pytest.raises(TideError, match=r"^Linear has no diffusion transformer"):
        probe(torch.nn.Linear(1, 1))
    with pytest.raises(TideError, match=r"^DiTPipeline takes no prompt, so it cannot be probed"):
        probe(pipeline("dit"))
