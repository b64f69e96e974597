"""Convolution's kernels, through their host functions and variant by variant, compared with torch in float64, on
the emulator and, if there is one, on a GPU."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import torch_unroll as tu
from tests.gpus import H200
from torch_unroll.engines import cuda
from torch_unroll.engines.compiled import conv2d
from torch_unroll.engines.compiled.conv2d_call import problem_of
from torch_unroll.engines.compiled.recording import recording
from torch_unroll.engines.interface import DTYPES, Conv2dGeometry
from torch_unroll.kernels import planning
from torch_unroll.kernels.cuda.conv2d import im2col
from torch_unroll.kernels.cuda.conv2d.problem import DIRECTIONS, Conv2dProblem
from torch_unroll.kernels.cuda.conv2d.variants import KERNELS, SELECTORS, VARIANTS
from torch_unroll.kernels.hardware import Device
from torch_unroll.kernels.planning import Configuration
from torch_unroll.kernels.table import Kernel, LaunchPlan
from torch_unroll.kernels.tensor_map import TensorMap, TensorMapSpec
from torch_unroll.shapes import dtype_name, is_dense
from torch_unroll.testing import assert_exact, assert_within, sum_bound
from torch_unroll.testing.bounds import COPIED_TF32
from torch_unroll.testing.compare import ROUNDING

pytestmark = pytest.mark.usefixtures("device")

#: Configurations of the variants that can split the depth of fprop and dgrad: three splits, and a tile of 64 rows.
SPLITTING = (Configuration("wgmma", "64x256", 3), Configuration("mma", "64x64", 3), Configuration("simt", "64x64", 3))


def takes(forced: str | Configuration, problem: Conv2dProblem, device: Device) -> bool:
    """Whether the forced variant accepts a problem and, if a configuration is forced, has its tile.

    test_conv2d_selection.py and test_conv2d_wgmma.py test which problems variants refuse.
    """
    name = forced.variant if isinstance(forced, Configuration) else forced
    variant = SELECTORS[f"conv2d_{problem.direction}"].variant(name)
    is_taken = variant.refuses(problem, device) is None
    return is_taken and (not isinstance(forced, Configuration) or forced.tile in variant.tiles(problem, device))


def emulator() -> ctypes.CDLL:
    """Returns the library of the emulator that engine `cuda` has loaded; its settings hold for the process."""
    return ctypes.CDLL(str(cuda.library_path("cpu")))


def _multiplies(forced: str | Configuration, dtype: torch.dtype, precision: str) -> bool:
    """Whether a variant can multiply a dtype in a precision; "tf32" counts only if the variant refuses IEEE products."""
    x = torch.empty(1, 8, 3, 3, dtype=dtype)
    geometry = Conv2dGeometry((1, 1), (0, 0, 0, 0), (1, 1), 1)
    multiplies = {
        name: takes(forced, problem_of("fprop", x, x, x[:, :, :1, :1], geometry, name), H200) for name in ("ieee", precision)
    }
    return multiplies[precision] and (precision == "ieee" or not multiplies["ieee"])


#: Every (variant or configuration, dtype, precision) that can be computed, without "tf32" where the variant also takes "ieee".
MATHS = [
    pytest.param(forced, dtype, precision, id=f"{name}-{dtype_name(dtype)}-{precision}")
    for name, forced in (
        *((variant.name, variant.name) for variant in VARIANTS),
        *((f"split {forced.variant}", forced) for forced in SPLITTING),
    )
    for dtype in DTYPES
    for precision in (("ieee", "tf32") if dtype == torch.float32 else ("ieee",))
    if _multiplies(forced, dtype, precision)
]
FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(eq=False)
class Watcher:
    """The launcher of engine `cuda`, and a list of what it has launched."""

    launched: list[LaunchPlan] = field(default_factory=list)

    def launch(self, plan: LaunchPlan, parameters: ctypes.Structure, device: torch.device) -> None:
        self.launched.append(plan)
        cuda.LAUNCHER.launch(plan, parameters, device)

    def properties(self, device: torch.device) -> Device:
        return cuda.LAUNCHER.properties(device)

    def tensor_map(self, spec: TensorMapSpec, device: torch.device) -> TensorMap:
        return cuda.LAUNCHER.tensor_map(spec, device)


@dataclass
class Case:
    """One convolution and its exact results."""

    x_size: tuple[int, int, int, int]
    w_size: tuple[int, int, int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def inputs(self, dtype: torch.dtype, memory_format: torch.memory_format) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, w = torch.randn(self.x_size), torch.randn(self.w_size)
        dy = torch.randn(self.exact(x.double(), w.double(), None)["fprop"].shape)
        x, w, dy = (tensor.to(dtype).contiguous(memory_format=memory_format) for tensor in (x, w, dy))
        return x, w, torch.randn(self.w_size[0]).to(dtype), dy

    def exact(self, x: Tensor, w: Tensor, bias: Tensor | None, dy: Tensor | None = None) -> dict[str, Tensor]:
        """Returns direction -> result: y and, if dy is given, dx and dw, computed by torch in the dtype of x."""
        top, bottom, left, right = self.padding
        padded = F.pad(x, (left, right, top, bottom)).detach().requires_grad_()
        w = w.detach().requires_grad_()
        y = F.conv2d(padded, w, bias, self.stride, 0, self.dilation, self.groups)
        if dy is None:
            return {"fprop": y.detach()}
        dx, dw = torch.autograd.grad(y, (padded, w), dy)
        return {"fprop": y.detach(), "dgrad": dx[:, :, top : top + x.shape[2], left : left + x.shape[3]], "wgrad": dw}

    def bounds(
        self, x: Tensor, w: Tensor, bias: Tensor | None, dy: Tensor, operand: float = 0.0
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Returns direction -> (the exact result, how far from it a result may be)."""
        wide = [tensor.double() for tensor in (x, w, dy)]
        exact = self.exact(wide[0], wide[1], None if bias is None else bias.double(), wide[2])
        products = self.exact(*(tensor.abs() for tensor in wide[:2]), None, wide[2].abs())
        taps = w[0, 0].numel()
        terms = {
            "fprop": w[0].numel() + 1,
            "dgrad": w.shape[0] // self.groups * taps,
            "wgrad": dy.numel() // dy.shape[1],
        }
        added = {"fprop": 0.0 if bias is None else bias.double().abs().view(-1, 1, 1)}
        return {
            name: (
                exact[name],
                sum_bound(exact[name], products[name], terms[name], x.dtype, added=added.get(name, 0.0), operand=operand),
            )
            for name in exact
        }

    def ours(
        self,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        dy: Tensor,
        precision: str,
        forced: str | Configuration,
        launcher: Watcher | None = None,
    ) -> dict[str, Tensor]:
        """Returns direction -> the kernels' result, for the directions that the forced variant accepts.

        Skips the test if it accepts none.
        """
        geometry = Conv2dGeometry(self.stride, self.padding, self.dilation, self.groups)
        to, dw_stride = launcher or Watcher(), w.stride() if is_dense(w.shape, w.stride()) else None
        calls = {
            "fprop": lambda: conv2d.conv2d_fprop(to, x, w, bias, geometry, precision),
            "dgrad": lambda: conv2d.conv2d_dgrad(to, dy, w, self.x_size[2:], geometry, precision),
            "wgrad": lambda: conv2d.conv2d_wgrad(to, dy, x, self.w_size[2:], geometry, precision, dw_stride),
        }
        device = to.properties(x.device)
        directions = [
            direction for direction in calls if takes(forced, problem_of(direction, x, w, dy, geometry, precision), device)
        ]
        if not directions:
            pytest.skip(f"{forced} declines this in every direction")
        with planning.force("conv2d", forced):
            return {direction: calls[direction]() for direction in directions}


