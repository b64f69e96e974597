"""Builds emulated kernels and launches them from Python, for the emulator's own tests."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from torch_unroll.kernels.build import BUILD, build
from torch_unroll.kernels.table import Kernel, LaunchConfig
from torch_unroll.kernels.tensor_map import TensorMap, TensorMapSpec

KERNELS = Path(__file__).parent / "kernels"


class LaunchError(RuntimeError):
    """A launch or another call of the emulator failed; the message is the emulator's report."""


class Statistics(NamedTuple):
    """How many threads have run since the library was loaded, and how often the emulator switched between threads."""

    threads: int
    switches: int


class Emulator:
    """The kernels of a loaded library, launched by name expressions such as `box_kernel<true>`, and settings of the emulator."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        self.library.torch_unroll_kernel_name.restype = ctypes.c_char_p
        self.library.torch_unroll_error_text.restype = ctypes.c_char_p
        self.library.torch_unroll_parameter_bytes.restype = ctypes.c_uint64
        self.library.torch_unroll_emulator_launches.restype = ctypes.c_uint64
        count = self.library.torch_unroll_kernel_count()
        self.kernels = {self.library.torch_unroll_kernel_name(i).decode(): i for i in range(count)}

    def launch(self, kernel: str, config: LaunchConfig, parameters: ctypes.Structure) -> None:
        """Runs a kernel until it ends.

        Raises:
            ValueError: the size of the parameters differs from that of the kernel's parameters.
            LaunchError: the launch exceeds a limit, or the emulator finds a mistake, such as a deadlock, a race or an access
                outside of the memory that the kernel may use.
        """
        index = self.kernels[kernel]
        expected = self.library.torch_unroll_parameter_bytes(index)
        if ctypes.sizeof(parameters) != expected:
            raise ValueError(f"parameters of {kernel}: expected {expected} bytes, got {ctypes.sizeof(parameters)}")
        status = self.library.torch_unroll_launch(index, ctypes.byref(config.struct()), ctypes.byref(parameters), None)
        if status:
            raise LaunchError(self.library.torch_unroll_error_text(status).decode())

    def seed(self, seed: int) -> None:
        """Sets the seed of the next launch, from which the order of its threads and the seeds of later launches follow."""
        self.library.torch_unroll_emulator_seed(ctypes.c_uint64(seed))

    def multiprocessors(self, count: int) -> None:
        """Sets the number of multiprocessors of the emulated GPU."""
        self.library.torch_unroll_emulator_set_multiprocessors(count)

    @contextmanager
    def arithmetic(self, *, addition: bool | None = None, copied: bool | None = None) -> Iterator[None]:
        """Sets, for a `with` block, whether tensor cores truncate sums and whether copies truncate fp32 to TF32.

        `addition` sets the mode of the sums and `copied` that of the copies (`runtime/arithmetic.h`): True truncates, False
        rounds, and None keeps the current mode.
        """
        choose = self.library.torch_unroll_emulator_arithmetic
        before = choose(*(-1 if mode is None else int(mode) for mode in (addition, copied)))
        try:
            yield
        finally:
            choose(before & 1, before >> 1)

    def allow_memory(self, *buffers: np.ndarray) -> None:
        """Lets kernels access no global memory except these arrays. Exists only in race mode."""
        self.library.torch_unroll_emulator_forget_memory()
        for buffer in buffers:
            self.library.torch_unroll_emulator_allow_memory(ctypes.c_void_p(buffer.ctypes.data), ctypes.c_uint64(buffer.nbytes))

    def encode(self, spec: TensorMapSpec) -> TensorMap:
        """Encodes a map for a kernel's copies.

        Raises:
            LaunchError: the driver's encoder would refuse the map, or the map has no swizzle.
        """
        encoded = TensorMap()
        status = self.library.torch_unroll_encode_tensor_map(ctypes.byref(spec.struct()), ctypes.byref(encoded))
        if status:
            raise LaunchError(self.library.torch_unroll_error_text(status).decode())
        return encoded

    def statistics(self) -> Statistics:
        """The numbers of threads that have run and of switches between them."""
        counts = (ctypes.c_uint64(), ctypes.c_uint64())
        self.library.torch_unroll_emulator_statistics(*map(ctypes.byref, counts))
        return Statistics(*(count.value for count in counts))

    def launches(self, kernel: str) -> int:
        """How often a kernel has been launched."""
        return self.library.torch_unroll_emulator_launches(self.kernels[kernel])


@cache
def emulate(rows: tuple[Kernel, ...], name: str, mode: str = "plain") -> Emulator:
    """Builds kernels of `tests/emulator/kernels` into a library of their own and loads it."""
    directory = BUILD / f"emulator-tests-{name}-{mode}"
    return Emulator(build("emulated", rows, directory / f"{name}.so", mode=mode, directory=directory, include=[KERNELS]))


def instances(source: str, *rows: tuple[str, str]) -> tuple[Kernel, ...]:
    """Kernels of one source in `tests/emulator/kernels`; each row is a template's name and its arguments, separated by ", "."""
    return tuple(Kernel(source, name, tuple(arguments.split(", "))) for name, arguments in rows)


def launch_config(
    grid: int | tuple[int, int, int],
    block: int | tuple[int, int, int],
    *,
    shared_bytes: int = 0,
    cluster: int = 1,
    cooperative: bool = False,
) -> LaunchConfig:
    """A LaunchConfig. If `grid` or `block` is one number, it is the extent along x, and the others are 1."""
    grid, block = ((extent, 1, 1) if isinstance(extent, int) else extent for extent in (grid, block))
    return LaunchConfig(grid=grid, block=block, shared_bytes=shared_bytes, cluster=(cluster, 1, 1), cooperative=cooperative)


_Structure = TypeVar("_Structure", bound=ctypes.Structure)


def fill(structure: type[_Structure], *values: Any) -> _Structure:
    """The parameters of a kernel. An array is passed as its address; the returned structure keeps the array alive."""
    filled = structure(*(value.ctypes.data if isinstance(value, np.ndarray) else value for value in values))
    filled.kept = values
    return filled


def arrays(dtype: str, *shape: int) -> np.ndarray:
    """An array of standard normal values from a fixed seed."""
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)
