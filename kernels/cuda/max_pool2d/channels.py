"""The variant channels (channels.cuh): threads own 16-byte pieces of channels_last pixels."""

from __future__ import annotations

from collections.abc import Sequence

from ...arithmetic import ceil_divide, power_of_two
from ...hardware import Device
from ...planning import Configuration
from ...table import LaunchConfig
from .cost import Cost, backward_instructions, choice_bytes, forward_instructions, touched_x_bytes
from .plan import THREADS, PoolingVariant, compiled_rows, distinct
from .problem import TOO_MANY_CELLS, Pool2dProblem

GRID_LIMIT = 65535  # CUDA's limit on a grid in y and z; beyond it, blocks compute several strips or images
Z_LIMIT = 64  # CUDA's limit on a block in z

#: Tile -> the most threads of a block, the preferred first.
_THREADS = {f"{threads} threads": threads for threads in (THREADS, 128, 64)}


KERNELS = tuple(compiled_rows("channels"))


class Channels(PoolingVariant):
    """A thread owns a 16-byte piece of channels of a column, and walks down strips."""

    name = "channels"
    kernels = KERNELS

    def refuses(self, problem: Pool2dProblem, device: Device) -> str | None:
        if problem.offset_type == "int32_t":
            return TOO_MANY_CELLS
        return problem.refuses_pieces()

    def tiles(self, problem: Pool2dProblem, device: Device) -> Sequence[str]:
        return distinct({tile: _block(problem, threads) for tile, threads in _THREADS.items()})

    def template_arguments(self, problem: Pool2dProblem) -> tuple[str, ...]:
        return (*problem.types, problem.compiled_window)

    def launch_config(self, problem: Pool2dProblem, configuration: Configuration, device: Device) -> LaunchConfig:
        items, strips = _extents(problem)
        x, y, z = _block(problem, _THREADS[configuration.tile])
        grid = (ceil_divide(items, x), min(ceil_divide(strips, y), GRID_LIMIT), min(ceil_divide(problem.N, z), GRID_LIMIT))
        return LaunchConfig(grid=grid, block=(x, y, z))

    def cost(self, problem: Pool2dProblem, configuration: Configuration, device: Device) -> Cost:
        """Counts each byte of device memory once, because what strips and columns share comes from L1 and L2."""
        items, strips = _extents(problem)
        threads = items * strips * problem.N
        # How many loads a thread has under way at once: those of one row of a compiled window, or a single one.
        at_once = 1 if problem.any_window else problem.window[1]
        if problem.direction == "forward":
            moved = touched_x_bytes(problem) + choice_bytes(problem)
            instructions = problem.outputs * forward_instructions(problem, problem.piece, problem.any_window)
        else:
            moved = choice_bytes(problem) + problem.pixels * problem.item_bytes
            instructions = problem.pixels * backward_instructions(problem, problem.piece, problem.any_window)
        return Cost(bytes=moved, instructions=instructions, loads=threads * at_once, threads=threads)


def _extents(problem: Pool2dProblem) -> tuple[int, int]:
    """Returns the number of pieces in a row of outputs or pixel blocks, which is columns times pieces of channels, and the number
    of strips in a column."""
    rows, columns = problem.P, problem.Q
    if problem.direction == "backward":
        rows, columns = problem.pixel_blocks(problem.H, 0), problem.pixel_blocks(problem.W, 1)
    return columns * problem.C // problem.piece, ceil_divide(rows, problem.strip)


def _block(problem: Pool2dProblem, most: int) -> tuple[int, int, int]:
    """Returns a block of at most `most` threads, which extends along a row first, then over strips, then over images."""
    items, strips = _extents(problem)
    x = power_of_two(items)
    if items > most:  # from most / 2 to most, the multiple of a warp that leaves the fewest threads idle
        x = min(range(most // 2, most + 1, 32), key=lambda threads: (-items % threads, -threads))
    y = min(most // x, power_of_two(strips))
    z = min(most // (x * y), power_of_two(problem.N), Z_LIMIT)
    return x, y, z


CHANNELS = Channels()
