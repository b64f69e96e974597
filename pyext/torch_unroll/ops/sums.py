"""Sums of terms that may be absent, as gradients and tangents may be."""

from __future__ import annotations

from torch import Tensor


def add(*terms: Tensor | None) -> Tensor | None:
    """The sum of the terms that are not None; None if there are none."""
    present = [term for term in terms if term is not None]
    return sum(present[1:], present[0]) if present else None
