"""Unrolling an image into columns (im2col) and summing columns back into an image (col2im), as ops of their own.

Each is linear, and each is the other's transpose: so they are each other's derivative.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import has_torch_function_unary

from torch_unroll.checks import MOST, is_symbolic, require_alike, require_numbers, require_rank
from torch_unroll.engines import claims, limits, resolve, select
from torch_unroll.engines.interface import Pool2dGeometry
from torch_unroll.ops.registration import Operator, operator
from torch_unroll.shapes import Pair, Size, pair, require, require_each, require_tensors, unfolded_size, without_batch
from torch_unroll.torch_function import ask

_F: Any = F  # whose stubs know no lists of sizes


def _check_geometry(
    x_size: Sequence[int], kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Pair:
    """P and Q."""
    require_numbers(kernel_size, "kernel_size", 2, 1)
    require_numbers(stride, "stride", 2, 1)
    require_numbers(padding, "padding", 2, 0)
    require_numbers(dilation, "dilation", 2, 1)
    P, Q = unfolded_size(x_size, kernel_size, stride, padding, dilation)
    message = f"kernel_size: expected a window within the padded {tuple(x_size)}, got {tuple(kernel_size)}"
    require_each((extent > 0 for extent in (P, Q)), message)
    require(is_symbolic(P, Q) or P * Q <= MOST, f"padding: expected a number of windows that 64 bits hold, got {P}×{Q}")
    return P, Q


class Unfold(Operator):
    """x (N, C, H, W) -> columns (N, C·R·S, P·Q)."""

    @staticmethod
    def check(x, kernel_size, stride, padding, dilation, engine):
        require_alike(x, "x")
        require_rank(x, "x", "NCHW")
        _check_geometry(x.shape[2:], kernel_size, stride, padding, dilation)

    @staticmethod
    def compute(x, kernel_size, stride, padding, dilation, engine):
        geometry = Pool2dGeometry(kernel_size, stride, padding, dilation)
        return select(engine, "unfold", x.device, x.dtype).unfold(x, geometry)

    @staticmethod
    def fake(x, kernel_size, stride, padding, dilation, engine):
        P, Q = unfolded_size(x.shape[2:], kernel_size, stride, padding, dilation)
        return x.new_empty(x.shape[0], x.shape[1] * kernel_size[0] * kernel_size[1], P * Q)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, *ctx.geometry = inputs
        ctx.x_size = x.shape[2:]

    @staticmethod
    def backward(ctx, dcolumns):
        return fold_op(dcolumns, ctx.x_size, *ctx.geometry), *(None for _ in ctx.geometry)

    @staticmethod
    def jvp(ctx, dx, *_):
        return unfold_op(dx, *ctx.geometry)

    @staticmethod
    def vmap(info, in_dims, x, *geometry):
        return unfold_op(x.movedim(in_dims[0], 0).flatten(0, 1), *geometry).unflatten(0, (info.batch_size, -1)), 0


class Fold(Operator):
    """columns (N, C·R·S, P·Q) -> x (N, C, H, W), the sum of the cells that cover each pixel."""

    @staticmethod
    def check(columns, output_size, kernel_size, stride, padding, dilation, engine):
        require_alike(columns, "columns")
        require(columns.dim() == 3, f"columns: expected (N, C·R·S, P·Q), got shape {tuple(columns.shape)}")
        require_numbers(output_size, "output_size", 2, 1)
        P, Q = _check_geometry(output_size, kernel_size, stride, padding, dilation)
        cells = kernel_size[0] * kernel_size[1]
        require(columns.shape[1] % cells == 0, f"columns: expected rows that {cells} cells divide, got {columns.shape[1]}")
        require(columns.shape[2] == P * Q, f"columns: expected {P * Q} columns ({P}×{Q} windows), got {columns.shape[2]}")

    @staticmethod
    def compute(columns, output_size, kernel_size, stride, padding, dilation, engine):
        chosen = select(engine, "fold", columns.device, columns.dtype)
        return chosen.fold(columns, output_size, Pool2dGeometry(kernel_size, stride, padding, dilation))

    @staticmethod
    def fake(columns, output_size, kernel_size, stride, padding, dilation, engine):
        return columns.new_empty(columns.shape[0], columns.shape[1] // (kernel_size[0] * kernel_size[1]), *output_size)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, ctx.output_size, *ctx.geometry = inputs

    @staticmethod
    def backward(ctx, dx):
        return unfold_op(dx, *ctx.geometry), None, *(None for _ in ctx.geometry)

    @staticmethod
    def jvp(ctx, dcolumns, *_):
        return fold_op(dcolumns, ctx.output_size, *ctx.geometry)

    @staticmethod
    def vmap(info, in_dims, columns, *geometry):
        return fold_op(columns.movedim(in_dims[0], 0).flatten(0, 1), *geometry).unflatten(0, (info.batch_size, -1)), 0


unfold_op = operator(
    "unfold(Tensor x, SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, SymInt[] dilation, str engine) -> Tensor", Unfold
)
fold_op = operator(
    "fold(Tensor columns, SymInt[] output_size, SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, SymInt[] dilation,"
    " str engine) -> Tensor",
    Fold,
)


def _size(value: Any, name: str) -> Pair:
    """A size argument as torch's Python wrapper of these two ops takes it: whatever can be iterated stands for two numbers."""
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
    """Whether the sizes of a call are worth a look."""
    return limits.is_large(input) or (not torch.compiler.is_compiling() and max(map(max, numbers)) >= 2**31)


