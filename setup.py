"""Compiles the CUDA kernels into the package if nvcc is present; pyproject.toml describes everything else.

Without nvcc or a host compiler the package is installed without the compiled kernels: the engines that compile at run time still
work if their packages are installed, and `python -m torch_unroll doctor` says what is missing. No GPU is needed to build
a wheel. `TORCH_CUDA_ARCH_LIST`, `MAX_JOBS` and `CUDA_HOME` apply; `TORCH_UNROLL_SKIP_CUDA=1` leaves the compiled
kernels out.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent

# An empty module replaces the package torch_unroll, whose __init__.py imports torch; torch_unroll.kernels does not need torch.
package = ModuleType("torch_unroll")
package.__path__ = [str(ROOT / "pyext" / "torch_unroll")]
sys.modules["torch_unroll"] = package

from torch_unroll.kernels import build as kernel_build  # noqa: E402
from torch_unroll.kernels.table import kernels  # noqa: E402


class BuildKernels(build_ext):
    """Compiles the kernel table into a library, which uses no Python API, so its name contains no Python version or ABI."""

    def get_ext_filename(self, fullname: str) -> str:
        return f"{fullname.replace('.', '/')}.so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        try:
            directory = ROOT / "build" / kernel_build.directory_name("cuda")
            kernel_build.build("cuda", kernels(), output, directory=directory, jobs=self.parallel)
        except kernel_build.BuildError as error:
            sys.exit(f"torch-unroll: {error}. To install without the compiled kernels, set TORCH_UNROLL_SKIP_CUDA=1.")

    def copy_extensions_to_source(self) -> None:
        kernel_build.LIBRARIES.mkdir(exist_ok=True)
        super().copy_extensions_to_source()


class PlatformWheel(bdist_wheel):
    """A wheel for every version of Python 3, and for a single platform if it contains compiled kernels."""

    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform = super().get_tag()
        return ("py3", "none", platform)


def extensions() -> list[Extension]:
    """A list that holds the kernel object as an extension; empty if the object cannot be built here or is left out."""
    if os.environ.get("TORCH_UNROLL_SKIP_CUDA", "0") not in ("", "0"):
        return []
    if lack := kernel_build.cuda_lack():
        print(f"torch-unroll: installing without compiled CUDA kernels: {lack}", file=sys.stderr)
        return []
    return [Extension("torch_unroll.lib.libtorch_unroll_cuda", sources=[])]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildKernels, "bdist_wheel": PlatformWheel})
