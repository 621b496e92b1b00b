"""Caches and other hooks of diffusers: refused where a block would hand out something else than it computes."""

from __future__ import annotations

import copy
import inspect
import pkgutil
from importlib import import_module
from typing import Any

import diffusers.hooks
import pytest
import torch
from diffusers import hooks as diffusers_hooks
from diffusers.hooks import HookRegistry, ModelHook, context_parallel

from tests.helpers.families import FAMILIES, draw, hooks_of, pipeline
from tide.activations import collect, collect_sampling
from tide.adapters import adapter_for, tap
from tide.adapters.skips import HARMLESS, SKIPPING, check_nothing_skips
from tide.editing import Steer, edit
from tide.errors import TideError
from tide.interpretation.trajectory import record_trajectory
from tide.training import TrainConfig, build_model

BLOCK = 1
STEER = Steer(torch.tensor([1.0]), torch.zeros(1, 32))


def copied(name: str = "flux") -> Any:
    shared = pipeline(name)
    pipe = type(shared)(**{**shared.components, "transformer": copy.deepcopy(shared.transformer)})
    if name == "flux":
        pipe.default_sample_size = shared.default_sample_size
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pyramid() -> Any:
    return diffusers_hooks.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
    )


def faster() -> Any:
    return diffusers_hooks.FasterCacheConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500, is_guidance_distilled=True
    )


CACHES = {
    "First Block Cache": lambda: diffusers_hooks.FirstBlockCacheConfig(threshold=0.2),
    "FasterCache": faster,
    "Pyramid Attention Broadcast": pyramid,
    "TaylorSeer": lambda: diffusers_hooks.TaylorSeerCacheConfig(cache_interval=2),
    "MagCache": lambda: diffusers_hooks.MagCacheConfig(num_inference_steps=3, mag_ratios=[1.0, 1.0, 1.0]),
}
LAYERS = diffusers_hooks.LayerSkipConfig(indices=[0], fqn="transformer_blocks")


@pytest.mark.parametrize("name", CACHES)
def test_every_cache_is_refused_by_name_with_the_remedy_that_helps(name):
    pipe = copied()
    pipe.transformer.enable_cache(CACHES[name]())
    message = rf"the transformer runs with {name}, .* call pipe\.transformer\.disable_cache\(\) first$"
    with pytest.raises(TideError, match=message), edit(pipe, None, STEER, block=BLOCK):
        raise AssertionError("entered")
    pipe.transformer.disable_cache()
    with edit(pipe, None, STEER, block=BLOCK) as met:
        assert torch.equal(draw("flux", pipe=pipe), draw("flux"))
    assert met.rows == 3 * 2


def uses(pipe: Any) -> dict[str, Any]:
    own, family = adapter_for(pipe), FAMILIES["flux"]
    data = [(torch.zeros(2, 4, 4, 2), list(family.prompts))]
    return {
        "tap": lambda: tap(own, {0: lambda x, call: None}).__enter__(),
        "edit": lambda: edit(pipe, None, STEER, block=BLOCK).__enter__(),
        "collect": lambda: next(collect(own, data, [0], max_sequence_length=20)),
        "sampling": lambda: next(collect_sampling(own, family.prompts, [0], n_steps=2)),
        "trajectory": lambda: record_trajectory(
            own, build_model(own, 0, TrainConfig(n_latents=32, k=4)), lambda: draw("flux", pipe=pipe)
        ),
    }


@pytest.mark.parametrize("use", uses(pipeline("flux")))
def test_whatever_hooks_blocks_refuses(use):
    """Also where the cache's own hooks were put in place without enable_cache, whose remedy is another."""
    pipe = copied()
    diffusers_hooks.apply_first_block_cache(pipe.transformer, CACHES["First Block Cache"]())
    with pytest.raises(TideError, match="First Block Cache") as error:
        uses(pipe)[use]()
    assert "disable_cache" not in str(error.value)
    assert "\n" not in str(error.value)
    for name in ("fbc_leader_block_hook", "fbc_block_hook"):
        assert name in str(error.value)
        HookRegistry.check_if_exists_or_initialize(pipe.transformer).remove_hook(name)
    check_nothing_skips(pipe.transformer)
    assert hooks_of(pipe) == 0


def test_a_cache_enabled_inside_the_context_is_refused_at_the_next_call():
    pipe = copied()

    def enable_and_draw() -> None:
        with edit(pipe, None, STEER, block=BLOCK):
            pipe.transformer.enable_cache(CACHES["First Block Cache"]())
            draw("flux", pipe=pipe)

    with pytest.raises(TideError, match="First Block Cache"):
        enable_and_draw()
    assert hooks_of(pipe) == 0


