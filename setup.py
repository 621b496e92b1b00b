"""Builds the compiled kernels of csrc/ where torch and a compiler are at hand; all else is in pyproject.toml.

Without them the package installs all the same: `tide_kernels.native` says why it cannot serve, and the other
backends do. `python setup.py build_ext --inplace` builds the kernels alone: it takes any setuptools, and fails if one
of them does not build.

The same sources, compiler, torch and setuptools give the same bytes, whatever the folder.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from setuptools import Distribution, setup

COMMON = ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden"]
# The oldest libtorch that the binaries load with: they use the stable ABI alone.
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"
KERNELS = ["-ffp-contract=fast", "-fno-math-errno", "-Wno-psabi", "-Wno-maybe-uninitialized"]
AVX2 = ["-mavx2", "-mfma", "-mbmi2", "-mpopcnt"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
X86 = platform.machine().lower() in ("x86_64", "amd64")
# variant.cpp is compiled once per instruction set; cpu/isa.cpp chooses at run time.
VARIANTS: dict[str, list[str]] = {"generic": []}
if X86:
    VARIANTS |= {"avx2": AVX2, "avx512": AVX512, "avx512bf16": [*AVX512, "-mavx512bf16", "-mavx512vnni"]}
CUDA_ARCHITECTURES = {"80": (11, 0), "90a": (12, 0), "100a": (12, 8)}  # and the CUDA that knows each first


def say(reason: str) -> None:
    print(f"tide-sae: compiled kernels are not built: {reason}", file=sys.stderr)


def sources(folder: str, suffix: str) -> list[str]:
    return [path.as_posix() for path in sorted(Path("csrc", folder).glob(f"*{suffix}")) if path.stem != "variant"]


def compile_aloud(function: Callable[[], None]) -> None:
    """Calls the function and afterwards prints what it and the compilers that it started have printed.

    Raises:
        RuntimeError: it failed. The message is the first error that a compiler printed, else the function's own.
    """
    failure = None
    with tempfile.TemporaryFile() as printed:
        streams = [os.dup(1), os.dup(2)]
        sys.stdout.flush()
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
        try:
            function()
        except Exception as error:  # setuptools and torch raise many kinds
            failure = error
        finally:
            sys.stdout.flush()
            for number, stream in enumerate(streams, 1):
                os.dup2(stream, number)
                os.close(stream)
        printed.seek(0)
        text = printed.read().decode(errors="replace")
    sys.stdout.write(text)
    if failure is not None:
        found = re.search(r"^.*\b(?:error: |cannot find ).*$", text, re.MULTILINE)
        reason = found[0] if found else str(failure).strip() or type(failure).__name__
        raise RuntimeError(reason.strip().splitlines()[0]) from failure


class BuildKernels:
    """A base of the command `build_ext`, before torch's BuildExtension.

    It adds the objects of the variants; a failure leaves an extension out instead of ending the install.

    The reason goes into a file in the library's place, where `tide_kernels.native` finds it: pip shows nothing.
    """

    failures: dict[str, str]  # by the extension's name

    def run(self) -> None:
        self.failures = {}
        super().run()
        for extension in self.distribution.ext_modules:
            self.note(Path("" if self.inplace else self.build_lib, *extension.name.split(".")))

    def note(self, library: Path) -> None:
        reason = self.failures.get(library.name)
        file = library.parent / f"_failed{library.name.removeprefix('_native')}.txt"
        if reason is None:
            file.unlink(missing_ok=True)
            return
        for stale in library.parent.glob(f"{library.name}.*"):
            stale.unlink()
        library.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{reason}\n")

    def build_extensions(self) -> None:
        try:
            super().build_extensions()
        except (RuntimeError, OSError, AssertionError) as error:
            reason = " ".join(str(error).split())
            say(reason)
            others = [extension for extension in self.extensions if not extension.name.endswith("_cuda")]
            if len(others) == len(self.extensions):  # no compiler at all
                self.failures["compiler"] = reason
            else:  # perhaps a CUDA that is not torch's
                self.failures["_native_cuda"] = reason
                self.extensions = others
                self.build_extensions()

    def build_extension(self, ext: Any) -> None:
        from setuptools.errors import CompileError

        try:
            compile_aloud(lambda: self.compile_extension(ext))
        except RuntimeError as error:
            self.failures[ext.name.rpartition(".")[2]] = str(error)
            say(f"{ext.name}: {error}")
            raise CompileError(str(error)) from error  # the extension is optional: setuptools continues

    def compile_extension(self, ext: Any) -> None:
        if ext.name.endswith("_cpu"):
            ext.extra_objects = [*ext.extra_objects, *self.variants()]
        super().build_extension(ext)

    def variants(self) -> list[str]:
        objects: list[str] = []
        for name, flags in VARIANTS.items():
            arguments = [*COMMON, *KERNELS, f"-DTIDE_ISA={name}", *flags]
            folder = Path(self.build_temp, name).as_posix()
            objects += self.compiler.compile(
                ["csrc/cpu/variant.cpp"], output_dir=folder, extra_postargs=arguments, depends=sources("cpu", ".h")
            )
        return objects


def cpu_extension(extension: Callable[..., Any], unplaced: list[str]) -> Any:
    """``extension`` is torch's CppExtension, ``unplaced`` options that leave folders out of messages."""
    return extension(
        "tide_kernels._native_cpu",
        ["csrc/schema.cpp", *sources("cpu", ".cpp")],
        extra_compile_args=[*COMMON, *unplaced, TORCH_TARGET],
        depends=sources("cpu", ".h"),
        py_limited_api=True,
        optional=True,
    )


