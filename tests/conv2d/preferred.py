"""Makes one variant compute every convolution that it accepts."""

from __future__ import annotations

from typing import Any

import pytest

from torch_unroll.kernels import planning
from torch_unroll.kernels.cuda.conv2d.problem import Conv2dProblem
from torch_unroll.kernels.cuda.conv2d.variants import SELECTORS
from torch_unroll.kernels.hardware import Device


class Preferring(planning.Selector[Conv2dProblem]):
    """Selects the variant `preferred` if it accepts the problem, otherwise what the original selector would select."""

    def __init__(self, selector: planning.Selector[Conv2dProblem], preferred: str, functions: list[str]):
        super().__init__(selector.op, selector.function, selector.variants, selector.margin)
        object.__setattr__(self, "preferred", preferred)
        object.__setattr__(self, "functions", functions)

    preferred: str
    functions: list[str]

    def select(self, problem: Conv2dProblem, device: Device) -> Any:
        takes = self.variant(self.preferred).refuses(problem, device) is None
        if takes:
            self.functions.append(self.function)
        with planning.force(self.function, self.preferred if takes else None):
            return super().select(problem, device)


def prefer(monkeypatch: pytest.MonkeyPatch, variant: str) -> list[str]:
    """Prefers a variant for the rest of the test.

    Returns a list to which each selection of that variant appends the name of the function, such as "conv2d_dgrad".
    """
    functions: list[str] = []
    for function, selector in list(SELECTORS.items()):
        monkeypatch.setitem(SELECTORS, function, Preferring(selector, variant, functions))
    return functions
