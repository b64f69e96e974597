"""Strides, paddings and dilations of any size: results are exact, or an error names the argument; no integer overflows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import torch_unroll as tu
from torch_unroll.engines import load
from torch_unroll.engines.compiled.conv2d_call import problem_of
from torch_unroll.engines.interface import DTYPES, Conv2dGeometry
from torch_unroll.kernels import planning
from torch_unroll.kernels.cuda.conv2d import wgmma_maps
from torch_unroll.kernels.cuda.conv2d.mma import MMA
from torch_unroll.kernels.cuda.conv2d.problem import Conv2dProblem
from torch_unroll.kernels.cuda.conv2d.simt import SIMT
from torch_unroll.kernels.cuda.conv2d.wgmma import WGMMA
from torch_unroll.kernels.hardware import Device
from torch_unroll.kernels.planning import Configuration
from torch_unroll.testing import assert_exact

pytestmark = pytest.mark.usefixtures("device")

ENGINES = ("cuda", "torch")
NUMBERS = (1, 2, 3, 7, 1000, 2**15, 2**29, 2**30, 2**31 - 1, 2**31, 2**32, 2**40)


@dataclass(frozen=True)
class Axis:
    """One dimension of a convolution that has few pixels, filter positions and outputs, however large its other numbers are."""

    extent: int
    taps: int
    stride: int
    padding: int
    dilation: int

    @property
    def outputs(self) -> int:
        return (self.extent + 2 * self.padding - self.dilation * (self.taps - 1) - 1) // self.stride + 1

    @property
    def left_over(self) -> int:
        """How many pixels, padding included, lie beyond the last window: the transposed convolution's output_padding."""
        return (self.extent + 2 * self.padding - self.dilation * (self.taps - 1) - 1) % self.stride

    @property
    def is_transposable(self) -> bool:
        """Whether `left_over` is an output_padding that torch allows: less than the stride or the dilation."""
        return self.left_over < max(self.stride, self.dilation)

    @property
    def numbers(self) -> tuple[int, int, int]:
        return self.stride, self.padding, self.dilation

    def meetings(self) -> Tensor:
        """Returns a tensor (outputs, taps, extent) of 0 and 1: 1 where an output's tap lies on a pixel. No number overflows."""
        cells = product(range(self.outputs), range(self.taps))
        places = [p * self.stride - self.padding + r * self.dilation for p, r in cells]
        met = [[float(place == pixel) for pixel in range(self.extent)] for place in places]
        return torch.tensor(met, dtype=torch.float64).view(self.outputs, self.taps, self.extent)

    @property
    def fits(self) -> bool:
        """Whether stride, padding and dilation are below 2^31.

        The stride of a single output and the dilation of a single tap do not count.
        """
        stride = self.stride if self.outputs > 1 else 1
        return max(stride, self.padding, self.dilation if self.taps > 1 else 1) < 2**31


#: All combinations of small extents, few taps and `NUMBERS` that have 1 to 8 outputs.
AXES = [
    axis
    for axis in (Axis(*numbers) for numbers in product((1, 2, 5), (1, 2, 3), NUMBERS, (0, *NUMBERS), NUMBERS))
    if 1 <= axis.outputs <= 8
]


def integers(*size: int, dtype: torch.dtype) -> Tensor:
    """Returns integers so small that every sum of their products is exact."""
    generator = torch.Generator().manual_seed(sum(size))
    return torch.randint(-2, 3, size, generator=generator).to(dtype)


