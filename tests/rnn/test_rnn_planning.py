"""Which variant and tile are selected: forced, measured or predicted ones, if their blocks are resident together."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpus import H200
from tests.rnn.test_rnn_kernels import Case, Resized
from torch_unroll.engines.compiled.recording import recording
from torch_unroll.kernels import planning
from torch_unroll.kernels.cuda.rnn.problem import CellStep, Recurrence
from torch_unroll.kernels.cuda.rnn.variants import SELECTORS
from torch_unroll.kernels.planning import Configuration
from torch_unroll.kernels.shapes import SizeError

FORWARD = SELECTORS["rnn_forward"]


def recurrence(H: int, N: int, dtype: str, aligned: bool = True) -> Recurrence:
    """A forward pass of 100 steps."""
    return Recurrence(backward=False, T=100, N=N, H=H, D=1, dtype=dtype, precision="tf32", aligned=aligned)


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Returns a function that replaces the table of measurements by entries for `H200`."""

    def write(entries: dict[str, Any]) -> None:
        path = tmp_path / "choices.json"
        path.write_text(json.dumps({"devices": {H200.name: entries}}))
        monkeypatch.setattr(planning, "table_path", lambda op: path)
        planning.forget()

    yield write
    planning.forget()


@pytest.mark.parametrize(
    ("H", "N", "dtype", "aligned", "variant"),
    [
        (256, 64, "bfloat16", True, "single_block"),
        (512, 32, "bfloat16", True, "cluster"),
        (1536, 32, "bfloat16", True, "grid_exchange"),
        (2560, 64, "float32", True, "grid_exchange"),
        (1022, 32, "bfloat16", False, "cluster"),
        (1534, 32, "bfloat16", False, "step"),
        (8192, 32, "float32", True, "step"),
    ],
)
def test_the_fastest_variant_is_selected(H: int, N: int, dtype: str, aligned: bool, variant: str) -> None:
    selected = FORWARD.select(recurrence(H, N, dtype, aligned), H200)
    assert selected.variant.name == selected.configuration.variant == selected.plan.variant == variant
    assert 0 < selected.prediction.share < 1
    assert selected.plan is selected.plan


def test_refusals_are_explained() -> None:
    reasons = dict(FORWARD.select(recurrence(8192, 32, "float32"), H200).passed_over)
    assert "256 hidden units" in reasons["single_block"]
    assert "cluster of 16" in reasons["cluster"]
    assert "does not fit" in reasons["grid_exchange"]
    older = FORWARD.select(recurrence(64, 8, "float32"), replace(H200, capability=(8, 0)))
    assert "9.0, not 8.0" in dict(older.passed_over)["cluster"]


def test_a_forced_variant_that_refuses_raises() -> None:
    with planning.force("rnn", "single_block"), pytest.raises(RuntimeError, match="256 hidden units") as error:
        FORWARD.select(recurrence(8192, 32, "float32"), H200)
    assert not isinstance(error.value, SizeError)


def test_forcing_a_variant_of_the_layer_leaves_a_single_step_alone() -> None:
    problem = CellStep(backward=False, N=3, I=8, H=16, dtype="float32", precision="ieee")
    with planning.force("rnn", "cluster"):
        assert SELECTORS["rnn_cell_forward"].select(problem, H200).variant.name == "single_step"


@pytest.mark.parametrize(
    "configuration", [Configuration("grid_exchange", "48x8"), Configuration("cluster", "64x8"), Configuration("step", "16x8")]
)
def test_a_measured_entry_is_followed(measurements: Callable[[dict[str, Any]], None], configuration: Configuration) -> None:
    problem = recurrence(512, 32, "bfloat16")
    assert FORWARD.select(problem, H200).configuration != configuration
    measurements({f"rnn_forward/{problem.key}": [*configuration, 12.5]})
    selected = FORWARD.select(problem, H200)
    assert selected.configuration == configuration
    assert selected.prediction.measured
    assert selected.prediction.seconds == pytest.approx(12.5e-6)
    backward = SELECTORS["rnn_backward"].select(problem._replace(backward=True), H200)
    assert not backward.prediction.measured


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (["single_block", "", 1, 9.0], "single_block does not take this problem"),
        (["cluster", "48x8", 1, 9.0], "cluster has no tile 48x8 here"),
        (["step", "16x32", 2, 9.0], "room for 1 of 2 splits"),
    ],
)
def test_a_measured_entry_that_cannot_be_followed_is_passed_over(
    measurements: Callable[[dict[str, Any]], None], entry: list[Any], reason: str
) -> None:
    problem = recurrence(512, 32, "bfloat16")
    measurements({f"rnn_forward/{problem.key}": entry})
    selected = FORWARD.select(problem, H200)
    assert selected.configuration.variant == "cluster"
    assert not selected.prediction.measured
    assert reason in dict(selected.passed_over)[f"{Configuration(*entry[:3])} (measured)"]


