"""What the variants of max pooling share. A plan is the launch of a kernel, with the structs in the kernel's parameters."""

from __future__ import annotations

import ctypes
from collections.abc import Hashable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from ...arithmetic import ceil_divide
from ...dtypes import CPP_TYPES
from ...hardware import Device
from ...planning import Configuration, Prediction, Variant
from ...shapes import Four, MaxPool2dShape
from ...table import Kernel, LaunchConfig, LaunchPlan, instantiate
from .cost import Cost, predict
from .parameters import MaxPool2dDense
from .problem import FIXED_WINDOWS, Pool2dProblem

THREADS = 256  # of the largest block, as in the __launch_bounds__ of every kernel


class PoolingPlan(NamedTuple):
    """A launch, and the structs that the kernel's parameters contain."""

    launch: LaunchPlan
    shape: MaxPool2dShape
    dense: MaxPool2dDense


class PoolingVariant(Variant[Pool2dProblem]):
    """A variant of max pooling. It serves the directions for which it has kernels."""

    #: The variant's rows of the kernel table.
    kernels: tuple[Kernel, ...]

    def template(self, problem: Pool2dProblem) -> str:
        """Returns the name of the kernel template."""
        return f"max_pool2d_{problem.direction}_{self.name}_kernel"

    def template_arguments(self, problem: Pool2dProblem) -> tuple[str, ...]:
        """Returns the template arguments, as C++ text."""
        return problem.types

    def launch_config(self, problem: Pool2dProblem, configuration: Configuration, device: Device) -> LaunchConfig:
        """Returns how the kernel is launched."""
        raise NotImplementedError

    def x_strides(self, problem: Pool2dProblem) -> Four:
        """Returns the strides of x that are passed to the kernel."""
        return problem.x_strides

    def block_extents(self, problem: Pool2dProblem, configuration: Configuration, device: Device) -> tuple[int, int]:
        """Returns how many planes a block computes, and how many rows of each; (0, 0) if the kernel does not read them."""
        return (0, 0)

    def cost(self, problem: Pool2dProblem, configuration: Configuration, device: Device) -> Cost:
        """Returns the bytes that a configuration moves and the instructions that it executes."""
        raise NotImplementedError

    def predict(self, problem: Pool2dProblem, configuration: Configuration, device: Device) -> Prediction:
        return predict(self.cost(problem, configuration, device), device)

    def plan(self, problem: Pool2dProblem, configuration: Configuration, device: Device) -> PoolingPlan:
        return cached_plan(self, problem, configuration, device)


@lru_cache(maxsize=4096)
def cached_plan(variant: PoolingVariant, problem: Pool2dProblem, configuration: Configuration, device: Device) -> PoolingPlan:
    """Returns the plan of a configuration. Plans are cached, because launchers use their `launch` as a key."""
    template, arguments = variant.template(problem), variant.template_arguments(problem)
    (kernel,) = (row for row in variant.kernels if (row.name, row.arguments) == (template, arguments))
    config = variant.launch_config(problem, configuration, device)
    planes_per_block, rows_per_block = variant.block_extents(problem, configuration, device)
    dense = MaxPool2dDense(
        planes=problem.planes, inner=problem.inner, planes_per_block=planes_per_block, rows_per_block=rows_per_block
    )
    return PoolingPlan(LaunchPlan(kernel, config, variant.name), _shape(problem, variant.x_strides(problem)), dense)


def _shape(problem: Pool2dProblem, x_strides: Four) -> MaxPool2dShape:
    four = ctypes.c_int64 * 4
    pairs: dict[str, Any] = {}
    for name, pair in (("stride", problem.stride), ("pad", problem.padding), ("dilation", problem.dilation)):
        pairs[f"{name}_h"], pairs[f"{name}_w"] = pair
    return MaxPool2dShape(
        **{name: getattr(problem, name) for name in ("N", "C", "H", "W", "P", "Q")},
        R=problem.window[0],
        S=problem.window[1],
        **pairs,
        x_stride=four(*x_strides),
        y_stride=four(*problem.y_strides),
    )


def compiled_rows(variant: str) -> Iterator[Kernel]:
    """Yields the kernels of a variant in both directions: for each of `FIXED_WINDOWS`, whose offsets take one byte, and for any
    window with offsets of one or two bytes."""
    for direction in ("forward", "backward"):
        row = (f"max_pool2d/{variant}.cuh", f"max_pool2d_{direction}_{variant}_kernel", tuple(CPP_TYPES.values()))
        yield from instantiate(*row, ("uint8_t",), tuple(FIXED_WINDOWS.values()))
        yield from instantiate(*row, ("uint8_t", "int16_t"), ("AnyWindow",))


def distinct(values: Mapping[str, Hashable]) -> list[str]:
    """Returns the tiles whose value no earlier tile has."""
    tiles: dict[Hashable, str] = {}
    for tile, value in values.items():
        tiles.setdefault(value, tile)
    return list(tiles.values())


def one_thread_for_each(items: int) -> LaunchConfig:
    """Returns a one-dimensional launch with one thread for each item."""
    return LaunchConfig(grid=(ceil_divide(items, THREADS), 1, 1), block=(THREADS, 1, 1))
