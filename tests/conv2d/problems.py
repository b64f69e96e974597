"""Builds a `Conv2dProblem` from numbers, for tests that have no tensors."""

from __future__ import annotations

from torch_unroll.kernels.cuda.conv2d.problem import Conv2dProblem
from torch_unroll.kernels.shapes import Four


def square_problem(
    dtype: str = "bfloat16",
    N: int = 32,
    C: int = 64,
    H: int = 56,
    K: int = 64,
    R: int = 3,
    stride: int = 1,
    pad: int | None = None,
    dilation: int = 1,
    groups: int = 1,
    precision: str = "ieee",
    nchw: str = "",
) -> Conv2dProblem:
    """Returns a convolution of square planes and filters. By default `pad` is R // 2.

    The tensors named in `nchw` are contiguous, the others channels_last.
    """
    pad = R // 2 if pad is None else pad
    P = (H + 2 * pad - dilation * (R - 1) - 1) // stride + 1

    def strides(name: str, channels: int, extent: int) -> Four:
        plane = extent * extent
        if name in nchw:
            return (channels * plane, plane, extent, 1)
        return (channels * plane, 1, extent * channels, channels)

    return Conv2dProblem(
        dtype=dtype,
        N=N,
        C=C,
        H=H,
        W=H,
        K=K,
        R=R,
        S=R,
        P=P,
        Q=P,
        stride=(stride, stride),
        pad=(pad, pad),
        dilation=(dilation, dilation),
        groups=groups,
        x_strides=strides("x", C, H),
        w_strides=strides("w", C // groups, R),
        y_strides=strides("y", K, P),
        precision=precision,
    )
