"""The variant cluster (cluster.cuh): the blocks of a cluster hold slices of W and exchange the state through shared memory."""

from __future__ import annotations

from functools import lru_cache

from ...arithmetic import ceil_divide, round_up
from ...hardware import Device
from ...planning import Configuration
from ...table import LaunchConfig, LaunchPlan, instantiate
from .persistent import THREADS, Cut, SliceVariant, slice_bytes
from .problem import PASSES, Recurrence
from .tile import MATHS, TILE_ROWS

ROW_TILES = (2, 4)
SIZES = (2, 4, 8, 16)  # blocks of a cluster
KERNELS = tuple(
    instantiate("rnn/cluster.cuh", "rnn_cluster_kernel", MATHS, PASSES, tuple(map(str, ROW_TILES)), architecture="90")
)
_BY_ARGUMENTS = {row.arguments: row for row in KERNELS}
#: The share of the multiprocessors that resident clusters can occupy, as estimated for clusters of 16 blocks.
_RESIDENT_SHARE = 7 / 8


class Cluster(SliceVariant):
    """Accepts problems whose W and states, for one direction, fit into the blocks of one cluster. Needs compute capability 9.0 or
    later."""

    name = "cluster"
    row_tiles = ROW_TILES
    bytes_per_clock = 16  # from the other blocks of the cluster
    exchange_clocks = 250

    def refuses(self, problem: Recurrence, device: Device) -> str | None:
        if device.capability < (9, 0):
            return f"clusters need compute capability 9.0, not {device.capability[0]}.{device.capability[1]}"
        if not self.tiles(problem, device):
            return f"W_hh ({problem.H} x {problem.H}) and the states do not fit into a cluster of {SIZES[-1]} blocks"
        return None

    def cut(self, problem: Recurrence, row_tiles: int, device: Device) -> Cut | None:
        return _cut(problem, row_tiles, device)

    def plan(self, problem: Recurrence, configuration: Configuration, device: Device) -> LaunchPlan:
        return _plan(problem, *self.cut_of(problem, configuration, device))


@lru_cache(maxsize=4096)
def _cut(problem: Recurrence, row_tiles: int, device: Device) -> Cut | None:
    slices = next((size for size in SIZES if size * TILE_ROWS * row_tiles >= problem.H), None)
    if slices is None:
        return None
    # Groups that are not resident wait for others to end, so a group gets enough column tiles to keep all groups resident.
    resident = max(1, int(device.multiprocessors * _RESIDENT_SHARE / (slices * problem.D)))
    tiles = ceil_divide(problem.batch_tiles, min(problem.batch_tiles, resident))
    mbarriers = round_up(2 * tiles * 8, 128)
    shared_bytes = slice_bytes(problem, row_tiles) + 2 * tiles * problem.state_buffer_bytes + mbarriers
    if shared_bytes > device.shared_bytes_per_block:
        return None
    return Cut(slices=slices, groups=ceil_divide(problem.batch_tiles, tiles), tiles=tiles, shared_bytes=shared_bytes)


@lru_cache(maxsize=4096)
def _plan(problem: Recurrence, row_tiles: int, cut: Cut) -> LaunchPlan:
    kernel = _BY_ARGUMENTS[problem.math, problem.template_pass, str(row_tiles)]
    grid = (cut.slices, cut.groups, problem.D)
    config = LaunchConfig(grid=grid, block=(THREADS, 1, 1), shared_bytes=cut.shared_bytes, cluster=(cut.slices, 1, 1))
    return LaunchPlan(kernel, config, "cluster")


CLUSTER = Cluster()
