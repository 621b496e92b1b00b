"""A probe as a Python file that registers the family's adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from tide.adapters.spec import Spec
from tide.errors import TideError
from tide.files import replace_file
from tide.probing.naming import stem
from tide.probing.probe import Probe

#: Letters of a line.
_WIDTH = 100
#: Modules whose classes cannot be imported by anyone else.
_OWN_CODE = ("__main__", "diffusers_modules")


def check_new(path: str | Path) -> None:
    """Raises :class:`~tide.errors.TideError` if a probe cannot be written to ``path``."""
    file = Path(path)
    if file.suffix != ".py" or not file.stem.isidentifier():
        raise TideError(f"{file} is not the name of a module; give a Python file, such as my_family.py")
    if file.exists():
        raise TideError(f"{file} exists; give another name, or remove it")
    if not file.parent.is_dir():
        raise TideError(f"the folder of {file} does not exist; make it first")


def write(found: Probe, path: str | Path) -> None:
    """Writes the adapter as a Python file that registers it, which must not exist.

    Args:
        found: of a pipeline.
        path: of the file.
    """
    check_new(path)
    text = text_of(found)
    replace_file(Path(path), lambda file: file.write_text(text, encoding="utf-8"))


def text_of(found: Probe) -> str:
    """What :func:`write` writes: imports, one class with the spec, and what could not be found.

    Args:
        found: of a pipeline.
    """
    spec, name = found.spec, found.transformer.__name__
    module = found.transformer.__module__.partition(".")[0]
    by_name = module in _OWN_CODE
    own = "diffusers" if module == "diffusers" else found.transformer.__module__
    names = sorted({"DeclaredAdapter", "Spec", "register", *_kinds(spec)}, key=lambda each: (each.islower(), each))
    lines = [f'"""The family of {name}, proposed by `tide adapters probe`."""', ""]
    lines += [] if by_name else [f"from {own} import {name}", ""]
    lines += [f"from tide.adapters import {', '.join(names)}"]
    lines += ["from tide.adapters.packing import positions"] if _needs_positions(found) else []
    lines += ["from tide.adapters.spec import Sinusoid"] if "Sinusoid(" in _written(spec, 0) else []
    lines += ["", "", f'@register("{name}")' if by_name else f"@register({name})"]
    lines += [f"class {stem(name)}Adapter(DeclaredAdapter):"]
    lines += [f"    # not found: {each}" for each in found.missing]
    lines += [f"    spec = {_written(spec, 4)}", *_methods(found)]
    return "\n".join(lines) + "\n"


def _kinds(spec: Spec) -> set[str]:
    return {"Blocks", "Text", *(["Embedding"] if spec.embedding is not None else [])}


def _needs_positions(found: Probe) -> bool:
    return any("positions(" in each for each in found.arguments.code.values())


def _methods(found: Probe) -> list[str]:
    lines: list[str] = []
    if found.arguments.code:
        entries = [f'            "{name}": {code},' for name, code in found.arguments.code.items()]
        entries.insert(0, "            **super().call_arguments(latents, steps, text),")
        lines += ["", "    def call_arguments(self, latents, steps, text):", "        return {", *entries, "        }"]
    return lines


def _written(value: Any, indent: int) -> str:
    """A value as Python, dataclasses by the fields that differ from their defaults; broken into lines if long."""
    if isinstance(value, tuple) and value and all(is_dataclass(each) for each in value):
        return _several(value, indent)
    if not is_dataclass(value):
        return _plain(value)
    parts = [
        f"{each.name}={_written(own, indent + 4)}"
        for each in fields(value)
        if (own := getattr(value, each.name)) != _default(each)
    ]
    kind = type(value).__name__
    line = f"{kind}({', '.join(parts)})"
    if "\n" not in line and indent + len(line) <= _WIDTH:
        return line
    pad = " " * (indent + 4)
    return f"{kind}(\n" + "".join(f"{pad}{part},\n" for part in parts) + " " * indent + ")"


def _several(values: tuple[Any, ...], indent: int) -> str:
    one = _written(values[0], indent)
    if len(values) == 1 and "\n" not in one:
        return f"({one},)"
    pad = " " * (indent + 4)
    return "(\n" + "".join(f"{pad}{_written(each, indent + 4)},\n" for each in values) + " " * indent + ")"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_plain(name)}: {_plain(each)}" for name, each in value.items()) + "}"
    if isinstance(value, tuple):
        return "(" + ", ".join(_plain(each) for each in value) + ("," if len(value) == 1 else "") + ")"
    if isinstance(value, float) and 0 < abs(value) < 0.01 and (1 / value).is_integer():
        return f"{'-' if value < 0 else ''}1 / {round(abs(1 / value))}"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _default(each: Any) -> Any:
    if each.default is not MISSING:
        return each.default
    return each.default_factory() if each.default_factory is not MISSING else MISSING
