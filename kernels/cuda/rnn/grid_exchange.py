"""The variant grid_exchange (grid_exchange.cuh): blocks all over the device hold slices of W and exchange states through L2."""

from __future__ import annotations

from functools import lru_cache

from ...arithmetic import ceil_divide
from ...hardware import Device
from ...planning import Configuration
from ...table import LaunchConfig, LaunchPlan, instantiate
from .cost import L2_BYTES_PER_CLOCK
from .persistent import THREADS, Cut, SliceVariant, slice_bytes
from .problem import PASSES, Recurrence
from .tile import MATHS, TILE_ROWS

ROW_TILES = (1, 2, 3, 4)
KERNELS = tuple(instantiate("rnn/grid_exchange.cuh", "rnn_grid_exchange_kernel", MATHS, PASSES, tuple(map(str, ROW_TILES))))
_BY_ARGUMENTS = {row.arguments: row for row in KERNELS}


class GridExchange(SliceVariant):
    """Accepts aligned problems whose W fits into the registers and shared memory of the device. The caller fills the output with
    the sentinel, all bits set, before the launch."""

    name = "grid_exchange"
    row_tiles = ROW_TILES
    bytes_per_clock = L2_BYTES_PER_CLOCK
    exchange_clocks = 700

    def refuses(self, problem: Recurrence, device: Device) -> str | None:
        if not problem.aligned:
            return "blocks exchange 16 bytes at a time, and rows of the state do not start on 16 bytes"
        if not self.tiles(problem, device):
            memories = f"the registers and shared memory of {device.multiprocessors} multiprocessors"
            return f"W_hh ({problem.D} x {problem.H} x {problem.H}) does not fit into {memories}"
        return None

    def cut(self, problem: Recurrence, row_tiles: int, device: Device) -> Cut | None:
        return _cut(problem, row_tiles, device)

    def plan(self, problem: Recurrence, configuration: Configuration, device: Device) -> LaunchPlan:
        return _plan(problem, *self.cut_of(problem, configuration, device))


@lru_cache(maxsize=4096)
def _cut(problem: Recurrence, row_tiles: int, device: Device) -> Cut | None:
    slices = ceil_divide(problem.H, TILE_ROWS * row_tiles)
    shared_bytes = slice_bytes(problem, row_tiles)
    if shared_bytes > device.shared_bytes_per_block or slices * problem.D > device.multiprocessors:
        return None
    resident = device.multiprocessors // (slices * problem.D)  # groups that are resident at once
    tiles = ceil_divide(problem.batch_tiles, min(problem.batch_tiles, resident))
    return Cut(slices=slices, groups=ceil_divide(problem.batch_tiles, tiles), tiles=tiles, shared_bytes=shared_bytes)


@lru_cache(maxsize=4096)
def _plan(problem: Recurrence, row_tiles: int, cut: Cut) -> LaunchPlan:
    kernel = _BY_ARGUMENTS[problem.math, problem.template_pass, str(row_tiles)]
    grid = (cut.slices, cut.groups, problem.D)
    config = LaunchConfig(grid=grid, block=(THREADS, 1, 1), shared_bytes=cut.shared_bytes, cooperative=True)
    return LaunchPlan(kernel, config, "grid_exchange")


GRID_EXCHANGE = GridExchange()
