"""Whether a call is right, before it is timed: each result is compared with float64, beside torch's own in the same dtype."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.ops.operation import Tensors
from torch_unroll.testing import assert_as_accurate


@dataclass(frozen=True)
class Reference:
    """Results of torch in float64, and in the case's own dtype."""

    exact: Sequence[Tensor]
    torchs: Sequence[Tensor]


def reference(case: Case, tensors: Tensors) -> Reference:
    """What the case should give for these inputs."""
    operation = case.operation
    exact = operation.call(case, {name: tensor.double() for name, tensor in tensors.items()}, "eager")()
    return Reference(exact, operation.call(case, tensors, "eager")())


def error(results: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The largest ‖result − exact‖ / ‖exact‖ over the results."""
    ratios = [
        float((result.double() - each).norm() / each.norm().clamp(min=1e-300))
        for result, each in zip(results, exact, strict=True)
    ]
    return max(ratios, default=0.0)


def complaint(results: Sequence[Tensor], wanted: Reference) -> str | None:
    """None if every result is as accurate as it should be; else what is wrong."""
    if len(results) != len(wanted.exact):
        return f"{len(wanted.exact)} results expected, got {len(results)}"
    for i, (result, torchs, exact) in enumerate(zip(results, wanted.torchs, wanted.exact, strict=True)):
        try:
            assert_as_accurate(result, torchs, exact, f"result {i}")
        except AssertionError as problem:
            return str(problem).splitlines()[0]
    return None


def finite(results: Sequence[Tensor]) -> bool:
    """Whether a reference can be compared with at all."""
    return all(bool(torch.isfinite(result).all()) for result in results)
