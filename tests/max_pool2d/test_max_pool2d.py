"""Max pooling on every engine, compared with torch: values, indices, gradients and layouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from torch_unroll.engines.interface import DTYPES
from torch_unroll.explain import explain
from torch_unroll.kernels.cuda.max_pool2d import channels
from torch_unroll.kernels.cuda.max_pool2d.plan import cached_plan
from torch_unroll.max_pool2d import max_pool2d
from torch_unroll.testing import Target, assert_exact, targets

TARGETS = targets("max_pool2d")
LAYOUTS = ["contiguous", "channels_last", "transposed", "expanded", "offset", "sliced"]

# name -> (N, C, H, W) and the options: layers of well-known networks, unusual shapes, and windows that are not compiled in
CASES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "LeNet": ((2, 6, 10, 12), {"kernel_size": 2}),
    "AlexNet": ((2, 16, 13, 11), {"kernel_size": 3, "stride": 2}),
    "ResNet stem": ((2, 8, 12, 15), {"kernel_size": 3, "stride": 2, "padding": 1}),
    "GoogLeNet": ((1, 24, 14, 14), {"kernel_size": 3, "stride": 2, "ceil_mode": True}),
    "Inception": ((2, 8, 7, 9), {"kernel_size": 3, "stride": 1, "padding": 1}),
    "tiny planes": ((33, 8, 4, 4), {"kernel_size": 2}),
    "one pixel": ((2, 3, 1, 1), {"kernel_size": 3, "stride": 1, "padding": 1}),
    "rest of a plane that no window covers": ((2, 8, 8, 9), {"kernel_size": 3, "stride": 3}),
    "strides beyond the window": ((2, 8, 9, 11), {"kernel_size": 2, "stride": (4, 3)}),
    "dilated": ((2, 8, 11, 12), {"kernel_size": (3, 2), "stride": (1, 2), "padding": (1, 1), "dilation": (2, 3)}),
    "odd everywhere": ((3, 5, 7, 13), {"kernel_size": (4, 3), "stride": (2, 3), "padding": (2, 1), "ceil_mode": True}),
    "global": ((2, 8, 9, 8), {"kernel_size": (9, 8)}),
    "two-byte offsets": ((2, 8, 19, 20), {"kernel_size": (16, 17), "stride": (2, 3)}),
    "wide windows": ((2, 8, 5, 80), {"kernel_size": (4, 70), "stride": (1, 3)}),
    "four-byte offsets": ((1, 2, 182, 181), {"kernel_size": (182, 181)}),
}


@pytest.fixture(autouse=True)
def _poisoned_outputs() -> Iterator[None]:
    """Makes torch.empty yield NaN or the largest integer, so that an element that a kernel leaves unwritten shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def _data(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Values with many ties, some NaN, and whole windows of -inf."""
    x = torch.randint(-2, 3, shape).to(dtype)
    x[torch.rand(shape) < 0.02] = torch.nan
    x[..., : max(1, shape[-2] // 3), : shape[-1] // 2 + 1] = -torch.inf
    return x


def _input(layout: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    N, C, H, W = shape
    if layout == "transposed":
        return _data((N, C, W, H), dtype).transpose(2, 3)
    if layout == "expanded":
        return _data((1, C, H, 1), dtype).expand(shape)
    if layout == "offset":  # dense, but at an address from which no vector can be loaded
        return torch.empty(N * C * H * W + 1, dtype=dtype)[1:].view(shape).copy_(_data(shape, dtype))
    if layout == "sliced":
        return _data((N + 1, C + 8, H + 2, W + 3), dtype).contiguous(memory_format=torch.channels_last)[1:, 8:, 1:-1, 2:-1]
    return _data(shape, dtype).contiguous(
        memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format
    )


def _both(x: Tensor, target: Target, options: dict[str, Any]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yields, for each result, its name, our tensor and torch's.

    The results are the output (also that under no_grad), the indices, the gradient, and the gradient of the gradient. The
    upstream gradients are small integers, so that no sum of them rounds.
    """
    results = []
    dy = ddx = None
    for function, extra in ((max_pool2d, {"engine": target.engine}), (F.max_pool2d, {})):
        leaf = x.detach().to(target.device).requires_grad_()
        with torch.no_grad():
            silent = function(leaf, **options, **extra)
        y, indices = function(leaf, **options, return_indices=True, **extra)
        dy = torch.randint(-3, 4, y.shape, device=y.device).to(x.dtype).requires_grad_() if dy is None else dy
        (dx,) = torch.autograd.grad(y, leaf, dy, create_graph=True)
        ddx = torch.randint(-3, 4, dx.shape, device=y.device).to(x.dtype) if ddx is None else ddx
        (ddy,) = torch.autograd.grad(dx, dy, ddx)
        results.append({"y without grad": silent, "y": y, "indices": indices, "dx": dx, "ddy": ddy})
    for name, ours in results[0].items():
        yield name, ours.detach(), results[1][name].detach()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_like_torch(target: Target, case: str, layout: str, dtype: torch.dtype) -> None:
    shape, options = CASES[case]
    if case == "four-byte offsets" and target.engine == "torch" and (layout, dtype) != ("contiguous", torch.float32):
        pytest.skip("32,942 cells, one at a time: once is enough")
    for name, ours, theirs in _both(_input(layout, shape, dtype), target, options):
        assert_exact(ours, theirs, name)
        assert name == "ddy" or ours.stride() == theirs.stride(), (
            f"{name}: expected strides {theirs.stride()}, got {ours.stride()}"
        )


@st.composite
def poolings(draw: st.DrawFn) -> tuple[tuple[int, ...], dict[str, Any], torch.dtype, str]:
    def pairs(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    kernel_size = draw(st.sampled_from([(2, 2), (3, 3), None])) or pairs(1, 5)
    dilation = draw(st.sampled_from([(1, 1), None])) or pairs(1, 3)
    # no padding where there is dilation, so that no window misses the plane
    padding = tuple(draw(st.integers(0, k // 2)) if d == 1 else 0 for k, d in zip(kernel_size, dilation, strict=True))
    least = [d * (k - 1) + 1 - 2 * p for k, d, p in zip(kernel_size, dilation, padding, strict=True)]
    extents = [max(1, low) + draw(st.integers(0, 9)) for low in least]
    shape = (draw(st.integers(0, 3)), draw(st.sampled_from([1, 2, 3, 8, 16])), *extents)
    stride = draw(st.sampled_from([(1, 1), (2, 2), None])) or pairs(1, 4)
    options = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "dilation": dilation}
    return shape, {**options, "ceil_mode": draw(st.booleans())}, draw(st.sampled_from(DTYPES)), draw(st.sampled_from(LAYOUTS[:2]))


def _check_drawn(target: Target, drawn: tuple[tuple[int, ...], dict[str, Any], torch.dtype, str]) -> None:
    shape, options, dtype, layout = drawn
    for name, ours, theirs in _both(_input(layout, shape, dtype), target, options):
        assert_exact(ours, theirs, name)


@pytest.mark.parametrize("target", TARGETS, ids=str)
@settings(max_examples=60)
@given(drawn=poolings())
def test_drawn_shapes(target: Target, drawn: Any) -> None:
    _check_drawn(target, drawn)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=str)
@settings(max_examples=3000)
@given(drawn=poolings())
def test_many_drawn_shapes(target: Target, drawn: Any) -> None:
    _check_drawn(target, drawn)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_ties_signed_zeros_nan_and_infinities(target: Target, dtype: torch.dtype) -> None:
    rows = [[-0.0, 0.0, 1, 1], [0.0, -0.0, 1, 1], [torch.nan, 9, 3, torch.inf], [9, torch.nan, torch.inf, torch.nan]]
    plane = torch.tensor([*rows, [-torch.inf] * 4, [-torch.inf] * 4], dtype=dtype, device=target.device)
    for x in (plane.expand(1, 8, 6, 4), plane.view(1, 1, 6, 4)):
        for layout in (torch.contiguous_format, torch.channels_last):
            y, indices = max_pool2d(x.contiguous(memory_format=layout), 2, return_indices=True, engine=target.engine)
            assert indices[0, 0].tolist() == [[0, 2], [13, 15], [16, 18]]
            expected = torch.tensor([[-0.0, 1], [torch.nan, torch.nan], [-torch.inf, -torch.inf]], dtype=dtype)
            assert_exact(y[0, 0].cpu(), expected)
            assert y[0, 0, 0, 0].signbit(), "the first of -0 and 0 is -0"


@pytest.mark.parametrize("channels", [1, 8])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_windows_without_a_cell(target: Target, layout: torch.memory_format, channels: int) -> None:
    x = torch.ones(2, channels, 1, 1, device=target.device).contiguous(memory_format=layout).requires_grad_()
    options = {"kernel_size": 2, "stride": 1, "padding": 1, "dilation": 2}
    y, indices = max_pool2d(x, **options, return_indices=True, engine=target.engine)
    expected, where = F.max_pool2d(x, **options, return_indices=True)
    assert_exact(y.detach(), expected.detach())
    assert_exact(indices, where)
    assert (y == -torch.inf).all()
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y), create_graph=True)
    assert_exact(dx.detach(), torch.zeros_like(dx))
    half = torch.ones(1, channels, 2, 2, device=target.device).contiguous(memory_format=layout).requires_grad_()
    y = max_pool2d(half, 2, 3, 1, 2, ceil_mode=True, engine=target.engine)  # only one cell of a window lies in the plane
    (dx,) = torch.autograd.grad(y, half, torch.full_like(y, 5))
    assert_exact(dx, torch.autograd.grad(F.max_pool2d(half, 2, 3, 1, 2, ceil_mode=True), half, torch.full_like(y, 5))[0])


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_huge_dilation_and_stride(target: Target) -> None:
    """torch's own 32-bit positions of cells overflow (pytorch/pytorch#189664), so the results are written out."""
    largest = 2**31 - 1
    x = torch.randn(2, 3, 4, 5, device=target.device)
    first = x[:, :, :1, :1]
    for options, expected in (
        ({"kernel_size": 1, "stride": 1, "dilation": largest}, x),
        ({"kernel_size": 2, "stride": largest, "dilation": 2**30, "ceil_mode": True}, first),
        (
            {"kernel_size": 2, "stride": largest, "dilation": largest - 1, "padding": 1, "ceil_mode": True},
            -torch.inf * first.abs(),
        ),
        ({"kernel_size": (3, 1), "stride": largest, "dilation": (2**30, 7), "ceil_mode": True}, first),
    ):
        leaf = x.clone().requires_grad_()
        y = max_pool2d(leaf, **options, engine=target.engine)
        assert_exact(y.detach(), expected)
        (dx,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
        chosen = expected.isfinite().to(x.dtype)
        assert_exact(dx, F.pad(chosen, (0, 5 - chosen.shape[3], 0, 4 - chosen.shape[2])))


@pytest.mark.xdist_group("gpu_memory")
@pytest.mark.parametrize("channels", [8, 3])
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_images_two_thousand_million_elements_apart(
    target: Target, channels: int, tmp_path: Path, gpu_memory: Callable[[torch.device, int], None]
) -> None:
    apart = 2**31 + 64
    gpu_memory(target.device, 2 * apart + 2**30)
    if target.device.type == "cuda":
        memory = torch.empty(apart + 4096, dtype=torch.float16, device=target.device)
    else:  # a sparse file, of which only the pages that are touched take memory
        memory = torch.from_file(str(tmp_path / "sparse"), shared=True, size=apart + 4096, dtype=torch.float16)
    x = memory.as_strided((2, channels, 6, 5), (apart, 1, 5 * channels, channels))
    x.copy_(torch.randn(2, channels, 6, 5))
    y, indices = max_pool2d(x, 3, 2, return_indices=True, engine=target.engine)
    expected, where = F.max_pool2d(x.contiguous(memory_format=torch.channels_last), 3, 2, return_indices=True)
    assert_exact(y, expected)
    assert_exact(indices, where)


@pytest.mark.gpu
@pytest.mark.xdist_group("gpu_memory")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "target", [target for target in TARGETS if target.device.type == "cuda" and target.engine != "torch"], ids=str
)
def test_more_than_two_to_the_31_elements(
    target: Target, layout: torch.memory_format, gpu_memory: Callable[[torch.device, int], None]
) -> None:
    gpu_memory(target.device, 20 * 2**30)
    x = torch.empty(1025, 64, 256, 129, dtype=torch.bfloat16, device=target.device, memory_format=layout)
    x.copy_(torch.arange(129, device=target.device).view(1, 1, 1, -1).expand_as(x))
    x[-1].uniform_().requires_grad_()
    x.requires_grad_()
    y = max_pool2d(x, 3, 2, 1, engine=target.engine)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    last = x[-1:].detach().requires_grad_()
    expected = F.max_pool2d(last, 3, 2, 1)
    assert_exact(y[-1:].detach(), expected.detach())
    assert_exact(dx[-1:], torch.autograd.grad(expected, last, torch.ones_like(expected))[0])


@pytest.fixture
def small_grids(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Limits grids of variant channels to two blocks in y and z."""
    monkeypatch.setattr(channels, "GRID_LIMIT", 2)
    cached_plan.cache_clear()
    yield
    cached_plan.cache_clear()


@pytest.mark.usefixtures("small_grids")
@pytest.mark.parametrize("target", [target for target in TARGETS if target.engine == "cuda"], ids=str)
def test_a_grid_smaller_than_the_work(target: Target) -> None:
    """If the grid's limit is reached, a block computes several strips or images."""
    x = _input("channels_last", (700, 8, 17, 3), torch.float16)
    for options in ({"kernel_size": 3, "stride": 1, "padding": 1}, {"kernel_size": (4, 2), "stride": 1}):
        for name, ours, theirs in _both(x, target, options):
            assert_exact(ours, theirs, name)


@pytest.mark.parametrize("target", [target for target in TARGETS if target.engine == "cuda"], ids=str)
def test_the_variant_depends_on_the_address(target: Target) -> None:
    memory = torch.zeros(2 * 8 * 6 * 6 + 8, dtype=torch.float16, device=target.device)
    chosen = []
    for first in (0, 1, 8):
        x = memory[first : first + 2 * 8 * 6 * 6].view(2, 6, 6, 8).permute(0, 3, 1, 2)
        chosen += [plan.variant for plan in explain("max_pool2d", x, 3, 2, 1, engine=target.engine).launches]
    assert chosen == ["channels", "staged", "channels"]
