"""The integer arithmetic that launch plans use."""

from __future__ import annotations


def ceil_divide(a: int, b: int) -> int:
    """The quotient of `a` and a positive `b`, rounded up."""
    return -(-a // b)


def round_up(number: int, multiple: int) -> int:
    """The least multiple of `multiple` that is not below `number`."""
    return ceil_divide(number, multiple) * multiple


def power_of_two(at_least: int) -> int:
    """The least power of two that is not below `at_least`, a positive number."""
    return 1 << (at_least - 1).bit_length()