def test_skipped_layers_are_refused():
    pipe = copied()
    diffusers_hooks.apply_layer_skip(pipe.transformer, LAYERS)
    with pytest.raises(TideError, match="a skip of layers"):
        check_nothing_skips(pipe.transformer)


@pytest.mark.parametrize("kind", ["context", "tensor"])
def test_a_transformer_that_processes_share_is_refused(kind):
    """As ``enable_parallelism`` and ``from_pretrained(parallel_config=)`` leave it, which take several GPUs."""
    parallel = pytest.importorskip("diffusers.models._modeling_parallel", reason="an older diffusers has neither")
    if kind == "context":
        pipe = copied()
        config = parallel.ContextParallelConfig(ring_degree=2)
        context_parallel.apply_context_parallel(pipe.transformer, config, pipe.transformer._cp_plan)
        pipe.transformer._parallel_config = parallel.ParallelConfig(context_parallel_config=config)
    elif hasattr(parallel, "TensorParallelConfig"):
        pipe = copied()
        config = parallel.TensorParallelConfig(tp_degree=2)
        pipe.transformer._parallel_config = parallel.ParallelConfig(tensor_parallel_config=config)
    else:
        pytest.skip("diffusers has tensor parallelism since 0.42")
    message = (
        f"^the transformer runs with {kind} parallelism, so this process has a part of each block; load it without "
        "parallel_config and enable_parallelism, and start a process with a whole one on each GPU$"
    )
    with pytest.raises(TideError, match=message), edit(pipe, None, STEER, block=BLOCK):
        raise AssertionError("entered")


def test_hooks_that_move_or_cast_weights_are_not():
    pipe = copied()
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float16, compute_dtype=torch.float32)
    pipe.transformer.enable_group_offload("cpu", torch.device("cpu"), "leaf_level")
    assert any(hasattr(module, "_diffusers_hook") for module in pipe.transformer.modules())
    check_nothing_skips(pipe.transformer)


def test_every_module_of_hooks_that_diffusers_has_is_decided():
    decided = {*SKIPPING, *HARMLESS}
    assert not set(SKIPPING) & set(HARMLESS)
    for found in pkgutil.iter_modules(diffusers.hooks.__path__):
        module = import_module(f"diffusers.hooks.{found.name}")
        own = [cls for _, cls in inspect.getmembers(module, inspect.isclass) if cls.__module__ == module.__name__]
        if any(issubclass(cls, ModelHook) and cls is not ModelHook for cls in own):
            assert found.name in decided, found.name


class Harmless(ModelHook):
    def post_forward(self, module, output):
        return output


class Replaces(ModelHook):
    def new_forward(self, module, *args, **kwargs):
        return self.fn_ref.original_forward(*args, **kwargs)


class Remembers(ModelHook):
    _is_stateful = True

    def reset_state(self, module):
        return module


class AnotherFirstBlockCache(diffusers_hooks.first_block_cache.FBCBlockHook):
    def __init__(self):
        super().__init__(None, False)


@pytest.mark.parametrize(
    ("hook", "refused"),
    [
        (Harmless, None),
        (Replaces, "the hook Replaces"),
        (Remembers, "the hook Remembers"),
        (AnotherFirstBlockCache, "First Block Cache"),
    ],
)
def test_hooks_of_ones_own(hook, refused):
    """Unknown ones are refused if they replace the forward or keep a state; of known ones, subclasses too."""
    pipe = copied()
    HookRegistry.check_if_exists_or_initialize(pipe.transformer.transformer_blocks[1]).register_hook(Replaces(), "a")
    HookRegistry.check_if_exists_or_initialize(pipe.transformer.transformer_blocks[1]).remove_hook("a")
    HookRegistry.check_if_exists_or_initialize(pipe.transformer.transformer_blocks[1]).register_hook(hook(), "mine")
    if refused is None:
        check_nothing_skips(pipe.transformer)
        return
    with pytest.raises(TideError, match=f"runs with {refused}, .*'mine'"):
        check_nothing_skips(pipe.transformer)


def test_blocks_skipped_without_a_hook_are_noticed():
    """As by a forward of one's own that reuses the last step's residual."""
    pipe, calls = copied(), []
    forward = type(pipe.transformer).forward

    def now_and_then(*args, **kwargs):
        calls.append(forward(pipe.transformer, *args, **kwargs) if not calls else calls[0])
        return calls[0]

    pipe.transformer.forward = now_and_then
    with (
        pytest.raises(TideError, match="block 1 did not run in a call of the transformer"),
        edit(pipe, None, STEER, block=BLOCK),
    ):
        draw("flux", pipe=pipe)
    assert len(calls) == 2
    assert hooks_of(pipe) == 0
