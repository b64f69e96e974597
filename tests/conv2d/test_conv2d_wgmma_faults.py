"""Faults planted in the kernels of the variant wgmma, one at a time. A test that passes in spite of a fault proves nothing."""

from __future__ import annotations

import ctypes

import pytest
import torch

from tests.conv2d.test_conv2d_kernels import Case, Watcher
from tests.planted import Fault, launch_from
from torch_unroll.engines.compiled import conv2d
from torch_unroll.engines.interface import Conv2dGeometry
from torch_unroll.kernels import planning
from torch_unroll.kernels.cuda.conv2d import wgmma
from torch_unroll.kernels.planning import Configuration
from torch_unroll.kernels.table import LaunchPlan, kernels

SEEDS = 20
TILE, WGRAD_TILE = "128x64", "64x256"
#: A convolution with more steps than stages, and with tiles that reach beyond the result.
CASE = Case((9, 48, 9, 7), (72, 48, 3, 3), padding=(1, 1, 1, 1))
MACHINERY, DIRECTIONS = "wgmma.cuh", "directions_wgmma.cuh"


FAULTS = (
    Fault("none", MACHINERY, "", ""),
    Fault("none in plain mode", MACHINERY, "", "", mode="plain"),
    Fault(
        "barriers used before they are ones",
        MACHINERY,
        "mbarrier_init_fence();\n  }\n  __syncthreads();",
        "mbarrier_init_fence();\n  }",
    ),
    Fault("the first turn waits", MACHINERY, "position.turn ^ 1);", "position.turn);", mode="plain"),
    Fault(
        "the wrong turn is waited for",
        MACHINERY,
        "full[position.stage], position.turn);",
        "full[position.stage], position.turn ^ 1);",
    ),
    Fault("nobody waits for the bytes", MACHINERY, "mbarrier_wait(&memory.full[position.stage], position.turn);", ""),
    Fault(
        "nobody waits for the bytes, plain",
        MACHINERY,
        "mbarrier_wait(&memory.full[position.stage], position.turn);",
        "",
        mode="plain",
    ),
    Fault(
        "bytes that never come",
        MACHINERY,
        "&memory.full[position.stage], Tile::kStageBytes",
        "&memory.full[position.stage], 16 + Tile::kStageBytes",
    ),
    Fault(
        "bytes that nobody expects",
        MACHINERY,
        "&memory.full[position.stage], Tile::kStageBytes",
        "&memory.full[position.stage], Tile::kStageBytes - 16",
    ),
    Fault("a stage given back before its products are over", MACHINERY, "wgmma_wait<1>();", "wgmma_wait<2>();"),
    Fault("the same, plain", MACHINERY, "wgmma_wait<1>();", "wgmma_wait<7>();", mode="plain"),
    Fault("sums read while they are summed", MACHINERY, "wgmma_wait<0>(sums[m]);", ";"),
    Fault("no fence before the products", MACHINERY, "wgmma_fence();", ";"),
    Fault("the wrong swizzle", MACHINERY, "leading, stride, span);", "leading, stride, span == 128 ? 64 : 128);", mode="plain"),
    Fault("the wrong step of depth", MACHINERY, ".two = 32 * span,", ".two = 64 * span,", mode="plain"),
    Fault(
        "sums overwritten while they are stored",
        MACHINERY,
        "column, thread);\n    barrier_sync(1 + group, 128);",
        "column, thread);",
    ),
    Fault(
        "sums stored before they are there",
        MACHINERY,
        "destination.result, column);\n    barrier_sync(1 + group, 128);",
        "destination.result, column);",
    ),
    Fault(
        "lines before columns",
        DIRECTIONS,
        "pixel.w, pixel.h, pixel.n,",
        "pixel.h, pixel.w, pixel.n,",
        mode="plain",
    ),
    Fault(
        "blocks beyond the last from an image beyond the last",
        DIRECTIONS,
        "pixel.w, pixel.h, pixel.n,",
        "pixel.w, pixel.h, block_exists ? pixel.n : parameters.N,",
        mode="plain",
    ),
    Fault(
        "blocks beyond the last from the first channels",
        DIRECTIONS,
        "first_depth + block.channel : parameters.groups * parameters.depth_channels;",
        "first_depth + block.channel : 0;",
        mode="plain",
    ),
    Fault(
        "a bias gradient of too few pixels",
        DIRECTIONS,
        "parameters.steps_per_split * kPixels, false",
        "parameters.steps_per_split * kPixels / 2, false",
        mode="plain",
    ),
    Fault("taps from the wrong end", DIRECTIONS, "first + block.s * image", "first - block.s * image", mode="plain"),
)


class FaultyWatcher(Watcher):
    """Launches bf16 kernels compiled from sources with the fault: those of the two tiles, and those that have no tile."""

    def __init__(self, fault: Fault):
        super().__init__()
        tiles = {wgmma.TILES[name].cpp for name in (TILE, WGRAD_TILE)}
        bf16 = [row for row in kernels("conv2d") if row.arguments[0] == "bfloat16"]
        self.kernels = fault.kernels(
            "conv2d", [row for row in bf16 if tiles & set(row.arguments) or "Tile" not in row.expression]
        )

    def launch(self, plan: LaunchPlan, parameters: ctypes.Structure, device: torch.device) -> None:
        launch_from(self.kernels, plan, parameters)


def noticed(fault: Fault) -> str | None:
    """Tries SEEDS schedules; returns the emulator's report or "wrong results" for the first that reveals the fault, or None."""
    launcher = FaultyWatcher(fault)
    generator = torch.Generator().manual_seed(0)

    def integers(*size: int) -> torch.Tensor:
        return torch.randint(-2, 3, size, generator=generator).bfloat16().contiguous(memory_format=torch.channels_last)

    x, w, dy = integers(*CASE.x_size), integers(*CASE.w_size), integers(9, 72, 9, 7)
    exact = CASE.exact(x.double(), w.double(), None, dy.double())
    geometry = (Conv2dGeometry(CASE.stride, CASE.padding, CASE.dilation, CASE.groups), "ieee")
    for seed in range(SEEDS):
        launcher.kernels.library.torch_unroll_emulator_seed(ctypes.c_uint64(seed))
        try:
            with planning.force("conv2d", Configuration("wgmma", TILE)):
                results = [
                    conv2d.conv2d_fprop(launcher, x, w, None, *geometry),
                    conv2d.conv2d_dgrad(launcher, dy, w, CASE.x_size[2:], *geometry),
                ]
            with planning.force("conv2d", Configuration("wgmma", WGRAD_TILE)):
                results.extend(conv2d.conv2d_wgrad_bias(launcher, dy, x, (3, 3), *geometry))
        except RuntimeError as error:
            return str(error)
        for result, right in zip(results, (*exact.values(), dy.double().sum((0, 2, 3))), strict=True):
            if not torch.equal(result.double(), right.bfloat16().double()):
                return "wrong results"
    return None


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.old], ids=lambda fault: fault.name)
def test_the_sources_have_the_text_that_a_fault_replaces(fault: Fault) -> None:
    fault.text("conv2d")


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_planted_faults_are_noticed(fault: Fault) -> None:
    report = noticed(fault)
    print(report)
    assert (report is None) == (not fault.old), report
