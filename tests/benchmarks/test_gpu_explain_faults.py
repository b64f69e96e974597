"""Faults planted in kernels are recognized from the evidence that a run on a GPU would keep."""

from __future__ import annotations

import ctypes
import json
from functools import cache
from typing import NamedTuple

import pytest
import torch

from benchmarks.gpu.exact.case import Case, judge
from benchmarks.gpu.exact.cases import Planner
from benchmarks.gpu.exact.conv2d import Conv2dCase
from benchmarks.gpu.exact.max_pool2d import MaxPool2dCase
from benchmarks.gpu.exact.rnn import RnnCase
from benchmarks.gpu.failures.evidence import evidence
from benchmarks.gpu.failures.patterns import findings
from benchmarks.gpu.failures.tiles import Failure, Finding
from tests.planted import Fault, launch_from
from torch_unroll.engines import cuda
from torch_unroll.engines.compiled.engine import CompiledEngine
from torch_unroll.engines.compiled.recording import recording
from torch_unroll.kernels.table import LaunchPlan

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _emulator() -> None:
    if reason := cuda.refuses("conv2d", CPU, torch.float32):
        pytest.skip(reason)


def _folder(case: Case) -> str:
    """The folder of kernels/cuda that a case's kernels are in."""
    return case.op.partition("_cell")[0]


class FaultyLauncher:
    """Plans as the emulator's launcher does, and launches kernels with a planted fault."""

    def __init__(self, fault: Fault, case: Case):
        launcher = cuda.LAUNCHER
        self.properties, self.preload = launcher.properties, launcher.preload
        self.tensor_map = launcher.tensor_map
        with recording() as recorded:
            case.compute(CompiledEngine("cuda", Planner(launcher)), CPU)
        rows = {plan.kernel.expression: plan.kernel for _, plan in recorded.launches}
        self.kernels = fault.kernels(_folder(case), rows.values())

    def launch(self, plan: LaunchPlan, parameters: ctypes.Structure, device: torch.device) -> None:
        launch_from(self.kernels, plan, parameters)


def conv(direction: str, variant: str, tile: str, arithmetic: str, geometry: str, **more: object) -> Conv2dCase:
    settings = {"splits": 1, "layout": "channels_last", "bias": direction == "fprop"} | more
    return Conv2dCase(direction, variant, tile, arithmetic=arithmetic, geometry=geometry, **settings)  # type: ignore[arg-type]


class Planted(NamedTuple):
    """A fault, the case that shows it, and the kind that has to be recognized."""

    kind: str
    fault: Fault
    case: Case
    share: float = 1.0  # the share of wrong elements that the kind has to explain
    quick: bool = False


MMA, WGMMA, CORES = "mma.cuh", "wgmma.cuh", "simt.cuh"
TENSOR = conv("fprop", "mma", "64x64", "bfloat16", "3x3")
SMALL = conv("fprop", "mma", "64x64", "bfloat16", "40 channels")
_numbers = iter(range(1000))


def plain(source: str, old: str, new: str) -> Fault:
    return Fault(f"explained {next(_numbers)}", source, old, new, mode="plain")


