"""What runs before and after convolution's products: unfold, fold, and the sum of splits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.conv2d.test_conv2d_kernels import FORMATS, STRANGE, Watcher
from torch_unroll.engines import cuda
from torch_unroll.engines.compiled import conv2d
from torch_unroll.engines.compiled.conv2d_sums import Biases, add_image_splits
from torch_unroll.engines.interface import DTYPES, Pool2dGeometry
from torch_unroll.kernels.cuda.conv2d import im2col
from torch_unroll.testing import assert_as_accurate, assert_exact

pytestmark = pytest.mark.usefixtures("device")


@pytest.mark.parametrize("index", ["int32_t", "int64_t"])
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_unfold_and_fold(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, layout: str, index: str) -> None:
    monkeypatch.setattr(im2col, "most_int32", 2**31 if index == "int32_t" else 0)
    geometry = Pool2dGeometry((3, 2), (2, 1), (1, 2), (1, 3))
    torchs = {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 2), "dilation": (1, 3)}
    x = torch.randn(2, 3, 7, 6).to(dtype).contiguous(memory_format=FORMATS[layout])
    watcher = Watcher()
    columns = conv2d.unfold(watcher, x, geometry)
    assert_exact(columns, F.unfold(x, **torchs))
    assert_as_accurate(
        conv2d.fold(watcher, columns, (7, 6), geometry),
        F.fold(columns, (7, 6), **torchs),
        F.fold(columns.double(), (7, 6), **torchs),
    )
    assert {plan.kernel.arguments[1] for plan in watcher.launched} == {index}


RESULT_LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "nchw": lambda t: t,
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "offset channels_last": STRANGE["unaligned channels_last"],
    "transposed": STRANGE["transposed"],
}


@pytest.mark.parametrize("layout", RESULT_LAYOUTS)
@pytest.mark.parametrize(
    "size",
    [(2, 64, 5, 7), (1, 40, 7, 7), (3, 5, 4, 3), (70, 33, 1, 1), (2, 8, 9, 1), (1, 1, 6, 8)],
    ids=lambda size: "×".join(map(str, size)),
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_splits_of_an_image_are_added(dtype: torch.dtype, size: tuple[int, int, int, int], layout: str) -> None:
    N, channels, H, W = size
    sums = torch.randint(-9, 10, (5, N, H, W, channels)).to(torch.float64 if dtype == torch.float64 else torch.float32)
    bias, bias2 = torch.randint(-9, 10, (2, channels)).to(dtype)
    exact = sums.sum(0).permute(0, 3, 1, 2)
    for biases in (Biases(), Biases(bias), Biases(None, bias2), Biases(bias, bias2)):
        result = RESULT_LAYOUTS[layout](torch.full(size, float("nan"), dtype=dtype))
        add_image_splits(cuda.LAUNCHER, sums, result, biases)
        assert_exact(result.double(), (exact + biases.total(result).view(-1, 1, 1)).double())


def test_splits_are_added_in_their_order() -> None:
    sums = torch.tensor([1e8, 1.0, -1e8, 1.0]).view(4, 1, 1, 1, 1).expand(4, 2, 3, 3, 8).contiguous()
    result = torch.empty(2, 8, 3, 3)
    add_image_splits(cuda.LAUNCHER, sums, result, Biases())
    assert_exact(result, torch.ones(2, 8, 3, 3))
