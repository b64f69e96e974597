"""When two results count as equal.

A result and torch's own result in the same dtype are both compared with a float64 result. The error may be up to twice torch's,
plus 4 roundings (64 in float64) for the different order of the sums.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Half the distance between 1 and the next number, which is the largest relative error of one rounding.
ROUNDING = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float32: 2.0**-24, torch.float64: 2.0**-53}


def _distance(result: Tensor, exact: Tensor) -> tuple[float, float]:
    """‖result − exact‖ / ‖exact‖, and the largest element of the difference relative to the largest element of exact."""
    difference = (result.double() - exact).abs()
    return (
        float(difference.norm() / exact.norm().clamp(min=1e-300)),
        float(difference.max() / exact.abs().max().clamp(min=1e-300)),
    )


def assert_as_accurate(result: Tensor, torchs: Tensor, exact: Tensor, what: str = "result") -> None:
    """Asserts that `result` is at most twice as far from `exact` (float64) as torch's own result in the same dtype, plus 4
    roundings (64 in float64); integers have to be equal."""
    assert result.shape == exact.shape, f"{what}: expected shape {tuple(exact.shape)}, got {tuple(result.shape)}"
    assert result.dtype == torchs.dtype, f"{what}: expected {torchs.dtype}, got {result.dtype}"
    if exact.numel() == 0:
        return
    if not result.is_floating_point():
        assert_exact(result, exact, what)
        return
    result, torchs, exact = result.cpu(), torchs.cpu(), exact.cpu()
    assert bool(torch.isfinite(result).all()) == bool(torch.isfinite(exact).all()), f"{what}: not finite where it should be"
    # In float64, torch's result is the reference itself, so the slack has to cover the roundings of both sums.
    slack = (64 if result.dtype == torch.float64 else 4) * ROUNDING[result.dtype]
    for kind, ours, theirs in zip(("norm", "elementwise"), _distance(result, exact), _distance(torchs, exact), strict=True):
        assert ours <= 2 * theirs + slack, f"{what}: {kind} error {ours:.3g}, torch's own {theirs:.3g}"


def assert_exact(result: Tensor, expected: Tensor, what: str = "result") -> None:
    """Asserts equality of all values, with NaN equal to NaN: for data whose sums do not round, and for two runs of a call."""
    torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True, msg=lambda text: f"{what}: {text}")
