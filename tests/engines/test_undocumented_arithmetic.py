"""Runs kernels for tensor cores and TMA on the emulator in its truncating mode.

How the hardware rounds sums and conversions from fp32 to TF32 is not documented, so the bounds of the tests must hold
for truncation as well as for rounding. Other tests of the ops run with the emulator's default, which rounds to nearest.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.conv2d import test_conv2d_kernels
from tests.conv2d.test_conv2d_kernels import CASES, MATHS
from tests.engines import test_kernel_rows
from tests.rnn import test_rnn_kernels
from torch_unroll.engines import cuda
from torch_unroll.engines.interface import Conv2dGeometry
from torch_unroll.kernels import planning
from torch_unroll.kernels.planning import Configuration
from torch_unroll.kernels.table import Kernel

pytestmark = pytest.mark.skipif(not cuda.library_path("cpu").exists(), reason="python kernels/build.py emulated")

ON_TENSOR_CORES = ("half", "bfloat16", "tfloat32")
QUICK = ("several tiles", "strided", "groups")


@pytest.fixture(autouse=True)
def truncating() -> Iterator[None]:
    choose = cuda.kernel_object("cpu").library.torch_unroll_emulator_arithmetic
    before = choose(1, 1)
    yield
    choose(before & 1, before >> 1)


def test_the_mode_reaches_the_kernels() -> None:
    """Adds 0.75 units in the last place to 1: truncation drops the addend, rounding does not."""
    x, w = torch.tensor([1.0, 1.5 * 2.0**-12]).bfloat16().view(1, 2, 1, 1), torch.tensor([1.0, 2.0**-12]).bfloat16()
    bias = torch.tensor([-1.0]).bfloat16()
    results = []
    for addition in (0, 1):
        cuda.kernel_object("cpu").library.torch_unroll_emulator_arithmetic(addition, -1)
        geometry = (Conv2dGeometry((1, 1), (0, 0, 0, 0), (1, 1), 1), "ieee")
        with planning.force("conv2d", "mma"):
            y = test_conv2d_kernels.conv2d.conv2d_fprop(cuda.LAUNCHER, x, w.view(1, 2, 1, 1), bias, *geometry)
        results.append(y.item())
    assert results == [2.0**-23, 0.0]


@pytest.mark.parametrize("layout", ["channels_last", pytest.param("nchw", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("variant", "dtype", "precision"), [math for math in MATHS if "mma" in str(math.id)])
@pytest.mark.parametrize("name", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES])
def test_convolution(name: str, variant: str | Configuration, dtype: torch.dtype, precision: str, layout: str) -> None:
    test_conv2d_kernels.test_results_are_as_accurate_as_their_arithmetic(name, variant, dtype, precision, layout)


@pytest.mark.parametrize(
    "row", [row for row in test_kernel_rows.RECURRENT if row.arguments[0] in ON_TENSOR_CORES], ids=lambda row: row.expression
)
def test_recurrence(row: Kernel) -> None:
    test_kernel_rows.test_recurrence(row)


@pytest.mark.parametrize(
    "row", [row for row in test_kernel_rows.CELLS if row.arguments[0] in ON_TENSOR_CORES], ids=lambda row: row.expression
)
def test_cell(row: Kernel) -> None:
    test_kernel_rows.test_cell(row)


@pytest.mark.slow
@pytest.mark.parametrize("name", test_rnn_kernels.VARIANTS)
@pytest.mark.parametrize(
    ("dtype", "precision"),
    [math for math in test_rnn_kernels.MATHS if math.id in ("float16", "bfloat16", "tf32")],
)
def test_longer_recurrences(name: str, dtype: torch.dtype, precision: str) -> None:
    options: dict[str, Any] = {"dtype": dtype, "precision": precision}
    with planning.force("rnn", name):
        test_rnn_kernels.test_both_directions_of_unequal_samples(name, **options)
        test_rnn_kernels.test_packed(name, **options)
