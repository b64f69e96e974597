"""What `cluster` and `grid_exchange` have in common: how W and the batch are cut among blocks (persistent.cuh)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ...arithmetic import ceil_divide
from ...hardware import Device
from ...planning import Configuration, Prediction, Variant
from .cost import (
    POINTWISE_CLOCKS,
    SCHEDULERS,
    SHARED_BYTES_PER_CLOCK,
    StepClocks,
    pass_prediction,
    product_clocks,
)
from .problem import Recurrence
from .tile import CHUNK_BYTES, TILE_COLUMNS, TILE_ROWS, warp_sums_bytes

WARPS = 8
THREADS = 32 * WARPS


class Cut(NamedTuple):
    """How H and the batch are cut among blocks."""

    slices: int  # blocks that share the units of one direction
    groups: int  # of samples, independent of each other
    tiles: int  # column tiles of a group, at most
    shared_bytes: int


def tile_name(row_tiles: int) -> str:
    """Returns the name of a block's tile, units x samples."""
    return f"{TILE_ROWS * row_tiles}x{TILE_COLUMNS}"


def overflow_bytes(problem: Recurrence, row_tiles: int) -> int:
    """Returns the bytes of a slice's W that do not fit into registers and are kept in shared memory."""
    if problem.math == "float":
        in_registers = 7 if row_tiles == 2 else 8 // row_tiles
    else:
        in_registers = (12 if problem.math == "double" else 16) // row_tiles
    chunks = ceil_divide(problem.chunks, WARPS)  # of one warp, at most
    return max(0, chunks - in_registers) * WARPS * row_tiles * TILE_ROWS * CHUNK_BYTES


def slice_bytes(problem: Recurrence, row_tiles: int) -> int:
    """Returns the bytes of shared memory that a slice needs for W and two buffers of sums, without those of the exchange."""
    sums = warp_sums_bytes(WARPS, row_tiles * TILE_ROWS, TILE_COLUMNS, problem.dtype)
    return overflow_bytes(problem, row_tiles) + 2 * sums


class SliceVariant(Variant[Recurrence]):
    """A variant whose blocks hold slices of W and exchange the state. Its tiles are the units of a slice x 8 samples."""

    blocks_wait = True
    row_tiles: tuple[int, ...]  # the numbers of row tiles for which the kernel is instantiated
    bytes_per_clock: float  # at which the state comes into one multiprocessor while all of them read
    exchange_clocks: float  # from a store until another block sees it

    def cut(self, problem: Recurrence, row_tiles: int, device: Device) -> Cut | None:
        """Returns the cut for blocks of `row_tiles` row tiles; None if W, or what the exchange needs, does not fit."""
        raise NotImplementedError

    def cut_of(self, problem: Recurrence, configuration: Configuration, device: Device) -> tuple[int, Cut]:
        """Returns the number of row tiles of a configuration, and its cut."""
        (row_tiles,) = (count for count in self.row_tiles if tile_name(count) == configuration.tile)
        cut = self.cut(problem, row_tiles, device)
        assert cut is not None, f"{configuration} is not one of tiles()"
        return row_tiles, cut

    def tiles(self, problem: Recurrence, device: Device) -> Sequence[str]:
        return [tile_name(row_tiles) for row_tiles in self.row_tiles if self.cut(problem, row_tiles, device) is not None]

    def predict(self, problem: Recurrence, configuration: Configuration, device: Device) -> Prediction:
        row_tiles, cut = self.cut_of(problem, configuration, device)
        parts = {
            "products": product_clocks(problem, row_tiles * WARPS / SCHEDULERS, ceil_divide(problem.chunks, WARPS)),
            "shared memory": overflow_bytes(problem, row_tiles) / SHARED_BYTES_PER_CLOCK,
            "reads of the state": problem.H * TILE_COLUMNS * problem.item_bytes / self.bytes_per_clock,
        }
        bound = max(parts, key=parts.__getitem__)
        tile = parts[bound] + POINTWISE_CLOCKS
        # With several column tiles, the exchange of one overlaps with the computation of the others.
        clocks = max(cut.tiles * tile, tile + self.exchange_clocks)
        if cut.tiles * tile < clocks and parts[bound] < self.exchange_clocks:
            bound = "the exchange"
        return pass_prediction(problem, StepClocks(clocks, bound), device)
