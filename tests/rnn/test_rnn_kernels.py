"""The recurrent kernels through their host functions, variant by variant, against the recurrence in float64."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from torch_unroll.engines import cuda
from torch_unroll.engines.compiled import Launcher, rnn
from torch_unroll.engines.interface import RnnOptions
from torch_unroll.kernels.cuda.rnn import variants
from torch_unroll.kernels.hardware import Device
from torch_unroll.kernels.table import LaunchPlan
from torch_unroll.testing.recurrence import (
    ACTIVATIONS,
    assert_backward_steps,
    assert_cell,
    assert_cell_backward,
    assert_forward_steps,
)

pytestmark = pytest.mark.usefixtures("device")

LAUNCHER = cuda.LAUNCHER
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
#: By arithmetic: a dtype and a precision.
MATHS = [pytest.param(dtype, "ieee", id=str(dtype).removeprefix("torch.")) for dtype in DTYPES]
MATHS.append(pytest.param(torch.float32, "tf32", id="tf32"))


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


class Resized:
    """The launcher, on a GPU that says it has more or fewer multiprocessors; blocks share those that there are."""

    def __init__(self, multiprocessors: int):
        self.multiprocessors = multiprocessors
        self.plans: list[LaunchPlan] = []

    def launch(self, plan: LaunchPlan, parameters: ctypes.Structure, device: torch.device) -> None:
        self.plans.append(plan)
        LAUNCHER.launch(plan, parameters, device)

    def properties(self, device: torch.device) -> Device:
        return replace(LAUNCHER.properties(device), multiprocessors=self.multiprocessors)


class Case:
    """Random inputs of one layer, rounded to a dtype, the same on every device; they lie on the default device."""

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
        """The kernels' h, dz and dh0."""
        arguments = (self.w, self.h0, RnnOptions(self.lengths_tensor, self.batch_sizes, nonlinearity, precision))
        h = rnn.rnn_forward(launcher, self.to_kernel(self.z), *arguments)
        return h, *rnn.rnn_backward(launcher, self.to_kernel(self.dh), h, *arguments)

    def check(self, nonlinearity: str, precision: str, launcher: Launcher = LAUNCHER) -> None:
        """Every step of both passes, judged on the CPU."""
        results = self.run(nonlinearity, precision, launcher)
        assert {result.device.type for result in results} == {self.z.device.type}
        h, dz, dh0 = (result.cpu() for result in results)
        h, dz = self.from_kernel(h), self.from_kernel(dz)
        z, w, h0, dh = (tensor.cpu() for tensor in (self.z, self.w, self.h0, self.dh))
        with torch.device("cpu"):
            assert_forward_steps(h, z, w, h0, self.lengths, nonlinearity, precision)
            assert_backward_steps(dz, dh0, dh, h, w, self.lengths, nonlinearity, precision)


VARIANTS = tuple(v.name for v in variants.VARIANTS)