def cuda_extension(extension: Callable[..., Any], unplaced: list[str], cuda: str) -> Any:
    """``extension`` is torch's CUDAExtension, ``cuda`` the version that torch was built for."""
    version = tuple(map(int, cuda.split(".")[:2]))
    known = [name for name, since in CUDA_ARCHITECTURES.items() if version >= since]
    nvcc = ["-O3", "-std=c++17", "-DUSE_CUDA", TORCH_TARGET, *(f"-Xcompiler={flag}" for flag in unplaced)]
    nvcc += [f"-gencode=arch=compute_{name},code=sm_{name}" for name in known]
    nvcc += ["-gencode=arch=compute_90,code=compute_90"]
    return extension(
        "tide_kernels._native_cuda",
        sources("cuda", ".cu"),
        extra_compile_args={"cxx": [*COMMON, TORCH_TARGET], "nvcc": nvcc},
        depends=sources("cuda", ".cuh"),
        py_limited_api=True,
        optional=True,
    )


def build_arguments() -> dict[str, Any]:
    if sys.platform == "win32":
        say("csrc needs GCC or Clang; tide_kernels.native says so, too")
        return {}
    try:
        import torch
        from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension
    except ImportError as error:
        say(f"{error} (install torch first, then: pip install --no-build-isolation .)")
        return {}

    # Messages of failed checks name source files; where those were when they were compiled is left out.
    folders = (Path.cwd(), Path(torch.__file__).parents[1])
    unplaced = [f"-ffile-prefix-map={folder}=." for folder in folders]
    modules = [cpu_extension(CppExtension, unplaced)]
    if torch.version.cuda and CUDA_HOME:
        modules.append(cuda_extension(CUDAExtension, unplaced, torch.version.cuda))
    return {
        "ext_modules": modules,
        "cmdclass": {"build_ext": type("Build", (BuildKernels, BuildExtension), {})},
        "options": {"bdist_wheel": {"py_limited_api": "cp311"}},
    }


def build_kernels() -> None:
    """Only the extensions, without reading pyproject.toml, whose license field needs setuptools 77."""
    arguments = build_arguments()
    distribution = Distribution({"name": "tide-sae", "script_args": sys.argv[1:], **arguments})
    distribution.parse_command_line()
    distribution.run_commands()
    if not arguments or distribution.get_command_obj("build_ext").failures:
        sys.exit("tide-sae: not all compiled kernels were built")


def require_setuptools_scm() -> None:
    """It takes the version from git; without it, and without build isolation, setuptools would call this 0.0.0."""
    if find_spec("setuptools_scm") is None:
        sys.exit("tide-sae: setuptools-scm is not installed: run pip install setuptools-scm")


if sys.argv[1:2] == ["build_ext"]:
    build_kernels()
else:
    require_setuptools_scm()
    setup(**build_arguments())
