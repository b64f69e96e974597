"""One convolution as plans and kernels see it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from math import gcd, prod
from typing import Any, NamedTuple

from ...arithmetic import ceil_divide
from ...shapes import Conv2dShape, Four, Pair, SizeError

DIRECTIONS = ("fprop", "dgrad", "wgrad")
#: The default of `Conv2dProblem.workspace_limit`, in bytes; `tu.conv2d_workspace` sets another one.
WORKSPACE_LIMIT = 256 << 20


class Product(NamedTuple):
    """The matrix products of a direction: `parts` products, each of (rows, depth) by (depth, columns)."""

    rows: int  # in dgrad, of the residue that has the most
    columns: int
    depth: float  # of one part, on average
    parts: int  # groups; in dgrad, times the residues of the pixels modulo the stride


class Conv2dProblem(NamedTuple):
    """A convolution of x (N, C, H, W) and w (K, C/groups, R, S) that yields y (N, K, P, Q), or one of its gradients.

    It is hashable and holds everything that determines a plan, besides the device. Strides count elements.
    """

    dtype: str
    N: int
    C: int
    H: int
    W: int
    K: int
    R: int
    S: int
    P: int
    Q: int
    stride: Pair
    pad: Pair  # above and to the left; the padding below and to the right follows from P and Q
    dilation: Pair
    groups: int
    x_strides: Four
    w_strides: Four
    y_strides: Four
    direction: str = "fprop"  # or "dgrad", "wgrad"
    precision: str = "ieee"  # or "tf32"
    x_aligned: bool = True  # whether the first element lies on a 16-byte boundary
    w_aligned: bool = True
    y_aligned: bool = True
    #: Bytes that a call may allocate, besides a packed filter.
    #: One half is for packed images or for columns,
    #:     N · groups · (channels of a group, rounded up to 16 bytes) · pixels of a plane · bytes of an element
    #: for each image tensor that is packed, or N · C·R·S · P · Q · bytes of an element for columns; a call processes as many
    #: images at a time as fit, but at least one. The other half is for the sums of split products,
    #:     splits · elements of the result, with padded channels · 4 bytes (8 for float64),
    #: which are needed if there are several splits, and in wgrad also if there are several chunks of the batch. A bias gradient
    #: needs splits · K · 4 bytes (8 for float64) more.
    workspace_limit: int = WORKSPACE_LIMIT

    @property
    def group_channels(self) -> Pair:
        """C and K of one group."""
        return self.C // self.groups, self.K // self.groups

    @property
    def depth_channels(self) -> int:
        """The channels of a group that are summed over; in wgrad, which sums over pixels, those of x."""
        return self.group_channels[1 if self.direction == "dgrad" else 0]

    @property
    def taps(self) -> int:
        """How many products are summed for one element of y."""
        return self.C // self.groups * self.R * self.S

    @property
    def output_pixels(self) -> int:
        """How many pixels y has in all images."""
        return self.N * self.P * self.Q

    @property
    def depth(self) -> int:
        """How many products are summed for one element of the result; in dgrad, for the residue that has the most."""
        if self.direction == "wgrad":
            return self.output_pixels
        if self.direction == "fprop":
            return self.taps
        rows, columns = (
            ceil_divide(taps, stride // gcd(stride, dilation))
            for taps, stride, dilation in zip((self.R, self.S), self.stride, self.dilation, strict=True)
        )
        return self.K // self.groups * rows * columns

    @property
    def residues(self) -> Pair:
        """How many residues modulo the stride occur among the rows of x, and how many among its columns."""
        return min(self.stride[0], self.H), min(self.stride[1], self.W)

    @property
    def is_pointwise(self) -> bool:
        """Whether output pixel (p, q) depends on input pixel (p, q) alone."""
        return (self.R, self.S, self.stride, self.pad, self.P, self.Q) == (1, 1, (1, 1), (0, 0), self.H, self.W)

    @property
    def product(self) -> Product:
        """The matrix products that compute the result."""
        C, K = self.group_channels
        if self.direction == "fprop":
            return Product(rows=self.output_pixels, columns=K, depth=self.taps, parts=self.groups)
        if self.direction == "wgrad":
            return Product(rows=K, columns=self.taps, depth=self.output_pixels, parts=self.groups)
        residues = prod(self.residues)
        return Product(
            rows=self.N * ceil_divide(self.H, self.stride[0]) * ceil_divide(self.W, self.stride[1]),
            columns=C,
            depth=K * self.R * self.S / residues,
            parts=self.groups * residues,
        )

    @property
    def elements(self) -> dict[str, int]:
        """Direction -> how many elements its result has."""
        return {"fprop": self.output_pixels * self.K, "dgrad": self.N * self.C * self.H * self.W, "wgrad": self.K * self.taps}

    @property
    def flops(self) -> int:
        """Floating-point operations; a multiply-add counts as two, and taps on the padding count as well."""
        return 2 * self.output_pixels * self.K * self.taps

    @property
    def key(self) -> str | None:
        """The key in the table of measurements; None unless every tensor is aligned and dense in NCHW or channels_last order."""
        C = self.group_channels[0]
        layouts = [
            _layout(self.x_strides, (self.N, self.C, self.H, self.W)),
            _layout(self.w_strides, (self.K, C, self.R, self.S)),
            _layout(self.y_strides, (self.N, self.K, self.P, self.Q)),
        ]
        if None in layouts or not (self.x_aligned and self.w_aligned and self.y_aligned):
            return None
        distinct = dict.fromkeys(layout for layout in layouts if layout != "either") or {"channels_last": None}
        layout = next(iter(distinct)) if len(distinct) == 1 else "-".join(map(str, layouts))
        extents = ",".join(f"{name}={getattr(self, name)}" for name in "NCHWKRSPQ")
        pairs = ",".join(
            f"{name}={height}x{width}"
            for name, (height, width) in (("stride", self.stride), ("pad", self.pad), ("dilation", self.dilation))
        )
        return f"{self.dtype}/{self.precision}/{layout}/{extents},{pairs},groups={self.groups}"

    def limits(self) -> str | None:
        """Returns why no variant accepts the problem, in any direction and on any GPU; None if its sizes are not too large."""
        return self.beyond_int32() or self._beyond_indices()

    def beyond_int32(self) -> str | None:
        """Returns which integer does not fit `Conv2dShape`, or None. Any N is fine: a call is cut into chunks of the batch."""
        for name, sizes in (("stride", self.stride), ("padding", self.pad), ("dilation", self.dilation)):
            if max(sizes) >= 2**31:
                return f"{name}: expected numbers below 2^31, got {sizes}"
        for name, letters in (("input", "CHW"), ("weight", "KRS"), ("output", "PQ")):
            for letter in letters:
                extent = getattr(self, letter)
                if extent >= 2**31:
                    return f"{name}: expected extents below 2^31, got {letter} = {extent}"
        return None

    def _beyond_indices(self) -> str | None:
        """Returns which plane or filter has too many elements for the kernels' 32-bit indices, or None."""
        C, K = self.group_channels
        for name, extents in (
            ("input: expected planes", (self.H, self.W)),
            ("output: expected planes", (self.P, self.Q)),
            ("weight: expected filters", (C, self.R, self.S)),
            ("weight: expected the outputs of a group and their taps", (K, self.R, self.S)),
        ):
            if prod(extents) >= 2**30:
                return f"{name} of fewer than 2^30 elements, got {'×'.join(map(str, extents))}"
        return None

    def beyond_positions(self) -> str | None:
        """Returns why the variants other than im2col cannot form the positions that they gather from; None if they can.

        A position may not fit 32 bits, or its sum with kOutside (matrices.cuh) may lie in the plane.
        """
        for extent, outputs, taps, stride, pad, dilation in zip(
            (self.H, self.W), (self.P, self.Q), (self.R, self.S), self.stride, self.pad, self.dilation, strict=True
        ):
            reach = (taps - 1) * dilation
            if self.direction == "dgrad":
                fits = reach < 2**31 and extent - 1 + pad < 2**31 and max(reach, extent - 1 + pad) // stride < 2**30
            else:
                fits = pad <= 2**30 and (outputs - 1) * stride - pad < 2**30 and reach < 2**30
            if not fits:
                sizes = f"stride {self.stride}, padding {self.pad} and dilation {self.dilation}"
                return f"{sizes} reach over more pixels than its 32-bit positions"
        return None

    def require_int32(self) -> None:
        """Raises SizeError if an integer does not fit `Conv2dShape`."""
        if reason := self.beyond_int32():
            raise SizeError(reason)

    def images_per_launch(self, bytes_per_image: int) -> int:
        """Returns how many images one launch computes, at least one.

        Each image needs `bytes_per_image` of workspace, and together they may use half of it. A launch counts pixels in 31 bits.
        """
        by_bytes = self.workspace_limit // 2 // bytes_per_image if bytes_per_image else self.N
        return max(1, min(self.N, by_bytes, (2**31 - 2**20) // max(self.H * self.W, self.P * self.Q)))

    def shape(self) -> Conv2dShape:
        """Returns the struct of shapes.h."""
        strides = ctypes.c_int64 * 4
        return Conv2dShape(
            **{name: getattr(self, name) for name in ("N", "C", "H", "W", "K", "R", "S", "P", "Q", "groups")},
            stride_h=self.stride[0],
            stride_w=self.stride[1],
            pad_h=self.pad[0],
            pad_w=self.pad[1],
            dilation_h=self.dilation[0],
            dilation_w=self.dilation[1],
            x_stride=strides(*self.x_strides),
            w_stride=strides(*self.w_strides),
            y_stride=strides(*self.y_strides),
        )


def problem_of_sizes(
    x_size: Sequence[int],
    w_size: Sequence[int],
    y_size: Sequence[int],
    stride: Sequence[int],
    pad: Pair,
    dilation: Sequence[int],
    **fields: Any,
) -> Conv2dProblem:
    """Returns a convolution x (N, C, H, W), w (K, C/groups, R, S) -> y (N, K, P, Q); `fields` are its remaining fields.

    Along an axis, a stride has no effect if y has one pixel, and a dilation has none if the filter has one position. They are
    then replaced by 1, so that they neither change the plan nor make a variant refuse the problem.
    """
    (N, C, H, W), (K, _, R, S), (_, _, P, Q) = x_size, w_size, y_size
    return Conv2dProblem(
        N=N,
        C=C,
        H=H,
        W=W,
        K=K,
        R=R,
        S=S,
        P=P,
        Q=Q,
        stride=(stride[0] if P > 1 else 1, stride[1] if Q > 1 else 1),
        pad=pad,
        dilation=(dilation[0] if R > 1 else 1, dilation[1] if S > 1 else 1),
        **fields,
    )


def _layout(strides: Four, size: Four) -> str | None:
    """Returns "nchw" or "channels_last"; "either" if both fit because of extents of 1, None if neither fits."""
    fits = []
    for name, order in (("nchw", (3, 2, 1, 0)), ("channels_last", (1, 3, 2, 0))):
        dense = 1
        for dim in order:
            if size[dim] > 1 and strides[dim] != dense:
                break
            dense *= size[dim]
        else:
            fits.append(name)
    return None if not fits else fits[0] if len(fits) == 1 else "either"
