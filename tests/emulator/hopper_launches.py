"""Functions that launch the kernels of kernels/hopper.cuh, and the instances, parameters and inputs of these kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import hopper_model as model
import numpy as np
import torch
from emulated import Emulator, LaunchError, instances, launch_config

from torch_unroll.kernels.arithmetic import round_up
from torch_unroll.kernels.dtypes import ITEM_BYTES
from torch_unroll.kernels.tensor_map import TensorMap, TensorMapSpec

MAJORS = [f"Major::{a}, Major::{b}" for a in ("depth", "rows") for b in ("depth", "rows")]
PRODUCTS = [
    *(("bfloat16", n, majors) for n in (64, 128, 256) for majors in MAJORS),
    *(("half", 64, majors) for majors in MAJORS),
    *(("float", n, MAJORS[0]) for n in (64, 128, 256)),
]
MISTAKES = ("no_proxy_fence", "no_fence", "no_commit", "no_wait", "early_read", "touched", "other_descriptor")
RINGS = ("correct", "wrong_parity", "wrong_span", "late_wait", "wrong_bytes")
NAMES = {"half": "float16", "bfloat16": "bfloat16", "float": "float32"}
ROWS = instances(
    "hopper.cuh",
    *(("box_kernel", im2col) for im2col in ("true", "false")),
    *(("wgmma_kernel", f"{dtype}, {n}, {majors}, Mistake::none") for dtype, n, majors in PRODUCTS),
    *(("wgmma_kernel", f"bfloat16, 64, {MAJORS[1]}, Mistake::{mistake}") for mistake in MISTAKES),
    *(("gemm_ring_kernel", f"{dtype}, 128, Ring::correct") for dtype in NAMES),
    *(("gemm_ring_kernel", f"bfloat16, 128, Ring::{ring}") for ring in RINGS[1:]),
)
NO_MISTAKE, LOCAL_MAP, OTHER_BARRIER, NOBODY_WAITS, NO_PROXY_FENCE = range(5)


class BoxParameters(ctypes.Structure):
    _fields_ = [
        ("map", TensorMap),
        ("to", ctypes.c_void_p),
        ("start", ctypes.c_int32 * 4),
        ("offset", ctypes.c_int32 * 2),
        *((name, ctypes.c_int32) for name in ("at", "bytes", "expected", "fill", "mistake")),
        ("rest", ctypes.c_uint8 * 12),  # padding to the alignment of a map
    ]


class Operand(ctypes.Structure):
    _fields_ = [
        ("bytes", ctypes.c_void_p),
        ("size", ctypes.c_int32),
        *((name, ctypes.c_uint32) for name in ("start", "leading", "stride", "span", "step")),
    ]


class WgmmaParameters(ctypes.Structure):
    _fields_ = [("a", Operand), ("b", Operand), ("d", ctypes.c_void_p), ("steps", ctypes.c_int32)]


class RingParameters(ctypes.Structure):
    _fields_ = [
        *(("a", TensorMap), ("b", TensorMap), ("d", ctypes.c_void_p), ("N", ctypes.c_int32), ("steps", ctypes.c_int32)),
        ("rest", ctypes.c_uint8 * 48),
    ]


def allow(emulator: Emulator, *buffers: np.ndarray) -> None:
    if "race" in emulator.library._name:
        emulator.allow_memory(*buffers)


def spec_of(tensor: np.ndarray, dtype: str, swizzle: int, **more: Any) -> TensorMapSpec:
    """The specification of a map of a dense (N, H, W, C) tensor."""
    return TensorMapSpec(tensor.ctypes.data, dtype, tensor.shape[::-1], tensor.strides[2::-1], swizzle, **more)


def copy_box(
    emulator: Emulator,
    spec: TensorMapSpec,
    tensor: np.ndarray,
    start: Sequence[int],
    offset: Sequence[int] = (0, 0),
    *,
    rows: int,
    at: int = 0,
    fill: int = 0xEE,
    mistake: int = NO_MISTAKE,
    expected: int | None = None,
    encoded: TensorMap | None = None,
) -> np.ndarray:
    """Launches a kernel that copies one box; returns the contents of shared memory up to the end of the box."""
    size = at + rows * spec.swizzle
    to = np.zeros(round_up(size, 128), np.uint8)
    row_bytes = (spec.channels if spec.im2col else spec.box[0]) * ITEM_BYTES[spec.dtype]
    parameters = BoxParameters(
        map=emulator.encode(spec) if encoded is None else encoded,
        to=to.ctypes.data,
        start=(ctypes.c_int32 * 4)(*start),
        offset=(ctypes.c_int32 * 2)(*offset),
        at=at,
        bytes=len(to),
        expected=rows * row_bytes if expected is None else expected,
        fill=fill,
        mistake=mistake,
    )
    allow(emulator, tensor, to)
    kernel = f"box_kernel<{str(spec.im2col).lower()}>"
    emulator.launch(kernel, launch_config(1, 64, shared_bytes=len(to) + 16), parameters)
    return to[:size]


def copy_box_anywhere(
    emulator: Emulator,
    spec: TensorMapSpec,
    tensor: np.ndarray,
    start: Sequence[int],
    offset: Sequence[int],
    *,
    size: int,
    at: int,
) -> np.ndarray:
    """Copies a box without a kernel, to a destination `at` bytes after a multiple of 1024, and returns `size` bytes from there.

    The destination may be one that the emulator refuses in kernels. Bytes that the copy does not write are 0xFF.

    Raises:
        LaunchError: the driver's encoder would refuse the map, or a copy may not have this start or offset.
    """
    memory = np.full(at + size + 1024, 0xFF, np.uint8)
    status = emulator.library.torch_unroll_emulator_copy_box(
        ctypes.byref(spec.struct()),
        *((ctypes.c_int32 * 4)(*start), (ctypes.c_int32 * 2)(*offset), at, ctypes.c_void_p(memory.ctypes.data)),
    )
    if status:
        raise LaunchError(emulator.library.torch_unroll_error_text(status).decode())
    return memory[at : at + size]


def numbered(dtype: str, *shape: int) -> np.ndarray:
    """A tensor whose elements are 1, 2, 3, ... in the order of memory."""
    count = np.arange(1, 1 + np.prod(shape)).reshape(shape)
    return count.astype(np.float32) if dtype == "float32" else count.astype(np.uint16)


def arrived(rows: np.ndarray) -> np.ndarray:
    """Rows as a copy writes them: fp32 is rounded to TF32, other dtypes are unchanged."""
    return model.tf32(rows) if rows.dtype == np.float32 else rows


def random_matrix(dtype: str, rows: int, depth: int, seed: int) -> torch.Tensor:
    """A matrix of small integers: sums of products are exact, so tests need no tolerance, which could hide a permuted operand."""
    return torch.randint(-8, 9, (rows, depth), generator=torch.Generator().manual_seed(seed)).to(getattr(torch, NAMES[dtype]))


def words(matrix: torch.Tensor) -> np.ndarray:
    return matrix.view(torch.int16 if matrix.element_size() == 2 else torch.int32).numpy()


def operand(source: model.Operand, start: int = 0) -> tuple[Operand, np.ndarray]:
    """An operand for a kernel, and the contents of its part of shared memory, in which the operand starts at byte `start`.

    The bytes before the operand and after it, up to a multiple of 1024, represent NaN.
    """
    lead, tail = np.full(start, 0xFF, np.uint8), np.full(-(start + len(source.bytes)) % 1024, 0xFF, np.uint8)
    image = np.concatenate([lead, source.bytes, tail])
    kernel_operand = Operand(
        bytes=image.ctypes.data,
        size=len(image),
        start=start + source.start,
        leading=source.leading,
        stride=source.stride,
        span=source.span,
        step=source.step,
    )
    return kernel_operand, image


def multiply(
    emulator: Emulator,
    kernel: str,
    a: model.Operand,
    b: model.Operand,
    n: int,
    *,
    starts: tuple[int, int] = (0, 0),
    steps: int = 2,
    threads: int = 128,
) -> np.ndarray:
    """D = 1 + A B. `starts` are the offsets in bytes of the operands in their parts of shared memory."""
    left, left_image = operand(a, starts[0])
    right, right_image = operand(b, starts[1])
    d = np.zeros((64, n), np.float32)
    allow(emulator, left_image, right_image, d)
    config = launch_config(1, threads, shared_bytes=len(left_image) + len(right_image))
    emulator.launch(kernel, config, WgmmaParameters(left, right, d.ctypes.data, steps))
    return d


LAYOUTS: dict[str, Callable[[np.ndarray, int], model.Operand]] = {"depth": model.depth_major, "rows": model.row_major}


def multiply_ring(emulator: Emulator, dtype: str, mistake: str, a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    """A B^T for A of shape (M, depth) and B of shape (N, depth), in tiles of 64 by 128."""
    M, N, row_bytes = len(a), len(b), a.shape[1] * a.element_size()
    d = np.zeros((M, N), np.float32)
    allow(emulator, words(a), words(b), d)

    def encoded(matrix: torch.Tensor, rows: int) -> TensorMap:
        as_tensor = words(matrix).reshape(1, 1, *matrix.shape)
        return emulator.encode(spec_of(as_tensor, NAMES[dtype], 128, box=(128 // matrix.element_size(), rows, 1, 1)))

    maps = {"a": encoded(a, 64), "b": encoded(b, 128)}
    parameters = RingParameters(**maps, d=d.ctypes.data, N=N, steps=row_bytes // 128)
    config = launch_config((N // 128, M // 64, 1), 160, shared_bytes=2 * (64 + 128) * 128 + 32)
    emulator.launch(f"gemm_ring_kernel<{dtype}, 128, Ring::{mistake}>", config, parameters)
    return d
