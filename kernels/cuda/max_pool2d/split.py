"""The variant split (split.cuh): the threads of a block share each tall window; forward only."""

from __future__ import annotations

from collections.abc import Sequence

from ...arithmetic import ceil_divide, power_of_two
from ...dtypes import CPP_TYPES, ITEM_BYTES, accumulator_bytes
from ...hardware import Device
from ...planning import Configuration
from ...table import Kernel, LaunchConfig, instantiate
from .cost import BUSY, Cost, choice_bytes, forward_instructions, sector_waste, touched_x_bytes
from .plan import THREADS, PoolingVariant
from .problem import OFFSET_BYTES, PIECE_BYTES, Pool2dProblem

LEAST_WINDOW_ROWS = 8
MOST_SLICES = 32
#: How many rows a slice has at least, before the number of slices is rounded up to a power of two. Rounding may reduce the rows
#: to 3 and leave fewer for the last slices. With fewer rows in all slices, comparing them would take a noticeable part of the
#: time.
ROWS_OF_A_SLICE = 4


def _rows() -> list[Kernel]:
    rows: list[Kernel] = []
    for dtype, item_bytes in ITEM_BYTES.items():
        axes = ((CPP_TYPES[dtype],), tuple(OFFSET_BYTES), ("1", str(PIECE_BYTES // item_bytes)))
        rows += instantiate("max_pool2d/split.cuh", "max_pool2d_forward_split_kernel", *axes)
    return rows


KERNELS = tuple(_rows())


class Split(PoolingVariant):
    """Each thread of a block owns a slice of a window's rows, for one channel or a 16-byte piece of channels. A configuration's
    number of splits is the number of slices."""

    name = "split"
    kernels = KERNELS

    def refuses(self, problem: Pool2dProblem, device: Device) -> str | None:
        if not problem.any_window or problem.window[0] < LEAST_WINDOW_ROWS:
            return f"windows are less than {LEAST_WINDOW_ROWS} rows high"
        if problem.outputs // _width(problem) >= device.multiprocessors * BUSY:
            return "there are outputs enough to fill the GPU"
        return None

    def splits(self, problem: Pool2dProblem, tile: str, device: Device) -> Sequence[int]:
        """Returns the powers of two from 2 up to the first that is at least R // 4, where R is the height of a window, but none
        above MOST_SLICES."""
        most = min(power_of_two(problem.window[0] // ROWS_OF_A_SLICE), MOST_SLICES)
        return [1 << i for i in range(1, most.bit_length())]

    def template_arguments(self, problem: Pool2dProblem) -> tuple[str, ...]:
        return (*problem.types, str(_width(problem)))

    def launch_config(self, problem: Pool2dProblem, configuration: Configuration, device: Device) -> LaunchConfig:
        slices, V = configuration.splits, _width(problem)
        items = problem.Q * problem.C // V
        x = min(THREADS // slices, power_of_two(items))
        shared_bytes = x * slices * V * (accumulator_bytes(problem.dtype) + OFFSET_BYTES["int32_t"])
        blocks = ceil_divide(items, x) * problem.P * problem.N
        return LaunchConfig(grid=(blocks, 1, 1), block=(x, slices, 1), shared_bytes=shared_bytes)

    def cost(self, problem: Pool2dProblem, configuration: Configuration, device: Device) -> Cost:
        """Leaves out the comparison of the slices, which takes as long as one more cell for each slice. So the smallest number of
        slices that keeps the GPU busy is predicted to be as fast as any larger number."""
        V = _width(problem)
        threads = problem.outputs // V * configuration.splits
        waste = sector_waste(problem) if V == 1 else 1
        return Cost(
            bytes=touched_x_bytes(problem) * waste + choice_bytes(problem),
            instructions=problem.outputs * forward_instructions(problem, V, any_window=True),
            loads=threads,
            threads=threads,
            in_turn=True,
        )


def _width(problem: Pool2dProblem) -> int:
    """Channels that a thread loads at once."""
    return problem.piece if problem.refuses_pieces() is None else 1


SPLIT = Split()
