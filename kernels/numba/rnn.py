"""Elman recurrence: the forward and backward passes over all steps of a sequence, and a cell that computes one step on its own.

    h_t  = f(z_t + W_hh h_{t-1})            z_t = W_ih x_t + b_ih + b_hh, computed for all steps beforehand
    dz_t = f'·(dh_t + W_hhᵀ dz_{t+1})       f' at z_t + W_hh h_{t-1}, computed from h_t alone;  dh_0 = W_hhᵀ dz_1

Variants
    step          One launch per step, one tile per block: the whole GPU can work at each step, and every step costs a launch.
    single_block  One launch: a block owns TILE samples of a direction for all T steps, and computes their tiles of units in turn.
                  Blocks never wait for each other; W_hh is read from L2 at each step.
A block computes tiles of TILE samples x TILE units, a thread one element of each; tiles of W_hh and of the state are copied to
shared memory.

Sequences are (rows, D·H): sample n's row of step t is first_row[t] + n·row_step, for padded and packed data alike. w (D, H, H),
h0, h_n and their gradients (D, N, H). These four and dh may be empty: an empty input stands for zeros, and an empty output is not
wanted. Sample n has lengths[n] steps; the rows of later steps are not written, and neither is h_n of a sample without steps; all
other results are. Forward, direction 0 goes from the first step to the last and direction 1 from the last to the first; the
backward pass goes the opposite way.
"""

from __future__ import annotations

import math

from numba import cuda

from .types import TILE, narrow, widen, zero

TANH, RELU, SIGMOID = range(3)  # any other number is the identity
PADDED = TILE + 1  # row length of a tile whose columns are read: the odd stride avoids bank conflicts


@cuda.jit(device=True)
def apply(nonlinearity, z):
    """Returns f(z)."""
    if nonlinearity == TANH:
        return math.tanh(z)
    if nonlinearity == RELU:
        return z if z > 0 or z != z else z * 0
    if nonlinearity == SIGMOID:
        return 1 / (1 + math.exp(-z))
    return z


@cuda.jit(device=True)
def slope(nonlinearity, h):
    """Returns f'(z), computed from h = f(z)."""
    if nonlinearity == TANH:
        return 1 - h * h
    if nonlinearity == RELU:
        return h * 0 if h <= 0 else h * 0 + 1
    if nonlinearity == SIGMOID:
        return h * (1 - h)
    return h * 0 + 1


@cuda.jit(device=True)
def tile_product(a, row, b, first_column, total):
    """Returns total + Σ_k a[row, k] · b[first_column + threadIdx.x, k]; a thread without a row passes row = -1.

    All threads of a block call it together.
    """
    ty, tx = cuda.threadIdx.y, cuda.threadIdx.x
    tile_a = cuda.shared.array(shape=(TILE, TILE), dtype=a.dtype)
    tile_b = cuda.shared.array(shape=(TILE, PADDED), dtype=b.dtype)
    for start in range(0, a.shape[1], TILE):
        k = start + tx
        tile_a[ty, tx] = 0
        if row >= 0 and k < a.shape[1]:
            tile_a[ty, tx] = a[row, k]
        tile_b[ty, tx] = 0
        if first_column + ty < b.shape[0] and k < a.shape[1]:
            tile_b[ty, tx] = b[first_column + ty, k]
        cuda.syncthreads()
        for i in range(TILE):
            total += widen(tile_a[ty, i]) * widen(tile_b[tx, i])
        cuda.syncthreads()  # no thread may overwrite the tiles before all have read them
    return total


@cuda.jit(device=True)
def forward_step(z, w, h0, first_row, row_step, lengths, nonlinearity, s, d, samples, units, h, h_n):
    """Computes step s of direction d for one tile, which starts at sample `samples` and unit `units`."""
    T, H = first_row.shape[0], w.shape[2]
    n, j = samples + cuda.threadIdx.y, units + cuda.threadIdx.x
    length = lengths[n] if n < lengths.shape[0] else 0
    t, before = (s, s - 1) if d == 0 else (T - 1 - s, T - s)
    state, state_row = h[:, d * H : (d + 1) * H], -1
    if 0 <= before < length:
        state_row = first_row[before] + n * row_step
    elif h0.shape[0] > 0:
        state, state_row = h0[d], n
    total = tile_product(state, state_row if t < length else -1, w[d], units, zero(h))
    if t < length and j < H:
        row, column = first_row[t] + n * row_step, d * H + j
        h[row, column] = narrow(apply(nonlinearity, widen(z[row, column]) + total), h)
        if h_n.shape[0] > 0 and t == (length - 1 if d == 0 else 0):
            h_n[d, n, j] = h[row, column]