CASES = {
    "3x3": Case((2, 8, 9, 7), (16, 8, 3, 3), padding=(1, 1, 1, 1)),
    "odd channels": Case((2, 5, 6, 8), (7, 5, 2, 3), padding=(0, 2, 1, 0), dilation=(2, 1)),
    "strided": Case((2, 8, 11, 10), (8, 8, 3, 4), stride=(2, 3), padding=(2, 1, 0, 3)),
    "residues without taps": Case((1, 4, 9, 9), (8, 4, 2, 1), stride=(4, 2), dilation=(2, 1)),
    "groups": Case((2, 24, 5, 5), (12, 8, 3, 3), padding=(1, 1, 1, 1), groups=3),
    "depthwise": Case((2, 6, 7, 6), (12, 1, 3, 3), stride=(1, 2), padding=(1, 1, 1, 1), groups=6),
    "1x1": Case((3, 32, 4, 4), (40, 32, 1, 1)),
    "product": Case((70, 33, 1, 1), (65, 33, 1, 1)),
    "kernel beyond the plane": Case((2, 3, 2, 3), (4, 3, 5, 5), padding=(2, 3, 2, 2)),
    "several tiles": Case((2, 24, 13, 11), (72, 24, 1, 1)),
}


def tf32(x: Tensor) -> Tensor:
    """Rounds to nearest with 10 bits of mantissa, ties away from zero, as variant `mma` does."""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize(("variant", "dtype", "precision"), MATHS)
