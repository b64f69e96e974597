"""Sizes that the compiled kernels do not count; one predicate for each op both selects and explains.

With engine "auto" such a call goes to torch's own operator, or to engine `torch` where torch has none and where only an operator
(a backward pass, a graph) meets the size. A named engine says which size is too large. Engines `numba` and `torch` count in 64
bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from torch_unroll.checks import is_symbolic
from torch_unroll.engines.compiled.recording import note_too_large
from torch_unroll.kernels.cuda.conv2d.problem import Conv2dProblem
from torch_unroll.kernels.cuda.rnn.variants import batch_limit
from torch_unroll.kernels.shapes import SizeError

Sizes = Sequence[int]

#: Extents of pooling and of recurrence: below 2^31 by the widest step of the kernels' loops, which end beyond them.
MOST = 2**31 - 2**27
#: Elements up to which no tensor comes near any limit.
_FEW = 2**20

_LIMITED = ("auto", "cuda", "cupy")


def is_large(*tensors: Tensor) -> bool:
    """Whether sizes may be near a limit. A graph that is compiled is not tied to the answer: its operators ask when they run."""
    if torch.compiler.is_compiling():
        return False
    for tensor in tensors:
        elements = tensor.numel()
        if type(elements) is int and elements > _FEW:
            return True
    return False


def serves(engine: str, reason: str | None) -> bool:
    """Whether a call is the engines', whose sizes have a reason against them, or None.

    Raises:
        SizeError: not the named engine's.
    """
    if reason is None or engine not in _LIMITED:
        return True
    if engine != "auto":
        raise SizeError(reason)
    note_too_large(reason, "torch's own operator")
    return False


def require(engine: str, reason: str | None) -> None:
    """Of an operator: raises SizeError unless the engine takes any size."""
    if reason is not None and engine in _LIMITED:
        raise SizeError(reason)


def conv2d(
    x_size: Sizes, w_size: Sizes, y_size: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int
) -> str | None:
    """Of x (N, C, H, W), w (K, C/groups, R, S) -> y (N, K, P, Q) and its gradients; `padding` is above and to the left."""
    if torch.compiler.is_compiling() or is_symbolic(*x_size, *w_size, *y_size, *stride, *padding, *dilation, groups):
        return None
    if 0 in (*x_size, *w_size, *y_size):
        return None
    return _problem(x_size, w_size, y_size, stride, padding, dilation, groups).limits()


def unfold(x_size: Sizes, y_size: Sizes, kernel_size: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes) -> str | None:
    """Of x (N, C, H, W) and its windows (P, Q); of fold as well."""
    if torch.compiler.is_compiling() or is_symbolic(*x_size, *y_size, *kernel_size, *stride, *padding, *dilation):
        return None
    if x_size[0] >= 2**31:
        return f"input: expected fewer than 2^31 images, got N = {x_size[0]}"
    w_size, windows = (1, x_size[1], *kernel_size), (x_size[0], 1, *y_size)
    return _problem(x_size, w_size, windows, stride, padding, dilation, 1).beyond_int32()


def _problem(
    x_size: Sizes, w_size: Sizes, y_size: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int
) -> Conv2dProblem:
    """A convolution of these sizes; a stride between no two outputs and a dilation between no two taps are not counted."""
    (N, C, H, W), (K, _, R, S), (_, _, P, Q) = x_size, w_size, y_size
    nowhere = (0, 0, 0, 0)
    return Conv2dProblem(
        *("float32", N, C, H, W, K, R, S, P, Q),
        (stride[0] if P > 1 else 1, stride[1] if Q > 1 else 1),
        (padding[0], padding[1]),
        (dilation[0] if R > 1 else 1, dilation[1] if S > 1 else 1),
        *(groups, nowhere, nowhere, nowhere),
    )


def max_pool2d(x_size: Sizes, y_size: Sizes) -> str | None:
    """Of x (N, C, H, W) and its windows (P, Q): a thread counts a row's pixels and channels together."""
    (N, C, H, W), (P, Q) = x_size, y_size
    return _first(MOST, {"N": N, "C": C, "H": H, "W": W, "P": P, "Q": Q, "C·W": C * W, "C·Q": C * Q})


def max_over_time(T: int, N: int, C: int) -> str | None:
    """Of x (T, N, C): samples and channels are those of one image."""
    return _first(MOST, {"T": T, "N·C": N * C})


def rnn(lead: Sizes, features: int, N: int, H: int) -> str | None:
    """Of a sequence (T, N, features) or packed (total, features), `lead` being the first extents, with h0 (D, N, H).

    A step's place is counted in 32 bits, and matrix products see all steps as one plane.
    """
    if is_symbolic(*lead, features, N, H):
        return None
    return _first(MOST, {"T": lead[0], "N": N, "H": H}) or _first(2**30 - 1, {"T·N": prod(lead), "features": features})


def rnn_cell(N: int, inputs: int, H: int) -> str | None:
    """Of x (N, I) and h (N, H)."""
    if is_symbolic(N, inputs, H):
        return None
    reason = batch_limit(N)
    return f"input: {reason}" if reason else _first(MOST, {"I": inputs, "H": H})


def _first(most: int, extents: dict[str, int]) -> str | None:
    """The first extent that is too large."""
    for name, extent in extents.items():
        if not is_symbolic(extent) and extent > most:
            return f"input: expected extents of at most {most} for compiled kernels, got {name} = {extent}"
    return None
