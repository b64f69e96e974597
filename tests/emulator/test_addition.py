"""Compares mma.sync and wgmma, in the truncating mode of `runtime/arithmetic.h`, with that mode's rule in rational arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import hopper_model as model
import numpy as np
import pytest
import torch
from emulated import Emulator, emulate, launch_config
from hopper_launches import MAJORS, NAMES, ROWS, multiply, random_matrix, words
from test_platform import MATRICES, ProductParameters
from torch import Tensor

from torch_unroll.testing.bounds import sum_error

DTYPES = {"half": torch.float16, "bfloat16": torch.bfloat16, "float": torch.float32}
DEPTH = {"half": 16, "bfloat16": 16, "float": 8}
LEAST_EXPONENT = {"half": -14, "bfloat16": -126, "float": -126}


@pytest.fixture(scope="module")
def matrices() -> Emulator:
    return emulate(MATRICES, "matrices")


@pytest.fixture(scope="module")
def hopper() -> Emulator:
    return emulate(ROWS, "hopper")


# ---- the rule


def exponent(value: float, least: int) -> int:
    return max(math.frexp(value)[1] - 1, least)


def cut(value: Fraction, place: int) -> Fraction:
    """Truncates a value to a multiple of 2^place."""
    unit = Fraction(2) ** place
    return int(value / unit) * unit


def added(c: float, a: list[float], b: list[float], dtype: str) -> float:
    """One element of D = C + A B by one truncating instruction, from an element of C, a row of A and a column of B."""
    if not math.isfinite(c):
        return c
    least = LEAST_EXPONENT[dtype]
    terms = [(Fraction(c), exponent(c, -126))] if c else []
    terms += [(Fraction(x) * Fraction(y), exponent(x, least) + exponent(y, least)) for x, y in zip(a, b, strict=True) if x and y]
    if not terms:
        return 0.0
    most = max(place for _, place in terms)
    total = sum(cut(term, most - 25) for term, _ in terms)
    if abs(total) >= 2**128:
        return math.copysign(math.inf, total)
    size = abs(total)
    place = size.numerator.bit_length() - size.denominator.bit_length()
    place -= size < Fraction(2) ** place
    return float(cut(total, max(place, -126) - 23))


def product(c: Tensor, a: Tensor, b: Tensor, dtype: str) -> Tensor:
    """C + A B^T for C (M, N), A (M, K) and B (N, K), by as many instructions as K needs."""
    depth, rows, columns = DEPTH[dtype], a.tolist(), b.tolist()
    d = c.tolist()
    for m, row in enumerate(rows):
        for n, column in enumerate(columns):
            for k in range(0, len(row), depth):
                d[m][n] = added(d[m][n], row[k : k + depth], column[k : k + depth], dtype)
    return torch.tensor(d, dtype=torch.float32)


# ---- operands


def _normal(shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=draw)


def _scaled(low: int, high: int) -> Callable[[tuple[int, ...], torch.Generator], Tensor]:
    def make(shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=draw) * 2.0 ** torch.randint(low, high, shape, generator=draw)

    return make


def _cancelling(shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    """The second half of the depth nearly repeats the first, with the opposite sign if the matrix has 16 rows.

    If A has 16 rows and B has another number, as for mma.sync, the products of the two halves almost cancel.
    """
    half = torch.randn(*shape[:-1], shape[-1] // 2, generator=draw) * 8
    return torch.cat((half, (-half if shape[0] == 16 else half) * (1 + 2.0**-6)), -1)


def _one_large(shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    """One large element in each row, so that the last bits of the small products are truncated."""
    values = torch.randn(shape, generator=draw) * 2.0**-11
    values[..., 0] = 1
    return values


def _mostly_zero(shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=draw) * (torch.rand(shape, generator=draw) < 0.2)


OPERANDS: dict[str, Callable[[tuple[int, ...], torch.Generator], Tensor]] = {
    "normal": _normal,
    "wide": _scaled(-9, 10),
    "small": _scaled(-24, -12),  # subnormal in fp16
    "cancelling": _cancelling,
    "one large": _one_large,
    "mostly zero": _mostly_zero,
}
EXTREMES: dict[str, float] = {"subnormal sums": 2.0**-68, "overflow": 2.0**64}


def narrowed(values: Tensor, dtype: str) -> Tensor:
    if dtype == "float":
        return (values.view(torch.int32) & ~0x1FFF).view(torch.float32)
    return values.to(DTYPES[dtype])


def operands(kind: str, dtype: str, rows: int, columns: int, depth: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    scale, make = EXTREMES.get(kind, 1.0), OPERANDS.get(kind, _normal)
    return (
        narrowed(make((rows, depth), draw) * scale, dtype),
        narrowed(make((columns, depth), draw) * scale, dtype),
    )


KINDS = [(dtype, kind) for dtype in DTYPES for kind in (*OPERANDS, *(EXTREMES if dtype != "half" else ()))]


def mma(emulator: Emulator, dtype: str, c: Tensor, a: Tensor, b: Tensor) -> Tensor:
    d = torch.zeros(16, 8)
    kernel = "mma_tf32_kernel<float>" if dtype == "float" else f"mma_16bit_kernel<{dtype}>"
    parameters = ProductParameters(*(tensor.data_ptr() for tensor in (a, b, c, d)))
    emulator.launch(kernel, launch_config(1, 32, shared_bytes=1024), parameters)
    return d


def wgmma(emulator: Emulator, dtype: str, a: Tensor, b: Tensor) -> Tensor:
    kernel = f"wgmma_kernel<{dtype}, 64, {MAJORS[0]}, Mistake::none>"
    return torch.from_numpy(multiply(emulator, kernel, *(model.depth_major(words(tensor), 64) for tensor in (a, b)), 64))


@pytest.mark.parametrize(("dtype", "kind"), KINDS)
def test_mma_truncates_as_the_rule_says(matrices: Emulator, dtype: str, kind: str) -> None:
    a, b = operands(kind, dtype, 16, 8, DEPTH[dtype])
    for scale in (0.0, 1.0, 2.0**12, 2.0**-20, 2.0**-136):
        c = torch.randn(16, 8, generator=torch.Generator().manual_seed(1)) * scale
        with matrices.arithmetic(addition=True):
            d = mma(matrices, dtype, c, a, b)
        torch.testing.assert_close(d, product(c, a, b, dtype), rtol=0, atol=0)


@pytest.mark.parametrize(("dtype", "kind"), KINDS)
def test_wgmma_truncates_as_the_rule_says(hopper: Emulator, dtype: str, kind: str) -> None:
    a, b = operands(kind, dtype, 64, 64, 2 * DEPTH[dtype])
    with hopper.arithmetic(addition=True):
        d = wgmma(hopper, dtype, a, b)
    expected = product(torch.ones(16, 64), a[::4], b, dtype)
    torch.testing.assert_close(d[::4], expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("terms", "nearest", "truncated"),
    [
        ((2.0**-24, 2.0**-24), 1, 1 + 2.0**-23),  # all terms are added before the sum is truncated
        ((1.5 * 2.0**-24, 0), 1 + 2.0**-23, 1),
        ((2.0**-25, 2.0**-25), 1, 1),
        ((-(2.0**-25), 0), 1, 1 - 2.0**-24),  # terms are kept down to the bit 2**-25 of the largest one
        ((-(2.0**-26), -(2.0**-26)), 1, 1),  # smaller terms are each cut to 0 before they are added
        ((-(2.0**-24), 0), 1 - 2.0**-24, 1 - 2.0**-24),
    ],
)
def test_what_is_cut_off(matrices: Emulator, dtype: str, terms: tuple[float, float], nearest: float, truncated: float) -> None:
    a, b, c = torch.zeros(16, DEPTH[dtype]), torch.zeros(8, DEPTH[dtype]), torch.ones(16, 8)
    a[0, :2], b[0, :2] = torch.tensor(terms) * 2.0**13, 2.0**-13
    for truncate, expected in ((False, nearest), (True, truncated)):
        with matrices.arithmetic(addition=truncate):
            assert mma(matrices, dtype, c, narrowed(a, dtype), narrowed(b, dtype))[0, 0].item() == expected


# ---- the error bounds that the kernels' tests use


def excess(c: Tensor, a: Tensor, b: Tensor, d: Tensor) -> float:
    """The largest ratio of the error of an element of D = C + A B^T to the error bound of that element's sum."""
    wide = (c.double(), a.double(), b.double())
    exact, magnitude = wide[0] + wide[1] @ wide[2].T, wide[1].abs() @ wide[2].abs().T
    bound = sum_error(magnitude, a.shape[1] + 1, torch.float32, added=wide[0].abs())
    return float(((d.double() - exact).abs() / bound.clamp(min=1e-300)).max())  # a bound of 0 belongs to a sum of zeros


