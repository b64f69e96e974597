"""The variant mma (`mma.cuh`): implicit im2col on tensor cores by mma.sync. Tensors whose channels do not lie in whole pieces of
16 bytes are packed first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from ...arithmetic import round_up
from ...dtypes import CPP_TYPES
from ...hardware import Device
from ...planning import Configuration
from ...table import Kernel
from .gemm import GemmPlan, epilogue_arguments, plan_gemm
from .pack_channels import DTYPES, piece
from .problem import DIRECTIONS, Conv2dProblem
from .simt import DIRECTION_BYTES
from .tensor_cores import TensorCoreVariant
from .tile import Tile, named


@dataclass(frozen=True)
class MmaTile(Tile):
    """A tile that `warps_down` by `warps_across` warps share."""

    warps_down: int
    warps_across: int

    @property
    def threads(self) -> int:
        return 32 * self.warps_down * self.warps_across

    @property
    def blocks(self) -> int:
        return 512 // self.threads

    def step(self, dtype: str) -> int:
        return 4 * piece(dtype)

    def shared_bytes(self, dtype: str) -> int:
        """Returns sizeof(MmaMemory): direction; coordinates; four stages, 64 bytes per row and column, or the padded sums."""
        stages = 4 * 64 * (self.rows + self.columns)
        sums = 4 * max(self.rows * (self.columns + 8), self.columns * (self.rows + 4))
        used = round_up(16 * (self.rows + self.columns), 128) + max(stages, sums)
        return DIRECTION_BYTES + round_up(used, DIRECTION_BYTES)


TILES = named(MmaTile(128, 128, 2, 4), MmaTile(64, 64, 2, 2))


def _kernel(direction: str, dtype: str, tile: Tile) -> Kernel:
    arguments = (CPP_TYPES[dtype], tile.cpp, *epilogue_arguments(direction, dtype))
    return Kernel("conv2d/mma.cuh", f"conv2d_{direction}_mma_kernel", arguments)


KERNELS = tuple(_kernel(direction, dtype, tile) for dtype in DTYPES for tile in TILES.values() for direction in DIRECTIONS)


@lru_cache(maxsize=4096)
def _plan(problem: Conv2dProblem, tile_name: str, splits: int) -> GemmPlan:
    tile = TILES[tile_name]
    kernel = _kernel(problem.direction, problem.dtype, tile)
    return plan_gemm("mma", problem, tile, kernel, piece(problem.dtype), splits)


class Mma(TensorCoreVariant):
    """Multiplies on tensor cores by mma.sync."""

    name = "mma"
    #: By tile, the predicted share of the tensor cores' FLOP per clock before Hopper; 64x64 reads twice the bytes per product.
    shares = {"128x128": 0.85, "64x64": 0.5}  # noqa: RUF012
    #: The factor on `shares` from Hopper on, where mma.sync does not reach the full rate of the tensor cores.
    since_hopper = 0.55

    def tile_table(self, problem: Conv2dProblem) -> Mapping[str, Tile]:
        return TILES

    def rate(self, problem: Conv2dProblem, tile: Tile, device: Device) -> float:
        return self.shares[tile.name] * (self.since_hopper if device.capability >= (9, 0) else 1)

    def plan(self, problem: Conv2dProblem, configuration: Configuration, device: Device) -> GemmPlan:
        """Plans the product of a problem whose channels come in whole pieces."""
        return _plan(problem, configuration.tile, configuration.splits)


MMA = Mma()