@pytest.mark.parametrize("name", CASES)
def test_results_are_as_accurate_as_their_arithmetic(
    name: str, variant: str | Configuration, dtype: torch.dtype, precision: str, layout: str
) -> None:
    case = CASES[name]
    x, w, bias, dy = case.inputs(dtype, FORMATS[layout])
    results = case.ours(x, w, bias, dy, precision, variant)
    multiplied, operand = [x, w, dy], 0.0
    if precision == "tf32" and "wgmma" in variant:
        operand = COPIED_TF32
    elif precision == "tf32":  # mma rounds the operands first, and their products are exact
        multiplied = [tf32(tensor) for tensor in multiplied]
    bounds = case.bounds(*multiplied[:2], bias, multiplied[2], operand)
    for direction, result in results.items():
        exact, bound = bounds[direction]
        if variant == "im2col" and direction == "dgrad":  # columns are rounded to the dtype before they are added
            bound = (
                bound
                + ROUNDING[dtype] * case.exact(*(tensor.double().abs() for tensor in (x, w)), None, dy.double().abs())["dgrad"]
            )
        assert result.dtype == dtype
        assert_within(result, exact, bound, direction)
        like = {"fprop": (x, w), "dgrad": (dy, w), "wgrad": (dy, x)}[direction]
        channels_last = any(t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous() for t in like)
        assert result.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


STRANGE: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "expanded batch": lambda t: t[:1].expand(t.shape),
    "expanded plane": lambda t: t[:, :, :1, :1].expand(t.shape),
    "unaligned": lambda t: torch.cat((t.new_zeros(1), t.flatten()))[1:].view(t.shape),
    "unaligned channels_last": lambda t: (
        torch.cat((t.new_zeros(1), t.permute(0, 2, 3, 1).flatten()))[1:]
        .view(t.shape[0], *t.shape[2:], t.shape[1])
        .permute(0, 3, 1, 2)
    ),
    "every second": lambda t: torch.stack((t, -t), -1)[..., 0],
    "every second channel": lambda t: torch.stack((t, -t), 2).flatten(1, 2).contiguous(memory_format=torch.channels_last)[:, ::2],
}


@pytest.mark.parametrize("strange", STRANGE)
@pytest.mark.parametrize(("variant", "dtype", "precision"), MATHS)
def test_any_strides(variant: str | Configuration, dtype: torch.dtype, precision: str, strange: str) -> None:
    case = Case((2, 8, 6, 5), (8, 8, 3, 2), stride=(1, 2), padding=(1, 0, 1, 1))
    x, w, dy = (
        STRANGE[strange](torch.randint(-2, 3, t.shape).to(dtype))
        for t in case.inputs(dtype, torch.contiguous_format)[::1]
        if t.dim() == 4
    )
    exact = case.exact(x.double(), w.double(), None, dy.double())
    for direction, result in case.ours(x, w, None, dy, precision, variant).items():
        assert_exact(result.double(), exact[direction], direction)


