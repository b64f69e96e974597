"""The variant wgmma (`wgmma.cuh`), for compute capability 9.0: TMA forms the columns, and wgmma multiplies them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from ...arithmetic import ceil_divide, round_up
from ...dtypes import CPP_TYPES, ITEM_BYTES
from ...hardware import Device
from ...planning import Configuration
from ...table import Kernel, LaunchConfig, LaunchPlan
from .access import Walk, sum_walk, walks
from .cost import count_tiles
from .gemm import epilogue_arguments, require_tiles
from .pack_channels import DTYPES, padded, piece
from .parameters import MOST_RESIDUES
from .problem import DIRECTIONS, Conv2dProblem
from .tensor_cores import TensorCoreVariant
from .tile import Tile, named
from .wgmma_maps import Image, image_map, images

STEP_BYTES = 128  # kStepBytes of wgmma.cuh
_MOST_OFFSET = 255  # the largest offset of a filter position that the copy instruction can encode


@dataclass(frozen=True)
class WgmmaTile(Tile):
    """A tile that `down` by `across` warpgroups share."""

    down: int
    across: int

    @property
    def threads(self) -> int:
        """Threads of the multiplying warpgroups and of the warp that fetches."""
        return 128 * self.down * self.across + 32

    @property
    def blocks(self) -> int:
        return 2 if self.rows + self.columns <= 256 else 1

    @property
    def stages(self) -> int:
        """How many steps shared memory holds."""
        return ((100 << 10) if self.blocks == 2 else (200 << 10)) // ((self.rows + self.columns) * STEP_BYTES)

    @property
    def rate(self) -> float:
        """The share of the dense rate that the bandwidth of shared memory, 128 bytes a clock, allows.

        A step covers STEP_BYTES of depth. In it, a warpgroup multiplies its rows 64 at a time, and each time reads those 64 rows
        and all of its columns from shared memory. The copies write the rows and columns of the whole tile for a later step. At
        the dense rate, a step takes 128 clocks for each 64x64 part of the tile.
        """
        rows, columns = self.rows // self.down, self.columns // self.across
        read = self.down * self.across * rows // 64 * (64 + columns) * STEP_BYTES
        written = (self.rows + self.columns) * STEP_BYTES
        return min(1.0, self.rows * self.columns / 32 / ((read + written) / 128))

    def step(self, dtype: str) -> int:
        return STEP_BYTES // ITEM_BYTES[dtype]

    def shared_bytes(self, dtype: str) -> int:
        """Returns sizeof(WgmmaMemory): stages with two barriers each; each warpgroup's staging, destination and NaN flags."""
        chunk = 16 if self.blocks == 2 else 32
        staged = 4 * max(64 * (chunk + 8), chunk * 68)
        used = self.stages * ((self.rows + self.columns) * STEP_BYTES + 16) + self.down * self.across * (staged + 192)
        return round_up(used, 1024)


TILES = named(
    WgmmaTile(128, 256, 2, 1),
    WgmmaTile(256, 128, 2, 1),
    WgmmaTile(128, 128, 2, 1),
    WgmmaTile(128, 64, 2, 1),
    WgmmaTile(64, 256, 1, 2),
)
#: Direction -> tile by name. Tiles with 64 columns are for results with few channels. Tiles with 64 rows are for results with few
#: rows, which are pixels, or output channels in wgrad.
DIRECTION_TILES = {"fprop": TILES, "dgrad": TILES, "wgrad": {name: tile for name, tile in TILES.items() if name != "128x64"}}


def _kernel(direction: str, dtype: str, tile: Tile) -> Kernel:
    return Kernel(
        source="conv2d/directions_wgmma.cuh",
        name=f"conv2d_{direction}_wgmma_kernel",
        arguments=(CPP_TYPES[dtype], tile.cpp, *epilogue_arguments(direction, dtype)),
        architecture="90a",
    )


KERNELS = tuple(
    _kernel(direction, dtype, tile)
    for dtype in DTYPES
    for direction in DIRECTIONS
    if (direction, dtype) != ("wgrad", "float32")
    for tile in DIRECTION_TILES[direction].values()
)


# ---- plans -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class WgmmaPlan:
    """One product: its launch, and what its parameters hold besides pointers and maps. It is compared by identity."""

    problem: Conv2dProblem
    launch: LaunchPlan
    tile: Tile
    images: tuple[Image, ...]
    span: int
    splits: int
    steps_per_split: int
    tiles: int
    walk: Walk


def span(dtype: str, channels: int) -> int:
    """Returns how many bytes of a pixel's channels one copy brings if a group has `channels` channels to gather.

    Of the spans that pad the channels least, this is the widest, which needs the fewest copies.
    """
    item = ITEM_BYTES[dtype]
    return min((128, 64, 32), key=lambda width: (round_up(channels * item, width), -width))


