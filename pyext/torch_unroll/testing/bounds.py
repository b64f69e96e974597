"""How far a kernel's result may lie from the exact one. The bounds follow from the arithmetic alone.

A result is a sum of n terms: products, each of two numbers of the operands' type and so exact, and what is added to them, such as
a bias. S is the sum of the terms' magnitudes. The terms are added in an accumulator, in any order and in any number of parts
that are added later, and the sum is narrowed to the type of the result.

Addition, rounded to nearest with unit roundoff u. A term takes part in at most n additions, one of which may be the rounding of
its product where a kernel does not fuse it: the error is at most n u S to first order, n u / (1 - n u) S in all.

Addition in tensor cores, which is nowhere documented; `tests/emulator/runtime/arithmetic.h` names those who found out. Up to
16 products and the sum so far are aligned to the largest exponent among them and cut off behind the 25th binary place: that costs
each term at most 2^-25 of the largest one's magnitude, which S bounds, and the largest one, of at most 24 bits, nothing. The sum
is exact and cut off to 24 bits: at most 2^-23 of it. An instruction that adds m terms to a sum errs by (m / 4 + 1) 2^-23 S at
most, and since m is 1 or more (what adds zeros changes nothing), all of them together by n (5 / 4) 2^-23 S. That is more than
n u S = n 2^-24 S, so it holds for both.

Operands that are themselves rounded, fp32 to TF32, have a relative error d: the products' magnitudes grow by (1 + d)^2 at most,
and the products change by (1 + d)^2 - 1 of theirs.

Narrowing adds u' times the magnitude of what is narrowed, u' being the result type's; below its normal numbers half the distance
between two of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torch_unroll.testing.compare import ROUNDING

#: For each term, relative to S; by the result's type, of which float64 has an accumulator of its own.
ADDITION = {
    torch.float16: 1.25 * 2.0**-23,
    torch.bfloat16: 1.25 * 2.0**-23,
    torch.float32: 1.25 * 2.0**-23,
    torch.float64: 2.0**-52,  # as many roundings of 2^-53 as terms, and one for each product
}
#: The relative error of fp32 numbers as TF32 products take them: rounded to nearest by the kernel, or by the copy engine, of
#: which nobody says whether it rounds or truncates.
ROUNDED_TF32, COPIED_TF32 = 2.0**-11, 2.0**-10


def sum_error(products: Tensor, terms: int, dtype: torch.dtype, *, added: Tensor | float = 0.0, operand: float = 0.0) -> Tensor:
    """The most by which a sum may be off in its accumulator.

    Args:
        products: the sum of the products' magnitudes, for each result.
        terms: how many terms a result has at most.
        dtype: the result's.
        added: the sum of the other terms' magnitudes.
        operand: the relative error of the operands, `ROUNDED_TF32` or `COPIED_TF32`.
    """
    relative = terms * ADDITION[dtype]
    growth = (1 + operand) ** 2
    return relative / (1 - relative) * (growth * products + added) + (growth - 1) * products


def narrowing_bound(exact: Tensor, error: Tensor, dtype: torch.dtype) -> Tensor:
    """The most by which a result may be off that was narrowed to `dtype` with an error already."""
    subnormal = torch.finfo(dtype).smallest_normal * ROUNDING[dtype]
    return error + ROUNDING[dtype] * (exact.abs() + error) + subnormal


def sum_bound(
    exact: Tensor, products: Tensor, terms: int, dtype: torch.dtype, *, added: Tensor | float = 0.0, operand: float = 0.0
) -> Tensor:
    """The most by which a sum may be off, for each result; arguments as of `sum_error`."""
    return narrowing_bound(exact, sum_error(products, terms, dtype, added=added, operand=operand), dtype)


def assert_within(result: Tensor, exact: Tensor, bound: Tensor, what: str = "result") -> None:
    """Every element of `result` lies within its own bound around `exact` (float64)."""
    assert result.shape == exact.shape, f"{what}: expected shape {tuple(exact.shape)}, got {tuple(result.shape)}"
    error = (result.double() - exact).abs()
    outside = ~(error <= bound)  # of NaN too
    if not outside.any():
        return
    place = tuple(outside.nonzero()[0].tolist())
    raise AssertionError(
        f"{what}: {int(outside.sum())} of {outside.numel()} elements are too far off; the one at {place}: expected "
        f"{exact[place].item():.9g} within {bound.expand_as(error)[place].item():.3g}, got {result[place].item():.9g}"
    )