@pytest.mark.xdist_group("gpu_memory")
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize(("variant", "dtype", "precision"), MATHS)
def test_offsets_beyond_two_thousand_million_elements(
    variant: str | Configuration,
    dtype: torch.dtype,
    precision: str,
    layout: str,
    device: torch.device,
    gpu_memory: Callable[[torch.device, int], None],
) -> None:
    """The second image lies 2^31 elements after the first. Memory between them is never touched, so it costs nothing on a CPU."""
    gpu_memory(device, 2 * (2**31 + 1024) * dtype.itemsize + 2**30)
    case = Case((2, 8, 4, 4), (8, 8, 2, 2))
    _, w, _, _ = case.inputs(dtype, FORMATS[layout])
    sizes = (case.x_size, (2, 8, 3, 3))
    tensors = []
    for size in sizes:
        inner = torch.empty(size, dtype=dtype).contiguous(memory_format=FORMATS[layout]).stride()[1:]
        far = torch.empty(2**31 + 1024, dtype=dtype).as_strided(size, (2**31, *inner))
        tensors.append(far.copy_(torch.randint(-2, 3, size)))
    x, dy = tensors
    w = torch.randint(-2, 3, w.shape).to(dtype)
    exact = case.exact(x.double(), w.double(), None, dy.double())
    for direction, result in case.ours(x, w, None, dy, precision, variant).items():
        assert_exact(result.double(), exact[direction], direction)


@pytest.mark.parametrize(("variant", "dtype", "precision"), MATHS)
def test_bitwise_the_same_under_any_schedule(
    variant: str | Configuration, dtype: torch.dtype, precision: str, device: torch.device
) -> None:
    case = Case((4, 16, 9, 9), (16, 16, 3, 3), padding=(1, 1, 1, 1))
    x, w, bias, dy = case.inputs(dtype, torch.channels_last)
    seed = emulator().torch_unroll_emulator_seed if device.type == "cpu" else lambda _: None
    seed(ctypes.c_uint64(1))
    first = case.ours(x, w, bias, dy, precision, variant)
    for other in (2, 3):
        seed(ctypes.c_uint64(other))
        for direction, result in case.ours(x, w, bias, dy, precision, variant).items():
            assert_exact(result, first[direction], direction)