def test_an_unaligned_recurrence_is_not_in_the_table() -> None:
    assert FORWARD.key(recurrence(512, 32, "bfloat16")) is not None
    assert FORWARD.key(recurrence(512, 32, "bfloat16", aligned=False)) is None


def test_every_configuration_can_be_planned() -> None:
    for N in (1, 32):
        problem = recurrence(256, N, "float32")
        configurations = FORWARD.configurations(problem, H200)
        assert {configuration.variant for configuration in configurations} == set(FORWARD.by_name)
        kernels = set()
        for configuration in configurations:
            with planning.force("rnn_forward", configuration):
                selected = FORWARD.select(problem, H200)
            assert selected.configuration == configuration
            kernels.add(selected.plan.kernel)
        assert len(kernels) == len(configurations)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(
    ("configuration", "kernel"),
    [
        (Configuration("grid_exchange", "48x8"), "rnn_grid_exchange_kernel<half, ForwardPass<ElmanCell>, 3>"),
        (Configuration("cluster", "64x8"), "rnn_cluster_kernel<half, ForwardPass<ElmanCell>, 4>"),
        (Configuration("step", "16x8"), "rnn_step_kernel<half, ForwardPass<ElmanCell>, 1>"),
    ],
)
def test_a_forced_configuration_is_launched(configuration: Configuration, kernel: str) -> None:
    launcher = Resized(12)
    with planning.force("rnn_forward", configuration), recording() as recorded:
        Case(2, 9, 64, 1, torch.float16).check("tanh", "ieee", launcher)
    assert kernel in {plan.kernel.expression for plan in launcher.plans}
    assert recorded.selections["rnn_forward"].configuration == configuration


@pytest.mark.usefixtures("device")
def test_a_forced_tile_that_does_not_exist_raises() -> None:
    with planning.force("rnn", Configuration("cluster", "48x8")), pytest.raises(RuntimeError, match="has tiles 32x8, 64x8"):
        Case(2, 9, 64, 1, torch.float16).run("tanh", "ieee", Resized(12))


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(("multiprocessors", "row_tiles", "groups"), [(1, "4", 1), (2, "2", 1), (4, "1", 1), (12, "1", 3)])
def test_grid_exchange_cuts(multiprocessors: int, row_tiles: str, groups: int) -> None:
    launcher = Resized(multiprocessors)
    with planning.force("rnn", "grid_exchange"):
        Case(3, 20, 64, 1, torch.bfloat16).check("tanh", "ieee", launcher)
    for plan in launcher.plans:
        assert plan.kernel.arguments[-1] == row_tiles
        assert plan.config.grid == (64 // (16 * int(row_tiles)), groups, 1)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(
    ("multiprocessors", "H", "row_tiles", "size", "groups"), [(20, 64, "2", 2, 3), (20, 200, "4", 4, 3), (4, 66, "2", 4, 1)]
)
def test_cluster_cuts(multiprocessors: int, H: int, row_tiles: str, size: int, groups: int) -> None:
    launcher = Resized(multiprocessors)
    with planning.force("rnn", "cluster"):
        Case(4, 20, H, 1, torch.bfloat16, [4, 1, 3, 2] * 5).check("tanh", "ieee", launcher)
    for plan in launcher.plans:
        assert plan.kernel.arguments[-1] == row_tiles
        assert plan.config.grid == (size, groups, 1)
        assert plan.config.cluster == (size, 1, 1)


@pytest.mark.usefixtures("device")
def test_a_device_that_holds_no_waiting_blocks_takes_one_launch_per_step() -> None:
    launcher = Resized(8, resident=lambda plan: 0)
    case = Case(2, 9, 320, 1, torch.float32)
    case.check("tanh", "ieee", launcher)
    assert {plan.variant for plan in launcher.plans} == {"step"}
    with planning.force("rnn", "grid_exchange"), pytest.raises(RuntimeError, match="do not fit"):
        case.run("tanh", "ieee", launcher)


@pytest.mark.parametrize("N", [8, 9, 8 * 65535, 8 * 65535 + 1, 32 * 65535])
@pytest.mark.parametrize("function", ["rnn_forward", "rnn_cell_forward", "rnn_cell_backward"])
def test_every_tile_has_a_grid_that_can_be_launched(function: str, N: int) -> None:
    cell = CellStep(backward="backward" in function, N=N, I=24, H=8192, dtype="float32", precision="ieee")
    problem = recurrence(8192, N, "float32") if function == "rnn_forward" else cell
    selector = SELECTORS[function]
    configurations = selector.configurations(problem, H200)
    assert configurations
    for configuration in configurations:
        plan = selector.variant(configuration.variant).plan(problem, configuration, H200)
        assert plan.config.grid[1] <= 65535
        assert plan.config.grid[2] <= 65535
    narrow = Configuration(configurations[0].variant, "16x8")
    with planning.force(function, narrow):
        if N <= 8 * 65535:
            assert selector.select(problem, H200).configuration == narrow
        else:
            with pytest.raises(RuntimeError, match=r"has (no tile|tiles 16x32 .*, not) '16x8'"):
                selector.select(problem, H200)
