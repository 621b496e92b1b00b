"""Builds the compiled kernels of csrc/ where torch and a compiler are at hand; all else is in pyproject.toml.

Without them the package installs all the same: `tide_kernels.native` says why it cannot serve, and the other
backends do.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Any

from setuptools import setup

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
    VARIANTS |= {"avx2": AVX2, "avx512": AVX512, "avx512bf16": [*AVX512, "-mavx512bf16"]}
CUDA_ARCHITECTURES = {"80": (11, 0), "90a": (12, 0), "100a": (12, 8)}  # and the CUDA that knows each first


def say(reason: str) -> None:
    print(f"tide-sae: compiled kernels are not built: {reason}", file=sys.stderr)


def sources(folder: str, suffix: str) -> list[str]:
    return [path.as_posix() for path in sorted(Path("csrc", folder).glob(f"*{suffix}")) if path.stem != "variant"]


def build_arguments() -> dict[str, Any]:
    try:
        import torch
        from setuptools.errors import CompileError
        from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension
    except ImportError as error:
        say(f"{error} (install torch first, then: pip install --no-build-isolation .)")
        return {}

    class Build(BuildExtension):
        """Adds the objects of the variants; a failure leaves an extension out instead of ending the install."""

        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except (RuntimeError, OSError, AssertionError) as error:  # no compiler at all
                say(str(error).strip().splitlines()[0])

        def build_extension(self, ext: Any) -> None:
            try:
                if ext.name.endswith("_cpu"):
                    ext.extra_objects = [*ext.extra_objects, *self.variants()]
                super().build_extension(ext)
            except Exception as error:
                say(f"{ext.name}: {str(error).strip().splitlines()[0]}")
                raise CompileError(str(error)) from error  # the extension is optional: setuptools continues

        def variants(self) -> list[str]:
            objects: list[str] = []
            for name, flags in VARIANTS.items():
                arguments = [*COMMON, *KERNELS, f"-DTIDE_ISA={name}", *flags]
                folder = Path(self.build_temp, name).as_posix()
                objects += self.compiler.compile(
                    ["csrc/cpu/variant.cpp"], output_dir=folder, extra_postargs=arguments, depends=sources("cpu", ".h")
                )
            return objects

    cpu = CppExtension(
        "tide_kernels._native_cpu",
        ["csrc/schema.cpp", *sources("cpu", ".cpp")],
        extra_compile_args=[*COMMON, TORCH_TARGET],
        depends=sources("cpu", ".h"),
        py_limited_api=True,
        optional=True,
    )
    modules = [cpu]
    if torch.version.cuda and CUDA_HOME:
        version = tuple(map(int, torch.version.cuda.split(".")[:2]))
        known = [name for name, since in CUDA_ARCHITECTURES.items() if version >= since]
        codes = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in known]
        cuda = CUDAExtension(
            "tide_kernels._native_cuda",
            sources("cuda", ".cu"),
            extra_compile_args={
                "cxx": [*COMMON, TORCH_TARGET],
                "nvcc": [
                    "-O3",
                    "-std=c++17",
                    "-DUSE_CUDA",
                    TORCH_TARGET,
                    *codes,
                    "-gencode=arch=compute_90,code=compute_90",
                ],
            },
            py_limited_api=True,
            optional=True,
        )
        modules.append(cuda)
    return {
        "ext_modules": modules,
        "cmdclass": {"build_ext": Build},
        "options": {"bdist_wheel": {"py_limited_api": "cp311"}},
    }


setup(**build_arguments())
