"""Launches every row of the kernel tables of pooling and recurrence, even those that are selected only if they are forced.

Pooling is compared with engine `torch`, and each step of a recurrence with the same step in float64. test_conv2d_kernels.py
launches convolution's rows.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from torch_unroll.engines import load
from torch_unroll.engines.compiled.recording import recording
from torch_unroll.engines.cuda import LAUNCHER
from torch_unroll.engines.interface import Pool2dGeometry, RnnOptions
from torch_unroll.kernels.cuda.max_pool2d.variants import SELECTORS as POOLING_SELECTORS
from torch_unroll.kernels.cuda.rnn.parameters import RnnCellParameters, RnnParameters
from torch_unroll.kernels.cuda.rnn.problem import CellStep, Recurrence
from torch_unroll.kernels.cuda.rnn.variants import PARAMETERS, SELECTORS
from torch_unroll.kernels.dtypes import CPP_TYPES
from torch_unroll.kernels.planning import Configuration, force
from torch_unroll.kernels.table import Kernel, kernels
from torch_unroll.shapes import dtype_name
from torch_unroll.testing import assert_exact
from torch_unroll.testing.recurrence import assert_backward_steps, assert_cell, assert_cell_backward, assert_forward_steps

pytestmark = pytest.mark.usefixtures("device")
TYPES = {cpp: getattr(torch, name) for name, cpp in CPP_TYPES.items()} | {"tfloat32": torch.float32}


def _id(row: Kernel) -> str:
    return row.expression


RECURRENT = [row for row in kernels("rnn") if PARAMETERS[row.name] is RnnParameters]
CELLS = [row for row in kernels("rnn") if PARAMETERS[row.name] is RnnCellParameters]
NARROW, WIDE = 3, 9  # numbers of samples: they fill one column tile (of 8 samples), and more than one


def _launching(row: Kernel, function: str, problem: Any, device: torch.device) -> tuple[Configuration, int]:
    """Returns the configuration that launches a row for a problem, and the number of samples that the problem then has."""
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
        dtype=dtype_name(dtype),
        precision=precision,
        aligned=True,
    )
    configuration, N = _launching(row, function, problem, torch.get_default_device())
    z, dh = (torch.randn(T, N, D * H).to(dtype) for _ in range(2))
    w, h0 = (torch.randn(D, H, H) / H**0.5).to(dtype), torch.randn(D, N, H).to(dtype)
    ours, reference = load("cuda"), load("torch")
    arguments = (w, h0, RnnOptions(None, None, "tanh", precision))
    h = reference.rnn_forward(z, *arguments)
    with recording() as recorded, force(function, configuration):
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
    problem = CellStep(backward=backward, N=NARROW, I=inputs, H=H, dtype=dtype_name(dtype), precision=precision)
    configuration, N = _launching(row, function, problem, torch.get_default_device())
    x, h, dh = ((torch.randn(N, extent)).to(dtype) for extent in (inputs, H, H))
    w_ih, w_hh = ((torch.randn(H, extent) / extent**0.5).to(dtype) for extent in (inputs, H))
    ours, reference = load("cuda"), load("torch")
    following = reference.rnn_cell_forward(x, h, w_ih, w_hh, None, None, "tanh", precision)
    with recording() as recorded, force(function, configuration):
        if backward:
            arguments = (dh, following, w_ih, w_hh, "tanh", precision)
            assert_cell_backward(ours.rnn_cell_backward(*arguments), *arguments)
        else:
            h_next = ours.rnn_cell_forward(x, h, w_ih, w_hh, None, None, "tanh", precision)
            assert_cell(h_next, x, h, w_ih, w_hh, (), "tanh", precision)
    assert row in {plan.kernel for _, plan in recorded.launches}


#: C++ type of the offsets -> (R, S) of a window whose number of cells needs that type.
WINDOWS = {"uint8_t": (3, 2), "int16_t": (20, 20), "int32_t": (182, 181)}


class PoolingCall(NamedTuple):
    """A call that launches a row."""

    function: str
    x: Tensor
    geometry: Pool2dGeometry


def _pooling_call(row: Kernel) -> PoolingCall:
    """Returns a call that launches the row. Its input has ties. Only the window of `split` covers the plane."""
    direction = row.name.removeprefix("max_pool2d_").partition("_")[0]
    dtype = TYPES.get(row.arguments[0], torch.float32)
    offset_type = next(argument for argument in row.arguments if argument in WINDOWS)
    R, S, step = (*WINDOWS[offset_type], 1)
    if fixed := re.fullmatch(r"FixedWindow<(\d), (\d), (\d)>", row.arguments[-1]):
        R, S, step = map(int, fixed.groups())
    (H, W), stride = (R + 2, S + 1), (step, step)
    if "split" in row.name:  # `split` accepts tall windows only
        R, S = (200, 1) if offset_type == "uint8_t" else (R, S)
        (H, W), stride = (R, S), (R, S)
    in_pieces = "channels" in row.name or ("split" in row.name and row.arguments[-1] != "1")
    x = torch.randint(-4, 5, (1, 16 // dtype.itemsize if in_pieces else 1, H, W)).to(dtype)
    if in_pieces:
        x = x.contiguous(memory_format=torch.channels_last)
    return PoolingCall(f"max_pool2d_{direction}", x, Pool2dGeometry((R, S), stride, (0, 0), (1, 1)))


@pytest.mark.parametrize("row", kernels("max_pool2d"), ids=_id)
def test_pooling(row: Kernel) -> None:
    function, x, geometry = _pooling_call(row)
    variant = row.name.removeprefix(f"{function}_").removesuffix("_kernel")
    ours, reference = load("cuda"), load("torch")
    y, offsets = reference.max_pool2d_forward(x, geometry, False, True)
    arguments: dict[str, tuple[Any, ...]] = {
        "max_pool2d_forward": (x, geometry, False, True),
        "max_pool2d_backward": (torch.randint(-3, 4, y.shape).to(x.dtype), offsets, x.shape[2:], geometry),
        "max_pool2d_gather": (x, offsets, geometry),
        "max_pool2d_indices": (offsets, x.shape[2:], geometry),
    }
    variants = POOLING_SELECTORS[function].by_name
    with recording() as recorded, force(function, variant if variant in variants else None):
        results = getattr(ours, function)(*arguments[function])
    if function == "max_pool2d_forward":
        assert_exact(results[0], y)
        assert_exact(results[1], offsets)
    else:
        assert_exact(results, getattr(reference, function)(*arguments[function]))
    assert row.expression in {plan.kernel.expression for _, plan in recorded.launches}
