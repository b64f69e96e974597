"""Convolution: the column matrix in memory (im2col, and its transpose col2im), and products that form columns only in tiles.

    columns[n, c r s, p q] = x[n, c, p·stride_h - pad_h + r·dilation_h, q·stride_w - pad_w + s·dilation_w], 0 outside x

    fprop   y[k, npq]  = Σ_crs w[k, crs] · columns[crs, npq]
    dgrad   dx[c, nhw] = Σ_krs w[krs, c] · dy[k, npq], where (p, q) is the output whose cell (r, s) lies on (h, w)
    wgrad   dw[k, crs] = Σ_npq dy[k, npq] · columns[crs, npq]

The products copy tiles of both factors to shared memory. A block owns TILE x TILE elements of the result and advances through the
sum in steps of TILE; a thread owns one element of the result, and copies one element of each factor per step. So each element
that is read from memory is used TILE times. Every output is overwritten. Sums are computed in one fixed order, so a repeated
call returns the same bits.

x (N, C, H, W), w (K, C/groups, R, S), y (N, K, P, Q); the gradients dx, dw, dy have the same shapes. Pairs are (height, width);
padding is what is added above and to the left. Groups are independent products, and each tile belongs to one of them.
"""

from __future__ import annotations

from numba import cuda

from .types import TILE, narrow, widen, zero


@cuda.jit
def im2col_kernel(x, kernel_size, output_size, stride, padding, dilation, columns):
    """x -> columns (N, C·R·S, P·Q). A thread owns one (n, c, p, q) at a time and copies its R·S cells."""
    N, C, H, W = x.shape
    R, S = kernel_size
    P, Q = output_size
    for i in range(cuda.grid(1), N * C * P * Q, cuda.gridsize(1)):
        q, p = i % Q, i // Q % P
        c, n = i // (P * Q) % C, i // (C * P * Q)
        for r in range(R):
            h = p * stride[0] - padding[0] + r * dilation[0]
            for s in range(S):
                w = q * stride[1] - padding[1] + s * dilation[1]
                row = (c * R + r) * S + s
                if 0 <= h < H and 0 <= w < W:
                    columns[n, row, p * Q + q] = x[n, c, h, w]
                else:
                    columns[n, row, p * Q + q] = 0


@cuda.jit
def col2im_kernel(columns, kernel_size, output_size, stride, padding, dilation, x):
    """columns -> x. A thread owns one pixel at a time and sums the cells that cover it, in the order of their numbers r·S + s."""
    N, C, H, W = x.shape
    R, S = kernel_size
    P, Q = output_size
    for i in range(cuda.grid(1), N * C * H * W, cuda.gridsize(1)):
        w, h = i % W, i // W % H
        c, n = i // (H * W) % C, i // (C * H * W)
        total = zero(x)
        for r in range(R):
            p = window_starting_at(h + padding[0] - r * dilation[0], stride[0], P)
            for s in range(S):
                q = window_starting_at(w + padding[1] - s * dilation[1], stride[1], Q)
                if p >= 0 and q >= 0:
                    total += widen(columns[n, (c * R + r) * S + s, p * Q + q])
        x[n, c, h, w] = narrow(total, x)


@cuda.jit(device=True)
def window_starting_at(start, stride, extent):
    """Returns the window, along an axis, whose first cell is at `start`, counted from the padding's edge; -1 if there is none."""
    if start < 0 or start % stride != 0 or start // stride >= extent:
        return -1
    return start // stride


@cuda.jit(device=True)
def multiply(a, b, total):
    """Returns total + Σ_i a[row, i] · b[i, column] for the thread's row and column, after all threads have filled the tiles."""
    cuda.syncthreads()
    for i in range(TILE):
        total += widen(a[cuda.threadIdx.y, i]) * widen(b[i, cuda.threadIdx.x])
    cuda.syncthreads()  # no thread may overwrite the tiles before all have read them
    return total


