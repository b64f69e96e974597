"""The kernels of recurrence, and which of them serves a call; the ideas are told at the head of each .cuh file."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from ...shapes import RnnShape
from ...table import CPP_TYPES, Kernel, LaunchConfig, LaunchPlan, instantiate

#: `Nonlinearity` of elman.cuh, in its order.
NONLINEARITIES = ("tanh", "relu", "sigmoid", "identity")
ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}

# Names of tile.cuh and of the kernel files; a static_assert there derives each.
TILE_ROWS, TILE_COLUMNS, CHUNK_BYTES, FRAGMENT_BYTES = 16, 8, 64, 16
PRODUCT_WARPS = 8
COLUMN_TILES = (1, 4)  # of the kernels that read W anew at each launch
SINGLE_BLOCK_ROWS, SINGLE_BLOCK_MAX_H = 32, 256

MATHS = ("half", "bfloat16", "tfloat32", "float", "double")
PASSES = ("ForwardPass<ElmanCell>", "BackwardPass<ElmanCell>")


def _rows() -> list[Kernel]:
    columns = tuple(map(str, COLUMN_TILES))
    rows: list[Kernel] = []
    rows += instantiate("rnn/step.cuh", "rnn_step_kernel", MATHS, PASSES, columns)
    rows += instantiate("rnn/cell.cuh", "rnn_cell_forward_kernel", MATHS, columns)
    rows += instantiate("rnn/cell.cuh", "rnn_cell_backward_kernel", MATHS, columns)
    rows += instantiate("rnn/single_block.cuh", "rnn_single_block_kernel", MATHS, PASSES)
    return rows


KERNELS = tuple(_rows())
_BY_NAME = {(row.name, row.arguments): row for row in KERNELS}


class StepStride(ctypes.Structure):
    """`StepStride` of parameters.h."""

    _fields_ = [("t", ctypes.c_int64), ("n", ctypes.c_int64)]


class RnnParameters(ctypes.Structure):
    """`RnnParameters` of parameters.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("z", "h0", "h", "dh", "dz", "dh0", "w", "lengths", "step_offsets")),
        *((name, StepStride) for name in ("z_stride", "h_stride", "dh_stride", "dz_stride")),
        *((name, ctypes.c_int32) for name in ("w_stride", "aligned_carry", "step", "D")),
        ("shape", RnnShape),
        ("nonlinearity", ctypes.c_int32),
    ]


class RnnCellParameters(ctypes.Structure):
    """`RnnCellParameters` of parameters.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "h", "w_ih", "w_hh", "b_ih", "b_hh", "h_next", "dh_next", "dz", "dx", "dh")),
        *((f"{name}_stride", ctypes.c_int64) for name in ("x", "h", "w_ih", "w_hh", "h_next", "dh_next")),
        ("shape", RnnShape),
        ("aligned", ctypes.c_int32),
        ("nonlinearity", ctypes.c_int32),
    ]


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

    def kernel(self, name: str, *arguments: str) -> Kernel:
        return _BY_NAME[name, (self.math, PASSES[self.backward], *arguments)]


@dataclass(frozen=True)
class Variant:
    """One way to run a pass: a predicate that both selects and explains, and its launch."""

    name: str
    refuses: Callable[[Recurrence], str | None]  # None: it takes the pass; else why not
    plan: Callable[[Recurrence], LaunchPlan]


def _single_block_shared(r: Recurrence) -> int:
    warps = -(-r.H // SINGLE_BLOCK_ROWS)
    carry = 2 * TILE_COLUMNS * (-(-r.H * r.item // 128) * 128)
    in_registers = 6 if r.math == "float" else 8
    return carry + max(0, r.chunks - in_registers) * warps * SINGLE_BLOCK_ROWS * CHUNK_BYTES


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


def _product_shared(dtype: str, column_tiles: int) -> int:
    return PRODUCT_WARPS * TILE_ROWS * TILE_COLUMNS * column_tiles * max(4, ITEM_BYTES[dtype])


def _column_tiles(N: int) -> int:
    return COLUMN_TILES[N > TILE_COLUMNS]


def _plan_step(r: Recurrence) -> LaunchPlan:
    tiles = _column_tiles(r.N)
    grid = (-(-r.H // TILE_ROWS), -(-r.N // (TILE_COLUMNS * tiles)), r.D)
    config = LaunchConfig(grid, (32 * PRODUCT_WARPS, 1, 1), _product_shared(r.dtype, tiles))
    return LaunchPlan(r.kernel("rnn_step_kernel", str(tiles)), config, "step")


#: Fastest first; the last takes everything.
VARIANTS = (
    Variant("single_block", _refuses_single_block, _plan_single_block),
    Variant("step", lambda r: None, _plan_step),
)


def refusals(r: Recurrence) -> dict[str, str | None]:
    """Each variant's reason against a pass; None for those that take it."""
    return {variant.name: variant.refuses(r) for variant in VARIANTS}


@lru_cache(maxsize=4096)
def candidates(r: Recurrence, forced: str | None = None) -> tuple[LaunchPlan, ...]:
    """The plans that can run a pass, the preferred first. A cooperative one may still not fit a GPU that others share.

    Raises:
        RuntimeError: the forced variant refuses.
    """
    if forced:
        (variant,) = (v for v in VARIANTS if v.name == forced)
        if reason := variant.refuses(r):
            raise RuntimeError(f"rnn variant {forced}: {reason}")
        return (variant.plan(r),)
    return tuple(variant.plan(r) for variant in VARIANTS if variant.refuses(r) is None)


@lru_cache(maxsize=4096)
def plan_cell(backward: bool, N: int, inputs: int, H: int, dtype: str, precision: str) -> LaunchPlan:
    """The launch of one step on its own; `inputs` is I."""
    tiles = _column_tiles(N)
    blocks = -(-H // TILE_ROWS) + (-(-inputs // TILE_ROWS) if backward else 0)
    config = LaunchConfig((blocks, -(-N // (TILE_COLUMNS * tiles)), 1), (32 * PRODUCT_WARPS, 1, 1), _product_shared(dtype, tiles))
    name = "rnn_cell_backward_kernel" if backward else "rnn_cell_forward_kernel"
    return LaunchPlan(_BY_NAME[name, (arithmetic(dtype, precision), str(tiles))], config, "cell")
