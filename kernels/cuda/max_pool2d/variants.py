"""The kernels of max pooling, and which of them serves a call; the ideas are told at the head of each .cuh file."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import NamedTuple

from ...dtypes import CPP_TYPES
from ...shapes import MaxPool2dShape
from ...table import Kernel, LaunchConfig, LaunchPlan, instantiate
from .pooling import FIXED_WINDOWS, ITEM_BYTES, OFFSET_BYTES, THREADS, Device, Pooling, Strides
from .shares import Share, backward_share, forward_share

_GRID_LIMIT = 65535  # in y and z


def _rows() -> list[Kernel]:
    types, offsets = tuple(CPP_TYPES.values()), tuple(OFFSET_BYTES)
    rows: list[Kernel] = []
    for direction, plain in (("forward", "strided"), ("backward", "flat")):
        source, stem = f"max_pool2d/{direction}.cuh", f"max_pool2d_{direction}"
        for variant in ("channels", "staged"):
            rows += instantiate(source, f"{stem}_{variant}_kernel", types, ("uint8_t",), tuple(FIXED_WINDOWS.values()))
            rows += instantiate(source, f"{stem}_{variant}_kernel", types, ("uint8_t", "int16_t"), ("AnyWindow",))
        rows += instantiate(source, f"{stem}_{plain}_kernel", types, offsets)
    for name, item_bytes in ITEM_BYTES.items():
        axes = ((CPP_TYPES[name],), offsets, ("1", str(16 // item_bytes)))
        rows += instantiate("max_pool2d/forward.cuh", "max_pool2d_forward_split_kernel", *axes)
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
    return type(name, (ctypes.Structure,), {"_fields_": fields, "__doc__": f"`{name}` of the .cuh files."})


ForwardParameters = _parameters("MaxPool2dForwardParameters", "x", "y", "offsets", "lengths")
BackwardParameters = _parameters("MaxPool2dBackwardParameters", "dy", "offsets", "dx")
GatherParameters = _parameters("MaxPool2dGatherParameters", "ddx", "offsets", "ddy")
IndicesParameters = _parameters("MaxPool2dIndicesParameters", "offsets", "indices")

#: By the name of the template.
PARAMETERS: dict[str, type[ctypes.Structure]] = {
    **{f"max_pool2d_forward_{variant}_kernel": ForwardParameters for variant in ("channels", "staged", "strided", "split")},
    **{f"max_pool2d_backward_{variant}_kernel": BackwardParameters for variant in ("channels", "staged", "flat")},
    "max_pool2d_gather_kernel": GatherParameters,
    "max_pool2d_indices_kernel": IndicesParameters,
}


class Planned(NamedTuple):
    """A launch, the structs of its parameters, and the variants tried before it with the reason against each."""

    plan: LaunchPlan
    shape: MaxPool2dShape
    dense: Dense
    passed_over: tuple[tuple[str, str], ...] = ()


class _Call(NamedTuple):
    """What a plan is made from. `aligned`: every tensor starts at a multiple of 16 bytes."""

    pooling: Pooling
    dtype: str
    x_strides: Strides
    aligned: bool
    device: Device
    with_lengths: bool = False  # images end at rows of their own

    @property
    def types(self) -> tuple[str, str]:
        """The first template arguments of every kernel but indices."""
        return (CPP_TYPES[self.dtype], self.pooling.offset)

    @property
    def piece(self) -> int:
        """Elements of 16 bytes."""
        return 16 // ITEM_BYTES[self.dtype]

    def no_pieces(self) -> str | None:
        """None if every pixel's channels lie side by side in whole 16-byte pieces; else why not."""
        if not self.pooling.channels_last or self.x_strides[1] != 1:
            return "the layout is not channels_last"
        if self.pooling.C % self.piece:
            return f"{self.pooling.C} channels are no whole number of 16-byte pieces"
        if not self.aligned or any(self.x_strides[axis] % self.piece for axis in (0, 2, 3)):
            return "a tensor, or its pixels, start off 16-byte boundaries"
        return None


