"""Calls the host functions of the recurrent kernels, for every variant; each step is compared with the same step in float64."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from torch_unroll.engines import cuda
from torch_unroll.engines.compiled import Launcher, rnn
from torch_unroll.engines.interface import DTYPES, NONLINEARITIES, RnnOptions
from torch_unroll.kernels import planning
from torch_unroll.kernels.cuda.rnn.variants import SELECTORS
from torch_unroll.kernels.hardware import Device
from torch_unroll.kernels.table import LaunchPlan
from torch_unroll.shapes import dtype_name
from torch_unroll.testing.recurrence import (
    ACTIVATIONS,
    assert_backward_steps,
    assert_cell,
    assert_cell_backward,
    assert_forward_steps,
)

pytestmark = pytest.mark.usefixtures("device")

LAUNCHER = cuda.LAUNCHER
#: Every (dtype, precision).
MATHS = [pytest.param(dtype, "ieee", id=dtype_name(dtype)) for dtype in DTYPES]
MATHS.append(pytest.param(torch.float32, "tf32", id="tf32"))


@pytest.fixture
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    """Forces the variant that the test is parametrized with."""
    with planning.force("rnn", request.param):
        yield request.param


def reference_forward(z: Tensor, w: Tensor, h0: Tensor, lengths: list[int], nonlinearity: str) -> Tensor:
    """Computes a padded recurrence step by step and sample by sample, in the dtype of its inputs."""
    h = torch.zeros_like(z)
    D, N, H = h0.shape
    for d in range(D):
        for n in range(N):
            state = h0[d, n]
            for t in range(lengths[n]) if d == 0 else reversed(range(lengths[n])):
                state = ACTIVATIONS[nonlinearity](z[t, n, d * H : (d + 1) * H] + w[d] @ state)
                h[t, n, d * H : (d + 1) * H] = state
    return h


class Resized:
    """The launcher of engine `cuda`, reporting a different number of multiprocessors. Records the plans that it launches.

    Args:
        changes: further fields of the `Device` to replace.
    """

    def __init__(self, multiprocessors: int, **changes: Any):
        self.plans: list[LaunchPlan] = []
        self._changes = {"multiprocessors": multiprocessors, **changes}
        self._devices: dict[torch.device, Device] = {}

    def launch(self, plan: LaunchPlan, parameters: ctypes.Structure, device: torch.device) -> None:
        self.plans.append(plan)
        LAUNCHER.launch(plan, parameters, device)

    def properties(self, device: torch.device) -> Device:
        if device not in self._devices:
            self._devices[device] = replace(LAUNCHER.properties(device), **self._changes)
        return self._devices[device]


class Case:
    """Random inputs of one layer, rounded to a dtype, on the default device. Their values are the same on every device."""

    def __init__(
        self, T: int, N: int, H: int, D: int, dtype: torch.dtype, lengths: list[int] | None = None, packed: bool = False
    ):
        generator = torch.Generator("cpu").manual_seed(T + 7 * N + 31 * H + D)

        def draw(*shape: int, scale: float = 1.0) -> Tensor:
            drawn = scale * torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
            return drawn.to(dtype).to(torch.get_default_device())

        self.lengths = lengths or [T] * N
        self.z = draw(T, N, D * H)
        self.w = draw(D, H, H, scale=H**-0.5)
        self.h0 = draw(D, N, H)
        self.dh = draw(T, N, D * H)
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

    def run(self, nonlinearity: str, precision: str, launcher: Launcher = LAUNCHER) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the kernels' h, dz and dh0."""
        arguments = (self.w, self.h0, RnnOptions(self.lengths_tensor, self.batch_sizes, nonlinearity, precision))
        h = rnn.rnn_forward(launcher, self.to_kernel(self.z), *arguments)
        return h, *rnn.rnn_backward(launcher, self.to_kernel(self.dh), h, *arguments)

    def check(self, nonlinearity: str, precision: str, launcher: Launcher = LAUNCHER) -> None:
        """Runs both passes and compares every step of them with the reference, on the CPU."""
        results = self.run(nonlinearity, precision, launcher)
        assert {result.device.type for result in results} == {self.z.device.type}
        h, dz, dh0 = (result.cpu() for result in results)
        h, dz = self.from_kernel(h), self.from_kernel(dz)
        z, w, h0, dh = (tensor.cpu() for tensor in (self.z, self.w, self.h0, self.dh))
        with torch.device("cpu"):
            assert_forward_steps(h, z, w, h0, self.lengths, nonlinearity, precision)
            assert_backward_steps(dz, dh0, dh, h, w, self.lengths, nonlinearity, precision)


