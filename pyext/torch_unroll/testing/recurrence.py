"""Checks whether each step of a recurrence follows from the stored result of the step before it, within the bounds of its
arithmetic.

Since each step is judged on its own, errors need not be tracked through the recurrence: a result is right if every step is right.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_unroll.testing.bounds import ROUNDED_TF32, assert_within, narrowing_bound, sum_bound, sum_error
from torch_unroll.testing.compare import ROUNDING

ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu, "sigmoid": torch.sigmoid, "identity": lambda z: z}
SLOPES = {
    "tanh": lambda h: 1 - h * h,
    "relu": lambda h: (h > 0).to(h.dtype),
    "sigmoid": lambda h: h * (1 - h),
    "identity": torch.ones_like,
}
#: The largest slope of each nonlinearity.
_STEEPEST = {"tanh": 1.0, "relu": 1.0, "sigmoid": 0.25, "identity": 1.0}
#: The largest relative error of tanh, or of sigmoid (an exponential, a sum and a quotient), in units of `ROUNDING`. 8 are 4 ulp.
_FUNCTION_ROUNDINGS = 8
#: The number of roundings in a slope, whose terms are at most 1, and in the multiplication by it.
_SLOPE_ROUNDINGS = 4


def _accumulator(dtype: torch.dtype) -> float:
    return ROUNDING[torch.float64 if dtype == torch.float64 else torch.float32]


def _operand(precision: str) -> float:
    return ROUNDED_TF32 if precision == "tf32" else 0.0


def _assert_activation(h: Tensor, sum: Tensor, error: Tensor, nonlinearity: str, what: str) -> None:
    """Checks the activation h of a sum; `sum` is exact, and the kernel's own sum has an error of at most `error`."""
    exact = ACTIVATIONS[nonlinearity](sum)
    rounding = _FUNCTION_ROUNDINGS * _accumulator(h.dtype)
    assert_within(h, exact, narrowing_bound(exact, _STEEPEST[nonlinearity] * error + rounding * exact.abs(), h.dtype), what)


def _assert_derivative(dz: Tensor, dh: Tensor, error: Tensor, h: Tensor, nonlinearity: str, what: str) -> None:
    """Checks dz, the product of dh and the slope at h; `dh` is exact, and the kernel's own dh has an error of at most
    `error`."""
    slope = SLOPES[nonlinearity](h.double())
    exact = dh * slope
    rounding = _SLOPE_ROUNDINGS * _accumulator(h.dtype)
    assert_within(dz, exact, narrowing_bound(exact, slope.abs() * error + rounding * (dh.abs() + error), h.dtype), what)