@pytest.mark.parametrize("place", ["cpu", "meta"])
@pytest.mark.parametrize("options", [{}, {"lengths": [2, 1]}, {"lengths": [2, 1], "packed": True}], ids=str)
def test_inputs_lie_on_the_default_device(place: str, options: dict) -> None:
    with torch.device(place):
        case = Case(2, 2, 8, 2, torch.bfloat16, **options)
        round_trip = case.from_kernel(case.to_kernel(case.z))
        tensors = [case.z, case.w, case.h0, case.dh, case.lengths_tensor, round_trip]
    assert {tensor.device.type for tensor in tensors if tensor is not None} == {place}


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
@pytest.mark.parametrize("name", ["single_block", "cluster", "step"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_odd_sizes(variant: None, name: str, H: int, dtype: torch.dtype) -> None:
    rnn.forced = name
    Case(2, 3, H, 2, dtype).check("tanh", "ieee")


@pytest.mark.parametrize("name", VARIANTS)
def test_batch_first_is_a_matter_of_strides(variant: None, name: str) -> None:
    rnn.forced = name
    case = Case(3, 5, 32, 1, torch.float32)
    options = RnnOptions(None, None, "tanh", "ieee")
    plain = rnn.rnn_forward(LAUNCHER, case.z, case.w, case.h0, options)
    batch_first = case.z.transpose(0, 1).contiguous().transpose(0, 1)
    strided = rnn.rnn_forward(LAUNCHER, batch_first, case.w, case.h0, options)
    assert strided.stride() == batch_first.stride()
    assert torch.equal(strided, plain)
    expanded = case.dh[:, :1].expand(3, 5, 32)  # what a mean's gradient looks like
    expected = rnn.rnn_backward(LAUNCHER, expanded.contiguous(), plain, case.w, case.h0, options)
    actual = rnn.rnn_backward(LAUNCHER, expanded, strided, case.w, case.h0, options)
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", VARIANTS)
def test_slices_and_broken_alignment(variant: None, name: str) -> None:
    if name == "grid_flags":
        pytest.skip("refuses rows that do not start on 16 bytes")
    rnn.forced = name
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


@pytest.mark.parametrize("name", VARIANTS)
def test_nan_and_infinity_travel(variant: None, name: str) -> None:
    rnn.forced = name
    for dtype in (torch.bfloat16, torch.float32):
        case = Case(3, 3, 32, 1, dtype)
        payload = torch.full((1,), -1, dtype=torch.int16 if dtype == torch.bfloat16 else torch.int32).view(dtype)
        case.z[1, 0, 5] = payload[0]  # a NaN of all ones
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


@pytest.mark.parametrize("nonlinearity", variants.NONLINEARITIES)
def test_a_cell_step_is_a_step_of_the_layer(nonlinearity: str) -> None:
    x, h, w_ih, w_hh = torch.randn(4, 8), torch.randn(4, 16), torch.randn(16, 8), torch.randn(16, 16) / 4
    b = torch.randn(16)
    one = rnn.rnn_cell_forward(LAUNCHER, x, h, w_ih, w_hh, b, None, nonlinearity, "ieee")
    z = (x @ w_ih.T + b)[None]
    other = rnn.rnn_forward(LAUNCHER, z, w_hh[None], h[None], RnnOptions(None, None, nonlinearity, "ieee"))[0]
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("multiprocessors", "row_tiles", "groups"), [(1, "4", 1), (2, "2", 1), (4, "1", 1), (12, "1", 3)])
def test_grid_flags_cuts(variant: None, multiprocessors: int, row_tiles: str, groups: int) -> None:
    rnn.forced = "grid_flags"
    launcher = Resized(multiprocessors)
    Case(3, 20, 64, 1, torch.bfloat16).check("tanh", "ieee", launcher)
    for plan in launcher.plans:
        assert plan.kernel.arguments[-1] == row_tiles
        assert plan.config.grid == (64 // (16 * int(row_tiles)), groups, 1)


@pytest.mark.parametrize(
    ("multiprocessors", "H", "row_tiles", "size", "groups"), [(20, 64, "2", 2, 3), (20, 200, "4", 4, 3), (4, 66, "2", 4, 1)]
)
def test_cluster_cuts(variant: None, multiprocessors: int, H: int, row_tiles: str, size: int, groups: int) -> None:
    rnn.forced = "cluster"
    launcher = Resized(multiprocessors)
    Case(4, 20, H, 1, torch.bfloat16, [4, 1, 3, 2] * 5).check("tanh", "ieee", launcher)
    for plan in launcher.plans:
        assert plan.kernel.arguments[-1] == row_tiles
        assert plan.config.grid == (size, groups, 1)
        assert plan.config.cluster == (size, 1, 1)


@pytest.mark.parametrize(
    ("name", "H", "dtype", "precision"),
    [
        ("single_block", 160, torch.float32, "tf32"),
        ("single_block", 112, torch.float32, "ieee"),
        ("single_block", 80, torch.float64, "ieee"),
        ("grid_flags", 320, torch.float32, "ieee"),
        ("grid_flags", 320, torch.float64, "ieee"),
        ("cluster", 320, torch.float32, "ieee"),
    ],
)
def test_w_overflows_registers(variant: None, name: str, H: int, dtype: torch.dtype, precision: str) -> None:
    rnn.forced = name
    launcher = Resized(5)
    Case(2, 2, H, 1, dtype).check("tanh", precision, launcher)
    sizes = {plan.config.shared_bytes for plan in launcher.plans}
    small = Resized(5)
    Case(2, 2, 16, 1, dtype).run("tanh", precision, small)
    assert min(sizes) > 1.5 * max(plan.config.shared_bytes for plan in small.plans)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("seeds", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_same_bits_under_any_schedule(variant: None, name: str, seeds: int, device: torch.device) -> None:
    rnn.forced = name
    case = Case(4, 17, 48, 2, torch.bfloat16, [4, 1, 0, 3, 2, 4, 4, 1, 2, 3, 4, 4, 4, 4, 4, 4, 2])
    reseed = cuda.kernel_object("cpu").library.torch_unroll_emulator_seed if device.type == "cpu" else lambda _: None
    results = []
    for seed in range(seeds):
        reseed(ctypes.c_uint64(seed))
        results.append(case.run("tanh", "ieee", Resized(6)))
    for result in results[1:]:
        for one, other in zip(result, results[0], strict=True):
            assert torch.equal(one.view(torch.int16), other.view(torch.int16))


def test_the_table_chooses_and_explains(variant: None) -> None:
    def recurrence(H: int, N: int, dtype: str, aligned: bool = True) -> variants.Recurrence:
        return variants.Recurrence(False, 100, N, H, 1, dtype, "tf32", aligned, 132, (9, 0), 227 << 10)

    def chosen(*arguments: object) -> str:
        return variants.choose(recurrence(*arguments)).plans[0].variant  # type: ignore[arg-type]

    assert chosen(256, 64, "bfloat16") == "single_block"
    assert chosen(512, 32, "bfloat16") == "cluster"
    assert chosen(1536, 32, "bfloat16") == "grid_flags"
    assert chosen(2560, 64, "float32") == "grid_flags"
    assert chosen(1022, 32, "bfloat16", False) == "cluster"
    assert chosen(1534, 32, "bfloat16", False) == "step"
    assert chosen(8192, 32, "float32") == "step"
    choice = variants.choose(recurrence(8192, 32, "float32"))
    reasons = dict(choice.passed_over)
    assert "256 hidden units" in reasons["single_block"]
    assert "cluster of 16" in reasons["cluster"]
    assert "does not fit" in reasons["grid_flags"]
    assert [plan.variant for plan in choice.plans] == ["step"]
    older = variants.choose(replace(recurrence(64, 8, "float32"), capability=(8, 0)))
    assert "9.0, not 8.0" in dict(older.passed_over)["cluster"]
    with pytest.raises(RuntimeError, match="256 hidden units"):
        variants.choose(recurrence(8192, 32, "float32"), "single_block")


def test_a_grid_that_is_not_resident_takes_another_variant(variant: None) -> None:
    class Crowded(Resized):
        def properties(self, device: torch.device) -> Device:
            return replace(super().properties(device), resident=lambda plan: 0)

    rnn._residency.clear()
    launcher = Crowded(8)
    case = Case(2, 9, 320, 1, torch.float32)
    case.check("tanh", "ieee", launcher)
    assert {plan.variant for plan in launcher.plans} == {"step"}
    rnn.forced = "grid_flags"
    with pytest.raises(RuntimeError, match="do not fit"):
        case.run("tanh", "ieee", launcher)
    rnn._residency.clear()
