"""The Elman recurrence and its gradients, one step at a time (BPTT: Werbos 1990, "Backpropagation through time").

    h_t  = f(z_t + W_hh h_{t-1})                          z_t = W_ih x_t + b_ih + b_hh
    dz_t = f'_t (dh_t + W_hhᵀ dz_{t+1})                   dh_0 = W_hhᵀ dz_1
    u_t  = f'_t (p_t + W_hh u_{t-1})                      the tangent of h_t for tangents p_t of z_t and u_0 of h_0

f'_t, the derivative of f at z_t + W_hh h_{t-1}, is a function of h_t alone, so the backward pass does not need z.
Forward, direction 0 runs from the first step to the last and direction 1 from the last to the first; the backward pass runs the
opposite way.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from torch_unroll.engines.interface import RecurrentWeights, RnnOptions
from torch_unroll.engines.packed import batch_size
from torch_unroll.engines.reference.arithmetic import accumulator, product
from torch_unroll.nonlinearity import apply, slope
from torch_unroll.shapes import empty_rows_like

__all__ = ["rnn_backward", "rnn_cell_backward", "rnn_cell_forward", "rnn_forward", "rnn_tangent"]


class _Layer:
    """A pass over the steps of a layer, in one direction at a time."""

    def __init__(self, rows: Tensor, w_hh: RecurrentWeights, options: RnnOptions):
        self.T = rows.shape[0] if options.batch_sizes is None else len(options.batch_sizes)
        self.w = [w.to(accumulator(rows.dtype)) for w in w_hh]
        self.options = options

    def steps(self, direction: int, backward: bool, *sequences: Tensor) -> Iterator[tuple[Tensor | None, list[Tensor]]]:
        """Yields, for each step in the order of the pass, a mask of the samples that are still running, and the step's rows
        (n, H) of each sequence. The mask is None if all rows belong to running samples; n < N at a step that some packed samples
        do not reach."""
        H, batch_sizes, lengths = self.w[0].shape[-1], self.options.batch_sizes, self.options.lengths
        columns = [sequence[..., direction * H : (direction + 1) * H] for sequence in sequences]
        by_step = [part.unbind(0) if batch_sizes is None else part.split(batch_sizes) for part in columns]
        for t in range(self.T) if (direction == 0) != backward else reversed(range(self.T)):
            running = None if lengths is None else (t < lengths).unsqueeze(1)
            yield running, [rows[t] for rows in by_step]

    def no_state(self, rows: Tensor) -> Tensor:
        """Returns a state (D, N, H) of zeros for a sequence."""
        return rows.new_zeros(len(self.w), batch_size(rows, self.options.batch_sizes), self.w[0].shape[-1])

    def carry(self, direction: int, state: Tensor, transposed: bool) -> Tensor:
        """Returns the product of each row of state (n, H) with W_hh, or with its transpose."""
        w = self.w[direction]
        return product(state, w if transposed else w.mT, self.options.precision)


def _replace_running(state: Tensor, rows: Tensor, running: Tensor | None) -> Tensor:
    """Returns the state (N, H) in which `rows` replace those of the samples that are still running."""
    if running is not None:
        return torch.where(running, rows, state)
    return rows if len(rows) == len(state) else torch.cat((rows, state[len(rows) :]))


def _zero_ended(rows: Tensor, running: Tensor | None) -> Tensor:
    """Returns the rows, with 0 for the samples that have ended."""
    return rows if running is None else torch.where(running, rows, torch.zeros_like(rows))


def rnn_forward(z: Tensor, w_hh: RecurrentWeights, h0: Tensor | None, options: RnnOptions, h_n: Tensor | None = None) -> Tensor:
    h = empty_rows_like(z)
    layer = _Layer(h, w_hh, options)
    for direction, state in enumerate(layer.no_state(z) if h0 is None else h0.unbind(0)):
        for running, (z_t, h_t) in layer.steps(direction, False, z, h):
            new = apply(options.nonlinearity, z_t + layer.carry(direction, state[: len(z_t)], False)).to(h.dtype)
            h_t.copy_(_zero_ended(new, running))
            state = _replace_running(state, new, running)
        if h_n is not None:
            h_n[direction] = state
    return h


def rnn_backward(
    dh: Tensor | None,
    h: Tensor,
    w_hh: RecurrentWeights,
    h0: Tensor | None,
    options: RnnOptions,
    dh_n: Tensor | None = None,
    with_dh0: bool = True,
) -> tuple[Tensor, Tensor | None]:
    layer, dz = _Layer(h, w_hh, options), empty_rows_like(h)
    dh = torch.zeros_like(h) if dh is None else dh
    dh0 = layer.no_state(h) if dh_n is None else dh_n.clone(memory_format=torch.contiguous_format)
    sum_dtype = accumulator(h.dtype)
    for direction in range(len(dh0)):
        carried = dh0[direction].to(sum_dtype)
        for running, (dh_t, h_t, dz_t) in layer.steps(direction, True, dh, h, dz):
            new = slope(options.nonlinearity, h_t.to(sum_dtype), dh_t + carried[: len(dh_t)])
            dz_t.copy_(_zero_ended(new, running))
            carried = _replace_running(carried, layer.carry(direction, dz_t, True), running)
        dh0[direction] = carried
    return dz, dh0 if with_dh0 else None


def rnn_tangent(p: Tensor, h: Tensor, w_hh: Tensor, u0: Tensor, options: RnnOptions) -> Tensor:
    u = empty_rows_like(h)
    sum_dtype = accumulator(h.dtype)
    layer = _Layer(h, w_hh, options)
    for direction, state in enumerate(u0.unbind(0)):
        for running, (p_t, h_t, u_t) in layer.steps(direction, False, p, h, u):
            moved = p_t + layer.carry(direction, state[: len(p_t)], False)
            new = slope(options.nonlinearity, h_t.to(sum_dtype), moved).to(u.dtype)
            u_t.copy_(_zero_ended(new, running))
            state = _replace_running(state, new, running)
    return u


def rnn_cell_forward(
    x: Tensor,
    h: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    nonlinearity: str,
    precision: str,
) -> Tensor:
    z = product(x, w_ih.mT, precision) + product(h, w_hh.mT, precision)
    for bias in (b_ih, b_hh):
        z = z if bias is None else z + bias
    return apply(nonlinearity, z).to(h.dtype).contiguous()


def rnn_cell_backward(
    dh_next: Tensor, h_next: Tensor, w_ih: Tensor, w_hh: Tensor, nonlinearity: str, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    sum_dtype = accumulator(h_next.dtype)
    dz = h_next.new_empty(h_next.shape)
    dz.copy_(slope(nonlinearity, h_next.to(sum_dtype), dh_next.to(sum_dtype)))
    dx, dh = product(dz, w_ih, precision), product(dz, w_hh, precision)
    return dz, dx.to(dz.dtype), dh.to(dz.dtype)
