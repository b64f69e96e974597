"""The recurrent kernels through their host functions, variant by variant, against the recurrence in float64."""

from __future__ import annotations

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


def reference_backward(
    dh: Tensor, h: Tensor, w: Tensor, h0: Tensor, lengths: list[int], nonlinearity: str
) -> tuple[Tensor, Tensor]:
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
    assert actual.shape == double.shape
    assert actual.dtype == same_dtype.dtype
    ulp = 2**-11 if precision == "tf32" and actual.dtype == torch.float32 else ULP[actual.dtype]
    scale = double.norm() + 1e-30
    error, theirs = (actual.double() - double).norm() / scale, (same_dtype.double() - double).norm() / scale
    assert error <= 2 * theirs + 4 * ulp, (error, theirs)
    worst = (same_dtype.double() - double).abs().max()
    torch.testing.assert_close(actual.double(), double, rtol=8 * ulp, atol=float(2 * worst + 16 * ulp * double.abs().max()))


class Case:
    """Random inputs of one layer, rounded to a dtype, and the same in float64."""

    def __init__(
        self, T: int, N: int, H: int, D: int, dtype: torch.dtype, lengths: list[int] | None = None, packed: bool = False
    ):
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
            assert not self.from_kernel(h)[t, n].any()
            assert not self.from_kernel(dz)[t, n].any()
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


@pytest.mark.parametrize("name", VARIANTS)
def test_batch_first_is_a_matter_of_strides(variant: None, name: str) -> None:
    rnn.forced = name
    case = Case(3, 5, 32, 1, torch.float32)
    arguments = (None, None, "tanh", "ieee")
    plain = rnn.rnn_forward(LAUNCHER, case.z, case.w, case.h0, *arguments)
    batch_first = case.z.transpose(0, 1).contiguous().transpose(0, 1)
    strided = rnn.rnn_forward(LAUNCHER, batch_first, case.w, case.h0, *arguments)
    assert strided.stride() == batch_first.stride()
    assert torch.equal(strided, plain)
    expanded = case.dh[:, :1].expand(3, 5, 32)  # what a mean's gradient looks like
    expected = rnn.rnn_backward(LAUNCHER, expanded.contiguous(), plain, case.w, case.h0, *arguments)
    actual = rnn.rnn_backward(LAUNCHER, expanded, strided, case.w, case.h0, *arguments)
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", VARIANTS)
def test_slices_and_broken_alignment(variant: None, name: str) -> None:
    if name not in ("single_block", "step"):
        pytest.skip("refuses rows that do not start on 16 bytes")
    rnn.forced = name
    case = Case(3, 3, 24, 1, torch.float32)
    expected = rnn.rnn_forward(LAUNCHER, case.z, case.w, case.h0, None, None, "tanh", "ieee")
    wider = torch.zeros(3, 3, 30)
    wider[..., 3:27] = case.z
    w = torch.zeros(1, 25, 25)
    w[:, 1:, 1:] = case.w
    h0 = torch.zeros(1, 3, 48)
    h0[..., ::2] = case.h0
    actual = rnn.rnn_forward(LAUNCHER, wider[..., 3:27], w[:, 1:, 1:], h0[..., ::2], None, None, "tanh", "ieee")
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("name", VARIANTS)
def test_nan_and_infinity_travel(variant: None, name: str) -> None:
    rnn.forced = name
    for dtype in (torch.bfloat16, torch.float32):
        case = Case(3, 3, 32, 1, dtype)
        payload = torch.full((1,), -1, dtype=torch.int16 if dtype == torch.bfloat16 else torch.int32).view(dtype)
        case.z[1, 0, 5] = payload[0]  # a NaN of all ones
        case.h0[0, 1, 3] = float("inf")
        h = rnn.rnn_forward(LAUNCHER, case.z, case.w, case.h0, None, None, "identity", "ieee")
        expected = reference_forward(case.z.double(), case.w.double(), case.h0.double(), [3] * 3, "identity")
        assert torch.equal(h.isnan(), expected.isnan())
        assert torch.equal(h.isinf(), expected.isinf())


@pytest.mark.parametrize(("T", "N"), [(0, 3), (3, 0)])
def test_empty(T: int, N: int) -> None:
    z, w, h0 = torch.zeros(T, N, 2 * 8), torch.ones(2, 8, 8), torch.ones(2, N, 8)
    h = rnn.rnn_forward(LAUNCHER, z, w, h0, None, None, "tanh", "ieee")
    dz, dh0 = rnn.rnn_backward(LAUNCHER, z, h, w, h0, None, None, "tanh", "ieee")
    assert h.shape == dz.shape == z.shape
    assert torch.equal(dh0, torch.zeros_like(h0))


def test_lengths_are_clamped() -> None:
    case = Case(3, 4, 16, 2, torch.float32, [3, 0, 2, 3])
    case.lengths_tensor = torch.tensor([7, -1, 2, 3], dtype=torch.int32)
    case.check("tanh", "ieee")


@pytest.mark.parametrize(("dtype", "precision"), MATHS)
@pytest.mark.parametrize(("N", "inputs", "H"), [(1, 40, 24), (9, 13, 17), (33, 16, 80)])
@pytest.mark.parametrize("bias", [True, False])
def test_cell(dtype: torch.dtype, precision: str, N: int, inputs: int, H: int, bias: bool) -> None:
    shapes = {"x": (N, inputs), "h": (N, H), "w_ih": (H, inputs), "w_hh": (H, H), "b_ih": (H,), "b_hh": (H,), "dh_next": (N, H)}
    drawn = {name: (torch.randn(shape, dtype=torch.float64) / 3).to(dtype) for name, shape in shapes.items()}

    def forward(x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
        z = x @ w_ih.T + h @ w_hh.T
        return torch.tanh(z + b_ih + b_hh if bias else z)

    inputs_of = [drawn[name] for name in ("x", "h", "w_ih", "w_hh", "b_ih", "b_hh")]
    biases = inputs_of[4:] if bias else (None, None)
    h_next = rnn.rnn_cell_forward(LAUNCHER, *inputs_of[:4], *biases, "tanh", precision)
    assert_close(h_next, forward(*(x.double() for x in inputs_of)), forward(*inputs_of), precision)

    def backward(dh_next: Tensor, h_next: Tensor, w_ih: Tensor, w_hh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dz = dh_next * SLOPES["tanh"](h_next)
        return dz, dz @ w_ih, dz @ w_hh

    results = rnn.rnn_cell_backward(LAUNCHER, drawn["dh_next"], h_next, drawn["w_ih"], drawn["w_hh"], "tanh", precision)
    given = [drawn["dh_next"], h_next, drawn["w_ih"], drawn["w_hh"]]
    for result, double, plain in zip(results, backward(*(x.double() for x in given)), backward(*given), strict=True):
        assert_close(result, double, plain, precision)


@pytest.mark.parametrize("nonlinearity", variants.NONLINEARITIES)
def test_a_cell_step_is_a_step_of_the_layer(nonlinearity: str) -> None:
    x, h, w_ih, w_hh = torch.randn(4, 8), torch.randn(4, 16), torch.randn(16, 8), torch.randn(16, 16) / 4
    b = torch.randn(16)
    one = rnn.rnn_cell_forward(LAUNCHER, x, h, w_ih, w_hh, b, None, nonlinearity, "ieee")
    z = (x @ w_ih.T + b)[None]
    other = rnn.rnn_forward(LAUNCHER, z, w_hh[None], h[None], None, None, nonlinearity, "ieee")[0]
    torch.testing.assert_close(one, other)
