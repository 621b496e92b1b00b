"""Access to a transformer's weights inside wrappers, offloaded, quantised, or changed by adapters (LoRA)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tide.adapters.quantised import dequantised, is_plain, measured
from tide.errors import TideError

#: The dtypes that pipelines compute in.
COMPUTE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
#: The name of diffusers' hook for a group that it offloads.
_GROUP_HOOK = "group_offloading"


def unwrapped(model: Any) -> Any:
    """The model itself, inside ``torch.compile``, DistributedDataParallel and peft's ``PeftModel``, in any order.

    Whatever calls the wrapper calls this model too, so hooks on it see every call. Raises
    :class:`~tide.errors.TideError` for wrappers that split weights or rows (FSDP, DataParallel).
    """
    while isinstance(model, nn.Module):
        inner = _inside(model)
        if inner is None:
            return model
        model = inner
    return model


def _inside(model: nn.Module) -> nn.Module | None:
    if isinstance(inner := model._modules.get("_orig_mod"), nn.Module):
        return inner
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return model.module
    if type(model).__name__ in ("FullyShardedDataParallel", "DataParallel"):
        raise TideError(
            f"a model in {type(model).__name__} has its weights or rows split; give the pipeline the plain one"
        )
    # A PeftModel injects its layers into the diffusion transformer, which remains the model that runs.
    base_model: Any = getattr(model, "get_base_model", None)
    return None if base_model is None or not hasattr(model, "peft_config") else base_model()


@contextmanager
def present(model: nn.Module, *wanted: nn.Module) -> Iterator[None]:
    """While open, the weights of the ``wanted`` submodules of ``model`` can be read, wherever they are kept.

    Brings in what diffusers offloads by groups (block and leaf level, to memory and to disk) and what accelerate
    keeps on the meta device (sequential offloading, to memory and to disk), and puts all back afterwards. Models that
    are offloaded as a whole need nothing: their weights are on the CPU.
    """
    hooked = _hooked(model)
    if not hooked:  # the usual case, at every call of the transformer
        yield
        return
    with ExitStack() as stack:
        for group in _groups_of(hooked, wanted):
            stack.enter_context(_onloaded(group))
        for module, hook in _away(hooked, wanted):
            hook.pre_forward(module)
            stack.callback(hook.post_forward, module, None)
        yield


def _hooked(model: nn.Module) -> list[nn.Module]:
    """The modules with hooks of diffusers or accelerate."""
    return [module for module in model.modules() if "_hf_hook" in vars(module) or "_diffusers_hook" in vars(module)]


def _groups_of(hooked: list[nn.Module], wanted: tuple[nn.Module, ...]) -> list[Any]:
    """diffusers' groups that hold any tensor of the ``wanted`` modules."""
    needed = {id(tensor) for module in wanted for tensor in _tensors(module)}
    groups = {}
    for module in hooked:
        registry = vars(module).get("_diffusers_hook")
        hook = None if registry is None else registry.get_hook(_GROUP_HOOK)
        if hook is not None and any(id(tensor) in needed for tensor in _tensors_of_group(hook.group)):
            groups[id(hook.group)] = hook.group
    return list(groups.values())


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _tensors_of_group(group: Any) -> list[Tensor]:
    own = [tensor for module in group.modules for tensor in _tensors(module)]
    return [*own, *group.parameters, *group.buffers]


@contextmanager
def _onloaded(group: Any) -> Iterator[None]:
    tensors = _tensors_of_group(group)
    if any(hasattr(tensor, "__tensor_flatten__") for tensor in tensors):  # torchao's: of several tensors each
        with _onloaded_by_itself(group, tensors):
            yield
        return
    before = [(tensor, tensor.data) for tensor in tensors]
    try:
        _onload(group)
        yield
    finally:
        for tensor, data in before:
            tensor.data = data


@contextmanager
def _onloaded_by_itself(group: Any, tensors: list[Tensor]) -> Iterator[None]:
    if all(tensor.device == group.onload_device for tensor in tensors):  # a block is running
        yield
        return
    try:
        _onload(group)
        yield
    finally:
        group.offload_()


def _onload(group: Any) -> None:
    group.onload_()
    if group.stream is not None:
        group.stream.synchronize()


def _away(hooked: list[nn.Module], wanted: tuple[nn.Module, ...]) -> list[tuple[nn.Module, Any]]:
    """accelerate's hooks, with their modules, that hold the weights of the ``wanted`` modules."""
    needed = {id(part) for module in wanted for part in module.modules()}
    found = []
    for module in hooked:
        for hook in _accelerate_hooks(module):
            if not getattr(hook, "offload", False) or not hasattr(hook, "weights_map"):
                continue
            held = module.modules() if hook.place_submodules else (module,)
            if any(id(part) in needed for part in held):
                found.append((module, hook))
    return found


