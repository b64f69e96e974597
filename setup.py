"""Builds the CUDA kernels into the package wherever nvcc is; everything else about the project stands in pyproject.toml.

Without nvcc or a host compiler the install goes on without the object: the engines that compile at run time still work, and
`python -m torch_unroll doctor` says what is missing. nvcc decides, never a GPU, so that a wheel can be built anywhere.
`TORCH_CUDA_ARCH_LIST`, `MAX_JOBS` and `CUDA_HOME` are honoured; `TORCH_UNROLL_SKIP_CUDA=1` leaves the object out.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "pyext" / "torch_unroll"))  # kernels, without the torch that importing torch_unroll needs

from kernels import build as kernel_build  # noqa: E402


class BuildKernels(build_ext):
    """Compiles the kernel table. The object is no Python extension: its name carries neither Python's version nor its ABI."""

    def get_ext_filename(self, fullname: str) -> str:
        return f"{fullname.replace('.', '/')}.so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        try:
            directory = ROOT / "build" / kernel_build.directory_name("cuda")
            kernel_build.build("cuda", kernel_build.table_rows(), output, directory=directory, jobs=self.parallel)
        except kernel_build.BuildError as error:
            sys.exit(f"torch-unroll: {error}. To install without the compiled kernels, set TORCH_UNROLL_SKIP_CUDA=1.")

    def copy_extensions_to_source(self) -> None:
        kernel_build.LIBRARIES.mkdir(exist_ok=True)
        super().copy_extensions_to_source()


class PlatformWheel(bdist_wheel):
    """A wheel with the object fits one platform and every Python."""

    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform = super().get_tag()
        return ("py3", "none", platform)


def extensions() -> list[Extension]:
    """The kernel object, if the tools to build it are here."""
    if os.environ.get("TORCH_UNROLL_SKIP_CUDA", "0") not in ("", "0"):
        return []
    if lack := kernel_build.cuda_lack():
        print(f"torch-unroll: installing without compiled CUDA kernels: {lack}", file=sys.stderr)
        return []
    return [Extension("torch_unroll.lib.libtorch_unroll_cuda", sources=[])]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildKernels, "bdist_wheel": PlatformWheel})
