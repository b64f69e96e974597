"""The states at the ends of a sequence: h0, h_n and their gradients, each of which a call of the kernels may leave out."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.rnn.test_rnn_kernels import LAUNCHER, MATHS, VARIANTS, Case
from torch_unroll.engines import load
from torch_unroll.engines.compiled import rnn
from torch_unroll.engines.interface import RnnOptions
from torch_unroll.kernels import planning
from torch_unroll.testing import assert_exact
from torch_unroll.testing.recurrence import assert_backward_steps, assert_forward_steps, last_states

pytestmark = pytest.mark.usefixtures("device")

#: Who computes: a variant of the kernels, or the reference.
ENGINES = (*VARIANTS, "torch")
LAYOUTS: dict[str, dict[str, Any]] = {
    "one direction": {"T": 3, "N": 9, "D": 1},
    "two directions": {"T": 2, "N": 3, "D": 2},
    "lengths": {"T": 4, "N": 9, "D": 2, "lengths": [4, 1, 0, 3, 2, 4, 0, 1, 0]},
    "packed": {"T": 4, "N": 9, "D": 2, "lengths": [4, 4, 3, 3, 3, 2, 2, 1, 1], "packed": True},
}
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
engines = pytest.mark.parametrize("engine", ENGINES)
maths = pytest.mark.parametrize(("dtype", "precision"), MATHS)


class States(Case):
    """A layer with all states, and calls that leave some of them out."""

    def __init__(self, engine: str, H: int, dtype: torch.dtype, precision: str, layout: dict[str, Any]):
        super().__init__(H=H, dtype=dtype, **layout)
        self.engine, self.precision = engine, precision
        self.dh_n = self.h0.flip(-1).contiguous()
        self.options = RnnOptions(self.lengths_tensor, self.batch_sizes, "tanh", precision)

    def forward(self, h0: Tensor | None, h_n: Tensor | None) -> Tensor:
        """Returns h in the layout of the kernels."""
        z = self.to_kernel(self.z)
        if self.engine == "torch":
            return load("torch").rnn_forward(z, self.w, h0, self.options, h_n)
        with planning.force("rnn", self.engine):
            return rnn.rnn_forward(LAUNCHER, z, self.w, h0, self.options, h_n)

    def backward(
        self, dh: Tensor | None, h: Tensor, h0: Tensor | None, dh_n: Tensor | None, with_dh0: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Returns dz in the layout of the kernels, and dh0."""
        arguments = (None if dh is None else self.to_kernel(dh), h, self.w, h0, self.options, dh_n, with_dh0)
        if self.engine == "torch":
            return load("torch").rnn_backward(*arguments)
        with planning.force("rnn", self.engine):
            return rnn.rnn_backward(LAUNCHER, *arguments)


@engines
@layouts
@maths
def test_forward(engine: str, layout: dict[str, Any], dtype: torch.dtype, precision: str) -> None:
    case = States(engine, 32, dtype, precision, layout)
    for with_h0, with_h_n in product((True, False), repeat=2):
        h0 = case.h0 if with_h0 else torch.zeros_like(case.h0)
        h_n = torch.full_like(h0, torch.nan) if with_h_n else None
        h = case.forward(h0 if with_h0 else None, h_n)
        padded = case.from_kernel(h)
        assert_forward_steps(padded, case.z, case.w, h0, case.lengths, "tanh", precision)
        if h_n is not None:
            assert_exact(h_n, last_states(padded, h0, case.lengths))
        if not with_h0:
            assert_exact(case.forward(h0, None), h)


@engines
@layouts
@maths
def test_backward(engine: str, layout: dict[str, Any], dtype: torch.dtype, precision: str) -> None:
    case = States(engine, 32, dtype, precision, layout)
    h = case.forward(case.h0, None)
    for with_dh, with_h0, with_dh_n, with_dh0 in product((True, False), repeat=4):
        dh = case.dh if with_dh else torch.zeros_like(case.dh)
        dh_n = case.dh_n if with_dh_n else None
        dz, dh0 = case.backward(dh if with_dh else None, h, case.h0 if with_h0 else None, dh_n, with_dh0)
        assert (dh0 is not None) == with_dh0
        padded = case.from_kernel(dz)
        assert_backward_steps(padded, dh0, dh, case.from_kernel(h), case.w, case.lengths, "tanh", precision, dh_n)
        if not with_dh_n:
            expected = case.backward(dh, h, case.h0, torch.zeros_like(case.h0), True)
            for one, other in zip((dz, dh0), expected, strict=True):
                if one is not None:
                    assert_exact(one, other)


@engines
@pytest.mark.parametrize("H", [5, 33])
def test_odd_sizes(engine: str, H: int) -> None:
    if engine == "grid_exchange":
        pytest.skip("refuses rows that do not start on 16 bytes")
    case = States(engine, H, torch.bfloat16, "ieee", LAYOUTS["lengths"])
    h_n = torch.full_like(case.h0, torch.nan)
    h = case.forward(None, h_n)
    assert_exact(h_n, last_states(h, torch.zeros_like(case.h0), case.lengths))
    dz, dh0 = case.backward(None, h, None, case.dh_n, True)
    nothing = torch.zeros_like(case.dh)
    assert_backward_steps(dz, dh0, nothing, h, case.w, case.lengths, "tanh", "ieee", case.dh_n)


@engines
def test_gradients_of_the_last_states_may_have_any_strides(engine: str) -> None:
    case = States(engine, 32, torch.float32, "ieee", LAYOUTS["lengths"])
    h, ones = case.forward(None, None), torch.ones(()).expand(case.h0.shape)  # as the gradient of a sum
    actual = case.backward(None, h, None, ones, True)
    for one, other in zip(actual, case.backward(None, h, None, ones.contiguous(), True), strict=True):
        assert_exact(one, other)


@engines
def test_infinite_weights_do_not_reach_the_step_computed_first(engine: str) -> None:
    """Its gradient is dh and dh_n alone. A product of W with a state of zeros would make it NaN."""
    case = States(engine, 32, torch.float32, "ieee", LAYOUTS["lengths"])
    h = case.forward(case.h0, None)
    case.w.fill_(torch.inf)
    dz, dh0 = case.backward(case.dh, h, None, case.dh_n, True)
    assert dh0 is not None
    first = last_states(case.from_kernel(dz), case.dh_n, case.lengths)
    assert first.isfinite().all()
    for n, length in enumerate(case.lengths):
        if length == 0:
            assert_exact(dh0[:, n], case.dh_n[:, n])


@pytest.mark.parametrize("engine", ["torch", "cuda"])
@pytest.mark.parametrize(("T", "N"), [(0, 3), (3, 0)])
@pytest.mark.parametrize("with_state", [True, False])
def test_empty(engine: str, T: int, N: int, with_state: bool) -> None:
    z, w, h_n = torch.zeros(T, N, 2 * 8), torch.ones(2, 8, 8), torch.full((2, N, 8), torch.nan)
    state = torch.ones(2, N, 8) if with_state else None
    options = RnnOptions(None, None, "tanh", "ieee")
    h = load(engine).rnn_forward(z, w, state, options, h_n)
    assert_exact(h_n, torch.full((2, N, 8), float(with_state)))
    dz, dh0 = load(engine).rnn_backward(None, h, w, None, options, state)
    assert dz.shape == h.shape == z.shape
    assert dh0 is not None
    assert_exact(dh0, torch.full((2, N, 8), float(with_state)))
    assert load(engine).rnn_backward(z, h, w, state, options, None, False)[1] is None
