"""The variant strided (strided.cuh): a thread computes one element, whatever the strides and the window."""

from __future__ import annotations

from ...dtypes import CPP_TYPES
from ...hardware import Device
from ...planning import Configuration
from ...table import Kernel, LaunchConfig, instantiate
from .cost import DIVIDE, Cost, backward_instructions, choice_bytes, forward_instructions, sector_waste, touched_x_bytes
from .plan import PoolingVariant, one_thread_for_each
from .problem import OFFSET_BYTES, Pool2dProblem


def _rows() -> list[Kernel]:
    rows: list[Kernel] = []
    for direction in ("forward", "backward"):
        template = f"max_pool2d_{direction}_strided_kernel"
        rows += instantiate("max_pool2d/strided.cuh", template, tuple(CPP_TYPES.values()), tuple(OFFSET_BYTES))
    return rows


KERNELS = tuple(_rows())


class Strided(PoolingVariant):
    """A thread owns one output, or in the backward pass one pixel. Accepts every problem."""

    name = "strided"
    kernels = KERNELS

    def refuses(self, problem: Pool2dProblem, device: Device) -> str | None:
        return None

    def launch_config(self, problem: Pool2dProblem, configuration: Configuration, device: Device) -> LaunchConfig:
        return one_thread_for_each(problem.outputs if problem.direction == "forward" else problem.pixels)

    def cost(self, problem: Pool2dProblem, configuration: Configuration, device: Device) -> Cost:
        """Counts whole sectors of strided inputs, and four divisions for each thread: three find its element's position, and the
        fourth, which only the forward pass needs, finds the image."""
        if problem.direction == "forward":
            threads = problem.outputs
            moved = touched_x_bytes(problem) * sector_waste(problem) + choice_bytes(problem)
            instructions = forward_instructions(problem, 1, any_window=True)
        else:
            threads = problem.pixels
            moved = choice_bytes(problem) + problem.pixels * problem.item_bytes
            instructions = backward_instructions(problem, 1, any_window=True)
        return Cost(bytes=moved, instructions=threads * (instructions + 4 * DIVIDE), loads=threads, threads=threads)


STRIDED = Strided()