@cuda.jit(device=True)
def backward_step(dh, h, w_transposed, dh_n, first_row, row_step, lengths, nonlinearity, s, d, samples, units, dz, dh0):
    """Computes step s of the backward pass for one tile; step T, after the last one, computes dh0."""
    T, H = first_row.shape[0], w_transposed.shape[2]
    n, j = samples + cuda.threadIdx.y, units + cuda.threadIdx.x
    length = lengths[n] if n < lengths.shape[0] else 0
    t, after = (T - 1 - s, T - s) if d == 0 else (s, s - 1)
    if s == T and d == 1:
        after = length - 1
    row_after = first_row[after] + n * row_step if 0 <= after < length else -1
    total = tile_product(dz[:, d * H : (d + 1) * H], row_after, w_transposed[d], units, zero(dz))
    if n >= lengths.shape[0] or j >= H:
        return
    if row_after < 0 and dh_n.shape[0] > 0:
        total += widen(dh_n[d, n, j])
    if s == T:
        dh0[d, n, j] = narrow(total, dh0)
    elif t < length:
        row, column = first_row[t] + n * row_step, d * H + j
        if dh.shape[0] > 0:
            total += widen(dh[row, column])
        dz[row, column] = narrow(total * slope(nonlinearity, widen(h[row, column])), dz)


@cuda.jit
def rnn_step_kernel(z, w, h0, first_row, row_step, lengths, nonlinearity, s, h, h_n):
    """Computes step s. Grid: tiles of samples, tiles of units, directions."""
    samples, units = cuda.blockIdx.x * TILE, cuda.blockIdx.y * TILE
    forward_step(z, w, h0, first_row, row_step, lengths, nonlinearity, s, cuda.blockIdx.z, samples, units, h, h_n)


@cuda.jit
def rnn_step_backward_kernel(dh, h, w_transposed, dh_n, first_row, row_step, lengths, nonlinearity, s, dz, dh0):
    """Computes step s of the backward pass. Grid: tiles of samples, tiles of units, directions."""
    samples, units = cuda.blockIdx.x * TILE, cuda.blockIdx.y * TILE
    d = cuda.blockIdx.z
    backward_step(dh, h, w_transposed, dh_n, first_row, row_step, lengths, nonlinearity, s, d, samples, units, dz, dh0)


@cuda.jit
def rnn_single_block_kernel(z, w, h0, first_row, row_step, lengths, nonlinearity, h, h_n):
    """Computes all steps. Grid: tiles of samples, directions."""
    samples, d = cuda.blockIdx.x * TILE, cuda.blockIdx.y
    for s in range(first_row.shape[0]):
        for units in range(0, w.shape[2], TILE):
            forward_step(z, w, h0, first_row, row_step, lengths, nonlinearity, s, d, samples, units, h, h_n)
        cuda.syncthreads()  # the next step reads what other threads have written in this one


@cuda.jit
def rnn_single_block_backward_kernel(dh, h, w_transposed, dh_n, first_row, row_step, lengths, nonlinearity, dz, dh0):
    """Computes all steps of the backward pass, and dh0 if it is wanted. Grid: tiles of samples, directions."""
    samples, d = cuda.blockIdx.x * TILE, cuda.blockIdx.y
    for s in range(first_row.shape[0] + (1 if dh0.shape[0] > 0 else 0)):
        for units in range(0, w_transposed.shape[2], TILE):
            backward_step(dh, h, w_transposed, dh_n, first_row, row_step, lengths, nonlinearity, s, d, samples, units, dz, dh0)
        cuda.syncthreads()  # see rnn_single_block_kernel


@cuda.jit
def rnn_cell_forward_kernel(x, h, w_ih, w_hh, b_ih, b_hh, nonlinearity, h_next):
    """x (N, I), h (N, H), biases (H, or empty) -> h_next (N, H). Grid: tiles of samples, tiles of units."""
    N, H = h.shape
    n, units = cuda.blockIdx.x * TILE + cuda.threadIdx.y, cuda.blockIdx.y * TILE
    j, row = units + cuda.threadIdx.x, n if n < N else -1
    total = tile_product(x, row, w_ih, units, zero(h))
    total = tile_product(h, row, w_hh, units, total)
    if n < N and j < H:
        if b_ih.shape[0] > 0:
            total += widen(b_ih[j])
        if b_hh.shape[0] > 0:
            total += widen(b_hh[j])
        h_next[n, j] = narrow(apply(nonlinearity, total), h_next)


@cuda.jit
def rnn_cell_backward_kernel(dh_next, h_next, w_ih_transposed, w_hh_transposed, nonlinearity, dz, dx, dh):
    """dh_next, h_next (N, H) -> dz (N, H), dx (N, I), dh (N, H). Grid: tiles of samples; a block computes dz before dx and dh."""
    N, H = h_next.shape
    inputs, n = dx.shape[1], cuda.blockIdx.x * TILE + cuda.threadIdx.y
    row = n if n < N else -1
    for j in range(cuda.threadIdx.x, H, TILE):
        if n < N:
            dz[n, j] = narrow(widen(dh_next[n, j]) * slope(nonlinearity, widen(h_next[n, j])), dz)
    cuda.syncthreads()
    for columns in range(0, inputs, TILE):
        total, i = tile_product(dz, row, w_ih_transposed, columns, zero(dx)), columns + cuda.threadIdx.x
        if n < N and i < inputs:
            dx[n, i] = narrow(total, dx)
    for units in range(0, H, TILE):
        total, j = tile_product(dz, row, w_hh_transposed, units, zero(dh)), units + cuda.threadIdx.x
        if n < N and j < H:
            dh[n, j] = narrow(total, dh)
