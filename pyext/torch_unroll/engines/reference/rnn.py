"""The Elman recurrence and its gradients, one step at a time (BPTT: Werbos 1990, "Backpropagation through time").

    h_t  = f(z_t + W_hh h_{t-1})                          z_t = W_ih x_t + b_ih + b_hh
    dz_t = f'(z_t) (dh_t + W_hhᵀ dz_{t+1})                dh_0 = W_hhᵀ dz_1
    u_t  = f'(z_t) (p_t + W_hh u_{t-1})                   the tangent of h_t where z_t moves by p_t and h_0 by u_0

f' is a function of h alone, so h is all that is kept. Direction 1 walks from the last step to the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_unroll.engines.reference.arithmetic import accumulator, product
from torch_unroll.nonlinearity import apply, slope


@dataclass
class _Layer:
    """How one direction after the other walks over the steps."""

    T: int
    w: Tensor
    state: Tensor  # (D, N, H)
    lengths: Tensor | None
    batch_sizes: tuple[int, ...] | None
    precision: str

    def steps(self, direction: int, backward: bool, *sequences: Tensor) -> Iterator[tuple[Tensor | None, list[Tensor]]]:
        """For each step, in the order in which it is walked: which samples are still running (None: all), and the step's rows of
        each sequence, (n, H), where n < N once packed samples have ended."""
        H = self.w.shape[-1]
        columns = [sequence[..., direction * H : (direction + 1) * H] for sequence in sequences]
        rows = [each.unbind(0) if self.batch_sizes is None else each.split(self.batch_sizes) for each in columns]
        for t in range(self.T) if (direction == 0) != backward else reversed(range(self.T)):
            running = None if self.lengths is None else (t < self.lengths).unsqueeze(1)
            yield running, [each[t] for each in rows]

    def carry(self, direction: int, state: Tensor, transposed: bool) -> Tensor:
        """state (n, H) through W_hh, or back through it."""
        w = self.w[direction]
        return product(state, w if transposed else w.mT, self.precision)


def _layer(
    h: Tensor, w_hh: Tensor, state: Tensor, lengths: Tensor | None, sizes: tuple[int, ...] | None, precision: str
) -> _Layer:
    return _Layer(h.shape[0] if sizes is None else len(sizes), w_hh.to(accumulator(h.dtype)), state, lengths, sizes, precision)


def _renew(state: Tensor, rows: Tensor, running: Tensor | None) -> Tensor:
    """The state (N, H) with its running samples' rows replaced."""
    if running is not None:
        return torch.where(running, rows, state)
    return rows if len(rows) == len(state) else torch.cat((rows, state[len(rows) :]))


def _only(rows: Tensor, running: Tensor | None) -> Tensor:
    """The rows, 0 for the samples that have ended."""
    return rows if running is None else torch.where(running, rows, torch.zeros_like(rows))


def _empty_like(z: Tensor) -> Tensor:
    """Laid out like z, with contiguous rows."""
    return torch.empty_like(z if z.stride(-1) == 1 or z.shape[-1] == 1 else z.contiguous())


def rnn_forward(
    z: Tensor,
    w_hh: Tensor,
    h0: Tensor,
    lengths: Tensor | None,
    batch_sizes: tuple[int, ...] | None,
    nonlinearity: str,
    precision: str,
) -> Tensor:
    h = _empty_like(z)
    layer = _layer(h, w_hh, h0, lengths, batch_sizes, precision)
    for direction, state in enumerate(h0.unbind(0)):
        for running, (z_t, h_t) in layer.steps(direction, False, z, h):
            new = apply(nonlinearity, z_t + layer.carry(direction, state[: len(z_t)], False)).to(h.dtype)
            h_t.copy_(_only(new, running))
            state = _renew(state, new, running)
    return h


def rnn_backward(
    dh: Tensor,
    h: Tensor,
    w_hh: Tensor,
    h0: Tensor,
    lengths: Tensor | None,
    batch_sizes: tuple[int, ...] | None,
    nonlinearity: str,
    precision: str,
) -> tuple[Tensor, Tensor]:
    dz, dh0 = _empty_like(h), torch.zeros_like(h0, memory_format=torch.contiguous_format)
    wide = accumulator(h.dtype)
    layer = _layer(h, w_hh, h0, lengths, batch_sizes, precision)
    for direction in range(len(h0)):
        carried = dh0[direction].to(wide)
        for running, (dh_t, h_t, dz_t) in layer.steps(direction, True, dh, h, dz):
            new = slope(nonlinearity, h_t.to(wide), dh_t + carried[: len(dh_t)])
            dz_t.copy_(_only(new, running))
            carried = _renew(carried, layer.carry(direction, dz_t, True), running)
        dh0[direction] = carried
    return dz, dh0


def rnn_tangent(
    p: Tensor,
    h: Tensor,
    w_hh: Tensor,
    u0: Tensor,
    lengths: Tensor | None,
    batch_sizes: tuple[int, ...] | None,
    nonlinearity: str,
    precision: str,
) -> Tensor:
    u = _empty_like(h)
    wide = accumulator(h.dtype)
    layer = _layer(h, w_hh, u0, lengths, batch_sizes, precision)
    for direction, state in enumerate(u0.unbind(0)):
        for running, (p_t, h_t, u_t) in layer.steps(direction, False, p, h, u):
            moved = p_t + layer.carry(direction, state[: len(p_t)], False)
            new = slope(nonlinearity, h_t.to(wide), moved).to(u.dtype)
            u_t.copy_(_only(new, running))
            state = _renew(state, new, running)
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
    wide = accumulator(h_next.dtype)
    dz = h_next.new_empty(h_next.shape)
    dz.copy_(slope(nonlinearity, h_next.to(wide), dh_next.to(wide)))
    dx, dh = product(dz, w_ih, precision), product(dz, w_hh, precision)
    return dz, dx.to(dz.dtype), dh.to(dz.dtype)
