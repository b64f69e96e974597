"""The exact cases of a run on a GPU cover every kernel, and no wrong result counts as right."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from torch import Tensor

import torch_unroll as tu
from benchmarks.gpu import work
from benchmarks.gpu.exact import conv2d as conv2d_cases
from benchmarks.gpu.exact import rnn as rnn_cases
from benchmarks.gpu.exact.case import Case, judge
from benchmarks.gpu.exact.cases import by_job, covering, from_json
from tests.benchmarks.gpu_runs import CPU, Broken, first_of
from torch_unroll.engines import load, refusal
from torch_unroll.engines.compiled.recording import recording
from torch_unroll.engines.cuda import LAUNCHER
from torch_unroll.engines.interface import Pool2dGeometry
from torch_unroll.kernels.cuda.rnn.problem import Recurrence
from torch_unroll.kernels.cuda.rnn.variants import SELECTORS
from torch_unroll.kernels.table import kernels

pytestmark = pytest.mark.skipif(
    refusal("cuda", "rnn", CPU, torch.float32) is not None,
    reason="the emulated kernels are not built: python kernels/build.py emulated",
)


@pytest.mark.parametrize("small", [True, False], ids=["emulator", "GPU"])
def test_a_case_is_restored_from_its_json(small: bool) -> None:
    for name, cases in by_job(small, seed=3).items():
        for case in (cases[0], cases[-1]):
            assert from_json(json.loads(json.dumps(case.as_json()))) == case
            assert case.job == name


def test_a_run_on_a_gpu_has_geometries_of_every_kind() -> None:
    sizes = conv2d_cases.GEOMETRIES.values()
    assert len(sizes) >= 15
    assert {3, 16, 32, 40} <= {size.C for size in sizes}
    assert {(2, 2), (3, 3)} <= {size.stride for size in sizes}
    assert any(size.groups > 1 for size in sizes)
    assert any(size.dilation != (1, 1) for size in sizes)
    assert set(rnn_cases.SIZES) > {(4, 32, 1024, 1)}


def test_what_is_expected_is_what_engine_torch_computes() -> None:
    """Checks the expected results with engine torch, because the full sizes would take too long on the emulator."""
    kept: dict[tuple[object, ...], Case] = {}
    for case in itertools.chain.from_iterable(by_job(small=False, seed=1).values()):
        fields = case.as_json()
        if "32-bit" in str(fields.get("window")):
            continue  # engine torch would unfold windows of 33,000 cells
        if fields.get("arithmetic", fields.get("dtype")) == "float64" and fields.get("nonlinearity") != "identity":
            extents = (fields.get(name) for name in ("op", "direction", "geometry", "window", "T", "N", "H", "lengths", "bias"))
            kept[tuple(extents)] = case
    assert len(kept) > 150
    for case in kept.values():
        verdict = judge(case, load("torch"), CPU)
        assert verdict.outcome == "right", (case.key, verdict.detail)


@pytest.mark.parametrize(
    "op", ["conv2d fprop", "conv2d wgrad", "rnn forward", "rnn backward", "rnn_cell", "max_pool2d", "unfold"]
)
def test_one_wrong_element_is_wrong(op: str) -> None:
    def spoil(result: Tensor) -> Tensor:
        result[(-1,) * result.dim()] += 1
        return result

    case = first_of(op)
    verdict = judge(case, Broken(spoil), CPU)
    assert verdict.outcome == "wrong"
    assert ": 1 of " in verdict.detail


@pytest.mark.parametrize("op", ["conv2d dgrad", "rnn forward", "max_pool2d"])
def test_an_element_that_nobody_writes_is_wrong(op: str) -> None:
    verdict = judge(first_of(op), Broken(torch.empty_like), CPU)
    assert verdict.outcome == "wrong"


def test_other_bits_the_second_time_are_noticed() -> None:
    calls = []

    def spoil(result: Tensor) -> Tensor:
        calls.append(1)
        result[(0,) * result.dim()] += len(calls) - 1
        return result

    assert judge(first_of("conv2d fprop"), Broken(spoil), CPU).outcome == "unsteady"


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])  # the rehearsal in .ci/run uses seed 0
def test_a_sample_launches_every_kernel(seed: int) -> None:
    planned: set[str] = set()
    for cases in by_job(small=True, seed=seed).values():
        for case in covering(cases, load("cuda"), CPU, seed, more=0):
            planned |= judge(case, load("cuda"), CPU).rows
    assert planned == {row.expression for row in kernels()}


def pooling_variant() -> str:
    """The variant of pooling that a call selects if none is forced."""
    x = torch.ones(1, 8, 4, 4, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    with recording() as recorded:
        load("cuda").max_pool2d_forward(x, Pool2dGeometry((2, 2), (2, 2), (0, 0), (1, 1)), False, False)
    return recorded.selections["max_pool2d_forward"].configuration.variant


def test_a_choice_that_was_forced_is_taken_back() -> None:
    def selected() -> tuple[object, ...]:
        problem = Recurrence(backward=False, T=3, N=2, H=40, D=1, dtype="float32", precision="ieee", aligned=True)
        recurrence = SELECTORS["rnn_forward"].select(problem, LAUNCHER.properties(CPU))
        explanation = tu.explain("conv2d", torch.ones(1, 1, 3, 3), torch.ones(1, 1, 2, 2), engine="cuda")
        convolution = explanation.selections["conv2d_fprop"]
        return convolution.configuration, convolution.passed_over, recurrence, pooling_variant()

    before = selected()
    for op in ("conv2d fprop", "rnn forward cluster", "rnn forward grid_exchange", "max_pool2d forward staged"):
        judge(first_of(op), load("cuda"), CPU)
    assert before == selected()


def test_what_no_evidence_can_be_kept_of_is_wrong_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("float64")

    monkeypatch.setattr(work, "evidence", fail)
    assert not work.run_cases([first_of("rnn forward")], Broken(lambda result: result + 1), CPU)
    assert '"event": "wrong"' in (printed := capsys.readouterr().out)
    assert "KeyError: 'float64'" in printed