@cuda.jit
def conv2d_fprop_kernel(x, w, bias, bias2, stride, padding, dilation, groups, y):
    """x, w, two biases (each K, or empty) -> y. The rows of a tile are k, its columns (n, p, q). Blocks take the
    tiles of all groups in turn."""
    N, _, H, W = x.shape
    K, channels, R, S = w.shape
    P, Q = y.shape[2:]
    filters, pixels, inner = K // groups, N * P * Q, channels * R * S
    rows, columns = (filters + TILE - 1) // TILE, (pixels + TILE - 1) // TILE
    ty, tx = cuda.threadIdx.y, cuda.threadIdx.x
    a = cuda.shared.array(shape=(TILE, TILE), dtype=w.dtype)
    b = cuda.shared.array(shape=(TILE, TILE), dtype=x.dtype)
    for tile in range(cuda.blockIdx.x, groups * rows * columns, cuda.gridDim.x):
        group = tile // (rows * columns)
        k = tile // columns % rows * TILE + ty
        pixel = tile % columns * TILE + tx
        q, p, n = pixel % Q, pixel // Q % P, pixel // (P * Q)
        total = zero(y)
        for start in range(0, inner, TILE):
            i = start + tx
            a[ty, tx] = 0
            if k < filters and i < inner:
                a[ty, tx] = w[group * filters + k, i // (R * S), i // S % R, i % S]
            i = start + ty
            b[ty, tx] = 0
            if i < inner and pixel < pixels:
                h_in = p * stride[0] - padding[0] + i // S % R * dilation[0]
                w_in = q * stride[1] - padding[1] + i % S * dilation[1]
                if 0 <= h_in < H and 0 <= w_in < W:
                    b[ty, tx] = x[n, group * channels + i // (R * S), h_in, w_in]
            total = multiply(a, b, total)
        if k < filters and pixel < pixels:
            if bias.shape[0] > 0:
                total += widen(bias[group * filters + k])
            if bias2.shape[0] > 0:
                total += widen(bias2[group * filters + k])
            y[n, group * filters + k, p, q] = narrow(total, y)


@cuda.jit
def conv2d_dgrad_kernel(dy, w, stride, padding, dilation, groups, dx):
    """dy, w -> dx. The rows of a tile are c, its columns (n, h, w); the sum is over k, r, s."""
    N, K, P, Q = dy.shape
    channels, R, S = w.shape[1:]
    H, W = dx.shape[2:]
    filters, pixels = K // groups, N * H * W
    inner = filters * R * S
    rows, columns = (channels + TILE - 1) // TILE, (pixels + TILE - 1) // TILE
    ty, tx = cuda.threadIdx.y, cuda.threadIdx.x
    a = cuda.shared.array(shape=(TILE, TILE), dtype=w.dtype)
    b = cuda.shared.array(shape=(TILE, TILE), dtype=dy.dtype)
    for tile in range(cuda.blockIdx.x, groups * rows * columns, cuda.gridDim.x):
        group = tile // (rows * columns)
        c = tile // columns % rows * TILE + ty
        pixel = tile % columns * TILE + tx
        w_out, h_out, n = pixel % W, pixel // W % H, pixel // (H * W)
        total = zero(dx)
        for start in range(0, inner, TILE):
            i = start + tx
            a[ty, tx] = 0
            if c < channels and i < inner:
                a[ty, tx] = w[group * filters + i // (R * S), c, i // S % R, i % S]
            i = start + ty
            b[ty, tx] = 0
            if i < inner and pixel < pixels:
                p = window_starting_at(h_out + padding[0] - i // S % R * dilation[0], stride[0], P)
                q = window_starting_at(w_out + padding[1] - i % S * dilation[1], stride[1], Q)
                if p >= 0 and q >= 0:
                    b[ty, tx] = dy[n, group * filters + i // (R * S), p, q]
            total = multiply(a, b, total)
        if c < channels and pixel < pixels:
            if total != total:
                total = sum_existing(dy, w, stride, padding, dilation, group * filters, filters, n, c, h_out, w_out, zero(dx))
            dx[n, group * channels + c, h_out, w_out] = narrow(total, dx)


@cuda.jit(device=True)
def sum_existing(dy, w, stride, padding, dilation, first, filters, n, c, h, x, total):
    """Returns total + the element of dx at row h and column x; the sum leaves out outputs beyond dy and stops once it is NaN.

    Where (p, q) lies outside of dy, a tile holds a zero, and zero times an infinite weight is NaN. So an element whose tiled sum
    is NaN is computed again without these zeros.
    """
    _, _, P, Q = dy.shape
    _, _, R, S = w.shape
    for i in range(filters * R * S):
        k, r, s = first + i // (R * S), i // S % R, i % S
        p = window_starting_at(h + padding[0] - r * dilation[0], stride[0], P)
        q = window_starting_at(x + padding[1] - s * dilation[1], stride[1], Q)
        if p >= 0 and q >= 0:
            total += widen(dy[n, k, p, q]) * widen(w[k, c, r, s])
            if total != total:
                break
    return total


@cuda.jit
def conv2d_wgrad_kernel(dy, x, kernel_size, stride, padding, dilation, groups, pixels_per_split, sums):
    """dy, x -> sums (splits, K, C/groups·R·S), in the accumulator type: each split sums its part of the pixels (n, p, q).

    The rows of a tile are k, its columns (c, r, s). dw has few tiles, each with a long sum, so the sum is split among blocks.
    """
    N, C, H, W = x.shape
    K, P, Q = dy.shape[1:]
    R, S = kernel_size
    splits, _, taps = sums.shape
    filters, channels, pixels = K // groups, C // groups, N * P * Q
    rows, columns = (filters + TILE - 1) // TILE, (taps + TILE - 1) // TILE
    ty, tx = cuda.threadIdx.y, cuda.threadIdx.x
    a = cuda.shared.array(shape=(TILE, TILE), dtype=dy.dtype)
    b = cuda.shared.array(shape=(TILE, TILE), dtype=x.dtype)
    for tile in range(cuda.blockIdx.x, splits * groups * rows * columns, cuda.gridDim.x):
        split, group = tile // (groups * rows * columns), tile // (rows * columns) % groups
        k = tile // columns % rows * TILE + ty
        tap = tile % columns * TILE + tx
        c, r, s = tap // (R * S), tap // S % R, tap % S
        total = zero(sums)
        for start in range(split * pixels_per_split, min((split + 1) * pixels_per_split, pixels), TILE):
            pixel = start + tx
            a[ty, tx] = 0
            if k < filters and pixel < pixels:
                a[ty, tx] = dy[pixel // (P * Q), group * filters + k, pixel // Q % P, pixel % Q]
            pixel = start + ty
            b[ty, tx] = 0
            if tap < taps and pixel < pixels:
                h = pixel // Q % P * stride[0] - padding[0] + r * dilation[0]
                w = pixel % Q * stride[1] - padding[1] + s * dilation[1]
                if 0 <= h < H and 0 <= w < W:
                    b[ty, tx] = x[pixel // (P * Q), group * channels + c, h, w]
            total = multiply(a, b, total)
        if k < filters and tap < taps:
            sums[split, group * filters + k, tap] = total


@cuda.jit
def conv2d_sum_splits_kernel(sums, dw):
    """sums -> dw (K, C/groups, R, S), adding the splits in order. A thread owns one element of dw at a time."""
    K, channels, R, S = dw.shape
    taps = channels * R * S
    for i in range(cuda.grid(1), K * taps, cuda.gridsize(1)):
        k, tap = i // taps, i % taps
        total = zero(sums)
        for split in range(sums.shape[0]):
            total += sums[split, k, tap]
        dw[k, tap // (R * S), tap // S % R, tap % S] = narrow(total, dw)
