"""The kernels of recurrence, and which of them serves a call; the ideas are told at the head of each .cuh file."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from ...dtypes import CPP_TYPES
from ...shapes import RnnShape, SizeError
from ...table import Kernel, LaunchConfig, LaunchPlan, instantiate

#: `Nonlinearity` of elman.cuh, in its order.
NONLINEARITIES = ("tanh", "relu", "sigmoid", "identity")
ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}

# Names of tile.cuh and of the kernel files; a static_assert there derives each.
TILE_ROWS, TILE_COLUMNS, CHUNK_BYTES, FRAGMENT_BYTES = 16, 8, 64, 16
PRODUCT_WARPS = 8
COLUMN_TILES = (1, 4)  # of the kernels that read W anew at each launch
_GRID_LIMIT = 65535  # in y
SINGLE_BLOCK_ROWS, SINGLE_BLOCK_MAX_H = 32, 256
SLICE_WARPS = 8
GRID_FLAGS_ROW_TILES = (1, 2, 3, 4)
CLUSTER_ROW_TILES = (2, 4)
CLUSTER_SIZES = (2, 4, 8, 16)

# What the predictions below are made of, in clocks of an SM of sm_90. Arithmetic and published figures, none measured yet.
_MMA_CLOCKS = {"half": 6.5, "bfloat16": 6.5, "tfloat32": 6.5, "float": 64, "double": 16}  # per instruction of a scheduler
_MMA_PER_CHUNK = {"half": 2, "bfloat16": 2, "tfloat32": 2, "float": 1, "double": 4}  # and row tile; IEEE fp32: 64 multiply-adds
_SCHEDULERS = 4
_SHARED_BYTES_PER_CLOCK = 128
_L2_BYTES_PER_CLOCK = 24  # of one SM while all read
_POINTWISE_CLOCKS = 150  # sums, nonlinearity, stores, one barrier
_L2_EXCHANGE_CLOCKS = 700  # from a store to its being seen by another SM
_CLUSTER_BYTES_PER_CLOCK = 16  # into one SM from the others of its cluster
_CLUSTER_EXCHANGE_CLOCKS = 250  # from a store to its being seen by another SM of the cluster
_CLUSTER_SHARE = 7 / 8  # of all SMs: some are left over where a cluster of 16 does not fit
_LAUNCH_CLOCKS = 4500  # 2.5 us

MATHS = ("half", "bfloat16", "tfloat32", "float", "double")
PASSES = ("ForwardPass<ElmanCell>", "BackwardPass<ElmanCell>")


def _rows() -> list[Kernel]:
    columns = tuple(map(str, COLUMN_TILES))
    rows: list[Kernel] = []
    rows += instantiate("rnn/step.cuh", "rnn_step_kernel", MATHS, PASSES, columns)
    rows += instantiate("rnn/cell.cuh", "rnn_cell_forward_kernel", MATHS, columns)
    rows += instantiate("rnn/cell.cuh", "rnn_cell_backward_kernel", MATHS, columns)
    rows += instantiate("rnn/single_block.cuh", "rnn_single_block_kernel", MATHS, PASSES)
    rows += instantiate("rnn/grid_flags.cuh", "rnn_grid_flags_kernel", MATHS, PASSES, tuple(map(str, GRID_FLAGS_ROW_TILES)))
    row_tiles = tuple(map(str, CLUSTER_ROW_TILES))
    rows += instantiate("rnn/cluster.cuh", "rnn_cluster_kernel", MATHS, PASSES, row_tiles, architecture="90")
    return rows


KERNELS = tuple(_rows())
_BY_NAME = {(row.name, row.arguments): row for row in KERNELS}


class StepStride(ctypes.Structure):
    """`StepStride` of parameters.h."""

    _fields_ = [("t", ctypes.c_int64), ("n", ctypes.c_int64)]


class ElmanCell(ctypes.Structure):
    """`ElmanCell` of elman.cuh."""

    _fields_ = [("nonlinearity", ctypes.c_int32)]


class RnnParameters(ctypes.Structure):
    """`RnnParameters` of parameters.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("z", "h0", "h", "dh", "dz", "dh0", "w", "lengths", "step_offsets")),
        *((name, StepStride) for name in ("z_stride", "h_stride", "dh_stride", "dz_stride")),
        *((name, ctypes.c_int32) for name in ("w_stride", "aligned_carry", "step", "D")),
        ("shape", RnnShape),
        ("cell", ElmanCell),
    ]
    _anonymous_ = ("cell",)