VARIANTS = tuple(SELECTORS["rnn_forward"].by_name)


@pytest.mark.parametrize("place", ["cpu", "meta"])
@pytest.mark.parametrize("options", [{}, {"lengths": [2, 1]}, {"lengths": [2, 1], "packed": True}], ids=str)
def test_inputs_lie_on_the_default_device(place: str, options: dict) -> None:
    with torch.device(place):
        case = Case(2, 2, 8, 2, torch.bfloat16, **options)
        round_trip = case.from_kernel(case.to_kernel(case.z))
        tensors = [case.z, case.w, case.h0, case.dh, case.lengths_tensor, round_trip]
    assert {tensor.device.type for tensor in tensors if tensor is not None} == {place}


@pytest.mark.parametrize("variant", VARIANTS, indirect=True)
@pytest.mark.parametrize(("dtype", "precision"), MATHS)
def test_both_directions_of_unequal_samples(variant: str, dtype: torch.dtype, precision: str) -> None:
    Case(4, 10, 48, 2, dtype, [4, 1, 0, 3, 2, 4, 4, 1, 2, 3]).check("tanh", precision)


@pytest.mark.parametrize("variant", VARIANTS, indirect=True)
@pytest.mark.parametrize(("dtype", "precision"), MATHS)
def test_packed(variant: str, dtype: torch.dtype, precision: str) -> None:
    Case(4, 9, 32, 2, dtype, [4, 4, 3, 3, 3, 2, 2, 1, 1], packed=True).check("sigmoid", precision)


@pytest.mark.parametrize("variant", VARIANTS, indirect=True)
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_nonlinearities(variant: str, nonlinearity: str) -> None:
    Case(3, 3, 32, 1, torch.float32).check(nonlinearity, "ieee")