@pytest.mark.parametrize("kind", OPERANDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bound_holds_for_sums_of_any_length(dtype: str, kind: str) -> None:
    for steps in (1, 2, 9):
        a, b = operands(kind, dtype, 16, 2, steps * DEPTH[dtype])
        for c in (torch.zeros(16, 2), torch.ones(16, 2), torch.randn(16, 2, generator=torch.Generator().manual_seed(2)) * 64):
            assert excess(c, a, b, product(c, a, b, dtype)) <= 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bound_is_almost_reached(dtype: str) -> None:
    """Each instruction adds one product that is slightly smaller than the last place of the sum and is lost."""
    depth = DEPTH[dtype]
    a, b = torch.zeros(16, 40 * depth), torch.zeros(1, 40 * depth)
    a[:, ::depth], b[:, ::depth] = 2.0**-12 * (2 - 2.0**-6), 2.0**-12
    a, b = narrowed(a, dtype), narrowed(b, dtype)
    c = torch.ones(16, 1)
    d = product(c, a, b, dtype)
    assert torch.equal(d, c)
    terms = a[:, ::depth].contiguous(), b[:, ::depth].contiguous()
    assert 0.7 < excess(c, *terms, d) <= 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("truncate", [False, True])
def test_small_integers_are_exact_in_both_modes(matrices: Emulator, hopper: Emulator, dtype: str, truncate: bool) -> None:
    for seed in range(3):
        a, b = (random_matrix(dtype, rows, 2 * DEPTH[dtype], seed + i) for i, rows in enumerate((64, 64)))
        with hopper.arithmetic(addition=truncate):
            np.testing.assert_array_equal(wgmma(hopper, dtype, a, b), 1 + (a.float() @ b.float().T))
        a, b = a[:16, : DEPTH[dtype]].contiguous(), b[:8, : DEPTH[dtype]].contiguous()
        c = torch.randint(-4096, 4096, (16, 8)).float()
        with matrices.arithmetic(addition=truncate):
            np.testing.assert_array_equal(mma(matrices, dtype, c, a, b), c + a.float() @ b.float().T)


@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize("special", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_stays_so(matrices: Emulator, dtype: str, special: float) -> None:
    a, b = operands("normal", dtype, 16, 8, DEPTH[dtype])
    a[3, 1], b[:, 1], b[5, 1] = special, 1, 0
    c = torch.zeros(16, 8)
    c[7, 7] = special
    results = []
    for truncate in (False, True):
        with matrices.arithmetic(addition=truncate):
            results.append(mma(matrices, dtype, c, a, b))
    special_places = [~torch.isfinite(tensor) for tensor in results]
    assert torch.equal(*special_places)
    assert special_places[0].sum() == 9
    torch.testing.assert_close(*(tensor[special_places[0]] for tensor in results), rtol=0, atol=0, equal_nan=True)
