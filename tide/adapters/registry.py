"""Which adapter serves a pipeline: TIDE's own, those that a module of yours registers, and those of packages."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from torch.torch_version import TorchVersion

from tide.adapters import pipelines
from tide.adapters.base import Adapter
from tide.adapters.declared import DeclaredAdapter
from tide.adapters.installed import import_installed
from tide.adapters.pipelines import REFUSED, SUPPORTED, check_pipeline, known_as
from tide.adapters.spec import Spec
from tide.adapters.unsupported import why_not
from tide.adapters.weights import unwrapped
from tide.errors import TideError

#: Adapters by the class of the transformer that they serve, or by its name.
_ADAPTERS: dict[type | str, type[Adapter]] = {}
#: Adapters of :data:`_ADAPTERS` that serve only the pipeline classes of :mod:`tide.adapters.pipelines`.
_OF_KNOWN_PIPELINES: set[type[Adapter]] = set()
#: TIDE's adapters by the pipeline classes that their specs name.
_OF_PIPELINE: dict[str, type[DeclaredAdapter]] = {}
#: Modules that define classes of pipelines and register nothing.
_CODE: set[str] = set()
#: The packages whose classes are nobody's own.
_LIBRARIES = ("diffusers", "tide", "transformers")


def register(transformer: type | str, *, known_pipelines: bool = False) -> Callable[[type[Adapter]], type[Adapter]]:
    """Class decorator: the adapter serves this transformer class and its subclasses, in pipelines of any class.

    A name stands for a class that cannot be imported, because the pipeline's folder brings its code. With
    ``known_pipelines`` it serves only the pipelines that :mod:`tide.adapters.pipelines` lists as supported. An adapter
    of yours takes the place of TIDE's own.

    Raises :class:`~tide.errors.TideError` for a class that is no adapter, lacks methods or has no family, and for a
    transformer or a family that another adapter of yours has.
    """

    key = transformer if isinstance(transformer, str) or not _of_diffusers(transformer) else _key(transformer.__name__)

    def add(adapter: type[Adapter]) -> type[Adapter]:
        _check_complete(adapter)
        _check_free(key, adapter)
        _ADAPTERS[key] = adapter
        if known_pipelines:
            _OF_KNOWN_PIPELINES.add(adapter)
        return adapter

    return add


_Declared = TypeVar("_Declared", bound=type[DeclaredAdapter])


def declared(adapter: _Declared) -> _Declared:
    """Class decorator of TIDE's own families: registers an adapter by what its spec says. Classes of diffusers go by
    their names, so that those of newer versions are not looked for before they are met."""
    spec = adapter.spec
    _check_complete(adapter)
    _ADAPTERS.setdefault(_key(spec.transformer), adapter)
    _OF_KNOWN_PIPELINES.add(adapter)
    SUPPORTED.update(spec.pipelines)
    REFUSED.update(spec.refused)
    _OF_PIPELINE.update(dict.fromkeys((*spec.pipelines, *spec.refused), adapter))
    return adapter


def _key(name: str) -> str:
    """What stands for diffusers' class of this name."""
    return f"diffusers.{name}"


