"""How far a kernel's result may lie from the exact one. The bounds follow from the arithmetic alone.

A result is a sum of n terms: products of two operands, which are exact in the accumulator if the operands are 16-bit or TF32
numbers, and other terms such as a bias. S is the sum of the magnitudes of the terms. The terms are added in an accumulator, in
any order and in any number of partial sums that are added later, and the sum is narrowed to the type of the result.

Addition that rounds to nearest has unit roundoff u. A term meets at most n roundings: those of n - 1 additions and, if it is a
product, its own. The error is therefore at most n u S to first order, and n u / (1 - n u) S in all.

Addition in tensor cores is not documented; `tests/emulator/runtime/arithmetic.h` cites the measurements. Up to 16 products and
the sum so far are aligned to the largest exponent among them and truncated after the 25th binary place. That costs each term at
most 2^-25 of the largest magnitude, which S bounds, and costs the largest term, which has at most 24 bits, nothing. The sum is
exact and is truncated to 24 bits, which costs at most 2^-23 of it. An instruction that adds m terms to a sum therefore errs by at
most (m / 4 + 1) 2^-23 S. Since m is at least 1 (adding zeros changes nothing), all instructions together err by at most n (5 / 4)
2^-23 S. That is more than n u S = n 2^-24 S, so this bound holds for both kinds of addition.

Operands that are rounded first, from fp32 to TF32, have a relative error d. The magnitude of a product then grows by a factor of
at most (1 + d)^2, and the product changes by at most (1 + d)^2 - 1 times its magnitude.

Narrowing adds u' times the magnitude of the narrowed number, where u' is the unit roundoff of the result type; below its normal
numbers, it adds half the distance between two neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torch_unroll.testing.compare import ROUNDING

#: The error per term relative to S, by the type of the result; only float64 has an accumulator other than fp32.
ADDITION = {
    torch.float16: 1.25 * 2.0**-23,
    torch.bfloat16: 1.25 * 2.0**-23,
    torch.float32: 1.25 * 2.0**-23,
    torch.float64: 2.0**-52,  # one rounding of 2^-53 for each addition, and one for each product
}
#: The relative error of fp32 operands of TF32 products: rounded to nearest by the kernel, or converted by TMA, whose
#: documentation does not say whether it rounds or truncates.
ROUNDED_TF32, COPIED_TF32 = 2.0**-11, 2.0**-10


def sum_error(products: Tensor, terms: int, dtype: torch.dtype, *, added: Tensor | float = 0.0, operand: float = 0.0) -> Tensor:
    """The largest error of a sum in its accumulator.

    Args:
        products: for each result, the sum of the magnitudes of its products.
        terms: the largest number of terms of a result.
        dtype: the dtype of the result.
        added: the sum of the magnitudes of the other terms.
        operand: the relative error of the operands: 0, `ROUNDED_TF32` or `COPIED_TF32`.
    """
    relative = terms * ADDITION[dtype]
    growth = (1 + operand) ** 2
    return relative / (1 - relative) * (growth * products + added) + (growth - 1) * products


def narrowing_bound(exact: Tensor, error: Tensor, dtype: torch.dtype) -> Tensor:
    """The largest error of a result that had the error `error` before it was narrowed to `dtype`."""
    subnormal = torch.finfo(dtype).smallest_normal * ROUNDING[dtype]
    return error + ROUNDING[dtype] * (exact.abs() + error) + subnormal


def sum_bound(
    exact: Tensor, products: Tensor, terms: int, dtype: torch.dtype, *, added: Tensor | float = 0.0, operand: float = 0.0
) -> Tensor:
    """The largest error of each narrowed sum; the arguments are those of `sum_error`."""
    return narrowing_bound(exact, sum_error(products, terms, dtype, added=added, operand=operand), dtype)


def assert_within(result: Tensor, exact: Tensor, bound: Tensor, what: str = "result") -> None:
    """Asserts that every element of `result` lies within its own bound around `exact` (float64)."""
    assert result.shape == exact.shape, f"{what}: expected shape {tuple(exact.shape)}, got {tuple(result.shape)}"
    error = (result.double() - exact).abs()
    outside = ~(error <= bound)  # true for NaN as well
    if not outside.any():
        return
    place = tuple(outside.nonzero()[0].tolist())
    raise AssertionError(
        f"{what}: {int(outside.sum())} of {outside.numel()} elements are too far off; the one at {place}: expected "
        f"{exact[place].item():.9g} within {bound.expand_as(error)[place].item():.3g}, got {result[place].item():.9g}"
    )
