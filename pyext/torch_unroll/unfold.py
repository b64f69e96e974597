"""Unfolding an image into columns (im2col) and summing columns into an image (col2im), as torch.nn.functional has them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import has_torch_function_unary

from torch_unroll.calls import serving_engine, with_batch, without_batch
from torch_unroll.engines import limits
from torch_unroll.kernels.shapes import Pair
from torch_unroll.ops.unfold import fold_op, unfold_op
from torch_unroll.shapes import Size, convolved, pair, require, require_each
from torch_unroll.torch_function import ask

_F: Any = F  # torch's stubs of these two functions allow no lists of sizes


def _size(value: Any, name: str) -> Pair:
    """A size argument as torch's Python wrappers of these two ops accept it: a number, or any iterable of two numbers."""
    if isinstance(value, Iterable) and not isinstance(value, str):
        value = tuple(value)
        require(len(value) == 2, f"{name}: expected two numbers, got {len(value)}")
        return pair(value, name)
    return pair((value, value), name)


def _geometry(kernel_size: Any, dilation: Any, padding: Any, stride: Any) -> tuple[tuple[int, int], ...]:
    pairs = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "dilation": dilation}
    for name, value in pairs.items():
        least = 0 if name == "padding" else 1
        pairs[name] = _size(value, name)
        message = f"{name}: expected numbers of {least} or more, got {pairs[name]}"
        require_each((number >= least for number in pairs[name]), message)
    return tuple(pairs.values())


def _may_be_large(input: Tensor, *numbers: Pair) -> bool:
    """Whether a call may be too large for the compiled kernels, in which case its sizes are compared with their limits."""
    return limits.is_large(input) or (not torch.compiler.is_compiling() and max(map(max, numbers)) >= 2**31)


def unfold(
    input: Tensor, kernel_size: Size, dilation: Size = 1, padding: Size = 0, stride: Size = 1, *, engine: str | None = None
) -> Tensor:
    """im2col; equivalent to `torch.nn.functional.unfold`.

    Args:
        input: (N, C, H, W), or (C, H, W) without a batch; fp16, bf16, fp32 or fp64, with any strides.
        kernel_size, dilation, padding, stride: an int or a pair.
        engine: as in `conv2d`.

    Returns:
        (N, C·R·S, P·Q), without N if the input has none: one column for each position of the window.

    Raises:
        IndexError: the input has fewer than 3 dimensions, as in torch.
        RuntimeError: sizes do not fit together, as in torch; or a named engine refuses the call.
    """
    if has_torch_function_unary(input) and not torch.compiler.is_compiling():
        numbers: dict[str, Any] = {"dilation": dilation, "padding": padding, "stride": stride}
        return ask(unfold, (input,), (input, kernel_size), {"engine": engine}, F.unfold, **numbers)
    resolved = serving_engine(engine, input=input)
    if resolved is None:
        return _F.unfold(input, kernel_size, dilation, padding, stride)
    geometry = _geometry(kernel_size, dilation, padding, stride)
    (R, S), strides, pads, dilations = geometry
    if input.dim() < 3:  # the exception type that torch's operator raises here
        raise IndexError(f"input: expected 3 or 4 dimensions, got shape {tuple(input.shape)}")
    require(input.dim() <= 4, f"input: expected 3 or 4 dimensions, got shape {tuple(input.shape)}")
    batched = with_batch(input)
    message = f"input: expected extents above 0 but for the batch, got shape {tuple(input.shape)}"
    require_each((extent > 0 for extent in batched.shape[1:]), message)
    P = convolved(batched.shape[2], R, strides[0], 2 * pads[0], dilations[0])
    Q = convolved(batched.shape[3], S, strides[1], 2 * pads[1], dilations[1])
    message = f"kernel_size: expected one that fits the padded input, got {(R, S)} for shape {tuple(input.shape)}"
    require_each((extent > 0 for extent in (P, Q)), message)
    if _may_be_large(batched, strides, pads, dilations) and not limits.serves(
        resolved, limits.unfold(batched.shape, (P, Q), (R, S), strides, pads, dilations)
    ):
        return _F.unfold(input, kernel_size, dilation, padding, stride)
    return without_batch(unfold_op(batched, *geometry, resolved), input)


def fold(
    input: Tensor,
    output_size: Size,
    kernel_size: Size,
    dilation: Size = 1,
    padding: Size = 0,
    stride: Size = 1,
    *,
    engine: str | None = None,
) -> Tensor:
    """col2im, which sums overlapping windows; equivalent to `torch.nn.functional.fold`.

    Args:
        input: (N, C·R·S, P·Q), or without a batch.
        output_size: (H, W) of the image; an int or a pair.
        kernel_size, dilation, padding, stride: those of the corresponding `unfold`.
        engine: as in `conv2d`.

    Returns:
        (N, C, H, W), without N if the input has none.

    Raises:
        RuntimeError: sizes do not fit together, as in torch; or a named engine refuses the call.
    """
    if has_torch_function_unary(input) and not torch.compiler.is_compiling():
        numbers: dict[str, Any] = {"dilation": dilation, "padding": padding, "stride": stride}
        return ask(fold, (input,), (input, output_size, kernel_size), {"engine": engine}, F.fold, **numbers)
    resolved = serving_engine(engine, input=input)
    if resolved is None:
        return _F.fold(input, output_size, kernel_size, dilation, padding, stride)
    geometry = _geometry(kernel_size, dilation, padding, stride)
    (R, S), strides, pads, dilations = geometry
    H, W = _size(output_size, "output_size")
    require_each((extent > 0 for extent in (H, W)), f"output_size: expected numbers above 0, got {(H, W)}")
    require(input.dim() in (2, 3), f"input: expected 2 or 3 dimensions, got shape {tuple(input.shape)}")
    batched = with_batch(input, 3)
    message = f"input: expected rows that the {R}×{S} window divides, got shape {tuple(input.shape)}"
    require(batched.shape[1] > 0, message)
    require(batched.shape[1] % (R * S) == 0, message)
    P, Q = convolved(H, R, strides[0], 2 * pads[0], dilations[0]), convolved(W, S, strides[1], 2 * pads[1], dilations[1])
    message = f"output_size: expected one the window fits, got {(H, W)} for kernel_size {(R, S)}"
    require_each((extent > 0 for extent in (P, Q)), message)
    require(batched.shape[2] == P * Q, f"input: expected {P * Q} columns ({P}×{Q} windows), got {batched.shape[2]}")
    x_size = (batched.shape[0], batched.shape[1] // (R * S), H, W)
    if _may_be_large(batched, (H, W), strides, pads, dilations) and not limits.serves(
        resolved, limits.unfold(x_size, (P, Q), (R, S), strides, pads, dilations)
    ):
        return _F.fold(input, output_size, kernel_size, dilation, padding, stride)
    return without_batch(fold_op(batched, (H, W), *geometry, resolved), input, 3)
