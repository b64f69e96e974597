"""The variant wgmma: the tensor maps that it gives to TMA, the problems that it leaves to others, its tiles,
and gradients of every order."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import torch_unroll as tu
from tests.conv2d.preferred import prefer
from tests.conv2d.problems import square_problem
from tests.gpus import H200
from torch_unroll.engines import cuda, cupy
from torch_unroll.engines.compiled.recording import recording
from torch_unroll.kernels.cuda.conv2d import wgmma
from torch_unroll.kernels.cuda.conv2d.problem import Conv2dProblem
from torch_unroll.kernels.cuda.conv2d.wgmma import WGMMA
from torch_unroll.kernels.cuda.conv2d.wgmma_maps import Image, dgrad_axis, filter_map, fprop_axis, image_map, unshifted
from torch_unroll.kernels.hardware import Device
from torch_unroll.kernels.tensor_map import TensorMapSpec
from torch_unroll.testing import assert_exact

IMAGE = image_map(
    "bfloat16", (2, 64, 9, 7), (4032, 1, 448, 64), Image(fprop_axis(5, 3, 2, 1, 1), fprop_axis(7, 3, 1, 1, 1)), 64, 128, 4096
)
FILTER = filter_map("float32", (16, 32, 3, 3), (288, 1, 96, 32), 32, 128, 8192)

one_axis = st.tuples(st.integers(1, 12), st.integers(1, 6), st.integers(1, 4), st.integers(0, 8), st.integers(1, 3))


def meetings(extent: int, taps: int, stride: int, pad: int, dilation: int) -> Iterator[tuple[int, int, int]]:
    """Yields input, output and filter position of every product along one dimension, by the definition of convolution."""
    outputs = (extent + 2 * pad - dilation * (taps - 1) - 1) // stride + 1
    for p in range(outputs):
        for r in range(taps):
            if 0 <= (h := p * stride - pad + r * dilation) < extent:
                yield h, p, r


@given(one_axis)
def test_every_pixel_meets_every_filter_position_that_it_should(axis: tuple[int, int, int, int, int]) -> None:
    extent, taps, stride, pad, dilation = axis
    expected = set(meetings(*axis))
    outputs = (extent + 2 * pad - dilation * (taps - 1) - 1) // stride + 1
    if outputs < 1:
        return
    forth = fprop_axis(outputs, taps, stride, pad, dilation)
    met = {
        (forth.start + i * forth.up + t * forth.step, i, forth.first + t * forth.every)
        for i in range(forth.pixels)
        for t in range(forth.taps)
    }
    assert {meeting for meeting in met if 0 <= meeting[0] < extent} == expected
    assert forth.start + (forth.pixels - 1) * forth.up == extent - 1 + forth.upper(extent)

    met = set()
    for residue in range(stride):
        back = dgrad_axis(extent, taps, stride, pad, dilation, residue)
        met |= {
            (i * stride + back.residue, back.start + i * back.up + t * back.step, back.first + t * back.every)
            for i in range(back.pixels)
            for t in range(back.taps)
        }
        assert back.step >= 0, "an offset is never negative"
    assert {meeting for meeting in met if 0 <= meeting[1] < outputs} == expected


@pytest.mark.parametrize("spec", [IMAGE, FILTER], ids=["image", "filter"])
def test_both_launchers_pass_on_the_same_map(spec: TensorMapSpec) -> None:
    """Engine `cupy` passes to the driver the same numbers that engine `cuda` passes to its library."""
    driver = pytest.importorskip("cuda.bindings.driver")
    noted: dict[str, Any] = {}

    def note(name: str) -> Any:
        def encode(*arguments: Any) -> tuple[int, Any]:
            noted[name] = arguments
            return 0, SimpleNamespace(getPtr=lambda: ctypes.addressof(made))

        return encode

    made = (ctypes.c_uint8 * 128)(*range(128))
    names = (
        "CUtensorMapDataType",
        "CUtensorMapSwizzle",
        "CUtensorMapInterleave",
        "CUtensorMapL2promotion",
        "CUtensorMapFloatOOBfill",
    )
    stand_in = SimpleNamespace(
        **{name: getattr(driver, name) for name in (*names, "cuuint64_t", "cuuint32_t")},
        cuTensorMapEncodeIm2col=note("im2col"),
        cuTensorMapEncodeTiled=note("tiled"),
    )
    assert bytes(cupy.encode_tensor_map(stand_in, spec).bytes) == bytes(range(128))
    c = spec.struct()
    ((name, arguments),) = noted.items()
    assert name == ("im2col" if c.im2col else "tiled")
    dtype, rank, address, extent, stride, *rest = arguments
    assert dtype.name.removeprefix("CU_TENSOR_MAP_DATA_TYPE_") == ("FLOAT16", "BFLOAT16", "TFLOAT32")[c.type]
    assert (rank, address) == (4, c.address)
    assert [int(number) for number in extent] == list(c.extent)
    assert [int(number) for number in stride] == list(c.stride)
    if c.im2col:
        lower, upper, channels, pixels, element_stride, *rest = rest
        assert (lower, upper, channels, pixels) == (list(c.lower), list(c.upper), c.channels, c.pixels)
    else:
        box, element_stride, *rest = rest
        assert [int(number) for number in box] == list(c.box)
    assert [int(number) for number in element_stride] == list(c.element_stride)
    assert rest[1].name == f"CU_TENSOR_MAP_SWIZZLE_{c.swizzle}B"


@pytest.mark.skipif(
    not cuda.library_path("cuda").exists() or torch.cuda.is_available(), reason="a build on a machine without GPU"
)
def test_without_a_driver_the_encoder_says_so() -> None:
    with pytest.raises(RuntimeError, match="driver version is insufficient"):
        cuda.LAUNCHER.tensor_map(IMAGE, torch.device("cuda"))


@pytest.mark.skipif(not cuda.library_path("cpu").exists(), reason="python kernels/build.py emulated")
@pytest.mark.parametrize(
    "wrong",
    [
        {"address": 4104},
        {"stride": (128, 904, 8064)},
        {"stride": (64, 896, 8064)},
        {"lower": (-129, -1)},
        {"upper": (128, 0)},
        {"element_stride": (1, 9, 1, 1)},
        {"channels": 72},
        {"pixels": 2048},
        {"swizzle": 48},
        {"upper": (-9, -1)},
    ],
    ids=str,
)
def test_specs_that_count_as_refused_are_refused(wrong: dict[str, Any]) -> None:
    """The emulator's encoder checks the limits of the driver's manual independently of `refused`."""
    assert IMAGE.refused() is None
    cuda.LAUNCHER.tensor_map(IMAGE, torch.device("cpu"))
    spec = IMAGE._replace(**wrong)
    assert spec.refused() is not None
    with pytest.raises(RuntimeError, match="encode_tensor_map"):
        cuda.LAUNCHER.tensor_map(spec, torch.device("cpu"))


#: Two images of 224x224, unless the arguments say otherwise.
problem = partial(square_problem, N=2, H=224)


@pytest.mark.parametrize(
    ("direction", "convolution", "reason"),
    [
        ("fprop", problem("float64"), "float64"),
        ("fprop", problem("float32"), "fp32_precision"),
        ("wgrad", problem("float32", precision="tf32"), "depth contiguous"),
        ("fprop", problem(pad=129, R=7), "corners"),
        ("dgrad", problem(pad=0, R=130), "corners"),
        ("fprop", problem(stride=9, R=9, pad=1), "strides"),
        ("dgrad", problem(stride=5, R=5, pad=1), "25 residues"),
        ("fprop", problem(R=3, dilation=128, pad=128, H=512), "reaches over 256 pixels"),
        ("fprop", problem(C=96, K=96, groups=4), "24 channels"),
        ("wgrad", problem(C=96, K=96, groups=4), None),
        ("dgrad", problem("float32", precision="tf32", stride=4, R=5, pad=1), None),
        ("fprop", problem(C=3, R=7, stride=2, pad=3), None),
    ],
)
def test_what_is_left_to_other_variants(direction: str, convolution: Conv2dProblem, reason: str | None) -> None:
    refused = WGMMA.refuses(convolution._replace(direction=direction), H200)
    assert refused is None if reason is None else refused is not None and reason in refused


def test_other_gpus_are_left_to_other_variants() -> None:
    for capability in ((8, 0), (10, 0), (12, 0)):
        device = Device(132, capability, 227 << 10, 50 << 20)
        assert "compute capability 9.0" in str(WGMMA.refuses(problem(), device))


@pytest.mark.parametrize(
    ("channels", "expected"), [(8, 32), (16, 32), (32, 64), (48, 32), (64, 128), (72, 32), (96, 64), (128, 128)]
)
def test_few_channels_share_a_step(channels: int, expected: int) -> None:
    """The span is chosen for the fewest steps and, among equals, for the fewest copies."""
    assert wgmma.span("bfloat16", channels) == expected


def test_a_tile_fits_the_multiprocessor_as_often_as_it_says() -> None:
    for tile in wgmma.TILES.values():
        shared_bytes = tile.shared_bytes("bfloat16")
        assert shared_bytes <= 227 << 10
        assert tile.blocks * (shared_bytes + 1024) <= 228 << 10
        assert tile.stages >= 3


def test_rates_are_those_of_the_ladder_note() -> None:
    rates = {name: round(tile.rate, 2) for name, tile in wgmma.TILES.items()}
    assert rates == {"128x256": 1.0, "256x128": 0.89, "128x128": 0.8, "128x64": 0.57, "64x256": 0.73}


def test_an_unshifted_image_names_its_own_pixels() -> None:
    spec = image_map("float16", (2, 64, 5, 6), (1920, 1, 384, 64), unshifted(5, 6), 64, 64)
    assert (spec.lower, spec.upper, spec.element_stride) == ((0, 0), (0, 0), (1, 1, 1, 1))


@pytest.mark.skipif(not cuda.library_path("cpu").exists(), reason="python kernels/build.py emulated")
@pytest.mark.parametrize(("stride", "precision"), [(1, "ieee"), (2, "ieee"), (1, "tf32")])
def test_gradients_of_every_order(stride: int, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compares y and its derivatives up to the third order. The inputs are small integers, so every sum is exact."""
    dtype = torch.float32 if precision == "tf32" else torch.bfloat16
    prefer(monkeypatch, "wgmma")
    generator = torch.Generator().manual_seed(stride)

    def integers(*size: int) -> torch.Tensor:
        return torch.randint(-1, 2, size, generator=generator).to(dtype)

    x, w, dy = integers(2, 16, 5, 5), integers(8, 16, 3, 3), integers(2, 8, *((5, 5) if stride == 1 else (3, 3)))
    along = integers(*x.shape), integers(*w.shape)

    def orders(function: Any, to: torch.dtype) -> list[torch.Tensor]:
        inputs = [tensor.to(to).requires_grad_() for tensor in (x, w, dy)]
        y = function(*inputs[:2])
        first = torch.autograd.grad(y, inputs[:2], inputs[2], create_graph=True)
        second = torch.autograd.grad(
            sum((a * b.to(to)).sum() for a, b in zip(first, along, strict=True)), inputs, create_graph=True
        )
        third = torch.autograd.grad(sum(gradient.sum() for gradient in second), inputs, allow_unused=True)
        return [y, *first, *second, *(gradient for gradient in third if gradient is not None)]

    with recording() as record:
        ours = orders(lambda x, w: tu.conv2d(x, w, None, stride, 1, engine="cuda", precision=precision), dtype)
    theirs = orders(lambda x, w: F.conv2d(x, w, None, stride, 1), torch.float64)
    names = {plan.kernel.name for _, plan in record.launches if plan.variant == "wgmma"}
    assert {"conv2d_fprop_wgmma_kernel", "conv2d_dgrad_wgmma_kernel"} <= names
    assert ("conv2d_wgrad_wgmma_kernel" in names) == (precision == "ieee")
    for result, expected in zip(ours, theirs, strict=True):
        assert_exact(result.double(), expected.to(dtype).double())
