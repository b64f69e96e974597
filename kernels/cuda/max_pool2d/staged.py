"""The variant staged (staged.cuh): blocks compute on stretches of dense tensors in shared memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from ...arithmetic import ceil_divide, round_up
from ...hardware import Device
from ...planning import Configuration
from ...shapes import Four
from ...table import LaunchConfig
from .cost import COPY, DIVIDE_32, Cost, backward_instructions, choice_bytes, forward_instructions
from .plan import THREADS, PoolingVariant, compiled_rows, distinct
from .problem import PIECE_BYTES, TOO_MANY_CELLS, Pool2dProblem

#: Tile -> the bytes of x, or of dx, that a block stages at most, unless a band as high as its halo needs more. A block with
#: 16 KiB of x, 16 KiB of y and one-byte offsets needs at most about 40 KiB. A multiprocessor's 227 KiB of shared memory hold
#: five such blocks, so that some compute while others load.
_STAGE_BYTES = {f"{kib} KiB": kib << 10 for kib in (16, 4, 8, 32, 64)}
_PREFERRED = next(iter(_STAGE_BYTES))
_LEAST_STAGE_BYTES = 2 << 10


class BlockWork(NamedTuple):
    """What a block computes, and the shared memory that it needs."""

    planes: int
    rows: int  # of each plane: output rows, or in the backward pass rows of pixel blocks
    shared_bytes: int
    input_bytes: int  # what it loads, halo included
    items: int  # strips that are one element wide; a thread computes one at a time


KERNELS = tuple(compiled_rows("staged"))


class Staged(PoolingVariant):
    """A block copies whole planes, or a band of one, into shared memory and computes there."""

    name = "staged"
    kernels = KERNELS

    def refuses(self, problem: Pool2dProblem, device: Device) -> str | None:
        if problem.offset_type == "int32_t":
            return TOO_MANY_CELLS
        if problem.with_lengths:
            return "sequences have different lengths"
        if problem.layout not in ("channels_last", "nchw"):
            return "the input is not dense"
        if block_work(problem, _PREFERRED, device) is None:
            return "a strip of its rows exceeds the shared memory of a block"
        return None

    def tiles(self, problem: Pool2dProblem, device: Device) -> Sequence[str]:
        works = {tile: block_work(problem, tile, device) for tile in _STAGE_BYTES}
        return distinct({tile: work for tile, work in works.items() if work is not None})

    def handicap(self, problem: Pool2dProblem, configuration: Configuration) -> float:
        """Lets only a measurement or `force` select a tile other than the preferred one."""
        return 1.0 if configuration.tile == _PREFERRED else math.inf

    def template_arguments(self, problem: Pool2dProblem) -> tuple[str, ...]:
        return (*problem.types, problem.compiled_window)

    def x_strides(self, problem: Pool2dProblem) -> Four:
        return problem.dense_x_strides

    def block_extents(self, problem: Pool2dProblem, configuration: Configuration, device: Device) -> tuple[int, int]:
        work = _work(problem, configuration, device)
        return work.planes, work.rows

    def launch_config(self, problem: Pool2dProblem, configuration: Configuration, device: Device) -> LaunchConfig:
        work = _work(problem, configuration, device)
        threads = min(max(round_up(work.items, 32), 64), THREADS)
        blocks = ceil_divide(problem.planes, work.planes) * ceil_divide(_direction(problem).rows, work.rows)
        return LaunchConfig(grid=(blocks, 1, 1), block=(threads, 1, 1), shared_bytes=work.shared_bytes)

    def cost(self, problem: Pool2dProblem, configuration: Configuration, device: Device) -> Cost:
        """Counts a halo once for each block that reads it. All loads of a block count as under way at once; they overlap with
        computation only if the multiprocessor holds a second block."""
        work, config = _work(problem, configuration, device), self.launch_config(problem, configuration, device)
        blocks = config.grid[0]
        read = blocks * work.input_bytes
        items = blocks * work.items
        if problem.direction == "forward":
            moved = read + choice_bytes(problem)
            instructions = problem.outputs * forward_instructions(problem, 1, problem.any_window)
        else:
            moved = read + problem.pixels * problem.item_bytes
            instructions = problem.pixels * backward_instructions(problem, 1, problem.any_window)
        divisions = 3  # for the strip, the plane and the column of an item
        return Cost(
            bytes=moved,
            instructions=instructions + items * divisions * DIVIDE_32 + moved / PIECE_BYTES * COPY,
            loads=read / PIECE_BYTES,
            threads=blocks * config.block[0],
            in_turn=2 * work.shared_bytes > device.shared_bytes_per_block,
        )


def _work(problem: Pool2dProblem, configuration: Configuration, device: Device) -> BlockWork:
    work = block_work(problem, configuration.tile, device)
    assert work is not None, "tiles() lists only what fits"
    return work


def block_work(problem: Pool2dProblem, tile: str, device: Device) -> BlockWork | None:
    """Returns what a block computes with a tile; None if that does not fit in shared memory.

    A block computes whole planes if at least one fits in the bytes to stage; else a band of one plane's rows, in whole strips,
    which is halved until it fits in shared memory.
    """
    direction, stage = _direction(problem), _stage_bytes(problem, _STAGE_BYTES[tile], device)
    plane_bytes = problem.H * problem.W * problem.inner * problem.item_bytes
    if plane_bytes <= stage:
        work = direction.work(min(stage // plane_bytes, problem.planes), direction.rows)
        return work if work.shared_bytes <= device.shared_bytes_per_block else None
    strips = ceil_divide(max(direction.band(stage), 1), problem.strip)
    while strips:
        work = direction.work(1, min(strips * problem.strip, direction.rows))
        if work.shared_bytes <= device.shared_bytes_per_block:
            return work
        strips //= 2
    return None


def _stage_bytes(problem: Pool2dProblem, most: int, device: Device) -> int:
    """Returns the bytes of x for each block: fewer than `most`, down to 2 KiB, if multiprocessors would otherwise get fewer than
    two blocks each."""
    total = problem.pixels * problem.item_bytes
    return min(most, max(total // (2 * device.multiprocessors), _LEAST_STAGE_BYTES))


def _region(elements: int, item_bytes: int) -> int:
    """Returns the bytes from the start of one region to the next, as `region_behind` of staging.cuh computes them."""
    return round_up(elements * item_bytes + 16, 16)


class _Forward:
    """What blocks compute in the forward pass, where rows of a band are output rows."""

    def __init__(self, problem: Pool2dProblem):
        self.problem, self.rows = problem, problem.P
        self.reach = (problem.window[0] - 1) * problem.dilation[0] + 1  # input rows that a window spans
        self.x_row, self.y_row = problem.W * problem.inner, problem.Q * problem.inner

    def band(self, stage: int) -> int:
        """Returns how many output rows have an input that fits in `stage` bytes, but at least a window's height divided by the
        stride, rounded up, so that the band is at least as high as its halo."""
        problem = self.problem
        fitting = (stage // (self.x_row * problem.item_bytes) - self.reach) // problem.stride[0] + 1
        return max(fitting, ceil_divide(self.reach, problem.stride[0]))

    def work(self, planes: int, rows: int) -> BlockWork:
        """Returns the work of a block that computes `rows` rows of each of `planes` planes."""
        problem, item_bytes = self.problem, self.problem.item_bytes
        band_rows = min(problem.H, (rows - 1) * problem.stride[0] + self.reach)
        x_count = (planes * problem.H if rows == problem.P else band_rows) * self.x_row
        y_count = planes * rows * self.y_row
        return BlockWork(
            planes=planes,
            rows=rows,
            shared_bytes=_region(x_count, item_bytes) + _region(y_count, item_bytes) + _region(y_count, problem.offset_bytes),
            input_bytes=x_count * item_bytes,
            items=planes * ceil_divide(rows, problem.strip) * self.y_row,
        )


class _Backward:
    """What blocks compute in the backward pass, where rows of a band are rows of pixel blocks."""

    def __init__(self, problem: Pool2dProblem):
        self.problem, self.rows = problem, problem.pixel_blocks(problem.H, 0)
        self.reach = (problem.window[0] - 1) * problem.dilation[0]  # rows from the first cell of a window to its last
        self.x_row, self.y_row = problem.W * problem.inner, problem.Q * problem.inner
        self.block_rows = 1 if problem.any_window else problem.stride[0]  # pixel rows of a pixel block

    def band(self, stage: int) -> int:
        """Returns how many rows of pixel blocks have a dx that fits in `stage` bytes, but at least as many as a window spans."""
        fitting = stage // (self.x_row * self.problem.item_bytes * self.block_rows)
        return max(fitting, ceil_divide(self.reach + 1, self.block_rows))

    def work(self, planes: int, rows: int) -> BlockWork:
        """Returns the work of a block that computes `rows` rows of each of `planes` planes."""
        problem, item_bytes, pixel_rows = self.problem, self.problem.item_bytes, rows * self.block_rows
        whole = rows == self.rows
        y_rows = planes * problem.P if whole else min(problem.P, ceil_divide(pixel_rows + self.reach, problem.stride[0]))
        y_count = y_rows * self.y_row
        x_count = (planes * problem.H if whole else min(problem.H, pixel_rows)) * self.x_row
        columns = problem.pixel_blocks(problem.W, 1) * problem.inner
        return BlockWork(
            planes=planes,
            rows=rows,
            shared_bytes=_region(y_count, item_bytes) + _region(y_count, problem.offset_bytes) + _region(x_count, item_bytes),
            input_bytes=y_count * (item_bytes + problem.offset_bytes),
            items=planes * ceil_divide(rows, problem.strip) * columns,
        )


def _direction(problem: Pool2dProblem) -> _Forward | _Backward:
    return _Forward(problem) if problem.direction == "forward" else _Backward(problem)


STAGED = Staged()