@dataclass(frozen=True)
class Op:
    """One of the four functions: the sizes of its inputs, the einsum that defines it, and its call in a module such as F."""

    sizes: Callable[[Axis, Axis], list[tuple[int, ...]]]
    sum: str
    call: Callable[..., Tensor]

    def inputs(self, vertical: Axis, horizontal: Axis, dtype: torch.dtype) -> list[Tensor]:
        return [integers(*size, dtype=dtype) for size in self.sizes(vertical, horizontal)]

    def exact(self, inputs: list[Tensor], vertical: Axis, horizontal: Axis) -> list[Tensor]:
        """Returns the output and every gradient, computed by the einsum in float64."""
        meetings = (vertical.meetings(), horizontal.meetings())

        def call(*leaves: Tensor) -> Tensor:
            first = leaves[0]
            if self.sum.startswith("ncrspq"):
                first = first.view(2, 3, vertical.taps, horizontal.taps, vertical.outputs, horizontal.outputs)
            y = torch.einsum(self.sum, first, *leaves[1:], *meetings)
            return y.reshape(2, -1, vertical.outputs * horizontal.outputs) if self.sum.endswith("ncrspq") else y

        return [exact.to(inputs[0].dtype) for exact in with_gradients(call, [tensor.double() for tensor in inputs])]


def with_gradients(call: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    y = call(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, integers(*y.shape, dtype=y.dtype))]


def _numbers(vertical: Axis, horizontal: Axis) -> dict[str, tuple[int, int]]:
    return {name: (getattr(vertical, name), getattr(horizontal, name)) for name in ("stride", "padding", "dilation")}


OPS = {
    "conv2d": Op(
        lambda v, h: [(2, 3, v.extent, h.extent), (2, 3, v.taps, h.taps)],
        "nchw,kcrs,prh,qsw->nkpq",
        lambda module, v, h: lambda x, w, **engine: module.conv2d(x, w, **_numbers(v, h), **engine),
    ),
    "conv_transpose2d": Op(
        lambda v, h: [(2, 2, v.outputs, h.outputs), (2, 3, v.taps, h.taps)],
        "nkpq,kcrs,prh,qsw->nchw",
        lambda module, v, h: (
            lambda y, w, **engine: module.conv_transpose2d(
                y, w, **_numbers(v, h), output_padding=(v.left_over, h.left_over), **engine
            )
        ),
    ),
    "unfold": Op(
        lambda v, h: [(2, 3, v.extent, h.extent)],
        "nchw,prh,qsw->ncrspq",
        lambda module, v, h: lambda x, **engine: module.unfold(x, (v.taps, h.taps), **_numbers(v, h), **engine),
    ),
    "fold": Op(
        lambda v, h: [(2, 3 * v.taps * h.taps, v.outputs * h.outputs)],
        "ncrspq,prh,qsw->nchw",
        lambda module, v, h: (
            lambda columns, **engine: module.fold(columns, (v.extent, h.extent), (v.taps, h.taps), **_numbers(v, h), **engine)
        ),
    ),
}


def check(name: str, engine: str, vertical: Axis, horizontal: Axis, dtype: torch.dtype) -> None:
    op = OPS[name]
    inputs, call = op.inputs(vertical, horizontal, dtype), op.call(tu, vertical, horizontal)
    if engine == "cuda" and not (vertical.fits and horizontal.fits):
        with pytest.raises(RuntimeError, match=r"(stride|padding|dilation): expected numbers below 2\^31, got \("):
            call(*inputs, engine=engine)
        return
    ours = with_gradients(partial(call, engine=engine), inputs)
    for mine, exact in zip(ours, op.exact(inputs, vertical, horizontal), strict=True):
        assert_exact(mine, exact, f"{name} {vertical} {horizontal}")
    if max(*vertical.numbers, *horizontal.numbers) > 2**15:
        return  # several of torch's own kernels overflow 32 bits
    for mine, its in zip(ours, with_gradients(op.call(F, vertical, horizontal), inputs), strict=True):
        assert_exact(mine, its, f"{name} {vertical} {horizontal} beside torch's")


