"""Whether a call is right, before it is timed: each result is compared with float64, beside torch's own in the same dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_unroll.testing import assert_as_accurate


def error(results: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The largest ‖result − exact‖ / ‖exact‖ over the results."""
    return max((_distance(result, each) for result, each in zip(results, exact, strict=True)), default=0.0)


def _distance(result: Tensor, exact: Tensor) -> float:
    return float((result.double() - exact).norm() / exact.norm().clamp(min=1e-300))


def complaint(results: Sequence[Tensor], exact: Sequence[Tensor], torchs: Sequence[Tensor]) -> str | None:
    """None if every result is as accurate as it should be; else what is wrong."""
    if len(results) != len(exact):
        return f"{len(exact)} results expected, got {len(results)}"
    for i, (result, wanted, theirs) in enumerate(zip(results, exact, torchs, strict=True)):
        try:
            assert_as_accurate(result, theirs, wanted, f"result {i}")
        except AssertionError as problem:
            return str(problem).splitlines()[0]
    return None


def finite(results: Sequence[Tensor]) -> bool:
    """Whether a reference can be compared with at all."""
    return all(bool(torch.isfinite(result).all()) for result in results)
