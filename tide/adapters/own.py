"""Adapters of one's own: a module or a file that registers them, run because it was asked for."""

from __future__ import annotations

import importlib
import sys
import traceback
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from tide.adapters.base import Adapter
from tide.adapters.registry import Registered, own_code, registered
from tide.errors import TideError
from tide.messages import one_line

#: What each module registered, by its name or its file.
_IMPORTED: dict[str, Registered] = {}


def import_adapters(name: str | Path) -> None:
    """Runs the module ``name``, or the file if it ends in ``.py``, which registers adapters
    (:func:`~tide.adapters.register`) or admits pipelines (:func:`~tide.adapters.allow_pipeline`); once a process.

    What lies beside the file can be imported by it. Raises :class:`~tide.errors.TideError` if there is no such module,
    if it fails, or if it registers nothing.
    """
    key = _key(name)
    if key in _IMPORTED:
        return
    before, known = registered(), _is_running(key)
    _run(name, key)
    now = registered()
    if now == before and not known:
        raise TideError(
            f"{name} registers no adapter; decorate a subclass of tide.adapters.Adapter in it with "
            "@tide.adapters.register(<class of the transformer>), or call tide.adapters.allow_pipeline"
        )
    _IMPORTED[key] = Registered(now.adapters - before.adapters, now.pipelines - before.pipelines)


def import_code(name: str | Path) -> None:
    """Runs the module ``name``, or the file if it ends in ``.py``, which defines classes of a pipeline: from then on
    folders are loaded that name them. It need not register anything."""
    own_code(_run(name, _key(name)).__name__)


def _run(name: str | Path, key: str) -> ModuleType:
    try:
        return _from_file(Path(key)) if key.endswith(".py") else importlib.import_module(key)
    except TideError:
        raise
    except (Exception, SystemExit) as error:
        raise TideError(_failed(str(name), key, error)) from error


def check_serves(name: str | Path, adapter: Adapter) -> None:
    """Raises :class:`~tide.errors.TideError` if the module ``name`` has no part in ``adapter``."""
    found = _IMPORTED[_key(name)]
    served = type(adapter) in {each for _, each in found.adapters}
    if any(found) and not served and not found.pipelines & {*type(adapter.pipe).__mro__}:
        raise TideError(
            f"the adapter {name} is not for this pipeline, whose {type(adapter.transformer).__name__} is served by "
            f"{type(adapter).__name__}; leave it off, or give another pipeline"
        )


def _key(name: str | Path) -> str:
    text = str(name)
    return str(Path(text).resolve()) if text.endswith(".py") else text


def _is_running(key: str) -> bool:
    """Whether the module was imported before by other means."""
    return key in sys.modules or _of_file(Path(key)) is not None


def _of_file(file: Path) -> ModuleType | None:
    module = sys.modules.get(file.stem)
    there = getattr(module, "__file__", None)
    return module if there is not None and Path(there).resolve() == file else None


def _from_file(file: Path) -> ModuleType:
    running = _of_file(file)
    if running is not None:
        return running
    if not file.is_file():
        raise TideError(f"the adapter {file} does not exist; give a Python file or the name of a module")
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))  # at the end: its other files take no library's place
    # Under its own name, as if it had been imported, unless that is taken.
    name = file.stem if file.stem not in sys.modules else f"{file.stem}_{abs(hash(str(file)))}"
    spec = spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _failed(name: str, key: str, error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name and f"{key}.".startswith(f"{error.name}."):
        beside = f"{key.replace('.', '/')}.py"
        there = f", such as {beside}" if Path(beside).is_file() else ""
        return f"there is no module {name!r}; install it, or give its file{there}"
    importing = (__file__, importlib.__file__)
    frames = [each for each in traceback.extract_tb(error.__traceback__) if not each.filename.startswith("<frozen")]
    theirs = [each for each in frames if each.filename not in importing]
    where = "".join(f", line {each.lineno} of {each.filename}" for each in theirs[-1:])
    return f"the adapter {name} failed ({type(error).__name__}: {one_line(error)}{where}); mend it"
