"""A few small calls of each op, chosen to run the kernels that have barriers, and compared with engine `torch`.

They are meant for tools that test many builds of the kernels. `python quick_cases.py conv2d` runs the calls of one op on the
library that TORCH_UNROLL_EMULATED names, and prints the launched kernels. A failed launch or a wrong result raises an exception.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

import torch_unroll as tu
from torch_unroll.engines import cuda, load
from torch_unroll.engines.compiled import conv2d, max_pool2d
from torch_unroll.engines.interface import Conv2dGeometry
from torch_unroll.kernels import planning
from torch_unroll.kernels.cuda.conv2d.variants import VARIANTS as CONV2D_VARIANTS
from torch_unroll.kernels.cuda.rnn.variants import SELECTORS as RNN_SELECTORS
from torch_unroll.kernels.hardware import Device
from torch_unroll.kernels.table import LaunchPlan

#: The largest accepted norm of the difference between the engines, relative to the norm of engine `torch`'s result. It allows for
#: sums in another order, but not for the errors that a missing barrier causes.
TOLERANCE = {torch.bfloat16: 2e-2, torch.float32: 2e-3, torch.float64: 1e-10}


class Narrow:
    """A launcher that cuts grids to one block along y and z, for kernels whose blocks loop over the work of missing ones."""

    properties, preload = cuda.LAUNCHER.properties, cuda.LAUNCHER.preload

    def launch(self, plan: LaunchPlan, parameters: ctypes.Structure, device: torch.device) -> None:
        config = replace(plan.config, grid=(plan.config.grid[0], 1, 1))
        cuda.LAUNCHER.launch(replace(plan, config=config), parameters, device)


class SmallDevice:
    """A launcher that reports one multiprocessor, so that each block of a persistent kernel computes several tiles."""

    launch, preload, tensor_map = cuda.LAUNCHER.launch, cuda.LAUNCHER.preload, cuda.LAUNCHER.tensor_map

    def properties(self, device: torch.device) -> Device:
        return ONE_MULTIPROCESSOR


NARROW, SMALL_DEVICE = Narrow(), SmallDevice()
ONE_MULTIPROCESSOR = replace(cuda.LAUNCHER.properties(torch.device("cpu")), multiprocessors=1)
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def each_variant(op: str, names: Sequence[str], call: Callable[[], None]) -> None:
    """Makes a call on each of these variants of an op, except those that do not accept the call's problem."""
    for name in names:
        try:
            with planning.force(op, name):
                call()
        except RuntimeError as error:
            if "no variant takes" not in str(error):
                raise


def compare(call: Callable[[str], Tensor], inputs: Sequence[Tensor]) -> None:
    """Compares the result and the gradients of a call on engines `cuda` and `torch`; the call receives an engine's name."""
    results = []
    for engine in ("cuda", "torch"):
        result = call(engine)
        torch.manual_seed(1)
        results.append([result, *torch.autograd.grad(result, inputs, torch.randn_like(result))])
    for ours, theirs in zip(*results, strict=True):
        error = (ours.double() - theirs.double()).norm() / (theirs.double().norm() + 1e-30)
        if not error <= TOLERANCE[ours.dtype]:
            raise AssertionError(f"the results differ by {error:.1e} of their norm")


