"""Engine `torch`: the formulas written out in plain torch, with an explicit backward. Everywhere right, nowhere fast."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from torch_unroll.engines import DTYPES
from torch_unroll.engines.interface import MODULES


class ReferenceEngine:
    """Every function of `engines.interface.Engine`, from this package's modules."""

    name = "torch"

    def __getattr__(self, function: str) -> Callable[..., Any]:
        if function not in MODULES:
            raise AttributeError(f"engine torch has no function {function!r}")
        found: Callable[..., Any] = getattr(import_module(f"{__name__}.{MODULES[function]}"), function)
        setattr(self, function, found)  # looked up once
        return found

    def warmup(self, op: str, dtype: torch.dtype, device: torch.device) -> None:
        """Nothing of it is compiled."""

    def refuses(self, op: str, device: torch.device, dtype: torch.dtype) -> str | None:
        """It takes the dtypes of the compiled kernels, wherever torch can compute with them."""
        return None if dtype in DTYPES else f"has no formulas for {dtype}"


ENGINE = ReferenceEngine()
