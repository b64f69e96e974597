"""The matrix products of engine `torch`, whose operands are widened to the type in which the kernels sum."""

from __future__ import annotations

import torch
from torch import Tensor


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Returns fp32 for the 16-bit types, else the type itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def product(a: Tensor, b: Tensor, precision: str) -> Tensor:
    """Returns a @ b in the accumulator type. On a GPU, fp32 is computed in TF32 only if both `precision` and torch's switch for
    matmul say so; if the switch alone says so, it is computed in float64."""
    wide = accumulator(a.dtype)
    if a.is_cuda and wide == torch.float32 and precision == "ieee" and torch.backends.cuda.matmul.fp32_precision == "tf32":
        return (a.double() @ b.double()).float()
    return a.to(wide) @ b.to(wide)