@pytest.mark.parametrize("H", [1, 2, 3, 5, 7, 8, 15, 17, 31, 33, 63, 66, 70])
@pytest.mark.parametrize("variant", ["single_block", "cluster", "step"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_odd_sizes(variant: str, H: int, dtype: torch.dtype) -> None:
    Case(2, 3, H, 2, dtype).check("tanh", "ieee")


@pytest.mark.parametrize("variant", VARIANTS, indirect=True)
def test_batch_first_is_a_matter_of_strides(variant: str) -> None:
    case = Case(3, 5, 32, 1, torch.float32)
    options = RnnOptions(None, None, "tanh", "ieee")
    plain = rnn.rnn_forward(LAUNCHER, case.z, case.w, case.h0, options)
    batch_first = case.z.transpose(0, 1).contiguous().transpose(0, 1)
    strided = rnn.rnn_forward(LAUNCHER, batch_first, case.w, case.h0, options)
    assert strided.stride() == batch_first.stride()
    assert torch.equal(strided, plain)
    expanded = case.dh[:, :1].expand(3, 5, 32)  # the gradient of a mean over samples has such strides
    expected = rnn.rnn_backward(LAUNCHER, expanded.contiguous(), plain, case.w, case.h0, options)
    actual = rnn.rnn_backward(LAUNCHER, expanded, strided, case.w, case.h0, options)
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("variant", VARIANTS, indirect=True)
def test_slices_and_broken_alignment(variant: str) -> None:
    if variant == "grid_exchange":
        pytest.skip("refuses rows that do not start on 16 bytes")
    case = Case(3, 3, 24, 1, torch.float32)
    expected = rnn.rnn_forward(LAUNCHER, case.z, case.w, case.h0, RnnOptions(None, None, "tanh", "ieee"))
    wider = torch.zeros(3, 3, 30)
    wider[..., 3:27] = case.z
    w = torch.zeros(1, 25, 25)
    w[:, 1:, 1:] = case.w
    h0 = torch.zeros(1, 3, 48)
    h0[..., ::2] = case.h0
    actual = rnn.rnn_forward(LAUNCHER, wider[..., 3:27], w[:, 1:, 1:], h0[..., ::2], RnnOptions(None, None, "tanh", "ieee"))
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("variant", VARIANTS, indirect=True)
def test_nan_and_infinity_travel(variant: str) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        case = Case(3, 3, 32, 1, dtype)
        payload = torch.full((1,), -1, dtype=torch.int16 if dtype == torch.bfloat16 else torch.int32).view(dtype)
        case.z[1, 0, 5] = payload[0]  # a NaN with all bits set
        case.h0[0, 1, 3] = float("inf")
        h = rnn.rnn_forward(LAUNCHER, case.z, case.w, case.h0, RnnOptions(None, None, "identity", "ieee")).cpu()
        expected = reference_forward(*(x.cpu().double() for x in (case.z, case.w, case.h0)), [3] * 3, "identity")
        assert torch.equal(h.isnan(), expected.isnan())
        assert torch.equal(h.isinf(), expected.isinf())


@pytest.mark.parametrize(("T", "N"), [(0, 3), (3, 0)])
def test_empty(T: int, N: int) -> None:
    z, w, h0 = torch.zeros(T, N, 2 * 8), torch.ones(2, 8, 8), torch.ones(2, N, 8)
    h = rnn.rnn_forward(LAUNCHER, z, w, h0, RnnOptions(None, None, "tanh", "ieee"))
    dz, dh0 = rnn.rnn_backward(LAUNCHER, z, h, w, h0, RnnOptions(None, None, "tanh", "ieee"))
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

    inputs_of = [drawn[name] for name in ("x", "h", "w_ih", "w_hh", "b_ih", "b_hh")]
    biases = inputs_of[4:] if bias else []
    h_next = rnn.rnn_cell_forward(LAUNCHER, *inputs_of[:4], *(biases or (None, None)), "tanh", precision)
    assert_cell(h_next, *inputs_of[:4], biases, "tanh", precision)
    arguments = (drawn["dh_next"], h_next, drawn["w_ih"], drawn["w_hh"], "tanh", precision)
    assert_cell_backward(rnn.rnn_cell_backward(LAUNCHER, *arguments), *arguments)


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_a_cell_step_is_a_step_of_the_layer(nonlinearity: str) -> None:
    x, h, w_ih, w_hh = torch.randn(4, 8), torch.randn(4, 16), torch.randn(16, 8), torch.randn(16, 16) / 4
    b = torch.randn(16)
    one = rnn.rnn_cell_forward(LAUNCHER, x, h, w_ih, w_hh, b, None, nonlinearity, "ieee")
    z = (x @ w_ih.T + b)[None]
    other = rnn.rnn_forward(LAUNCHER, z, w_hh[None], h[None], RnnOptions(None, None, nonlinearity, "ieee"))[0]
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("variant", "H", "dtype", "precision"),
    [
        ("single_block", 160, torch.float32, "tf32"),
        ("single_block", 112, torch.float32, "ieee"),
        ("single_block", 80, torch.float64, "ieee"),
        ("grid_exchange", 320, torch.float32, "ieee"),
        ("grid_exchange", 320, torch.float64, "ieee"),
        ("cluster", 320, torch.float32, "ieee"),
    ],
    indirect=["variant"],
)
def test_w_overflows_registers(variant: str, H: int, dtype: torch.dtype, precision: str) -> None:
    launcher = Resized(5)
    Case(2, 2, H, 1, dtype).check("tanh", precision, launcher)
    sizes = {plan.config.shared_bytes for plan in launcher.plans}
    small = Resized(5)
    Case(2, 2, 16, 1, dtype).run("tanh", precision, small)
    assert min(sizes) > 1.5 * max(plan.config.shared_bytes for plan in small.plans)


@pytest.mark.parametrize("variant", VARIANTS, indirect=True)
@pytest.mark.parametrize("seeds", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_same_bits_under_any_schedule(variant: str, seeds: int, device: torch.device) -> None:
    case = Case(4, 17, 48, 2, torch.bfloat16, [4, 1, 0, 3, 2, 4, 4, 1, 2, 3, 4, 4, 4, 4, 4, 4, 2])
    reseed = cuda.kernel_object("cpu").library.torch_unroll_emulator_seed if device.type == "cpu" else lambda _: None
    results = []
    for seed in range(seeds):
        reseed(ctypes.c_uint64(seed))
        results.append(case.run("tanh", "ieee", Resized(6)))
    for result in results[1:]:
        for one, other in zip(result, results[0], strict=True):
            assert torch.equal(one.view(torch.int16), other.view(torch.int16))