def _product(state: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """The product of states (T, N, D·H) with w (D, H, H), one matrix for each direction, and the product of their magnitudes."""

    def multiply(a: Tensor, b: Tensor) -> Tensor:
        return torch.einsum("tndk,dhk->tndh", a.unflatten(2, (len(w), -1)), b).flatten(2)

    return multiply(state.double(), w.double()), multiply(state.double().abs(), w.double().abs())


def _before(steps: Tensor, first: Tensor, lengths: Sequence[int], *, up: bool) -> Tensor:
    """The state (T, N, H) from which each step of one direction starts.

    It is `first` (N, H) for the first step that the direction computes; for any other step t, it is the entry of `steps`
    (T, N, H) for step t - 1 if `up`, else for step t + 1. Past a sample's length it is 0.
    """
    before = torch.zeros_like(steps)
    for n, length in enumerate(lengths):
        order = range(length) if up else range(length - 1, -1, -1)
        previous = first[n]
        for t in order:
            before[t, n] = previous
            previous = steps[t, n]
    return before


def _active(steps: Tensor, lengths: Sequence[int]) -> Tensor:
    t = torch.arange(len(steps), device=steps.device)[:, None, None]
    return t < torch.tensor(list(lengths), device=steps.device)[None, :, None]


def assert_forward_steps(
    h: Tensor, z: Tensor, w: Tensor, h0: Tensor, lengths: Sequence[int], nonlinearity: str, precision: str
) -> None:
    """Checks a forward pass: h and z (T, N, D·H), padded, w (D, H, H), h0 (D, N, H), and the lengths of the samples."""
    assert h.dtype == z.dtype
    before = torch.cat(
        [_before(part, h0[d], lengths, up=d == 0) for d, part in enumerate(h.unflatten(2, (len(w), -1)).unbind(2))], 2
    )
    product, magnitude = _product(before, w)
    error = sum_error(magnitude, w.shape[1] + 1, h.dtype, added=z.double().abs(), operand=_operand(precision))
    active = _active(h, lengths)
    assert not h.masked_fill(active, 0).any(), "h: not zero behind the end of a sample"
    inside = active.expand_as(h)
    _assert_activation(h[inside], (z.double() + product)[inside], error[inside], nonlinearity, "h")


def last_states(h: Tensor, h0: Tensor, lengths: Sequence[int]) -> Tensor:
    """Returns h_n (D, N, H), the states after the steps that the directions compute last, from h (T, N, D·H) and h0 (D, N, H)."""
    h_n = h0.clone()
    for d, steps in enumerate(h.unflatten(2, (len(h0), -1)).unbind(2)):
        for n, length in enumerate(lengths):
            if length:
                h_n[d, n] = steps[0 if d else length - 1, n]
    return h_n


def _add_to_last(dh: Tensor, dh_n: Tensor, lengths: Sequence[int]) -> Tensor:
    """Returns dh (T, N, D·H) with dh_n (D, N, H) added at the steps from which `last_states` takes h_n."""
    total = dh.clone()
    for d, steps in enumerate(total.unflatten(2, (len(dh_n), -1)).unbind(2)):
        for n, length in enumerate(lengths):
            if length:
                steps[0 if d else length - 1, n] += dh_n[d, n]
    return total


def assert_backward_steps(
    dz: Tensor,
    dh0: Tensor | None,
    dh: Tensor,
    h: Tensor,
    w: Tensor,
    lengths: Sequence[int],
    nonlinearity: str,
    precision: str,
    dh_n: Tensor | None = None,
) -> None:
    """Checks a backward pass: dz (T, N, D·H), padded, and dh0 (D, N, H), if it was computed, from dh, the h of a forward pass and
    dh_n (D, N, H), the gradient of its last states."""
    assert dz.dtype == h.dtype
    directions = dz.unflatten(2, (len(w), -1)).unbind(2)
    nothing = torch.zeros_like(directions[0][0])
    dh, magnitude_dh = dh.double(), dh.double().abs()
    if dh_n is not None:
        dh = _add_to_last(dh, dh_n.double(), lengths)
        magnitude_dh = _add_to_last(magnitude_dh, dh_n.double().abs(), lengths)
    after = torch.cat([_before(part, nothing, lengths, up=d != 0) for d, part in enumerate(directions)], 2)
    transposed = w.transpose(1, 2)
    product, magnitude = _product(after, transposed)
    options = {"operand": _operand(precision)}
    error = sum_error(magnitude, w.shape[1] + 2, h.dtype, added=magnitude_dh, **options)
    active = _active(h, lengths)
    assert not dz.masked_fill(active, 0).any(), "dz: not zero behind the end of a sample"
    inside = active.expand_as(h)
    _assert_derivative(dz[inside], (dh + product)[inside], error[inside], h[inside], nonlinearity, "dz")

    if dh0 is None:
        return
    assert dh0.dtype == h.dtype
    ended = torch.tensor([length == 0 for length in lengths], device=h.device)
    for d, part in enumerate(directions):
        steps = [0 if d == 0 else length - 1 for length in lengths]
        last = torch.stack([part[t, n] if lengths[n] else nothing[n] for n, t in enumerate(steps)])
        exact, products = _product(last[None], transposed[d : d + 1])
        if dh_n is not None:  # the last state of a sample without steps is h0
            exact[0, ended] = dh_n[d, ended].double()
        assert_within(dh0[d], exact[0], sum_bound(exact[0], products[0], w.shape[1], h.dtype, **options), f"dh0 of {d}")


def assert_cell(
    h_next: Tensor,
    x: Tensor,
    h: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    biases: Sequence[Tensor],
    nonlinearity: str,
    precision: str,
) -> None:
    """Checks h_next (N, H), the result of a single step, as `nn.RNNCell` computes it."""
    assert h_next.dtype == x.dtype
    pairs = ((x.double(), w_ih.double()), (h.double(), w_hh.double()))
    sum = torch.stack([a @ b.T for a, b in pairs]).sum(0)
    magnitude = torch.stack([a.abs() @ b.abs().T for a, b in pairs]).sum(0)
    added = torch.zeros_like(sum)
    for bias in biases:
        sum, added = sum + bias.double(), added + bias.double().abs()
    terms = x.shape[1] + h.shape[1] + len(biases)
    error = sum_error(magnitude, terms, x.dtype, added=added, operand=_operand(precision))
    _assert_activation(h_next, sum, error, nonlinearity, "h_next")


def assert_cell_backward(
    results: Sequence[Tensor],
    dh_next: Tensor,
    h_next: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    nonlinearity: str,
    precision: str,
) -> None:
    """Checks the backward pass of a single step: `results` are dz, dx and dh, of which dx and dh are computed from the stored
    dz."""
    dz, *gradients = results
    assert {result.dtype for result in results} == {h_next.dtype}
    _assert_derivative(dz, dh_next.double(), torch.zeros_like(dz, dtype=torch.float64), h_next, nonlinearity, "dz")
    for name, gradient, w in zip(("dx", "dh"), gradients, (w_ih, w_hh), strict=True):
        exact, products = dz.double() @ w.double(), dz.double().abs() @ w.double().abs()
        bound = sum_bound(exact, products, dz.shape[1], dz.dtype, operand=_operand(precision))
        assert_within(gradient, exact, bound, name)
