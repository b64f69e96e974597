"""Launches every row of the kernel tables of pooling and recurrence, even those that nothing selects on a device of this size.

Results are compared with engine `torch`. (test_conv2d_kernels.py launches convolution's rows.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from torch_unroll.engines import load
from torch_unroll.engines.compiled import rnn as host
from torch_unroll.engines.compiled.recording import recording
from torch_unroll.engines.interface import Pool2dGeometry
from torch_unroll.kernels.cuda.max_pool2d.variants import SELECTORS as POOLING_SELECTORS
from torch_unroll.kernels.cuda.rnn import variants
from torch_unroll.kernels.dtypes import CPP_TYPES
from torch_unroll.kernels.planning import force
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
    caches = (variants.choose, variants._cut_grid_flags, variants._cut_cluster)
    for cached in caches:
        cached.cache_clear()
    yield
    host.forced = None
    for cached in caches:
        cached.cache_clear()


RECURRENT = [row for row in kernels("rnn") if "cell" not in row.name]
CELLS = [row for row in kernels("rnn") if "cell" in row.name]


@pytest.mark.usefixtures("_chosen_anew")
@pytest.mark.parametrize("row", RECURRENT, ids=_id)
def test_recurrence(row: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    math, direction, *tiles = row.arguments
    variant = row.name.removeprefix("rnn_").removesuffix("_kernel")
    N = 3
    if variant in ("grid_flags", "cluster"):
        monkeypatch.setattr(variants, f"{variant.upper()}_ROW_TILES", (int(tiles[0]),))
    elif variant == "step":
        N = 3 if tiles[0] == "1" else 9
    host.forced = variant
    D, T, H = 2, 3, 40
    z, dh = (torch.randn(T, N, D * H).to(TYPES[math]) for _ in range(2))
    w, h0 = (torch.randn(D, H, H) / H**0.5).to(TYPES[math]), torch.randn(D, N, H).to(TYPES[math])
    precision = "tf32" if math == "tfloat32" else "ieee"
    ours, reference = load("cuda"), load("torch")
    h = reference.rnn_forward(z, w, h0, None, None, "tanh", precision)
    arguments = (w, h0, None, None, "tanh", precision)
    with recording() as recorded:
        if "Forward" in direction:
            assert_forward_steps(ours.rnn_forward(z, *arguments), z, w, h0, [T] * N, "tanh", precision)
        else:
            assert_backward_steps(*ours.rnn_backward(dh, h, *arguments), dh, h, w, [T] * N, "tanh", precision)
    assert row.expression in {plan.kernel.expression for _, plan in recorded.launches}


@pytest.mark.parametrize("row", CELLS, ids=_id)
def test_cell(row: Kernel) -> None:
    math, tiles = row.arguments
    N, inputs, H = 3 if tiles == "1" else 9, 19, 21
    x, h, dh = ((torch.randn(N, extent)).to(TYPES[math]) for extent in (inputs, H, H))
    w_ih, w_hh = ((torch.randn(H, extent) / extent**0.5).to(TYPES[math]) for extent in (inputs, H))
    precision = "tf32" if math == "tfloat32" else "ieee"
    ours, reference = load("cuda"), load("torch")
    following = reference.rnn_cell_forward(x, h, w_ih, w_hh, None, None, "tanh", precision)
    with recording() as recorded:
        if "forward" in row.name:
            h_next = ours.rnn_cell_forward(x, h, w_ih, w_hh, None, None, "tanh", precision)
            assert_cell(h_next, x, h, w_ih, w_hh, (), "tanh", precision)
        else:
            arguments = (dh, following, w_ih, w_hh, "tanh", precision)
            assert_cell_backward(ours.rnn_cell_backward(*arguments), *arguments)
    assert row.expression in {plan.kernel.expression for _, plan in recorded.launches}


#: Windows whose number of cells needs offsets of one byte, two and four.
WINDOWS = {"uint8_t": (3, 2), "int16_t": (20, 20), "int32_t": (182, 181)}


class PoolingCall(NamedTuple):
    """A call that a row serves."""

    function: str
    x: Tensor
    geometry: Pool2dGeometry


def _pooling_call(row: Kernel) -> PoolingCall:
    """The input has ties, and planes that windows do not divide."""
    direction = row.name.removeprefix("max_pool2d_").partition("_")[0]
    dtype = TYPES.get(row.arguments[0], torch.float32)
    offset_type = next(argument for argument in row.arguments if argument in WINDOWS)
    R, S, step = (*WINDOWS[offset_type], 1)
    if fixed := re.fullmatch(r"FixedWindow<(\d), (\d), (\d)>", row.arguments[-1]):
        R, S, step = map(int, fixed.groups())
    (H, W), stride = (R + 2, S + 1), (step, step)
    if "split" in row.name:  # which serves tall windows only
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
