"""The recurrent kernels through their host functions, variant by variant, against the recurrence in float64."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from torch_unroll.engines import cuda
from torch_unroll.engines.compiled import rnn
from torch_unroll.kernels.cuda.rnn import variants

pytestmark = pytest.mark.skipif(not cuda.library_path("cpu").exists(), reason="python kernels/build.py emulated")

LAUNCHER = cuda.LAUNCHER
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
#: By arithmetic: a dtype and a precision.
MATHS = [pytest.param(dtype, "ieee", id=str(dtype).removeprefix("torch.")) for dtype in DTYPES]
MATHS.append(pytest.param(torch.float32, "tf32", id="tf32"))
ULP = {torch.float16: 2**-11, torch.bfloat16: 2**-8, torch.float32: 2**-24, torch.float64: 2**-53}
ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu, "sigmoid": torch.sigmoid, "identity": lambda z: z}
SLOPES = {
    "tanh": lambda h: 1 - h * h,
    "relu": lambda h: (h > 0).to(h.dtype),
    "sigmoid": lambda h: h * (1 - h),
    "identity": torch.ones_like,
}


@pytest.fixture
def variant() -> Iterator[None]:
    """Takes back what a test forced."""
    yield
    rnn.forced = None


def reference_forward(z: Tensor, w: Tensor, h0: Tensor, lengths: list[int], nonlinearity: str) -> Tensor:
    """The recurrence, step by step and sample by sample, in the dtype of its inputs; padded."""
    h = torch.zeros_like(z)
    D, N, H = h0.shape
    for d in range(D):
        for n in range(N):
            state = h0[d, n]
            for t in range(lengths[n]) if d == 0 else reversed(range(lengths[n])):
                state = ACTIVATIONS[nonlinearity](z[t, n, d * H : (d + 1) * H] + w[d] @ state)
                h[t, n, d * H : (d + 1) * H] = state
    return h


def reference_backward(dh: Tensor, h: Tensor, w: Tensor, h0: Tensor, lengths: list[int], nonlinearity: str) -> tuple[Tensor, Tensor]:
    dz, dh0 = torch.zeros_like(h), torch.zeros_like(h0)
    D, N, H = h0.shape
    for d in range(D):
        for n in range(N):
            carried = torch.zeros_like(h0[d, n])
            for t in reversed(range(lengths[n])) if d == 0 else range(lengths[n]):
                at = t, n, slice(d * H, (d + 1) * H)
                dz[at] = (dh[at] + carried) * SLOPES[nonlinearity](h[at])
                carried = w[d].T @ dz[at]
            dh0[d, n] = carried
    return dz, dh0


def assert_close(actual: Tensor, double: Tensor, same_dtype: Tensor, precision: str) -> None:
    """At most twice the error of the plain loop in the same dtype, plus a few units in the last place."""
    assert actual.shape == double.shape and actual.dtype == same_dtype.dtype
    ulp = 2**-11 if precision == "tf32" and actual.dtype == torch.float32 else ULP[actual.dtype]
    scale = double.norm() + 1e-30
    error, theirs = (actual.double() - double).norm() / scale, (same_dtype.double() - double).norm() / scale
    assert error <= 2 * theirs + 4 * ulp, (error, theirs)
    worst = (same_dtype.double() - double).abs().max()
    torch.testing.assert_close(actual.double(), double, rtol=8 * ulp, atol=float(2 * worst + 16 * ulp * double.abs().max()))


class Case:
    """Random inputs of one layer, rounded to a dtype, and the same in float64."""

    def __init__(self, T: int, N: int, H: int, D: int, dtype: torch.dtype, lengths: list[int] | None = None, packed: bool = False):
        draw = torch.Generator().manual_seed(T + 7 * N + 31 * H + D)
        self.lengths = lengths or [T] * N
        self.z = torch.randn(T, N, D * H, generator=draw, dtype=torch.float64).to(dtype)
        self.w = (torch.randn(D, H, H, generator=draw, dtype=torch.float64) / H**0.5).to(dtype)
        self.h0 = torch.randn(D, N, H, generator=draw, dtype=torch.float64).to(dtype)
        self.dh = torch.randn(T, N, D * H, generator=draw, dtype=torch.float64).to(dtype)
        self.batch_sizes = tuple(sum(length > t for length in self.lengths) for t in range(T)) if packed else None
        self.lengths_tensor = torch.tensor(lengths) if lengths and not packed else None

    def to_kernel(self, padded: Tensor) -> Tensor:
        if self.batch_sizes is None:
            return padded
        return torch.cat([padded[t, :batch] for t, batch in enumerate(self.batch_sizes)])

    def from_kernel(self, rows: Tensor) -> Tensor:
        if self.batch_sizes is None:
            return rows
        padded = rows.new_zeros(self.z.shape)
        for t, (batch, part) in enumerate(zip(self.batch_sizes, rows.split(self.batch_sizes), strict=True)):
            padded[t, :batch] = part
        return padded

    def check(self, nonlinearity: str, precision: str) -> tuple[Tensor, Tensor, Tensor]:
        """Both passes against both references; returns the kernels' h, dz and dh0."""
        arguments = (self.lengths_tensor, self.batch_sizes, nonlinearity, precision)
        h = rnn.rnn_forward(LAUNCHER, self.to_kernel(self.z), self.w, self.h0, *arguments)
        doubles = [x.double() for x in (self.z, self.w, self.h0)]
        expected = reference_forward(*doubles, self.lengths, nonlinearity)
        plain = reference_forward(self.z, self.w, self.h0, self.lengths, nonlinearity)
        assert_close(self.from_kernel(h), expected, plain, precision)

        # Its derivatives are functions of the h that was stored: the references are given the same.
        dz, dh0 = rnn.rnn_backward(LAUNCHER, self.to_kernel(self.dh), h, self.w, self.h0, *arguments)
        stored = self.from_kernel(h)
        doubles = [x.double() for x in (self.dh, stored, self.w, self.h0)]
        expected = reference_backward(*doubles, self.lengths, nonlinearity)
        plain = reference_backward(self.dh, stored, self.w, self.h0, self.lengths, nonlinearity)
        assert_close(self.from_kernel(dz), expected[0], plain[0], precision)
        assert_close(dh0, expected[1], plain[1], precision)
        for t, n in ((t, n) for n, length in enumerate(self.lengths) for t in range(length, self.z.shape[0])):
            assert not self.from_kernel(h)[t, n].any() and not self.from_kernel(dz)[t, n].any()
        return h, dz, dh0