STAGE = "const typename Memory::Stage& stage = memory.stages[step % Tile::kStages];"
SKIPPED = f"if (step + 1 == steps) continue;\n{STAGE}"
COPY_B = "memory.columns, direction.depth_begin + step * A::kDepth);"
STALE_B = "memory.columns, direction.depth_begin + (step ? step - 1 : 0) * A::kDepth);"
COPY_BOTH = "direction.depth_begin + step * A::kDepth);"
STALE_BOTH = "direction.depth_begin + (step ? step - 1 : 0) * A::kDepth);"
LDMATRIX = "ldmatrix(fragment, tile + at(named_row + lane % 8, named_piece));"
BIAS = "if (bias) sum += widen(bias[channel]);"
PIXEL = "line.split(rest, p, q);"
WGMMA_CALL = (
    "wgmma<T, Product::kMajorA, Product::kMajorB>(sums[m], advance(a, layout_a.at(i) + m * layout_a.per_64),\n"
    "                                                       advance(b, layout_b.at(i)));"
)
WGMMA_SWAPPED = (
    "wgmma<T, Product::kMajorB, Product::kMajorA>(sums[m], advance(b, layout_b.at(i) + m * layout_b.per_64),\n"
    "                                                       advance(a, layout_a.at(i)));"
)
INSTRUCTIONS = "for (int i = 0; i < 4; ++i)\n#pragma unroll\n        for (int m"
ROWS_OF_MMA = "a[4] = {low.word[i], high.word[i], low.word[i + 1], high.word[i + 1]}"
ROWS_SWAPPED = "a[4] = {high.word[i], low.word[i], high.word[i + 1], low.word[i + 1]}"
PLANTED = (
    Planted(
        "swizzle",
        plain(MMA, LDMATRIX, LDMATRIX.replace("named_piece)", "named_piece ^ (kLeft ? lane % 4 : 0))")),
        SMALL,
        quick=True,
    ),
    Planted("missing products", plain(MMA, STAGE, SKIPPED), SMALL, quick=True),
    Planted(
        "swapped operands",
        plain(CORES, "multiply_add(left[i], right[j], sums[i][j])", "multiply_add(left[j], right[i], sums[i][j])"),
        conv("fprop", "simt", "64x64", "float32", "40 channels"),
        quick=True,
    ),
    Planted("stale stage", plain(MMA, COPY_B, STALE_B), SMALL, quick=True),
    Planted("missing bias", plain("epilogue.cuh", BIAS, ""), SMALL, quick=True),
    Planted(
        "wrong row",
        plain("tile.cuh", ROWS_OF_MMA, ROWS_SWAPPED),
        RnnCase("forward", "single_block", "bfloat16", 0, 3, 9, 200, 1, False, "relu"),
        quick=True,
    ),
    Planted(
        "wrong row",
        plain(
            "channels.cuh",
            "return load_vector<V>(x + h * shape.x_stride[2]",
            "return load_vector<V>(x + (h ? h - 1 : 0) * shape.x_stride[2]",
        ),
        MaxPool2dCase("forward", "channels", "bfloat16", "channels_last", "3x3/2"),
        share=0.8,
    ),
    # Other tiles, dtypes, directions, variants and geometries.
    Planted(
        "swizzle",
        plain(MMA, LDMATRIX, LDMATRIX.replace("named_piece)", "named_piece ^ (kLeft ? 0 : 2))")),
        conv("fprop", "mma", "128x128", "tf32", "40 channels"),
    ),
    Planted(
        "swizzle",
        plain(WGMMA, "leading, stride, span);", "leading, stride, span == 128 ? 64 : 128);"),
        conv("wgrad", "wgmma", "64x256", "bfloat16", "3x3"),
        share=0.7,
    ),
    Planted("missing products", plain(MMA, STAGE, SKIPPED), conv("dgrad", "mma", "64x64", "tf32", "stride 2", splits=3)),
    Planted(
        "missing products",
        plain(WGMMA, INSTRUCTIONS, INSTRUCTIONS.replace("i < 4", "i < 3")),
        conv("fprop", "wgmma", "128x64", "bfloat16", "3x3"),
    ),
    Planted(
        "missing products",
        plain(CORES, "for (int k = 0; k < Tile::kDepth; ++k) {", "for (int k = 1; k < Tile::kDepth; ++k) {"),
        conv("wgrad", "simt", "64x64", "float32", "3x3", splits=3),
    ),
    Planted(
        "missing products",
        plain(
            "tile.cuh",
            "for (int i = 0; i < 4; i += 2) {\n    const uint32_t a[4]",
            "for (int i = 0; i < 2; i += 2) {\n    const uint32_t a[4]",
        ),
        RnnCase("forward", "single_block", "bfloat16", 0, 3, 32, 256, 1, False, "identity"),
    ),
    Planted("swapped operands", plain(WGMMA, WGMMA_CALL, WGMMA_SWAPPED), conv("fprop", "wgmma", "128x64", "bfloat16", "3x3")),
    Planted("stale stage", plain(MMA, COPY_BOTH, STALE_BOTH), conv("dgrad", "mma", "64x64", "float16", "3x3")),
    Planted(
        "stale stage",
        plain("cluster.cuh", "state.at(buffer, lane_group(), k)", "state.at(buffer == 1 ? 0 : buffer, lane_group(), k)"),
        RnnCase("forward", "cluster", "bfloat16", 2, 5, 9, 200, 2, False, "identity"),
    ),
    Planted(
        "stale stage",  # the stage is also refilled while it is read
        plain(
            WGMMA,
            "a = advance(first_a, position.stage * Tile::kStageBytes)",
            "a = advance(first_a, (previous < 0 ? position.stage : previous) * Tile::kStageBytes)",
        ),
        conv("fprop", "wgmma", "128x64", "bfloat16", "3x3"),
        share=0.5,
    ),
    Planted(
        "swizzle",
        plain(
            MMA,
            "tile[at(word_depth, word_row / kPiece)",
            "tile[at(word_depth, word_row / kPiece ^ (!kLeft && word_depth % 4 == 3))",
        ),
        conv("dgrad", "mma", "64x64", "tf32", "3x3"),
    ),
    Planted(
        "missing products",
        plain("split_k.cuh", "parameters.splits, kSumQuad", "parameters.splits - 1, kSumQuad"),
        conv("fprop", "simt", "64x64", "float32", "3x3", splits=3, bias=False),
    ),
    Planted(
        "missing bias",
        plain("epilogue.cuh", BIAS, ""),
        conv("fprop", "wgmma", "64x256", "float16", "3x3", splits=3, layout="nchw"),
    ),
    Planted("wrong row", plain("matrices.cuh", PIXEL, PIXEL.replace("rest,", "rest ^ 1,")), TENSOR, share=0.99),
    Planted(
        "wrong row",
        plain("tile.cuh", ROWS_OF_MMA, ROWS_SWAPPED),
        RnnCase("backward", "single_block", "float16", 0, 3, 32, 256, 1, True, "relu"),
    ),
)


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: f"{planted.kind}, {planted.case.job}")
def test_the_sources_have_the_text_that_a_fault_replaces(planted: Planted) -> None:
    planted.fault.text(_folder(planted.case))