def _accelerate_hooks(module: nn.Module) -> list[Any]:
    hook = vars(module).get("_hf_hook")
    return [] if hook is None else list(getattr(hook, "hooks", [hook]))


def computing_dtype(model: Any) -> torch.dtype:
    """The dtype that a model computes in, as far as it says; else one in which it stores weights."""
    dtype: torch.dtype = getattr(model, "dtype", torch.float32)
    if dtype in COMPUTE:
        return dtype
    # Eight bits of a quantised layer, which are the first to be found.
    told = (getattr(module, "compute_dtype", None) for module in model.modules())
    return next((each for each in told if each in COMPUTE), dtype)


def linear_of(module: Any, name: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Weight ``[out, in]`` and bias ``[out]`` of what ``module`` computes, float32, its active adapters merged in.

    Quantised weights are dequantised; where their quantiser is not known, or adapters are on top of them, the layer is
    run in ``dtype`` to see what it computes. Call it while the weights are :func:`present`. Raises
    :class:`~tide.errors.TideError`, which calls the module ``name``, if the weights cannot be read (sharded, not
    loaded) or are not finite.
    """
    linear = _chosen(module)
    base = linear.get_base_layer() if hasattr(linear, "base_layer") else linear
    if is_plain(base):
        linear = _merged(linear, name)
        weight = readable(linear.weight, name)
    else:
        _check_present(getattr(base, "weight", None), name)
        found = dequantised(linear) if linear is base else None
        if found is None:
            weight, bias = measured(linear, name, dtype)
            return readable(weight, name), readable(bias, name)
        weight = readable(found, name)
    if weight.ndim != 2:
        raise TideError(
            f"{name} has a weight of shape {list(weight.shape)}; load its whole weights, not a shard of them"
        )
    return weight, weight.new_zeros(len(weight)) if linear.bias is None else readable(linear.bias, name)


def _check_present(tensor: Any, name: str) -> None:
    if isinstance(tensor, Tensor) and tensor.is_meta:
        raise TideError(f"the weights of {name} are not loaded (they are on the meta device); load them first")
    if any(cls.__name__ == "DTensor" for cls in type(tensor).__mro__):
        raise TideError(
            f"the weights of {name} are split among processes (DTensor); load the transformer whole, without tensor "
            "parallelism and fully_shard"
        )


def _chosen(module: Any) -> Any:
    """The copy that runs of a module that peft trains as a whole (``modules_to_save``)."""
    copies, original = getattr(module, "modules_to_save", None), getattr(module, "original_module", None)
    if not isinstance(copies, nn.ModuleDict) or original is None:
        return module
    active = [name for name in module.active_adapters if name in copies]
    return original if module.disable_adapters or not active else copies[active[0]]


def _merged(module: Any, name: str) -> Any:
    """A linear layer with peft's active adapters merged into its weights: a copy, unless it is a plain layer."""
    if not hasattr(module, "base_layer"):
        return module
    readable(module.get_base_layer().weight, name)
    own = _copied(module)
    try:
        if module.disable_adapters and module.merged:
            own.unmerge()
        elif not module.disable_adapters and not module.merged:
            own.merge(adapter_names=None)
    except (ValueError, NotImplementedError, RuntimeError) as error:
        raise TideError(
            f"the adapters of {name} cannot be merged ({error}); disable them, or merge them first"
        ) from error
    return own.get_base_layer()


def _copied(module: nn.Module) -> Any:
    """A float32 copy on the CPU. Its hooks, which may hold the weights of the whole model, are not copied."""
    kept: dict[int, Any] = {}
    for part in module.modules():
        for hook in (getattr(part, "_hf_hook", None), getattr(part, "_diffusers_hook", None)):
            kept[id(hook)] = hook
    return copy.deepcopy(module, kept).to("cpu", torch.float32)


def readable(tensor: Tensor, name: str) -> Tensor:
    """``tensor`` as float32; raises :class:`~tide.errors.TideError` if its values are missing or not finite."""
    _check_present(tensor, name)
    if type(tensor) not in (Tensor, nn.Parameter) or not tensor.is_floating_point():
        kind = type(tensor).__name__ if type(tensor) not in (Tensor, nn.Parameter) else tensor.dtype
        raise TideError(f"the weights of {name} are quantised ({kind}); load the transformer without that")
    values = tensor.detach().float()
    if not values.isfinite().all():
        raise TideError(f"the weights of {name} are not finite; load the model again, or in another precision")
    return values
