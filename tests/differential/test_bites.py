"""Faults of three kinds, planted into the package one at a time: the harness must find each, and nothing without them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch

from tests.differential.harness import Case, judge
from torch_unroll import registration
from torch_unroll.nn import pooling

AUTOCAST = Case("conv2d", "direct", "autocast_bfloat16", "torch")
TRACE = Case("MaxPool2d-plain", "direct", "traced", "torch")
EXTENT = Case("max_over_time-lengths", "direct", "a_further_input_too_long", "torch")


@pytest.mark.parametrize("case", [AUTOCAST, TRACE, EXTENT], ids=str)
def test_nothing_is_found_without_a_fault(case: Case) -> None:
    assert judge(case).difference is None


def test_an_op_that_does_not_lower_its_inputs_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registration, "lower", lambda inputs, device_type: inputs)
    difference = judge(AUTOCAST).difference
    assert difference is not None
    assert "float32" in difference
    assert "bfloat16" in difference


def test_a_number_frozen_into_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch of the example, read as a number of Python's, in place of the one that the program is run on."""
    function = pooling.max_pool2d

    def frozen(input: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        batch = int(input.shape[0])
        return function(input[:batch], *arguments, **options).reshape(batch, 3, 2, 2)

    monkeypatch.setattr(pooling, "max_pool2d", frozen)
    assert judge(TRACE).difference is not None


def test_an_op_that_does_not_look_at_an_extent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengths of another batch than x's are taken, and cut to fit."""
    max_pool2d = import_module("torch_unroll.max_pool2d")  # the package has a function of that name
    forward = max_pool2d.max_over_time_forward
    monkeypatch.setattr(max_pool2d, "require", lambda condition, message: None)
    monkeypatch.setattr(max_pool2d, "max_over_time_forward", lambda x, n, *rest: forward(x, n[: x.shape[1]], *rest))
    difference = judge(EXTENT).difference
    assert difference is not None
    assert "only one of them raises" in difference