@cache
def causes(planted: Planted) -> tuple[int, list[Finding]]:
    """The number of wrong elements in the evidence of the first wrong result, and the findings."""
    verdict = judge(planted.case, CompiledEngine("cuda", FaultyLauncher(planted.fault, planted.case)), CPU)
    assert verdict.outcome == "wrong", verdict.detail
    failure = Failure(planted.case, json.loads(json.dumps(evidence(planted.case, *verdict.wrong[0]))))
    return failure.wrong, findings(failure)


@pytest.mark.parametrize(
    "planted",
    [
        pytest.param(planted, marks=() if planted.quick else pytest.mark.slow, id=f"{planted.kind}, {planted.case.job}")
        for planted in PLANTED
    ],
)
def test_planted_faults_are_named(planted: Planted) -> None:
    wrong, claims = causes(planted)
    assert claims, "no known pattern"
    assert claims[0].kind == planted.kind, claims
    assert claims[0].explained >= planted.share * wrong, claims[0]


SIX = {planted.kind: planted for planted in PLANTED if planted.quick}


@pytest.mark.parametrize("other", SIX)
@pytest.mark.parametrize("kind", SIX)
def test_none_of_six_faults_is_taken_for_another(kind: str, other: str) -> None:
    """The planted fault explains every wrong element, and each of the other five explains fewer."""
    wrong, claims = causes(SIX[kind])
    explained = max((claim.explained for claim in claims if claim.kind == other), default=0)
    assert (explained == wrong) == (kind == other), claims
