"""The variant im2col: `im2col.cuh` writes the column matrix to memory, and simt multiplies it.

Unfold and fold use the kernels of `im2col.cuh`, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from ...arithmetic import ceil_divide
from ...dtypes import CPP_TYPES, ITEM_BYTES
from ...hardware import Device
from ...shapes import SizeError
from ...table import Kernel, LaunchConfig, LaunchPlan, instantiate
from .cost import Passes
from .problem import Conv2dProblem
from .simt import Simt

_THREADS = 256  # kIm2colThreads
_BLOCKS_PER_MULTIPROCESSOR = 64
#: The kernels compute in 32 bits if all counts and positions are below this number. Tests lower it.
most_int32 = 2**31

KERNELS = tuple(
    kernel
    for name in ("im2col_kernel", "col2im_kernel")
    for kernel in instantiate("conv2d/im2col.cuh", name, tuple(CPP_TYPES.values()), ("int32_t", "int64_t"))
)


def plan_gather(problem: Conv2dProblem, name: str, multiprocessors: int) -> LaunchPlan:
    """Plans the kernel `im2col`, in which a thread owns one (n, c, p, q), or `col2im`, in which it owns one (n, c, h, w).

    The grid has at most 64 blocks per multiprocessor. If there are more elements than threads, a thread owns several.

    Raises:
        SizeError: an integer does not fit the kernels' parameters.
    """
    return _plan_gather(problem, name, multiprocessors, most_int32)


@lru_cache(maxsize=4096)
def _plan_gather(problem: Conv2dProblem, name: str, multiprocessors: int, limit: int) -> LaunchPlan:
    p = problem
    p.require_int32()
    if p.N >= 2**31:
        raise SizeError(f"input: expected fewer than 2^31 images, got N = {p.N}")
    elements = p.N * p.C * (p.P * p.Q if name == "im2col" else p.H * p.W)
    positions = (
        max(extent - 1 + pad, (outputs - 1) * stride + (taps - 1) * dilation)
        for extent, outputs, taps, stride, pad, dilation in zip(
            (p.H, p.W), (p.P, p.Q), (p.R, p.S), p.stride, p.pad, p.dilation, strict=True
        )
    )
    most_blocks = _BLOCKS_PER_MULTIPROCESSOR * multiprocessors
    largest = max(elements + most_blocks * _THREADS, *positions)
    index = "int32_t" if largest < limit else "int64_t"
    kernel = Kernel("conv2d/im2col.cuh", f"{name}_kernel", (CPP_TYPES[p.dtype], index))
    config = LaunchConfig(grid=(min(ceil_divide(elements, _THREADS), most_blocks), 1, 1), block=(_THREADS, 1, 1))
    return LaunchPlan(kernel, config, "im2col")


class Im2col(Simt):
    """Accepts every problem that `Conv2dProblem.limits` allows. `plan` takes the 1x1 convolution of the columns."""

    name = "im2col"
    last_resort = True
    writes_dw = False  # its product is that of a 1x1 filter

    def refuses(self, problem: Conv2dProblem, device: Device) -> str | None:
        """Returns which sizes are too large, or None. Positions are never too large: the kernels use 64 bits if need be."""
        return problem.limits()

    def product_problem(self, problem: Conv2dProblem) -> Conv2dProblem:
        return problem._replace(
            C=problem.C * problem.R * problem.S,
            R=1,
            S=1,
            H=problem.P,
            W=problem.Q,
            stride=(1, 1),
            pad=(0, 0),
            dilation=(1, 1),
        )

    def splits(self, problem: Conv2dProblem, tile: str, device: Device) -> Sequence[int]:
        return super().splits(problem, tile, device) if problem.direction == "wgrad" else (1,)

    def passes(self, problem: Conv2dProblem) -> Passes:
        """Counts an image and its columns, one of which is read and the other written."""
        item = ITEM_BYTES[problem.dtype]
        image_bytes = problem.C * problem.H * problem.W * item
        column_bytes = problem.C * problem.R * problem.S * problem.P * problem.Q * item
        chunks = ceil_divide(problem.N, problem.images_per_launch(column_bytes))
        return Passes(
            moved_bytes=problem.N * (image_bytes + column_bytes),
            launches=2 * chunks - 1,
            workspace_bytes=problem.images_per_launch(column_bytes) * column_bytes,
            chunks=chunks,
        )


IM2COL = Im2col()