VARIANTS = tuple(v.name for v in variants.VARIANTS)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(("dtype", "precision"), MATHS)
def test_both_directions_of_unequal_samples(variant: None, name: str, dtype: torch.dtype, precision: str) -> None:
    rnn.forced = name
    Case(4, 10, 48, 2, dtype, [4, 1, 0, 3, 2, 4, 4, 1, 2, 3]).check("tanh", precision)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(("dtype", "precision"), MATHS)
def test_packed(variant: None, name: str, dtype: torch.dtype, precision: str) -> None:
    rnn.forced = name
    Case(4, 9, 32, 2, dtype, [4, 4, 3, 3, 3, 2, 2, 1, 1], packed=True).check("sigmoid", precision)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("nonlinearity", variants.NONLINEARITIES)
def test_nonlinearities(variant: None, name: str, nonlinearity: str) -> None:
    rnn.forced = name
    Case(3, 3, 32, 1, torch.float32).check(nonlinearity, "ieee")


@pytest.mark.parametrize("H", [1, 2, 3, 5, 7, 8, 15, 17, 31, 33, 63, 66, 70])
@pytest.mark.parametrize("name", ["single_block", "step"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_odd_sizes(variant: None, name: str, H: int, dtype: torch.dtype) -> None:
    rnn.forced = name
    Case(2, 3, H, 2, dtype).check("tanh", "ieee")