NAMED = {
    "centre of three windows": Axis(7, 3, 2**32, 2**32, 1),
    "windows 2^30 apart": Axis(7, 3, 2**30, 2**30, 1),
    "one window": Axis(7, 3, 2**31 - 1, 0, 1),
    "one window, stride beyond 32 bits": Axis(7, 3, 2**40, 0, 1),
    "one window off the plane": Axis(7, 3, 2**40, 2**29, 1),
    "one filter row, dilation beyond 32 bits": Axis(7, 1, 2, 1, 2**40),
    "dilated by 2^29": Axis(7, 3, 1, 2**29, 2**29),
    "dilated by 2^31 - 1": Axis(7, 3, 1, 2**31 - 1, 2**31 - 1),
    "dilated by 2^40": Axis(7, 3, 1, 2**40, 2**40),
    "stride beyond the plane": Axis(7, 3, 1000, 1000, 1),
    "stride and dilation without a common divisor": Axis(5, 3, 2**30 - 1, 2**30, 2**30),
    "all of 31 bits": Axis(2, 2, 2**31 - 1, 2**31 - 1, 2**31 - 2),
}


CALLS = [
    pytest.param(op, axis, id=f"{op}-{name}")
    for op in OPS
    for name, axis in NAMED.items()
    if op != "conv_transpose2d" or axis.is_transposable
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("op", "axis"), CALLS)
def test_results_are_exact_or_refused(op: str, axis: Axis, engine: str) -> None:
    for dtype in DTYPES:
        check(op, engine, axis, axis, dtype)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("op", OPS)
def test_any_geometry_is_exact_or_refused(op: str, engine: str) -> None:
    axes = st.sampled_from([axis for axis in AXES if op != "conv_transpose2d" or axis.is_transposable])

    @settings(max_examples=50)
    @given(axes, axes, st.sampled_from((torch.float16, torch.float32)))
    def run(vertical: Axis, horizontal: Axis, dtype: torch.dtype) -> None:
        check(op, engine, vertical, horizontal, dtype)

    run()


# ---- variants at the limits of their 32-bit positions -------------------------------------------------------------------------


