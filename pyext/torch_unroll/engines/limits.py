"""Sizes that are too large for the compiled kernels. One function for each op returns why a call's sizes are too large, or None;
the answer decides what serves the call, and `explain` reports it.

With engine "auto", a call that is too large goes to torch's own operator. It goes to engine `torch` if torch has no operator for
it, or if the size is first seen when an operator of this package runs (in a backward pass or a compiled graph). Engines `cuda`
and `cupy`, if named, refuse and say which size is too large. Engines `numba` and `torch` count in 64 bits and have none of these
limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from torch_unroll.checks import is_symbolic
from torch_unroll.engines.compiled.recording import TORCHS_OWN, note_too_large
from torch_unroll.kernels.cuda.conv2d.problem import Conv2dProblem, problem_of_sizes
from torch_unroll.kernels.cuda.rnn.block_product import batch_limit
from torch_unroll.kernels.shapes import SizeError

Sizes = Sequence[int]

#: The largest extent in pooling and recurrence. A kernel's loop counter may exceed an extent by one increment before the loop
#: ends, and no increment is larger than 2^27.
MOST = 2**31 - 2**27
#: A tensor of at most this many elements has no extent above a limit; the lowest limit is about 2^21 samples, in rnn_cell.
_FEW = 2**20

_LIMITED = ("auto", "cuda", "cupy")


def is_large(*tensors: Tensor) -> bool:
    """Returns whether sizes may be near a limit. The answer is always False while torch.compile traces, so that the graph does
    not depend on it; the graph's operators check their sizes when they run."""
    if torch.compiler.is_compiling():
        return False
    for tensor in tensors:
        elements = tensor.numel()
        if type(elements) is int and elements > _FEW:
            return True
    return False


def serves(engine: str, reason: str | None) -> bool:
    """Returns whether the engines serve a call; `reason` says why its sizes are too large for the compiled kernels, and is None
    if they are not.

    Raises:
        SizeError: the sizes are too large for the named engine.
    """
    if reason is None or engine not in _LIMITED:
        return True
    if engine != "auto":
        raise SizeError(reason)
    note_too_large(reason, TORCHS_OWN)
    return False


def require(engine: str, reason: str | None) -> None:
    """Raises SizeError if `reason` is not None and the engine has limits; operators call this when they run."""
    if reason is not None and engine in _LIMITED:
        raise SizeError(reason)


def conv2d(
    x_size: Sizes, w_size: Sizes, y_size: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int
) -> str | None:
    """Returns why sizes are too large for a convolution x (N, C, H, W), w (K, C/groups, R, S) -> y (N, K, P, Q) and its
    gradients; `padding` is that above and to the left. Returns None if they are not, if a tensor is empty, while torch.compile
    traces, or if sizes are symbolic."""
    if torch.compiler.is_compiling() or is_symbolic(*x_size, *w_size, *y_size, *stride, *padding, *dilation, groups):
        return None
    if 0 in (*x_size, *w_size, *y_size):
        return None
    return _problem(x_size, w_size, y_size, stride, padding, dilation, groups).limits()


def unfold(x_size: Sizes, y_size: Sizes, kernel_size: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes) -> str | None:
    """Returns why sizes are too large to unfold x (N, C, H, W) into P × Q windows or to fold those windows into x. Returns None
    if they are not, while torch.compile traces, or if sizes are symbolic."""
    if torch.compiler.is_compiling() or is_symbolic(*x_size, *y_size, *kernel_size, *stride, *padding, *dilation):
        return None
    if x_size[0] >= 2**31:
        return f"input: expected fewer than 2^31 images, got N = {x_size[0]}"
    w_size, windows = (1, x_size[1], *kernel_size), (x_size[0], 1, *y_size)
    return _problem(x_size, w_size, windows, stride, padding, dilation, 1).beyond_int32()


def _problem(
    x_size: Sizes, w_size: Sizes, y_size: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int
) -> Conv2dProblem:
    """Returns a convolution of these sizes; its dtype and strides are placeholders, on which the limits do not depend."""
    strides = dict.fromkeys(("x_strides", "w_strides", "y_strides"), (0, 0, 0, 0))
    pad = (padding[0], padding[1])
    return problem_of_sizes(x_size, w_size, y_size, stride, pad, dilation, dtype="float32", groups=groups, **strides)


def max_pool2d(x_size: Sizes, y_size: Sizes) -> str | None:
    """Returns why sizes are too large to pool x (N, C, H, W) into planes (P, Q); None if they are not. C·W and C·Q are limited
    too, because threads number the pixels and channels of a row together."""
    (N, C, H, W), (P, Q) = x_size, y_size
    return _too_large(MOST, {"N": N, "C": C, "H": H, "W": W, "P": P, "Q": Q, "C·W": C * W, "C·Q": C * Q})


def max_over_time(T: int, N: int, C: int) -> str | None:
    """Returns why sizes are too large to pool x (T, N, C) over time; None if they are not. N·C is limited because kernels may
    treat the channels of all samples as the channels of one image."""
    return _too_large(MOST, {"T": T, "N·C": N * C})


def rnn(lead: Sizes, features: int, N: int, H: int) -> str | None:
    """Returns why sizes are too large for recurrence; None if they are not.

    The sequence is (T, N, features) or packed (total, features), `lead` holds its extents before the features, and h0 is (D, N,
    H). T, N and H are limited because kernels count in 32 bits, and T·N because the product with W_ih treats the samples of all
    steps as the pixels of one plane.
    """
    if is_symbolic(*lead, features, N, H):
        return None
    return _too_large(MOST, {"T": lead[0], "N": N, "H": H}) or _too_large(2**30 - 1, {"T·N": prod(lead), "features": features})


def rnn_cell(N: int, inputs: int, H: int) -> str | None:
    """Returns why sizes are too large for one step with x (N, I) and h (N, H), or None."""
    if is_symbolic(N, inputs, H):
        return None
    reason = batch_limit(N)
    return f"input: {reason}" if reason else _too_large(MOST, {"I": inputs, "H": H})


def _too_large(most: int, extents: dict[str, int]) -> str | None:
    """Returns a message for the first extent above `most`, or None."""
    for name, extent in extents.items():
        if not is_symbolic(extent) and extent > most:
            return f"input: expected extents of at most {most} for compiled kernels, got {name} = {extent}"
    return None
