"""The operators of unfold (im2col: an image as columns) and fold (col2im: columns summed into an image).

Each is linear and the transpose of the other, so the backward of each is the other.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch_unroll.checks import MOST, is_symbolic, require_alike, require_numbers, require_rank
from torch_unroll.engines import select
from torch_unroll.engines.interface import Pool2dGeometry
from torch_unroll.kernels.shapes import Pair
from torch_unroll.ops.batching import fold_batch
from torch_unroll.ops.registration import Operator, operator
from torch_unroll.shapes import require, require_each, unfolded_size


def _check_geometry(
    x_size: Sequence[int], kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Pair:
    """Checks the geometry of a window; returns P and Q."""
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
        return unfold_op(fold_batch(x, in_dims[0], info.batch_size), *geometry).unflatten(0, (info.batch_size, -1)), 0


class Fold(Operator):
    """columns (N, C·R·S, P·Q) -> x (N, C, H, W), where each pixel sums the cells that cover it."""

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
        return fold_op(fold_batch(columns, in_dims[0], info.batch_size), *geometry).unflatten(0, (info.batch_size, -1)), 0


unfold_op = operator(
    "unfold(Tensor x, SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, SymInt[] dilation, str engine) -> Tensor", Unfold
)
fold_op = operator(
    "fold(Tensor columns, SymInt[] output_size, SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, SymInt[] dilation,"
    " str engine) -> Tensor",
    Fold,
)