def leaf(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_()


def conv2d_cases() -> None:
    for dtype, layout in product((torch.float32, torch.bfloat16), LAYOUTS):
        x, w = leaf(2, 24, 9, 8, dtype=dtype), leaf(40, 24, 3, 3, dtype=dtype)

        def call(engine: str, x: Tensor = x, w: Tensor = w, layout: torch.memory_format = layout) -> Tensor:
            return tu.conv2d(x.to(memory_format=layout), w, None, 2, 1, engine=engine)

        names = [variant.name for variant in CONV2D_VARIANTS]
        each_variant("conv2d", names, partial(compare, call, (x, w)))
        each_variant("conv2d_wgrad", names, partial(compare_bias_gradient, dtype, layout))
    x, w = leaf(1, 3, 6, 7, dtype=torch.float64), leaf(4, 3, 2, 2, dtype=torch.float64)
    compare(lambda engine: tu.conv2d(x, w, engine=engine), (x, w))
    each_variant("conv2d_dgrad", [variant.name for variant in CONV2D_VARIANTS], compare_infinite_filter)


def compare_bias_gradient(dtype: torch.dtype, layout: torch.memory_format) -> None:
    """Compares dw and db of a convolution of small integers, whose sums are exact."""
    x, dy = (torch.randint(-2, 3, size).to(dtype).contiguous(memory_format=layout) for size in ((2, 24, 9, 8), (2, 40, 9, 8)))
    arguments = (dy, x, (3, 3), Conv2dGeometry((1, 1), (1, 1, 1, 1), (1, 1), 1), "ieee")
    ours, theirs = conv2d.conv2d_wgrad_bias(cuda.LAUNCHER, *arguments), load("torch").conv2d_wgrad_bias(*arguments)
    if not all(map(torch.equal, ours, theirs)):
        raise AssertionError("the results differ: the gradients of filter and bias are exact")


def compare_infinite_filter() -> None:
    """Compares dx for a filter with infinite taps. A tap times a zero of the padding is NaN; such sums are computed again.

    A block of wgmma goes around its ring of stages, so that it also waits for the stage of a previous tile's last step.
    """
    dy, w = (torch.randint(0, 2, size).mul(2).sub(1).to(torch.bfloat16) for size in ((4, 16, 12, 12), (16, 16, 3, 3)))
    w[0, :, 0, 0] = float("inf")
    arguments = (dy, w, (12, 12), Conv2dGeometry((1, 1), (1, 1, 1, 1), (1, 1), 1), "ieee")
    ours, theirs = conv2d.conv2d_dgrad(SMALL_DEVICE, *arguments), load("torch").conv2d_dgrad(*arguments)
    if not torch.equal(ours.nan_to_num(7.5), theirs.nan_to_num(7.5)):
        raise AssertionError(f"the results differ in {int((ours != theirs).sum())} elements")


def max_pool2d_cases() -> None:
    windows = ((2, 2, 0), (3, 2, 1), (3, 1, 1), ((4, 3), (3, 2), 1))
    for window, layout, channels in product(windows, LAYOUTS, (3, 8)):
        x = leaf(2, channels, 13, 11, dtype=torch.float32)

        def call(engine: str, x: Tensor = x, window: Any = window, layout: torch.memory_format = layout) -> Tensor:
            return tu.max_pool2d(x.to(memory_format=layout), *window, engine=engine)

        compare(call, (x,))
    sequence = leaf(70, 3, 24, dtype=torch.float32)
    for lengths in (None, torch.tensor([70, 1, 33])):
        compare(lambda engine: tu.max_over_time(sequence, lengths, engine=engine), (sequence,))  # noqa: B023
        ours = max_pool2d.max_over_time_forward(NARROW, sequence.detach(), lengths, True)[0]
        assert torch.equal(ours, tu.max_over_time(sequence, lengths, engine="torch"))


def rnn_cases() -> None:
    for H, dtype in ((48, torch.bfloat16), (48, torch.float32), (112, torch.float32), (320, torch.float64)):
        T, N, directions = 4 if H < 300 else 2, 10, 2 if H < 100 else 1
        x, h0 = leaf(T, N, 8, dtype=dtype), leaf(directions, N, H, dtype=dtype)
        weights = [leaf(*shape, dtype=dtype) for _ in range(directions) for shape in ((H, 8), (H, H))]
        weights = [(weight.detach() / H**0.5).requires_grad_() for weight in weights]
        settings = {"bidirectional": directions == 2, "lengths": torch.tensor([4, 1, 0, 3, 2, 4, 4, 1, 2, 3]).clamp(max=T)}

        def call(engine: str, inputs: tuple[Any, ...] = (x, h0, weights), settings: dict[str, Any] = settings) -> Tensor:
            return tu.rnn(*inputs, **settings, engine=engine)[0]

        each_variant("rnn", list(RNN_SELECTORS["rnn_forward"].by_name), partial(compare, call, (x, h0, *weights)))
    x, h, w_ih, w_hh = (leaf(*shape, dtype=torch.float32) for shape in ((9, 13), (9, 17), (17, 13), (17, 17)))
    compare(lambda engine: tu.rnn_cell(x, h, w_ih, w_hh, engine=engine), (x, h, w_ih, w_hh))


CASES = {"conv2d": conv2d_cases, "max_pool2d": max_pool2d_cases, "rnn": rnn_cases}


def launched() -> list[str]:
    """The name expressions of the kernels that have been launched."""
    kernels = cuda.KernelObject(cuda.library_path("cpu"))
    return [name for name, index in kernels.index.items() if kernels.library.torch_unroll_emulator_launches(index)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    CASES[sys.argv[1]]()
    print("\n".join(launched()))