DIRECTIONS = ("fprop", "dgrad", "wgrad")
#: name -> an axis whose windows or filter rows lie as far from the plane as the positions of simt and mma reach, or further, and
#: the directions in which these variants accept it.
EDGES = {
    "windows": (Axis(3, 2, 2**30 - 1, 2**30 - 1, 1), DIRECTIONS),
    "windows, one further": (Axis(3, 2, 2**30, 2**30, 1), ("dgrad",)),
    "filter rows": (Axis(3, 3, 1, 2**29 - 1, 2**29 - 1), DIRECTIONS),
    "filter rows, one further": (Axis(3, 3, 1, 2**29, 2**29), ()),
    "filter rows that every second output meets": (Axis(3, 3, 2, 2**29, 2**29), ("dgrad",)),
    "filter rows, twice as far": (Axis(3, 3, 2, 2**30, 2**30), ()),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("variant", ["mma", "simt", "im2col"])
@pytest.mark.parametrize("name", EDGES)
def test_variants_count_as_far_as_they_say(name: str, variant: str, dtype: torch.dtype) -> None:
    if (variant, dtype) == ("mma", torch.float64):
        return
    axis, directions = EDGES[name]
    op, numbers = OPS["conv2d"], (Conv2dGeometry((axis.stride,) * 2, (axis.padding,) * 4, (axis.dilation,) * 2, 1), "ieee")
    x, w = inputs = op.inputs(axis, axis, dtype)
    y, dx, dw = op.exact(inputs, axis, axis)
    dy, engine = integers(*y.shape, dtype=dtype), load("cuda")
    calls = {
        "fprop": (y, lambda: engine.conv2d_fprop(x, w, None, *numbers)),
        "dgrad": (dx, lambda: engine.conv2d_dgrad(dy, w, (x.shape[2], x.shape[3]), *numbers)),
        "wgrad": (dw, lambda: engine.conv2d_wgrad(dy, x, (w.shape[2], w.shape[3]), *numbers)),
    }
    with planning.force("conv2d", variant):
        for direction, (expected, call) in calls.items():
            if variant == "im2col" or direction in directions:
                assert_exact(call(), expected, direction)
            else:
                with pytest.raises(RuntimeError, match="reach over more pixels than its 32-bit positions"):
                    call()


# ---- large strides, and numbers without effect --------------------------------------------------------------------------------


def square(direction: str, axis: Axis, dtype: torch.dtype = torch.float16) -> Conv2dProblem:
    """Returns a convolution of eight channels and one filter, with the same axis in both dimensions."""
    x, w = (torch.empty(1, 8, extent, extent, dtype=dtype) for extent in (axis.extent, axis.taps))
    y = torch.empty(1, 1, axis.outputs, axis.outputs, dtype=dtype)
    geometry = Conv2dGeometry((axis.stride,) * 2, (axis.padding,) * 4, (axis.dilation,) * 2, 1)
    return problem_of(direction, x, w, y, geometry, "ieee")


@pytest.mark.parametrize(
    ("axis", "residues"),
    [
        (Axis(7, 3, 1000, 1000, 1), 7),
        (Axis(7, 3, 8, 4, 1), 7),
        (Axis(7, 3, 7, 4, 1), 7),
        (Axis(7, 3, 6, 4, 1), 6),
        (Axis(2, 3, 3, 4, 1), 2),
        (Axis(5, 2, 2**31 - 1, 2**31 - 1, 1), 5),
        (Axis(7, 3, 1000, 0, 1), 1),
    ],
    ids=str,
)
def test_dgrad_has_no_more_residues_than_pixels(axis: Axis, residues: int) -> None:
    problem, device = square("dgrad", axis), Device(132, (9, 0), 227 << 10, 50 << 20)
    for variant in (SIMT, MMA):
        assert variant.plan(problem, Configuration(variant.name, "64x64"), device).launch.config.grid[0] == residues**2
    assert WGMMA.plan(problem, Configuration("wgmma", "128x64"), device).tiles == residues**2
    assert len(wgmma_maps.images(problem)) == residues**2


@pytest.mark.parametrize("variant", ["wgmma", "mma", "simt", "im2col"])
@pytest.mark.parametrize("axis", [Axis(2, 3, 3, 2, 1), Axis(3, 2, 5, 3, 4), Axis(1, 3, 4, 4, 2), Axis(4, 3, 4, 3, 1)], ids=str)
def test_strides_beyond_the_plane(axis: Axis, variant: str) -> None:
    op, numbers = OPS["conv2d"], (Conv2dGeometry((axis.stride,) * 2, (axis.padding,) * 4, (axis.dilation,) * 2, 1), "ieee")
    inputs = op.inputs(axis, axis, torch.float16)
    dy = integers(2, 2, axis.outputs, axis.outputs, dtype=torch.float16)
    with planning.force("conv2d", variant):
        dx = load("cuda").conv2d_dgrad(dy, inputs[1], (axis.extent, axis.extent), *numbers)
    assert_exact(dx, op.exact(inputs, axis, axis)[1])


@pytest.mark.parametrize(
    ("axis", "same"),
    [
        (Axis(7, 3, 2**40, 0, 1), Axis(7, 3, 1, 0, 1)),
        (Axis(7, 3, 6, 0, 1), Axis(7, 3, 1, 0, 1)),
        (Axis(7, 1, 3, 1, 2**40), Axis(7, 1, 3, 1, 1)),
        (Axis(1, 1, 5, 0, 5), Axis(1, 1, 1, 0, 1)),
    ],
    ids=str,
)
def test_numbers_without_a_meaning_are_one(axis: Axis, same: Axis) -> None:
    problem = square("fprop", axis)
    assert (problem.stride, problem.dilation) == ((same.stride,) * 2, (same.dilation,) * 2)
