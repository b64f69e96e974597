"""Launches that do nothing, in place of those of the emulated kernels: everything else of a call stays real."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch

from torch_unroll.engines import refusal
from torch_unroll.engines.cuda import kernel_object
from torch_unroll.kernels import SOURCES
from torch_unroll.kernels.build import BuildError, find_host_compiler

SOURCE = Path(__file__).with_name("stub.cpp")
_FLAGS = "-std=c++20 -O2 -fPIC -shared -fvisibility=hidden -Wall -Werror".split()
#: The functions of the C interface that launch kernels or call the driver.
REPLACED = ("torch_unroll_launch", "torch_unroll_launch_sequence", "torch_unroll_encode_tensor_map")


class LaunchedError(RuntimeError):
    """Raised if a kernel was launched where none should be."""


def compile_stub(output: Path) -> None:
    """Compiles stub.cpp into a shared object.

    Raises:
        ValueError: the C++ compiler is missing or too old, or does not accept the source.
    """
    try:
        compiler = find_host_compiler()
    except BuildError as error:
        raise ValueError(str(error)) from error
    command = [compiler, *_FLAGS, f"-I{SOURCES}", str(SOURCE), "-o", str(output)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise ValueError(f"{SOURCE.name} does not compile:\n{process.stderr}")


class Stub:
    """The library of the emulated kernels with the functions of stub.cpp in place of those that launch.

    Args:
        real: the library.
        replaced: the functions that are replaced if the library has them.

    Raises:
        ValueError: the stub cannot be compiled, or lacks one of these functions.
    """

    def __init__(self, real: Any, replaced: Sequence[str] = REPLACED):
        self._real = real
        with TemporaryDirectory() as folder:
            path = Path(folder) / "stub.so"
            compile_stub(path)
            replacement = ctypes.CDLL(str(path))
        for name in replaced:
            if not hasattr(real, name):
                continue
            if not hasattr(replacement, name):
                raise ValueError(f"{SOURCE.name} has no {name}, so kernels would be timed: the function needs a stub there")
            function, original = getattr(replacement, name), getattr(real, name)
            function.argtypes, function.restype = original.argtypes, original.restype
            setattr(self, name, function)
        self._launches = replacement.stub_launches
        self._launches.restype = ctypes.c_uint64

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def launches(self) -> int:
        """The number of launches that have done nothing."""
        return int(self._launches())


def kernels_run(library: Any) -> int:
    """The number of launches that the emulator has run."""
    count = library.torch_unroll_emulator_launches
    count.restype = ctypes.c_uint64
    return sum(count(kernel) for kernel in range(library.torch_unroll_kernel_count()))


@contextmanager
def no_launches() -> Iterator[Stub]:
    """Makes engine `cuda` launch nothing on CPU tensors within the block; the results of calls are then undefined.

    Only for a process that makes no other calls: what the package remembers of a call, such as an encoded tensor map, outlives
    the block.

    Raises:
        ValueError: the emulated kernels are not built, or the stub cannot be compiled.
        LaunchedError: a kernel was launched nevertheless, so that times mean nothing.
    """
    if reason := refusal("cuda", "conv2d", torch.device("cpu"), torch.float32):
        raise ValueError(reason)
    kernels = kernel_object("cpu")
    real = kernels.library
    stub = Stub(real)
    before = kernels_run(real)
    kernels.library = cast(ctypes.CDLL, stub)
    try:
        yield stub
    finally:
        kernels.library = real
    if ran := kernels_run(real) - before:
        raise LaunchedError(f"{ran} launches reached the emulator: {SOURCE.name} lacks a function that launches")
