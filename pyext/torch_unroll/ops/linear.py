"""Matrix products of the recurrence, computed as 1×1 convolutions and therefore differentiable to any order.

A tensor (..., I) of two or three dimensions is viewed as one channels_last image with I channels, without a copy.
"""

from __future__ import annotations

from torch import Tensor

from torch_unroll.ops.conv2d import conv2d_fprop, conv2d_wgrad, conv2d_wgrad_bias

_GEOMETRY = ((1, 1), (0, 0, 0, 0), (1, 1), 1)  # stride, padding, dilation, groups


def as_image(x: Tensor) -> Tensor:
    """(A, B, I) -> (1, I, A, B); (A, I) -> (1, I, 1, A)."""
    return (x.unsqueeze(0) if x.dim() == 3 else x.unsqueeze(0).unsqueeze(0)).permute(0, 3, 1, 2)


def as_filters(w: Tensor) -> Tensor:
    """(H, I) -> (H, I, 1, 1), channels_last."""
    return w.unsqueeze(1).unsqueeze(1).permute(0, 3, 1, 2)


def linear(x: Tensor, w: Tensor, bias: Tensor | None, precision: str, engine: str) -> Tensor:
    """x (..., I), w (H, I), bias (H) -> x wᵀ + bias (..., H)."""
    y = conv2d_fprop(as_image(x), as_filters(w), bias, *_GEOMETRY, precision, engine, None).permute(0, 2, 3, 1).squeeze(0)
    return y if x.dim() == 3 else y.squeeze(0)


def outer_and_sum(dy: Tensor, x: Tensor, precision: str, engine: str) -> tuple[Tensor, Tensor]:
    """dy (..., H), x (..., I) -> `outer(dy, x)` and the sum of dy over all dimensions but the last (H), in one launch.

    For plain calls of which no derivative is wanted.
    """
    arguments = ((1, 1), None, *_GEOMETRY, precision, engine, None)
    dw, db = conv2d_wgrad_bias(as_image(dy), as_image(x), *arguments)
    return dw.squeeze(3).squeeze(2), db


def outer(dy: Tensor, x: Tensor, precision: str, engine: str) -> Tensor:
    """dy (..., H), x (..., I) -> Σ dyᵀ x (H, I), summed over all other dimensions: the gradient of `linear` with respect to w."""
    return conv2d_wgrad(as_image(dy), as_image(x), (1, 1), None, *_GEOMETRY, precision, engine, None).squeeze(3).squeeze(2)
