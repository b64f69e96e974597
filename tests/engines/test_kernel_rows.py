"""Every row of the kernel tables of pooling and recurrence is launched, also those that are not selected on a GPU of this size,
and its results agree with those of engine `torch`. (test_conv2d_kernels.py launches convolution's rows.)"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from torch_unroll.engines import load
from torch_unroll.engines.compiled.recording import recording
from torch_unroll.engines.cuda import LAUNCHER
from torch_unroll.kernels import planning
from torch_unroll.kernels.cuda.max_pool2d import variants as pooling_variants
from torch_unroll.kernels.cuda.rnn.parameters import RnnCellParameters, RnnParameters
from torch_unroll.kernels.cuda.rnn.problem import CellStep, Recurrence
from torch_unroll.kernels.cuda.rnn.variants import PARAMETERS, SELECTORS
from torch_unroll.kernels.dtypes import CPP_TYPES
from torch_unroll.kernels.planning import Configuration
from torch_unroll.kernels.table import Kernel, kernels
from torch_unroll.testing import assert_exact
from torch_unroll.testing.recurrence import assert_backward_steps, assert_cell, assert_cell_backward, assert_forward_steps

pytestmark = pytest.mark.usefixtures("device")
TYPES = {cpp: getattr(torch, name) for name, cpp in CPP_TYPES.items()} | {"tfloat32": torch.float32}


def _id(row: Kernel) -> str:
    return row.expression


@pytest.fixture
def _chosen_anew() -> Iterator[None]:
    """Plans made while a test forces something are forgotten with it."""
    caches = (pooling_variants.forward_plan, pooling_variants.backward_plan)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


RECURRENT = [row for row in kernels("rnn") if PARAMETERS[row.name] is RnnParameters]
CELLS = [row for row in kernels("rnn") if PARAMETERS[row.name] is RnnCellParameters]
NARROW, WIDE = 3, 9  # samples: one column tile, and more than one


def _launching(row: Kernel, function: str, problem: Any, device: torch.device) -> tuple[Configuration, int]:
    """Returns the configuration that launches a row for a problem, and the number of samples that it takes."""
    selector, gpu = SELECTORS[function], LAUNCHER.properties(device)
    for N in (NARROW, WIDE):
        sized = problem._replace(N=N)
        for configuration in selector.configurations(sized, gpu):
            if selector.variant(configuration.variant).plan(sized, configuration, gpu).kernel == row:
                return configuration, N
    raise AssertionError(f"no configuration of {function} launches {row.expression}")


@pytest.mark.parametrize("row", RECURRENT, ids=_id)
def test_recurrence(row: Kernel) -> None:
    math, backward = row.arguments[0], row.arguments[1].startswith("Backward")
    function = "rnn_backward" if backward else "rnn_forward"
    dtype, precision = TYPES[math], "tf32" if math == "tfloat32" else "ieee"
    D, T, H = 2, 3, 40
    problem = Recurrence(
        backward=backward,
        T=T,
        N=NARROW,
        H=H,
        D=D,
        dtype=str(dtype).removeprefix("torch."),
        precision=precision,
        aligned=True,
    )
    configuration, N = _launching(row, function, problem, torch.get_default_device())
    z, dh = (torch.randn(T, N, D * H).to(dtype) for _ in range(2))
    w, h0 = (torch.randn(D, H, H) / H**0.5).to(dtype), torch.randn(D, N, H).to(dtype)
    ours, reference = load("cuda"), load("torch")
    arguments = (w, h0, None, None, "tanh", precision)
    h = reference.rnn_forward(z, *arguments)
    with recording() as recorded, planning.force(function, configuration):
        if backward:
            assert_backward_steps(*ours.rnn_backward(dh, h, *arguments), dh, h, w, [T] * N, "tanh", precision)
        else:
            assert_forward_steps(ours.rnn_forward(z, *arguments), z, w, h0, [T] * N, "tanh", precision)
    assert row in {plan.kernel for _, plan in recorded.launches}


@pytest.mark.parametrize("row", CELLS, ids=_id)
def test_cell(row: Kernel) -> None:
    math, backward = row.arguments[0], "backward" in row.name
    function = "rnn_cell_backward" if backward else "rnn_cell_forward"
    dtype, precision = TYPES[math], "tf32" if math == "tfloat32" else "ieee"
    inputs, H = 19, 21
    problem = CellStep(backward=backward, N=NARROW, I=inputs, H=H, dtype=str(dtype).removeprefix("torch."), precision=precision)
    configuration, N = _launching(row, function, problem, torch.get_default_device())
    x, h, dh = ((torch.randn(N, extent)).to(dtype) for extent in (inputs, H, H))
    w_ih, w_hh = ((torch.randn(H, extent) / extent**0.5).to(dtype) for extent in (inputs, H))
    ours, reference = load("cuda"), load("torch")
    following = reference.rnn_cell_forward(x, h, w_ih, w_hh, None, None, "tanh", precision)
    with recording() as recorded, planning.force(function, configuration):
        if backward:
            arguments = (dh, following, w_ih, w_hh, "tanh", precision)
            assert_cell_backward(ours.rnn_cell_backward(*arguments), *arguments)
        else:
            h_next = ours.rnn_cell_forward(x, h, w_ih, w_hh, None, None, "tanh", precision)
            assert_cell(h_next, x, h, w_ih, w_hh, (), "tanh", precision)
    assert row in {plan.kernel for _, plan in recorded.launches}


#: Windows whose number of cells asks for offsets of one byte, two and four.
WINDOWS = {"uint8_t": (3, 2), "int16_t": (20, 20), "int32_t": (182, 181)}
PLAIN = [
    row for row in kernels("max_pool2d") if any(name in row.name for name in ("strided", "flat", "split", "gather", "indices"))
]


def _pooled(kind: str, dtype: torch.dtype, cells: str, channels: int) -> tuple[Tensor, tuple[Any, ...]]:
    """An input and a window; ties, and planes that the window does not divide."""
    R, S = (200, 1) if kind == "split" and cells == "uint8_t" else WINDOWS[cells]  # split serves tall windows
    extent = (R, S) if kind == "split" else (R + 2, S + 1)
    x = torch.randint(-4, 5, (1, channels, *extent)).to(dtype)
    return x, ((R, S), (R, S) if kind == "split" else (1, 1), (0, 0), (1, 1))


@pytest.mark.usefixtures("_chosen_anew")
@pytest.mark.parametrize("row", PLAIN, ids=_id)
def test_pooling(row: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = next(argument for argument in row.arguments if argument in WINDOWS)
    dtype = TYPES.get(row.arguments[0], torch.float32)
    kind = row.name.removeprefix("max_pool2d_").removesuffix("_kernel").rpartition("_")[2]
    wide = kind == "split" and row.arguments[2] != "1"
    x, window = _pooled(kind, dtype, cells, 16 // dtype.itemsize if wide else 1)
    if wide:
        x = x.contiguous(memory_format=torch.channels_last)
    if kind == "strided":
        monkeypatch.setattr(pooling_variants, "_FORWARD", {"strided": pooling_variants._strided})
    if kind == "flat":
        monkeypatch.setattr(pooling_variants, "_BACKWARD", {"flat": pooling_variants._flat})
    ours, reference = load("cuda"), load("torch")
    y, offsets = reference.max_pool2d_forward(x, *window, False, True)
    with recording() as recorded:
        if kind in ("strided", "split"):
            for result, wanted in zip(ours.max_pool2d_forward(x, *window, False, True), (y, offsets), strict=True):
                assert_exact(result, wanted)
        elif kind == "flat":
            dy = torch.randint(-3, 4, y.shape).to(dtype)
            assert_exact(
                ours.max_pool2d_backward(dy, offsets, x.shape[2:], *window),
                reference.max_pool2d_backward(dy, offsets, x.shape[2:], *window),
            )
        elif kind == "gather":
            assert_exact(ours.max_pool2d_gather(x, offsets, *window), reference.max_pool2d_gather(x, offsets, *window))
        else:
            indices = (offsets, x.shape[2:], *window)
            assert_exact(ours.max_pool2d_indices(*indices), reference.max_pool2d_indices(*indices))
    assert row.expression in {plan.kernel.expression for _, plan in recorded.launches}