class RnnCellParameters(ctypes.Structure):
    """`RnnCellParameters` of parameters.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "h", "w_ih", "w_hh", "b_ih", "b_hh", "h_next", "dh_next", "dz", "dx", "dh")),
        *((f"{name}_stride", ctypes.c_int64) for name in ("x", "h", "w_ih", "w_hh", "h_next", "dh_next")),
        ("shape", RnnShape),
        ("aligned", ctypes.c_int32),
        ("cell", ElmanCell),
    ]
    _anonymous_ = ("cell",)


#: By the name of the template.
PARAMETERS: dict[str, type[ctypes.Structure]] = {
    **{f"rnn_{variant}_kernel": RnnParameters for variant in ("step", "single_block", "grid_flags", "cluster")},
    **{f"rnn_cell_{direction}_kernel": RnnCellParameters for direction in ("forward", "backward")},
}


def arithmetic(dtype: str, precision: str) -> str:
    """The C++ name of how a dtype is multiplied: that of the type itself, or tfloat32."""
    return "tfloat32" if dtype == "float32" and precision == "tf32" else CPP_TYPES[dtype]


@dataclass(frozen=True)
class Recurrence:
    """One pass over one layer, and the GPU it is planned for."""

    backward: bool
    T: int
    N: int
    H: int
    D: int
    dtype: str
    precision: str
    aligned: bool  # rows of the tensors that carry the state start on 16 bytes
    multiprocessors: int
    capability: tuple[int, int]
    shared_bytes: int  # the most a block may have

    @property
    def math(self) -> str:
        return arithmetic(self.dtype, self.precision)

    @property
    def item(self) -> int:
        return ITEM_BYTES[self.dtype]

    @property
    def chunks(self) -> int:
        """Chunks of K, which is H."""
        return -(-self.H * self.item // CHUNK_BYTES)

    @property
    def batch_tiles(self) -> int:
        return -(-self.N // TILE_COLUMNS)

    def product_clocks(self, row_tiles: float, chunks: float) -> float:
        """What a scheduler takes for so many row tiles of one column tile, each over so many chunks."""
        return row_tiles * chunks * _MMA_PER_CHUNK[self.math] * _MMA_CLOCKS[self.math]

    def kernel(self, name: str, *arguments: str) -> Kernel:
        return _BY_NAME[name, (self.math, PASSES[self.backward], *arguments)]


@dataclass(frozen=True)
class Variant:
    """One way to run a pass: a predicate that both selects and explains, its launch, and its predicted clocks per step."""

    name: str
    refuses: Callable[[Recurrence], str | None]  # None: it takes the pass; else why not
    plan: Callable[[Recurrence], LaunchPlan]
    predict: Callable[[Recurrence], float]


def _single_block_overflow(r: Recurrence) -> int:
    """Bytes of W that do not fit into registers."""
    warps = -(-r.H // SINGLE_BLOCK_ROWS)
    in_registers = 6 if r.math in ("float", "double") else 8
    return max(0, r.chunks - in_registers) * warps * SINGLE_BLOCK_ROWS * CHUNK_BYTES


def _single_block_shared(r: Recurrence) -> int:
    return 2 * TILE_COLUMNS * (-(-r.H * r.item // 128) * 128) + _single_block_overflow(r)


def _refuses_single_block(r: Recurrence) -> str | None:
    if r.H > SINGLE_BLOCK_MAX_H:
        return f"one block holds {SINGLE_BLOCK_MAX_H} hidden units, not {r.H}"
    needed = _single_block_shared(r)
    if needed > r.shared_bytes:
        return f"W and the state need {needed} bytes of shared memory, a block has {r.shared_bytes}"
    return None


def _plan_single_block(r: Recurrence) -> LaunchPlan:
    block = (32 * -(-r.H // SINGLE_BLOCK_ROWS), 1, 1)
    config = LaunchConfig((r.batch_tiles, r.D, 1), block, _single_block_shared(r))
    return LaunchPlan(r.kernel("rnn_single_block_kernel"), config, "single_block")


def _predict_single_block(r: Recurrence) -> float:
    warps = -(-r.H // SINGLE_BLOCK_ROWS)
    product = r.product_clocks(SINGLE_BLOCK_ROWS / TILE_ROWS * -(-warps // _SCHEDULERS), r.chunks)
    shared = (_single_block_overflow(r) + warps * TILE_COLUMNS * r.H * r.item) / _SHARED_BYTES_PER_CLOCK
    waves = -(-r.batch_tiles * r.D // r.multiprocessors)
    return waves * (max(product, shared) + _POINTWISE_CLOCKS)


def _sums_bytes(warps: int, rows: int, columns: int, item: int) -> int:
    """`WarpSums::size` accumulators of warp_sums.cuh."""
    return warps * columns * (rows + 4) * max(4, item)


@dataclass(frozen=True)
class _Cut:
    """How H and the batch are cut: blocks per group and direction, groups, and what each block holds."""

    row_tiles: int
    slices: int
    groups: int
    shared_bytes: int
    clocks: float  # of a step, predicted


def _slice_shared(r: Recurrence, row_tiles: int) -> tuple[int, int]:
    """Bytes of shared memory of a slice: of W beyond its registers, and of its warps' sums."""
    if r.math == "float":
        in_registers = 7 if row_tiles == 2 else 8 // row_tiles
    else:
        in_registers = (12 if r.math == "double" else 16) // row_tiles
    chunks = -(-r.chunks // SLICE_WARPS)  # per warp
    overflow = max(0, chunks - in_registers) * SLICE_WARPS * row_tiles * TILE_ROWS * CHUNK_BYTES
    return overflow, 2 * _sums_bytes(SLICE_WARPS, row_tiles * TILE_ROWS, TILE_COLUMNS, r.item)


def _slice_clocks(r: Recurrence, row_tiles: int, tiles: int, bytes_per_clock: float, exchange: float) -> float:
    """A step of a slice that runs so many column tiles, whose states come in at so many bytes per clock."""
    product = r.product_clocks(row_tiles * SLICE_WARPS / _SCHEDULERS, -(-r.chunks // SLICE_WARPS))
    overflow, _ = _slice_shared(r, row_tiles)
    state = r.H * TILE_COLUMNS * r.item / bytes_per_clock
    tile = max(product, overflow / _SHARED_BYTES_PER_CLOCK, state) + _POINTWISE_CLOCKS
    # With several tiles, one's exchange passes while the others are computed.
    return max(tiles * tile, tile + exchange)


@lru_cache(maxsize=4096)
def _cut_grid_flags(r: Recurrence) -> _Cut | None:
    """The cut with the least predicted step; None if W does not fit on chip."""
    cuts = []
    for row_tiles in GRID_FLAGS_ROW_TILES:
        slices = -(-r.H // (TILE_ROWS * row_tiles))
        shared = sum(_slice_shared(r, row_tiles))
        if shared > r.shared_bytes or slices * r.D > r.multiprocessors:
            continue
        tiles = -(-r.batch_tiles // min(r.batch_tiles, r.multiprocessors // (slices * r.D)))
        clocks = _slice_clocks(r, row_tiles, tiles, _L2_BYTES_PER_CLOCK, _L2_EXCHANGE_CLOCKS)
        cuts.append(_Cut(row_tiles, slices, -(-r.batch_tiles // tiles), shared, clocks))
    return min(cuts, key=lambda cut: cut.clocks, default=None)


@lru_cache(maxsize=4096)
def _cut_cluster(r: Recurrence) -> _Cut | None:
    """The same for clusters; more groups than fit at once run one after the other."""
    cuts = []
    for row_tiles in CLUSTER_ROW_TILES:
        slices = next((size for size in CLUSTER_SIZES if size * TILE_ROWS * row_tiles >= r.H), None)
        if slices is None:
            continue
        resident = max(1, int(r.multiprocessors * _CLUSTER_SHARE / (slices * r.D)))
        tiles = -(-r.batch_tiles // min(r.batch_tiles, resident))
        buffers = 2 * tiles * TILE_COLUMNS * (-(-r.H * r.item // 128) * 128) + -(-2 * tiles * 8 // 128) * 128
        shared = sum(_slice_shared(r, row_tiles)) + buffers
        if shared > r.shared_bytes:
            continue
        clocks = _slice_clocks(r, row_tiles, tiles, _CLUSTER_BYTES_PER_CLOCK, _CLUSTER_EXCHANGE_CLOCKS)
        cuts.append(_Cut(row_tiles, slices, -(-r.batch_tiles // tiles), shared, clocks))
    return min(cuts, key=lambda cut: cut.clocks, default=None)


def _refuses_cluster(r: Recurrence) -> str | None:
    if r.capability < (9, 0):
        return f"clusters need compute capability 9.0, not {r.capability[0]}.{r.capability[1]}"
    if _cut_cluster(r) is None:
        return f"W_hh ({r.H} x {r.H}) and the states do not fit into a cluster of {CLUSTER_SIZES[-1]} blocks"
    return None


def _plan_cluster(r: Recurrence) -> LaunchPlan:
    cut = _cut_cluster(r)
    assert cut is not None  # what the predicate says
    grid, cluster = (cut.slices, cut.groups, r.D), (cut.slices, 1, 1)
    config = LaunchConfig(grid, (32 * SLICE_WARPS, 1, 1), cut.shared_bytes, cluster)
    return LaunchPlan(r.kernel("rnn_cluster_kernel", str(cut.row_tiles)), config, "cluster")


def _predict_cluster(r: Recurrence) -> float:
    cut = _cut_cluster(r)
    return cut.clocks if cut else float("inf")


def _refuses_grid_flags(r: Recurrence) -> str | None:
    if not r.aligned:
        return "blocks exchange 16 bytes at a time, and rows of the state do not start on 16 bytes"
    if _cut_grid_flags(r) is None:
        memories = f"the registers and shared memory of {r.multiprocessors} multiprocessors"
        return f"W_hh ({r.D} x {r.H} x {r.H}) does not fit into {memories}"
    return None


def _plan_grid_flags(r: Recurrence) -> LaunchPlan:
    cut = _cut_grid_flags(r)
    assert cut is not None  # what the predicate says
    config = LaunchConfig((cut.slices, cut.groups, r.D), (32 * SLICE_WARPS, 1, 1), cut.shared_bytes, cooperative=True)
    return LaunchPlan(r.kernel("rnn_grid_flags_kernel", str(cut.row_tiles)), config, "grid_flags")


def _predict_grid_flags(r: Recurrence) -> float:
    cut = _cut_grid_flags(r)
    return cut.clocks if cut else float("inf")


def _product_shared(dtype: str, column_tiles: int) -> int:
    return _sums_bytes(PRODUCT_WARPS, TILE_ROWS, TILE_COLUMNS * column_tiles, ITEM_BYTES[dtype])


def _column_tiles(N: int) -> int:
    return COLUMN_TILES[N > TILE_COLUMNS]


def batch_limit(N: int) -> str | None:
    """Why a launch of one step does not hold a batch: its blocks along y are for the samples."""
    most = _GRID_LIMIT * TILE_COLUMNS * COLUMN_TILES[-1]
    return f"expected at most {most} samples, got N = {N}" if most < N else None


def _plan_step(r: Recurrence) -> LaunchPlan:
    tiles = _column_tiles(r.N)
    grid = (-(-r.H // TILE_ROWS), -(-r.N // (TILE_COLUMNS * tiles)), r.D)
    config = LaunchConfig(grid, (32 * PRODUCT_WARPS, 1, 1), _product_shared(r.dtype, tiles))
    return LaunchPlan(r.kernel("rnn_step_kernel", str(tiles)), config, "step")


def _refuses_step(r: Recurrence) -> str | None:
    return batch_limit(r.N)


def _predict_step(r: Recurrence) -> float:
    columns = TILE_COLUMNS * _column_tiles(r.N)
    blocks = r.D * -(-r.H // TILE_ROWS) * -(-r.N // columns)
    read = blocks * (TILE_ROWS + columns) * r.H * r.item
    return _LAUNCH_CLOCKS + read / (_L2_BYTES_PER_CLOCK * min(blocks, r.multiprocessors))


VARIANTS = (
    Variant("single_block", _refuses_single_block, _plan_single_block, _predict_single_block),
    Variant("cluster", _refuses_cluster, _plan_cluster, _predict_cluster),
    Variant("grid_flags", _refuses_grid_flags, _plan_grid_flags, _predict_grid_flags),
    Variant("step", _refuses_step, _plan_step, _predict_step),
)


#: Variants whose output must be filled with the sentinel beforehand.
EXCHANGED_THROUGH_OUTPUT = {"grid_flags"}


@dataclass(frozen=True)
class Choice:
    """The plans that can run a pass, the one with the least predicted step first, and why the other variants cannot."""

    plans: tuple[LaunchPlan, ...]
    passed_over: tuple[tuple[str, str], ...]  # variant, reason


@lru_cache(maxsize=4096)
def choose(r: Recurrence, forced: str | None = None) -> Choice:
    """Blocks of a plan that wait for each other may still not be resident together, on a GPU that others share.

    Raises:
        SizeError: no variant takes it.
        RuntimeError: the forced variant refuses.
    """
    reasons = {variant: variant.refuses(r) for variant in VARIANTS if forced in (None, variant.name)}
    willing = sorted((variant for variant in reasons if reasons[variant] is None), key=lambda variant: variant.predict(r))
    passed_over = tuple((variant.name, reason) for variant, reason in reasons.items() if reason is not None)
    if not willing:
        raise (RuntimeError if forced else SizeError)("; ".join(f"rnn variant {name}: {reason}" for name, reason in passed_over))
    return Choice(tuple(variant.plan(r) for variant in willing), passed_over)


@lru_cache(maxsize=4096)
def plan_cell(backward: bool, N: int, inputs: int, H: int, dtype: str, precision: str) -> LaunchPlan:
    """The launch of one step on its own; `inputs` is I. Raises SizeError where the grid does not hold the batch."""
    if reason := batch_limit(N):
        raise SizeError(reason)
    tiles = _column_tiles(N)
    blocks = -(-H // TILE_ROWS) + (-(-inputs // TILE_ROWS) if backward else 0)
    config = LaunchConfig((blocks, -(-N // (TILE_COLUMNS * tiles)), 1), (32 * PRODUCT_WARPS, 1, 1), _product_shared(dtype, tiles))
    name = "rnn_cell_backward_kernel" if backward else "rnn_cell_forward_kernel"
    return LaunchPlan(_BY_NAME[name, (arithmetic(dtype, precision), str(tiles))], config, "cell")
