"""The check of a call's results against float64, with a tolerance taken from torch's own results in the same dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_unroll.testing import assert_as_accurate


def relative_error(results: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The largest ‖result − exact‖ / ‖exact‖ of all results."""
    return max((_distance(result, expected) for result, expected in zip(results, exact, strict=True)), default=0.0)


def _distance(result: Tensor, exact: Tensor) -> float:
    return float((result.double() - exact).norm() / exact.norm().clamp(min=1e-300))


def complaint(results: Sequence[Tensor], exact: Sequence[Tensor], torchs: Sequence[Tensor]) -> str | None:
    """What is wrong with the results; None if every result is accurate enough."""
    if len(results) != len(exact):
        return f"{len(exact)} results expected, got {len(results)}"
    for i, (result, expected, theirs) in enumerate(zip(results, exact, torchs, strict=True)):
        try:
            assert_as_accurate(result, theirs, expected, f"result {i}")
        except AssertionError as error:
            return str(error).splitlines()[0]
    return None


def finite(results: Sequence[Tensor]) -> bool:
    """Whether all elements are finite, so that results can be compared with them."""
    return all(bool(torch.isfinite(result).all()) for result in results)
