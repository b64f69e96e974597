"""The kernel table lists every kernel. setup.py, the emulator's build, NVRTC and the tests read it.

A row is one instantiation of a kernel template. Every kernel takes exactly one parameter, a plain struct passed by value, so one
launcher serves them all. `cuda/<op>/variants.py` holds the rows of an op.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from itertools import product

from . import device_digest, layout
from .dtypes import CPP_TYPES
from .interface import INTERFACE, CLaunchConfig

OPS = ("conv2d", "max_pool2d", "rnn")


@dataclass(frozen=True)
class Kernel:
    """One instantiation of a kernel template, e.g. `im2col_kernel<half, int32_t>` of `conv2d/im2col.cuh`."""

    source: str  # relative to kernels/cuda
    name: str  # of the template; ends in _kernel
    arguments: tuple[str, ...] = ()  # template arguments as C++ text
    architecture: str = "80"  # the lowest compute capability that it runs on, without the dot; "90a" runs on 9.0 only

    @property
    def expression(self) -> str:
        """The C++ name expression, by which the `cuda` and `cupy` engines identify the kernel."""
        return f"{self.name}<{', '.join(self.arguments)}>"


@dataclass(frozen=True)
class LaunchConfig:
    """The execution configuration of a launch; `grid` counts blocks, even if they form clusters."""

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int = 0
    cluster: tuple[int, int, int] = (1, 1, 1)
    cooperative: bool = False  # the launch fails unless all blocks can be resident at once

    def struct(self) -> CLaunchConfig:
        """The struct that the C interface takes."""
        three = ctypes.c_uint32 * 3
        return CLaunchConfig(
            grid=three(*self.grid),
            block=three(*self.block),
            cluster=three(*self.cluster),
            shared_bytes=self.shared_bytes,
            cooperative=self.cooperative,
        )


@dataclass(frozen=True, eq=False)
class LaunchPlan:
    """One kernel and its launch configuration, computed from a problem and the GPU alone, never from data.

    The functions that make plans cache them. Plans are compared by identity, and launchers use them as keys.
    """

    kernel: Kernel
    config: LaunchConfig
    variant: str  # the variant's name; "pack_channels" or "sum_splits" for kernels that run before or after a product


def instantiate(source: str, name: str, *axes: Sequence[str], architecture: str = "80") -> Iterator[Kernel]:
    """Yields a row for every combination of a template's arguments; each axis lists the values of one argument."""
    for arguments in product(*axes):
        yield Kernel(source, name, arguments, architecture)


@cache
def kernels(op: str | None = None) -> tuple[Kernel, ...]:
    """Every kernel of an op, or of all ops."""
    ops = OPS if op is None else (op,)
    return tuple(row for name in ops for row in import_module(f"{__package__}.cuda.{name}.variants").KERNELS)


def kernels_of(op: str, dtype: str) -> tuple[Kernel, ...]:
    """The kernels that calls of an op in one dtype may launch: those of that dtype and those that are independent of it."""
    dtypes = {**{cpp_type: name for name, cpp_type in CPP_TYPES.items()}, "tfloat32": "float32"}
    return tuple(row for row in kernels(op) if dtypes.get(row.arguments[0], dtype) == dtype)


def parameters(kernel: Kernel) -> type[ctypes.Structure] | None:
    """The ctypes mirror of a kernel's parameter, from `PARAMETERS` in `cuda/<op>/variants.py`; None for the tests' own kernels.

    Raises:
        LookupError: `PARAMETERS` has no entry for a kernel of an op.
    """
    op = kernel.source.partition("/")[0]
    if op not in OPS:
        return None
    mirrors: dict[str, type[ctypes.Structure]] = import_module(f"{__package__}.cuda.{op}.variants").PARAMETERS
    if kernel.name not in mirrors:
        raise LookupError(f"PARAMETERS of cuda/{op}/variants.py: expected the mirror of what {kernel.name} takes, got none")
    return mirrors[kernel.name]


def recorded_layout(kernel: Kernel) -> str:
    """The layout of a kernel's parameter that the object records when it is built; empty for the tests' own kernels."""
    mirror = parameters(kernel)
    return layout.record(mirror.__name__, mirror) if mirror else ""


def checked_source(rows: Iterable[Kernel]) -> str:
    """C++ that includes the source file of the rows and compiles only if their parameters are laid out like the mirrors."""
    rows = list(rows)
    mirrors = {row: mirror for row in rows if (mirror := parameters(row))}
    names = {mirror: f"state_layout_{i}" for i, mirror in enumerate(dict.fromkeys(mirrors.values()))}
    (source,) = {row.source for row in rows}
    lines = [f'#include "{source}"', '#include "platform/layout.h"']
    lines += [layout.statement(name, mirror.__name__, mirror) for mirror, name in names.items()]
    for row, mirror in mirrors.items():
        lines.append(f"static_assert(sizeof {names[mirror]}(unevaluated<ParametersOf<decltype(&{row.expression})>::type>()));")
    return "\n".join([*lines, ""])


def instance_source(rows: Iterable[Kernel]) -> str:
    """C++ that instantiates the rows of one source file and registers them with the launcher (`platform/registry.h`)."""
    rows = list(rows)
    lines = [checked_source(rows), '#include "platform/registry.h"', "namespace {"]
    for i, row in enumerate(rows):
        entry = f'kernel_entry<&{row.expression}>("{row.expression}", "{recorded_layout(row)}")'
        lines.append(f"const KernelRegistration kernel_{i}({entry});")
    return "\n".join([*lines, "}  // namespace", ""])


def interface_source() -> str:
    """C++ that compiles only if the structs of the C interface are laid out like their mirrors.

    It defines the functions that return those layouts and the digest of the sources.
    """
    lines = ['#include "platform/interface.h"', '#include "platform/layout.h"']
    for name, mirror in INTERFACE.items():
        lines.append(layout.statement(f"state_layout_of_{name}", name, mirror))
        lines.append(f"static_assert(sizeof state_layout_of_{name}(unevaluated<{name}>()));")
    records = "\\n".join(f"{name}: {layout.record(name, mirror)}" for name, mirror in INTERFACE.items())
    for name, text in (("interface_layout", records), ("device_digest", device_digest())):
        lines.append(
            f'extern "C" __attribute__((visibility("default"))) const char* torch_unroll_{name}() {{ return "{text}"; }}'
        )
    return "\n".join([*lines, ""])
