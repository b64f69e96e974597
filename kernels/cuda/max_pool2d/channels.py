"""Variant channels: threads own 16-byte pieces of channels_last pixels; see channels.cuh."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...arithmetic import ceil_divide, power_of_two
from ...dtypes import CPP_TYPES
from ...hardware import Device
from ...planning import Configuration
from ...table import Kernel, LaunchConfig, instantiate
from .cost import Cost, backward_instructions, choice_bytes, forward_instructions, touched_x_bytes
from .plan import THREADS, PoolingVariant, distinct
from .problem import FIXED_WINDOWS, Pool2dProblem

GRID_LIMIT = 65535  # CUDA's, in y and z; where there is more work, blocks take several strips or images
Z_LIMIT = 64  # CUDA's, of a block

#: Tile -> the most threads of a block, the preferred first.
_THREADS = {f"{threads} threads": threads for threads in (THREADS, 128, 64)}


def compiled_rows(variant: str) -> Iterator[Kernel]:
    """Rows of a variant that exists with compiled windows: for these with the offsets that they need, for any window with two."""
    for direction in ("forward", "backward"):
        row = (f"max_pool2d/{variant}.cuh", f"max_pool2d_{direction}_{variant}_kernel", tuple(CPP_TYPES.values()))
        yield from instantiate(*row, ("uint8_t",), tuple(FIXED_WINDOWS.values()))
        yield from instantiate(*row, ("uint8_t", "int16_t"), ("AnyWindow",))


class Channels(PoolingVariant):
    """A thread owns a 16-byte piece of channels of a column, and walks down strips."""

    name = "channels"
    kernels = tuple(compiled_rows("channels"))

    def refuses(self, problem: Pool2dProblem, device: Device) -> str | None:
        if problem.offset_type == "int32_t":
            return "a window has more than 32767 cells"
        return problem.refuses_pieces()

    def tiles(self, problem: Pool2dProblem, device: Device) -> Sequence[str]:
        return distinct({tile: _block(problem, threads) for tile, threads in _THREADS.items()})

    def template_arguments(self, problem: Pool2dProblem) -> tuple[str, ...]:
        return (*problem.types, problem.compiled_window)

    def launch_config(self, problem: Pool2dProblem, configuration: Configuration, device: Device) -> LaunchConfig:
        items, strips = _extents(problem)
        x, y, z = _block(problem, _THREADS[configuration.tile])
        grid = (ceil_divide(items, x), min(ceil_divide(strips, y), GRID_LIMIT), min(ceil_divide(problem.N, z), GRID_LIMIT))
        return LaunchConfig(grid, (x, y, z))

    def cost(self, problem: Pool2dProblem, configuration: Configuration, device: Device) -> Cost:
        """Each byte passes device memory once: what strips and columns share comes from L1 and L2."""
        items, strips = _extents(problem)
        threads = items * strips * problem.N
        at_once = 1 if problem.any_window else problem.window[1]  # a row of a compiled window is loaded together
        if problem.direction == "forward":
            bytes_ = touched_x_bytes(problem) + choice_bytes(problem)
            instructions = problem.outputs * forward_instructions(problem, problem.piece, problem.any_window)
        else:
            bytes_ = choice_bytes(problem) + problem.pixels * problem.item_bytes
            instructions = problem.pixels * backward_instructions(problem, problem.piece, problem.any_window)
        return Cost(bytes=bytes_, instructions=instructions, loads=threads * at_once, threads=threads)


def _extents(problem: Pool2dProblem) -> tuple[int, int]:
    """Columns times pieces of channels, and strips of each."""
    rows, columns = problem.P, problem.Q
    if problem.direction == "backward":
        rows, columns = problem.pixel_blocks(problem.H, 0), problem.pixel_blocks(problem.W, 1)
    return columns * problem.C // problem.piece, ceil_divide(rows, problem.strip)


def _block(problem: Pool2dProblem, most: int) -> tuple[int, int, int]:
    """The block of at most `most` threads: first along a row, then strips, then images."""
    items, strips = _extents(problem)
    x = power_of_two(items)
    if items > most:  # the multiple of a warp that leaves the fewest threads of the last block idle
        x = min(range(most // 2, most + 1, 32), key=lambda threads: (-items % threads, -threads))
    y = min(most // x, power_of_two(strips))
    z = min(most // (x * y), power_of_two(problem.N), Z_LIMIT)
    return x, y, z
