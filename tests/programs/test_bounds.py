"""The bounds of `torch_unroll.testing.bounds` are tight enough to detect a kernel that omits a part of a sum."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.conv2d.test_conv2d_kernels import Case
from torch_unroll.testing import assert_within
from torch_unroll.testing.bounds import COPIED_TF32, ROUNDED_TF32
from torch_unroll.testing.recurrence import assert_backward_steps, assert_cell, assert_cell_backward, assert_forward_steps

#: Arithmetic -> the dtype, and the relative error of operands that are rounded before they are multiplied.
ARITHMETIC = {
    "float16": (torch.float16, 0.0),
    "bfloat16": (torch.bfloat16, 0.0),
    "float32": (torch.float32, 0.0),
    "rounded tf32": (torch.float32, ROUNDED_TF32),
    "copied tf32": (torch.float32, COPIED_TF32),
    "float64": (torch.float64, 0.0),
}
CASE = Case((2, 64, 9, 7), (32, 64, 3, 3), padding=(1, 1, 1, 1))
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]  # x, w, bias, dy


def too_far_off(name: str) -> pytest.RaisesExc[AssertionError]:
    """Expects the failure that reports elements of a result outside their bounds."""
    return pytest.raises(AssertionError, match=f"^{name}: [0-9]+ of [0-9]+ elements are too far off")


def without(number: int, *place: int | slice) -> Callable[[Inputs], Inputs]:
    """A function that sets the elements at `place` of one input to zero; `number` is its position in `Inputs`."""

    def leave_out(inputs: Inputs) -> Inputs:
        less = [tensor.clone() for tensor in inputs]
        less[number][place] = 0
        return (less[0], less[1], less[2], less[3])

    return leave_out


ALL = slice(None)
#: The parts of a sum that a kernel might omit, by the operator that computes the sum.
PARTS = [
    pytest.param(direction, leave_out, id=f"{direction}-{name}")
    for name, leave_out, directions in (
        ("a tap", without(1, ALL, ALL, 1, 1), ("fprop", "dgrad")),
        ("a corner's tap", without(1, ALL, ALL, 2, 0), ("fprop", "dgrad")),
        ("a step of channels", without(1, ALL, slice(16, 32), 0, 1), ("fprop",)),
        ("a step of channels", without(1, slice(16, 32), ALL, 0, 1), ("dgrad",)),
        ("one product", without(1, ALL, 5, 1, 2), ("fprop",)),
        ("one product", without(1, 7, ALL, 1, 2), ("dgrad",)),
        ("the bias", without(2, ALL), ("fprop",)),
        ("one bias", without(2, 3), ("fprop",)),
        ("a step of pixels", without(3, 0, ALL, slice(0, 2), ALL), ("wgrad",)),
        ("an image", without(3, 1), ("wgrad",)),
        ("one product", without(3, 1, ALL, 4, 4), ("wgrad",)),
    )
    for direction in directions
]


@pytest.mark.parametrize(("direction", "leave_out"), PARTS)
@pytest.mark.parametrize("arithmetic", ARITHMETIC)
def test_a_part_that_a_convolution_omits_is_detected(
    arithmetic: str, direction: str, leave_out: Callable[[Inputs], Inputs]
) -> None:
    dtype, operand = ARITHMETIC[arithmetic]
    inputs = CASE.inputs(dtype, torch.contiguous_format)
    exact, bound = CASE.bounds(*inputs, operand)[direction]
    assert_within(exact.to(dtype), exact, bound)
    x, w, bias, dy = (tensor.double() for tensor in leave_out(inputs))
    incomplete = CASE.exact(x, w, bias, dy)[direction].to(dtype)
    with too_far_off("result"):
        assert_within(incomplete, exact, bound)


def test_nan_and_a_wrong_shape_are_detected() -> None:
    exact, bound = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    for wrong in (torch.tensor([0, float("nan"), 0]), torch.tensor([0, 0, float("inf")]), torch.tensor([1.5, 0, 0])):
        with pytest.raises(AssertionError, match="1 of 3 elements"):
            assert_within(wrong, exact, bound)
    with pytest.raises(AssertionError, match="expected shape"):
        assert_within(torch.zeros(1, 3), exact, bound)


RECURRENT = {name: (dtype, "tf32" if operand else "ieee") for name, (dtype, operand) in ARITHMETIC.items()}
T, N, H, D = 4, 3, 48, 2
LENGTHS = [4, 2, 3]


def steps(z: Tensor, w: Tensor, h0: Tensor, dtype: torch.dtype) -> Tensor:
    """h, where each step is computed in float64 from the stored result of the step before."""
    h = torch.zeros(T, N, D, H, dtype=dtype)
    for d in range(D):
        for n, length in enumerate(LENGTHS):
            state = h0[d, n]
            for t in range(length) if d == 0 else reversed(range(length)):
                state = torch.tanh(z[t, n, d * H : (d + 1) * H].double() + w[d].double() @ state.double()).to(dtype)
                h[t, n, d] = state
    return h.flatten(2)


def steps_back(dh: Tensor, h: Tensor, w: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """dz and dh0, where each step is computed in float64 from the stored dz of the step that backward computed before it."""
    dz, dh0 = torch.zeros(T, N, D, H, dtype=dtype), torch.zeros(D, N, H, dtype=dtype)
    dh, h = dh.double().unflatten(2, (D, H)), h.double().unflatten(2, (D, H))
    for d in range(D):
        for n, length in enumerate(LENGTHS):
            carried = torch.zeros(H, dtype=torch.float64)
            for t in reversed(range(length)) if d == 0 else range(length):
                dz[t, n, d] = ((dh[t, n, d] + carried) * (1 - h[t, n, d] ** 2)).to(dtype)
                carried = w[d].double().T @ dz[t, n, d].double()
            dh0[d, n] = carried.to(dtype)
    return dz.flatten(2), dh0


@pytest.mark.parametrize("arithmetic", RECURRENT)
@pytest.mark.parametrize("left_out", [slice(16, 32), slice(40, 48), slice(7, 8), "one step's state", "what is added"])
def test_a_part_that_a_recurrence_omits_is_detected(arithmetic: str, left_out: slice | str) -> None:
    dtype, precision = RECURRENT[arithmetic]
    z, dh = torch.randn(T, N, D * H).to(dtype), torch.randn(T, N, D * H).to(dtype)
    w, h0 = (torch.randn(D, H, H) / H**0.5).to(dtype), torch.randn(D, N, H).to(dtype)
    h = steps(z, w, h0, dtype)
    dz, dh0 = steps_back(dh, h, w, dtype)
    forward, backward = (z, w, h0, LENGTHS, "tanh", precision), (dh, h, w, LENGTHS, "tanh", precision)
    assert_forward_steps(h, *forward)
    assert_backward_steps(dz, dh0, *backward)

    less_z, less_w, less_h0, less_dh = z.clone(), w.clone(), h0.clone(), dh.clone()
    if isinstance(left_out, slice):
        less_w[1, :, left_out] = less_w[1, left_out] = 0
    elif left_out == "what is added":
        less_z[1, 0], less_dh[1, 0] = 0, 0
    else:
        less_h0[1, 1] = 0
    with too_far_off("h"):
        assert_forward_steps(steps(less_z, less_w, less_h0, dtype), *forward)
    if left_out == "one step's state":
        dh0[1, 2] = 0
        with too_far_off("dh0 of 1"):
            assert_backward_steps(dz, dh0, *backward)
        return
    less_dz, less_dh0 = steps_back(less_dh, h, less_w, dtype)
    with too_far_off("dz"):
        assert_backward_steps(less_dz, less_dh0, *backward)
    if isinstance(left_out, slice):
        with too_far_off("dh0 of 1"):
            assert_backward_steps(dz, steps_back(dh, h, less_w, dtype)[1], *backward)


@pytest.mark.parametrize("arithmetic", RECURRENT)
@pytest.mark.parametrize("left_out", ["x", "h", "w_ih", "w_hh", "b_ih", "b_hh"])
def test_a_part_that_a_cell_omits_is_detected(arithmetic: str, left_out: str) -> None:
    dtype, precision = RECURRENT[arithmetic]
    shapes = {"x": (5, 40), "h": (5, 24), "w_ih": (24, 40), "w_hh": (24, 24), "b_ih": (24,), "b_hh": (24,)}
    drawn = {name: (torch.randn(shape) / 3).to(dtype) for name, shape in shapes.items()}

    def forward(operands: dict[str, Tensor]) -> Tensor:
        x, h, w_ih, w_hh, b_ih, b_hh = (tensor.double() for tensor in operands.values())
        return torch.tanh(x @ w_ih.T + h @ w_hh.T + b_ih + b_hh).to(dtype)

    x, h, w_ih, w_hh, *biases = drawn.values()
    h_next = forward(drawn)
    assert_cell(h_next, x, h, w_ih, w_hh, biases, "tanh", precision)
    less = drawn | {left_out: drawn[left_out].clone()}
    less[left_out][..., 8:16] = 0  # leaves out 8 of the products of each sum, or the bias of 8 units
    with too_far_off("h_next"):
        assert_cell(forward(less), x, h, w_ih, w_hh, biases, "tanh", precision)

    def backward(w_ih: Tensor, w_hh: Tensor, slope: float = 1.0) -> list[Tensor]:
        dz = (h.double() * (1 - slope * h_next.double() ** 2)).to(dtype)
        return [dz, *((dz.double() @ w.double()).to(dtype) for w in (w_ih, w_hh))]

    arguments = (h, h_next, w_ih, w_hh, "tanh", precision)
    assert_cell_backward(backward(w_ih, w_hh), *arguments)
    with too_far_off("dz"):
        assert_cell_backward(backward(w_ih, w_hh, slope=0.0), *arguments)
    for number, name in enumerate(("dx", "dh")):
        matrices = [w_ih.clone(), w_hh.clone()]
        matrices[number][8:16] = 0
        with too_far_off(name):
            assert_cell_backward(backward(*matrices), *arguments)
