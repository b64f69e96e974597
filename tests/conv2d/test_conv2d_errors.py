"""Wrong calls of the convolutions, unfold and fold raise torch's exception type, with a message that says what was expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from torch_unroll.conv2d import conv2d, conv_transpose2d
from torch_unroll.testing import Target, targets
from torch_unroll.unfold import fold, unfold

X = (2, 4, 6, 5)
W = (6, 4, 3, 3)


def _t(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(shape, dtype=dtype)


CONV: dict[str, Callable[[Any], Any]] = {
    "input of rank 2": lambda f: f(_t(6, 5), _t(*W)),
    "input of rank 5": lambda f: f(_t(1, *X), _t(*W)),
    "weight of rank 3": lambda f: f(_t(*X), _t(6, 4, 3)),
    "weight of another dtype": lambda f: f(_t(*X), _t(*W, dtype=torch.float64)),
    "bias of another dtype": lambda f: f(_t(*X), _t(*W), _t(6, dtype=torch.float64)),
    "bias too long": lambda f: f(_t(*X), _t(*W), _t(7)),
    "bias of rank 2": lambda f: f(_t(*X), _t(*W), _t(6, 1)),
    "channels that do not fit": lambda f: f(_t(2, 5, 6, 5), _t(*W)),
    "groups that do not divide": lambda f: f(_t(*X), _t(*W), groups=4),
    "groups 0": lambda f: f(_t(*X), _t(*W), groups=0),
    "groups negative": lambda f: f(_t(*X), _t(*W), groups=-1),
    "stride 0": lambda f: f(_t(*X), _t(*W), stride=0),
    "stride negative": lambda f: f(_t(*X), _t(*W), stride=(1, -1)),
    "stride of three": lambda f: f(_t(*X), _t(*W), stride=(1, 1, 1)),
    "stride not an int": lambda f: f(_t(*X), _t(*W), stride=1.5),
    "stride a string": lambda f: f(_t(*X), _t(*W), stride="2"),
    "padding negative": lambda f: f(_t(*X), _t(*W), padding=-1),
    "padding of three": lambda f: f(_t(*X), _t(*W), padding=(1, 1, 1)),
    "dilation 0": lambda f: f(_t(*X), _t(*W), dilation=0),
    "weight not a tensor": lambda f: f(_t(*X), [1.0]),
    "input not a tensor": lambda f: f([1.0], _t(*W)),
    "empty weight": lambda f: f(_t(*X), _t(6, 4, 0, 3)),
}
ONLY_CONV2D = {
    "filter larger than the input": lambda f: f(_t(*X), _t(6, 4, 7, 3)),
    "dilated filter larger than the input": lambda f: f(_t(*X), _t(*W), dilation=(1, 3)),
    "padding unknown": lambda f: f(_t(*X), _t(*W), padding="full"),
    "padding same with a stride": lambda f: f(_t(*X), _t(*W), stride=2, padding="same"),
    "empty plane": lambda f: f(_t(2, 4, 0, 5), _t(*W)),
}
ONLY_TRANSPOSED = {
    "output_padding too large": lambda f: f(_t(2, 6, 6, 5), _t(*W), output_padding=1),
    "output_padding negative": lambda f: f(_t(2, 6, 6, 5), _t(*W), output_padding=-1, stride=2),
    "padding larger than the output": lambda f: f(_t(2, 6, 1, 1), _t(*W), padding=2),
}
UNFOLD = {
    "input of rank 2": lambda f: f(_t(6, 5), 2),
    "input of rank 5": lambda f: f(_t(1, *X), 2),
    "window larger than the input": lambda f: f(_t(*X), 7),
    "kernel_size 0": lambda f: f(_t(*X), 0),
    "kernel_size of three": lambda f: f(_t(*X), (1, 1, 1)),
    "stride 0": lambda f: f(_t(*X), 2, stride=0),
    "dilation 0": lambda f: f(_t(*X), 2, dilation=0),
    "padding negative": lambda f: f(_t(*X), 2, padding=-1),
    "no channels": lambda f: f(_t(2, 0, 6, 5), 2),
    "kernel_size not an int": lambda f: f(_t(*X), 2.5),
}
FOLD = {
    "input of rank 4": lambda f: f(_t(1, 2, 8, 9), (4, 4), 2),
    "rows that do not divide": lambda f: f(_t(2, 7, 9), (4, 4), 2),
    "columns that do not fit": lambda f: f(_t(2, 8, 10), (4, 4), 2),
    "window larger than the output": lambda f: f(_t(2, 36, 1), (4, 4), 6),
    "output_size 0": lambda f: f(_t(2, 8, 9), (0, 4), 2),
    "stride 0": lambda f: f(_t(2, 8, 9), (4, 4), 2, stride=0),
    "padding negative": lambda f: f(_t(2, 8, 9), (4, 4), 2, padding=-1),
}
FUNCTIONS = {
    "conv2d": (conv2d, F.conv2d, CONV | ONLY_CONV2D),
    "conv_transpose2d": (conv_transpose2d, F.conv_transpose2d, CONV | ONLY_TRANSPOSED),
    "unfold": (unfold, F.unfold, UNFOLD),
    "fold": (fold, F.fold, FOLD),
}


def _outcome(case: Callable[[Any], Any], function: Callable[..., Any]) -> BaseException | None:
    try:
        case(function)
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize(("name", "what"), [(name, what) for name, (_, _, cases) in FUNCTIONS.items() for what in cases])
@pytest.mark.parametrize("target", targets("conv2d"), ids=str)
def test_same_exception_as_torch(name: str, what: str, target: Target) -> None:
    ours, theirs, cases = FUNCTIONS[name]
    expected = _outcome(cases[what], theirs)
    error = _outcome(cases[what], lambda *a, **k: ours(*a, **k, engine=target.engine))
    assert expected is not None, "torch accepts this call, so it is no case of an error"
    assert type(error) is type(expected), f"torch: {type(expected).__name__}: {expected}\nours: {error!r}"
    assert "expected" in str(error)
