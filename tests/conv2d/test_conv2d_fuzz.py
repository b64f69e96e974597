"""Random convolutions of small integers, whose sums are exact in the kernels: a result must be the exact sum, rounded once.

`TORCH_UNROLL_FUZZ=N` sets the number of problems of the long run, including those of the quick tests; `TORCH_UNROLL_FUZZ_SEED`
sets the seed of the first problem.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from random import Random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from torch_unroll.engines import cuda
from torch_unroll.engines.compiled import conv2d
from torch_unroll.engines.compiled.conv2d_call import problem_of
from torch_unroll.engines.interface import Conv2dGeometry
from torch_unroll.kernels import planning
from torch_unroll.kernels.arithmetic import round_up
from torch_unroll.kernels.cuda.conv2d.problem import Conv2dProblem
from torch_unroll.kernels.cuda.conv2d.variants import VARIANTS
from torch_unroll.kernels.planning import Configuration

pytestmark = pytest.mark.usefixtures("device")

QUICK, LONG = 400, int(os.environ.get("TORCH_UNROLL_FUZZ", "2000"))
SEED = int(os.environ.get("TORCH_UNROLL_FUZZ_SEED", "0"))
BATCH = 40  # problems per test
MOST_PRODUCTS = 1_500_000  # per direction; the emulator takes about a tenth of a second for them
MATHS = [
    (torch.float16, "ieee"),
    (torch.bfloat16, "ieee"),
    (torch.float32, "ieee"),
    (torch.float32, "tf32"),
    (torch.float64, "ieee"),
]


@dataclass
class Problem:
    """One random convolution; its fields are printed if it fails."""

    seed: int
    dtype: torch.dtype
    precision: str
    x_size: tuple[int, ...]
    w_size: tuple[int, ...]
    y_size: tuple[int, ...]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int
    layouts: tuple[str, str, str]


LAYOUTS = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "sliced": lambda t: torch.stack((t, -t), -1)[..., 0],
    "offset": lambda t: F.pad(t, (1, 2))[..., 1:-2],
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "wide channels_last": lambda t: torch.cat((t, -t), 1).contiguous(memory_format=torch.channels_last)[:, : t.shape[1]],
}


def size(random: Random) -> int:
    """Returns 1 to 70, small sizes more often."""
    return round(70 ** random.random())


def draw(seed: int) -> Problem:
    random = Random(seed)
    while True:
        groups = random.choice((1, 1, 1, 2, 3, size(random)))
        channels, outputs = (max(1, size(random) // groups) for _ in range(2))
        if random.random() < 0.5:  # whole pieces of 16 bytes
            channels, outputs = round_up(channels, 8), round_up(outputs, 8)
        N, H, W = size(random), size(random), size(random)
        R, S = (random.choice((1, 1, 2, 3, 3, 5, 7)) for _ in range(2))
        stride = random.choice((1, 1, 1, 2, 3, 4)), random.choice((1, 1, 1, 2, 3, 4))
        dilation = random.choice((1, 1, 2, 3)), random.choice((1, 1, 2, 3))
        reach = (R - 1) * dilation[0], (S - 1) * dilation[1]
        even = random.random() < 0.3
        padding = tuple(0 if even else random.randint(0, reach[i // 2] + 1) for i in range(4))
        P = (H + padding[0] + padding[1] - reach[0] - 1) // stride[0] + 1
        Q = (W + padding[2] + padding[3] - reach[1] - 1) // stride[1] + 1
        if (
            P > 0
            and Q > 0
            and N * max(P * Q * stride[0] * stride[1], H * W) * outputs * groups * channels * R * S <= MOST_PRODUCTS
        ):
            break
    dtype, precision = random.choice(MATHS)
    layout = random.choice(("contiguous", "channels_last"))
    layouts = tuple(random.choice((layout, layout, *LAYOUTS)) for _ in range(3))
    return Problem(
        seed,
        dtype,
        precision,
        (N, channels * groups, H, W),
        (outputs * groups, channels, R, S),
        (N, outputs * groups, P, Q),
        stride,
        padding,  # type: ignore[arg-type]
        dilation,
        groups,
        layouts,  # type: ignore[arg-type]
    )


def integers(shape: tuple[int, ...], dtype: torch.dtype, layout: str, generator: torch.Generator) -> Tensor:
    return LAYOUTS[layout](torch.randint(-2, 3, shape, generator=generator, device="cpu").to(torch.get_default_device(), dtype))


def pick(random: Random, problem: Conv2dProblem, device: torch.device) -> str | Configuration | None:
    """Draws what to force: None, a variant that accepts the problem, or a configuration of such a variant.

    The first such variant, in order of preference, is drawn twice as often as any other.
    """
    gpu = cuda.LAUNCHER.properties(device)
    takers = [variant for variant in VARIANTS if variant.refuses(problem, gpu) is None]
    variant = random.choice((None, takers[0], *takers))
    if variant is None or random.random() < 0.5:
        return variant and variant.name
    return Configuration(variant.name, random.choice(variant.tiles(problem, gpu)), random.randint(1, 9))


def check(problem: Problem) -> None:
    generator = torch.Generator("cpu").manual_seed(problem.seed)
    sizes = (problem.x_size, problem.w_size, problem.y_size)
    x, w, dy = (integers(shape, problem.dtype, layout, generator) for shape, layout in zip(sizes, problem.layouts, strict=True))
    bias = integers((problem.w_size[0], 1, 1, 1), problem.dtype, "contiguous", generator).flatten()
    top, bottom, left, right = problem.padding
    padded, weight = F.pad(x.double(), (left, right, top, bottom)).requires_grad_(), w.double().requires_grad_()
    y = F.conv2d(padded, weight, bias.double(), problem.stride, 0, problem.dilation, problem.groups)
    y.backward(dy.double())
    assert padded.grad is not None
    assert weight.grad is not None
    H, W = problem.x_size[2:]
    geometry = Conv2dGeometry(problem.stride, problem.padding, problem.dilation, problem.groups)
    calls = {
        "fprop": (lambda: conv2d.conv2d_fprop(cuda.LAUNCHER, x, w, bias, geometry, problem.precision), y),
        "dgrad": (
            lambda: conv2d.conv2d_dgrad(cuda.LAUNCHER, dy, w, (H, W), geometry, problem.precision),
            padded.grad[:, :, top : top + H, left : left + W],
        ),
        "wgrad": (
            lambda: conv2d.conv2d_wgrad(cuda.LAUNCHER, dy, x, problem.w_size[2:], geometry, problem.precision),
            weight.grad,
        ),
    }
    random = Random(problem.seed)
    for direction, (call, expected) in calls.items():
        forced = pick(random, problem_of(direction, x, w, dy, geometry, problem.precision), x.device)
        with planning.force("conv2d", forced):
            actual = call()
        assert actual.dtype == problem.dtype
        assert torch.equal(actual.double(), expected.to(problem.dtype).double()), f"{direction} by {forced} of {problem}"


@pytest.mark.parametrize("first", range(0, QUICK, BATCH))
def test_random_problems_are_exact(first: int) -> None:
    for seed in range(first, min(first + BATCH, QUICK)):
        check(draw(SEED + seed))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(QUICK, LONG, BATCH))
def test_many_random_problems_are_exact(first: int) -> None:
    for seed in range(first, min(first + BATCH, LONG)):
        check(draw(SEED + seed))
