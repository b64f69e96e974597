"""The variants that run on every GPU: tensor cores by mma.sync, CUDA cores, and the column matrix in memory.

Their rates are predictions, as the ladders of the kernel files have them; the kernels' launch plans are in `variants.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ...hardware import Device, rates
from . import variants
from .model import Passes, Variant, peak
from .problem import ITEM_BYTES, Conv2dProblem, Four, whole_pieces


def index_limits(problem: Conv2dProblem) -> str | None:
    """Why positions would not fit the kernels' indices."""
    p = problem
    for what, extents in (
        ("input: expected planes", (p.H, p.W)),
        ("output: expected planes", (p.P, p.Q)),
        ("weight: expected filters", (p.C // p.groups, p.R, p.S)),
        ("weight: expected the outputs of a group and their taps", (p.K // p.groups, p.R, p.S)),
    ):
        if prod(extents) >= 2**30:
            return f"{what} of fewer than 2^30 elements, got {'×'.join(map(str, extents))}"
    return None


def limits(problem: Conv2dProblem) -> str | None:
    """Why no variant takes a problem, in any direction and on any GPU."""
    return problem.beyond_int32() or index_limits(problem)


def position_limits(direction: str, problem: Conv2dProblem) -> str | None:
    """Why a position that the implicit kernels form, counted from the plane they gather from, would leave 32 bits, or be taken
    for one in the plane when kOutside of matrices.cuh is added to it."""
    p = problem
    for extent, outputs, taps, stride, pad, dilation in zip(
        (p.H, p.W), (p.P, p.Q), (p.R, p.S), p.stride, p.pad, p.dilation, strict=True
    ):
        filter = (taps - 1) * dilation
        if direction == "dgrad":
            fits = filter < 2**31 and extent - 1 + pad < 2**31 and max(filter, extent - 1 + pad) // stride < 2**30
        else:
            fits = pad <= 2**30 and (outputs - 1) * stride - pad < 2**30 and filter < 2**30
        if not fits:
            sizes = f"stride {p.stride}, padding {p.pad} and dilation {p.dilation}"
            return f"{sizes} reach over more pixels than its 32-bit positions"
    return None


class Implicit(Variant):
    """simt.cuh."""

    name = "implicit"
    #: Of CUDA cores' FLOP per clock, by tile: the ladder's 1.3 times the limit; fewer products for each fragment read.
    shares = {"128x128": 0.75, "64x64": 0.6}  # noqa: RUF012

    def refuses(self, direction: str, problem: Conv2dProblem, device: Device) -> str | None:
        return index_limits(problem) or position_limits(direction, problem)

    def tiles(self, direction: str, problem: Conv2dProblem) -> Sequence[str]:
        return tuple(variants.tiles(problem.dtype, False))

    def step(self, direction: str, problem: Conv2dProblem, tile: str) -> int:
        return variants.tiles(problem.dtype, False)[tile].step(problem.dtype)

    def resident(self, direction: str, problem: Conv2dProblem, tile: str) -> int:
        return variants.tiles(problem.dtype, False)[tile].resident

    def rate(self, direction: str, problem: Conv2dProblem, tile: str, device: Device) -> float:
        cores = rates(device).fp64 if problem.dtype == "float64" else rates(device).fp32
        return self.shares[tile] * cores / peak(problem, device)


class Explicit(Implicit):
    """im2col.cuh, and then the product of its columns, a 1x1 convolution, by simt.cuh."""

    name = "explicit"
    last_resort = True

    def refuses(self, direction: str, problem: Conv2dProblem, device: Device) -> str | None:
        """Positions are no reason: the gathers count them in 64 bits where they must."""
        return index_limits(problem)

    def given(self, direction: str, problem: Conv2dProblem) -> Conv2dProblem:
        return problem._replace(
            C=problem.C * problem.R * problem.S, R=1, S=1, H=problem.P, W=problem.Q, stride=(1, 1), pad=(0, 0), dilation=(1, 1)
        )

    def splits(self, direction: str, problem: Conv2dProblem, tile: str, device: Device) -> Sequence[int]:
        return super().splits(direction, problem, tile, device) if direction == "wgrad" else (1,)

    def passes(self, direction: str, problem: Conv2dProblem) -> Passes:
        """The image is read or written, and so are its columns."""
        item = ITEM_BYTES[problem.dtype]
        image = problem.C * problem.H * problem.W * item
        columns = problem.C * problem.R * problem.S * problem.P * problem.Q * item
        images = images_at_once(problem, columns)
        launches = -(-problem.N // images)
        return Passes(problem.N * (image + columns), 2 * launches - 1, images * columns)


class Tensor(Variant):
    """mma.cuh, and before it pack_channels.cuh for whatever does not come in whole pieces of channels."""

    name = "tensor"
    #: Of tensor cores' FLOP per clock, by tile, where mma.sync is what they are made for (before Hopper); half of it on Hopper
    #: and later, as the kernel's ladder predicts. 64x64 reads twice the bytes for a product.
    shares = {"128x128": 0.85, "64x64": 0.5}  # noqa: RUF012
    since_hopper = 0.55

    def refuses(self, direction: str, problem: Conv2dProblem, device: Device) -> str | None:
        if problem.dtype == "float64":
            return "tensor cores multiply fp16, bf16 and TF32, not float64"
        if problem.dtype == "float32" and problem.precision != "tf32":
            return "float32 products are to be IEEE: torch.backends.cudnn.conv.fp32_precision = 'tf32' allows tensor cores"
        C, K = problem.group_channels
        if problem.groups > 1 and min(C, K) < 4:
            return f"groups of {C} and {K} channels would leave tensor cores multiplying padding"
        return index_limits(problem) or position_limits(direction, problem)

    def tiles(self, direction: str, problem: Conv2dProblem) -> Sequence[str]:
        return tuple(variants.tiles(problem.dtype, True))

    def step(self, direction: str, problem: Conv2dProblem, tile: str) -> int:
        return variants.tiles(problem.dtype, True)[tile].step(problem.dtype)

    def resident(self, direction: str, problem: Conv2dProblem, tile: str) -> int:
        return variants.tiles(problem.dtype, True)[tile].resident

    def rate(self, direction: str, problem: Conv2dProblem, tile: str, device: Device) -> float:
        return self.shares[tile] * (self.since_hopper if device.capability >= (9, 0) else 1)

    def given(self, direction: str, problem: Conv2dProblem) -> Conv2dProblem:
        """What is summed over comes in whole pieces; so do both of wgrad's channels, which are contiguous in its operands."""
        C, K = problem.group_channels
        padded_C, padded_K = (whole(channels, problem) * problem.groups for channels in (C, K))
        return problem._replace(
            C=problem.C if direction == "dgrad" else padded_C, K=problem.K if direction == "fprop" else padded_K
        )

    def passes(self, direction: str, problem: Conv2dProblem) -> Passes:
        item, groups = ITEM_BYTES[problem.dtype], problem.groups
        x_size, y_size = (problem.N, problem.C, problem.H, problem.W), (problem.N, problem.K, problem.P, problem.Q)
        per_image = passed = launches = 0
        for used, strides, size, aligned in (
            (direction != "dgrad", problem.x_strides, x_size, problem.x_aligned),
            (direction != "fprop", problem.y_strides, y_size, problem.y_aligned),
        ):
            if used and not self._packed(problem, strides, size, aligned, groups):
                plane = size[2] * size[3] * item
                packed = groups * whole(size[1] // groups, problem) * plane
                per_image += packed
                passed += problem.N * (packed + size[1] * plane)
                launches += 1
        images = images_at_once(problem, per_image) if per_image else problem.N
        chunks = -(-problem.N // images)
        workspace, launches = images * per_image, launches * chunks + chunks - 1
        if packed := self.packed_filter(direction, problem):
            workspace += packed
            passed += packed + problem.K * problem.taps * item
            launches += 1
        return Passes(passed, launches, workspace)

    def packed_filter(self, direction: str, problem: Conv2dProblem) -> int:
        """Bytes of the filter's copy; 0 where it is read as it is."""
        C, K = problem.group_channels
        size = (problem.K, C, problem.R, problem.S)
        outputs_whole = direction == "fprop" or whole(K, problem) == K
        if direction == "wgrad" or (outputs_whole and self._packed(problem, problem.w_strides, size, problem.w_aligned, 1)):
            return 0
        outputs = problem.K if direction == "fprop" else problem.groups * whole(K, problem)
        return outputs * whole(C, problem) * problem.R * problem.S * ITEM_BYTES[problem.dtype]

    @staticmethod
    def _packed(problem: Conv2dProblem, strides: Four, size: Four, aligned: bool, groups: int) -> bool:
        return whole_pieces(strides, size, aligned, groups, variants.mma_piece(problem.dtype))


def whole(channels: int, problem: Conv2dProblem) -> int:
    """Channels once they are padded to pieces of 16 bytes."""
    piece = variants.mma_piece(problem.dtype)
    return -(-channels // piece) * piece


def images_at_once(problem: Conv2dProblem, bytes_per_image: int) -> int:
    """How many images one launch takes."""
    pixels = (problem.H * problem.W, problem.P * problem.Q)
    return variants.images_per_launch(bytes_per_image, pixels, problem.N, variants.workspace_limit // 2)


TENSOR, IMPLICIT, EXPLICIT = Tensor(), Implicit(), Explicit()