NONE_LEFT = "the last variant takes everything"
_TOO_LARGE = "a window has more than 32767 cells"


def _split(call: _Call) -> Planned | str:
    pooling = call.pooling
    if pooling.compiled_window != "AnyWindow" or pooling.window[0] < 8:
        return "windows are less than 8 rows high"
    V = call.piece if call.no_pieces() is None else 1
    threads = pooling.outputs // V
    wanted = call.device.multiprocessors * 1024  # half of what multiprocessors hold
    slices = min(_power_of_two(-(-wanted // threads)), _power_of_two(pooling.window[0] // 4), 32)
    if wanted <= threads:
        return "there are outputs enough to fill the GPU"
    items = pooling.Q * pooling.C // V
    x = min(THREADS // slices, _power_of_two(items))
    shared_bytes = x * slices * V * ((8 if call.dtype == "float64" else 4) + 4)
    config = LaunchConfig((-(-items // x) * pooling.P * pooling.N, 1, 1), (x, slices, 1), shared_bytes)
    return _planned("forward_split", "split", (*call.types, str(V)), config, pooling, call.x_strides)


def _forward_channels(call: _Call) -> Planned | str:
    return _channels("forward", call, call.pooling.Q, call.pooling.P)


def _backward_channels(call: _Call) -> Planned | str:
    pooling = call.pooling
    return _channels("backward", call, pooling.pixel_blocks(pooling.W, 1), pooling.pixel_blocks(pooling.H, 0))


def _channels(direction: str, call: _Call, columns: int, rows: int) -> Planned | str:
    """Threads over `columns` times pieces of channels, strips of `rows`, and images."""
    pooling = call.pooling
    if pooling.offset == "int32_t":
        return _TOO_LARGE
    if reason := call.no_pieces():
        return reason
    items = columns * pooling.C // call.piece
    strips = -(-rows // pooling.strip)
    x = _power_of_two(items)
    if items > THREADS:  # the multiple of a warp that leaves the fewest threads idle
        x = min(range(128, THREADS + 1, 32), key=lambda threads: (-items % threads, -threads))
    y = min(THREADS // x, _power_of_two(strips))
    z = min(THREADS // (x * y), _power_of_two(pooling.N), 64)
    config = LaunchConfig((-(-items // x), min(-(-strips // y), _GRID_LIMIT), min(-(-pooling.N // z), _GRID_LIMIT)), (x, y, z))
    arguments = (*call.types, pooling.compiled_window)
    return _planned(f"{direction}_channels", "channels", arguments, config, pooling, call.x_strides)


def _forward_staged(call: _Call) -> Planned | str:
    return _staged("forward", call, forward_share(call.pooling, ITEM_BYTES[call.dtype], call.device), call.pooling.P)


def _backward_staged(call: _Call) -> Planned | str:
    share = backward_share(call.pooling, ITEM_BYTES[call.dtype], call.device)
    return _staged("backward", call, share, call.pooling.pixel_blocks(call.pooling.H, 0))


def _staged(direction: str, call: _Call, share: Share | None, rows: int) -> Planned | str:
    pooling = call.pooling
    if pooling.offset == "int32_t":
        return _TOO_LARGE
    if call.with_lengths:
        return "sequences have lengths of their own"
    sides = zip(call.x_strides, pooling.x_strides, pooling.x_size, strict=True)
    if any(stride != expected and extent != 1 for stride, expected, extent in sides):
        return "the input is not dense"
    if share is None:
        return "a strip of its rows exceeds a block's shared memory"
    blocks = -(-pooling.planes // share.planes) * -(-rows // share.rows)
    threads = min(max(-(-share.items // 32) * 32, 64), THREADS)
    config = LaunchConfig((blocks, 1, 1), (threads, 1, 1), share.shared_bytes)
    arguments = (*call.types, pooling.compiled_window)
    return _planned(f"{direction}_staged", "staged", arguments, config, pooling, pooling.x_strides, share)


def _strided(call: _Call) -> Planned | str:
    config = _one_each(call.pooling.outputs)
    return _planned("forward_strided", "strided", call.types, config, call.pooling, call.x_strides)


def _flat(call: _Call) -> Planned | str:
    N, C, H, W = call.pooling.x_size
    return _planned("backward_flat", "flat", call.types, _one_each(N * C * H * W), call.pooling, call.x_strides)


#: In the order they are tried; the last takes everything.
_FORWARD = {"split": _split, "channels": _forward_channels, "staged": _forward_staged, "strided": _strided}
_BACKWARD = {"channels": _backward_channels, "staged": _backward_staged, "flat": _flat}


def _first(variants: Mapping[str, Callable[[_Call], Planned | str]], call: _Call) -> Planned:
    passed_over: list[tuple[str, str]] = []
    for name, plan in variants.items():
        found = plan(call)
        if isinstance(found, Planned):
            return found._replace(passed_over=tuple(passed_over))
        passed_over.append((name, found))
    raise AssertionError(NONE_LEFT)


@lru_cache(maxsize=4096)
def forward_plan(
    pooling: Pooling, dtype: str, x_strides: Strides, aligned: bool, device: Device, with_lengths: bool = False
) -> Planned:
    """`aligned`: x, y and offsets start at multiples of 16 bytes."""
    return _first(_FORWARD, _Call(pooling, dtype, x_strides, aligned, device, with_lengths))


@lru_cache(maxsize=4096)
def backward_plan(pooling: Pooling, dtype: str, aligned: bool, device: Device) -> Planned:
    """Every tensor is dense; `aligned`: all start at multiples of 16 bytes."""
    return _first(_BACKWARD, _Call(pooling, dtype, pooling.x_strides, aligned, device))


@lru_cache(maxsize=4096)
def gather_plan(pooling: Pooling, dtype: str) -> Planned:
    """Every tensor is dense, offsets and ddy start at multiples of 16 bytes."""
    width = 16 // max(ITEM_BYTES[dtype], OFFSET_BYTES[pooling.offset])
    config = _one_each(-(-pooling.outputs // width))
    return _planned("gather", "flat", (CPP_TYPES[dtype], pooling.offset), config, pooling, pooling.x_strides)


@lru_cache(maxsize=4096)
def indices_plan(pooling: Pooling) -> Planned:
    """Every tensor is dense, and indices start at a multiple of 16 bytes."""
    config = _one_each(-(-pooling.outputs // 2))
    return _planned("indices", "flat", (pooling.offset,), config, pooling, pooling.x_strides)


def _planned(
    name: str,
    variant: str,
    arguments: tuple[str, ...],
    config: LaunchConfig,
    pooling: Pooling,
    x_strides: Strides,
    share: Share | None = None,
) -> Planned:
    kernel = _BY_NAME[f"max_pool2d_{name}_kernel", arguments]
    extents = (*pooling.x_size, *pooling.window, pooling.P, pooling.Q)
    geometry = (*pooling.stride, *pooling.padding, *pooling.dilation)
    four = ctypes.c_int64 * 4
    shape = MaxPool2dShape(*extents, *geometry, four(*x_strides), four(*pooling.y_strides))
    dense = Dense(pooling.planes, pooling.inner, *((share.planes, share.rows) if share else ()))
    return Planned(LaunchPlan(kernel, config, variant), shape, dense)


def _one_each(items: int) -> LaunchConfig:
    """A thread an item."""
    return LaunchConfig((-(-items // THREADS), 1, 1), (THREADS, 1, 1))


def _power_of_two(at_least: int) -> int:
    return 1 << (at_least - 1).bit_length()
