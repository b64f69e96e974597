"""The dtypes of the kernels, under torch's names."""

from __future__ import annotations

#: torch's name of a dtype -> its C++ name in `cuda/platform/types.h`.
CPP_TYPES = {"float16": "half", "bfloat16": "bfloat16", "float32": "float", "float64": "double"}
DTYPES = tuple(CPP_TYPES)
#: Bytes of an element.
ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


def accumulator_bytes(dtype: str) -> int:
    """Bytes of the type in which products are summed: float64 for float64, float32 for every other dtype."""
    return 8 if dtype == "float64" else 4
