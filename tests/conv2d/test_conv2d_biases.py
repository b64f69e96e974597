"""The bias gradient, which wgrad computes in its own launch, the gradients that wgrad writes itself, and fprop's two biases."""

from __future__ import annotations

import ctypes
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor

import torch_unroll as tu
from tests.conv2d.test_conv2d_kernels import CASES, FORMATS, MATHS, STRANGE, Case, Watcher, emulator, takes
from torch_unroll.engines import load
from torch_unroll.engines.compiled import conv2d
from torch_unroll.engines.compiled.conv2d_call import problem_of
from torch_unroll.engines.compiled.recording import recording
from torch_unroll.engines.interface import DTYPES, Conv2dGeometry
from torch_unroll.kernels import planning
from torch_unroll.kernels.planning import Configuration
from torch_unroll.kernels.table import LaunchPlan
from torch_unroll.testing import assert_exact, assert_within, sum_bound

pytestmark = pytest.mark.usefixtures("device")

Forced = str | Configuration
by_math = pytest.mark.parametrize(("variant", "dtype", "precision"), MATHS)
POINTWISE = Conv2dGeometry((1, 1), (0, 0, 0, 0), (1, 1), 1)


def geometry_of(case: Case) -> Conv2dGeometry:
    return Conv2dGeometry(case.stride, case.padding, case.dilation, case.groups)


def gradients(
    case: Case,
    dy: Tensor,
    x: Tensor,
    precision: str,
    forced: Forced,
    dw_stride: Any = None,
    with_bias: bool = True,
) -> tuple[Tensor, Tensor | None, list[LaunchPlan]]:
    """Returns dw, db if it is wanted, and what was launched. Skips the test if the forced variant does not accept wgrad."""
    watcher, geometry = Watcher(), geometry_of(case)
    shape_of_w = torch.empty(case.w_size, dtype=x.dtype, device="meta")
    if not takes(forced, problem_of("wgrad", x, shape_of_w, dy, geometry, precision), watcher.properties(x.device)):
        pytest.skip(f"{forced} declines this")
    arguments = (watcher, dy, x, case.w_size[2:], geometry, precision, dw_stride)
    with planning.force("conv2d", forced):
        if with_bias:
            return *conv2d.conv2d_wgrad_bias(*arguments), watcher.launched
        return conv2d.conv2d_wgrad(*arguments), None, watcher.launched


def integers(*size: int, dtype: torch.dtype) -> Tensor:
    return torch.randint(-2, 3, size).to(dtype)


