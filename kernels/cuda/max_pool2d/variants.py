"""The kernels of max pooling, and which of them serves a call; the ideas are told at the head of each .cuh file."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from ...shapes import MaxPool2dShape
from ...table import CPP_TYPES, Kernel, LaunchConfig, LaunchPlan, instantiate

Strides = tuple[int, int, int, int]

THREADS = 256  # the kernels' __launch_bounds__
STRIP = 4  # FixedWindow::strip
STAGED_BYTES = 16 << 10  # of input a block stages: seven blocks share an SM, so that some load while others compute
_GRID_LIMIT = 65535  # in y and z

ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
OFFSET_BYTES = {"uint8_t": 1, "int16_t": 2, "int32_t": 4}
#: R, S, stride -> the compiled window; dilation is 1.
FIXED_WINDOWS = {(2, 2, 2): "FixedWindow<2, 2, 2>", (3, 3, 1): "FixedWindow<3, 3, 1>", (3, 3, 2): "FixedWindow<3, 3, 2>"}


def _rows() -> list[Kernel]:
    types, offsets = tuple(CPP_TYPES.values()), tuple(OFFSET_BYTES)
    rows: list[Kernel] = []
    for direction, plain in (("forward", "strided"), ("backward", "flat")):
        source, stem = f"max_pool2d/{direction}.cuh", f"max_pool2d_{direction}"
        for variant in ("channels", "staged"):
            rows += instantiate(source, f"{stem}_{variant}_kernel", types, ("uint8_t",), tuple(FIXED_WINDOWS.values()))
            rows += instantiate(source, f"{stem}_{variant}_kernel", types, ("uint8_t", "int16_t"), ("AnyWindow",))
        rows += instantiate(source, f"{stem}_{plain}_kernel", types, offsets)
    rows += instantiate("max_pool2d/gather.cuh", "max_pool2d_gather_kernel", types, offsets)
    rows += instantiate("max_pool2d/gather.cuh", "max_pool2d_indices_kernel", offsets)
    return rows


KERNELS = tuple(_rows())
_BY_NAME = {(row.name, row.arguments): row for row in KERNELS}


class Dense(ctypes.Structure):
    """`MaxPool2dDense` of dense.cuh."""

    _fields_ = [
        ("planes", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("inner", "planes_per_block", "rows_per_block")),
    ]


def _parameters(name: str, *pointers: str) -> type[ctypes.Structure]:
    fields = [*((pointer, ctypes.c_void_p) for pointer in pointers), ("shape", MaxPool2dShape), ("dense", Dense)]
    return type(name, (ctypes.Structure,), {"_fields_": fields, "__doc__": f"`MaxPool2d{name}` of the .cuh files."})


ForwardParameters = _parameters("ForwardParameters", "x", "y", "offsets", "lengths")
BackwardParameters = _parameters("BackwardParameters", "dy", "offsets", "dx")
GatherParameters = _parameters("GatherParameters", "ddx", "offsets", "ddy")
IndicesParameters = _parameters("IndicesParameters", "offsets", "indices")


@dataclass(frozen=True)
class Pooling:
    """The geometry of one pooling, and the memory format of its dense tensors."""

    N: int
    C: int
    H: int
    W: int
    P: int
    Q: int
    window: tuple[int, int]  # R, S
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    channels_last: bool

    @property
    def planes(self) -> int:
        return self.N if self.channels_last else self.N * self.C

    @property
    def inner(self) -> int:
        return self.C if self.channels_last else 1

    @property
    def offset(self) -> str:
        """The C++ type that holds a cell's place in its window, and one value for "none"."""
        cells = self.window[0] * self.window[1]
        return "uint8_t" if cells <= 255 else "int16_t" if cells <= 32767 else "int32_t"

    @property
    def compiled_window(self) -> str:
        R, S = self.window
        if self.stride[0] != self.stride[1] or self.dilation != (1, 1):
            return "AnyWindow"
        return FIXED_WINDOWS.get((R, S, self.stride[0]), "AnyWindow")

    @property
    def strip(self) -> int:
        return 1 if self.compiled_window == "AnyWindow" else STRIP

    def pixel_blocks(self, extent: int, axis: int) -> int:
        """`pixel_blocks` of backward.cuh."""
        if self.compiled_window == "AnyWindow":
            return extent
        return -(-(extent + self.padding[axis]) // self.stride[axis])

    @property
    def x_strides(self) -> Strides:
        """Of a dense x, in elements."""
        return self._strides(self.H, self.W)

    @property
    def y_strides(self) -> Strides:
        return self._strides(self.P, self.Q)

    def _strides(self, rows: int, columns: int) -> Strides:
        if self.channels_last:
            return (rows * columns * self.C, 1, columns * self.C, self.C)
        return (self.C * rows * columns, rows * columns, columns, 1)


class Device(NamedTuple):
    """What of a device the plans depend on."""

    multiprocessors: int
    shared_bytes: int  # the most that a block may have


class Planned(NamedTuple):
    """A launch, the structs of its parameters, and the variants tried before it with the reason against each."""

    plan: LaunchPlan
    shape: MaxPool2dShape
    dense: Dense
    passed_over: tuple[tuple[str, str], ...] = ()


class _Share(NamedTuple):
    """A staged block's share of the work, and the shared memory it takes."""

    planes: int
    rows: int
    shared_bytes: int
    items: int


@lru_cache(maxsize=4096)
def forward_plan(pooling: Pooling, dtype: str, x_strides: Strides, aligned: bool, device: Device) -> Planned:
    """`aligned`: x, y and offsets start at multiples of 16 bytes."""
    no_channels = refuses_channels(pooling, dtype, x_strides, aligned)
    if no_channels is None:
        return _channels("forward", pooling, dtype, x_strides, pooling.Q, pooling.P)
    no_staged, share = refuses_staged(pooling, x_strides), None
    if no_staged is None:
        share = _forward_share(pooling, ITEM_BYTES[dtype], device)
    if share:
        return _staged("forward", pooling, dtype, share, pooling.P)._replace(passed_over=(("channels", no_channels),))
    outputs = pooling.N * pooling.C * pooling.P * pooling.Q
    planned = _per_element("forward_strided", "strided", pooling, (CPP_TYPES[dtype], pooling.offset), x_strides, outputs)
    return planned._replace(passed_over=(("channels", no_channels), ("staged", no_staged or _TOO_LONG)))


@lru_cache(maxsize=4096)
def backward_plan(pooling: Pooling, dtype: str, aligned: bool, device: Device) -> Planned:
    """Every tensor is dense; `aligned`: all start at multiples of 16 bytes."""
    rows, columns = pooling.pixel_blocks(pooling.H, 0), pooling.pixel_blocks(pooling.W, 1)
    no_channels = refuses_channels(pooling, dtype, pooling.x_strides, aligned)
    if no_channels is None:
        return _channels("backward", pooling, dtype, pooling.x_strides, columns, rows)
    no_staged, share = refuses_staged(pooling, pooling.x_strides), None
    if no_staged is None:
        share = _backward_share(pooling, ITEM_BYTES[dtype], device)
    if share:
        return _staged("backward", pooling, dtype, share, rows)._replace(passed_over=(("channels", no_channels),))
    pixels = pooling.N * pooling.C * pooling.H * pooling.W
    planned = _per_element("backward_flat", "flat", pooling, (CPP_TYPES[dtype], pooling.offset), pooling.x_strides, pixels)
    return planned._replace(passed_over=(("channels", no_channels), ("staged", no_staged or _TOO_LONG)))


@lru_cache(maxsize=4096)
def gather_plan(pooling: Pooling, dtype: str) -> Planned:
    """Every tensor is dense, offsets and ddy start at multiples of 16 bytes."""
    width = 16 // max(ITEM_BYTES[dtype], OFFSET_BYTES[pooling.offset])
    outputs = -(-pooling.N * pooling.C * pooling.P * pooling.Q // width)
    return _per_element("gather", "flat", pooling, (CPP_TYPES[dtype], pooling.offset), pooling.x_strides, outputs)


@lru_cache(maxsize=4096)
def indices_plan(pooling: Pooling) -> Planned:
    """Every tensor is dense, and indices start at a multiple of 16 bytes."""
    outputs = -(-pooling.N * pooling.C * pooling.P * pooling.Q // 2)
    return _per_element("indices", "flat", pooling, (pooling.offset,), pooling.x_strides, outputs)


def _x_size(pooling: Pooling) -> tuple[int, int, int, int]:
    return (pooling.N, pooling.C, pooling.H, pooling.W)


_TOO_LONG = "a strip of its rows exceeds a block's shared memory"
_TOO_LARGE = "a window has more than 32767 cells"


def refuses_channels(pooling: Pooling, dtype: str, x_strides: Strides, aligned: bool) -> str | None:
    """None if every pixel's channels lie side by side in whole 16-byte pieces; else why not."""
    width = 16 // ITEM_BYTES[dtype]
    if pooling.offset == "int32_t":
        return _TOO_LARGE
    if not pooling.channels_last or x_strides[1] != 1:
        return "the layout is not channels_last"
    if pooling.C % width:
        return f"{pooling.C} channels are no whole number of 16-byte pieces"
    if not aligned or any(x_strides[axis] % width for axis in (0, 2, 3)):
        return "a tensor, or its pixels, start off 16-byte boundaries"
    return None


def refuses_staged(pooling: Pooling, x_strides: Strides) -> str | None:
    """None if x is dense in its memory format; else why not."""
    if pooling.offset == "int32_t":
        return _TOO_LARGE
    sides = zip(x_strides, pooling.x_strides, _x_size(pooling), strict=True)
    if any(stride != expected and extent != 1 for stride, expected, extent in sides):
        return "the input is not dense"
    return None


def _planned(
    name: str, variant: str, arguments: tuple[str, ...], config: LaunchConfig, pooling: Pooling, x_strides: Strides, dense: Dense
) -> Planned:
    kernel = _BY_NAME[f"max_pool2d_{name}_kernel", arguments]
    extents = (*_x_size(pooling), *pooling.window, pooling.P, pooling.Q)
    geometry = (*pooling.stride, *pooling.padding, *pooling.dilation)
    four = ctypes.c_int64 * 4
    shape = MaxPool2dShape(*extents, *geometry, four(*x_strides), four(*pooling.y_strides))
    return Planned(LaunchPlan(kernel, config, variant), shape, dense)


def _channels(direction: str, pooling: Pooling, dtype: str, x_strides: Strides, columns: int, rows: int) -> Planned:
    """Threads over `columns` times pieces of channels, strips of `rows`, and images."""
    items = columns * pooling.C * ITEM_BYTES[dtype] // 16
    strips = -(-rows // pooling.strip)
    x = _power_of_two(items)
    if items > THREADS:  # the multiple of a warp that leaves the fewest threads idle
        x = min(range(128, THREADS + 1, 32), key=lambda threads: (-items % threads, -threads))
    y = min(THREADS // x, _power_of_two(strips))
    z = min(THREADS // (x * y), _power_of_two(pooling.N), 64)
    grid = (-(-items // x), min(-(-strips // y), _GRID_LIMIT), min(-(-pooling.N // z), _GRID_LIMIT))
    arguments = (CPP_TYPES[dtype], pooling.offset, pooling.compiled_window)
    dense = Dense(pooling.planes, pooling.inner)
    return _planned(f"{direction}_channels", "channels", arguments, LaunchConfig(grid, (x, y, z)), pooling, x_strides, dense)


def _staged(direction: str, pooling: Pooling, dtype: str, share: _Share, rows: int) -> Planned:
    blocks = -(-pooling.planes // share.planes) * -(-rows // share.rows)
    threads = min(max(-(-share.items // 32) * 32, 64), THREADS)
    arguments = (CPP_TYPES[dtype], pooling.offset, pooling.compiled_window)
    config = LaunchConfig((blocks, 1, 1), (threads, 1, 1), share.shared_bytes)
    dense = Dense(pooling.planes, pooling.inner, share.planes, share.rows)
    return _planned(f"{direction}_staged", "staged", arguments, config, pooling, pooling.x_strides, dense)


def _per_element(
    name: str, variant: str, pooling: Pooling, arguments: tuple[str, ...], x_strides: Strides, items: int
) -> Planned:
    config = LaunchConfig((-(-items // THREADS), 1, 1), (THREADS, 1, 1))
    return _planned(name, variant, arguments, config, pooling, x_strides, Dense(pooling.planes, pooling.inner))


def _power_of_two(at_least: int) -> int:
    return 1 << (at_least - 1).bit_length()


def _region(elements: int, item_bytes: int) -> int:
    """`region_behind` of dense.cuh."""
    return -(-(elements * item_bytes + 16) // 16) * 16


def _stage_bytes(pooling: Pooling, item_bytes: int, device: Device) -> int:
    """The input a block stages: less than STAGED_BYTES where that would leave multiprocessors without two blocks each."""
    total = pooling.N * pooling.C * pooling.H * pooling.W * item_bytes
    return min(STAGED_BYTES, max(total // (2 * device.multiprocessors), 2 << 10))


def _forward_share(pooling: Pooling, item_bytes: int, device: Device) -> _Share | None:
    x_row, y_row, offset_bytes = pooling.W * pooling.inner, pooling.Q * pooling.inner, OFFSET_BYTES[pooling.offset]
    reach = (pooling.window[0] - 1) * pooling.dilation[0] + 1

    def share(planes: int, rows: int) -> _Share:
        x_rows = planes * pooling.H if rows == pooling.P else min(pooling.H, (rows - 1) * pooling.stride[0] + reach)
        y_count = planes * rows * y_row
        shared = _region(x_rows * x_row, item_bytes) + _region(y_count, item_bytes) + _region(y_count, offset_bytes)
        return _Share(planes, rows, shared, planes * -(-rows // pooling.strip) * y_row)

    stage = _stage_bytes(pooling, item_bytes, device)
    fitting = (stage // (x_row * item_bytes) - reach) // pooling.stride[0] + 1
    band = max(fitting, -(-reach // pooling.stride[0]))  # at least as much work as halo
    return _best_share(pooling, share, pooling.H * x_row * item_bytes, stage, pooling.P, band, device)


def _backward_share(pooling: Pooling, item_bytes: int, device: Device) -> _Share | None:
    x_row, y_row, offset_bytes = pooling.W * pooling.inner, pooling.Q * pooling.inner, OFFSET_BYTES[pooling.offset]
    reach = (pooling.window[0] - 1) * pooling.dilation[0]
    block_rows, blocks = pooling.pixel_blocks(pooling.H, 0), pooling.pixel_blocks(pooling.W, 1)
    pixels = 1 if pooling.compiled_window == "AnyWindow" else pooling.stride[0]

    def share(planes: int, rows: int) -> _Share:
        whole = rows == block_rows
        y_rows = planes * pooling.P if whole else min(pooling.P, -(-(rows * pixels + reach) // pooling.stride[0]))
        x_rows = planes * pooling.H if whole else min(pooling.H, rows * pixels)
        shared = _region(y_rows * y_row, item_bytes) + _region(y_rows * y_row, offset_bytes) + _region(x_rows * x_row, item_bytes)
        return _Share(planes, rows, shared, planes * -(-rows // pooling.strip) * blocks * pooling.inner)

    stage = _stage_bytes(pooling, item_bytes, device)
    band = max(stage // (x_row * item_bytes * pixels), -(-(reach + 1) // pixels))  # at least as much work as halo
    return _best_share(pooling, share, pooling.H * x_row * item_bytes, stage, block_rows, band, device)


def _best_share(
    pooling: Pooling, share: Callable[[int, int], _Share], plane_bytes: int, stage: int, rows: int, band: int, device: Device
) -> _Share | None:
    """Whole planes where one fits in `stage` bytes; else a band of `band` rows, in whole strips, halved until it fits in shared
    memory; None if not even a single strip does."""
    if plane_bytes <= stage:
        found = share(min(stage // plane_bytes, pooling.planes), rows)
        return found if found.shared_bytes <= device.shared_bytes else None
    strips = -(-max(band, 1) // pooling.strip)
    while strips:
        found = share(1, min(strips * pooling.strip, rows))
        if found.shared_bytes <= device.shared_bytes:
            return found
        strips //= 2
    return None