def unfold(
    input: Tensor, kernel_size: Size, dilation: Size = 1, padding: Size = 0, stride: Size = 1, *, engine: str | None = None
) -> Tensor:
    """im2col; the same as `torch.nn.functional.unfold`.

    Args:
        input: (N, C, H, W), or (C, H, W) without a batch; fp16, bf16, fp32 or fp64, of any strides.
        kernel_size, dilation, padding, stride: an int or a pair each.
        engine: one of `torch_unroll.available_engines()`; None takes the first that can.

    Returns:
        (N, C·R·S, P·Q): one column per position of the window.

    Raises:
        RuntimeError: sizes that do not fit, as torch's; or the named engine's reason for refusing.
    """
    if has_torch_function_unary(input) and not torch.compiler.is_compiling():
        numbers: dict[str, Any] = {"dilation": dilation, "padding": padding, "stride": stride}
        return ask(unfold, (input,), (input, kernel_size), {"engine": engine}, F.unfold, **numbers)
    require_tensors(input=input)
    resolved = resolve(engine)
    if not claims(resolved, input):
        return _F.unfold(input, kernel_size, dilation, padding, stride)
    geometry = _geometry(kernel_size, dilation, padding, stride)
    (R, S), step, pad, spread = geometry
    if input.dim() < 3:  # the type that torch's operator raises here
        raise IndexError(f"input: expected 3 or 4 dimensions, got shape {tuple(input.shape)}")
    require(input.dim() <= 4, f"input: expected 3 or 4 dimensions, got shape {tuple(input.shape)}")
    batched = input if input.dim() == 4 else input.unsqueeze(0)
    message = f"input: expected extents above 0 but for the batch, got shape {tuple(input.shape)}"
    require_each((extent > 0 for extent in batched.shape[1:]), message)
    P, Q = unfolded_size(batched.shape[2:], (R, S), step, pad, spread)
    message = f"kernel_size: expected one that fits the padded input, got {(R, S)} for shape {tuple(input.shape)}"
    require_each((extent > 0 for extent in (P, Q)), message)
    if _may_be_large(batched, step, pad, spread) and not limits.serves(
        resolved, limits.unfold(batched.shape, (P, Q), (R, S), step, pad, spread)
    ):
        return _F.unfold(input, kernel_size, dilation, padding, stride)
    columns = unfold_op(batched, *geometry, resolved)
    return columns if input.dim() == 4 else without_batch(columns)


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
    """col2im, a sum over overlapping windows; the same as `torch.nn.functional.fold`.

    Args:
        input: (N, C·R·S, P·Q), or without a batch.
        output_size: (H, W) of the image; an int or a pair.
        kernel_size, dilation, padding, stride: those of the `unfold` it undoes.
        engine: one of `torch_unroll.available_engines()`; None takes the first that can.

    Returns:
        (N, C, H, W).

    Raises:
        RuntimeError: sizes that do not fit, as torch's; or the named engine's reason for refusing.
    """
    if has_torch_function_unary(input) and not torch.compiler.is_compiling():
        numbers: dict[str, Any] = {"dilation": dilation, "padding": padding, "stride": stride}
        return ask(fold, (input,), (input, output_size, kernel_size), {"engine": engine}, F.fold, **numbers)
    require_tensors(input=input)
    resolved = resolve(engine)
    if not claims(resolved, input):
        return _F.fold(input, output_size, kernel_size, dilation, padding, stride)
    geometry = _geometry(kernel_size, dilation, padding, stride)
    (R, S), step, pad, spread = geometry
    H, W = _size(output_size, "output_size")
    require_each((extent > 0 for extent in (H, W)), f"output_size: expected numbers above 0, got {(H, W)}")
    require(input.dim() in (2, 3), f"input: expected 2 or 3 dimensions, got shape {tuple(input.shape)}")
    batched = input if input.dim() == 3 else input.unsqueeze(0)
    message = f"input: expected rows that the {R}×{S} window divides, got shape {tuple(input.shape)}"
    require(batched.shape[1] > 0, message)
    require(batched.shape[1] % (R * S) == 0, message)
    P, Q = unfolded_size((H, W), (R, S), step, pad, spread)
    message = f"output_size: expected one the window fits, got {(H, W)} for kernel_size {(R, S)}"
    require_each((extent > 0 for extent in (P, Q)), message)
    require(batched.shape[2] == P * Q, f"input: expected {P * Q} columns ({P}×{Q} windows), got {batched.shape[2]}")
    x_size = (batched.shape[0], batched.shape[1] // (R * S), H, W)
    if _may_be_large(batched, (H, W), step, pad, spread) and not limits.serves(
        resolved, limits.unfold(x_size, (P, Q), (R, S), step, pad, spread)
    ):
        return _F.fold(input, output_size, kernel_size, dilation, padding, stride)
    x = fold_op(batched, (H, W), *geometry, resolved)
    return x if input.dim() == 3 else without_batch(x)