def whole_spans(dtype: str, channels: int) -> int:
    """Returns how many channels a group has in memory if its `channels` channels are padded to whole spans (see `span`).

    Wgrad's sums have this many columns for each position of the filter.
    """
    return round_up(channels, span(dtype, channels) // ITEM_BYTES[dtype])


def _steps(problem: Conv2dProblem, gathered: tuple[Image, ...], width: int) -> int:
    """Returns how many steps of STEP_BYTES the depth has, at least 1; in dgrad, for the residue that has the most."""
    item = ITEM_BYTES[problem.dtype]
    if problem.direction == "wgrad":
        return max(1, ceil_divide(problem.output_pixels * item, STEP_BYTES))
    taps = max(image.taps for image in gathered)
    return max(1, ceil_divide(taps * round_up(problem.depth_channels * item, width), STEP_BYTES))


def _walk(problem: Conv2dProblem, splits: int) -> Walk:
    """Returns the walk over the result, or over the sums of several splits."""
    if problem.direction == "wgrad":
        return Walk.COLUMN_PIECES
    if splits > 1:
        return sum_walk(problem.product.columns, problem.dtype)
    return walks(problem, piece(problem.dtype)).c


@lru_cache(maxsize=4096)
def _plan(problem: Conv2dProblem, tile_name: str, splits: int, multiprocessors: int) -> WgmmaPlan:
    tile, dtype, direction = TILES[tile_name], problem.dtype, problem.direction
    gathered, width = images(problem), span(dtype, problem.depth_channels)
    steps = _steps(problem, gathered, width)
    steps_per_split = ceil_divide(steps, splits)
    splits = ceil_divide(steps, steps_per_split)
    product = problem.product
    if direction == "wgrad":
        columns = problem.R * problem.S * whole_spans(dtype, problem.depth_channels)
        product = product._replace(columns=columns)
    tiles = count_tiles(product, tile) * splits
    require_tiles(problem, tiles)
    config = LaunchConfig(
        grid=(min(tiles, tile.blocks * multiprocessors), 1, 1),
        block=(tile.threads, 1, 1),
        shared_bytes=tile.shared_bytes(dtype),
    )
    return WgmmaPlan(
        problem=problem,
        launch=LaunchPlan(_kernel(direction, dtype, tile), config, "wgmma"),
        tile=tile,
        images=gathered,
        span=width,
        splits=splits,
        steps_per_split=steps_per_split,
        tiles=tiles,
        walk=_walk(problem, splits),
    )


# ---- the variant -------------------------------------------------------------------------------------------------------------


class Wgmma(TensorCoreVariant):
    """Accepts what `TensorCoreVariant` accepts, on compute capability 9.0, if TMA and wgmma can handle it."""

    name = "wgmma"
    persistent = True
    #: The share of a tile's rate that large products reach, because the power limit lowers the clock: an estimate.
    power = 0.8

    def refuses(self, problem: Conv2dProblem, device: Device) -> str | None:
        if device.capability != (9, 0):
            return f"is made for compute capability 9.0, not {device.capability[0]}.{device.capability[1]}"
        return super().refuses(problem, device) or _beyond_tma(problem)

    def tile_table(self, problem: Conv2dProblem) -> Mapping[str, Tile]:
        return DIRECTION_TILES[problem.direction]

    def rate(self, problem: Conv2dProblem, tile: Tile, device: Device) -> float:
        assert isinstance(tile, WgmmaTile)
        return self.power * tile.rate

    def plan(self, problem: Conv2dProblem, configuration: Configuration, device: Device) -> WgmmaPlan:
        """Plans the product of a problem whose channels come in whole pieces.

        The plan has fewer splits than asked for if some would have no steps.
        """
        return _plan(problem, configuration.tile, configuration.splits, device.multiprocessors)

    def product_problem(self, problem: Conv2dProblem) -> Conv2dProblem:
        """Pads the channels that are summed over, or in wgrad those of x, to whole spans."""
        packed = super().product_problem(problem)
        channels = whole_spans(problem.dtype, packed.depth_channels) * problem.groups
        return packed._replace(K=channels) if problem.direction == "dgrad" else packed._replace(C=channels)

    def packed_filter_bytes(self, problem: Conv2dProblem) -> int:
        """Returns the bytes of the filter's copy, which dgrad in TF32 also transposes, so that K is innermost."""
        if problem.direction != "dgrad" or problem.dtype != "float32":
            return super().packed_filter_bytes(problem)
        K = padded(problem.group_channels[1], problem.dtype)
        return problem.C * K * problem.R * problem.S * ITEM_BYTES[problem.dtype]


@lru_cache(maxsize=4096)
def _beyond_tma(problem: Conv2dProblem) -> str | None:
    """Returns why TMA or wgmma cannot compute a problem; None if they can.

    Drivers up to CUDA 13.1 describe tensors below 128 KiB wrongly for GPUs of compute capability 10.0, where this variant does
    not run; no such error is known for 9.0.
    """
    p = problem
    if p.dtype == "float32" and p.direction == "wgrad":
        return "wgmma takes TF32 with the depth contiguous only, and wgrad's are pixels"
    if p.direction == "dgrad" and prod(p.residues) > MOST_RESIDUES:
        return f"strides {p.stride} have {prod(p.residues)} residues, the kernel's parameters hold {MOST_RESIDUES} maps"
    item, channels = ITEM_BYTES[p.dtype], p.depth_channels
    if p.groups > 1 and p.direction != "wgrad" and channels * item % 32:
        return f"a group's {channels} channels are no multiple of {32 // item}: a block of them would reach into the next group"
    for image in images(problem):
        if not image.is_gathered:
            continue
        if (offset := max((axis.taps - 1) * axis.step for axis in image)) > _MOST_OFFSET:
            return f"the filter reaches over {offset} pixels, TMA's offsets over {_MOST_OFFSET}"
        if reason := _map_refused(problem, image):
            return f"TMA does not take the image: {reason}"
    return None


def _map_refused(problem: Conv2dProblem, image: Image) -> str | None:
    """Returns why the driver would not encode the map of an image once it is packed; None if it would."""
    p = problem
    channels, H, W = (p.K, p.P, p.Q) if p.direction == "dgrad" else (p.C, p.H, p.W)
    per_group = padded(channels // p.groups, p.dtype)
    packed = p.groups * per_group
    block = span(p.dtype, per_group) // ITEM_BYTES[p.dtype]
    return image_map(
        dtype=p.dtype,
        sizes=(p.N, packed, H, W),
        strides=(H * W * packed, 1, W * packed, packed),
        image=image,
        channels=block,
        pixels=64,
    ).refused()


WGMMA = Wgmma()
