"""The variant simt (`simt.cuh`): implicit im2col on CUDA cores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from ...arithmetic import round_up
from ...dtypes import CPP_TYPES, DTYPES, accumulator_bytes
from ...hardware import Device, rates
from ...planning import Configuration
from ...table import Kernel
from .cost import Conv2dVariant, peak
from .gemm import GemmPlan, epilogue_arguments, plan_gemm
from .problem import DIRECTIONS, Conv2dProblem
from .tile import Tile, named

#: kDirectionBytes of directions.cuh.
DIRECTION_BYTES = 512


@dataclass(frozen=True)
class SimtTile(Tile):
    """A tile of which each thread owns `thread_rows` by `thread_columns` elements. A step is `depth` deep."""

    depth: int
    thread_rows: int
    thread_columns: int

    @property
    def threads(self) -> int:
        return self.rows // self.thread_rows * (self.columns // self.thread_columns)

    @property
    def blocks(self) -> int:
        return 2 if self.thread_rows * self.thread_columns <= 16 else 1

    def step(self, dtype: str) -> int:
        return self.depth

    def shared_bytes(self, dtype: str) -> int:
        """Returns sizeof(SimtMemory): the direction, the coordinates, two stages of both tiles, each line padded by 16 bytes."""
        item = accumulator_bytes(dtype)
        used = 16 * (self.rows + self.columns) + 2 * self.depth * ((self.rows + self.columns) * item + 32)
        return DIRECTION_BYTES + round_up(used, DIRECTION_BYTES)


_LARGE, _SMALL, _DOUBLE = SimtTile(128, 128, 8, 8, 8), SimtTile(64, 64, 16, 4, 4), SimtTile(64, 64, 8, 4, 4)
#: Dtype -> tile by name. 16-bit types have one tile only, because tensor cores are preferred for them; float64 has one only,
#: because its sums take twice the registers.
TILES = {
    "float16": named(_SMALL),
    "bfloat16": named(_SMALL),
    "float32": named(_LARGE, _SMALL),
    "float64": named(_DOUBLE),
}


def _kernel(direction: str, dtype: str, tile: Tile) -> Kernel:
    arguments = (CPP_TYPES[dtype], tile.cpp, *epilogue_arguments(direction, dtype))
    return Kernel("conv2d/simt.cuh", f"conv2d_{direction}_simt_kernel", arguments)


KERNELS = tuple(_kernel(direction, dtype, tile) for dtype in DTYPES for tile in TILES[dtype].values() for direction in DIRECTIONS)


@lru_cache(maxsize=4096)
def _plan(problem: Conv2dProblem, tile_name: str, splits: int) -> GemmPlan:
    tile, piece = TILES[problem.dtype][tile_name], 2 if problem.dtype == "float64" else 4  # at most 16 bytes of one operand
    return plan_gemm("simt", problem, tile, _kernel(problem.direction, problem.dtype, tile), piece, splits)


class Simt(Conv2dVariant):
    """Accepts every dtype, precision and layout."""

    name = "simt"
    #: By tile, the predicted share of the CUDA cores' FLOP per clock: about 1 / 1.3 for 128x128, and less for 64x64, which
    #: uses each value that is read in fewer products.
    shares = {"128x128": 0.75, "64x64": 0.6}  # noqa: RUF012

    def refuses(self, problem: Conv2dProblem, device: Device) -> str | None:
        return problem.limits() or problem.beyond_positions()

    def tile_table(self, problem: Conv2dProblem) -> Mapping[str, Tile]:
        return TILES[problem.dtype]

    def rate(self, problem: Conv2dProblem, tile: Tile, device: Device) -> float:
        cores = rates(device).fp64 if problem.dtype == "float64" else rates(device).fp32
        return self.shares[tile.name] * cores / peak(problem, device)

    def plan(self, problem: Conv2dProblem, configuration: Configuration, device: Device) -> GemmPlan:
        return _plan(problem, configuration.tile, configuration.splits)


SIMT = Simt()
