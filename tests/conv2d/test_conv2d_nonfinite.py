"""Infinities and NaN next to padding: dx is NaN exactly where torch's is.

dgrad leaves out taps that fall outside dy instead of multiplying them by zeros, so an infinite weight makes no NaN there. A zero
inside dy times infinity is NaN, however. fprop and wgrad multiply the padding of x as zeros, in torch as here.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import torch_unroll as tu
from torch_unroll.engines import load
from torch_unroll.engines.compiled.recording import recording
from torch_unroll.engines.interface import Conv2dGeometry
from torch_unroll.kernels import planning
from torch_unroll.kernels.planning import Configuration
from torch_unroll.shapes import dtype_name
from torch_unroll.testing import assert_exact

pytestmark = pytest.mark.usefixtures("device")

INF, NAN = float("inf"), float("nan")
FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
#: (variant or configuration, dtype, precision)
MATHS = [
    pytest.param(forced, dtype, precision, id=f"{forced}-{dtype_name(dtype)}-{precision}")
    for variants, kinds in (
        (
            (
                "wgmma",
                "mma",
                Configuration("wgmma", "64x256", 3),
                Configuration("wgmma", "128x128", 1),
                Configuration("mma", "64x64", 3),
            ),
            ((torch.float16, "ieee"), (torch.bfloat16, "ieee"), (torch.float32, "tf32")),
        ),
        (
            ("simt", "im2col", Configuration("simt", "64x64", 3)),
            ((torch.float16, "ieee"), (torch.bfloat16, "ieee"), (torch.float32, "ieee"), (torch.float64, "ieee")),
        ),
    )
    for forced in variants
    for dtype, precision in kinds
]


@dataclass(frozen=True)
class Case:
    x: tuple[int, int, int, int]
    w: tuple[int, int, int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def dy(self) -> tuple[int, int, int, int]:
        rows, columns = (
            (self.x[2 + i] + 2 * self.padding[i] - self.dilation[i] * (self.w[2 + i] - 1) - 1) // self.stride[i] + 1
            for i in (0, 1)
        )
        return (self.x[0], self.w[0], rows, columns)


CASES = {
    "3x3": Case((2, 8, 5, 4), (16, 8, 3, 3)),
    "odd channels": Case((1, 5, 4, 6), (7, 5, 2, 3), dilation=(2, 1)),
    "strided": Case((1, 8, 9, 7), (40, 8, 3, 4), stride=(2, 3), padding=(2, 1)),
    "dilated": Case((1, 8, 7, 6), (24, 8, 3, 2), padding=(3, 2), dilation=(3, 2)),
    "groups": Case((1, 32, 4, 5), (64, 16, 3, 3), groups=2),
    "residues without taps": Case((1, 8, 7, 7), (8, 8, 2, 1), stride=(4, 2), padding=(0, 1), dilation=(2, 1)),
    "several tiles": Case((1, 72, 9, 9), (16, 72, 3, 3)),
}


def small(*size: int) -> Tensor:
    """Returns a tensor of -1, 1 and 2: no sum of their products is rounded, and no element is zero."""
    return torch.tensor([-1.0, 1.0, 2.0])[torch.randint(3, size)]


def spoil(dy: Tensor, w: Tensor, kind: str) -> None:
    """Writes the infinities, NaN and zeros of a kind into dy and corners of w, which fall outside dy at the borders of dx."""
    if kind == "zeros in dy":
        dy[:, 1, 1:, :2] = 0
    if kind == "inf in dy":
        dy[0, 2, 0, 1], dy[0, 3, 1, 0] = INF, -INF
    if kind == "everything":
        dy[:, ::2, :, 1] = 0
        dy[0, 3, 1, 1] = NAN
        w[1, 3, 0, 0], w[2, 0, -1, -1], w[-1, 1, 0, -1] = INF, NAN, -INF
    if kind != "inf in dy":
        w[0, 0, 0, 0], w[1, 2, -1, 0] = {"inf": (INF, INF), "-inf": (-INF, INF), "nan": (NAN, INF)}.get(kind, (INF, -INF))


KINDS = ("inf", "-inf", "nan", "inf in dy", "zeros in dy", "everything")


def torchs(case: Case, dy: Tensor, w: Tensor) -> Tensor:
    """Returns torch's own dx in float64."""
    geometry = (case.stride, case.padding, case.dilation, False, (0, 0), case.groups, (True, False, False))
    x = torch.zeros(case.x, dtype=torch.float64)
    return torch.ops.aten.convolution_backward(dy.double(), x, w.double(), None, *geometry)[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("forced", "dtype", "precision"), MATHS)
def test_dx_is_nan_where_torchs_is(forced: str | Configuration, dtype: torch.dtype, precision: str, kind: str) -> None:
    for name, case in CASES.items():
        dy, w = small(*case.dy), small(*case.w)
        spoil(dy, w, kind)
        expected = torchs(case, dy, w).to(dtype)
        (top, left), size = case.padding, (case.x[2], case.x[3])
        geometry = (Conv2dGeometry(case.stride, (top, top, left, left), case.dilation, case.groups), precision)
        assert_exact(load("torch").conv2d_dgrad(dy.to(dtype), w.to(dtype), size, *geometry), expected, f"engine torch, {name}")
        for layout, memory_format in FORMATS.items():
            operands = (tensor.to(dtype).contiguous(memory_format=memory_format) for tensor in (dy, w))
            with planning.force("conv2d", forced):
                dx = load("cuda").conv2d_dgrad(*operands, size, *geometry)
            assert_exact(dx.contiguous(), expected, f"{name}, {layout}")


@pytest.mark.parametrize(
    "forced", [Configuration("wgmma", "64x256", 3), Configuration("mma", "64x64", 3), Configuration("simt", "64x64", 3)], ids=str
)
def test_each_split_leaves_out_its_own_padding(forced: Configuration) -> None:
    """Infinities of both signs in different splits add up to a NaN."""
    case = CASES["3x3"]
    dy, w = small(*case.dy).abs(), small(*case.w)
    w[0, :, 0, 0], w[15, :, 2, 2] = INF, -INF
    with planning.force("conv2d", forced), recording() as record:
        dx = load("cuda").conv2d_dgrad(dy.half(), w.half(), (5, 4), Conv2dGeometry((1, 1), (1, 1, 1, 1), (1, 1), 1), "ieee")
    expected = torchs(case, dy, w).half()
    assert {INF, -INF} <= {*expected.flatten().tolist()}
    assert expected.isnan().any()
    assert_exact(dx, expected)
    assert record.workspace_bytes >= forced.splits * dx.numel() * 4


@pytest.mark.parametrize("engine", ["cuda", "torch"])
@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("corner", [(0, 0), (0, 2), (1, 1), (2, 1)], ids=str)
def test_training_and_transposed_convolution(corner: tuple[int, int], padding: int, engine: str) -> None:
    x, w = torch.ones(1, 1, 4, 4, requires_grad=True), torch.ones(1, 1, 3, 3)
    w[0, 0, *corner] = INF
    y, expected = tu.conv2d(x, w, padding=padding, engine=engine), F.conv2d(x, w, padding=padding)
    dy = torch.ones_like(y)
    dx = torch.autograd.grad(y, x, dy)[0]
    assert not dx.isnan().any()
    assert_exact(dx, torch.autograd.grad(expected, x, dy)[0])
    transposed = tu.conv_transpose2d(dy, w, padding=padding, engine=engine)
    assert_exact(transposed, F.conv_transpose2d(dy, w, padding=padding))
