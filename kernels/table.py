"""The kernel table: every kernel that exists, once. setup.py, the emulator build, NVRTC and the tests all read it.

A row is one instantiation of a kernel template. A kernel takes exactly one parameter: a plain struct passed by value, so
that one launcher serves all of them. The rows of an op stand in `cuda/<op>/variants.py`, beside its device code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from itertools import product

OPS = ("conv2d", "max_pool2d", "rnn")

#: torch's name of a dtype -> its C++ name in `platform/types.h`.
CPP_TYPES = {"float16": "half", "bfloat16": "bfloat16", "float32": "float", "float64": "double"}
DTYPES = tuple(CPP_TYPES)


@dataclass(frozen=True)
class Kernel:
    """One instantiation of a kernel template, e.g. `im2col_kernel<half, int32_t>` of `conv2d/im2col.cuh`."""

    source: str  # relative to kernels/cuda
    name: str  # of the template; ends in _kernel
    arguments: tuple[str, ...] = ()  # template arguments, as C++ text
    architecture: str = "80"  # the least it runs on; "90a" compiles for that one only

    @property
    def expression(self) -> str:
        """The C++ name expression, which is also the kernel's identity in every engine."""
        return f"{self.name}<{', '.join(self.arguments)}>"


@dataclass(frozen=True)
class LaunchConfig:
    """How a kernel is launched: what CUDA calls the execution configuration."""

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int = 0
    cluster: tuple[int, int, int] = (1, 1, 1)
    cooperative: bool = False  # every block resident at once, or the launch fails


@dataclass(frozen=True, eq=False)
class LaunchPlan:
    """One kernel and how it is launched; computed from shape, dtype and GPU alone, never from data.

    Plans are cached where they are made and compared by identity, so that a launcher can key what it prepared by them.
    """

    kernel: Kernel
    config: LaunchConfig
    variant: str  # the idea, as the ladder note at the head of the kernel file calls it


def instantiate(source: str, name: str, *axes: Sequence[str], architecture: str = "80") -> Iterator[Kernel]:
    """The rows of a template for every combination of its arguments; an axis lists the values of one argument."""
    for arguments in product(*axes):
        yield Kernel(source, name, arguments, architecture)


@cache
def kernels(op: str | None = None) -> tuple[Kernel, ...]:
    """Every kernel of an op, or of all."""
    found: list[Kernel] = []
    for each in OPS if op is None else (op,):
        found += import_module(f"{__package__}.cuda.{each}.variants").KERNELS
    return tuple(found)


def kernels_of(op: str, dtype: str) -> tuple[Kernel, ...]:
    """The kernels that calls of an op in one dtype may launch: those of its type, and those that know no type."""
    types = {**{name: each for each, name in CPP_TYPES.items()}, "tfloat32": "float32"}
    return tuple(row for row in kernels(op) if types.get(row.arguments[0], dtype) == dtype)


def instance_source(rows: Iterable[Kernel]) -> str:
    """C++ that instantiates rows of one source file and registers them with the launcher (see `platform/launch.h`)."""
    rows = list(rows)
    (source,) = {row.source for row in rows}
    lines = [f'#include "{source}"', '#include "platform/registry.h"', "namespace {"]
    for i, row in enumerate(rows):
        lines.append(f'const KernelRegistration kernel_{i}(kernel_entry<&{row.expression}>("{row.expression}"));')
    return "\n".join([*lines, "}  // namespace", ""])