def _of_diffusers(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "diffusers"


def specs() -> list[Spec]:
    """The specs of TIDE's own families, by name."""
    return sorted(
        {each.spec.family: each.spec for each in _OF_PIPELINE.values()}.values(), key=lambda each: each.family
    )


def _check_complete(adapter: Any) -> None:
    name = getattr(adapter, "__name__", repr(adapter))
    if not (isinstance(adapter, type) and issubclass(adapter, Adapter)):
        raise TideError(f"{name} is not a subclass of tide.adapters.Adapter; derive it from that")
    if missing := sorted(adapter.__abstractmethods__):
        raise TideError(f"the adapter {name} lacks {', '.join(missing)}; define them (docs/adapters.md)")
    family = getattr(adapter, "family", None)
    if not isinstance(family, str) or not family.isidentifier():
        raise TideError(f"the adapter {name} has no family; set family = 'mine', the name that checkpoints carry")


def _check_free(transformer: type | str, adapter: type[Adapter]) -> None:
    former = _ADAPTERS.get(transformer)
    if former is not None and not (_is_builtin(former) or _same(former, adapter)):
        raise TideError(
            f"{_name(transformer)} has an adapter already, {former.__name__} of {former.__module__}; register one of "
            "them"
        )
    for other in {*_ADAPTERS.values(), *_OF_PIPELINE.values()} - {former}:
        if other.family == adapter.family and not _same(other, adapter):
            raise TideError(
                f"the family {adapter.family!r} is that of {other.__name__}; give {adapter.__name__} a name of its own"
            )


def _is_builtin(adapter: type[Adapter]) -> bool:
    return adapter.__module__.startswith("tide.")


def _same(one: type[Adapter], other: type[Adapter]) -> bool:
    """Whether one extends the other, or is the other, defined again (a cell of a notebook that ran twice)."""
    again = (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)
    return again or issubclass(one, other) or issubclass(other, one)


def _name(transformer: type | str) -> str:
    return transformer.removeprefix("diffusers.") if isinstance(transformer, str) else transformer.__name__


def adapter_for(pipe: Any, component: str = "transformer") -> Adapter:
    """The adapter of a pipeline, by the class of its transformer (of what is inside ``torch.compile`` or a
    ``PeftModel``) and by its own class.

    Args:
        pipe: a pipeline of diffusers.
        component: the name of its transformer, where it has several that take over from each other (Wan 2.2:
            ``transformer`` draws the first steps, ``transformer_2`` the others).

    Raises:
        TideError: if none is registered for the transformer, or if the pipeline's class calls it in a way that the
            adapter does not know (:func:`~tide.adapters.allow_pipeline` admits a class of your own); or if the family
            needs a newer diffusers.
    """
    transformer = unwrapped(getattr(pipe, component, None))
    if transformer is None and component != "transformer":
        raise TideError(f"the pipeline has no {component}; its parts are {', '.join(sorted(_parts(pipe)))}")
    adapter = _of_pipeline(adapter_class(type(transformer)), type(pipe))
    if adapter is None:
        raise TideError(why_not(type(pipe).__name__, _parts(pipe), specs(), transformer))
    _check_version(adapter)
    if adapter in _OF_KNOWN_PIPELINES:
        check_pipeline(pipe, type(transformer))
    if component == "transformer":
        return adapter(pipe)
    if "component" not in inspect.signature(adapter).parameters:
        raise TideError(
            f"{adapter.__name__} takes no component; let its __init__ take (pipe, component) and pass both on"
        )
    return adapter(pipe, component)


def _check_version(adapter: type[Adapter]) -> None:
    spec = adapter.spec if issubclass(adapter, DeclaredAdapter) else None
    if spec is None or spec.needs is None:
        return
    import diffusers

    if TorchVersion(diffusers.__version__) < spec.needs:
        raise TideError(
            f"{spec.models} needs diffusers {spec.needs}, and {diffusers.__version__} is installed; "
            "pip install -U diffusers"
        )


def _of_pipeline(adapter: type[Adapter] | None, pipeline: type) -> type[Adapter] | None:
    """TIDE's adapter of this pipeline, where several serve the transformer that ``adapter`` serves."""
    other = _OF_PIPELINE.get(known_as(pipeline) or "")
    if other is None or adapter not in _OF_KNOWN_PIPELINES or not issubclass(adapter, DeclaredAdapter):
        return adapter
    return other if other.spec.transformer == adapter.spec.transformer else adapter


def _parts(pipe: Any) -> dict[str, str]:
    parts = getattr(pipe, "components", None)
    if not isinstance(parts, dict):
        parts = {"transformer": getattr(pipe, "transformer", None)}
    return {name: type(unwrapped(part)).__name__ for name, part in parts.items() if part is not None}


def adapter_class(transformer: type) -> type[Adapter] | None:
    """The adapter registered for a transformer class, looked for in installed packages where TIDE and your own modules
    have none; None without any."""
    return _registered(transformer) or (_registered(transformer) if import_installed() else None)


def _registered(transformer: type) -> type[Adapter] | None:
    for cls in transformer.__mro__:
        keys = (cls, cls.__name__, *([_key(cls.__name__)] if _of_diffusers(cls) else []))
        for key in keys:
            if key in _ADAPTERS:
                return _ADAPTERS[key]
    return None


def families() -> set[str]:
    """The names of the families that have adapters, TIDE's and those of the modules that were imported."""
    return {adapter.family for adapter in (*_ADAPTERS.values(), *_OF_PIPELINE.values())}


def serves_family(family: str) -> bool:
    """Whether a family has an adapter, looked for in installed packages where TIDE and your own modules have none."""
    return family in families() or (import_installed() and family in families())


class Registered(NamedTuple):
    """What is known of adapters and pipelines at one time."""

    adapters: frozenset[tuple[type | str, type[Adapter]]]
    pipelines: frozenset[type]


def registered() -> Registered:
    return Registered(frozenset(_ADAPTERS.items()), frozenset(pipelines._ALLOWED))


@contextmanager
def provisional() -> Iterator[None]:
    """What is registered while it is open is not afterwards."""
    before = dict(_ADAPTERS)
    try:
        yield
    finally:
        _ADAPTERS.clear()
        _ADAPTERS.update(before)


def own_code(module: str) -> None:
    """The classes of this module, which runs already, are found by :func:`own_class`."""
    _CODE.add(module)


def own_class(name: str, base: type = object) -> Any:
    """The class of this name, a subclass of ``base`` that can be loaded, in the modules whose classes were registered
    by somebody else than TIDE, or in those of :func:`own_code`; None if there is none. Such modules run already,
    because they were asked for."""
    known: set[Any] = {*_ADAPTERS, *_ADAPTERS.values(), *pipelines._ALLOWED}
    modules = {cls.__module__ for cls in known if isinstance(cls, type)} | _CODE
    for module in sorted(modules):
        if module.partition(".")[0] not in _LIBRARIES:
            found = getattr(sys.modules.get(module), name, None)
            if isinstance(found, type) and issubclass(found, base) and hasattr(found, "from_pretrained"):
                if found.__module__.partition(".")[0] not in _LIBRARIES:  # not one that it only imports
                    return found
    return None