@pytest.fixture
def nan_memory() -> Iterator[None]:
    """Makes torch fill with NaN the memory that it would leave uninitialised."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("variant", "dtype", "precision"), MATHS)
def test_every_byte_of_a_result_is_written(
    variant: str | Configuration, dtype: torch.dtype, precision: str, nan_memory: None
) -> None:
    for name in ("residues without taps", "odd channels", "strided"):
        x, w, bias, dy = CASES[name].inputs(dtype, torch.contiguous_format)
        for direction, result in CASES[name].ours(x, w, bias, dy, precision, variant).items():
            assert torch.isfinite(result).all(), direction


@pytest.mark.parametrize("variant", ["wgmma", "mma", "simt", "im2col"])
def test_workspace_stays_within_its_limit(variant: str) -> None:
    case = Case((7, 8, 6, 6), (8, 8, 3, 3), padding=(1, 1, 1, 1))
    x, w, bias, dy = (
        torch.randint(-2, 3, t.shape).to(torch.float16) for t in case.inputs(torch.float16, torch.contiguous_format)
    )
    limit = 2 * 8 * 9 * 36 * 2  # a chunk may use half: the columns of one image, or x and dy of some of the seven images
    exact = case.exact(x.double(), w.double(), bias.double(), dy.double())
    with tu.conv2d_workspace(limit):
        for direction, result in case.ours(x, w, bias, dy, "ieee", variant).items():
            assert_exact(result.double(), exact[direction].half().double(), direction)
    geometry = (Conv2dGeometry(case.stride, case.padding, case.dilation, case.groups), "ieee")
    for function, inputs in (
        (conv2d.conv2d_fprop, (x, w, None)),
        (conv2d.conv2d_dgrad, (dy, w, (6, 6))),
        (conv2d.conv2d_wgrad, (dy, x, (3, 3))),
    ):
        watcher = Watcher()
        with tu.conv2d_workspace(limit), planning.force("conv2d", variant), recording() as record:
            function(watcher, *inputs, *geometry)
        assert record.workspace_bytes <= limit
        chunks = sum(plan.variant in ("wgmma", "mma", "simt") for plan in watcher.launched)
        packed = 2 if function is conv2d.conv2d_wgrad else 1  # wgrad packs both x and dy, so fewer images fit
        assert chunks == {"im2col": 7, "simt": 1, "mma": packed, "wgmma": packed}[variant]


@pytest.mark.parametrize(
    ("x_size", "w_size", "padding"),
    [
        ((0, 3, 5, 5), (4, 3, 3, 3), (0, 0, 0, 0)),
        ((2, 3, 0, 5), (4, 3, 3, 3), (2, 1, 1, 1)),
        ((2, 0, 5, 5), (4, 0, 3, 3), (0, 0, 0, 0)),
    ],
    ids=["no images", "no lines", "no channels"],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_empty(x_size: tuple[int, ...], w_size: tuple[int, ...], padding: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    x, w, bias = torch.randn(x_size).to(dtype), torch.randn(w_size).to(dtype), torch.randn(4).to(dtype)
    geometry = (Conv2dGeometry((1, 1), padding, (1, 1), 1), "ieee")
    y = conv2d.conv2d_fprop(cuda.LAUNCHER, x, w, bias, *geometry)
    assert_exact(y, bias.view(1, 4, 1, 1).expand(y.shape).contiguous())
    dy = torch.randn(y.shape).to(dtype)
    assert_exact(conv2d.conv2d_dgrad(cuda.LAUNCHER, dy, w, x_size[2:], *geometry), torch.zeros(x_size, dtype=dtype))  # type: ignore[arg-type]
    assert_exact(conv2d.conv2d_wgrad(cuda.LAUNCHER, dy, x, w_size[2:], *geometry), torch.zeros(w_size, dtype=dtype))  # type: ignore[arg-type]


def test_every_row_of_the_table_is_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: set[Kernel] = set()
    case = Case((1, 8, 9, 9), (16, 8, 2, 3), stride=(1, 2), padding=(1, 0, 1, 1))
    for variant, dtype, precision in (math.values for math in MATHS):
        x, w, bias, dy = (torch.randint(-2, 3, t.shape).to(dtype) for t in case.inputs(dtype, torch.contiguous_format))
        exact = case.exact(x.double(), w.double(), bias.double(), dy.double())
        name, splits = (variant.variant, 2) if isinstance(variant, Configuration) else (variant, 1)
        tiles: set[str] = set()
        for direction in DIRECTIONS:
            geometry = Conv2dGeometry(case.stride, case.padding, case.dilation, case.groups)
            problem = problem_of(direction, x, w, dy, geometry, precision)
            tiles |= set(SELECTORS[f"conv2d_{direction}"].variant(name).tiles(problem, H200))
        for tile, most_int32 in product(tiles, (0, 2**31)):
            monkeypatch.setattr(im2col, "most_int32", most_int32)
            forced, watcher = Configuration(name, tile, splits), Watcher()
            for direction, result in case.ours(x, w, bias, dy, precision, forced, watcher).items():
                assert_exact(result.double(), exact[direction].to(dtype).double(), direction)
            launched |= {plan.kernel for plan in watcher.launched}
    assert {row.expression for row in KERNELS} == {row.expression for row in launched}


def test_a_refused_variant_says_why() -> None:
    x, w, bias, _ = CASES["1x1"].inputs(torch.float64, torch.contiguous_format)
    message = "tensor cores multiply fp16, bf16 and TF32, not float64"
    with planning.force("conv2d", "mma"), pytest.raises(RuntimeError, match=message):
        conv2d.conv2d_fprop(cuda.LAUNCHER, x, w, bias, Conv2dGeometry((1, 1), (0, 0, 0, 0), (1, 1), 1), "ieee")