def exact_gradients(case: Case, dy: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns dw and db in the dtype of x. dy and x are integers, whose sums are exact."""
    dw = case.exact(x.double(), torch.zeros(case.w_size, dtype=torch.float64), None, dy.double())["wgrad"]
    return dw.to(x.dtype), dy.double().sum((0, 2, 3)).to(x.dtype)


# ---- the bias gradient ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", FORMATS)
@by_math
@pytest.mark.parametrize("name", CASES)
def test_the_bias_gradient_is_as_accurate_as_its_arithmetic(
    name: str, variant: Forced, dtype: torch.dtype, precision: str, layout: str
) -> None:
    case = CASES[name]
    x, _, _, dy = case.inputs(dtype, FORMATS[layout])
    dw, db, launched = gradients(case, dy, x, precision, variant)
    wide = dy.double()
    exact, magnitudes = wide.sum((0, 2, 3)), wide.abs().sum((0, 2, 3))
    assert db is not None
    assert_within(db, exact, sum_bound(exact, magnitudes, dy.numel() // dy.shape[1], dtype), "db")
    assert db.dtype == dtype
    assert db.is_contiguous()
    alone, _, launched_alone = gradients(case, dy, x, precision, variant, with_bias=False)
    assert_exact(dw, alone)
    assert [plan.kernel for plan in launched] == [plan.kernel for plan in launched_alone]


#: Output channels in several slices, and so many pixels that a thread reads several times.
LONG = {
    "long": Case((3, 8, 23, 21), (72, 8, 1, 1)),
    "long groups": Case((3, 24, 23, 21), (15, 8, 1, 1), groups=3),
}


@pytest.mark.parametrize("layout", FORMATS)
@by_math
@pytest.mark.parametrize("name", LONG)
def test_many_pixels_and_channels(name: str, variant: Forced, dtype: torch.dtype, precision: str, layout: str) -> None:
    case = LONG[name]
    x, _, _, dy = case.inputs(dtype, FORMATS[layout])
    x, dy = (torch.randint_like(t, -2, 3) for t in (x, dy))
    dw, db, _ = gradients(case, dy, x, precision, variant)
    for result, exact in zip((dw, db), exact_gradients(case, dy, x), strict=True):
        assert_exact(result, exact)


@pytest.mark.parametrize("strange", STRANGE)
@by_math
def test_any_strides(variant: Forced, dtype: torch.dtype, precision: str, strange: str) -> None:
    case = Case((2, 8, 6, 5), (8, 8, 3, 2), stride=(1, 2), padding=(1, 0, 1, 1))
    x, dy = (STRANGE[strange](integers(*size, dtype=dtype)) for size in (case.x_size, (2, 8, 5, 3)))
    dw, db, _ = gradients(case, dy, x, precision, variant)
    for result, exact in zip((dw, db), exact_gradients(case, dy, x), strict=True):
        assert_exact(result, exact)


@pytest.mark.parametrize("variant", ["wgmma", "mma", "im2col", "split wgmma", "split mma"])
def test_chunks_of_the_batch_add_up(variant: str) -> None:
    case = Case((7, 8, 9, 9), (8, 8, 3, 3), padding=(1, 1, 1, 1))
    x, dy = integers(*case.x_size, dtype=torch.float16), integers(7, 8, 9, 9, dtype=torch.float16)
    name = variant.removeprefix("split ")
    forced = Configuration(name, {"wgmma": "64x256", "mma": "64x64"}[name], 2) if name != variant else name
    with tu.conv2d_workspace(2 * 72 * 81 * 2 if name == "im2col" else 2 * 3 * 16 * 81 * 2):
        dw, db, launched = gradients(case, dy, x, "ieee", forced)
    assert sum(plan.variant in ("wgmma", "mma", "simt") for plan in launched) > 1
    for result, exact in zip((dw, db), exact_gradients(case, dy, x), strict=True):
        assert_exact(result, exact)


@by_math
def test_the_same_bits_under_any_schedule(variant: Forced, dtype: torch.dtype, precision: str, device: torch.device) -> None:
    case = CASES["several tiles"]
    x, _, _, dy = case.inputs(dtype, torch.channels_last)
    seed = emulator().torch_unroll_emulator_seed if device.type == "cpu" else lambda _: None
    seed(ctypes.c_uint64(1))
    first = gradients(case, dy, x, precision, variant)[:2]
    for other in (2, 3):
        seed(ctypes.c_uint64(other))
        for result, expected in zip(gradients(case, dy, x, precision, variant)[:2], first, strict=True):
            assert_exact(result, expected)


@by_math
def test_infinity_and_nan_stay_in_their_channel(variant: Forced, dtype: torch.dtype, precision: str) -> None:
    case = CASES["1x1"]
    x, _, _, dy = case.inputs(dtype, torch.channels_last)
    dy = dy.clone()
    dy[0, 3, 1, 2], dy[2, 39, 3, 3] = float("inf"), float("nan")
    _, db, _ = gradients(case, dy, x, precision, variant)
    assert db is not None
    assert (~db.isfinite()).nonzero().flatten().tolist() == [3, 39]
    assert db[3] == float("inf")
    assert db[39].isnan()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bias_gradient_of_empty_tensors(dtype: torch.dtype) -> None:
    x, dy = torch.empty(2, 3, 0, 5, dtype=dtype), integers(2, 4, 1, 5, dtype=dtype)
    geometry = Conv2dGeometry((1, 1), (2, 1, 1, 1), (1, 1), 1)
    for name in ("cuda", "torch"):
        dw, db = load(name).conv2d_wgrad_bias(dy, x, (3, 3), geometry, "ieee")
        assert_exact(dw, torch.zeros(4, 3, 3, 3, dtype=dtype))
        assert_exact(db, dy.sum((0, 2, 3)))
        dw, db = load(name).conv2d_wgrad_bias(dy[:0], x[:0], (3, 3), geometry, "ieee")
        assert_exact(db, torch.zeros(4, dtype=dtype))


# ---- how many launches there are -----------------------------------------------------------------------------------------


@by_math
def test_one_split_is_one_launch(variant: Forced, dtype: torch.dtype, precision: str) -> None:
    """dw and db are written by the product's blocks if there is nothing to add. im2col's product does not see dw as it is."""
    case = Case((2, 16, 8, 8), (24, 16, 1, 1))
    x, _, _, dy = case.inputs(dtype, torch.channels_last)
    splits = variant.splits if isinstance(variant, Configuration) else 1
    _, _, launched = gradients(case, dy, x, precision, variant)
    _, _, alone = gradients(case, dy, x, precision, variant, with_bias=False)
    kinds = [plan.variant for plan in launched]
    if variant == "im2col":
        assert kinds == ["im2col", "simt", "sum_splits"]
    elif splits == 1:
        assert kinds == [variant]
    else:
        assert kinds[1:] == ["sum_splits"]
    product = kinds.index("simt") if variant == "im2col" else 0
    added = launched[product].config.grid[0] - alone[product].config.grid[0]
    assert added > 0
    assert added % splits == 0 or splits > 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_call_and_all_its_gradients_are_few_launches(dtype: torch.dtype) -> None:
    x, w = (torch.randn(size).to(dtype).contiguous(memory_format=torch.channels_last) for size in ((2, 32, 9, 9), (40, 32, 3, 3)))
    dy, engine = torch.randn(2, 40, 9, 9).to(dtype).contiguous(memory_format=torch.channels_last), load("cuda")
    geometry = Conv2dGeometry((1, 1), (1, 1, 1, 1), (1, 1), 1)
    with recording() as record:
        engine.conv2d_fprop(x, w, torch.zeros(40, dtype=dtype), geometry, "ieee")
        engine.conv2d_dgrad(dy, w, (9, 9), geometry, "ieee")
        engine.conv2d_wgrad_bias(dy, x, (3, 3), geometry, "ieee", w.stride())
    assert len(record.launches) <= 5
    with recording() as record:
        engine.conv2d_wgrad_bias(dy, x, (1, 1), POINTWISE, "ieee")
    assert len(record.launches) == 1
    assert record.workspace_bytes == 0


# ---- the layout of dw ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", list(permutations(range(4))), ids=str)
@by_math
def test_dw_has_any_strides(variant: Forced, dtype: torch.dtype, precision: str, order: tuple[int, ...]) -> None:
    for case in (
        Case((1, 16, 6, 5), (40, 8, 3, 2), padding=(1, 1, 0, 1), groups=2),
        Case((2, 5, 4, 4), (7, 5, 2, 2)),
    ):
        stride, dense = [0] * 4, 1
        for dim in order:
            stride[dim], dense = dense, dense * case.w_size[dim]
        for layout in FORMATS.values():
            x, _, _, dy = case.inputs(dtype, layout)
            x, dy = (torch.randint_like(t, -2, 3) for t in (x, dy))
            dw, db, _ = gradients(case, dy, x, precision, variant, stride)
            assert dw.stride() == tuple(stride)
            for result, exact in zip((dw, db), exact_gradients(case, dy, x), strict=True):
                assert_exact(result.contiguous(), exact)


def test_the_sums_are_rounded_once() -> None:
    """In bfloat16, whose numbers above 256 are 2 apart, 256 + 1 + 1 is 258, and 256 if a part of it is rounded first."""
    values = torch.tensor([256.0, 1.0, 1.0, 0.0]).bfloat16()
    dy = values.view(4, 1, 1, 1).expand(4, 8, 1, 1).contiguous(memory_format=torch.channels_last)
    x = torch.ones(4, 8, 1, 1).bfloat16().contiguous(memory_format=torch.channels_last)
    for variant in ("wgmma", "mma", "simt", "im2col"):
        dw, db, _ = gradients(Case((4, 8, 1, 1), (8, 8, 1, 1)), dy, x, "ieee", variant)
        assert_exact(dw, torch.full_like(dw, 258))
        assert_exact(db, torch.full_like(db, 258))


# ---- two biases ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", FORMATS)
@by_math
def test_two_biases(variant: Forced, dtype: torch.dtype, precision: str, layout: str) -> None:
    for name in ("groups", "1x1", "odd channels"):
        case = CASES[name]
        x, w, bias, _ = case.inputs(dtype, FORMATS[layout])
        x, w = (torch.randint_like(t, -2, 3) for t in (x, w))
        bias, bias2 = integers(2, bias.numel(), dtype=dtype)
        every_second = torch.stack((bias2, bias2), 1).flatten()[::2]
        geometry, launcher = geometry_of(case), Watcher()
        plain = case.exact(x.double(), w.double(), None)["fprop"]
        if not takes(variant, problem_of("fprop", x, w, plain, geometry, precision), launcher.properties(x.device)):
            pytest.skip(f"{variant} declines this")
        for first, second in ((None, bias2), (bias, bias2), (None, every_second), (bias, None)):
            added = sum(addend.double().view(-1, 1, 1) for addend in (first, second) if addend is not None)
            with planning.force("conv2d", variant):
                y = conv2d.conv2d_fprop(launcher, x, w, first, geometry, precision, bias2=second)
            assert_exact(y.double(), (plain + added).to(dtype).double())


@pytest.mark.parametrize("name", ["cuda", "torch"])
@pytest.mark.parametrize("channels", [8, 0])
def test_two_biases_are_rounded_once(name: str, channels: int) -> None:
    """The sum 1 + 256 + 1 is 258 in bfloat16, and 256 if it is rounded after the first bias."""
    x, w = torch.zeros(1, channels, 2, 2).bfloat16(), torch.zeros(16, channels, 1, 1).bfloat16()
    x[:, :1], w[:, :1] = 1, 1
    bias, bias2 = torch.full((16,), 256.0).bfloat16(), torch.full((16,), 1.0 if channels else 2.0).bfloat16()
    y = load(name).conv2d_fprop(x, w, bias, POINTWISE, "ieee", bias2=bias2)
    assert_exact(y, torch.full_like(y, 258))
