"""dgrad with infinite and NaN weights at taps that may lie outside dy, on engine `numba` in the simulator.

test_in_simulator.py runs these tests.
"""

from __future__ import annotations

import pytest
import torch

from torch_unroll.engines import load
from torch_unroll.engines.interface import Conv2dGeometry
from torch_unroll.testing import assert_exact

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("dtype", "weight"),
    [
        (torch.float16, INF),
        (torch.bfloat16, NAN),
        (torch.float32, INF),
        (torch.float32, -INF),
        (torch.float32, NAN),
        (torch.float64, -INF),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"),
    [((1, 1), (1, 1), (1, 1), 1), ((2, 1), (1, 2), (1, 2), 2), ((1, 1), (0, 0), (1, 1), 1)],
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy warns of products that are NaN
def test_dx_is_nan_where_torchs_is(
    weight: float,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    dtype: torch.dtype,
) -> None:
    x, w = torch.randint(-1, 2, (1, 2, 4, 4)).to(dtype), torch.ones(2, 2 // groups, 3, 2, dtype=dtype)
    w[0, 0, 0, 0], w[1, 0, 2, 1] = weight, INF
    geometry = (Conv2dGeometry(stride, (padding[0], padding[0], padding[1], padding[1]), dilation, groups), "ieee")
    dy = torch.ones_like(load("torch").conv2d_fprop(x, w, None, *geometry))
    dy[0, 1, 1, 1] = 0
    args = (stride, padding, dilation, False, (0, 0), groups, (True, False, False))
    expected = torch.ops.aten.convolution_backward(dy.double(), x.double(), w.double(), None, *args)[0].to(dtype)
    assert not expected.isnan().all()
    assert_exact(load("numba").conv2d_dgrad(dy, w, (4, 4), *geometry), expected)
