"""What a wrong result tells: how many elements, which, and in what pattern."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from benchmarks.gpu.case import Case


def evidence(case: Case, name: str, result: Tensor, expected: Tensor) -> dict[str, Any]:
    """What is kept of a wrong result."""
    differs = (result != expected).nonzero()
    return {
        "result": name,
        "shape": list(expected.shape),
        "wrong": len(differs),
        "first": [[*place, result[tuple(place)].item(), expected[tuple(place)].item()] for place in differs[:8].tolist()],
    }
