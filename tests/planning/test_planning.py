"""The selection of variants for a made-up op: by prediction, by force and by measurement, with the reasons that it gives."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from torch_unroll.kernels import planning
from torch_unroll.kernels.hardware import Device
from torch_unroll.kernels.planning import Configuration, Prediction, Selector, Variant, force
from torch_unroll.kernels.shapes import SizeError
from torch_unroll.kernels.table import Kernel, LaunchConfig, LaunchPlan

DEVICE = Device(132, (9, 0), 227 << 10, 50 << 20, "a GPU")


class Sum(NamedTuple):
    """The problem of adding `count` numbers."""

    count: int
    key: str | None = "dense"


class Made(Variant[Sum]):
    """A variant whose predicted seconds are given: (tile, splits) -> seconds."""

    def __init__(self, name: str, seconds: dict[tuple[str, int], float], limit: int = 2**31):
        self.name, self.seconds, self.limit = name, seconds, limit

    def refuses(self, problem: Sum, device: Device) -> str | None:
        return f"sums up to {self.limit} numbers" if problem.count > self.limit else None

    def tiles(self, problem: Sum, device: Device) -> Sequence[str]:
        return tuple(dict.fromkeys(tile for tile, _ in self.seconds))

    def splits(self, problem: Sum, tile: str, device: Device) -> Sequence[int]:
        return tuple(splits for name, splits in self.seconds if name == tile)

    def plan(self, problem: Sum, configuration: Configuration, device: Device) -> LaunchPlan:
        config = LaunchConfig((4, 1, 1), (32, 1, 1), cooperative=self.blocks_wait)
        return LaunchPlan(Kernel("sum/sum.cuh", "sum_kernel"), config, self.name)

    def predict(self, problem: Sum, configuration: Configuration, device: Device) -> Prediction:
        return Prediction(self.seconds[configuration.tile, configuration.splits], "bytes", share=0.5)


class Waiting(Made):
    blocks_wait = True


class Last(Made):
    last_resort = True


class Hesitant(Made):
    def handicap(self, problem: Sum, configuration: Configuration) -> float:
        return 1.5 if configuration.splits > 1 else 1.0


def selector(*variants: Made, margin: float = 1.0) -> Selector[Sum]:
    return Selector("sum", "sum_forward", variants, margin)


FAST, SLOW = Made("fast", {("8", 1): 2.0, ("8", 2): 1.0}, limit=100), Made("slow", {("4", 1): 4.0})


def test_the_least_predicted_time_is_selected_and_explains_itself() -> None:
    selected = selector(SLOW, FAST).select(Sum(10), DEVICE)
    assert selected.configuration == Configuration("fast", "8", 2)
    assert selected.passed_over == (("slow", "fast is predicted to be faster"),)
    assert selected.plan.variant == "fast"
    assert str(selected) == "fast 8, 2 splits: predicted 1e+06 µs, 50.0% of the dense rate, bound by bytes; workspace 0 B"


@pytest.mark.parametrize(("seconds", "expected"), [(1.0, "first"), (0.81, "first"), (0.79, "second")])
def test_a_preferred_variant_gives_way_by_a_margin(seconds: float, expected: str) -> None:
    first, second = Made("first", {("", 1): 1.0}), Made("second", {("", 1): seconds})
    selected = selector(first, second, margin=1.25).select(Sum(1), DEVICE)
    assert selected.configuration.variant == expected
    reason = (("first", "second is predicted to be more than 1.25 times as fast"),)
    assert selected.passed_over == (reason if expected == "second" else ())


@pytest.mark.parametrize(("seconds", "splits"), [(0.9, 1), (0.67, 1), (0.66, 2)])
def test_a_handicap_holds_within_a_variant(seconds: float, splits: int) -> None:
    variant = Hesitant("only", {("", 1): 1.0, ("", 2): seconds})
    assert selector(variant).select(Sum(1), DEVICE).configuration.splits == splits


def test_a_last_resort_is_selected_only_where_nothing_else_takes_the_problem() -> None:
    last = Last("last", {("", 1): 0.1})
    assert selector(FAST, last).select(Sum(100), DEVICE).configuration.variant == "fast"
    selected = selector(FAST, last).select(Sum(101), DEVICE)
    assert selected.configuration.variant == "last"
    assert selected.passed_over == (("fast", "sums up to 100 numbers"),)


def test_nothing_takes_a_problem() -> None:
    with pytest.raises(SizeError, match=r"sum_forward: no variant takes Sum\(count=101, .*: fast: sums up to 100 numbers"):
        selector(FAST).select(Sum(101), DEVICE)


def test_blocks_that_wait_for_each_other_are_resident_together() -> None:
    waiting = Waiting("waiting", {("", 1): 1.0})
    holds_four, holds_three = (replace(DEVICE, resident=lambda plan, blocks=blocks: blocks) for blocks in (4, 3))
    assert selector(waiting, SLOW).select(Sum(1), holds_four).configuration.variant == "waiting"
    selected = selector(waiting, SLOW).select(Sum(1), holds_three)
    assert selected.configuration.variant == "slow"
    assert selected.passed_over == (("waiting", "its (4, 1, 1) blocks do not fit on a GPU together"),)
    both = selector(waiting, SLOW)
    for forced in ("waiting", Configuration("waiting")):
        with force("sum", forced), pytest.raises(RuntimeError, match="do not fit on a GPU together"):
            both.select(Sum(1), holds_three)


# ---- forcing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sum", "sum_forward"])
def test_a_forced_variant_or_configuration_is_selected(name: str) -> None:
    both = selector(FAST, SLOW)
    with force(name, "slow"):
        selected = both.select(Sum(1), DEVICE)
        assert selected.configuration == Configuration("slow", "4")
        assert selected.passed_over == (("fast", "slow is asked for"),)
        with force(name, Configuration("fast", "8", 99)):
            assert both.select(Sum(1), DEVICE).configuration == Configuration("fast", "8", 2)
        assert both.select(Sum(1), DEVICE).configuration.variant == "slow"
    assert both.select(Sum(1), DEVICE).configuration.variant == "fast"


def test_what_is_forced_and_does_not_fit_raises() -> None:
    both = selector(FAST, SLOW)
    with (
        force("sum", "fast"),
        pytest.raises(RuntimeError, match=r"no variant takes .*: fast: sums up to 100 numbers$") as error,
    ):
        both.select(Sum(101), DEVICE)
    assert not isinstance(error.value, SizeError)
    with force("sum", Configuration("fast", "9")), pytest.raises(RuntimeError, match=r"fast has tiles 8 for .*, not '9'"):
        both.select(Sum(1), DEVICE)
    plain = selector(Made("plain", {("", 1): 1.0}))
    with force("sum", Configuration("plain", "9")), pytest.raises(RuntimeError, match=r"plain has no tiles for .*, not '9'"):
        plain.select(Sum(1), DEVICE)


@pytest.mark.parametrize("choice", ["none", Configuration("none", "8")])
def test_an_unknown_variant_or_function_cannot_be_forced(choice: str | Configuration) -> None:
    both = selector(FAST, SLOW)
    with pytest.raises(ValueError, match="variant of sum: expected one of fast, slow, got 'none'"), force("sum", choice):
        pass
    with (
        pytest.raises(ValueError, match=r"name: expected one of .*conv2d_dgrad.*, got 'conv2d_drgad'"),
        force("conv2d_drgad", "simt"),
    ):
        pass
    assert both.select(Sum(1), DEVICE).configuration.variant == "fast"


def test_a_function_that_lacks_the_variant_of_its_op_selects_as_usual() -> None:
    forward = selector(FAST, SLOW)
    backward: Selector[Sum] = Selector("sum", "sum_backward", (FAST,))
    with force("sum", "slow"):
        assert forward.select(Sum(1), DEVICE).configuration.variant == "slow"
        assert backward.select(Sum(1), DEVICE).configuration.variant == "fast"
    with (
        pytest.raises(ValueError, match="variant of sum_backward: expected one of fast, got 'slow'"),
        force("sum_backward", "slow"),
    ):
        pass


def test_the_end_of_a_block_that_raises_forces_nothing() -> None:
    both = selector(FAST, SLOW)
    with pytest.raises(ZeroDivisionError), force("sum", "slow"):
        raise ZeroDivisionError
    assert both.select(Sum(1), DEVICE).configuration.variant == "fast"


# ---- measurements ------------------------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "choices.json"
    monkeypatch.setattr(planning, "table_path", lambda op: path)
    planning.forget()
    yield path
    planning.forget()


def enter(table: Path, variant: str, tile: str, splits: int, device: str = "a GPU", key: str = "sum_forward/dense") -> None:
    table.write_text(json.dumps({"devices": {device: {key: [variant, tile, splits, 2_000_000]}}}))
    planning.forget()


def test_a_measurement_is_followed(table: Path) -> None:
    enter(table, "slow", "4", 1)
    selected = selector(FAST, SLOW).select(Sum(1), DEVICE)
    assert selected.configuration == Configuration("slow", "4")
    assert selected.passed_over == (("fast", "slow was measured to be fastest"),)
    assert str(selected) == "slow 4: measured 2e+06 µs, 100.0% of the dense rate, bound by bytes; workspace 0 B"


@pytest.mark.parametrize(
    ("entry", "count", "reason"),
    [
        (("gone", "4", 1), 1, "gone does not take this problem"),
        (("fast", "8", 1), 101, "fast does not take this problem"),
        (("slow", "5", 1), 1, "slow has no tile 5 here"),
        (("slow", "4", 3), 1, "the workspace has room for 1 of 3 splits"),
    ],
)
def test_a_measurement_that_cannot_be_followed_is_passed_over(
    table: Path, entry: tuple[str, str, int], count: int, reason: str
) -> None:
    without = selector(FAST, SLOW).select(Sum(count), DEVICE)
    enter(table, *entry)
    selected = selector(FAST, SLOW).select(Sum(count), DEVICE)
    assert selected.configuration == without.configuration
    assert not selected.prediction.measured
    assert selected.passed_over[0] == (f"{Configuration(*entry)} (measured)", reason)


def test_a_measurement_holds_for_its_device_problem_and_function_alone(table: Path) -> None:
    both = selector(FAST, SLOW)
    for device, key in (("another GPU", "sum_forward/dense"), ("a GPU", "sum_forward/other"), ("a GPU", "sum_backward/dense")):
        enter(table, "slow", "4", 1, device, key)
        assert both.select(Sum(1), DEVICE).configuration.variant == "fast"
    enter(table, "slow", "4", 1)
    assert both.select(Sum(1, key=None), DEVICE).configuration.variant == "fast"
    with force("sum", "fast"):
        assert both.select(Sum(1), DEVICE).configuration.variant == "fast"
