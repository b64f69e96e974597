"""The harness detects three kinds of fault that are planted in the package one at a time, and reports nothing without them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.differential.harness import Case, judge
from tests.differential.isolation import Apart, judge_apart
from torch_unroll.nn import pooling
from torch_unroll.ops import registration

AUTOCAST = Case("conv2d", "direct", "autocast_bfloat16", "torch")
TRACE = Case("MaxPool2d-plain", "direct", "traced", "torch")
EXTENT = Case("RNN-hx", "direct", "traced_and_given_a_further_input_of_another_batch", "cuda")


@pytest.mark.parametrize("case", [AUTOCAST, TRACE, EXTENT], ids=str)
def test_no_difference_is_reported_without_a_fault(case: Case) -> None:
    assert judge_apart(case).difference is None


def test_an_op_that_does_not_lower_its_inputs_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registration, "lower", lambda inputs, device_type: inputs)
    difference = judge(AUTOCAST).difference
    assert difference is not None
    assert "float32" in difference
    assert "bfloat16" in difference


def test_a_number_frozen_into_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trace contains the batch size of its example as a constant, so it is wrong for an input with another batch size."""
    function = pooling.max_pool2d

    def frozen(input: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        batch = int(input.shape[0])
        return function(input[:batch], *arguments, **options).reshape(batch, 3, 2, 2)

    monkeypatch.setattr(pooling, "max_pool2d", frozen)
    assert judge(TRACE).difference is not None


def test_an_op_that_does_not_look_at_an_extent() -> None:
    """The trace of a recurrence gets h0 for three samples and an input for five, so the unchecked kernel reads past the end of
    h0."""
    apart = Apart("tests.differential.plants.unchecked_recurrence")
    try:
        difference = apart.judge(EXTENT).difference
    finally:
        apart.end()
    assert difference is not None
    assert "only one of them raises" in difference or "ended the process" in difference
